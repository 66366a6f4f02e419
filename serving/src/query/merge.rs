//! Merges batch and speed chunks into the buckets of an answer.
//!
//! # Invariants
//! - Per (series, stored bucket): the batch chunk's state, plus the states of speed epochs that start at or after what
//!   is covered there: the chunk's own cut, or the published one where that is later or there is no chunk.
//! - Coverage is judged by offset, never by epoch id or event time.

use std::{collections::HashMap, sync::Arc};

use axum::http::StatusCode;
use lamina_core::{
    Cut, Micros,
    read::{Inputs, Piece},
};
use lamina_metric::{DimensionValue, Layout, Series, SpeedChunk, States};

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
}

type StoredSeries<'a> = HashMap<&'a Series, Stored<'a>>;

pub(crate) fn merge(plan: &Plan, read: &Read, layer: Layer) -> Result<Merged, Problem> {
    let (stored, series) = find_series(plan, read)?;
    let states = States::new(&Layout::of(&plan.metric));
    let mut sink = Sink { plan, series, rows: HashMap::new(), states, overflow: 0 };
    if layer != Layer::Speed {
        for part in &read.batch {
            let Some(stored) = stored.get(&part.series) else { continue };
            let buckets = part.chunk.buckets.iter().map(|&bucket| (stored, bucket));
            sink.add(buckets, &part.chunk.states)?;
        }
    }
    if layer != Layer::Batch {
        for piece in &read.speed {
            add_speed(&mut sink, &stored, read, piece)?;
        }
    }
    Ok(sink.finish())
}

/// Every stored series once: whether the filter takes it, and which series of the answer it belongs to.
fn find_series<'a>(plan: &Plan, read: &'a Read) -> Result<(StoredSeries<'a>, Vec<MergedSeries>), Problem> {
    let overflow = (!plan.view.dimensions.is_empty()).then(|| Series::overflow(plan.view.dimensions.len()));
    let new = |series: &Series| Stored { into: None, cuts: Vec::new(), overflow: overflow.as_ref() == Some(series) };
    let mut found = StoredSeries::new();
    for part in &read.batch {
        let stored = found.entry(&part.series).or_insert_with(|| new(&part.series));
        stored.cuts.push((part.period, &part.cut));
    }
    for series in read.speed.iter().flat_map(|piece| &piece.chunk.series) {
        found.entry(series).or_insert_with(|| new(series));
    }
    let all: Vec<Series> = found.keys().map(|series| (*series).clone()).collect();
    let taken = match &plan.filter {
        Some(filter) => filter.mask(&plan.view, &plan.metric, &all).map_err(|why| Problem::internal(&why))?,
        None => vec![true; all.len()],
    };
    let (mut series, mut indexes): (Vec<MergedSeries>, HashMap<Series, u32>) = (Vec::new(), HashMap::new());
    for (one, taken) in all.iter().zip(taken) {
        let Some(stored) = found.get_mut(one) else { continue };
        stored.cuts.sort_unstable_by_key(|(period, _)| *period);
        if !taken {
            continue;
        }
        let kept = one.project(&plan.keep);
        let values = kept.values().map_err(|error| Problem::internal(&error))?;
        let next = u32::try_from(series.len()).map_err(|_| too_many_states())?;
        let index = *indexes.entry(kept).or_insert(next);
        if index == next {
            series.push(MergedSeries { values, rows: Vec::new() });
        }
        stored.into = Some(index);
    }
    Ok((found, series))
}

fn add_speed(
    sink: &mut Sink<'_>,
    stored: &StoredSeries<'_>,
    read: &Read,
    piece: &Piece<Arc<SpeedChunk>>,
) -> Result<(), Problem> {
    let chunk = &piece.chunk;
    let known: Vec<&Stored<'_>> = chunk.series.iter().filter_map(|series| stored.get(series)).collect();
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
    let mut rows = Vec::with_capacity(chunk.rows.len());
    let mut buckets = Vec::with_capacity(chunk.rows.len());
    for (row, &(series, bucket)) in chunk.rows.iter().enumerate() {
        // Decoding has checked that the series is there.
        let Some(stored) = known.get(series as usize) else { continue };
        if sink.plan.buckets.range.contains(&bucket) && (stored.cuts.is_empty() || counts(stored, bucket)) {
            rows.push(row);
            buckets.push((*stored, bucket));
        }
    }
    match rows.len() {
        0 => Ok(()),
        all if all == chunk.rows.len() => sink.add(buckets.into_iter(), &chunk.states),
        _ => sink.add(buckets.into_iter(), &chunk.states.take(&rows)),
    }
}

/// Where states are put together.
struct Sink<'a> {
    plan: &'a Plan,
    series: Vec<MergedSeries>,
    rows: HashMap<(u32, Micros), usize>,
    states: States,
    overflow: u64,
}

impl Sink<'_> {
    /// Adds a state per stored bucket; those out of range or left out by the filter are dropped.
    fn add<'a>(
        &mut self,
        buckets: impl ExactSizeIterator<Item = (&'a Stored<'a>, Micros)>,
        states: &States,
    ) -> Result<(), Problem> {
        let (mut rows, mut into) = (Vec::with_capacity(buckets.len()), Vec::with_capacity(buckets.len()));
        for (row, (stored, bucket)) in buckets.enumerate() {
            if !self.plan.buckets.range.contains(&bucket) {
                continue;
            }
            if stored.overflow {
                self.overflow = self.overflow.saturating_add(states.count(row));
            }
            if let Some(series) = stored.into {
                rows.push(row);
                into.push(self.row(series, bucket)?);
            }
        }
        self.states.resize(self.rows.len());
        match rows.len() {
            0 => {}
            all if all == states.len() => self.states.merge(states, &into)?,
            _ => self.states.merge(&states.take(&rows), &into)?,
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
