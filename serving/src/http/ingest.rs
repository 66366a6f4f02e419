//! `POST /v1/sources/{source}/events`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::StatusCode,
};
use bytes::Bytes;
use lamina_core::{
    SPANS,
    log::{Append, Topic},
    offload::offload,
};
use lamina_metric::{Format, IngestRecord, Source};
use serde::Serialize;
use tracing::Instrument;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Config,
    app::App,
    body::{self, Packing},
    problem::Problem,
    token::Token,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ingest_events))
}

/// What became of the events of one request.
#[derive(Debug, Serialize, ToSchema)]
struct Ingested {
    /// Events that the log has acknowledged.
    accepted: usize,
    rejected: Vec<Rejected>,
    /// Give it as `at_least` to a query that must see these events.
    position: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct Rejected {
    /// Of the event within the body, from 0.
    index: usize,
    error: String,
}

/// Sends events to a source.
///
/// The body is in the source's format; `content-encoding` may be gzip or zstd. Events that do not decode are rejected one
/// by one, the others are in the log when the answer comes.
#[utoipa::path(
    post,
    path = "/v1/sources/{source}/events",
    tag = "events",
    params(("source" = String, Path, description = "Name of the source")),
    request_body(
        description = "NDJSON, a JSON array, CSV or lines of text, as the source's format is",
        content(("application/x-ndjson"), ("application/json"), ("text/csv"), ("text/plain"))
    ),
    responses(
        (status = 202, description = "The log has acknowledged the accepted events", body = Ingested),
        (status = 400, description = "The body as a whole cannot be read"),
        (status = 404, description = "Unknown source"),
        (status = 409, description = "The source is a table, not a log"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "Not a content type of the source's format"),
        (status = 503, description = "The log does not answer")
    )
)]
async fn ingest_events(
    State(app): State<App>,
    Path(source): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Ingested>), Problem> {
    let source = app.source(&source)?;
    check_log(&source)?;
    let (parts, body) = request.into_parts();
    check_type(&body::media_type(&parts.headers), source.definition.format)?;
    let packing = Packing::of(&parts.headers)?;
    let packed = body::read(body, app.config.max_body_bytes, app.config.body_timeout).await?;
    let (records, rejected) = split(&app, &source, packing, packed).await?;
    let topic = topic(&app, &source).await?;
    let accepted = records.len();
    let appended = match accepted {
        0 => Vec::new(),
        _ => append(&app, &source, records).await?,
    };
    metrics::counter!(crate::instruments::INGESTED, "source" => source.name.clone(), "outcome" => "accepted")
        .increment(accepted as u64);
    metrics::counter!(crate::instruments::INGESTED, "source" => source.name.clone(), "outcome" => "rejected")
        .increment(rejected.len() as u64);
    let position = Token::of(&source.name, &topic.id, &appended).encode();
    Ok((StatusCode::ACCEPTED, Json(Ingested { accepted, rejected, position })))
}

/// A table is written by those who own it: what it holds is neither ingested nor archived.
pub(super) fn check_log(source: &Source) -> Result<(), Problem> {
    let Some(table) = &source.table else { return Ok(()) };
    let detail = format!("source {} is the table {}: write into the table itself", source.name, table.name);
    Err(Problem::new(StatusCode::CONFLICT, "not_a_log", detail))
}

/// The source's topic, made if nobody has yet.
async fn topic(app: &App, source: &Source) -> Result<Arc<Topic>, Problem> {
    if let Some(topic) = app.topics.find(&source.topic).await? {
        return Ok(topic);
    }
    Ok(Arc::new(app.deps.log.ensure_topic(&source.topic, app.config.partitions).await?))
}

/// Content types of each format. None at all, or plain bytes, is taken to be what the source expects.
fn check_type(media_type: &str, format: Format) -> Result<(), Problem> {
    let allowed: &[&str] = match format {
        Format::Json => &["application/x-ndjson", "application/ndjson", "application/jsonl", "application/json"],
        Format::Csv => &["text/csv", "application/csv"],
        Format::Text => &["text/plain"],
        Format::Row => &[],
    };
    if matches!(media_type, "" | "application/octet-stream") || allowed.contains(&media_type) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        format!("content-type {media_type:?} is not the source's: send {}", allowed.join(" or ")),
    ))
}

/// Unpacks and splits a body, on a thread that may take its time.
async fn split(
    app: &App,
    source: &Arc<Source>,
    packing: Packing,
    packed: Bytes,
) -> Result<(Vec<Append>, Vec<Rejected>), Problem> {
    let source = Arc::clone(source);
    let Config { max_body_bytes, max_ratio, max_event_bytes, max_events, max_json_depth, .. } = app.config;
    let work = offload(move || {
        let body = packing.unpack(packed, max_body_bytes, max_ratio)?;
        if at_most_events(&body) > max_events {
            let detail = format!("the body holds more than {max_events} events: send it in parts");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_events", detail));
        }
        let events = source.split(&body).map_err(|why| {
            Problem::new(StatusCode::BAD_REQUEST, "unreadable_body", format!("the body cannot be read: {why}"))
        })?;
        let max_depth = (source.definition.format == Format::Json).then_some(max_json_depth);
        Ok(sort(events, max_event_bytes, max_depth))
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

/// Accepted and rejected events apart; those of JSON have a depth that they may not exceed.
fn sort(
    events: Vec<Result<IngestRecord, String>>,
    max_bytes: usize,
    max_depth: Option<usize>,
) -> (Vec<Append>, Vec<Rejected>) {
    let (mut accepted, mut rejected) = (Vec::with_capacity(events.len()), Vec::new());
    for (index, event) in events.into_iter().enumerate() {
        match event {
            Ok(record) if record.payload.len() > max_bytes => {
                let error =
                    format!("the event is {} bytes long, at most {max_bytes} are allowed", record.payload.len());
                rejected.push(Rejected { index, error });
            }
            Ok(record) if max_depth.is_some_and(|most| body::is_deeper(&record.payload, most)) => {
                let error = format!("the event is nested deeper than {}", max_depth.unwrap_or_default());
                rejected.push(Rejected { index, error });
            }
            Ok(IngestRecord { key, payload }) => accepted.push(Append { key, payload }),
            Err(error) => rejected.push(Rejected { index, error }),
        }
    }
    (accepted, rejected)
}

/// An upper bound of the events in a body, without decoding it: lines, or elements of an array.
fn at_most_events(body: &[u8]) -> usize {
    if !body.trim_ascii_start().starts_with(b"[") {
        return body.iter().filter(|&&b| b == b'\n').count() + 1;
    }
    let (mut depth, mut quoted, mut escaped, mut elements) = (0_i64, false, false, 1);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b',' if depth == 1 => elements += 1,
            _ => {}
        }
    }
    elements
}

async fn append(
    app: &App,
    source: &Source,
    records: Vec<Append>,
) -> Result<Vec<(lamina_core::Partition, lamina_core::Offset)>, Problem> {
    let within = app.config.request_timeout;
    let span = tracing::debug_span!(
        target: SPANS,
        "append",
        otel.name = format!("send {}", source.topic),
        otel.kind = "producer",
        messaging.destination.name = source.topic.as_str(),
        messaging.batch.message_count = records.len(),
    );
    match tokio::time::timeout(within, app.deps.log.append(&source.topic, records)).instrument(span).await {
        Ok(appended) => Ok(appended?),
        Err(_) => {
            let detail = format!("the log did not acknowledge within {} s; some events may be in it", within.as_secs());
            Err(Problem::unavailable("log_unavailable", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_before_they_are_split() {
        assert_eq!(at_most_events(b"{}\n{}"), 2);
        assert_eq!(at_most_events(br#" [{"a": "x,[\",", "b": [1, 2]}, {}, 3]"#), 3);
        assert_eq!(at_most_events(b"[]"), 1);
    }
}
