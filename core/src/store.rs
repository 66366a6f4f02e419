//! The view store: ledgers, speed chunks, batch chunks and small documents.
//!
//! Two implementations: the embedded one and Cassandra. Both pass `conformance::store_suite`.

use std::{collections::BTreeMap, ops::Range};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    cut::Cut,
    ids::{EpochId, Generation, LogId, Micros, Offset, Partition, Shard, ViewId},
    ledger::{Change, Epoch, Ledger},
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store does not answer; a read may be repeated, and so may a write whose key fixes its bytes.
    #[error("view store is unreachable: {0}")]
    Unavailable(String),
    /// A compare-and-set may or may not have been applied: read back before deciding.
    #[error("outcome of the conditional write is unknown: {0}")]
    Unknown(String),
    #[error("{what} does not decode: {why}")]
    Corrupt { what: String, why: String },
    #[error("view store is full: {0}")]
    Full(String),
    #[error("view store refuses: {0}")]
    Refused(String),
}

/// How a ledger is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// One local quorum: enough for readers, who check what they got.
    Quorum,
    /// Linearised with conditional writes: for owners, and for readers whose check failed.
    Serial,
}

/// The answer to a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Applied,
    Refused,
}

/// Ledgers, and the manifest of epochs that left them.
#[async_trait]
pub trait Ledgers: Send + Sync {
    /// The ledger with all its epochs; version 0 and no epoch if it was never written.
    async fn load(&self, log: &LogId, partition: Partition, consistency: Consistency) -> Result<Ledger, StoreError>;

    /// Applies [`Ledger::apply`] if the stored version is the expected one.
    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError>;

    /// Notes sealed epochs for ever. Repeating an epoch changes nothing.
    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError>;

    /// Noted epochs that start within `range`, in offset order.
    async fn archived(&self, log: &LogId, partition: Partition, range: Range<Offset>)
    -> Result<Vec<Epoch>, StoreError>;
}

/// What a speed chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// The states folded since the flush before; dense from 0 within (epoch, view, shard).
    Delta(u64),
    /// All states of the epoch up to this end.
    Whole(Offset),
}

/// Where a speed chunk is stored. The same key always has the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SpeedKey {
    pub view: ViewId,
    pub shard: Shard,
    /// The minute in which the epoch was opened, see [`slot`].
    pub slot: i64,
    pub epoch: EpochId,
    pub part: Part,
}

/// The slot of an epoch: minutes since the Unix epoch. It bounds the partitions of the speed tables.
pub fn slot(opened_at: Micros) -> i64 {
    opened_at.div_euclid(60_000_000)
}

/// How far an epoch's flushed chunks reach: beyond it nothing exists for a reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Position after the last folded record.
    pub end: Offset,
    /// Number of delta chunks per (view, shard): sequences `0..n` exist. A view that is not named is not folded by the
    /// epoch, as its writer's definitions do not have it (any more): that is not emptiness.
    pub sequences: BTreeMap<(ViewId, Shard), u64>,
    /// Largest event time folded, if any was.
    pub watermark: Option<Micros>,
    /// Append time of the last folded record.
    pub appended_at: Option<Micros>,
    /// Grows by one with every mark of the epoch.
    pub number: u64,
    /// Offsets of the epoch below `end` that the log had lost before they were read.
    pub lost: Option<(Offset, Offset)>,
}

/// How a speed write is stamped and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Write timestamp, near real time: from the epoch's opening time and the chunk's or mark's number.
    pub at: Micros,
    /// Seconds.
    pub ttl: u32,
}

/// Short-lived chunks of the speed layer. Nothing is deleted by hand: expiry is by TTL.
#[async_trait]
pub trait SpeedChunks: Send + Sync {
    /// Writes chunks; all are acknowledged when this returns. Writing a chunk again with the same stamp only renews its TTL.
    async fn put(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError>;

    /// Replaces the epoch's mark. Only the epoch's writer calls it, with growing numbers.
    async fn put_mark(
        &self,
        log: &LogId,
        partition: Partition,
        epoch: EpochId,
        mark: &Mark,
        stamp: Stamp,
    ) -> Result<(), StoreError>;

    async fn mark(&self, log: &LogId, partition: Partition, epoch: EpochId) -> Result<Option<Mark>, StoreError>;

    /// Delta chunks with sequences in `range`, in order. Absent ones are left out: the caller counts.
    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        range: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError>;

    /// The consolidated chunk that ends at `end`.
    async fn whole(
        &self,
        view: &ViewId,
        shard: Shard,
        slot: i64,
        epoch: EpochId,
        end: Offset,
    ) -> Result<Option<Bytes>, StoreError>;
}

/// Where a batch chunk is stored: one series × one period of buckets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    pub view: ViewId,
    /// Width of the rollup's buckets.
    pub width: Micros,
    /// Recomputes write under a new base.
    pub base: u32,
    pub shard: Shard,
    /// Start of the period; a multiple of [`period`] of the width.
    pub period: Micros,
    pub series: Bytes,
}

/// Length of the period that one batch chunk covers: 60 buckets of the rollup.
pub const fn period(width: Micros) -> Micros {
    width * 60
}

/// A batch chunk as stored. It is exact for itself at every moment: everything below its cut, nothing above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRow {
    pub key: BatchKey,
    pub generation: Generation,
    /// Write timestamp of the generation: greater than every earlier generation's of the view.
    pub stamp: Micros,
    pub cut: Cut,
    /// Buckets and states, as `lamina-metric` encodes them.
    pub body: Bytes,
    /// When retention ends, if it does.
    pub expires_at: Option<Micros>,
}

/// Long-lived chunks of the batch layer.
#[async_trait]
pub trait BatchChunks: Send + Sync {
    /// Writes chunks; where a chunk of a later stamp stands, it stays. All are acknowledged when this returns.
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError>;

    /// Chunks of one series, or of all, whose period starts within `periods`, ordered by (series, period).
    async fn scan(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: Range<Micros>,
        series: Option<&[u8]>,
    ) -> Result<Vec<BatchRow>, StoreError>;

    /// Removes the chunks whose period starts within `periods`, but none of a later stamp than `upto`. For bases that
    /// nothing refers to: a chunk that readers may look for is never removed.
    async fn remove_chunks(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: Range<Micros>,
        upto: Micros,
    ) -> Result<(), StoreError>;
}

/// A document and the version that a change of it must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub version: u64,
    pub value: Bytes,
}

/// Small values that change by compare-and-set: definitions, states of views, jobs, leases.
#[async_trait]
pub trait Documents: Send + Sync {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError>;

    /// Writes version `expected + 1`; `expected` 0 means that there must be none.
    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError>;

    /// All documents of a kind, by key.
    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError>;

    /// Removes the document if its version is `expected`.
    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError>;
}

/// A view store whole, as the layers are given it.
pub trait Store: Ledgers + SpeedChunks + BatchChunks + Documents {}

impl<T: Ledgers + SpeedChunks + BatchChunks + Documents> Store for T {}
