//! TLS towards the nodes, by OpenSSL, which librdkafka brings along in any case.

use std::{
    io,
    path::{Path, PathBuf},
};

use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslFiletype, SslMethod},
    x509::{X509, store::X509StoreBuilder},
};
use scylla::client::session::OpenSsl010Config;

/// Whom to believe and who lamina is; all files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only authorities that are believed; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// lamina's own certificate with its chain, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Reads the files. A node's certificate must come from an authority that is believed, and name the node's address.
    ///
    /// # Errors
    /// If a file cannot be read, or certificate and key do not belong together; names the file.
    pub(super) fn open(&self) -> io::Result<OpenSsl010Config> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        if let Some(ca) = &self.ca {
            let authorities = X509::stack_from_pem(&std::fs::read(ca).map_err(|error| of(ca, &error))?);
            let authorities = authorities.map_err(|error| of(ca, &error))?;
            if authorities.is_empty() {
                return Err(of(ca, &"there is no certificate in it"));
            }
            let believed = authorities.into_iter().try_fold(X509StoreBuilder::new()?, |mut believed, authority| {
                believed.add_cert(authority)?;
                Ok::<_, ErrorStack>(believed)
            })?;
            builder.set_cert_store(believed.build());
        }
        if let Some((cert, key)) = &self.own {
            builder.set_certificate_chain_file(cert).map_err(|error| of(cert, &error))?;
            builder.set_private_key_file(key, SslFiletype::PEM).map_err(|error| of(key, &error))?;
            builder.check_private_key().map_err(|error| of(key, &error))?;
        }
        Ok(OpenSsl010Config::new(builder))
    }
}

fn of(file: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate and its key, as files below a folder.
    fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert, key)
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = certificate(folder.path(), "one");
        let (_, other) = certificate(folder.path(), "other");
        let open = |ca: &Path, own: Option<(&Path, &Path)>| {
            let own = own.map(|(cert, key)| (cert.to_owned(), key.to_owned()));
            TlsFiles { ca: Some(ca.to_owned()), own }.open().map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(open(&cert, Some((&cert, &key))), Ok(()));
        assert_eq!(open(&cert, None), Ok(()));
        let error = open(&key, None).unwrap_err();
        assert!(error.contains("one.key") && error.contains("no certificate"), "{error}");
        let error = open(&folder.path().join("none"), None).unwrap_err();
        assert!(error.contains("none"), "{error}");
        let error = open(&cert, Some((&cert, &other))).unwrap_err();
        assert!(error.contains("other.key"), "{error}");
    }
}
