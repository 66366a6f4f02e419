//! The view store on Cassandra: `schema.cql` says what each table holds.
//!
//! # Invariants
//! - Ledgers and documents change by conditional statements only, with SERIAL consistency across all data centres. If the
//!   outcome of one is open, the answer is [`StoreError::Unknown`]: nothing here repeats it blindly.
//! - Every other write is an upsert whose key, timestamp and bytes are given, so it may be repeated by anybody.
//! - Data is read at LOCAL_QUORUM of the configured data centre; no other one is asked in its place. It is written at
//!   LOCAL_QUORUM or EACH_QUORUM, as the keyspace says: a process that is configured otherwise is refused.

mod batch;
mod cell;
mod config;
mod documents;
mod errors;
mod ledgers;
mod manifest;
mod mode;
mod schema;
mod session;
pub mod skew;
mod speed;
mod table_value;
pub mod tables;
mod tls;
mod trace;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lamina_core::StoreError;
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::OnceCell;

use self::{
    batch::BatchStatements, documents::DocumentStatements, ledgers::LedgerStatements, manifest::ManifestStatements,
    session::Connection, speed::SpeedStatements,
};
pub use self::{
    config::CassandraConfig,
    mode::WriteConsistency,
    schema::{change_write_consistency, migrate},
    tls::TlsFiles,
};

/// How many statements of one call are under way at a time.
const CONCURRENCY: usize = 128;

/// After a failed attempt to connect, calls fail at once for so long, so that they do not queue up behind attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// The view store. It need not be there yet, and may go away: calls fail with [`StoreError::Unavailable`] meanwhile.
pub struct CassandraStore {
    config: CassandraConfig,
    opened: OnceCell<Opened>,
    /// When connecting failed last, and why.
    failed: Mutex<Option<(Instant, String)>>,
}

/// A session and its statements. It outlives outages of the cluster.
struct Opened {
    connection: Connection,
    ledgers: LedgerStatements,
    manifest: ManifestStatements,
    speed: SpeedStatements,
    batch: BatchStatements,
    documents: DocumentStatements,
    /// Asks a node for its time.
    clock: PreparedStatement,
}

impl CassandraStore {
    /// A store that connects when it is first asked.
    pub fn new(config: CassandraConfig) -> Self {
        Self { config, opened: OnceCell::new(), failed: Mutex::new(None) }
    }

    /// Connects to the cluster and prepares every statement.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while no contact point answers: the caller may try again. [`StoreError::Refused`] if the
    /// configuration cannot work: unknown data centre, no such keyspace, a schema that `lamina migrate` must bring up first, a
    /// keyspace that is written otherwise.
    pub async fn connect(config: CassandraConfig) -> Result<Self, StoreError> {
        let store = Self::new(config);
        store.opened().await?;
        Ok(store)
    }

    /// The session, once there is one.
    async fn opened(&self) -> Result<&Opened, StoreError> {
        let open = || async {
            if let Some((_, why)) = self.last_failure().as_ref().filter(|(at, _)| at.elapsed() < PAUSE) {
                return Err(StoreError::Unavailable(why.clone()));
            }
            let opened = Opened::open(&self.config).await;
            if let Err(StoreError::Unavailable(why)) = &opened {
                *self.last_failure() = Some((Instant::now(), why.clone()));
            }
            opened
        };
        self.opened.get_or_try_init(open).await
    }

    fn last_failure(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        // Nothing panics while it is held, so it is whole in any case.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    async fn open(config: &CassandraConfig) -> Result<Self, StoreError> {
        let connection = Connection::open(config).await?;
        schema::verify(&connection, &config.keyspace).await?;
        schema::warn_of_settings(&connection).await;
        mode::check(&connection, config).await?;
        Ok(Self {
            ledgers: LedgerStatements::prepare(&connection).await?,
            manifest: ManifestStatements::prepare(&connection).await?,
            speed: SpeedStatements::prepare(&connection).await?,
            batch: BatchStatements::prepare(&connection).await?,
            documents: DocumentStatements::prepare(&connection).await?,
            clock: connection.prepare("SELECT toUnixTimestamp(now()) FROM system.local").await?,
            connection,
        })
    }
}
