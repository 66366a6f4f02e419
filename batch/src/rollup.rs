//! One view at one width: states by (series, bucket), gathered from the fold and from the chunks that they extend, and
//! written as chunks.
//!
//! # Invariants
//! - A chunk holds exactly what lies below its cut: it starts from what is stored (or from nothing, when rebuilt) and
//!   takes only epochs that start at or after the later of its own cut and the published one.
//! - A chunk that took nothing is not written.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lamina_core::{
    BatchChunks, BatchKey, BatchRow, Cut, Micros, Shard, Store,
    rules::{self, Rule},
    store::period,
};
use lamina_metric::{BatchChunk, FastHash, Layout, Metric, Series, States};

use crate::{BatchError, cap::Named, fold::Groups, names::EpochKey, open::Target};

/// Store calls of one rollup that are under way at once.
const PARALLEL: usize = 8;
/// Up to so many chunks of one shard and period are read one by one; more are read by one scan.
const SINGLE_READS: usize = 8;
/// Chunks that are written together.
const WRITTEN_TOGETHER: usize = 256;
/// How much longer than needed a chunk is kept, so that the horizon, which each run raises, passes before it goes.
const GRACE: Micros = 7 * 24 * 3_600_000_000;

/// A series' number within the rollup.
type Number = u32;
/// A chunk: series and start of its period.
type Place = (Number, Micros);

/// A chunk's series, period, buckets and states, ready to be written or compared.
pub(crate) struct Chunk {
    pub(crate) series: Series,
    pub(crate) period: Micros,
    pub(crate) body: BatchChunk,
}

#[derive(Default)]
struct State {
    /// From where it is extended, if that is not the published cut (or nothing, when rebuilt).
    own: Option<Cut>,
    /// Whether it took something.
    grew: bool,
}

pub(crate) struct Rollup {
    target: Arc<Target>,
    width: Micros,
    period: Micros,
    numbers: HashMap<Series, Number, FastHash>,
    series: Vec<Series>,
    chunks: HashMap<Place, State, FastHash>,
    index: HashMap<(Number, Micros), usize, FastHash>,
    keys: Vec<(Number, Micros)>,
    states: States,
    layout: Layout,
    /// Events that were left out because their chunk is past retention.
    pub(crate) expired: u64,
}

impl Rollup {
    pub(crate) fn new(metric: &Metric, target: Arc<Target>, width: Micros) -> Self {
        let layout = Layout::of(metric);
        Self {
            target,
            width,
            period: period(width),
            numbers: HashMap::default(),
            series: Vec::new(),
            chunks: HashMap::default(),
            index: HashMap::default(),
            keys: Vec::new(),
            states: States::new(&layout),
            layout,
            expired: 0,
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn width(&self) -> Micros {
        self.width
    }

    /// Takes the rows of `groups` whose buckets lie within `window`; `named` has each row's series in this view.
    pub(crate) async fn take(
        &mut self,
        store: &dyn Store,
        groups: &Groups,
        named: &Named,
        window: &Range<Micros>,
    ) -> Result<(), BatchError> {
        let (rows, places) = self.wanted(groups, named, window)?;
        let unknown: HashSet<Place, FastHash> =
            places.iter().filter(|place| !self.chunks.contains_key(place)).copied().collect();
        self.load(store, unknown).await?;
        let mut into = Vec::with_capacity(rows.len());
        let mut kept = Vec::with_capacity(rows.len());
        for (row, place) in rows.into_iter().zip(places) {
            let Some(chunk) = self.chunks.get_mut(&place) else { continue };
            if chunk.own.as_ref().is_some_and(|own| covers(own, groups.epochs[row])) {
                continue;
            }
            chunk.grew = true;
            kept.push(row);
            into.push(slot(&mut self.index, &mut self.keys, (place.0, floor(groups.buckets[row], self.width))));
        }
        self.states.resize(self.keys.len());
        if kept.len() == groups.len() {
            self.states.merge(&groups.states, &into)?;
        } else {
            self.states.merge(&groups.states.take(&kept), &into)?;
        }
        Ok(())
    }

    /// The rows that the published generation does not cover, with the chunk of each.
    fn wanted(
        &mut self,
        groups: &Groups,
        named: &Named,
        window: &Range<Micros>,
    ) -> Result<(Vec<usize>, Vec<Place>), BatchError> {
        let earliest = groups.buckets.iter().min().map_or(Micros::MAX, |&bucket| floor(bucket, self.period));
        let kept_from = self.target.kept_from(self.width, earliest, &named.series.iter().collect::<Vec<_>>())?;
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        let mut numbers: Vec<Option<Number>> = vec![None; named.series.len()];
        for (row, &series) in named.of_row.iter().enumerate() {
            let bucket = groups.buckets[row];
            let start = floor(bucket, self.period);
            let epoch = groups.epochs[row];
            let covered = covers(&self.target.published.cut, epoch);
            let above = !self.target.is_snapshot() && !covers(&self.target.opened.cut, epoch);
            if above || !window.contains(&bucket) || (covered && !self.target.opened.rebuilds(start)) {
                continue;
            }
            if start < kept_from[series as usize] {
                self.expired += if covered { 0 } else { groups.states.count(row) };
                continue;
            }
            let at = series as usize;
            let number = *numbers[at].get_or_insert_with(|| self.number(&named.series[at]));
            rows.push(row);
            places.push((number, start));
        }
        Ok((rows, places))
    }

    fn number(&mut self, series: &Series) -> Number {
        if let Some(&number) = self.numbers.get(series) {
            return number;
        }
        let number = self.series.len() as Number;
        self.series.push(series.clone());
        self.numbers.insert(series.clone(), number);
        number
    }

    /// Reads the chunks that are about to be extended.
    async fn load(&mut self, store: &dyn Store, places: HashSet<Place, FastHash>) -> Result<(), BatchError> {
        let mut reads: BTreeMap<(Shard, Micros), Vec<Series>> = BTreeMap::new();
        for &(number, start) in &places {
            if self.target.may_exist() && !self.target.opened.rebuilds(start) {
                let series = &self.series[number as usize];
                let shard = series.shard(self.target.view.shards);
                reads.entry((shard, start)).or_default().push(series.clone());
            }
        }
        self.chunks.extend(places.iter().map(|&place| (place, State::default())));
        let mut scans = Vec::with_capacity(reads.len());
        for (place, series) in reads {
            scans.push(scan(store, &self.target, self.width, place, series).boxed());
        }
        let found: Vec<Vec<BatchRow>> = stream::iter(scans).buffer_unordered(PARALLEL).try_collect().await?;
        for row in found.into_iter().flatten() {
            self.extend_stored(&places, row)?;
        }
        Ok(())
    }

    fn extend_stored(&mut self, places: &HashSet<Place, FastHash>, row: BatchRow) -> Result<(), BatchError> {
        if row.generation > self.target.opened.generation {
            return Err(BatchError::TakenOver);
        }
        let Some(&number) = self.numbers.get(&Series::from_bytes(row.key.series.clone())) else { return Ok(()) };
        let place = (number, row.key.period);
        if !places.contains(&place) {
            return Ok(());
        }
        let what =
            || format!("batch chunk of view {}, width {} µs, period {}", row.key.view, self.width, row.key.period);
        let chunk = BatchChunk::decode(&row.body).map_err(|cause| BatchError::chunk(what(), cause))?;
        let own = self.target.published.extend_from(Some(&row.cut));
        if own != self.target.published.cut && !self.target.has_beyond {
            // Written since this run began; epochs of one name cannot be told apart for it.
            return Err(BatchError::TakenOver);
        }
        self.chunks.insert(place, State { own: Some(own), grew: false });
        let into: Vec<usize> =
            chunk.buckets.iter().map(|&bucket| slot(&mut self.index, &mut self.keys, (number, bucket))).collect();
        self.states.resize(self.keys.len());
        self.states.merge(&chunk.states, &into)?;
        Ok(())
    }

    /// Takes out the chunks whose periods end at or before `upto`: nothing more comes for them. Those that took nothing
    /// are dropped.
    pub(crate) fn finished(&mut self, upto: Micros) -> Vec<Chunk> {
        let done = |start: Micros| start.saturating_add(self.period) <= upto;
        let (mut out, mut stay) = (Vec::new(), Vec::new());
        for (row, &(number, bucket)) in self.keys.iter().enumerate() {
            let place = (number, floor(bucket, self.period));
            if !done(place.1) {
                stay.push(row);
            } else if self.chunks.get(&place).is_some_and(|chunk| chunk.grew) {
                out.push((number, bucket, row));
            }
        }
        out.sort_unstable();
        let chunks = out.chunk_by(|a, b| a.0 == b.0 && floor(a.1, self.period) == floor(b.1, self.period));
        let chunks = chunks.map(|rows| {
            let (number, bucket, _) = rows[0];
            let places: Vec<usize> = rows.iter().map(|(_, _, row)| *row).collect();
            let buckets = rows.iter().map(|(_, bucket, _)| *bucket).collect();
            let body = BatchChunk { buckets, states: self.states.take(&places) };
            Chunk { series: self.series[number as usize].clone(), period: floor(bucket, self.period), body }
        });
        let chunks = chunks.collect();
        self.keep(&stay, upto);
        chunks
    }

    fn keep(&mut self, rows: &[usize], upto: Micros) {
        let period = self.period;
        self.chunks.retain(|(_, start), _| start.saturating_add(period) > upto);
        self.states = if rows.is_empty() { States::new(&self.layout) } else { self.states.take(rows) };
        self.keys = rows.iter().map(|&row| self.keys[row]).collect();
        self.index = self.keys.iter().enumerate().map(|(row, &key)| (key, row)).collect();
    }

    /// Writes chunks of this rollup; all are acknowledged when this returns.
    pub(crate) async fn write(&self, store: &dyn Store, chunks: &[Chunk]) -> Result<(), BatchError> {
        for chunks in chunks.chunks(WRITTEN_TOGETHER * PARALLEL) {
            let series: Vec<&Series> = chunks.iter().map(|chunk| &chunk.series).collect();
            let kept = self.target.kept_for(self.width, &series)?;
            let rows = chunks.iter().zip(kept).map(|(chunk, kept)| self.row(chunk, kept));
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            let writes: Vec<_> = rows.chunks(WRITTEN_TOGETHER).map(|rows| BatchChunks::put(store, rows)).collect();
            let written = stream::iter(writes).buffer_unordered(PARALLEL).try_collect::<()>().await;
            if rules::on(Rule::PublishAfterChunks) {
                written?;
            }
        }
        Ok(())
    }

    /// As it is stored; `kept` is for how long.
    fn row(&self, chunk: &Chunk, kept: Option<Micros>) -> Result<BatchRow, BatchError> {
        let target = &self.target;
        let base = if target.opened.rebuilds(chunk.period) {
            target.opened.base
        } else {
            target.published.base_at(chunk.period)
        };
        let key = BatchKey {
            view: target.view.id.clone(),
            width: self.width,
            base,
            shard: chunk.series.shard(target.view.shards),
            period: chunk.period,
            series: bytes::Bytes::copy_from_slice(chunk.series.as_bytes()),
        };
        let ends = |kept: Micros| chunk.period.saturating_add(self.period).saturating_add(kept).saturating_add(GRACE);
        Ok(BatchRow {
            key,
            generation: target.opened.generation,
            stamp: target.opened.stamp,
            cut: target.opened.cut.clone(),
            body: chunk.body.encode().map_err(|cause| BatchError::chunk("chunk to write", cause))?,
            expires_at: kept.map(ends),
        })
    }
}

/// The stored chunks of one shard and period: of these series, or of all when they are many.
async fn scan(
    store: &dyn Store,
    target: &Target,
    width: Micros,
    (shard, start): (Shard, Micros),
    series: Vec<Series>,
) -> Result<Vec<BatchRow>, BatchError> {
    let base = target.published.base_at(start);
    let periods = start..start.saturating_add(1);
    let view = &target.view.id;
    if series.len() > SINGLE_READS {
        return Ok(store.scan(view, width, base, shard, periods, None).await?);
    }
    let mut rows = Vec::new();
    for series in series {
        rows.extend(store.scan(view, width, base, shard, periods.clone(), Some(series.as_bytes())).await?);
    }
    Ok(rows)
}

/// The row of a key; a new one exists only after the next resize.
fn slot(
    index: &mut HashMap<(Number, Micros), usize, FastHash>,
    keys: &mut Vec<(Number, Micros)>,
    key: (Number, Micros),
) -> usize {
    *index.entry(key).or_insert_with(|| {
        keys.push(key);
        keys.len() - 1
    })
}

fn covers(cut: &Cut, (partition, start): EpochKey) -> bool {
    cut.covers(partition, start)
}

fn floor(at: Micros, width: Micros) -> Micros {
    at.div_euclid(width).saturating_mul(width)
}
