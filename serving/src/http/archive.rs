//! `/v1/sources/{source}/archive`: the files that hold a source's sealed records, each record once, for whoever reads the
//! archive besides lamina, and to check it.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Query, State},
};
use lamina_core::{Consistency, Ledgers, LogId, Offset, Partition, Segment, archive, store::Store};
use serde::Serialize;
use serde_json::Value;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{epochs::range, schema::SourceArchive};
use crate::{app::App, problem::Problem, query::partitions_of};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(files))
}

#[derive(Serialize)]
struct PartitionFiles {
    partition: Partition,
    /// Where sealed epochs end.
    sealed_end: Offset,
    /// Ranges of sealed offsets that no file is known to hold; there should be none.
    holes: Vec<(Offset, Offset)>,
    files: Vec<Segment>,
}

/// The files of a source's archive, by partition in offset order: offsets, path below the archive's root, size, CRC-32, what
/// became of the records, and the range of event time (Unix microseconds). `archive` is null where retention has removed them.
#[utoipa::path(get, path = "/v1/sources/{source}/archive", tag = "operation",
    params(("source" = String, Path, description = "Name of the source"),
        ("from" = Option<String>, Query, description = "Only files with events at or after this time"),
        ("to" = Option<String>, Query, description = "Only files with events before this time")),
    responses((status = 200, description = "The files", body = SourceArchive),
        (status = 404, description = "Unknown source")))]
async fn files(
    State(app): State<App>,
    Path(source): Path<String>,
    Query(pairs): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, Problem> {
    let range = range(&pairs)?;
    let source = app.source(&source)?;
    let partitions = partitions_of(&app, &source).await?;
    let mut found = Vec::with_capacity(partitions.all.len());
    for &partition in &partitions.all {
        let mut one = of_partition(&*app.deps.store, &partitions.log, partition).await?;
        if let Some(range) = &range {
            let touches = |(first, last)| first < range.end && last >= range.start;
            one.files.retain(|file| file.event_time().is_some_and(touches));
        }
        found.push(one);
    }
    let found = serde_json::to_value(found).map_err(|error| Problem::internal(&error))?;
    Ok(Json(
        serde_json::json!({"source": source.name, "topic": source.table.is_none().then_some(&source.topic), "partitions": found}),
    ))
}

async fn of_partition(store: &dyn Store, log: &LogId, partition: Partition) -> Result<PartitionFiles, Problem> {
    let ledger = Ledgers::load(store, log, partition, Consistency::Serial).await?;
    let sealed_end = ledger.sealed_end();
    let files = archive::segments(store, log, partition, &ledger, 0..sealed_end).await?;
    let ends = files.iter().map(|file| file.end);
    let next = files.iter().skip(1).map(|file| file.start).chain([sealed_end]);
    let holes = ends.zip(next).filter(|(end, next)| end != next).collect();
    Ok(PartitionFiles { partition, sealed_end, holes, files })
}
