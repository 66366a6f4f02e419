//! What proves an answer.

use std::collections::{BTreeMap, BTreeSet};

use lamina_core::{
    Cut, Offset, Partition,
    generation::Published,
    snapshot::{Missing, MissingBecause},
};
use lamina_metric::Approximate;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    instant,
    query::{
        merge,
        params::{Layer, Params},
        question::{Column, Question, Subject},
        read::PartRead,
        schema::{ErrorBound, OwnLayers},
    },
};

/// Instead of what rules over rows hold back.
const NOT_SHOWN: &str = "(not shown)";

/// What proves the answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Meta {
    pub(crate) complete: bool,
    pub(crate) missing: Vec<MissingRange>,
    /// Of a metric that is not derived.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = OwnLayers)]
    pub(crate) layers: Option<Layers>,
    #[schema(value_type = BTreeMap<String, ErrorBound>)]
    pub(crate) approximate: BTreeMap<String, Approximate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) retained_from: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(crate) expired: Vec<Expired>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) overflow: Option<Overflow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) truncated: Option<bool>,
    /// Of a derived metric: whether its metrics fold one and the same prefix of one log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) one_prefix: Option<bool>,
    /// Of a derived metric: the proof of each metric that it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, no_recursion)]
    pub(crate) metrics: Option<BTreeMap<String, Self>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) compare: Option<Box<Compared>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) page: Option<PageMeta>,
}

/// What proves the values of an earlier period.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Compared {
    pub(crate) period: String,
    pub(crate) from: String,
    pub(crate) to: String,
    #[serde(flatten)]
    #[schema(no_recursion)]
    pub(crate) meta: Meta,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct PageMeta {
    /// Whether it folds the prefix of the log that the first page folds.
    pub(crate) same_prefix: bool,
}

/// What of each layer the answer folds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Layers {
    pub(crate) batch: BatchMeta,
    pub(crate) speed: SpeedMeta,
}

/// A rule of expiry that reaches into the range.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Expired {
    #[serde(rename = "where")]
    pub(crate) filter: String,
    /// Where buckets of the series that match it begin.
    pub(crate) retained_from: String,
}

/// A range of the log that the answer does not fold.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct MissingRange {
    /// Of a derived metric: which of those that it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    metric: Option<String>,
    partition: Partition,
    from: Offset,
    to: Offset,
    why: &'static str,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct BatchMeta {
    pub(crate) generation: u64,
    pub(crate) through: Option<String>,
    #[schema(value_type = BTreeMap<String, u64>)]
    pub(crate) cut: BTreeMap<Partition, Offset>,
    /// Of a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) scanned: Option<Scanned>,
}

/// Between when and when a table was scanned: what was written before is in, what was written after is not, and of what was
/// written meanwhile each row may be.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Scanned {
    pub(crate) from: String,
    pub(crate) to: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct SpeedMeta {
    pub(crate) watermark: Option<String>,
    #[schema(value_type = BTreeMap<String, u64>)]
    pub(crate) positions: BTreeMap<Partition, Offset>,
}

/// Events that a view's cap left without their own series.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Overflow {
    pub(crate) events: u64,
}

impl From<&Missing> for MissingRange {
    fn from(missing: &Missing) -> Self {
        Self { metric: None, partition: missing.partition, from: missing.from, to: missing.to, why: why(missing.why) }
    }
}

pub(crate) fn why(because: MissingBecause) -> &'static str {
    match because {
        MissingBecause::NotBuilt => "not_built",
        MissingBecause::Expired => "expired",
        MissingBecause::Lost => "lost",
    }
}

/// A cut, its partitions in numerical order as far as JSON readers keep it.
pub(crate) fn cut(cut: &Cut) -> BTreeMap<Partition, Offset> {
    cut.iter().collect()
}

/// The proof of a whole answer. `overflow` is, of each part, how many events stand under the overflow series.
pub(crate) fn meta(question: &Question, parts: &[PartRead], overflow: &[u64], truncated: bool) -> Meta {
    let all: Vec<Meta> =
        parts.iter().zip(overflow).map(|(part, &overflow)| of_part(part, overflow, &question.params)).collect();
    let (now, before) = all.split_at(question.present.min(all.len()));
    let reads = parts.split_at(question.present.min(parts.len()));
    let mut meta = together(question, now, reads.0);
    meta.approximate = approximate(&question.columns);
    meta.truncated = question.params.limit.map(|_| truncated);
    if let (Some((_, period)), Some(part)) = (&question.params.compare, question.parts.get(question.present)) {
        let earlier = together(question, before, reads.1);
        meta.complete &= earlier.complete;
        let (from, to) = (instant::format(part.buckets.range.start), instant::format(part.buckets.range.end));
        meta.compare = Some(Box::new(Compared { period: period.clone(), from, to, meta: earlier }));
    }
    meta
}

fn approximate(columns: &[Column]) -> BTreeMap<String, Approximate> {
    columns.iter().filter_map(|column| Some((column.name.clone(), column.approximate?))).collect()
}

/// Of a metric its own, of a derived one what holds for all of its metrics, and the proof of each.
fn together(question: &Question, own: &[Meta], reads: &[PartRead]) -> Meta {
    if let (Subject::Metric(_), [only]) = (&question.subject, own) {
        return only.clone();
    }
    let named = || question.subject.metrics().iter().map(|metric| metric.name.clone()).zip(own);
    let missing = named().flat_map(|(name, meta)| {
        meta.missing.iter().map(move |range| MissingRange { metric: Some(name.clone()), ..range.clone() })
    });
    let layers = own.iter().filter_map(|meta| meta.layers.as_ref());
    let prefixes: BTreeSet<_> =
        reads.iter().zip(layers).map(|(part, layers)| (part.log.as_str(), &layers.speed.positions)).collect();
    Meta {
        complete: own.iter().all(|meta| meta.complete),
        missing: missing.collect(),
        layers: None,
        approximate: BTreeMap::new(),
        retained_from: own.iter().filter_map(|meta| meta.retained_from.clone()).max(),
        expired: Vec::new(),
        overflow: None,
        truncated: None,
        one_prefix: Some(prefixes.len() == 1),
        metrics: Some(named().map(|(name, meta)| (name, meta.clone())).collect()),
        compare: None,
        page: None,
    }
}

/// The batch layer alone folds what batch has come to, and cannot miss what speed lacks beyond.
fn of_part(PartRead { plan, read, .. }: &PartRead, overflow: u64, params: &Params) -> Meta {
    // Rules of expiry name values of dimensions, and how much overflowed tells about rows that rules hold back.
    let (layer, open) = (params.layer, params.rows.is_empty());
    let snapshot = &read.snapshot;
    let mut missing = snapshot.missing();
    let cut = cut(&snapshot.published.cut);
    let mut positions = snapshot.positions();
    if layer == Layer::Batch {
        let through = merge::through(read);
        missing.retain(|range| range.from < through.at(range.partition));
        for (partition, position) in &mut positions {
            *position = through.at(*partition);
        }
    }
    let Published { generation, stamp, at, through, .. } = &snapshot.published;
    let scanned = (*generation > 0).then(|| Scanned { from: instant::format(*stamp), to: instant::format(*at) });
    let is_table = plan.metric.source.table.is_some();
    // Of a table there is nothing but the latest scan. Whether a filter would take overflowed events is not known.
    let complete = missing.is_empty() && (!is_table || *generation > 0) && (overflow == 0 || plan.filter.is_none());
    let batch = BatchMeta {
        generation: *generation,
        through: through.map(instant::format),
        cut,
        scanned: scanned.filter(|_| is_table),
    };
    let speed = SpeedMeta { watermark: snapshot.watermark().map(instant::format), positions };
    let expired = plan
        .cut_by()
        .map(|(rule, from)| {
            let filter = if open { rule.sql.clone() } else { NOT_SHOWN.to_owned() };
            Expired { filter, retained_from: instant::format(from) }
        })
        .collect();
    Meta {
        complete,
        missing: missing.iter().map(Into::into).collect(),
        layers: Some(Layers { batch, speed }),
        approximate: BTreeMap::new(),
        retained_from: plan.retained_from.map(instant::format),
        expired,
        overflow: (overflow > 0 && open).then_some(Overflow { events: overflow }),
        truncated: None,
        one_prefix: None,
        metrics: None,
        compare: None,
        page: None,
    }
}
