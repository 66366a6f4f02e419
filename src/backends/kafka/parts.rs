//! The partitions that a member was assigned, and what it collects of each.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use lamina_core::{
    ids::{Offset, Partition},
    log::{Record, TopicPartition},
};
use rdkafka::{Message, message::BorrowedMessage};

use super::{
    line::{Flow, Inside, Told},
    record,
};

/// Records and bytes of one [`Told::Records`].
const BATCH_RECORDS: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;
/// What a record costs in memory besides its key and payload.
const OVERHEAD: usize = 96;

#[derive(Default)]
pub(super) struct Part {
    /// Whether librdkafka fetches it: only once it was told where to begin.
    pub(super) attached: bool,
    /// Whether librdkafka's position is that of this attachment, and not of one before.
    pub(super) settled: bool,
    pub(super) flow: Option<Current>,
}

/// What the consumer wants delivered of a partition.
pub(super) struct Current {
    pub(super) id: Flow,
    /// Position after what was collected.
    pub(super) next: Offset,
    /// Whether librdkafka was put there.
    pub(super) running: bool,
    /// When it was last tried to put it there.
    pub(super) tried: Option<Instant>,
    records: Vec<Record>,
    bytes: usize,
    /// Whether `next` moved without a record.
    passed: bool,
}

impl Current {
    pub(super) fn new(id: Flow, next: Offset) -> Self {
        Self { id, next, running: false, tried: None, records: Vec::new(), bytes: 0, passed: false }
    }

    /// Goes past offsets that hold no record.
    pub(super) fn pass(&mut self, position: Offset) {
        if position > self.next {
            self.next = position;
            self.passed = true;
        }
    }

    fn flush(&mut self, topic: &str, partition: Partition, line: &Inside) {
        if self.records.is_empty() && !self.passed {
            return;
        }
        line.tell(Told::Records {
            from: (topic.to_owned(), partition),
            flow: self.id,
            records: std::mem::take(&mut self.records),
            next: self.next,
            bytes: std::mem::take(&mut self.bytes) + OVERHEAD,
        });
        self.passed = false;
    }
}

/// By topic, so that looking a message's partition up needs no allocation.
#[derive(Default)]
pub(super) struct Parts {
    topics: HashMap<String, BTreeMap<Partition, Part>>,
}

impl Parts {
    pub(super) fn insert(&mut self, partition: &TopicPartition) {
        self.topics.entry(partition.0.clone()).or_default().insert(partition.1, Part::default());
    }

    pub(super) fn remove(&mut self, partition: &TopicPartition) -> Option<Part> {
        self.topics.get_mut(&partition.0)?.remove(&partition.1)
    }

    pub(super) fn get_mut(&mut self, topic: &str, partition: Partition) -> Option<&mut Part> {
        self.topics.get_mut(topic)?.get_mut(&partition)
    }

    pub(super) fn contains(&self, partition: &TopicPartition) -> bool {
        self.topics.get(&partition.0).is_some_and(|parts| parts.contains_key(&partition.1))
    }

    pub(super) fn names(&self) -> Vec<TopicPartition> {
        let names = self.topics.iter().flat_map(|(topic, parts)| parts.keys().map(move |at| (topic.clone(), *at)));
        names.collect()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, Partition, &mut Part)> {
        let topics = self.topics.iter_mut();
        topics.flat_map(|(topic, parts)| parts.iter_mut().map(move |(at, part)| (topic.as_str(), *at, part)))
    }

    /// Collects a message if it is the one wanted next or a later one, and says how many bytes it takes.
    pub(super) fn collect(&mut self, message: &BorrowedMessage<'_>, line: &Inside) -> usize {
        let topic = message.topic();
        let Ok(partition) = Partition::try_from(message.partition()) else { return 0 };
        let Some(part) = self.get_mut(topic, partition) else { return 0 };
        let Some(flow) = part.flow.as_mut().filter(|flow| flow.running) else { return 0 };
        part.settled = true;
        let read = record(message);
        if read.offset < flow.next {
            return 0;
        }
        let bytes = OVERHEAD + read.payload.len() + read.key.as_ref().map_or(0, |key| key.len());
        flow.next = read.offset + 1;
        flow.records.push(read);
        flow.bytes += bytes;
        if flow.records.len() >= BATCH_RECORDS || flow.bytes >= BATCH_BYTES {
            flow.flush(topic, partition, line);
        }
        bytes
    }

    /// Tells everything collected.
    pub(super) fn flush(&mut self, line: &Inside) {
        for (topic, partition, part) in self.iter_mut() {
            if let Some(flow) = &mut part.flow {
                flow.flush(topic, partition, line);
            }
        }
    }
}
