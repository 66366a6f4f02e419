//! The log: topics of partitions of records, shared with other consumers.
//!
//! Two implementations: the embedded one (one process, one data folder) and Kafka. Both pass
//! `conformance::log_suite`.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::ids::{LogId, Micros, Offset, Partition};

/// The largest record, key and payload together, in bytes. Records of up to a few KiB less fit into every log; a
/// larger one is [`LogError::TooLarge`].
pub const MAX_RECORD: usize = 1 << 20;

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: Offset,
    /// When the log took it in.
    pub appended_at: Micros,
    pub key: Option<Bytes>,
    pub payload: Bytes,
}

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Records with the same key go to the same partition; without a key the log spreads them.
    pub key: Option<Bytes>,
    pub payload: Bytes,
}

/// A topic as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    pub name: String,
    /// Differs between a topic and one of the same name that was made after it was deleted.
    pub id: String,
    pub partitions: u32,
}

/// First offset still in the log and the offset that the next record will get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: Offset,
    pub end: Offset,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log does not answer; asking again later may succeed and nothing is known to be lost.
    #[error("log is unreachable: {0}")]
    Unavailable(String),
    #[error("topic {0} does not exist")]
    NoTopic(String),
    /// The offset asked for is no longer in the log.
    #[error("{topic} partition {partition}: offset {wanted} is outside the log, which holds {start}..{end}")]
    OutOfRange { topic: String, partition: Partition, wanted: Offset, start: Offset, end: Offset },
    #[error("a record of {bytes} bytes is over the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("log refuses: {0}")]
    Refused(String),
    #[error("log's storage is full: {0}")]
    Full(String),
}

/// A partition of a topic.
pub type TopicPartition = (String, Partition);

/// What a member of a consumer group is told, in order.
#[derive(Debug)]
pub enum Event {
    /// Partitions are ours; nothing is delivered of one until [`Consumer::start`] said where to begin.
    Assigned(Vec<TopicPartition>),
    /// Partitions go to another member once [`Consumer::release`] is called, or a deadline passed.
    Revoked(Vec<TopicPartition>),
    /// Partitions went away without asking (session expired): drop everything of them.
    Lost(Vec<TopicPartition>),
    /// Records in offset order. `next` is the position after them: it may lie beyond the last record's offset + 1,
    /// since offsets may hold no record.
    Records { topic: String, partition: Partition, records: Vec<Record>, next: Offset },
    /// The partition cannot be read on; the consumer goes on with the others.
    Failed { topic: String, partition: Partition, error: LogError },
    /// Nothing came within the time given.
    Idle,
}

/// The log as producers and administrators see it.
#[async_trait]
pub trait Log: Send + Sync {
    /// Makes the topic if it does not exist. An existing one keeps its partitions.
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError>;

    /// # Errors
    /// [`LogError::NoTopic`] if there is none of that name.
    async fn topic(&self, name: &str) -> Result<Topic, LogError>;

    /// The topic's id alone, asked afresh.
    ///
    /// # Errors
    /// As [`Log::topic`].
    async fn topic_id(&self, name: &str) -> Result<String, LogError> {
        Ok(self.topic(name).await?.id)
    }

    /// Appends all, durably (Kafka: `acks=all`, idempotent), and says where each went, in the order given.
    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError>;

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError>;

    /// Up to about `max_bytes` of records from `from` on, and the position after them; empty at the end of the log.
    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError>;

    /// The first offset whose record was appended at or after `at`, or the end of the log.
    async fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError>;

    /// How long the topic keeps records, if it forgets them by age.
    async fn retention(&self, topic: &str) -> Result<Option<Duration>, LogError> {
        let _ = topic;
        Ok(None)
    }

    /// Joins the consumer group `group` for these topics.
    async fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Consumer>, LogError>;

    /// Cheap: whether the log answers.
    async fn ping(&self) -> Result<(), LogError>;
}

/// A member of a consumer group: the group assigns partitions, the ledger says where to begin.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// The next event, waiting at most `wait`. [`LogError::Unavailable`] may be followed by further events.
    async fn next(&mut self, wait: Duration) -> Result<Event, LogError>;

    /// Begins (or begins again) to deliver an assigned partition at `offset`.
    async fn start(&mut self, partition: TopicPartition, offset: Offset) -> Result<(), LogError>;

    /// Stops delivering without giving the partition up, until [`Consumer::resume`].
    async fn pause(&mut self, partition: TopicPartition) -> Result<(), LogError>;

    async fn resume(&mut self, partition: TopicPartition) -> Result<(), LogError>;

    /// Lets go of revoked partitions: another member may take them now.
    async fn release(&mut self, partitions: Vec<TopicPartition>) -> Result<(), LogError>;

    /// Notes how far the group has come, for other tools to see; lamina itself starts from the ledger.
    async fn commit(&mut self, positions: Vec<(TopicPartition, Offset)>) -> Result<(), LogError>;

    /// Leaves the group.
    async fn leave(&mut self) -> Result<(), LogError>;
}

impl Topic {
    /// The identity under which `source`'s ledger of this topic is kept.
    pub fn log_id(&self, source: &str) -> LogId {
        LogId::new(source, &self.id)
    }
}
