//! TLS by rustls, with a certificate that may be replaced while lamina runs.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Largest file read: a long chain has some 20 kB.
const MAX_FILE: u64 = 1 << 20;

/// Where certificate and key are, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A listener's TLS: cheap to clone.
#[derive(Clone)]
pub(super) struct Tls {
    files: Arc<Files>,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

/// The certificate that is shown from now on.
struct Current(RwLock<(Loaded, Arc<CertifiedKey>)>);

/// The files as they were read, to see that they changed.
#[derive(PartialEq, Eq)]
struct Loaded {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    /// Checks that certificate and key can be read and belong together.
    ///
    /// # Errors
    /// If not; says which file and why.
    pub fn check(&self) -> io::Result<()> {
        certified(self, &self.load()?).map(drop)
    }

    fn load(&self) -> io::Result<Loaded> {
        let read = |path: &PathBuf| {
            let failed = |why: String| io::Error::other(format!("{}: {why}", path.display()));
            let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
            if length > MAX_FILE {
                return Err(failed(format!("{length} bytes are too many for a certificate or key")));
            }
            std::fs::read(path).map_err(|error| failed(error.to_string()))
        };
        Ok(Loaded { cert: read(&self.cert)?, key: read(&self.key)? })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certified(files: &Files, loaded: &Loaded) -> io::Result<Arc<CertifiedKey>> {
    let failed = |path: &PathBuf, why: &dyn std::fmt::Display| io::Error::other(format!("{}: {why}", path.display()));
    let chain = CertificateDer::pem_slice_iter(&loaded.cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| failed(&files.cert, &error))?;
    if chain.is_empty() {
        return Err(failed(&files.cert, &"there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&loaded.key).map_err(|error| failed(&files.key, &error))?;
    // It also checks that the two belong together.
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| failed(&files.key, &error))?;
    Ok(Arc::new(certified))
}

impl Tls {
    pub(super) fn open(files: Files) -> io::Result<Self> {
        let loaded = files.load()?;
        let certified = certified(&files, &loaded)?;
        let current = Arc::new(Current(RwLock::new((loaded, certified))));
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let mut config =
            config.map_err(io::Error::other)?.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files: Arc::new(files), current, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.acceptor.accept(stream).await
    }

    /// Takes over what changes in the files until the stop. What cannot be used leaves the certificate as it was.
    pub(super) async fn watch(self, stop: CancellationToken) {
        let mut warned = None;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let (files, current) = (Arc::clone(&self.files), Arc::clone(&self.current));
            let renewed = tokio::task::spawn_blocking(move || current.renew(&files)).await;
            match renewed.map_err(io::Error::other).flatten() {
                Ok(false) => warned = None,
                Ok(true) => tracing::info!(cert = %self.files.cert.display(), "the TLS certificate was replaced"),
                Err(error) => {
                    // Once for each reason: between two writes of an operator the files do not fit.
                    let why = error.to_string();
                    if warned.as_ref() != Some(&why) {
                        tracing::warn!(%error, "the TLS certificate stays as it was");
                    }
                    warned = Some(why);
                }
            }
        }
    }
}

impl Current {
    /// Whether there was something new.
    fn renew(&self, files: &Files) -> io::Result<bool> {
        let loaded = files.load()?;
        if self.0.read().unwrap_or_else(PoisonError::into_inner).0 == loaded {
            return Ok(false);
        }
        let certified = certified(files, &loaded)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (loaded, certified);
        Ok(true)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).1))
    }
}

/// Says which file is shown, never the key.
impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}
