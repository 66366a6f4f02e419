//! Names of things: partitions, offsets, epochs, views, shards, generations.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

/// A partition of a source's topic.
pub type Partition = u32;
/// A position in a partition; ranges of offsets are half-open.
pub type Offset = u64;
/// A shard of a view: series are spread over `0..shards` by their key's hash.
pub type Shard = u32;
/// The number of a batch publication of one view, from 1.
pub type Generation = u64;
/// Microseconds since the Unix epoch (event time, bucket starts) or a length of time.
pub type Micros = i64;

/// One incarnation of a source's topic: `source@topic-id`. A topic that was deleted and made again has another id,
/// and so another ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogId(Arc<str>);

impl LogId {
    pub fn new(source: &str, topic_id: &str) -> Self {
        Self(format!("{source}@{topic_id}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn source(&self) -> &str {
        self.0.split_once('@').map_or(&*self.0, |(source, _)| source)
    }

    pub fn topic_id(&self) -> &str {
        self.0.split_once('@').map_or("", |(_, id)| id)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One metric version at one grouping, written `metric.version.grouping` (e.g. `added.1.0`). Grouping 0 is the full set
/// of dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ViewId(Arc<str>);

impl ViewId {
    pub fn new(metric: &str, version: u32, grouping: usize) -> Self {
        Self(format!("{metric}.{version}.{grouping}").into())
    }

    /// The id that [`ViewId::as_str`] gave; any other text names a view that does not exist.
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A UUIDv7 (RFC 9562) that has never been given before. Ids sort by creation, to a quarter of a microsecond.
///
/// It depends on the clock and on randomness only: `Uuid::now_v7` counts on from the last id of the whole process, so
/// that what one thread does would decide the ids of another, and a simulated seed would not fix them.
pub fn new_id() -> Uuid {
    Uuid::new_v7(Timestamp::now(ContextV7::new().with_additional_precision()))
}

/// The one writer of an epoch, for ever: a UUIDv7, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EpochId(pub Uuid);

impl EpochId {
    pub fn new() -> Self {
        Self(new_id())
    }
}

impl Default for EpochId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
