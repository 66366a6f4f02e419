//! Which acknowledgements writes wait for, stored once in the keyspace.
//!
//! A process that waits for fewer data centres than its readers rely on would make their answers low. So the mode stands in
//! the keyspace, in a document, and a process that is configured otherwise is refused.

use lamina_core::{Commit, StoreError};
use scylla::statement::Consistency;
use serde::Deserialize;

use super::{config::CassandraConfig, session::Connection};

const PLACE: (&str, &str) = ("settings", "write_consistency");

/// What a write waits for before it counts as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteConsistency {
    /// A quorum of the local data centre: only that one may serve.
    #[default]
    LocalQuorum,
    /// A quorum of every data centre of the keyspace: each of them may serve.
    EachQuorum,
}

impl WriteConsistency {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LocalQuorum => "local_quorum",
            Self::EachQuorum => "each_quorum",
        }
    }

    pub(super) fn level(self) -> Consistency {
        match self {
            Self::LocalQuorum => Consistency::LocalQuorum,
            Self::EachQuorum => Consistency::EachQuorum,
        }
    }
}

/// What the keyspace is written at, with the version of the document. Keyspaces from before there was a choice have none.
async fn stored(connection: &Connection) -> Result<Option<(i64, String)>, StoreError> {
    let get = connection.prepare_serial("SELECT version, value FROM {}.documents WHERE kind = ? AND key = ?").await?;
    let rows: Vec<(Option<i64>, Option<Vec<u8>>)> = connection.rows(&get, PLACE).await?;
    let found = rows.into_iter().find_map(|(version, value)| version.zip(value));
    Ok(found.map(|(version, value)| (version, String::from_utf8_lossy(&value).into_owned())))
}

/// # Errors
/// [`StoreError::Refused`] if the keyspace is written otherwise than this process is configured to.
pub(super) async fn check(connection: &Connection, config: &CassandraConfig) -> Result<(), StoreError> {
    let (keyspace, configured) = (&config.keyspace, config.write_consistency.as_str());
    let stands = stored(connection).await?.map(|(_, mode)| mode);
    let stands = stands.as_deref().unwrap_or(WriteConsistency::LocalQuorum.as_str());
    if stands == configured {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "keyspace {keyspace} is written at {stands}, but store.write_consistency is \"{configured}\": configure \"{stands}\", \
         or stop every process, repair the keyspace and run `lamina migrate --change-write-consistency`"
    )))
}

/// Stores the configured mode where there is none and nothing was written yet; else checks it, or changes it if asked to.
///
/// # Errors
/// As [`check`], and as the store.
pub(super) async fn settle(connection: &Connection, config: &CassandraConfig, change: bool) -> Result<(), StoreError> {
    let configured = config.write_consistency;
    let set = match stored(connection).await? {
        Some((_, mode)) if mode == configured.as_str() => return Ok(()),
        Some((version, _)) if change => {
            let replace = "UPDATE {}.documents SET version = ?, value = ? WHERE kind = ? AND key = ? IF version = ?";
            let replace = connection.prepare_conditional(replace).await?;
            let row = (version.saturating_add(1), configured.as_str().as_bytes(), PLACE.0, PLACE.1, version);
            connection.change(&replace, row).await
        }
        Some(_) => return check(connection, config).await,
        None => {
            let written: Vec<(String,)> = connection.ask("SELECT log FROM {}.ledgers LIMIT 1", ()).await?;
            if !written.is_empty() && !change {
                check(connection, config).await?;
            }
            let create = "INSERT INTO {}.documents (kind, key, version, value) VALUES (?, ?, 1, ?) IF NOT EXISTS";
            let create = connection.prepare_conditional(create).await?;
            connection.change(&create, (PLACE.0, PLACE.1, configured.as_str().as_bytes())).await
        }
    };
    match set {
        Ok(Commit::Applied) => Ok(()),
        Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => check(connection, config).await,
        Err(error) => Err(error),
    }
}
