//! What sets a version that was built beside another apart from it: their totals, bucket by bucket.

use std::collections::BTreeMap;

use lamina_core::{Micros, Published, Store, generation::load_view, read::base_ranges};
use lamina_metric::{Answer, Ask, BatchChunk, Length, Metric, Numbers, States, View};
use serde_json::{Map, Value, json};

use crate::{
    BatchError,
    compare::{asked, same},
};

/// Differing buckets that are listed.
const EXAMPLES: usize = 20;

/// One version's total, which every metric keeps.
struct Total<'a> {
    metric: &'a Metric,
    view: &'a View,
    published: Published,
}

/// Compares the totals of two versions in the coarsest width that both keep, by the aggregates that both have.
///
/// # Errors
/// As the store; if a chunk does not decode.
pub(crate) async fn compare(store: &dyn Store, before: &Metric, after: &Metric) -> Result<Value, BatchError> {
    let width = before.widths().into_iter().filter(|width| after.widths().contains(width)).max();
    let (Some(width), Some(old), Some(new)) = (width, total(store, before).await?, total(store, after).await?) else {
        return Ok(json!({"version": before.version, "comparable": false, "why": "they have no width in common"}));
    };
    if old.published.cut != new.published.cut {
        let why = "batch covers them up to different positions: the next run covers both";
        return Ok(json!({"version": before.version, "comparable": false, "why": why}));
    }
    let asks = common(before, after);
    let mut buckets: BTreeMap<Micros, [Option<States>; 2]> = BTreeMap::new();
    for (side, total) in [&old, &new].into_iter().enumerate() {
        for (bucket, states) in total.buckets(store, width).await? {
            buckets.entry(bucket).or_default()[side] = Some(states);
        }
    }
    let (mut differing, mut examples) = (0_u64, Vec::new());
    for (bucket, states) in &buckets {
        let [before, after] = states;
        let answers = |states: &Option<States>, side: usize| {
            let answer = |asks: &[Ask; 2]| states.as_ref().and_then(|states| states.answer(0, &asks[side]).ok());
            asks.iter().map(answer).collect::<Vec<Option<Answer>>>()
        };
        let (before, after) = (answers(before, 0), answers(after, 1));
        if before.iter().zip(&after).all(|(a, b)| same(a.as_ref(), b.as_ref())) {
            continue;
        }
        differing += 1;
        if examples.len() < EXAMPLES {
            let start = Answer::Time(*bucket).to_json(Numbers::String);
            examples.push(json!({"start": start, "before": named(&asks, before), "after": named(&asks, after)}));
        }
    }
    Ok(json!({"version": before.version, "comparable": true, "step": Length(width).to_string(),
        "aggregates": asks.iter().map(|[ask, _]| ask.name()).collect::<Vec<_>>(),
        "buckets": buckets.len(), "differing": differing, "examples": examples}))
}

async fn total<'a>(store: &dyn Store, metric: &'a Metric) -> Result<Option<Total<'a>>, BatchError> {
    let Some(view) = metric.views.iter().find(|view| view.dimensions.is_empty()) else { return Ok(None) };
    let (_, state) = load_view(store, &view.id).await?;
    Ok(Some(Total { metric, view, published: state.published }))
}

impl Total<'_> {
    /// The published states by bucket.
    async fn buckets(&self, store: &dyn Store, width: Micros) -> Result<Vec<(Micros, States)>, BatchError> {
        let mut all = Vec::new();
        for (periods, base) in base_ranges(&self.published.bases, &(Micros::MIN..Micros::MAX)) {
            for shard in 0..self.view.shards.max(1) {
                for row in store.scan(&self.view.id, width, base, shard, periods.clone(), None).await? {
                    let chunk = BatchChunk::decode(&row.body).map_err(|cause| {
                        BatchError::chunk(
                            format!("total of {} version {}", self.metric.name, self.metric.version),
                            cause,
                        )
                    })?;
                    let states = |(row, &bucket): (usize, &Micros)| (bucket, chunk.states.take(&[row]));
                    all.extend(chunk.buckets.iter().enumerate().map(states));
                }
            }
        }
        Ok(all)
    }
}

/// What can be asked of both, as each of them understands it.
fn common(before: &Metric, after: &Metric) -> Vec<[Ask; 2]> {
    let mut asks: Vec<[Ask; 2]> = Vec::new();
    for name in asked(before) {
        if asks.iter().any(|[known, _]| known.name() == name) {
            continue;
        }
        if let (Ok(old), Ok(new)) = (Ask::parse(name, before), Ask::parse(name, after)) {
            asks.push([old, new]);
        }
    }
    asks
}

fn named(asks: &[[Ask; 2]], answers: Vec<Option<Answer>>) -> Value {
    let value = |answer: Option<Answer>| answer.map_or(Value::Null, |answer| answer.to_json(Numbers::String));
    let pairs = asks.iter().zip(answers).map(|([ask, _], answer)| (ask.name().to_owned(), value(answer)));
    Value::Object(pairs.collect::<Map<_, _>>())
}
