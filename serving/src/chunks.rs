//! Decoded chunks, and the caches in front of the store.
//!
//! # Invariants
//! - A consolidated chunk of a sealed epoch is cached as it is: it never changes.
//! - A delta chunk is cached under its epoch and sequence: the same key always has the same bytes.
//! - Batch chunks are cached under the published generation that the reader saw, and serve only that one.
//! - Each cache is bounded by an estimate of the memory that its values hold; together they stay within the bound given.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use lamina_core::{
    Cut, EpochId, Generation, Micros, Offset, Shard, ViewId,
    offload::offload,
    read::{BatchScan, Chunks},
    snapshot::{Wanted, WantedPart},
    store::{BatchRow, Store, StoreError},
};
use lamina_metric::{BatchChunk, Series, SpeedChunk};
use moka::future::Cache;

/// A batch chunk with its place and its own cut.
#[derive(Debug)]
pub(crate) struct BatchPart {
    pub(crate) series: Series,
    pub(crate) period: Micros,
    pub(crate) cut: Cut,
    pub(crate) chunk: BatchChunk,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ScanKey {
    generation: Generation,
    view: ViewId,
    width: Micros,
    base: u32,
    shard: Shard,
    periods: Range<Micros>,
    series: Option<Vec<u8>>,
}

type Deltas = Arc<Vec<Arc<SpeedChunk>>>;
type Parts = Arc<Vec<Arc<BatchPart>>>;

/// The store with caches in front of it.
pub(crate) struct CachedChunks {
    store: Arc<dyn Store>,
    whole: Cache<(ViewId, Shard, EpochId, Offset), Arc<SpeedChunk>>,
    /// The first delta chunks of an epoch, as many as were needed so far.
    deltas: Cache<(ViewId, Shard, EpochId), Deltas>,
    batch: Cache<ScanKey, Parts>,
}

impl CachedChunks {
    pub(crate) fn new(store: Arc<dyn Store>, bytes: u64) -> Self {
        let weigh = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            store,
            whole: Cache::builder()
                .max_capacity(bytes / 4)
                .weigher(move |_, chunk: &Arc<SpeedChunk>| weigh(speed_bytes(chunk)))
                .build(),
            deltas: Cache::builder()
                .max_capacity(bytes / 4)
                .weigher(move |_, chunks: &Deltas| {
                    weigh(ENTRY + chunks.iter().map(|chunk| speed_bytes(chunk)).sum::<usize>())
                })
                .build(),
            batch: Cache::builder()
                .max_capacity(bytes / 2)
                .weigher(move |key: &ScanKey, parts: &Parts| {
                    let series = key.series.as_ref().map_or(0, Vec::len);
                    weigh(ENTRY + series + parts.iter().map(|part| batch_bytes(part)).sum::<usize>())
                })
                .build(),
        }
    }

    /// Deltas `known.len()..end`, in order and without a gap; fewer if one is absent.
    async fn more_deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        wanted: &Wanted,
        known: &[Arc<SpeedChunk>],
        end: u64,
    ) -> Result<Vec<Arc<SpeedChunk>>, StoreError> {
        let mut all = known.to_vec();
        let from = all.len() as u64;
        for (sequence, bytes) in self.store.deltas(view, shard, wanted.slot, wanted.epoch, from..end).await? {
            if sequence != all.len() as u64 {
                break;
            }
            all.push(Arc::new(decode_speed(view, shard, wanted, &bytes)?));
        }
        Ok(all)
    }
}

#[async_trait]
impl Chunks for CachedChunks {
    type Speed = Arc<SpeedChunk>;
    type Batch = Arc<BatchPart>;

    async fn whole(&self, view: &ViewId, shard: Shard, wanted: &Wanted) -> Result<Option<Self::Speed>, StoreError> {
        let WantedPart::Whole(end) = wanted.part else { return Ok(None) };
        let key = (view.clone(), shard, wanted.epoch, end);
        if let Some(chunk) = self.whole.get(&key).await {
            return Ok(Some(chunk));
        }
        let Some(bytes) = self.store.whole(view, shard, wanted.slot, wanted.epoch, end).await? else { return Ok(None) };
        let chunk = Arc::new(decode_speed(view, shard, wanted, &bytes)?);
        self.whole.insert(key, Arc::clone(&chunk)).await;
        Ok(Some(chunk))
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        wanted: &Wanted,
        range: Range<u64>,
    ) -> Result<Vec<Self::Speed>, StoreError> {
        let key = (view.clone(), shard, wanted.epoch);
        let known = self.deltas.get(&key).await.unwrap_or_default();
        let known = if (known.len() as u64) < range.end {
            let more = Arc::new(self.more_deltas(view, shard, wanted, &known, range.end).await?);
            self.deltas.insert(key, Arc::clone(&more)).await;
            more
        } else {
            known
        };
        let at = |sequence: u64| usize::try_from(sequence).unwrap_or(usize::MAX).min(known.len());
        Ok(known[at(range.start)..at(range.end)].to_vec())
    }

    async fn batch(&self, scan: &BatchScan<'_>) -> Result<Vec<Self::Batch>, StoreError> {
        let key = ScanKey {
            generation: scan.generation,
            view: scan.view.clone(),
            width: scan.width,
            base: scan.base,
            shard: scan.shard,
            periods: scan.periods.clone(),
            series: scan.series.map(<[u8]>::to_vec),
        };
        if let Some(parts) = self.batch.get(&key).await {
            return Ok(parts.to_vec());
        }
        let rows =
            self.store.scan(scan.view, scan.width, scan.base, scan.shard, scan.periods.clone(), scan.series).await?;
        let parts = offload(move || rows.into_iter().map(decode_batch).collect::<Result<Vec<_>, _>>())
            .await
            .map_err(|error| StoreError::Corrupt { what: "a batch chunk".to_owned(), why: error.to_string() })??;
        self.batch.insert(key, Arc::new(parts.clone())).await;
        Ok(parts)
    }

    fn cut(batch: &Self::Batch) -> &Cut {
        &batch.cut
    }
}

fn decode_speed(view: &ViewId, shard: Shard, wanted: &Wanted, bytes: &[u8]) -> Result<SpeedChunk, StoreError> {
    SpeedChunk::decode(bytes).map_err(|error| StoreError::Corrupt {
        what: format!("speed chunk of epoch {} in shard {shard} of view {view}", wanted.epoch),
        why: error.to_string(),
    })
}

fn decode_batch(row: BatchRow) -> Result<Arc<BatchPart>, StoreError> {
    let chunk = BatchChunk::decode(&row.body).map_err(|error| StoreError::Corrupt {
        what: format!("batch chunk of period {} in shard {} of view {}", row.key.period, row.key.shard, row.key.view),
        why: error.to_string(),
    })?;
    let series = Series::from_bytes(row.key.series);
    Ok(Arc::new(BatchPart { series, period: row.key.period, cut: row.cut, chunk }))
}

/// What an entry of a cache takes besides its value: the key, and the cache's own bookkeeping. Nothing found is an entry, too.
const ENTRY: usize = 512;
/// Besides the states: keys, cells of vectors, and what allocations cost.
const OVERHEAD: usize = 64;

fn speed_bytes(chunk: &SpeedChunk) -> usize {
    let series: usize = chunk.series.iter().map(|series| series.as_bytes().len() + OVERHEAD).sum();
    chunk.states.bytes() + series + size_of_val(&*chunk.rows) + OVERHEAD
}

fn batch_bytes(part: &BatchPart) -> usize {
    let cut = part.cut.iter().count() * OVERHEAD;
    part.chunk.states.bytes() + size_of_val(&*part.chunk.buckets) + part.series.as_bytes().len() + cut + 2 * OVERHEAD
}
