//! A log in memory, with append times that a test chooses and group events that a test sends.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lamina_core::{
    Micros, Offset, Partition,
    log::{Append, Consumer, Event, Log, LogError, Record, Span, Topic, TopicPartition},
};
use tokio::sync::Notify;

/// Records delivered at once.
const BATCH: usize = 37;

#[derive(Default)]
struct Shared {
    topics: BTreeMap<String, Vec<PartitionLog>>,
    /// How often a topic was made again.
    remade: HashMap<String, u32>,
    refused: HashSet<String>,
    /// Whether consumers get no records for now.
    silent: bool,
    /// Events that a group's consumers are to see, and what they released.
    sent: HashMap<String, VecDeque<Event>>,
    released: Vec<TopicPartition>,
    committed: HashMap<TopicPartition, Offset>,
}

#[derive(Clone, Default)]
struct PartitionLog {
    start: Offset,
    /// `None` where an offset holds no record.
    records: Vec<Option<Record>>,
}

impl PartitionLog {
    fn end(&self) -> Offset {
        self.records.len() as Offset
    }

    /// Records from `from` on, at most `most`, and the position after them.
    fn slice(&self, from: Offset, most: usize) -> (Vec<Record>, Offset) {
        let to = self.end().min(from + most as Offset);
        (self.records[from as usize..to as usize].iter().flatten().cloned().collect(), to)
    }
}

#[derive(Clone, Default)]
pub(crate) struct MemoryLog {
    shared: Arc<Mutex<Shared>>,
    appended: Arc<Notify>,
}

impl MemoryLog {
    pub(crate) fn make(&self, topic: &str, partitions: usize) {
        self.shared.lock().unwrap().topics.insert(topic.to_owned(), vec![PartitionLog::default(); partitions]);
    }

    /// Appends one record, or an offset without a record.
    pub(crate) fn push(&self, topic: &str, partition: Partition, appended_at: Micros, payload: Option<&str>) {
        let mut shared = self.shared.lock().unwrap();
        let log = &mut shared.topics.get_mut(topic).unwrap()[partition as usize];
        let offset = log.end();
        let payload = payload.map(|payload| payload.to_owned().into());
        log.records.push(payload.map(|payload| Record { offset, appended_at, key: None, payload }));
        drop(shared);
        self.appended.notify_waiters();
    }

    /// Deletes the topic and makes it again.
    pub(crate) fn remake(&self, topic: &str, partitions: usize) {
        self.make(topic, partitions);
        *self.shared.lock().unwrap().remade.entry(topic.to_owned()).or_default() += 1;
    }

    /// Refuses the topic, as a log does while it is compacted, or no longer.
    pub(crate) fn refuse(&self, topic: &str, refused: bool) {
        let refusals = &mut self.shared.lock().unwrap().refused;
        if refused {
            refusals.insert(topic.to_owned())
        } else {
            refusals.remove(topic)
        };
    }

    /// Delivers no records, as a log whose leader is away, or again.
    pub(crate) fn silence(&self, silent: bool) {
        self.shared.lock().unwrap().silent = silent;
        self.appended.notify_waiters();
    }

    /// Leaves an offset without its record, as compaction does.
    pub(crate) fn remove(&self, topic: &str, partition: Partition, offset: Offset) {
        let mut shared = self.shared.lock().unwrap();
        shared.topics.get_mut(topic).unwrap()[partition as usize].records[offset as usize] = None;
    }

    /// Forgets everything from `end` on, as a leader does that was elected uncleanly.
    pub(crate) fn truncate(&self, topic: &str, partition: Partition, end: Offset) {
        let mut shared = self.shared.lock().unwrap();
        shared.topics.get_mut(topic).unwrap()[partition as usize].records.truncate(end as usize);
    }

    /// Forgets everything below `start`.
    pub(crate) fn cut_off(&self, topic: &str, partition: Partition, start: Offset) {
        self.shared.lock().unwrap().topics.get_mut(topic).unwrap()[partition as usize].start = start;
    }

    pub(crate) fn records(&self, topic: &str, partition: Partition) -> Vec<Record> {
        let shared = self.shared.lock().unwrap();
        shared
            .topics
            .get(topic)
            .map_or(Vec::new(), |logs| logs[partition as usize].records.iter().flatten().cloned().collect())
    }

    pub(crate) fn ends(&self, topic: &str) -> BTreeMap<Partition, Offset> {
        let shared = self.shared.lock().unwrap();
        shared.topics[topic].iter().enumerate().map(|(at, log)| (at as Partition, log.end())).collect()
    }

    pub(crate) fn send(&self, group: &str, event: Event) {
        self.shared.lock().unwrap().sent.entry(group.to_owned()).or_default().push_back(event);
    }

    pub(crate) fn released(&self) -> Vec<TopicPartition> {
        self.shared.lock().unwrap().released.clone()
    }

    pub(crate) fn committed(&self, partition: &TopicPartition) -> Option<Offset> {
        self.shared.lock().unwrap().committed.get(partition).copied()
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError> {
        let known = self.shared.lock().unwrap().topics.contains_key(name);
        if !known {
            self.make(name, partitions as usize);
        }
        self.topic(name).await
    }

    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        let shared = self.shared.lock().unwrap();
        let partitions = shared.topics.get(name).ok_or_else(|| LogError::NoTopic(name.to_owned()))?.len() as u32;
        if shared.refused.contains(name) {
            return Err(LogError::Refused(format!("topic {name} is compacted")));
        }
        let id = format!("t{}", 1 + shared.remade.get(name).copied().unwrap_or(0));
        Ok(Topic { name: name.to_owned(), id, partitions })
    }

    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        let mut placed = Vec::new();
        for record in records {
            placed.push((0, self.ends(topic)[&0]));
            self.push(topic, 0, 0, Some(std::str::from_utf8(&record.payload).unwrap()));
        }
        Ok(placed)
    }

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        let shared = self.shared.lock().unwrap();
        let span = |log: &PartitionLog| Span { start: log.start, end: log.end() };
        Ok(shared.topics[topic].iter().enumerate().map(|(at, log)| (at as Partition, span(log))).collect())
    }

    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        _: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        Ok(self.shared.lock().unwrap().topics[topic][partition as usize].slice(from, BATCH))
    }

    async fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        let shared = self.shared.lock().unwrap();
        let log = &shared.topics[topic][partition as usize];
        let kept = log.records[log.start as usize..].iter().flatten();
        let found = kept.filter(|record| record.appended_at >= at).map(|record| record.offset).next();
        Ok(found.unwrap_or(log.end()))
    }

    async fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        let shared = self.shared.lock().unwrap();
        let all = topics.iter().flat_map(|topic| {
            (0..shared.topics[topic].len()).map(move |partition| (topic.clone(), partition as Partition))
        });
        let assigned = VecDeque::from([Event::Assigned(all.collect())]);
        Ok(Box::new(MemoryConsumer {
            log: self.clone(),
            group: group.to_owned(),
            events: assigned,
            positions: BTreeMap::new(),
            paused: HashSet::new(),
            turn: 0,
        }))
    }

    async fn ping(&self) -> Result<(), LogError> {
        Ok(())
    }
}

struct MemoryConsumer {
    log: MemoryLog,
    group: String,
    events: VecDeque<Event>,
    positions: BTreeMap<TopicPartition, Offset>,
    paused: HashSet<TopicPartition>,
    turn: usize,
}

impl MemoryConsumer {
    fn poll(&mut self) -> Option<Event> {
        let mut shared = self.log.shared.lock().unwrap();
        self.events.extend(shared.sent.entry(self.group.clone()).or_default().drain(..));
        if let Some(event) = self.events.pop_front() {
            if let Event::Lost(gone) | Event::Revoked(gone) = &event {
                self.positions.retain(|partition, _| !gone.contains(partition));
            }
            return Some(event);
        }
        if shared.silent {
            return None;
        }
        self.turn += 1;
        for at in 0..self.positions.len() {
            let nth = (at + self.turn) % self.positions.len();
            let ((topic, partition), position) = self.positions.iter_mut().nth(nth).unwrap();
            let log = &shared.topics[topic][*partition as usize];
            if *position > log.end() {
                let (topic, partition, wanted) = (topic.clone(), *partition, *position);
                let (start, end) = (log.start, log.end());
                self.positions.remove(&(topic.clone(), partition));
                let error = LogError::OutOfRange { topic: topic.clone(), partition, wanted, start, end };
                return Some(Event::Failed { topic, partition, error });
            }
            if *position >= log.end() || self.paused.contains(&(topic.clone(), *partition)) {
                continue;
            }
            let (topic, partition) = (topic.clone(), *partition);
            if *position < log.start {
                let (wanted, start, end) = (*position, log.start, log.end());
                self.positions.remove(&(topic.clone(), partition));
                let error = LogError::OutOfRange { topic: topic.clone(), partition, wanted, start, end };
                return Some(Event::Failed { topic, partition, error });
            }
            let (records, next) = log.slice(*position, BATCH);
            *position = next;
            return Some(Event::Records { topic, partition, records, next });
        }
        None
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self, wait: Duration) -> Result<Event, LogError> {
        let appended = Arc::clone(&self.log.appended);
        let notified = appended.notified();
        if let Some(event) = self.poll() {
            return Ok(event);
        }
        let _ = tokio::time::timeout(wait, notified).await;
        Ok(self.poll().unwrap_or(Event::Idle))
    }

    async fn start(&mut self, partition: TopicPartition, offset: Offset) -> Result<(), LogError> {
        self.positions.insert(partition, offset);
        Ok(())
    }

    async fn pause(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.paused.insert(partition);
        Ok(())
    }

    async fn resume(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.paused.remove(&partition);
        Ok(())
    }

    async fn release(&mut self, partitions: Vec<TopicPartition>) -> Result<(), LogError> {
        self.log.shared.lock().unwrap().released.extend(partitions);
        Ok(())
    }

    async fn commit(&mut self, positions: Vec<(TopicPartition, Offset)>) -> Result<(), LogError> {
        self.log.shared.lock().unwrap().committed.extend(positions);
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), LogError> {
        self.positions.clear();
        Ok(())
    }
}
