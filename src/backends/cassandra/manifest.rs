//! The manifest: epochs that left the ledger, in buckets of offsets.
//!
//! A bucket of 2^16 offsets has at most as many epochs, and a region of 2^32 offsets at most as many buckets, so no
//! partition outgrows 65,536 rows. Long ranges find their buckets through the index.

use std::{collections::BTreeSet, ops::Range};

use lamina_core::{Epoch, LogId, Offset, Partition, StoreError};
use scylla::statement::prepared::PreparedStatement;

use super::{
    cell::{clamped, pack, signed, unpack},
    session::{Connection, all, gather},
};

const BUCKET_BITS: u32 = 16;
const REGION_BITS: u32 = 32;
/// The parent of the regions.
const ROOT: i64 = -1;
/// Up to so many buckets are read without asking the index.
const FEW: i64 = 8;

pub(super) struct ManifestStatements {
    put: PreparedStatement,
    put_index: PreparedStatement,
    range: PreparedStatement,
    children: PreparedStatement,
}

impl ManifestStatements {
    pub(super) async fn prepare(connection: &Connection) -> Result<Self, StoreError> {
        let put = "UPDATE {}.manifest USING TIMESTAMP ? SET epoch = ? \
                   WHERE log = ? AND partition_id = ? AND bucket = ? AND start = ?";
        let put_index = "INSERT INTO {}.manifest_index (log, partition_id, parent, child) VALUES (?, ?, ?, ?) \
                         USING TIMESTAMP ?";
        let range = "SELECT start, epoch FROM {}.manifest \
                     WHERE log = ? AND partition_id = ? AND bucket = ? AND start >= ? AND start < ?";
        let children = "SELECT child FROM {}.manifest_index \
                        WHERE log = ? AND partition_id = ? AND parent = ? AND child >= ? AND child <= ?";
        Ok(Self {
            put: connection.prepare_upsert(put).await?,
            put_index: connection.prepare_upsert(put_index).await?,
            range: connection.prepare(range).await?,
            children: connection.prepare(children).await?,
        })
    }

    pub(super) async fn archive(
        &self,
        connection: &Connection,
        log: &LogId,
        partition: Partition,
        epochs: &[Epoch],
    ) -> Result<(), StoreError> {
        let Some(first) = epochs.first() else { return Ok(()) };
        let (log, partition) = (log.as_str(), i64::from(partition));
        let mut index = BTreeSet::new();
        let mut rows = Vec::with_capacity(epochs.len());
        for epoch in epochs {
            let start = signed(epoch.start)?;
            index.insert((ROOT, start >> REGION_BITS));
            index.insert((start >> REGION_BITS, start >> BUCKET_BITS));
            rows.push((epoch.opened_at, pack(epoch)?, start));
        }
        let at = first.opened_at;
        let entry = |(parent, child)| connection.upsert(&self.put_index, (log, partition, parent, child, at));
        all(index.into_iter().map(entry)).await?;
        // A repaired epoch was opened later than the one it replaces, and so it stays.
        let row = |(at, cell, start): (i64, Vec<u8>, i64)| {
            connection.upsert(&self.put, (at, cell, log, partition, start >> BUCKET_BITS, start))
        };
        all(rows.into_iter().map(row)).await
    }

    pub(super) async fn archived(
        &self,
        connection: &Connection,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        let (start, end) = (clamped(range.start), clamped(range.end));
        if start >= end {
            return Ok(Vec::new());
        }
        let (first, last) = (start >> BUCKET_BITS, (end - 1) >> BUCKET_BITS);
        let buckets = if last - first < FEW {
            (first..=last).collect()
        } else {
            self.buckets(connection, log, partition, start..end).await?
        };
        let partition = i64::from(partition);
        let read = |bucket| async move {
            let key = (log.as_str(), partition, bucket, start, end);
            let rows: Vec<(i64, Option<Vec<u8>>)> = connection.rows(&self.range, key).await?;
            let what = |start| format!("table manifest, log {log} partition {partition} start {start}");
            let cells = rows.into_iter().filter_map(|(start, cell)| Some((start, cell?)));
            cells.map(|(start, cell)| unpack(&cell, || what(start))).collect::<Result<Vec<Epoch>, _>>()
        };
        gather(buckets.into_iter().map(read)).await
    }

    /// The buckets that exist, in order, of those that the range touches.
    async fn buckets(
        &self,
        connection: &Connection,
        log: &LogId,
        partition: Partition,
        range: Range<i64>,
    ) -> Result<Vec<i64>, StoreError> {
        let (log, partition) = (log.as_str(), i64::from(partition));
        let children = |parent: i64, bits: u32| {
            let key = (log, partition, parent, range.start >> bits, (range.end - 1) >> bits);
            async move {
                let rows: Vec<(i64,)> = connection.rows(&self.children, key).await?;
                Ok(rows.into_iter().map(|(child,)| child).collect())
            }
        };
        let regions: Vec<i64> = children(ROOT, REGION_BITS).await?;
        gather(regions.into_iter().map(|region| children(region, BUCKET_BITS))).await
    }
}
