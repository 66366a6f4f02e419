//! The words, the rules and the interfaces that every layer of lamina shares.
//!
//! Nothing here does I/O: the ledger, the writer of an epoch, the generations of a view and the reader's snapshot are
//! values and transitions; [`log`] and [`store`] are traits that the root package implements twice.
//!
//! # Invariants
//! - Every served value is the fold of a prefix of the log.
//! - What is not in the [`ledger`] does not exist.
//! - This crate imports no other crate of lamina.

pub mod archive;
pub mod clock;
pub mod cut;
pub mod envelope;
pub mod generation;
pub mod ids;
pub mod jobs;
pub mod ledger;
pub mod log;
pub mod offload;
pub mod read;
pub mod rules;
pub mod snapshot;
pub mod store;
pub mod tables;
pub mod writer;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(test)]
mod laws;

pub use archive::{ArchiveError, Holdings, Segment};
pub use clock::Clock;
pub use cut::Cut;
pub use generation::{Opened, Published, Scope, ViewState};
pub use ids::{EpochId, Generation, LogId, Micros, Offset, Partition, Shard, ViewId};
pub use jobs::{Job, JobKind, JobRequest, JobState, Pause, Progress, ScheduleState};
pub use ledger::{Archive, Change, Counts, Epoch, Ledger, LedgerError};
pub use snapshot::Snapshot;
pub use store::{
    BatchChunks, BatchKey, BatchRow, Commit, Consistency, Document, Documents, Ledgers, Mark, Part, SpeedChunks,
    SpeedKey, Stamp, Store, StoreError,
};
pub use tables::{TableName, Tables};
pub use writer::Writer;

/// The target of `tracing` spans that are exported as OpenTelemetry's, all at level DEBUG.
pub const SPANS: &str = "lamina::spans";
