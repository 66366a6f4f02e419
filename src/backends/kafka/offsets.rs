//! Questions about topics and offsets, asked outside of any group. Blocking: call these from threads that may wait.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lamina_core::{
    ids::{Micros, Offset, Partition},
    log::{LogError, Span},
};
use rdkafka::{
    Offset as Place, TopicPartitionList,
    client::Client,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tracing::debug;

use super::{
    client::{Logged, Profile, REQUEST_TIMEOUT},
    keeper,
};

/// How long to wait before asking again while leaders are moving.
const RETRY: Duration = Duration::from_millis(50);

pub(super) struct Offsets {
    profile: Profile,
    client: BaseConsumer<Logged>,
    /// Topics seen, with their partitions; forgotten when the cluster says that one is gone.
    known: Mutex<HashMap<String, u32>>,
}

impl Offsets {
    pub(super) fn new(profile: &Profile) -> Result<Self, LogError> {
        let client = profile.make(&profile.query(), profile.logged())?;
        Ok(Self { profile: profile.clone(), client, known: Mutex::default() })
    }

    /// Whether a broker answers within `wait`.
    pub(super) fn ping(&self, wait: Duration) -> Result<(), LogError> {
        self.drain();
        keeper::ping(&self.profile, self.client(), wait)
    }

    pub(super) fn client(&self) -> &Client<Logged> {
        self.client.client()
    }

    /// How many partitions the topic has now, and whether each has a leader.
    pub(super) fn partitions(&self, topic: &str) -> Result<(u32, bool), LogError> {
        self.drain();
        let fail = |error: KafkaError| self.profile.error("asking for metadata", topic, &error);
        let metadata = self.client.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(fail)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let Some(found) = found else { return Err(self.gone(topic)) };
        if let Some(error) = found.error() {
            let error = self.profile.code("asking for metadata", topic, error.into());
            return Err(if matches!(error, LogError::NoTopic(_)) { self.gone(topic) } else { error });
        }
        let count = u32::try_from(found.partitions().len()).unwrap_or(u32::MAX);
        let led = count > 0 && found.partitions().iter().all(|partition| partition.leader() >= 0);
        if count > 0 {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned(), count);
        }
        Ok((count, led))
    }

    /// Whether the topic was seen, without asking.
    pub(super) fn knows(&self, topic: &str) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains_key(topic)
    }

    /// Fails unless the topic exists; asks the cluster the first time only.
    pub(super) fn check_topic(&self, topic: &str) -> Result<u32, LogError> {
        if let Some(count) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(topic) {
            return Ok(*count);
        }
        Ok(self.partitions(topic)?.0)
    }

    fn check_partition(&self, topic: &str, partition: Partition) -> Result<(), LogError> {
        if partition < self.check_topic(topic)? || partition < self.partitions(topic)?.0 {
            return Ok(());
        }
        Err(LogError::Refused(format!("topic {topic} has no partition {partition}")))
    }

    /// Forgets the topic and says that it is not there.
    pub(super) fn gone(&self, topic: &str) -> LogError {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
        LogError::NoTopic(topic.to_owned())
    }

    /// The spans of all partitions: up to the last stable offset, which is how far a committed reader can come.
    pub(super) fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        let (count, _) = self.partitions(topic)?;
        self.spans_of(topic, 0..count)
    }

    pub(super) fn span(&self, topic: &str, partition: Partition) -> Result<Span, LogError> {
        self.check_partition(topic, partition)?;
        let spans = self.spans_of(topic, partition..partition + 1)?;
        spans.get(&partition).copied().ok_or_else(|| self.gone(topic))
    }

    fn spans_of(
        &self,
        topic: &str,
        partitions: std::ops::Range<Partition>,
    ) -> Result<BTreeMap<Partition, Span>, LogError> {
        // Start before end, so that a log that moves in between never looks as if it ended before it starts.
        let starts = self.list(topic, partitions.clone(), Place::Beginning)?;
        let ends = self.list(topic, partitions, Place::End)?;
        let both = starts.into_iter().filter_map(|(partition, start)| {
            ends.get(&partition).map(|end| (partition, Span { start, end: (*end).max(start) }))
        });
        Ok(both.collect())
    }

    /// The first offset appended at or after `at`; Kafka keeps milliseconds.
    pub(super) fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        self.check_partition(topic, partition)?;
        let ms = at.max(0).div_euclid(1000) + i64::from(at.max(0).rem_euclid(1000) > 0);
        let found = self.list(topic, partition..partition + 1, Place::Offset(ms))?;
        match found.get(&partition) {
            Some(offset) => Ok(*offset),
            None => Ok(self.span(topic, partition)?.end),
        }
    }

    /// One ListOffsets round: `at` is the beginning, the end or a time in ms. Partitions without an answer (no record
    /// that late) are left out.
    fn list(
        &self,
        topic: &str,
        partitions: std::ops::Range<Partition>,
        at: Place,
    ) -> Result<BTreeMap<Partition, Offset>, LogError> {
        self.drain();
        let fail = |error: KafkaError| match self.profile.error("asking for offsets", topic, &error) {
            LogError::NoTopic(topic) => self.gone(&topic),
            error => error,
        };
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            let number = i32::try_from(partition).unwrap_or(i32::MAX);
            wanted.add_partition_offset(topic, number, at).map_err(fail)?;
        }
        if wanted.count() == 0 {
            return Ok(BTreeMap::new());
        }
        let found = self.list_from_leaders(topic, &wanted).map_err(fail)?;
        let mut offsets = BTreeMap::new();
        for element in found.elements() {
            if let (Ok(partition), Place::Offset(offset)) = (Partition::try_from(element.partition()), element.offset())
            {
                offsets.insert(partition, offset.unsigned_abs());
            }
        }
        Ok(offsets)
    }

    /// Asks again while leaders are moving: this call of librdkafka does not.
    fn list_from_leaders(&self, topic: &str, wanted: &TopicPartitionList) -> KafkaResult<TopicPartitionList> {
        let begun = Instant::now();
        loop {
            let found = self.client.offsets_for_times(wanted.clone(), REQUEST_TIMEOUT).and_then(|found| {
                found.elements().iter().try_for_each(|element| element.error())?;
                Ok(found)
            });
            match found {
                Err(error) if is_moving(&error) && begun.elapsed() < REQUEST_TIMEOUT => {
                    debug!(topic, %error, "leaders are moving");
                    thread::sleep(RETRY);
                    self.client.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
                }
                found => return found,
            }
        }
    }

    /// The error for an offset that `span` does not hold.
    pub(super) fn out_of_range(topic: &str, partition: Partition, wanted: Offset, span: Span) -> LogError {
        LogError::OutOfRange { topic: topic.to_owned(), partition, wanted, start: span.start, end: span.end }
    }

    /// Takes in what the client reports of its connections; the calls themselves say what matters.
    fn drain(&self) {
        while self.client.poll(Duration::ZERO).is_some() {}
    }
}

/// Whether a partition is changing its leader, or the client has not heard yet who it is.
fn is_moving(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::FencedLeaderEpoch
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::ReplicaNotAvailable
                | Code::UnknownLeaderEpoch
        )
    )
}

/// Whether an error of a consumer says that the offset it stands at is not in the log.
pub(super) fn is_out_of_range(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::NoOffset)
    )
}
