//! What stands in `lamina.toml` about the view store: `[store]`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Login;
use crate::backends::cassandra::{TlsFiles, WriteConsistency};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    Embedded,
    Cassandra,
}

/// The section `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawStore {
    pub kind: StoreKind,
    pub contact_points: Vec<String>,
    pub keyspace: String,
    pub local_dc: String,
    /// What writes wait for; must be what the keyspace says.
    pub write_consistency: WriteConsistency,
    /// Replicas per data centre, for `lamina migrate`.
    pub replication_factor: u32,
    pub username: Option<String>,
    /// A file that holds the password, so that it stands in no configuration; else `LAMINA_STORE_PASSWORD` in the environment.
    pub password_file: Option<PathBuf>,
    /// Encrypts what goes to the nodes and comes from them, and checks who they are.
    pub tls: Option<RawTls>,
}

/// The section `[store.tls]`; all files are PEM.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// Authorities that the nodes' certificates come from; the system's if left out.
    pub ca: Option<PathBuf>,
    /// lamina's own certificate with its chain, for nodes that ask for one,
    pub cert: Option<PathBuf>,
    /// and its key.
    pub key: Option<PathBuf>,
}

impl Default for RawStore {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            contact_points: vec!["127.0.0.1:9042".into()],
            keyspace: "lamina".into(),
            local_dc: "dc1".into(),
            write_consistency: WriteConsistency::default(),
            replication_factor: 1,
            username: None,
            password_file: None,
            tls: None,
        }
    }
}

impl RawStore {
    /// With its files below a folder; tells what does not go together.
    pub(super) fn check(mut self, folder: &Path, problems: &mut Vec<String>) -> Self {
        let below = |file: &mut Option<PathBuf>| *file = file.take().map(|file| folder.join(file));
        below(&mut self.password_file);
        if let Some(tls) = &mut self.tls {
            if tls.cert.is_some() != tls.key.is_some() {
                problems.push("store.tls: cert and key are given together or not at all".to_owned());
            }
            [&mut tls.ca, &mut tls.cert, &mut tls.key].into_iter().for_each(below);
        }
        self
    }

    pub(crate) fn login(&self) -> Login {
        Login {
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            environment: "LAMINA_STORE_PASSWORD",
        }
    }

    pub(crate) fn tls(&self) -> Option<TlsFiles> {
        let RawTls { ca, cert, key } = self.tls.clone()?;
        Some(TlsFiles { ca, own: cert.zip(key) })
    }
}
