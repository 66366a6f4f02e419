//! Merges batch and speed chunks into the buckets of an answer.
//!
//! # Invariants
//! - Per (series, stored bucket): the batch chunk's state, plus the states of speed epochs that start at or after what
//!   is covered there: the chunk's own cut, or the published one where that is later or there is no chunk.
//! - Chunks of a run under way reach further than the published cut: the batch layer answers as of the furthest, for all.
//! - Coverage is judged by offset, never by epoch id or event time.
//! - Of a series that matches a rule of expiry nothing below the rule's horizon is added, whatever is still stored.

use std::{collections::HashMap, sync::Arc};

use axum::http::StatusCode;
use lamina_core::{
    Cut, Micros,
    read::{Inputs, Piece},
};
use lamina_metric::{DimensionValue, FastHash, Layout, Series, SpeedChunk, States};

use crate::{
    chunks::BatchPart,
    problem::Problem,
    query::{params::Layer, plan::Plan},
};

/// Most states of one answer before ordering and limits: what one query may hold in memory.
const MAX_STATES: usize = 4_000_000;

pub(crate) type Read = Inputs<Arc<SpeedChunk>, Arc<BatchPart>>;

/// States of an answer by (series, bucket).
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) series: Vec<MergedSeries>,
    pub(crate) states: States,
    /// Events counted under the overflow series, within the range and whatever the filter.
    pub(crate) overflow: u64,
}

#[derive(Debug)]
pub(crate) struct MergedSeries {
    /// In the order of `group_by`.
    pub(crate) values: Vec<DimensionValue>,
    /// Bucket start (clipped to the range) and row of `states`; ascending, none of them empty.
    pub(crate) rows: Vec<(Micros, usize)>,
}

/// A stored series, as far as this query goes.
struct Stored<'a> {
    /// Index of the answer's series; `None` if the filter leaves it out.
    into: Option<u32>,
    /// Period and own cut of its batch chunks, ascending.
    cuts: Vec<(Micros, &'a Cut)>,
    overflow: bool,
    /// Buckets below are not answered.
    from: Micros,
}

/// Position of a series within a speed chunk, and among the stored ones.
type Found = (u32, u32);

/// The stored series that were read, each once.
struct Index<'a> {
    stored: Vec<Stored<'a>>,
    /// The series of each batch chunk.
    batch: Vec<u32>,
    /// The series of each speed chunk, ascending.
    speed: Vec<Vec<Found>>,
}

pub(crate) fn merge(plan: &Plan, read: &Read, layer: Layer) -> Result<Merged, Problem> {
    let (index, series) = index(plan, read)?;
    let states = States::new(&Layout::of(&plan.metric));
    let mut sink = Sink { plan, series, rows: HashMap::default(), states, overflow: 0 };
    if layer != Layer::Speed {
        for (part, &stored) in read.batch.iter().zip(&index.batch) {
            let stored = &index.stored[stored as usize];
            let within = |bucket: &Micros| (stored.from..plan.buckets.range.end).contains(bucket);
            let buckets = part.chunk.buckets.iter().enumerate().filter(|(_, bucket)| within(bucket));
            let (rows, buckets): (Vec<_>, Vec<_>) = buckets.map(|(row, &bucket)| (row, (stored, bucket))).unzip();
            sink.add(&rows, &buckets, &part.chunk.states)?;
        }
    }
    // What a run under way has not rewritten yet is brought up to where batch has come by the same sealed epochs.
    let within = (layer == Layer::Batch).then(|| through(read));
    for (piece, found) in read.speed.iter().zip(&index.speed) {
        if within.as_ref().is_none_or(|within| within.covers(piece.partition, piece.start)) {
            add_speed(&mut sink, &index, read, piece, found)?;
        }
    }
    Ok(sink.finish())
}

/// How far batch has come in what was read: the published cut, or that of a run under way whose chunks are among it.
pub(crate) fn through(read: &Read) -> Cut {
    read.batch.iter().fold(read.snapshot.published.cut.clone(), |through, part| through.max(&part.cut))
}

/// Finds every stored series once: whether the filter takes it, and which series of the answer it belongs to.
fn index<'a>(plan: &Plan, read: &'a Read) -> Result<(Index<'a>, Vec<MergedSeries>), Problem> {
    let mut known: HashMap<&Series, u32, FastHash> = HashMap::default();
    let mut all: Vec<&Series> = Vec::new();
    let mut number = |series| {
        let next = all.len() as u32;
        let number = *known.entry(series).or_insert(next);
        if number == next {
            all.push(series);
        }
        number
    };
    let batch: Vec<u32> = read.batch.iter().map(|part| number(&part.series)).collect();
    let speed = read.speed.iter().map(|piece| {
        let series = &piece.chunk.series;
        let found = |at: usize| (at as u32, number(&series[at]));
        match &plan.named {
            Some(named) => named.iter().filter_map(|one| series.binary_search(one).ok()).map(found).collect(),
            None => (0..series.len()).map(found).collect(),
        }
    });
    let speed: Vec<Vec<Found>> = speed.collect();
    let (into, series) = group(plan, &all)?;
    let overflow = (!plan.view.dimensions.is_empty()).then(|| Series::overflow(plan.view.dimensions.len()));
    let stored = all.iter().zip(into).zip(kept_from(plan, &all)?).map(|((series, into), from)| {
        let overflow = overflow.as_ref() == Some(series);
        Stored { into, cuts: Vec::new(), overflow, from }
    });
    let mut stored: Vec<Stored<'a>> = stored.collect();
    for (part, &at) in read.batch.iter().zip(&batch) {
        stored[at as usize].cuts.push((part.period, &part.cut));
    }
    stored.iter_mut().for_each(|stored| stored.cuts.sort_unstable_by_key(|(period, _)| *period));
    Ok((Index { stored, batch, speed }, series))
}

/// From when on each stored series is answered.
fn kept_from(plan: &Plan, stored: &[&Series]) -> Result<Vec<Micros>, Problem> {
    let start = plan.buckets.range.start;
    if plan.expired.is_empty() {
        return Ok(vec![start; stored.len()]);
    }
    let horizons = plan.metric.by_rules(&plan.view, &plan.expired, Micros::max, stored);
    let horizons = horizons.map_err(|why| Problem::internal(&why))?;
    Ok(horizons.into_iter().map(|horizon| horizon.map_or(start, |horizon| horizon.max(start))).collect())
}

/// The answer's series, and which of them each stored one belongs to; `None` if the filter leaves it out.
fn group(plan: &Plan, stored: &[&Series]) -> Result<(Vec<Option<u32>>, Vec<MergedSeries>), Problem> {
    let taken = match &plan.filter {
        Some(filter) => filter.mask(&plan.view, &plan.metric, stored).map_err(|why| Problem::internal(&why))?,
        None => vec![true; stored.len()],
    };
    let mut series: Vec<MergedSeries> = Vec::new();
    let mut indexes: HashMap<Series, u32, FastHash> = HashMap::default();
    let mut into = Vec::with_capacity(stored.len());
    for (one, taken) in stored.iter().zip(taken) {
        if !taken {
            into.push(None);
            continue;
        }
        let kept = one.project(&plan.keep);
        let values = kept.values().map_err(|error| Problem::internal(&error))?;
        let next = u32::try_from(series.len()).map_err(|_| too_many_states())?;
        let index = *indexes.entry(kept).or_insert(next);
        if index == next {
            series.push(MergedSeries { values, rows: Vec::new() });
        }
        into.push(Some(index));
    }
    Ok((into, series))
}

fn add_speed<'a>(
    sink: &mut Sink<'_>,
    index: &'a Index<'a>,
    read: &Read,
    piece: &Piece<Arc<SpeedChunk>>,
    found: &[Found],
) -> Result<(), Problem> {
    // Whether the epoch adds to what batch has of this series and bucket.
    let counts = |stored: &Stored<'_>, bucket: Micros| {
        let period = sink.plan.period_of(bucket);
        match stored.cuts.binary_search_by_key(&period, |(period, _)| *period) {
            // What the published cut covers was never read.
            Err(_) => true,
            Ok(at) => {
                let covered = read.snapshot.covered(Some(stored.cuts[at].1));
                read.snapshot.counts(piece.partition, piece.start, &covered)
            }
        }
    };
    let (range, all) = (&sink.plan.buckets.range, &piece.chunk.rows);
    let (mut rows, mut buckets) = (Vec::new(), Vec::new());
    let mut from = 0;
    for &(series, stored) in found {
        let stored = &index.stored[stored as usize];
        if stored.into.is_none() && !stored.overflow {
            continue;
        }
        // Rows are ordered by series and bucket.
        from += all[from..].partition_point(|&row| row < (series, stored.from));
        let until = from + all[from..].partition_point(|&row| row < (series, range.end));
        for (row, &(_, bucket)) in all.iter().enumerate().take(until).skip(from) {
            if stored.cuts.is_empty() || counts(stored, bucket) {
                rows.push(row);
                buckets.push((stored, bucket));
            }
        }
        from = until;
    }
    sink.add(&rows, &buckets, &piece.chunk.states)
}

/// Where states are put together.
struct Sink<'a> {
    plan: &'a Plan,
    series: Vec<MergedSeries>,
    rows: HashMap<(u32, Micros), usize, FastHash>,
    states: States,
    overflow: u64,
}

impl Sink<'_> {
    /// Adds these rows of `states`, each with its series and stored bucket; those that the filter leaves out are dropped.
    fn add(&mut self, rows: &[usize], buckets: &[(&Stored<'_>, Micros)], states: &States) -> Result<(), Problem> {
        let (mut taken, mut into) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (&row, &(stored, bucket)) in rows.iter().zip(buckets) {
            if stored.overflow {
                self.overflow = self.overflow.saturating_add(states.count(row));
            }
            if let Some(series) = stored.into {
                taken.push(row);
                into.push(self.row(series, bucket)?);
            }
        }
        self.states.resize(self.rows.len());
        match taken.len() {
            0 => {}
            all if all == states.len() => self.states.merge(states, &into)?,
            _ => self.states.merge(&states.take(&taken), &into)?,
        }
        Ok(())
    }

    /// The row of an answer's series and of the bucket that holds the stored one.
    fn row(&mut self, series: u32, stored: Micros) -> Result<usize, Problem> {
        let bucket = self.plan.buckets.start_of(stored);
        let next = self.rows.len();
        let row = *self.rows.entry((series, bucket)).or_insert(next);
        if row == next {
            if next == MAX_STATES {
                return Err(too_many_states());
            }
            self.series[series as usize].rows.push((bucket, row));
        }
        Ok(row)
    }

    fn finish(mut self) -> Merged {
        for series in &mut self.series {
            series.rows.retain(|&(_, row)| self.states.count(row) > 0);
            series.rows.sort_unstable();
        }
        Merged { series: self.series, states: self.states, overflow: self.overflow }
    }
}

fn too_many_states() -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "too_many_points",
        format!(
            "the answer would need more than {MAX_STATES} states: ask for a shorter range, a longer step or fewer groups"
        ),
    )
}
