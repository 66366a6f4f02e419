//! The real reader over the simulated world: the world moves on at each of its calls.

use std::{collections::BTreeMap, ops::Range, sync::Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;

use super::world::{self, BatchCell, Folded, PARTITIONS, Violation, World};
use crate::{
    BatchChunks, BatchRow, Change, Commit, Consistency, Cut, Document, Documents, Epoch, EpochId, Ledger, Ledgers,
    LogId, Mark, Micros, Offset, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId, envelope,
    read::{self, BatchScan, Chunks, ReadError, Request},
    snapshot::{Wanted, WantedPart},
    store::Part,
};

/// Reads a random view and checks the answer against the log itself.
pub(super) fn read_and_check(world: &mut World) -> Result<(), Violation> {
    let pick = world.roll(world::views().len());
    let (view, shards) = world::views()[pick].clone();
    let floor: Cut = (0..PARTITIONS).map(|p| (p, world.ledgers[p as usize].sealed_end())).collect();
    let log = LogId::new("source", "topic");
    let partitions: Vec<Partition> = (0..PARTITIONS).collect();
    let shards: Vec<Shard> = (0..shards).collect();
    let request = Request {
        log: &log,
        partitions: &partitions,
        view: &view,
        since: 1,
        shards: &shards,
        width: 1,
        periods: 0..60,
        series: None,
        now: 0,
    };
    let moving = Moving { world: Mutex::new(world), cache: Mutex::default() };
    // what an earlier reader left in the cache, at some earlier moment
    moving.warm_up(&request);
    let inputs = match block_on(read::read(&moving, &moving, &request)) {
        Ok(inputs) => inputs,
        Err(error) => {
            let world = moving.world.into_inner().expect("not poisoned");
            return settle(world, &error);
        }
    };
    let world = moving.world.into_inner().expect("not poisoned");
    let mut folded = Folded::new();
    let mut add = |states: &Folded| states.iter().for_each(|(event, n)| *folded.entry(*event).or_default() += n);
    for shard in &shards {
        let cell = inputs.batch.iter().find(|(of, _)| of == shard).map(|(_, cell)| cell);
        cell.into_iter().for_each(|cell| add(&cell.folded));
        let covered = inputs.snapshot.covered(cell.map(|cell| &cell.cut));
        let of_shard = inputs.speed.iter().filter(|piece| piece.chunk.0 == *shard);
        for piece in of_shard.filter(|piece| inputs.snapshot.counts(piece.partition, piece.start, &covered)) {
            add(&piece.chunk.1);
        }
    }
    let positions: Cut = inputs.snapshot.positions().into_iter().collect();
    world.check_answer(&view, &folded, &positions, &floor)
}

/// A read may give up while the world runs on; in a world that stands still it may not.
fn settle(world: &mut World, error: &ReadError) -> Result<(), Violation> {
    for (partition, ledger) in world.ledgers.iter().enumerate() {
        for (view, state) in &world.views {
            let uncovered = |epoch: &&Epoch| !state.published.cut.covers(partition as Partition, epoch.start);
            for epoch in ledger.sealed().filter(uncovered) {
                let end = epoch.end.unwrap_or_default();
                let shards = world::views().into_iter().find(|(id, _)| id == view).map_or(0, |(_, n)| n);
                let there = |shard: &Shard| {
                    let part = Part::Whole(end);
                    let slot = crate::store::slot(epoch.opened_at);
                    world.chunks.contains_key(&SpeedKey {
                        view: view.clone(),
                        shard: *shard,
                        slot,
                        epoch: epoch.id,
                        part,
                    })
                };
                if !(0..shards).all(|shard| there(&shard)) {
                    return Err(
                        world.violation(format!("reader never settles ({error}): epoch {} lacks chunks", epoch.id))
                    );
                }
            }
            let trimmed = ledger.epochs.first().map_or(0, |first| first.start);
            if trimmed > state.published.cut.at(partition as Partition) {
                return Err(
                    world.violation(format!("reader never settles ({error}): epochs below {trimmed} left the ledger"))
                );
            }
        }
    }
    Ok(())
}

/// Cached batch chunks by (published generation, base, shard).
type Cache = BTreeMap<(u64, u32, Shard), Vec<(Shard, BatchCell)>>;

/// A store that moves on whenever it is asked.
struct Moving<'a> {
    world: Mutex<&'a mut World>,
    cache: Mutex<Cache>,
}

impl Moving<'_> {
    fn moved<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.lock().expect("not poisoned");
        // now and then the reader is paused for long
        let steps = if world.roll(8) == 0 { 60 } else { world.roll(4) };
        for _ in 0..steps {
            world.step();
        }
        look(&mut world)
    }

    fn warm_up(&self, request: &Request<'_>) -> usize {
        let generation = {
            let world = self.world.lock().expect("not poisoned");
            world.views[request.view].published.generation
        };
        let early = block_on(async {
            let mut found = 0;
            for &shard in request.shards {
                for generation in [generation, 0] {
                    let periods = request.periods.clone();
                    let scan =
                        BatchScan { generation, view: request.view, width: 1, base: 0, shard, periods, series: None };
                    found += self.batch(&scan).await.map_or(0, |found| found.len());
                }
            }
            found
        });
        for _ in 0..6 {
            self.moved(|_| ());
        }
        early
    }
}

#[async_trait]
impl Chunks for Moving<'_> {
    type Speed = (Shard, Folded);
    type Batch = (Shard, BatchCell);

    async fn whole(&self, view: &ViewId, shard: Shard, wanted: &Wanted) -> Result<Option<Self::Speed>, StoreError> {
        let WantedPart::Whole(end) = wanted.part else { return Ok(None) };
        let key =
            SpeedKey { view: view.clone(), shard, slot: wanted.slot, epoch: wanted.epoch, part: Part::Whole(end) };
        Ok(self.moved(|world| world.chunks.get(&key).cloned()).map(|folded| (shard, folded)))
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        wanted: &Wanted,
        range: Range<u64>,
    ) -> Result<Vec<Self::Speed>, StoreError> {
        let key =
            |n| SpeedKey { view: view.clone(), shard, slot: wanted.slot, epoch: wanted.epoch, part: Part::Delta(n) };
        Ok(self.moved(|world| {
            let found = world.chunks.range(key(range.start)..key(range.end));
            found.map(|(_, folded)| (shard, folded.clone())).collect()
        }))
    }

    async fn batch(&self, scan: &BatchScan<'_>) -> Result<Vec<Self::Batch>, StoreError> {
        let key = (scan.generation, scan.base, scan.shard);
        if let Some(cached) = self.cache.lock().expect("not poisoned").get(&key) {
            return Ok(cached.clone());
        }
        let found = self.moved(|world| {
            let cell = world.batch.get(&(scan.view.clone(), scan.base, scan.shard));
            let current = world.views[scan.view].published.generation;
            (current, cell.map(|cell| (scan.shard, cell.clone())).into_iter().collect::<Vec<_>>())
        });
        // only what was read while its generation was published may be kept under it
        if scan.generation == found.0 || scan.generation == 0 {
            self.cache.lock().expect("not poisoned").insert(key, found.1.clone());
        }
        Ok(found.1)
    }

    fn cut(batch: &Self::Batch) -> &Cut {
        &batch.1.cut
    }
}

const UNUSED: &str = "the reader does not write";

#[async_trait]
impl Ledgers for Moving<'_> {
    async fn load(&self, _: &LogId, partition: Partition, _: Consistency) -> Result<Ledger, StoreError> {
        Ok(self.moved(|world| world.ledgers[partition as usize].clone()))
    }

    async fn commit(&self, _: &LogId, _: Partition, _: &Change) -> Result<Commit, StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }

    async fn archive(&self, _: &LogId, _: Partition, _: &[Epoch]) -> Result<(), StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }

    async fn archived(&self, _: &LogId, _: Partition, _: Range<Offset>) -> Result<Vec<Epoch>, StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }
}

#[async_trait]
impl SpeedChunks for Moving<'_> {
    async fn put(&self, _: &[(SpeedKey, Bytes)], _: Stamp) -> Result<(), StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }

    async fn put_mark(&self, _: &LogId, _: Partition, _: EpochId, _: &Mark, _: Stamp) -> Result<(), StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }

    async fn mark(&self, _: &LogId, _: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        Ok(self.moved(|world| world.marks.get(&epoch).cloned()))
    }

    async fn deltas(
        &self,
        _: &ViewId,
        _: Shard,
        _: i64,
        _: EpochId,
        _: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }

    async fn whole(&self, _: &ViewId, _: Shard, _: i64, _: EpochId, _: Offset) -> Result<Option<Bytes>, StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }
}

#[async_trait]
impl BatchChunks for Moving<'_> {
    async fn put(&self, _: &[BatchRow]) -> Result<(), StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
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
        Err(StoreError::Refused(UNUSED.into()))
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
        Err(StoreError::Refused(UNUSED.into()))
    }
}

#[async_trait]
impl Documents for Moving<'_> {
    async fn get(&self, _: &str, key: &str) -> Result<Option<Document>, StoreError> {
        let state = self.moved(|world| world.views[&ViewId::from_text(key)].clone());
        let value = envelope::pack(&state).map_err(|error| StoreError::Refused(error.to_string()))?;
        Ok(Some(Document { version: 1, value: value.into() }))
    }

    async fn put(&self, _: &str, _: &str, _: u64, _: Bytes) -> Result<Commit, StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }

    async fn list(&self, _: &str) -> Result<Vec<(String, Document)>, StoreError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _: &str, _: &str, _: u64) -> Result<Commit, StoreError> {
        Err(StoreError::Refused(UNUSED.into()))
    }
}
