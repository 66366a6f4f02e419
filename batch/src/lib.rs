//! The batch layer: covers sealed epochs with long-lived chunks, from the archive, and rebuilds what it is asked to.
//!
//! Flow of a run: `plan` (which epochs) → `fold` (DataFusion: `scan` of verified `files`, states, `report`; here, or
//! `distributed` on executors) → `cap` → `rollup` (chunks) → publish.
//!
//! # Invariants
//! - A generation covers whole sealed epochs, all of them up to its cut: a hole or a file that does not hold what the
//!   ledger says fails the run, and nothing is published.
//! - Every chunk that is written is exact for its own cut at every moment, so a run that stops anywhere does no harm.
//! - The leader's lease is for liveness only; two leaders at once are slow, never wrong.
//! - Events go through the same `Metric::prepare` and the same states as in the speed layer, and the same cap.

mod archive;
mod cap;
mod compare;
mod compute;
mod context;
mod distributed;
mod error;
mod expiry;
mod files;
mod fold;
mod job;
mod leader;
mod lease;
mod meter;
mod names;
mod open;
mod plan;
mod report;
mod rollup;
mod run;
mod scan;
mod schedule;
mod table;
mod telemetry;
mod versions;

use std::{sync::Arc, time::Duration};

use lamina_core::{Clock, Store, Tables, log::Log};
use lamina_metric::Catalog;
use object_store::ObjectStore;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use archive::Retention;
pub use distributed::execute;
pub use error::BatchError;
pub use meter::Meter;
pub use run::{Batch, Outcome, Wanted};
pub use schedule::Schedule;

/// How batch runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub schedule: Schedule,
    /// What DataFusion may hold in memory before it spills to disk; files and chunks in work take about as much again.
    pub memory_bytes: usize,
    /// Threads of batch's own runtime.
    pub parallelism: usize,
    /// How far they stand back behind other threads, 0 (as one of them) to 19; on Linux only.
    pub nice: u8,
    /// How long a leader that went silent is waited for.
    pub lease: Duration,
    /// How often a failed job is tried again.
    pub retries: u32,
    /// How long what a recompute or a rollback replaced is kept, to return to.
    pub keep: Duration,
    /// How long raw events stay in the archive.
    pub retention: Retention,
    /// Whether small files of the archive are put together.
    pub compaction: bool,
    /// Where executors are, whose threads and memory then fold instead of this process's; none: all is folded here.
    pub executors: Vec<Url>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            schedule: Schedule::off(),
            memory_bytes: 512 << 20,
            parallelism: std::thread::available_parallelism().map_or(2, usize::from),
            nice: 10,
            lease: Duration::from_secs(15),
            retries: 3,
            keep: Duration::from_secs(7 * 24 * 3_600),
            retention: Retention::default(),
            compaction: true,
            executors: Vec::new(),
        }
    }
}

/// What batch works with.
#[derive(Clone)]
pub struct Deps {
    pub store: Arc<dyn Store>,
    /// Only for the ids, partitions and ends of topics.
    pub log: Arc<dyn Log>,
    pub archive: Arc<dyn ObjectStore>,
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub clock: Arc<dyn Clock>,
    /// Users' own tables, if the store's cluster has such.
    pub tables: Option<Arc<dyn Tables>>,
}

/// Leads, or stands by to lead, until `stop`: runs the schedule and the jobs that others queue.
///
/// # Errors
/// If batch's own runtime cannot start. Failures of jobs are the jobs'.
pub async fn run(deps: Deps, config: Config, stop: CancellationToken) -> Result<(), BatchError> {
    telemetry::describe_metrics();
    let (lease, schedule, retries) = (config.lease, config.schedule.clone(), config.retries);
    let batch = Batch::new(deps, &config)?;
    leader::stand(&batch, lease, &schedule, retries, &stop).await;
    Ok(())
}
