//! Reading: view state, then ledgers with their marks, then speed, then batch; and again if they do not fit.

use std::{collections::BTreeMap, ops::Range};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};

use crate::{
    cut::Cut,
    generation::{self, Published},
    ids::{Generation, LogId, Micros, Partition, Shard, ViewId},
    ledger::Ledger,
    rules::{self, Rule},
    snapshot::{Snapshot, Stale, Taken, Wanted, WantedPart},
    store::{Consistency, Documents, Ledgers, Mark, SpeedChunks, StoreError},
};

/// How often inputs are taken again before the read gives up.
const ATTEMPTS: u32 = 8;
/// Reads of one query that are under way at once.
const PARALLEL: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A topic was made again, and the definitions do not know it yet.
    #[error("view {view} counts offsets of another topic than {log}; its metric gets a new version within seconds")]
    OtherLog { view: ViewId, log: LogId },
    /// A chunk that ledger or mark name is not there: an error, never emptiness.
    #[error("speed chunk of epoch {epoch} in partition {partition}, shard {shard} of view {view} is not in the store")]
    ChunkMissing { view: ViewId, shard: Shard, partition: Partition, epoch: crate::EpochId },
    #[error("inputs kept changing: {ATTEMPTS} attempts did not fit together")]
    NeverSettled,
}

/// Where decoded chunks come from: the store, or a cache in front of it.
#[async_trait]
pub trait Chunks: Send + Sync {
    type Speed: Send;
    type Batch: Send;

    /// The consolidated chunk of a sealed epoch. It never changes, so it may be cached as it is.
    async fn whole(&self, view: &ViewId, shard: Shard, wanted: &Wanted) -> Result<Option<Self::Speed>, StoreError>;

    /// Delta chunks `range` of an open epoch, in order; absent ones are left out.
    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        wanted: &Wanted,
        range: Range<u64>,
    ) -> Result<Vec<Self::Speed>, StoreError>;

    /// Batch chunks. One that is cached serves only the published generation under which it was read.
    async fn batch(&self, scan: &BatchScan<'_>) -> Result<Vec<Self::Batch>, StoreError>;

    fn cut(batch: &Self::Batch) -> &Cut;
}

/// Which batch chunks a reader wants.
#[derive(Clone, Debug)]
pub struct BatchScan<'a> {
    /// The published generation of the snapshot.
    pub generation: Generation,
    pub view: &'a ViewId,
    pub width: Micros,
    pub base: u32,
    pub shard: Shard,
    /// Starts of periods, half-open.
    pub periods: Range<Micros>,
    pub series: Option<&'a [u8]>,
}

/// What a query asks of one view.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub log: &'a LogId,
    pub partitions: &'a [Partition],
    pub view: &'a ViewId,
    /// The revision since which the view counts epochs.
    pub since: u64,
    pub shards: &'a [Shard],
    /// Width of the rollup to read from batch.
    pub width: Micros,
    /// Starts of batch periods to read, half-open.
    pub periods: Range<Micros>,
    /// Of batch these series only, each with its shard; `None` is all series of the shards.
    pub series: Option<&'a [(Shard, Bytes)]>,
    /// The time by which it is judged what may have expired; [`Micros::MIN`] takes everything for alive.
    pub now: Micros,
}

/// A speed chunk with what decides whether it counts.
#[derive(Clone, Debug)]
pub struct Piece<S> {
    pub partition: Partition,
    /// Start offset of its epoch.
    pub start: u64,
    pub chunk: S,
}

/// Inputs that fit together.
#[derive(Clone, Debug)]
pub struct Inputs<S, B> {
    pub snapshot: Snapshot,
    pub speed: Vec<Piece<S>>,
    pub batch: Vec<B>,
}

/// Takes inputs until they fit together.
///
/// # Errors
/// As the store; [`ReadError::ChunkMissing`] if a chunk that counts is gone.
pub async fn read<D, C>(store: &D, chunks: &C, request: &Request<'_>) -> Result<Inputs<C::Speed, C::Batch>, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
    C: Chunks + ?Sized,
{
    let mut inputs = read_together(store, chunks, std::slice::from_ref(request)).await?;
    // As many inputs as requests.
    inputs.pop().ok_or(ReadError::NeverSettled)
}

/// Takes the inputs of several requests of one log until all fit together: the ledgers are taken once, so that all fold the
/// same prefix of the log. Views and ranges may differ; log and partitions are those of the first request.
///
/// # Errors
/// As [`read`].
pub async fn read_together<D, C>(
    store: &D,
    chunks: &C,
    requests: &[Request<'_>],
) -> Result<Vec<Inputs<C::Speed, C::Batch>>, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
    C: Chunks + ?Sized,
{
    let mut missing = None;
    for attempt in 0..ATTEMPTS {
        match attempt_read(store, chunks, requests, attempt > 0).await? {
            Attempt::Fits(inputs) => return Ok(inputs),
            Attempt::Stale => missing = None,
            Attempt::Missing(error) => missing = Some(error),
        }
    }
    Err(missing.unwrap_or(ReadError::NeverSettled))
}

/// Reads to be made side by side. Boxed, so that the whole is `Send` for every lifetime, as a server's handlers need.
type Reads<'a, T> = Vec<BoxFuture<'a, Result<T, StoreError>>>;

enum Attempt<S, B> {
    Fits(Vec<Inputs<S, B>>),
    Stale,
    /// Perhaps the ledger moved on and the chunk expired in between.
    Missing(ReadError),
}

async fn attempt_read<D, C>(
    store: &D,
    chunks: &C,
    requests: &[Request<'_>],
    again: bool,
) -> Result<Attempt<C::Speed, C::Batch>, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
    C: Chunks + ?Sized,
{
    let Some(snapshots) = take_fitting(store, requests, again).await? else { return Ok(Attempt::Stale) };
    let mut inputs = Vec::with_capacity(requests.len());
    if !rules::on(Rule::SpeedBeforeBatch) {
        for (request, snapshot) in requests.iter().zip(snapshots) {
            let batch = read_batch(chunks, request, &snapshot).await?;
            let Ok(speed) = read_speed(chunks, request, &snapshot).await? else { return Ok(Attempt::Stale) };
            inputs.push(Inputs { snapshot, speed, batch });
        }
        return Ok(Attempt::Fits(inputs));
    }
    for (request, snapshot) in requests.iter().zip(snapshots) {
        match read_speed(chunks, request, &snapshot).await? {
            Ok(speed) => inputs.push(Inputs { snapshot, speed, batch: Vec::new() }),
            Err(error) => return Ok(Attempt::Missing(error)),
        }
    }
    for (request, input) in requests.iter().zip(&mut inputs) {
        input.batch = read_batch(chunks, request, &input.snapshot).await?;
        if !input.batch.iter().all(|chunk| input.snapshot.admits(C::cut(chunk))) {
            return Ok(Attempt::Stale);
        }
    }
    Ok(Attempt::Fits(inputs))
}

/// What the speed layer has for a request, without reading batch: enough to tell whether an answer still stands. `None` if what
/// was taken does not fit together at once.
///
/// # Errors
/// As the store.
pub async fn peek<D, C>(
    store: &D,
    chunks: &C,
    request: &Request<'_>,
) -> Result<Option<Inputs<C::Speed, C::Batch>>, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
    C: Chunks + ?Sized,
{
    let taken = take_fitting(store, std::slice::from_ref(request), false).await?.and_then(|mut taken| taken.pop());
    let Some(snapshot) = taken else { return Ok(None) };
    let speed = read_speed(chunks, request, &snapshot).await?.ok();
    Ok(speed.map(|speed| Inputs { snapshot, speed, batch: Vec::new() }))
}

/// Snapshots of all requests over ledgers taken once, or `None` if one of them is stale.
async fn take_fitting<D>(store: &D, requests: &[Request<'_>], again: bool) -> Result<Option<Vec<Snapshot>>, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
{
    let snapshots = take_together(store, requests, again).await?;
    for (request, snapshot) in requests.iter().zip(&snapshots) {
        if snapshot.check() == Err(Stale) || was_published_meanwhile(store, request, snapshot).await? {
            return Ok(None);
        }
    }
    Ok(Some(snapshots))
}

/// The view's published generation, then each ledger with the mark of its open epoch.
///
/// # Errors
/// As the store.
pub async fn take<D>(store: &D, request: &Request<'_>, again: bool) -> Result<Snapshot, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
{
    let mut taken = take_together(store, std::slice::from_ref(request), again).await?;
    taken.pop().ok_or(ReadError::NeverSettled)
}

/// The published generation of every view, then each ledger once.
async fn take_together<D>(store: &D, requests: &[Request<'_>], again: bool) -> Result<Vec<Snapshot>, ReadError>
where
    D: Ledgers + SpeedChunks + Documents + ?Sized,
{
    let Some(first) = requests.first() else { return Ok(Vec::new()) };
    let mut published = Vec::with_capacity(requests.len());
    for request in requests {
        let (_, state) = generation::load_view(store, request.view).await?;
        if !state.published.is_of(request.log) {
            return Err(ReadError::OtherLog { view: request.view.clone(), log: request.log.clone() });
        }
        published.push(state.published);
    }
    let consistency = if again { Consistency::Serial } else { Consistency::Quorum };
    let ledgers = first.partitions.iter().map(|&partition| {
        let taking = async move {
            let ledger = store.load(first.log, partition, consistency).await?;
            let mark = open_mark(store, first.log, partition, &ledger).await?;
            Ok::<_, StoreError>((partition, Taken { ledger, mark }))
        };
        taking.boxed()
    });
    let ledgers: Reads<'_, _> = ledgers.collect();
    let taken: BTreeMap<Partition, Taken> = stream::iter(ledgers).buffer_unordered(PARALLEL).try_collect().await?;
    let of = |(request, published): (&Request<'_>, Published)| Snapshot {
        now: request.now,
        published,
        since: request.since,
        taken: taken.clone(),
    };
    Ok(requests.iter().zip(published).map(of).collect())
}

/// Whether the view's first publication came between the two reads, and what it covers has left the ledgers.
async fn was_published_meanwhile<D>(store: &D, request: &Request<'_>, snapshot: &Snapshot) -> Result<bool, StoreError>
where
    D: Documents + ?Sized,
{
    if !snapshot.begins_late() {
        return Ok(false);
    }
    let (_, state) = generation::load_view(store, request.view).await?;
    Ok(state.published.generation > 0)
}

/// The mark of a ledger's open epoch.
///
/// # Errors
/// As the store.
pub async fn open_mark<D>(
    store: &D,
    log: &LogId,
    partition: Partition,
    ledger: &Ledger,
) -> Result<Option<Mark>, StoreError>
where
    D: SpeedChunks + ?Sized,
{
    let Some(open) = ledger.open() else { return Ok(None) };
    store.mark(log, partition, open.id).await
}

async fn read_speed<C: Chunks + ?Sized>(
    chunks: &C,
    request: &Request<'_>,
    snapshot: &Snapshot,
) -> Result<Result<Vec<Piece<C::Speed>>, ReadError>, StoreError> {
    let wanted = snapshot.wanted();
    let pairs = wanted.iter().flat_map(|wanted| request.shards.iter().map(move |&shard| (wanted, shard)));
    let reads = pairs.map(|(wanted, shard)| {
        let reading = async move {
            let found = read_epoch(chunks, request.view, shard, wanted).await?;
            let piece = |chunk| Piece { partition: wanted.partition, start: wanted.start, chunk };
            let missing = || ReadError::ChunkMissing {
                view: request.view.clone(),
                shard,
                partition: wanted.partition,
                epoch: wanted.epoch,
            };
            Ok::<_, StoreError>(found.map(|found| found.into_iter().map(piece).collect::<Vec<_>>()).ok_or_else(missing))
        };
        reading.boxed()
    });
    let reads: Reads<'_, _> = reads.collect();
    let found: Vec<Result<Vec<_>, ReadError>> = stream::iter(reads).buffered(PARALLEL).try_collect().await?;
    Ok(found.into_iter().collect::<Result<Vec<_>, _>>().map(|pieces| pieces.into_iter().flatten().collect()))
}

/// All chunks of one epoch in one shard, or `None` if one that must be there is not.
async fn read_epoch<C: Chunks + ?Sized>(
    chunks: &C,
    view: &ViewId,
    shard: Shard,
    wanted: &Wanted,
) -> Result<Option<Vec<C::Speed>>, StoreError> {
    match &wanted.part {
        WantedPart::Whole(_) => {
            let found = chunks.whole(view, shard, wanted).await?.map(|chunk| vec![chunk]);
            Ok(found.or_else(|| (!rules::on(Rule::MissingIsAnError)).then(Vec::new)))
        }
        WantedPart::Deltas(mark) => {
            let named = mark.sequences.get(&(view.clone(), shard)).copied();
            if named.is_none() && rules::on(Rule::UnnamedIsAnError) {
                return Ok(None);
            }
            let named = named.unwrap_or(0);
            let upto = if rules::on(Rule::MarkBounds) { named } else { u64::MAX };
            if upto == 0 {
                return Ok(Some(Vec::new()));
            }
            let found = chunks.deltas(view, shard, wanted, 0..upto).await?;
            let whole = found.len() as u64 >= named || !rules::on(Rule::MissingIsAnError);
            Ok(whole.then_some(found))
        }
    }
}

async fn read_batch<C: Chunks + ?Sized>(
    chunks: &C,
    request: &Request<'_>,
    snapshot: &Snapshot,
) -> Result<Vec<C::Batch>, StoreError> {
    let published = &snapshot.published;
    let generation = if rules::on(Rule::FreshBatchChunks) { published.generation } else { 0 };
    let ranges = base_ranges(&published.bases, &request.periods);
    let places: Vec<(Shard, Option<&[u8]>)> = match request.series {
        Some(series) => series.iter().map(|(shard, series)| (*shard, Some(&**series))).collect(),
        None => request.shards.iter().map(|&shard| (shard, None)).collect(),
    };
    let scans = ranges.iter().flat_map(|range| places.iter().map(move |&place| (range, place)));
    let reads = scans.map(|((periods, base), (shard, series))| {
        let (periods, base) = (periods.clone(), *base);
        let scan = BatchScan { generation, view: request.view, width: request.width, base, shard, periods, series };
        async move { chunks.batch(&scan).await }.boxed()
    });
    let reads: Reads<'_, _> = reads.collect();
    let found: Vec<Vec<C::Batch>> = stream::iter(reads).buffered(PARALLEL).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Splits `periods` where recomputed ranges begin and end: each part with the base it is stored under.
pub fn base_ranges(bases: &[(Range<Micros>, u32)], periods: &Range<Micros>) -> Vec<(Range<Micros>, u32)> {
    let inside = |at: &Micros| periods.start < *at && *at < periods.end;
    let mut edges: Vec<Micros> = bases.iter().flat_map(|(range, _)| [range.start, range.end]).filter(inside).collect();
    edges.extend([periods.start, periods.end]);
    edges.sort_unstable();
    edges.dedup();
    let base_at = |at: Micros| bases.iter().find(|(range, _)| range.contains(&at)).map_or(0, |(_, base)| *base);
    edges.windows(2).map(|pair| (pair[0]..pair[1], base_at(pair[0]))).collect()
}

#[cfg(test)]
mod tests;
