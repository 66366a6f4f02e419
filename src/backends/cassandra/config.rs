//! Where the cluster is and how it is talked to.

use std::{fmt, time::Duration};

use lamina_core::StoreError;

use super::{TlsFiles, WriteConsistency};

/// How to reach a Cassandra cluster.
#[derive(Clone)]
pub struct CassandraConfig {
    /// `host:port` of some nodes; the others are found through them.
    pub contact_points: Vec<String>,
    pub keyspace: String,
    /// The data centre that is read and written; others only take part in compare-and-sets.
    pub local_dc: String,
    /// What a write waits for; must be what the keyspace says.
    pub write_consistency: WriteConsistency,
    /// Copies of each row in the local data centre, for a keyspace that [`super::migrate`] makes.
    pub replication_factor: u32,
    pub username: Option<String>,
    pub password: Option<String>,
    /// Encrypted and authenticated connections, if there are any files for it.
    pub tls: Option<TlsFiles>,
    /// How long one statement may take, repetitions included.
    pub request_timeout: Duration,
    /// How many statements may be under way at a time; more of them wait.
    pub in_flight: usize,
}

impl Default for CassandraConfig {
    fn default() -> Self {
        Self {
            contact_points: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "lamina".to_owned(),
            local_dc: "dc1".to_owned(),
            write_consistency: WriteConsistency::default(),
            replication_factor: 1,
            username: None,
            password: None,
            tls: None,
            request_timeout: Duration::from_secs(3),
            in_flight: 512,
        }
    }
}

impl CassandraConfig {
    /// Names go into DDL as text, so only harmless ones pass.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let harmless = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let keyspace = &self.keyspace;
        if !keyspace.starts_with(|c: char| c.is_ascii_lowercase())
            || keyspace.len() > 48
            || !keyspace.chars().all(harmless)
        {
            return Err(StoreError::Refused(format!(
                "keyspace {keyspace:?} must be 1 to 48 lower-case letters, digits and underscores, a letter first"
            )));
        }
        if self.local_dc.is_empty() || self.local_dc.contains(['\'', '\\', '"']) {
            return Err(StoreError::Refused(format!("local_dc {:?} is no name of a data centre", self.local_dc)));
        }
        if self.contact_points.is_empty() {
            return Err(StoreError::Refused(
                "contact_points is empty: name one node at least, as host:port".to_owned(),
            ));
        }
        if self.replication_factor == 0 || self.in_flight == 0 {
            return Err(StoreError::Refused("replication_factor and in_flight must be 1 or more".to_owned()));
        }
        Ok(())
    }
}

/// Leaves the password out.
impl fmt::Debug for CassandraConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CassandraConfig")
            .field("contact_points", &self.contact_points)
            .field("keyspace", &self.keyspace)
            .field("local_dc", &self.local_dc)
            .field("write_consistency", &self.write_consistency)
            .field("replication_factor", &self.replication_factor)
            .field("username", &self.username)
            .field("tls", &self.tls)
            .field("request_timeout", &self.request_timeout)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
