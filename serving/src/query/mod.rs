//! Queries: parameters → plan → read → merge → table → JSON.
//!
//! # Invariants
//! - An answer is the fold of one prefix of the log per partition: exactly `meta.speed.positions`.
//! - What cannot be proven complete says so; a chunk that should be there and is not is an error, never emptiness.

pub(crate) mod calendar;
pub(crate) mod encode;
mod fill;
mod merge;
pub(crate) mod params;
mod plan;
mod read;
mod table;

use std::collections::BTreeMap;

use lamina_core::{Published, offload::offload};

use self::{
    encode::{BatchMeta, Body, Expired, Meta, Overflow, Scanned, SpeedMeta},
    merge::Read,
    params::Layer,
    plan::Plan,
};
pub(crate) use self::{params::Params, plan::all_of, read::partitions_of};
use crate::{app::App, instant, problem::Problem};

/// Answers a query of a metric with the bytes of a JSON body.
pub(crate) async fn answer(app: &App, metric: &str, params: Params) -> Result<Vec<u8>, Problem> {
    let metric = app.metric(metric)?;
    let (plan, read) = read::read(app, &metric, &params).await?;
    // Merging and encoding may take a while; other requests go on meanwhile.
    let work = offload(move || encoded(&plan, &read, &params));
    work.await.map_err(|error| Problem::internal(&error))?
}

fn encoded(plan: &Plan, read: &Read, params: &Params) -> Result<Vec<u8>, Problem> {
    let merged = merge::merge(plan, read, params.layer)?;
    let overflow = merged.overflow;
    let table = table::table(plan, merged, params.limit, params.fill)?;
    let mut meta = meta(plan, read, params.layer);
    if overflow > 0 {
        // Whether the filter would take them is not known.
        meta.complete &= plan.filter.is_none();
        meta.overflow = Some(Overflow { events: overflow });
    }
    meta.truncated = params.limit.map(|_| table.truncated);
    let body = Body {
        metric: &plan.metric.name,
        version: plan.metric.version,
        range: plan.range.clone(),
        step: params.step.as_ref().map(|(_, text)| text.as_str()),
        zone: params.zone.map(|zone| zone.name()),
        group_by: &plan.group_by,
        asks: &plan.asks,
        numbers: params.numbers,
        series: &table.series,
        meta,
    };
    serde_json::to_vec(&body).map_err(|error| Problem::internal(&error))
}

/// What proves the answer. The batch layer alone folds what batch has come to, and cannot miss what speed lacks beyond.
fn meta(plan: &Plan, read: &Read, layer: Layer) -> Meta {
    let snapshot = &read.snapshot;
    let mut missing = snapshot.missing();
    let cut = encode::cut(&snapshot.published.cut);
    let mut positions = snapshot.positions();
    if layer == Layer::Batch {
        let through = merge::through(read);
        missing.retain(|range| range.from < through.at(range.partition));
        for (partition, position) in &mut positions {
            *position = through.at(*partition);
        }
    }
    let approximate = plan.asks.iter().filter_map(|ask| Some((ask.name().to_owned(), ask.approximate()?)));
    let Published { generation, stamp, at, through, .. } = &snapshot.published;
    let scanned = (*generation > 0).then(|| Scanned { from: instant::format(*stamp), to: instant::format(*at) });
    let is_table = plan.metric.source.table.is_some();
    Meta {
        // Of a table there is nothing but the latest scan.
        complete: missing.is_empty() && (!is_table || *generation > 0),
        missing: missing.iter().map(Into::into).collect(),
        batch: BatchMeta {
            generation: *generation,
            through: through.map(instant::format),
            cut,
            scanned: scanned.filter(|_| is_table),
        },
        speed: SpeedMeta { watermark: snapshot.watermark().map(instant::format), positions },
        approximate: approximate.collect::<BTreeMap<_, _>>(),
        retained_from: plan.retained_from.map(instant::format),
        expired: plan
            .cut_by()
            .map(|(rule, from)| Expired { filter: rule.sql.clone(), retained_from: instant::format(from) })
            .collect(),
        overflow: None,
        truncated: None,
    }
}
