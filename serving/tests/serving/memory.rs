//! A store and a log in memory, which can be switched off.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    BatchChunks, BatchKey, BatchRow, Change, Commit, Consistency, Document, Documents, Epoch, EpochId, Ledger, Ledgers,
    LogId, Mark, Micros, Offset, Part, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId,
    generation::VIEW_DOCUMENTS,
    log::{Append, Consumer, Log, LogError, Record, Span, Topic},
};

#[derive(Default)]
struct Tables {
    ledgers: BTreeMap<(LogId, Partition), Ledger>,
    speed: BTreeMap<SpeedKey, Bytes>,
    marks: BTreeMap<EpochId, Mark>,
    batch: BTreeMap<BatchKey, BatchRow>,
    documents: BTreeMap<(String, String), Document>,
}

#[derive(Default)]
pub(crate) struct MemoryStore {
    tables: Mutex<Tables>,
    pub(crate) down: AtomicBool,
    /// How many reads of a view's state still come before anything was published.
    pub(crate) early: AtomicUsize,
    scans: AtomicUsize,
    loads: AtomicUsize,
}

impl MemoryStore {
    fn with<T>(&self, work: impl FnOnce(&mut Tables) -> T) -> Result<T, StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("switched off".into()));
        }
        Ok(work(&mut self.tables.lock().unwrap()))
    }

    /// How often batch chunks were read.
    pub(crate) fn scans(&self) -> usize {
        self.scans.load(Ordering::SeqCst)
    }

    /// How often ledgers were read.
    pub(crate) fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    /// Loses a chunk, as an expiry would.
    pub(crate) fn lose_speed(&self) {
        self.tables.lock().unwrap().speed.clear();
    }

    /// Removes every sealed epoch from its ledger.
    pub(crate) fn trim(&self) {
        for ledger in self.tables.lock().unwrap().ledgers.values_mut() {
            ledger.epochs.retain(|epoch| epoch.end.is_none());
        }
    }

    /// Changes every epoch of every ledger.
    pub(crate) fn edit_epochs(&self, edit: impl Fn(&mut Epoch)) {
        for ledger in self.tables.lock().unwrap().ledgers.values_mut() {
            ledger.epochs.iter_mut().for_each(&edit);
        }
    }
}

#[async_trait]
impl Ledgers for MemoryStore {
    async fn load(&self, log: &LogId, partition: Partition, _: Consistency) -> Result<Ledger, StoreError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        self.with(|tables| tables.ledgers.get(&(log.clone(), partition)).cloned().unwrap_or_default())
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        self.with(|tables| {
            let ledger = tables.ledgers.entry((log.clone(), partition)).or_default();
            match ledger.apply(change) {
                Some(next) => {
                    *ledger = next;
                    Commit::Applied
                }
                None => Commit::Refused,
            }
        })
    }

    async fn archive(&self, _: &LogId, _: Partition, _: &[Epoch]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn archived(&self, _: &LogId, _: Partition, _: Range<Offset>) -> Result<Vec<Epoch>, StoreError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl SpeedChunks for MemoryStore {
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], _: Stamp) -> Result<(), StoreError> {
        self.with(|tables| tables.speed.extend(chunks.iter().cloned()))
    }

    async fn put_mark(&self, _: &LogId, _: Partition, epoch: EpochId, mark: &Mark, _: Stamp) -> Result<(), StoreError> {
        self.with(|tables| drop(tables.marks.insert(epoch, mark.clone())))
    }

    async fn mark(&self, _: &LogId, _: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        self.with(|tables| tables.marks.get(&epoch).cloned())
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let key = |sequence| SpeedKey { view: view.clone(), shard, slot, epoch, part: Part::Delta(sequence) };
        self.with(|tables| {
            range.filter_map(|sequence| Some((sequence, tables.speed.get(&key(sequence))?.clone()))).collect()
        })
    }

    async fn whole(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        end: Offset,
    ) -> Result<Option<Bytes>, StoreError> {
        let key = SpeedKey { view: view.clone(), shard, slot, epoch, part: Part::Whole(end) };
        self.with(|tables| tables.speed.get(&key).cloned())
    }
}

#[async_trait]
impl BatchChunks for MemoryStore {
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError> {
        self.with(|tables| tables.batch.extend(rows.iter().map(|row| (row.key.clone(), row.clone()))))
    }

    async fn scan(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: Range<Micros>,
        series: Option<&[u8]>,
    ) -> Result<Vec<BatchRow>, StoreError> {
        self.scans.fetch_add(1, Ordering::SeqCst);
        let wanted = |key: &BatchKey| {
            key.view == *view
                && (key.width, key.base, key.shard) == (width, base, shard)
                && periods.contains(&key.period)
                && series.is_none_or(|series| key.series == series)
        };
        self.with(|tables| tables.batch.values().filter(|row| wanted(&row.key)).cloned().collect())
    }

    async fn remove_chunks(
        &self,
        _: &ViewId,
        _: Micros,
        _: u32,
        _: Shard,
        _: Range<Micros>,
        _: Micros,
    ) -> Result<(), StoreError> {
        Err(StoreError::Refused("serving removes no batch chunk".to_owned()))
    }
}

#[async_trait]
impl Documents for MemoryStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        let early = |left: usize| left.checked_sub(1);
        if kind == VIEW_DOCUMENTS && self.early.fetch_update(Ordering::SeqCst, Ordering::SeqCst, early).is_ok() {
            return Ok(None);
        }
        self.with(|tables| tables.documents.get(&(kind.to_owned(), key.to_owned())).cloned())
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        self.with(|tables| {
            let key = (kind.to_owned(), key.to_owned());
            if tables.documents.get(&key).map_or(0, |document| document.version) != expected {
                return Commit::Refused;
            }
            tables.documents.insert(key, Document { version: expected + 1, value });
            Commit::Applied
        })
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        let of_kind = |tables: &mut Tables| {
            let all = tables.documents.iter().filter(|((own, _), _)| own == kind);
            all.map(|((_, key), document)| (key.clone(), document.clone())).collect()
        };
        self.with(of_kind)
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        self.with(|tables| {
            let key = (kind.to_owned(), key.to_owned());
            if tables.documents.get(&key).is_none_or(|document| document.version != expected) {
                return Commit::Refused;
            }
            tables.documents.remove(&key);
            Commit::Applied
        })
    }
}

type Partitions = Vec<Vec<Record>>;

/// Topics of partitions of records; without a key, records go round.
#[derive(Default)]
pub(crate) struct MemoryLog {
    topics: Mutex<BTreeMap<String, (Topic, Partitions)>>,
    pub(crate) down: AtomicBool,
    pub(crate) now: std::sync::atomic::AtomicI64,
    made: std::sync::atomic::AtomicU64,
}

impl MemoryLog {
    fn with<T>(&self, topic: &str, work: impl FnOnce(&mut Topic, &mut Partitions) -> T) -> Result<T, LogError> {
        self.up()?;
        let mut topics = self.topics.lock().unwrap();
        let (topic, partitions) = topics.get_mut(topic).ok_or_else(|| LogError::NoTopic(topic.into()))?;
        Ok(work(topic, partitions))
    }

    fn up(&self) -> Result<(), LogError> {
        match self.down.load(Ordering::SeqCst) {
            true => Err(LogError::Unavailable("switched off".into())),
            false => Ok(()),
        }
    }

    /// Appends to one partition.
    pub(crate) fn append_to(&self, topic: &str, partition: Partition, payload: Bytes) -> Offset {
        let appended_at = self.now.load(Ordering::SeqCst);
        let append = |_: &mut Topic, partitions: &mut Partitions| {
            let records = &mut partitions[partition as usize];
            records.push(Record { offset: records.len() as u64, appended_at, key: None, payload });
            records.len() as u64 - 1
        };
        self.with(topic, append).unwrap()
    }

    pub(crate) fn records(&self, topic: &str, partition: Partition) -> Vec<Record> {
        self.with(topic, |_, partitions| partitions[partition as usize].clone()).unwrap()
    }

    pub(crate) fn delete(&self, topic: &str) {
        self.topics.lock().unwrap().remove(topic);
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError> {
        self.up()?;
        let mut topics = self.topics.lock().unwrap();
        let (topic, _) = topics.entry(name.to_owned()).or_insert_with(|| {
            let id = format!("id-{}", self.made.fetch_add(1, Ordering::SeqCst));
            (Topic { name: name.to_owned(), id, partitions }, vec![Vec::new(); partitions as usize])
        });
        Ok(topic.clone())
    }

    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.with(name, |topic, _| topic.clone())
    }

    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        let count = self.with(topic, |topic, _| topic.partitions)?;
        let place = |(at, record): (usize, Append)| {
            let partition = at as u32 % count;
            (partition, self.append_to(topic, partition, record.payload))
        };
        Ok(records.into_iter().enumerate().map(place).collect())
    }

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        let span = |(at, records): (usize, &Vec<Record>)| (at as u32, Span { start: 0, end: records.len() as u64 });
        self.with(topic, |_, partitions| partitions.iter().enumerate().map(span).collect())
    }

    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        _: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        let first = self.records(topic, partition).into_iter().nth(from as usize);
        let next = from + u64::from(first.is_some());
        Ok((first.into_iter().collect(), next))
    }

    async fn offset_at(&self, _: &str, _: Partition, _: Micros) -> Result<Offset, LogError> {
        Err(LogError::Refused("not in these tests".into()))
    }

    async fn join(&self, _: &str, _: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Refused("not in these tests".into()))
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.up()
    }
}

/// A little time for things that happen in the background.
pub(crate) const SOON: Duration = Duration::from_millis(50);
