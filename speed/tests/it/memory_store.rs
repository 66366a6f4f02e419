//! A view store in memory that expires by TTL, can be away, and can leave the outcome of a commit unknown.
//!
//! It checks what every store relies on: the same chunk key always has the same bytes, and marks only grow.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    BatchChunks, BatchRow, Change, Clock, Commit, Consistency, Document, Documents, Epoch, EpochId, Ledger, Ledgers,
    LogId, Mark, Micros, Offset, Part, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId,
};

struct Cell<T> {
    value: T,
    stamp: Micros,
    expires: Micros,
}

type MarkKey = (LogId, Partition, EpochId);

#[derive(Default)]
struct State {
    ledgers: HashMap<(LogId, Partition), Ledger>,
    manifest: HashMap<(LogId, Partition), BTreeMap<Offset, Epoch>>,
    chunks: HashMap<SpeedKey, Cell<Bytes>>,
    marks: HashMap<MarkKey, Cell<Mark>>,
    documents: BTreeMap<(String, String), Document>,
}

pub(crate) struct MemoryStore {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    pub(crate) away: AtomicBool,
    /// Every so manieth call of a write fails after or before its effect; 0 never.
    pub(crate) uncertain_every: AtomicU64,
    calls: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl MemoryStore {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::default(),
            clock,
            away: AtomicBool::new(false),
            uncertain_every: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn ledger(&self, log: &LogId, partition: Partition) -> Ledger {
        self.state.lock().unwrap().ledgers.get(&(log.clone(), partition)).cloned().unwrap_or_default()
    }

    fn answer(&self) -> Result<(), StoreError> {
        let away = self.away.load(Ordering::SeqCst);
        if away { Err(StoreError::Unavailable("the test took it away".to_owned())) } else { Ok(()) }
    }

    /// Which call goes wrong, and whether it takes effect all the same.
    fn trouble(&self) -> Option<bool> {
        let (call, every) = (self.calls.fetch_add(1, Ordering::SeqCst), self.uncertain_every.load(Ordering::SeqCst));
        (every > 0 && call.is_multiple_of(every)).then(|| (call / every).is_multiple_of(2))
    }
}

fn put_cell<K: std::hash::Hash + Eq, T>(cells: &mut HashMap<K, Cell<T>>, key: K, cell: Cell<T>, now: Micros) {
    match cells.get(&key) {
        // An expired cell leaves a tombstone, to which writes of the same or an earlier stamp lose.
        Some(old) if old.stamp > cell.stamp || (old.expires <= now && old.stamp >= cell.stamp) => {}
        Some(old) if old.stamp == cell.stamp && old.expires > cell.expires => {}
        _ => drop(cells.insert(key, cell)),
    }
}

#[async_trait]
impl Ledgers for MemoryStore {
    async fn load(&self, log: &LogId, partition: Partition, _: Consistency) -> Result<Ledger, StoreError> {
        self.answer()?;
        Ok(self.ledger(log, partition))
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        self.answer()?;
        let trouble = self.trouble();
        let unknown = || StoreError::Unknown("the test lost the answer".to_owned());
        if trouble == Some(false) {
            return Err(unknown());
        }
        let mut state = self.state.lock().unwrap();
        let ledger = state.ledgers.entry((log.clone(), partition)).or_default();
        let Some(changed) = ledger.apply(change) else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return if trouble.is_some() { Err(unknown()) } else { Ok(Commit::Refused) };
        };
        changed.check().expect("every ledger chains");
        for epoch in changed.sealed() {
            let archive = epoch.archive.as_ref().expect("a sealed epoch has a file");
            assert_eq!(archive.counts.offsets(), epoch.end.unwrap() - epoch.start, "every offset is accounted for");
        }
        *ledger = changed;
        if trouble.is_some() { Err(unknown()) } else { Ok(Commit::Applied) }
    }

    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError> {
        self.answer()?;
        let mut state = self.state.lock().unwrap();
        let manifest = state.manifest.entry((log.clone(), partition)).or_default();
        manifest.extend(epochs.iter().map(|epoch| (epoch.start, epoch.clone())));
        Ok(())
    }

    async fn archived(
        &self,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        let state = self.state.lock().unwrap();
        let manifest = state.manifest.get(&(log.clone(), partition));
        Ok(manifest.map_or(Vec::new(), |manifest| manifest.range(range).map(|(_, epoch)| epoch.clone()).collect()))
    }
}

#[async_trait]
impl SpeedChunks for MemoryStore {
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError> {
        self.answer()?;
        let trouble = self.trouble();
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap();
        // Of a write that fails, a part may have arrived.
        let arrive = if trouble.is_some() { chunks.len() / 2 } else { chunks.len() };
        for (key, value) in &chunks[..arrive] {
            if let Some(old) = state.chunks.get(key) {
                assert_eq!(old.value, value, "the same key has the same bytes: {key:?}");
            }
            let cell =
                Cell { value: value.clone(), stamp: stamp.at, expires: now + Micros::from(stamp.ttl) * 1_000_000 };
            put_cell(&mut state.chunks, key.clone(), cell, now);
        }
        if trouble.is_some() { Err(StoreError::Unavailable("the test lost the answer".to_owned())) } else { Ok(()) }
    }

    async fn put_mark(
        &self,
        log: &LogId,
        partition: Partition,
        epoch: EpochId,
        mark: &Mark,
        stamp: Stamp,
    ) -> Result<(), StoreError> {
        self.answer()?;
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap();
        let key = (log.clone(), partition, epoch);
        if let Some(old) = state.marks.get(&key) {
            assert!(old.value.number <= mark.number && old.value.end <= mark.end, "marks of an epoch only grow");
        }
        let named = mark.sequences.iter().flat_map(|(place, upto)| (0..*upto).map(move |sequence| (place, sequence)));
        for ((view, shard), sequence) in named {
            let same = |key: &SpeedKey| {
                key.epoch == epoch && key.view == *view && key.shard == *shard && key.part == Part::Delta(sequence)
            };
            assert!(state.chunks.keys().any(same), "a mark names acknowledged chunks only");
        }
        let cell = Cell { value: mark.clone(), stamp: stamp.at, expires: now + Micros::from(stamp.ttl) * 1_000_000 };
        put_cell(&mut state.marks, key, cell, now);
        Ok(())
    }

    async fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        self.answer()?;
        let (state, now) = (self.state.lock().unwrap(), self.clock.now());
        let cell = state.marks.get(&(log.clone(), partition, epoch));
        Ok(cell.filter(|cell| cell.expires > now).map(|cell| cell.value.clone()))
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        self.answer()?;
        let (state, now) = (self.state.lock().unwrap(), self.clock.now());
        let key = |sequence| SpeedKey { view: view.clone(), shard, slot, epoch, part: Part::Delta(sequence) };
        let live = |sequence| state.chunks.get(&key(sequence)).filter(|cell| cell.expires > now);
        Ok(range.filter_map(|sequence| live(sequence).map(|cell| (sequence, cell.value.clone()))).collect())
    }

    async fn whole(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        end: Offset,
    ) -> Result<Option<Bytes>, StoreError> {
        self.answer()?;
        let (state, now) = (self.state.lock().unwrap(), self.clock.now());
        let key = SpeedKey { view: view.clone(), shard, slot, epoch, part: Part::Whole(end) };
        Ok(state.chunks.get(&key).filter(|cell| cell.expires > now).map(|cell| cell.value.clone()))
    }
}

#[async_trait]
impl BatchChunks for MemoryStore {
    async fn put(&self, _: &[BatchRow]) -> Result<(), StoreError> {
        Err(StoreError::Refused("speed writes no batch chunk".to_owned()))
    }

    async fn scan(
        &self,
        _: &ViewId,
        _: Micros,
        _: u32,
        _: Shard,
        _: Range<Micros>,
        _: Option<&[u8]>,
    ) -> Result<Vec<BatchRow>, StoreError> {
        Ok(Vec::new())
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
        Err(StoreError::Refused("speed removes no batch chunk".to_owned()))
    }
}

#[async_trait]
impl Documents for MemoryStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        self.answer()?;
        Ok(self.state.lock().unwrap().documents.get(&(kind.to_owned(), key.to_owned())).cloned())
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        let mut state = self.state.lock().unwrap();
        let key = (kind.to_owned(), key.to_owned());
        let version = state.documents.get(&key).map_or(0, |document| document.version);
        if version != expected {
            return Ok(Commit::Refused);
        }
        state.documents.insert(key, Document { version: expected + 1, value });
        Ok(Commit::Applied)
    }

    async fn list(&self, _: &str) -> Result<Vec<(String, Document)>, StoreError> {
        Err(StoreError::Refused("speed lists no documents".to_owned()))
    }

    async fn remove(&self, _: &str, _: &str, _: u64) -> Result<Commit, StoreError> {
        Err(StoreError::Refused("speed removes no document".to_owned()))
    }
}
