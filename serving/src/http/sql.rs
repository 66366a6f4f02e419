//! `/v1/sql`: SELECT over metrics.

use std::convert::Infallible;

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::stream;
use serde_json::{Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::SqlAnswer;
use crate::{
    app::App,
    auth::Principal,
    body,
    http::jobs::{check_json, parse},
    problem::Problem,
    query::format::Format,
    sql::{Piece, Started, request},
};

const QUERY_ID: HeaderName = HeaderName::from_static("x-lamina-query-id");
const META: HeaderName = HeaderName::from_static("x-lamina-meta");
const COMPLETE: HeaderName = HeaderName::from_static("x-lamina-complete");
/// Largest request.
const MAX_BODY: usize = 1 << 20;
/// Longest proof that goes into a header.
const MAX_HEADER: usize = 8 << 10;
const MAX_ID: usize = 128;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(run)).routes(routes!(cancel))
}

/// Runs a SELECT over metrics.
///
/// Each metric is a table, see docs/sql.md. What proves the result, `meta`, is in the JSON, in the trailer of NDJSON
/// (`{"$end": {"rows", "meta"}}`, or `{"$error": ...}` if the query failed after rows were sent), and in the headers
/// `x-lamina-meta` and `x-lamina-complete`. Other formats are sent when they are whole.
#[utoipa::path(post, path = "/v1/sql", operation_id = "run_sql", tag = "queries",
    params(("accept" = Option<String>, Header,
            description = "application/json (default), application/x-ndjson, text/csv or application/vnd.apache.arrow.stream"),
        ("x-lamina-query-id" = Option<String>, Header, description = "A name by which to cancel it; made up if left out")),
    request_body = request::Body,
    responses((status = 200, description = "The result", content((SqlAnswer = "application/json"),
            (String = "application/x-ndjson"), (String = "text/csv"), (Vec<u8> = "application/vnd.apache.arrow.stream"))),
        (status = 400, description = "The query cannot be planned, or a table has no bound of time"),
        (status = 403, description = "SQL is switched off"),
        (status = 406, description = "No format that is accepted can be given"),
        (status = 409, description = "The query was cancelled"),
        (status = 422, description = "Too much time, memory, rows or bytes, or a value that cannot be computed"),
        (status = 503, description = "Too many queries at once, or the store does not answer")))]
async fn run(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let format = Format::of(&parts.headers)?;
    let id = own_id(&parts.headers)?;
    let bytes = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let (id, started) = app.sql.start(&app, &principal, parse(&bytes, "query, params, timeout_ms")?, format, id)?;
    let answered = match format {
        Format::Ndjson => streamed(started).await,
        _ => whole(started, format, app.sql.max_bytes()).await,
    };
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(QUERY_ID, id);
    }
    Ok(response)
}

/// Ends a query that is under way.
#[utoipa::path(delete, path = "/v1/sql/{id}", operation_id = "cancel_sql", tag = "queries",
    params(("id" = String, Path, description = "As `x-lamina-query-id` says it")),
    responses((status = 204, description = "It ends"), (status = 404, description = "No such query is under way here")))]
async fn cancel(State(app): State<App>, principal: Principal, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    if app.sql.cancel(&principal, &id) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::not_found("unknown_query", "no query of this id is under way in this process"))
}

/// The client's name for its query.
fn own_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(QUERY_ID) else { return Ok(None) };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    let id = value.to_str().ok().filter(|id| (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed));
    let wrong = || Problem::parameter("x-lamina-query-id", format!("up to {MAX_ID} letters, digits and -_.:"));
    id.map(|id| Some(id.to_owned())).ok_or_else(wrong)
}

/// A result that is sent when it is known to be whole.
async fn whole(mut started: Started, format: Format, most: usize) -> Result<Response, Problem> {
    let mut all = BytesMut::new();
    while let Some(piece) = started.next().await {
        match piece {
            Piece::Bytes(bytes) if all.len() + bytes.len() <= most => all.extend_from_slice(&bytes),
            Piece::Bytes(_) => {
                let detail = format!(
                    "the result is larger than {most} bytes: ask for less, or for application/x-ndjson, which is sent as it comes"
                );
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "result_too_large", detail));
            }
            Piece::Failed(problem) => return Err(problem),
            Piece::Done(meta) => return Ok(with_meta(all.freeze(), format, &meta)),
        }
    }
    Err(Problem::internal(&"a query ended without an end"))
}

fn with_meta(bytes: Bytes, format: Format, meta: &Value) -> Response {
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], bytes).into_response();
    let complete = if meta["complete"] == json!(true) { "true" } else { "false" };
    response.headers_mut().insert(COMPLETE, HeaderValue::from_static(complete));
    let text = meta.to_string();
    if let (true, Ok(value)) = (text.len() <= MAX_HEADER && text.is_ascii(), HeaderValue::from_str(&text)) {
        response.headers_mut().insert(META, value);
    }
    response
}

/// A result that is sent row by row. What fails before the first piece is a problem.
async fn streamed(mut started: Started) -> Result<Response, Problem> {
    let first = loop {
        match started.next().await {
            Some(Piece::Bytes(bytes)) if bytes.is_empty() => {}
            Some(Piece::Failed(problem)) => return Err(problem),
            first => break first,
        }
    };
    let pieces = stream::unfold((started, first), async |(mut started, first)| {
        let piece = match first {
            Some(piece) => piece,
            None => started.next().await?,
        };
        let bytes = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Done(_) => Bytes::new(),
            Piece::Failed(problem) => {
                let error = json!({"$error": {"code": problem.code, "status": problem.status.as_u16(), "detail": problem.detail}});
                format!("{error}\n").into()
            }
        };
        Some((Ok::<_, Infallible>(bytes), (started, None)))
    });
    Ok(([(header::CONTENT_TYPE, Format::Ndjson.media_type())], Body::from_stream(pieces)).into_response())
}
