//! The view store on Cassandra: `schema.cql` says what each table holds.
//!
//! # Invariants
//! - Ledgers and documents change by conditional statements only, with SERIAL consistency across all data centres. If the
//!   outcome of one is open, the answer is [`StoreError::Unknown`]: nothing here repeats it blindly.
//! - Every other write is an upsert whose key, timestamp and bytes are given, so it may be repeated by anybody.
//! - Data is read and written at LOCAL_QUORUM of the configured data centre; no other one is asked in its place.

mod batch;
mod cell;
mod config;
mod documents;
mod errors;
mod ledgers;
mod manifest;
mod schema;
mod session;
mod speed;

use lamina_core::StoreError;

use self::{
    batch::BatchStatements, documents::DocumentStatements, ledgers::LedgerStatements, manifest::ManifestStatements,
    session::Connection, speed::SpeedStatements,
};
pub use self::{config::CassandraConfig, schema::migrate};

/// How many statements of one call are under way at a time.
const CONCURRENCY: usize = 64;

/// A connected view store. It outlives outages of the cluster: calls fail with [`StoreError::Unavailable`] meanwhile.
pub struct CassandraStore {
    connection: Connection,
    ledgers: LedgerStatements,
    manifest: ManifestStatements,
    speed: SpeedStatements,
    batch: BatchStatements,
    documents: DocumentStatements,
}

impl CassandraStore {
    /// Connects to the cluster and prepares every statement.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while no contact point answers: the caller may try again. [`StoreError::Refused`] if the
    /// configuration cannot work: unknown data centre, no such keyspace, a schema that `lamina migrate` must bring up first.
    pub async fn connect(config: CassandraConfig) -> Result<Self, StoreError> {
        let connection = Connection::open(&config).await?;
        schema::verify(&connection, &config.keyspace).await?;
        Ok(Self {
            ledgers: LedgerStatements::prepare(&connection).await?,
            manifest: ManifestStatements::prepare(&connection).await?,
            speed: SpeedStatements::prepare(&connection).await?,
            batch: BatchStatements::prepare(&connection).await?,
            documents: DocumentStatements::prepare(&connection).await?,
            connection,
        })
    }
}
