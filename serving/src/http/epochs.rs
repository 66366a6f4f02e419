//! `/v1/sources/{source}/epochs`: the sealed epochs of a source, as they were sealed.

use std::{collections::BTreeMap, ops::Range};

use axum::{
    Json,
    extract::{Path, Query, State},
};
use lamina_core::{
    Consistency, Epoch, LogId, Micros, Offset, Partition,
    store::{Ledgers, Store},
};
use serde::Serialize;
use serde_json::Value;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::SourceEpochs;
use crate::{
    app::App,
    problem::Problem,
    query::{params::instant_of, partitions_of},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(epochs))
}

#[derive(Serialize)]
struct PartitionEpochs {
    partition: Partition,
    /// Where sealed epochs end.
    sealed_end: Offset,
    /// Ranges of offsets between sealed epochs that neither ledger nor manifest names; there should be none.
    holes: Vec<(Offset, Offset)>,
    epochs: Vec<Epoch>,
}

/// The sealed epochs of a source, by partition in offset order, as ledger and manifest have them: who wrote them and when,
/// offsets, and the archive file as it was sealed. Another may stand in its place by now: see `/archive`. Times are Unix
/// microseconds.
#[utoipa::path(get, path = "/v1/sources/{source}/epochs", tag = "operation",
    params(("source" = String, Path, description = "Name of the source"),
        ("from" = Option<String>, Query, description = "Only epochs with events at or after this time"),
        ("to" = Option<String>, Query, description = "Only epochs with events before this time")),
    responses((status = 200, description = "The epochs", body = SourceEpochs),
        (status = 404, description = "Unknown source")))]
async fn epochs(
    State(app): State<App>,
    Path(source): Path<String>,
    Query(pairs): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, Problem> {
    let range = range(&pairs)?.unwrap_or(Micros::MIN..Micros::MAX);
    let source = app.source(&source)?;
    let partitions = partitions_of(&app, &source).await?;
    let mut found = Vec::with_capacity(partitions.all.len());
    for &partition in &partitions.all {
        found.push(of_partition(&*app.deps.store, &partitions.log, partition, &range).await?);
    }
    let found = serde_json::to_value(found).map_err(|error| Problem::internal(&error))?;
    Ok(Json(
        serde_json::json!({"source": source.name, "topic": source.table.is_none().then_some(&source.topic), "partitions": found}),
    ))
}

/// The range of event time that a request names; `None` if it names neither end.
pub(super) fn range(pairs: &BTreeMap<String, String>) -> Result<Option<Range<Micros>>, Problem> {
    let mut range = Micros::MIN..Micros::MAX;
    for (name, value) in pairs {
        match name.as_str() {
            "from" => range.start = instant_of("from", value)?,
            "to" => range.end = instant_of("to", value)?,
            _ => return Err(Problem::parameter(name, "is not a parameter; there are from, to")),
        }
    }
    Ok((!pairs.is_empty()).then_some(range))
}

async fn of_partition(
    store: &dyn Store,
    log: &LogId,
    partition: Partition,
    range: &Range<Micros>,
) -> Result<PartitionEpochs, Problem> {
    // Epochs leave the ledger after they were noted in the manifest: read this way round, none is missed.
    let ledger = Ledgers::load(store, log, partition, Consistency::Serial).await?;
    let first = ledger.epochs.first().map_or(0, |epoch| epoch.start);
    let noted = store.archived(log, partition, 0..first).await?;
    let all: BTreeMap<Offset, &Epoch> = noted.iter().chain(ledger.sealed()).map(|epoch| (epoch.start, epoch)).collect();
    let mut holes = Vec::new();
    let mut next = None;
    for epoch in all.values() {
        if let Some(next) = next.filter(|next| *next != epoch.start) {
            holes.push((next, epoch.start));
        }
        next = epoch.end;
    }
    holes.extend(next.filter(|next| *next != ledger.sealed_end()).map(|next| (next, ledger.sealed_end())));
    let touches = |epoch: &Epoch| {
        let times = epoch.archive.as_ref().and_then(|archive| archive.event_time);
        times.is_some_and(|(first, last)| first < range.end && last >= range.start)
    };
    let everything = range.start == Micros::MIN && range.end == Micros::MAX;
    let epochs = all.into_values().filter(|epoch| everything || touches(epoch)).cloned().collect();
    Ok(PartitionEpochs { partition, sealed_end: ledger.sealed_end(), holes, epochs })
}
