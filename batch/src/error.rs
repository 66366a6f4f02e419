//! What can go wrong in a run. Nothing here ever leaves a wrong answer behind.

use lamina_core::{
    ArchiveError, Offset, Partition, StoreError, generation::GenerationError, ledger::LedgerError, log::LogError,
};
use lamina_metric::{ChunkError, MetricError, StateError};

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("ledger of partition {partition} cannot be used")]
    Ledger {
        partition: Partition,
        #[source]
        cause: LedgerError,
    },
    #[error("archive file {path} cannot be read: the ledger names it, so it must exist below the archive's root")]
    Unreadable {
        path: String,
        #[source]
        cause: object_store::Error,
    },
    #[error("archive file {path} cannot be written")]
    Unwritable {
        path: String,
        #[source]
        cause: object_store::Error,
    },
    #[error("archive file {path}, which nothing refers to any more, cannot be removed")]
    Unremovable {
        path: String,
        #[source]
        cause: object_store::Error,
    },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the files to be written anew do not follow each other")]
    NothingToRewrite,
    /// A file does not hold what the ledger says it does.
    #[error("archive file {path}: expected {what} {expected}, found {found}; restore the file from a copy")]
    Mismatch { path: String, what: &'static str, expected: u64, found: u64 },
    #[error("archive file {path} does not decode")]
    Undecodable {
        path: String,
        #[source]
        cause: Cause,
    },
    #[error("the run read {found} records where ledger and manifest name {expected}")]
    Incomplete { expected: u64, found: u64 },
    #[error("archive of partition {partition} has a hole: offsets {from}..{to} are in neither ledger nor manifest")]
    Hole { partition: Partition, from: Offset, to: Offset },
    #[error("archive file of offsets {start}..{end} of partition {partition} accounts for {found} of them")]
    NotConserved { partition: Partition, start: Offset, end: Offset, found: u64 },
    #[error(
        "the states of the run hold {found} events where {expected} were folded: events got lost or were counted twice"
    )]
    NotFolded { expected: u64, found: u64 },
    #[error(
        "the engine did not say once what became of the events of the file of partition {partition} from offset {start}"
    )]
    Unaccounted { partition: Partition, start: Offset },
    /// What an executor found, in its words.
    #[error("executor {executor}: {text}")]
    Executor { executor: String, text: String, violation: bool },
    #[error("no executor of batch.executors is left: {}", .0.join("; "))]
    NoExecutor(Vec<String>),
    #[error("aggregation failed")]
    Compute(#[from] datafusion::error::DataFusionError),
    #[error("events of the archive do not fit the metric")]
    Metric(#[from] MetricError),
    #[error("states do not fold")]
    State(#[from] StateError),
    #[error("{what} does not decode")]
    Chunk {
        what: String,
        #[source]
        cause: ChunkError,
    },
    #[error("rules of expiry cannot be judged: {0}")]
    Rules(String),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("state of view {0} kept changing")]
    Contended(String),
    #[error("the work panicked: {0}")]
    Panicked(String),
    #[error("metric {name} does not exist; there are {}", known.join(", "))]
    UnknownMetric { name: String, known: Vec<String> },
    #[error("source {name} does not exist; there are {}", known.join(", "))]
    UnknownSource { name: String, known: Vec<String> },
    #[error("what to erase cannot be told: {0}")]
    Filter(String),
    #[error(
        "partition {partition} is sealed up to offset {upto}, and the log reached {end} when this began: is a speed worker running?"
    )]
    NotSealed { partition: Partition, upto: Offset, end: Offset },
    #[error("a view over source {0} does not cover all that is sealed, or counts an earlier topic")]
    NotCovered(String),
    #[error("the range is empty: `from` must lie before `to`")]
    EmptyRange,
    #[error(
        "nothing that was served then is kept: a rollback returns to what a recompute replaced, as GET /v1/metrics/NAME lists it"
    )]
    NothingKept,
    /// The metric's source is a table, and the store is not where tables are.
    #[error(
        "source {source_name} is a Cassandra table, and the store is not Cassandra: set [store] kind = \"cassandra\""
    )]
    NoTables { source_name: String },
    #[error("source {source_name} cannot be scanned: {why}")]
    Table { source_name: String, why: String },
    #[error(
        "metric {metric} has more than {most} states at its grain, which is what batch.memory has room for: take a coarser grain or fewer dimensions"
    )]
    TooManyStates { metric: String, most: usize },
    #[error("a rollback needs the moment to return to")]
    NoMoment,
    #[error("schedule {text:?} is not a cron expression: {why}; for example \"*/10 * * * *\", or \"off\"")]
    Schedule { text: String, why: String },
    #[error("batch's runtime does not start")]
    Runtime(#[source] std::io::Error),
    /// Another run opened a later generation: this one publishes nothing.
    #[error("another run took over")]
    TakenOver,
    #[error("cancelled")]
    Cancelled,
}

impl BatchError {
    pub(crate) fn undecodable(path: &str, cause: impl Into<Cause>) -> Self {
        Self::Undecodable { path: path.to_owned(), cause: cause.into() }
    }

    pub(crate) fn chunk(what: impl Into<String>, cause: ChunkError) -> Self {
        Self::Chunk { what: what.into(), cause }
    }

    /// Whether offsets, records or events do not add up: conservation does not hold.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(
            self,
            Self::Mismatch { .. }
                | Self::Incomplete { .. }
                | Self::Hole { .. }
                | Self::NotConserved { .. }
                | Self::NotFolded { .. }
                | Self::Unaccounted { .. }
                | Self::Executor { violation: true, .. }
        )
    }

    /// Whether trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        !matches!(
            self,
            Self::UnknownMetric { .. }
                | Self::UnknownSource { .. }
                | Self::Filter(_)
                | Self::EmptyRange
                | Self::NothingKept
                | Self::NoMoment
                | Self::Cancelled
                | Self::TakenOver
                | Self::Schedule { .. }
                | Self::NoTables { .. }
                | Self::Table { .. }
                | Self::TooManyStates { .. }
        )
    }

    /// The error with all its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.ends_with(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        text
    }
}
