//! Ledgers, chunks and documents, with the time to live, tombstones and stamps of Cassandra.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    clock::Clock,
    ids::{EpochId, LogId, Micros, Offset, Partition, Shard, ViewId},
    ledger::{Change, Epoch, Ledger},
    rules::{self, Rule},
    store::{
        BatchChunks, BatchKey, BatchRow, Commit, Consistency, Document, Documents, Ledgers, Mark, Part, SpeedChunks,
        SpeedKey, Stamp, StoreError,
    },
};

/// A cell with its write time and expiry.
#[derive(Clone, Debug)]
struct Cell<T> {
    value: T,
    stamp: Micros,
    expires: Micros,
}

type MarkKey = (LogId, Partition, EpochId);

/// A view store as a value.
///
/// `broken` collects what no store may be asked to do: other bytes under the key of a speed chunk, marks that name what
/// was never written or step back, ledgers that do not chain.
#[derive(Debug, Default)]
pub struct StoreState {
    ledgers: BTreeMap<(LogId, Partition), Ledger>,
    manifest: BTreeMap<(LogId, Partition, Offset), Epoch>,
    chunks: BTreeMap<SpeedKey, Cell<Bytes>>,
    marks: BTreeMap<MarkKey, Cell<Mark>>,
    rows: BTreeMap<BatchKey, BatchRow>,
    documents: BTreeMap<(String, String), Document>,
    pub broken: Vec<String>,
}

/// Whether a write replaces what is there: the later stamp does; of equal ones the later expiry. An expired cell is a
/// tombstone, to which writes of the same or an earlier stamp lose.
fn replaces<T>(old: &Cell<T>, new: &Cell<T>, now: Micros) -> bool {
    match old.stamp.cmp(&new.stamp) {
        std::cmp::Ordering::Greater => false,
        std::cmp::Ordering::Less => true,
        std::cmp::Ordering::Equal => old.expires > now && old.expires <= new.expires,
    }
}

fn expiry(stamp: Stamp, now: Micros) -> Micros {
    now + Micros::from(stamp.ttl) * 1_000_000
}

impl StoreState {
    pub fn ledger(&self, log: &LogId, partition: Partition) -> Ledger {
        self.ledgers.get(&(log.clone(), partition)).cloned().unwrap_or_default()
    }

    pub fn commit(&mut self, log: &LogId, partition: Partition, change: &Change) -> Commit {
        let Some(changed) = self.ledger(log, partition).apply(change) else { return Commit::Refused };
        if let Err(error) = changed.check() {
            self.broken.push(format!("ledger of {log}/{partition} at version {}: {error}", changed.version));
        }
        self.ledgers.insert((log.clone(), partition), changed);
        Commit::Applied
    }

    pub fn archive(&mut self, log: &LogId, partition: Partition, epochs: &[Epoch]) {
        for epoch in epochs {
            self.manifest.insert((log.clone(), partition, epoch.start), epoch.clone());
        }
    }

    pub fn archived(&self, log: &LogId, partition: Partition, range: Range<Offset>) -> Vec<Epoch> {
        let key = |at| (log.clone(), partition, at);
        self.manifest.range(key(range.start)..key(range.end.max(range.start))).map(|(_, epoch)| epoch.clone()).collect()
    }

    pub fn put_chunk(&mut self, key: &SpeedKey, value: &Bytes, stamp: Stamp, now: Micros) {
        let new = Cell { value: value.clone(), stamp: stamp.at, expires: expiry(stamp, now) };
        match self.chunks.get(key) {
            Some(old) if old.value != *value => {
                self.broken.push(format!("the same key has other bytes: {key:?}"));
                self.chunks.insert(key.clone(), new);
            }
            Some(old) if !replaces(old, &new, now) => {}
            _ => drop(self.chunks.insert(key.clone(), new)),
        }
    }

    pub fn put_mark(
        &mut self,
        (log, partition, epoch): (&LogId, Partition, EpochId),
        mark: &Mark,
        stamp: Stamp,
        now: Micros,
    ) {
        let key = (log.clone(), partition, epoch);
        let new = Cell { value: mark.clone(), stamp: stamp.at, expires: expiry(stamp, now) };
        match self.marks.get(&key) {
            Some(old) if !replaces(old, &new, now) => {}
            _ => drop(self.marks.insert(key, new)),
        }
    }

    /// Delta chunks that a mark names and that were never written.
    pub fn unwritten(&self, slot: i64, epoch: EpochId, mark: &Mark) -> Vec<SpeedKey> {
        let named = mark.sequences.iter().flat_map(|((view, shard), upto)| {
            let key =
                |sequence| SpeedKey { view: view.clone(), shard: *shard, slot, epoch, part: Part::Delta(sequence) };
            (0..*upto).map(key)
        });
        named.filter(|key| !self.chunks.contains_key(key)).collect()
    }

    pub fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId, now: Micros) -> Option<Mark> {
        let cell = self.marks.get(&(log.clone(), partition, epoch))?;
        (cell.expires > now).then(|| cell.value.clone())
    }

    pub fn chunk(&self, key: &SpeedKey, now: Micros) -> Option<Bytes> {
        self.chunks.get(key).filter(|cell| cell.expires > now).map(|cell| cell.value.clone())
    }

    pub fn deltas(
        &self,
        (view, shard, slot, epoch): (&ViewId, Shard, i64, EpochId),
        range: Range<u64>,
        now: Micros,
    ) -> Vec<(u64, Bytes)> {
        let key = |sequence| SpeedKey { view: view.clone(), shard, slot, epoch, part: Part::Delta(sequence) };
        if range.is_empty() {
            return Vec::new();
        }
        let cells = self.chunks.range(key(range.start)..key(range.end)).filter(|(_, cell)| cell.expires > now);
        let sequence = |part| if let Part::Delta(sequence) = part { sequence } else { 0 };
        cells.map(|(key, cell)| (sequence(key.part), cell.value.clone())).collect()
    }

    pub fn put_row(&mut self, row: &BatchRow) {
        match self.rows.get(&row.key) {
            Some(old) if old.stamp > row.stamp && rules::on(Rule::LaterGenerationWins) => {}
            Some(old) if old.stamp == row.stamp && old.body > row.body => {}
            _ => drop(self.rows.insert(row.key.clone(), row.clone())),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the trait's, and the time")]
    pub fn scan(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: &Range<Micros>,
        series: Option<&[u8]>,
        now: Micros,
    ) -> Vec<BatchRow> {
        let wanted = |row: &&BatchRow| {
            row.key.view == *view
                && (row.key.width, row.key.base, row.key.shard) == (width, base, shard)
                && periods.contains(&row.key.period)
                && series.is_none_or(|series| series == row.key.series)
                && row.expires_at.is_none_or(|at| at > now)
        };
        let mut rows: Vec<BatchRow> = self.rows.values().filter(wanted).cloned().collect();
        rows.sort_by(|a, b| (&a.key.series, a.key.period).cmp(&(&b.key.series, b.key.period)));
        rows
    }

    /// Removes what [`BatchChunks::remove_chunks`] does.
    pub fn remove_chunks(&mut self, place: (&ViewId, Micros, u32, Shard), periods: &Range<Micros>, upto: Micros) {
        self.rows.retain(|key, row| {
            let here = (&key.view, key.width, key.base, key.shard) == place && periods.contains(&key.period);
            !here || row.stamp > upto
        });
    }

    pub fn document(&self, kind: &str, key: &str) -> Option<Document> {
        self.documents.get(&(kind.to_owned(), key.to_owned())).cloned()
    }

    /// Replaces the document by `value`, or removes it, if it is at `expected`.
    pub fn change_document(&mut self, kind: &str, key: &str, expected: u64, value: Option<Bytes>) -> Commit {
        let at = (kind.to_owned(), key.to_owned());
        let found = self.documents.get(&at).map_or(0, |document| document.version);
        match value {
            _ if found != expected => return Commit::Refused,
            Some(value) => drop(self.documents.insert(at, Document { version: expected + 1, value })),
            None if self.documents.remove(&at).is_none() => return Commit::Refused,
            None => {}
        }
        Commit::Applied
    }

    pub fn list(&self, kind: &str) -> Vec<(String, Document)> {
        let of_kind = self.documents.iter().filter(|((own, _), _)| own == kind);
        of_kind.map(|((_, key), document)| (key.clone(), document.clone())).collect()
    }
}

/// A view store in memory. It panics where [`StoreState::broken`] would say something.
pub struct MemoryStore {
    state: Mutex<StoreState>,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Mutex::default(), clock }
    }

    /// Looks at the state, or changes it.
    pub fn with<T>(&self, look: impl FnOnce(&mut StoreState) -> T) -> T {
        let mut state = self.lock();
        let found = look(&mut state);
        assert!(state.broken.is_empty(), "{:?}", state.broken);
        found
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Ledgers for MemoryStore {
    async fn load(&self, log: &LogId, partition: Partition, _: Consistency) -> Result<Ledger, StoreError> {
        Ok(self.lock().ledger(log, partition))
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        Ok(self.with(|state| state.commit(log, partition, change)))
    }

    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError> {
        self.with(|state| state.archive(log, partition, epochs));
        Ok(())
    }

    async fn archived(
        &self,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        Ok(self.lock().archived(log, partition, range))
    }
}

#[async_trait]
impl SpeedChunks for MemoryStore {
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.with(|state| chunks.iter().for_each(|(key, value)| state.put_chunk(key, value, stamp, now)));
        Ok(())
    }

    async fn put_mark(
        &self,
        log: &LogId,
        partition: Partition,
        epoch: EpochId,
        mark: &Mark,
        stamp: Stamp,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        self.with(|state| state.put_mark((log, partition, epoch), mark, stamp, now));
        Ok(())
    }

    async fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        Ok(self.lock().mark(log, partition, epoch, self.clock.now()))
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        Ok(self.lock().deltas((view, shard, slot, epoch), range, self.clock.now()))
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
        Ok(self.lock().chunk(&key, self.clock.now()))
    }
}

#[async_trait]
impl BatchChunks for MemoryStore {
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError> {
        self.with(|state| rows.iter().for_each(|row| state.put_row(row)));
        Ok(())
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
        Ok(self.lock().scan(view, width, base, shard, &periods, series, self.clock.now()))
    }

    async fn remove_chunks(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: Range<Micros>,
        upto: Micros,
    ) -> Result<(), StoreError> {
        self.with(|state| state.remove_chunks((view, width, base, shard), &periods, upto));
        Ok(())
    }
}

#[async_trait]
impl Documents for MemoryStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        Ok(self.lock().document(kind, key))
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        Ok(self.with(|state| state.change_document(kind, key, expected, Some(value))))
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        Ok(self.lock().list(kind))
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        Ok(self.with(|state| state.change_document(kind, key, expected, None)))
    }
}
