//! The view store as a process sees it.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    BatchChunks, BatchRow, Change, Commit, Consistency, Document, Documents, Epoch, EpochId, Ledger, Ledgers, LogId,
    Mark, Micros, Offset, Part, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId,
    generation::VIEW_DOCUMENTS,
};

use crate::{
    counts::Happening,
    port::{Fault, Port},
    world::{Done, Effect, Role},
};

pub(crate) struct SimStore(pub(crate) Port);

fn unavailable(_: Fault) -> StoreError {
    StoreError::Unavailable("simulated".to_owned())
}

fn conditional(done: Result<Done, Fault>) -> Result<Commit, StoreError> {
    match done {
        Ok(Done::Conditional(commit)) => Ok(commit),
        Ok(_) => Err(StoreError::Refused("no conditional write".to_owned())),
        Err(Fault::NotDone) => Err(StoreError::Unavailable("simulated".to_owned())),
        Err(Fault::Unknown) => Err(StoreError::Unknown("simulated".to_owned())),
    }
}

impl SimStore {
    async fn write(&self, effect: Effect) -> Result<(), StoreError> {
        self.0.write(effect).await.map(drop).map_err(unavailable)
    }
}

#[async_trait]
impl Ledgers for SimStore {
    async fn load(&self, log: &LogId, partition: Partition, consistency: Consistency) -> Result<Ledger, StoreError> {
        let serving = self.0.who.role == Role::Serving;
        let look = self.0.ask(|world| match consistency {
            Consistency::Quorum => world.ledger_at_quorum(log, partition),
            Consistency::Serial => {
                if serving {
                    world.count(Happening::Reread);
                }
                world.complete(log, partition);
                world.store.ledger(log, partition)
            }
        });
        look.await.map_err(unavailable)
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        let effect = Effect::Commit { log: log.clone(), partition, change: change.clone() };
        let done = conditional(self.0.write(effect).await);
        if matches!(done, Err(StoreError::Unknown(_))) {
            let seal = change.put.iter().any(|epoch| epoch.end.is_some());
            self.0.world.lock().count(if seal { Happening::SealUnknown } else { Happening::PublishUnknown });
        }
        done
    }

    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError> {
        self.write(Effect::Manifest { log: log.clone(), partition, epochs: epochs.to_vec() }).await
    }

    async fn archived(
        &self,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        self.0.ask(|world| world.store.archived(log, partition, range)).await.map_err(unavailable)
    }
}

#[async_trait]
impl SpeedChunks for SimStore {
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError> {
        self.write(Effect::Chunks { chunks: chunks.to_vec(), stamp }).await
    }

    async fn put_mark(
        &self,
        log: &LogId,
        partition: Partition,
        epoch: EpochId,
        mark: &Mark,
        stamp: Stamp,
    ) -> Result<(), StoreError> {
        self.write(Effect::Mark { log: log.clone(), partition, epoch, mark: mark.clone(), stamp }).await
    }

    async fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        let look = self.0.ask(|world| world.store.mark(log, partition, epoch, world.now));
        look.await.map_err(unavailable)
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let look = self.0.ask(|world| world.store.deltas((view, shard, slot, epoch), range, world.now));
        look.await.map_err(unavailable)
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
        let look = self.0.ask(|world| {
            world.expired(&key);
            world.store.chunk(&key, world.now)
        });
        look.await.map_err(unavailable)
    }
}

#[async_trait]
impl BatchChunks for SimStore {
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError> {
        self.write(Effect::Rows(rows.to_vec())).await
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
        let look = self.0.ask(|world| world.store.scan(view, width, base, shard, &periods, series, world.now));
        look.await.map_err(unavailable)
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
        self.write(Effect::RemoveRows { view: view.clone(), width, base, shard, periods, upto }).await
    }
}

#[async_trait]
impl Documents for SimStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        self.0.ask(|world| world.store.document(kind, key)).await.map_err(unavailable)
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        let effect = Effect::Document { kind: kind.to_owned(), key: key.to_owned(), expected, value: Some(value) };
        let done = conditional(self.0.write(effect).await);
        if matches!(done, Err(StoreError::Unknown(_))) && kind == VIEW_DOCUMENTS {
            self.0.world.lock().count(Happening::ViewUnknown);
        }
        done
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        self.0.ask(|world| world.store.list(kind)).await.map_err(unavailable)
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        let effect = Effect::Document { kind: kind.to_owned(), key: key.to_owned(), expected, value: None };
        conditional(self.0.write(effect).await)
    }
}
