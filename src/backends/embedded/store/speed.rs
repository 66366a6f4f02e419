//! Speed chunks and marks.
//!
//! ```text
//! slice n  view shard slot epoch part number → chunk (part 0 is a delta, 1 a whole chunk)
//! marks    log partition epoch               → mark
//! ```

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    EpochId, LogId, Mark, Micros, Offset, Part, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId,
};

use super::{EmbeddedStore, corrupt, packed};
use crate::backends::embedded::engine::{Failure, Key, Parts, Space, live, note_slice, now, slice_of};

fn epoch_key(view: &ViewId, shard: Shard, slot: i64, epoch: EpochId) -> Key {
    Key::default().text(view.as_str()).u32(shard).i64(slot).raw(epoch.0.as_bytes())
}

fn chunk_key(key: &SpeedKey) -> Vec<u8> {
    let epoch = epoch_key(&key.view, key.shard, key.slot, key.epoch);
    match key.part {
        Part::Delta(sequence) => epoch.tag(0).u64(sequence).done(),
        Part::Whole(end) => epoch.tag(1).u64(end).done(),
    }
}

fn mark_key(log: &LogId, partition: Partition, epoch: EpochId) -> Vec<u8> {
    Key::default().text(log.as_str()).u32(partition).raw(epoch.0.as_bytes()).done()
}

fn expiry(stamp: Stamp) -> Micros {
    now().saturating_add(Micros::from(stamp.ttl) * 1_000_000)
}

#[async_trait]
impl SpeedChunks for EmbeddedStore {
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError> {
        let expires_at = expiry(stamp);
        let pack = |(key, body): &(SpeedKey, Bytes)| {
            let chunk = packed("speed chunk", &(), Some(expires_at), body)?;
            Ok((slice_of(key.slot), chunk_key(key), chunk))
        };
        let rows: Vec<_> = chunks.iter().map(pack).collect::<Result<_, _>>().map_err(Failure::store)?;
        let put = self.engine.write(move |tx| {
            for (slice, key, chunk) in rows {
                note_slice(tx, slice, expires_at)?;
                tx.put(slice, key, chunk);
            }
            Ok(())
        });
        put.await.map_err(Failure::store)
    }

    async fn put_mark(
        &self,
        log: &LogId,
        partition: Partition,
        epoch: EpochId,
        mark: &Mark,
        stamp: Stamp,
    ) -> Result<(), StoreError> {
        let (key, number) = (mark_key(log, partition, epoch), mark.number);
        let row = packed("mark", mark, Some(expiry(stamp)), &[]).map_err(Failure::store)?;
        let put = self.engine.write(move |tx| {
            let later = tx.value::<Mark>(Space::Marks, &key)?.is_some_and(|stored| stored.head.number > number);
            if !later {
                tx.put(Space::Marks, key, row);
            }
            Ok(())
        });
        put.await.map_err(Failure::store)
    }

    async fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        let key = mark_key(log, partition, epoch);
        let mark = self.engine.read(move |db| db.value(Space::Marks, &key)).await.map_err(Failure::store)?;
        Ok(mark.map(|value| value.head))
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let prefix = epoch_key(view, shard, slot, epoch).tag(0);
        let (from, to) = (prefix.clone().u64(range.start).done(), prefix.clone().u64(range.end).done());
        let deltas = self.engine.read(move |db| {
            let (slice, length) = (slice_of(slot), prefix.done().len());
            let mut deltas = Vec::new();
            for entry in db.scan(slice, from, to) {
                let (key, value) = entry?;
                let sequence = key.get(length..).and_then(|rest| Parts(rest).u64());
                let sequence = sequence.ok_or_else(|| corrupt("speed chunk", &key))?;
                deltas.extend(live::<()>(slice, &key, Some(value))?.map(|value| (sequence, value.body)));
            }
            Ok(deltas)
        });
        deltas.await.map_err(Failure::store)
    }

    async fn whole(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        end: Offset,
    ) -> Result<Option<Bytes>, StoreError> {
        let key = chunk_key(&SpeedKey { view: view.clone(), shard, slot, epoch, part: Part::Whole(end) });
        let whole = self.engine.read(move |db| db.value::<()>(slice_of(slot), &key)).await.map_err(Failure::store)?;
        Ok(whole.map(|value| value.body))
    }
}
