//! Topics and their records.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use xxhash_rust::xxh3::xxh3_64;

use super::groups::{Groups, MemberId};
use crate::{
    clock::Clock,
    ids::{Micros, Offset, Partition},
    log::{Append, Consumer, Event, Log, LogError, MAX_RECORD, Record, Span, Topic, TopicPartition},
};

/// One partition: what was appended, from offset 0 on.
#[derive(Clone, Debug, Default)]
pub struct PartitionState {
    /// First offset that can be read.
    pub start: Offset,
    /// `None` where an offset holds no record.
    pub records: Vec<Option<Record>>,
}

impl PartitionState {
    pub fn end(&self) -> Offset {
        self.records.len() as Offset
    }

    pub fn span(&self) -> Span {
        Span { start: self.start, end: self.end() }
    }

    /// Appends a record, or an offset without one; its offset.
    pub fn push(&mut self, appended_at: Micros, key: Option<Bytes>, payload: Option<Bytes>) -> Offset {
        let offset = self.end();
        self.records.push(payload.map(|payload| Record { offset, appended_at, key, payload }));
        offset
    }
}

#[derive(Debug, Default)]
struct TopicState {
    id: String,
    partitions: Vec<PartitionState>,
}

/// A log as a value.
#[derive(Debug, Default)]
pub struct LogState {
    topics: BTreeMap<String, TopicState>,
    pub groups: Groups,
    made: u64,
    appended: u64,
}

impl LogState {
    pub fn ensure_topic(&mut self, name: &str, partitions: u32) -> Topic {
        if !self.topics.contains_key(name) {
            self.made += 1;
            let partitions = vec![PartitionState::default(); partitions.max(1) as usize];
            self.topics.insert(name.to_owned(), TopicState { id: format!("t{}", self.made), partitions });
        }
        let state = &self.topics[name];
        Topic { name: name.to_owned(), id: state.id.clone(), partitions: state.partitions.len() as u32 }
    }

    /// # Errors
    /// [`LogError::NoTopic`].
    pub fn topic(&self, name: &str) -> Result<Topic, LogError> {
        let state = self.state(name)?;
        Ok(Topic { name: name.to_owned(), id: state.id.clone(), partitions: state.partitions.len() as u32 })
    }

    fn state(&self, name: &str) -> Result<&TopicState, LogError> {
        self.topics.get(name).ok_or_else(|| LogError::NoTopic(name.to_owned()))
    }

    /// # Errors
    /// [`LogError::NoTopic`], also if the topic lacks the partition.
    pub fn partition(&self, topic: &str, partition: Partition) -> Result<&PartitionState, LogError> {
        let found = self.state(topic)?.partitions.get(partition as usize);
        found.ok_or_else(|| LogError::NoTopic(format!("{topic}/{partition}")))
    }

    /// # Errors
    /// As [`LogState::partition`].
    pub fn partition_mut(&mut self, topic: &str, partition: Partition) -> Result<&mut PartitionState, LogError> {
        let state = self.topics.get_mut(topic).ok_or_else(|| LogError::NoTopic(topic.to_owned()))?;
        let found = state.partitions.get_mut(partition as usize);
        found.ok_or_else(|| LogError::NoTopic(format!("{topic}/{partition}")))
    }

    /// # Errors
    /// [`LogError::NoTopic`], or [`LogError::TooLarge`] of the first that is; then nothing is appended.
    pub fn append(
        &mut self,
        topic: &str,
        records: Vec<Append>,
        now: Micros,
    ) -> Result<Vec<(Partition, Offset)>, LogError> {
        let partitions = self.state(topic)?.partitions.len() as u64;
        let size = |record: &Append| record.payload.len() + record.key.as_ref().map_or(0, Bytes::len);
        if let Some(bytes) = records.iter().map(size).find(|bytes| *bytes > MAX_RECORD) {
            return Err(LogError::TooLarge { bytes, limit: MAX_RECORD });
        }
        let mut placed = Vec::with_capacity(records.len());
        for Append { key, payload } in records {
            self.appended += 1;
            let spread = key.as_ref().map_or(self.appended, |key| xxh3_64(key));
            let partition = (spread % partitions) as Partition;
            placed.push((partition, self.partition_mut(topic, partition)?.push(now, key, Some(payload))));
        }
        Ok(placed)
    }

    /// # Errors
    /// [`LogError::NoTopic`].
    pub fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        Ok((0..).zip(self.state(topic)?.partitions.iter().map(PartitionState::span)).collect())
    }

    /// Records from `from` on, at most `max` and at most about `max_bytes`, and the position after them.
    ///
    /// # Errors
    /// [`LogError::NoTopic`], [`LogError::OutOfRange`].
    pub fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max: usize,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        let state = self.partition(topic, partition)?;
        let Span { start, end } = state.span();
        if !(start..=end).contains(&from) {
            return Err(LogError::OutOfRange { topic: topic.to_owned(), partition, wanted: from, start, end });
        }
        let (mut records, mut next, mut bytes) = (Vec::new(), from, 0);
        while next < end && records.len() < max && bytes < max_bytes {
            if let Some(record) = &state.records[next as usize] {
                bytes += record.payload.len() + 1;
                records.push(record.clone());
            }
            next += 1;
        }
        Ok((records, next))
    }

    /// # Errors
    /// [`LogError::NoTopic`].
    pub fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        let state = self.partition(topic, partition)?;
        let mut kept = state.records[state.start as usize..].iter().flatten();
        Ok(kept.find(|record| record.appended_at >= at).map_or(state.end(), |record| record.offset))
    }

    /// Every partition of these topics.
    ///
    /// # Errors
    /// [`LogError::NoTopic`].
    pub fn all_of(&self, topics: &[String]) -> Result<Vec<TopicPartition>, LogError> {
        let mut all = Vec::new();
        for topic in topics {
            all.extend((0..self.state(topic)?.partitions.len()).map(|at| (topic.clone(), at as Partition)));
        }
        Ok(all)
    }
}

/// A member's own side of a group: what it was assigned and where it reads on.
#[derive(Debug)]
pub struct Member {
    group: String,
    pub id: MemberId,
    partitions: BTreeMap<TopicPartition, Reading>,
    /// The partition that was served last: the others come first.
    served: Option<TopicPartition>,
}

#[derive(Debug, Default)]
struct Reading {
    /// Where to read on; `None` until started, and after it failed.
    next: Option<Offset>,
    paused: bool,
}

impl Member {
    /// # Errors
    /// [`LogError::NoTopic`].
    pub fn join(log: &mut LogState, group: &str, topics: &[String], now: Micros) -> Result<Self, LogError> {
        let id = log.groups.join(group, log.all_of(topics)?, now);
        Ok(Self { group: group.to_owned(), id, partitions: BTreeMap::new(), served: None })
    }

    pub fn leave(&mut self, log: &mut LogState, now: Micros) {
        self.partitions.clear();
        log.groups.leave(&self.group, self.id, now);
    }

    /// What the group has to say, or up to `max` records of a started partition.
    pub fn poll(&mut self, log: &mut LogState, now: Micros, max: usize) -> Option<Event> {
        let event = log.groups.poll(&self.group, self.id, now);
        match &event {
            Some(Event::Assigned(new)) => {
                self.partitions.extend(new.iter().map(|new| (new.clone(), Reading::default())));
            }
            Some(Event::Revoked(old) | Event::Lost(old)) => self.partitions.retain(|own, _| !old.contains(own)),
            _ => return self.records(log, max),
        }
        event
    }

    fn records(&mut self, log: &LogState, max: usize) -> Option<Event> {
        let after = |own: &TopicPartition| self.served.as_ref().is_none_or(|last| own > last);
        let (first, second): (Vec<_>, Vec<_>) = self.partitions.keys().cloned().partition(after);
        for (topic, partition) in first.into_iter().chain(second) {
            let reading = self.partitions.get_mut(&(topic.clone(), partition))?;
            let Some(from) = reading.next.filter(|_| !reading.paused) else { continue };
            match log.read(&topic, partition, from, max, 1 << 20) {
                Ok((_, next)) if next == from => {}
                Ok((records, next)) => {
                    reading.next = Some(next);
                    self.served = Some((topic.clone(), partition));
                    return Some(Event::Records { topic, partition, records, next });
                }
                Err(error) => {
                    reading.next = None;
                    return Some(Event::Failed { topic, partition, error });
                }
            }
        }
        None
    }

    fn reading(&mut self, partition: &TopicPartition) -> Result<&mut Reading, LogError> {
        let refused = || LogError::Refused(format!("{partition:?} is not assigned to this consumer"));
        self.partitions.get_mut(partition).ok_or_else(refused)
    }

    /// # Errors
    /// [`LogError::Refused`] of a partition that is not assigned.
    pub fn start(&mut self, partition: &TopicPartition, offset: Offset) -> Result<(), LogError> {
        self.reading(partition)?.next = Some(offset);
        Ok(())
    }

    /// # Errors
    /// [`LogError::Refused`] of a partition that is not assigned.
    pub fn pause(&mut self, partition: &TopicPartition, paused: bool) -> Result<(), LogError> {
        self.reading(partition)?.paused = paused;
        Ok(())
    }

    pub fn release(&mut self, log: &mut LogState, partitions: &[TopicPartition], now: Micros) {
        log.groups.release(&self.group, self.id, partitions, now);
    }
}

/// A log in memory.
#[derive(Clone)]
pub struct MemoryLog {
    state: Arc<Mutex<LogState>>,
    clock: Arc<dyn Clock>,
    changed: watch::Sender<u64>,
}

impl MemoryLog {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Arc::default(), clock, changed: watch::Sender::new(0) }
    }

    /// Looks at the state, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut LogState) -> T) -> T {
        let found = look(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        found
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError> {
        Ok(self.lock().ensure_topic(name, partitions))
    }

    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.lock().topic(name)
    }

    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        let now = self.clock.now();
        self.with(|state| state.append(topic, records, now))
    }

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        self.lock().spans(topic)
    }

    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        self.lock().read(topic, partition, from, usize::MAX, max_bytes)
    }

    async fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        self.lock().offset_at(topic, partition, at)
    }

    async fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        let now = self.clock.now();
        let member = self.with(|state| Member::join(state, group, topics, now))?;
        Ok(Box::new(MemoryConsumer { log: self.clone(), member, changed: self.changed.subscribe() }))
    }

    async fn ping(&self) -> Result<(), LogError> {
        Ok(())
    }
}

struct MemoryConsumer {
    log: MemoryLog,
    member: Member,
    changed: watch::Receiver<u64>,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self, wait: Duration) -> Result<Event, LogError> {
        let until = Instant::now() + wait;
        loop {
            self.changed.mark_unchanged();
            let now = self.log.clock.now();
            if let Some(event) = self.member.poll(&mut self.log.lock(), now, 37) {
                return Ok(event);
            }
            if timeout_at(until, self.changed.changed()).await.is_err() {
                return Ok(Event::Idle);
            }
        }
    }

    async fn start(&mut self, partition: TopicPartition, offset: Offset) -> Result<(), LogError> {
        self.member.start(&partition, offset)
    }

    async fn pause(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.member.pause(&partition, true)
    }

    async fn resume(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.member.pause(&partition, false)
    }

    async fn release(&mut self, partitions: Vec<TopicPartition>) -> Result<(), LogError> {
        let now = self.log.clock.now();
        self.log.with(|state| self.member.release(state, &partitions, now));
        Ok(())
    }

    async fn commit(&mut self, _: Vec<(TopicPartition, Offset)>) -> Result<(), LogError> {
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), LogError> {
        let now = self.log.clock.now();
        self.log.with(|state| self.member.leave(state, now));
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let now = self.log.clock.now();
        self.log.with(|state| self.member.leave(state, now));
    }
}
