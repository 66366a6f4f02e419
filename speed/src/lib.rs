//! The speed layer: turns the log into speed chunks within seconds, and into archive files about once a minute.
//!
//! ```text
//! consume ─► partition: decode ─► dedup ─► fold ─┬─► flush: delta chunks, then the mark
//!                                                └─► seal: consolidated chunks, archive file, then the ledger
//! ```
//! One worker joins a consumer group for all sources; each partition that the group assigns has a task of its own, which
//! takes the partition over from its ledger, and lets go of it when the group or the ledger says so.
//!
//! # Invariants
//! - Keys, marks and ledger changes come from [`lamina_core::writer::Writer`] alone.
//! - The ledger says where to begin; the group's committed offsets are for other tools to look at.
//! - A mark is written only once every chunk and every dead letter below it is acknowledged.
//! - What is lost with this process (memory, unsealed epochs) is rebuilt from the log by whoever takes over.
//!
//! Dead letters are written at least once: after a takeover those of the open epoch may appear again.

use std::{sync::Arc, time::Duration};

use lamina_core::{Clock, Micros, Store, log::Log};
use lamina_metric::Catalog;
use object_store::ObjectStore;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod archive_file;
mod care;
mod consume;
mod dead_letters;
mod dedup;
mod feed;
mod flush;
mod fold;
mod instruments;
mod membership;
mod partition;
mod retry;
mod seal;
mod settle;
mod takeover;
mod views;

/// How the speed layer works; [`Config::default`] suits most.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time between flushes while records come.
    pub flush_interval: Duration,
    /// Time from an epoch's first record to its seal.
    pub epoch: Duration,
    /// Records after which an epoch is sealed early.
    pub epoch_max_records: u64,
    /// Bytes of records, or of memory that their fold takes, after which an epoch is sealed early.
    pub epoch_max_bytes: u64,
    /// How long speed chunks live. At least four times the time between batch runs.
    pub ttl: Duration,
    /// Consumer group that spreads the partitions over workers.
    pub group: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(1),
            epoch: Duration::from_secs(60),
            epoch_max_records: 2_000_000,
            epoch_max_bytes: 256 << 20,
            ttl: Duration::from_secs(3 * 24 * 3600),
            group: "lamina".to_owned(),
        }
    }
}

impl Config {
    pub(crate) fn ttl_seconds(&self) -> u32 {
        u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX).max(1)
    }

    /// Until when chunks are sure to live that are written at `from` or later: a margin before they expire.
    pub(crate) fn alive_until(&self, from: Micros) -> Micros {
        from.saturating_add(self.life())
    }

    /// How long chunks are trusted after they were written.
    pub(crate) fn life(&self) -> Micros {
        let ttl = Micros::from(self.ttl_seconds()) * 1_000_000;
        ttl - (ttl / 10).min(3_600_000_000)
    }
}

/// What the speed layer works with.
#[derive(Clone)]
pub struct Deps {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    pub archive: Arc<dyn ObjectStore>,
    /// The definitions; a new revision takes effect at the next epoch of each partition.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub clock: Arc<dyn Clock>,
}

/// Why the speed layer cannot go on. Whatever may pass by itself is repeated instead.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    #[error("cannot join the consumer group {group}; check the group's name and permissions")]
    Join {
        group: String,
        #[source]
        cause: lamina_core::log::LogError,
    },
}

/// Folds all sources of the catalog until `stop`; then seals what is open and leaves the group.
///
/// # Errors
/// If the log refuses this worker as a member of the group.
pub async fn run(deps: Deps, config: Config, stop: CancellationToken) -> Result<(), SpeedError> {
    instruments::describe();
    consume::run(Arc::new(deps), Arc::new(config), stop).await
}

/// The topic to which records go that could not be decoded, or that a metric's expressions rejected.
pub fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}.dead-letter")
}
