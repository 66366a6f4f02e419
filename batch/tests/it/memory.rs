//! A store in memory that can fail after so many writes, or hold batch writes back as a slow process would.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Mutex,
};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    BatchChunks, BatchKey, BatchRow, Commit, Consistency, Document, Documents, Epoch, EpochId, Ledger, Ledgers, LogId,
    Mark, Micros, Offset, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId,
    generation::VIEW_DOCUMENTS, ledger::Change,
};

#[derive(Default)]
struct Inner {
    ledgers: HashMap<(LogId, Partition), Ledger>,
    manifest: BTreeMap<(LogId, Partition, Offset), Epoch>,
    rows: BTreeMap<BatchKey, BatchRow>,
    documents: BTreeMap<(String, String), Document>,
    /// Writes that still succeed; `None` is any number.
    budget: Option<usize>,
    /// Writes of view states that still succeed.
    view_budget: Option<usize>,
    /// Batch writes that were acknowledged but come late.
    held: Option<Vec<BatchRow>>,
}

impl Inner {
    fn spend(budget: &mut Option<usize>) -> Result<(), StoreError> {
        match budget {
            Some(0) => Err(StoreError::Unavailable("the test took it down".to_owned())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn put_row(&mut self, row: BatchRow) {
        match self.rows.get(&row.key) {
            Some(stands) if stands.stamp > row.stamp => {}
            Some(stands) if stands.stamp == row.stamp => {
                assert_eq!(stands.body, row.body, "the same stamp with other bytes: {:?}", row.key);
            }
            _ => {
                self.rows.insert(row.key.clone(), row);
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct Memory(Mutex<Inner>);

impl Memory {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// From now on only so many writes succeed.
    pub(crate) fn fail_after(&self, writes: Option<usize>) {
        self.inner().budget = writes;
    }

    /// From now on only so many writes of view states succeed.
    pub(crate) fn view_writes(&self, writes: Option<usize>) {
        self.inner().view_budget = writes;
    }

    /// Acknowledges batch writes without applying them.
    pub(crate) fn hold(&self) {
        self.inner().held = Some(Vec::new());
    }

    /// What was held back arrives when it is given back to [`Memory::arrive`].
    pub(crate) fn held(&self) -> Vec<BatchRow> {
        self.inner().held.take().unwrap_or_default()
    }

    pub(crate) fn arrive(&self, rows: Vec<BatchRow>) {
        let mut inner = self.inner();
        rows.into_iter().for_each(|row| inner.put_row(row));
    }

    pub(crate) fn rows(&self) -> Vec<BatchRow> {
        self.inner().rows.values().cloned().collect()
    }

    /// Drops the rows whose time to live has passed.
    pub(crate) fn expire(&self, now: Micros) {
        self.inner().rows.retain(|_, row| row.expires_at.is_none_or(|at| at > now));
    }

    pub(crate) fn ledger(&self, log: &LogId, partition: Partition) -> Ledger {
        self.inner().ledgers.get(&(log.clone(), partition)).cloned().unwrap_or_default()
    }

    pub(crate) fn set_ledger(&self, log: &LogId, partition: Partition, ledger: Ledger) {
        self.inner().ledgers.insert((log.clone(), partition), ledger);
    }

    pub(crate) fn forget(&self, log: &LogId, partition: Partition, start: Offset) {
        self.inner().manifest.remove(&(log.clone(), partition, start));
    }
}

#[async_trait]
impl Ledgers for Memory {
    async fn load(&self, log: &LogId, partition: Partition, _: Consistency) -> Result<Ledger, StoreError> {
        Ok(self.ledger(log, partition))
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        let next = self.ledger(log, partition).apply(change);
        Ok(next.map_or(Commit::Refused, |next| {
            self.set_ledger(log, partition, next);
            Commit::Applied
        }))
    }

    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError> {
        let mut inner = self.inner();
        for epoch in epochs {
            inner.manifest.insert((log.clone(), partition, epoch.start), epoch.clone());
        }
        Ok(())
    }

    async fn archived(
        &self,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        let key = |at| (log.clone(), partition, at);
        Ok(self.inner().manifest.range(key(range.start)..key(range.end)).map(|(_, epoch)| epoch.clone()).collect())
    }
}

#[async_trait]
impl BatchChunks for Memory {
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError> {
        let mut inner = self.inner();
        for row in rows {
            Inner::spend(&mut inner.budget)?;
            match &mut inner.held {
                Some(held) => held.push(row.clone()),
                None => inner.put_row(row.clone()),
            }
        }
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
        let wanted = |key: &BatchKey| {
            key.view == *view
                && (key.width, key.base, key.shard) == (width, base, shard)
                && periods.contains(&key.period)
                && series.is_none_or(|series| series == key.series)
        };
        Ok(self.inner().rows.values().filter(|row| wanted(&row.key)).cloned().collect())
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
        let gone = |row: &BatchRow| {
            row.key.view == *view
                && (row.key.width, row.key.base, row.key.shard) == (width, base, shard)
                && periods.contains(&row.key.period)
                && row.stamp <= upto
        };
        self.inner().rows.retain(|_, row| !gone(row));
        Ok(())
    }
}

#[async_trait]
impl Documents for Memory {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        Ok(self.inner().documents.get(&(kind.to_owned(), key.to_owned())).cloned())
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        let mut inner = self.inner();
        Inner::spend(&mut inner.budget)?;
        if kind == VIEW_DOCUMENTS {
            Inner::spend(&mut inner.view_budget)?;
        }
        let key = (kind.to_owned(), key.to_owned());
        if inner.documents.get(&key).map_or(0, |document| document.version) != expected {
            return Ok(Commit::Refused);
        }
        inner.documents.insert(key, Document { version: expected + 1, value });
        Ok(Commit::Applied)
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        let inner = self.inner();
        let of_kind = inner.documents.iter().filter(|((own, _), _)| own == kind);
        Ok(of_kind.map(|((_, key), document)| (key.clone(), document.clone())).collect())
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        let mut inner = self.inner();
        let key = (kind.to_owned(), key.to_owned());
        if inner.documents.get(&key).map_or(0, |document| document.version) != expected {
            return Ok(Commit::Refused);
        }
        inner.documents.remove(&key);
        Ok(Commit::Applied)
    }
}

/// Batch has nothing to do with speed chunks: whoever asks gets an error.
#[async_trait]
impl SpeedChunks for Memory {
    async fn put(&self, _: &[(SpeedKey, Bytes)], _: Stamp) -> Result<(), StoreError> {
        Err(not_batch())
    }

    async fn put_mark(&self, _: &LogId, _: Partition, _: EpochId, _: &Mark, _: Stamp) -> Result<(), StoreError> {
        Err(not_batch())
    }

    async fn mark(&self, _: &LogId, _: Partition, _: EpochId) -> Result<Option<Mark>, StoreError> {
        Err(not_batch())
    }

    async fn deltas(
        &self,
        _: &ViewId,
        _: Shard,
        _: i64,
        _: EpochId,
        _: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        Err(not_batch())
    }

    async fn whole(&self, _: &ViewId, _: Shard, _: i64, _: EpochId, _: Offset) -> Result<Option<Bytes>, StoreError> {
        Err(not_batch())
    }
}

fn not_batch() -> StoreError {
    StoreError::Refused("speed chunks are not batch's".to_owned())
}
