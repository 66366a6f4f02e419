//! A dry run: what a rebuild would change, found by comparing what it would write with what is served.

use std::{collections::BTreeMap, ops::Range};

use lamina_core::{BatchRow, Micros, Store, read::base_ranges};
use lamina_metric::{Answer, Ask, BatchChunk, Metric, Numbers, Series, States};
use serde_json::{Value, json};

use crate::{BatchError, rollup::Chunk, rollup::Rollup};

/// Changed buckets that are listed.
const EXAMPLES: usize = 100;
/// Sums of floats may differ by so much, relatively, since their terms come in another order.
const FLOAT_ERROR: f64 = 1e-9;

/// What a rebuild would change.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) buckets: u64,
    pub(crate) series: u64,
    pub(crate) chunks: u64,
    pub(crate) examples: Vec<Value>,
}

impl Changes {
    pub(crate) fn add(&mut self, other: Self) {
        self.buckets += other.buckets;
        self.series += other.series;
        self.chunks += other.chunks;
        self.examples.extend(other.examples.into_iter().take(EXAMPLES.saturating_sub(self.examples.len())));
    }
}

/// Compares the chunks that a rebuild gives for `periods` with those that stand there.
pub(crate) async fn compare(
    store: &dyn Store,
    metric: &Metric,
    rollup: &Rollup,
    periods: &Range<Micros>,
    chunks: Vec<Chunk>,
) -> Result<Changes, BatchError> {
    let mut pairs: BTreeMap<(Series, Micros), (Option<BatchRow>, Option<Chunk>)> = BTreeMap::new();
    let target = rollup.target();
    for (periods, base) in base_ranges(&target.published.bases, periods) {
        for shard in 0..target.view.shards {
            let view = &target.view.id;
            for row in store.scan(view, rollup.width(), base, shard, periods.clone(), None).await? {
                let key = (Series::from_bytes(row.key.series.clone()), row.key.period);
                pairs.entry(key).or_default().0 = Some(row);
            }
        }
    }
    for chunk in chunks {
        let key = (chunk.series.clone(), chunk.period);
        pairs.entry(key).or_default().1 = Some(chunk);
    }
    let series: Vec<&Series> = pairs.keys().map(|(series, _)| series).collect();
    let kept_from = target.kept_from(rollup.width(), periods.start, &series)?;
    let judge = Judge::new(metric);
    let mut changes = Changes::default();
    let mut last = None;
    for (((series, period), (stands, comes)), kept_from) in pairs.into_iter().zip(kept_from) {
        // Past retention nothing is served, whether or not the chunk is gone yet.
        if period < kept_from {
            continue;
        }
        // A run that was not published got further with this chunk: it is not comparable.
        if stands.as_ref().is_some_and(|row| !target.published.cut.reaches(&row.cut)) {
            continue;
        }
        let stands = stands.map(|row| BatchChunk::decode(&row.body)).transpose();
        let stands = stands.map_err(|cause| BatchError::chunk("a stored batch chunk", cause))?;
        let buckets = judge.differing(stands.as_ref(), comes.as_ref().map(|chunk| &chunk.body));
        if buckets.is_empty() {
            continue;
        }
        changes.buckets += buckets.len() as u64;
        changes.chunks += 1;
        if last.as_ref() != Some(&series) {
            changes.series += 1;
        }
        let dimensions = dimensions(metric, rollup, &series)?;
        for (bucket, before, after) in buckets.into_iter().take(EXAMPLES.saturating_sub(changes.examples.len())) {
            changes.examples.push(json!({
                "metric": metric.name, "width_us": rollup.width(), "dimensions": dimensions,
                "start": Answer::Time(bucket).to_json(Numbers::String), "before": before, "after": after,
            }));
        }
        last = Some(series);
    }
    Ok(changes)
}

fn dimensions(metric: &Metric, rollup: &Rollup, series: &Series) -> Result<Value, BatchError> {
    let values = series.values().map_err(|cause| BatchError::chunk("series of a batch chunk", cause))?;
    let names = rollup.target().view.dimensions.iter().map(|&at| metric.dimensions[at].name.clone());
    Ok(Value::Object(names.zip(values.iter().map(lamina_metric::DimensionValue::to_json)).collect()))
}

struct Judge {
    asks: Vec<Ask>,
}

impl Judge {
    fn new(metric: &Metric) -> Self {
        Self { asks: asked(metric).filter_map(|name| Ask::parse(name, metric).ok()).collect() }
    }

    /// Buckets whose states differ, with the answers before and after.
    fn differing(&self, stands: Option<&BatchChunk>, comes: Option<&BatchChunk>) -> Vec<(Micros, Value, Value)> {
        let mut buckets: BTreeMap<Micros, [Option<usize>; 2]> = BTreeMap::new();
        for (side, chunk) in [stands, comes].into_iter().enumerate() {
            for (row, &bucket) in chunk.into_iter().flat_map(|chunk| chunk.buckets.iter().enumerate()) {
                buckets.entry(bucket).or_default()[side] = Some(row);
            }
        }
        let mut differing = Vec::new();
        for (bucket, rows) in buckets {
            let side = |side: usize, chunk: Option<&BatchChunk>| {
                chunk.zip(rows[side]).map(|(chunk, row)| chunk.states.take(&[row]))
            };
            let (before, after) = (side(0, stands), side(1, comes));
            if before != after && !self.same(before.as_ref(), after.as_ref()) {
                differing.push((bucket, self.answers(before.as_ref()), self.answers(after.as_ref())));
            }
        }
        differing
    }

    /// Whether states that are not equal bit by bit answer the same, up to the rounding of float sums.
    fn same(&self, before: Option<&States>, after: Option<&States>) -> bool {
        let (Some(before), Some(after)) = (before, after) else { return false };
        self.asks.iter().all(|ask| match (before.answer(0, ask), after.answer(0, ask)) {
            (Ok(a), Ok(b)) => same(Some(&a), Some(&b)),
            (a, b) => a == b,
        })
    }

    fn answers(&self, states: Option<&States>) -> Value {
        let Some(states) = states else { return Value::Null };
        let answer = |ask: &Ask| {
            let value = states
                .answer(0, ask)
                .map_or_else(|error| Value::String(error.to_string()), |answer| answer.to_json(Numbers::String));
            (ask.name().to_owned(), value)
        };
        Value::Object(self.asks.iter().map(answer).collect())
    }
}

/// Whether two answers are equal, up to the rounding of float sums.
pub(crate) fn same(before: Option<&Answer>, after: Option<&Answer>) -> bool {
    match (before, after) {
        (Some(Answer::Float(a)), Some(Answer::Float(b))) => (a - b).abs() <= FLOAT_ERROR * a.abs().max(b.abs()),
        (a, b) => a == b,
    }
}

/// What two states of a metric are compared by: count and its aggregates, of quantiles the median.
pub(crate) fn asked(metric: &Metric) -> impl Iterator<Item = &str> {
    let names = std::iter::once("count").chain(metric.definition.aggregates.iter().map(String::as_str));
    names.map(|name| if name == "quantiles" { "p50" } else { name })
}
