//! Speed chunks and marks: upserts with a timestamp and a TTL, read by key.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    EpochId, LogId, Mark, Offset, Part, Partition, Shard, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId,
};
use scylla::statement::prepared::PreparedStatement;

use super::{
    CassandraStore,
    cell::{clamped, pack, signed, unpack, unsigned},
    session::{Connection, all},
};

const DELTA: i8 = 0;
const WHOLE: i8 = 1;
/// Cassandra's longest TTL: 20 years.
const MAX_TTL: u32 = 630_720_000;

pub(super) struct SpeedStatements {
    put: PreparedStatement,
    range: PreparedStatement,
    one: PreparedStatement,
    put_mark: PreparedStatement,
    mark: PreparedStatement,
}

impl SpeedStatements {
    pub(super) async fn prepare(connection: &Connection) -> Result<Self, StoreError> {
        let put = "UPDATE {}.speed_chunks USING TIMESTAMP ? AND TTL ? SET chunk = ? \
                   WHERE view_id = ? AND shard = ? AND slot = ? AND epoch = ? AND kind = ? AND number = ?";
        let range = "SELECT number, chunk FROM {}.speed_chunks \
                     WHERE view_id = ? AND shard = ? AND slot = ? AND epoch = ? AND kind = 0 AND number >= ? AND number < ?";
        let one = "SELECT chunk FROM {}.speed_chunks \
                   WHERE view_id = ? AND shard = ? AND slot = ? AND epoch = ? AND kind = 1 AND number = ?";
        let put_mark = "UPDATE {}.speed_marks USING TIMESTAMP ? AND TTL ? SET mark = ? \
                        WHERE log = ? AND partition_id = ? AND epoch = ?";
        let mark = "SELECT mark FROM {}.speed_marks WHERE log = ? AND partition_id = ? AND epoch = ?";
        Ok(Self {
            put: connection.prepare_upsert(put).await?,
            range: connection.prepare(range).await?,
            one: connection.prepare(one).await?,
            put_mark: connection.prepare_upsert(put_mark).await?,
            mark: connection.prepare(mark).await?,
        })
    }
}

/// A TTL as Cassandra takes it. 0 would mean "for ever", which no speed chunk may live.
fn ttl(stamp: Stamp) -> Result<i32, StoreError> {
    if stamp.ttl == 0 {
        return Err(StoreError::Refused("a speed chunk needs a TTL of one second or more".to_owned()));
    }
    Ok(i32::try_from(stamp.ttl.min(MAX_TTL)).unwrap_or(i32::MAX))
}

#[async_trait]
impl SpeedChunks for CassandraStore {
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError> {
        let open = self.opened().await?;
        let ttl = ttl(stamp)?;
        let write = |(key, chunk): &(SpeedKey, Bytes)| {
            let SpeedKey { view, shard, slot, epoch, part } = key.clone();
            let chunk = chunk.clone();
            async move {
                let (kind, number) = match part {
                    Part::Delta(sequence) => (DELTA, signed(sequence)?),
                    Part::Whole(end) => (WHOLE, signed(end)?),
                };
                let row = (stamp.at, ttl, chunk, view.as_str(), i64::from(shard), slot, epoch.0, kind, number);
                open.connection.upsert(&open.speed.put, row).await
            }
        };
        all(chunks.iter().map(write)).await
    }

    async fn put_mark(
        &self,
        log: &LogId,
        partition: Partition,
        epoch: EpochId,
        mark: &Mark,
        stamp: Stamp,
    ) -> Result<(), StoreError> {
        let open = self.opened().await?;
        let row = (stamp.at, ttl(stamp)?, pack(mark)?, log.as_str(), i64::from(partition), epoch.0);
        open.connection.upsert(&open.speed.put_mark, row).await
    }

    async fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError> {
        let open = self.opened().await?;
        let key = (log.as_str(), i64::from(partition), epoch.0);
        let rows: Vec<(Option<Vec<u8>>,)> = open.connection.rows(&open.speed.mark, key).await?;
        let cell = rows.into_iter().find_map(|(cell,)| cell);
        let what = || format!("table speed_marks, log {log} partition {partition} epoch {epoch}");
        cell.map(|cell| unpack(&cell, what)).transpose()
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let open = self.opened().await?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let key = (view.as_str(), i64::from(shard), slot, epoch.0, clamped(range.start), clamped(range.end));
        let rows: Vec<(i64, Option<Vec<u8>>)> = open.connection.rows(&open.speed.range, key).await?;
        let what = || format!("table speed_chunks, view {view} shard {shard} slot {slot} epoch {epoch}");
        let chunks = rows.into_iter().filter_map(|(number, chunk)| Some((number, chunk?)));
        chunks.map(|(number, chunk)| Ok((unsigned(number, what)?, Bytes::from(chunk)))).collect()
    }

    async fn whole(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        end: Offset,
    ) -> Result<Option<Bytes>, StoreError> {
        let open = self.opened().await?;
        let key = (view.as_str(), i64::from(shard), slot, epoch.0, signed(end)?);
        let rows: Vec<(Option<Vec<u8>>,)> = open.connection.rows(&open.speed.one, key).await?;
        Ok(rows.into_iter().find_map(|(chunk,)| chunk).map(Bytes::from))
    }
}
