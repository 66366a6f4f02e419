//! What surrounds every request: its id, limits, problem bodies, security headers, metrics and one line of log.

use std::{any::Any, sync::Arc, time::Instant};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header},
    middleware::Next,
    response::IntoResponse,
};
use lamina_core::ids::new_id;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use crate::{
    app::App,
    auth::guard::AskedBy,
    instruments,
    problem::{self, Problem},
    query::params::MAX_WAIT,
    trace::Trace,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;
/// Longest path and query string.
const MAX_URI: usize = 16 << 10;

/// Of a request: the id that its answer and every line of log about it carry.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// Headers that an answer has unless its handler set them otherwise.
const DEFAULTS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The outermost layer of ours.
pub(crate) async fn envelope(State(app): State<App>, mut request: Request, next: Next) -> Response<Body> {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let trace = Trace::of(&request, &route);
    let response = match too_long(request.uri()) {
        Some(problem) => problem.into_response(),
        None => next.run(request).instrument(trace.span.clone()).await,
    };
    let asked_by = response.extensions().get::<AskedBy>().map_or_else(String::new, |by| by.0.id.clone());
    let mut response = problem::write(response, &id).await;
    let headers = response.headers_mut();
    for (name, value) in DEFAULTS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    trace.end(&id, &mut response);
    let status = response.status().as_u16();
    let elapsed = started.elapsed();
    let labels = [("method", method.as_str().to_owned()), ("route", route.clone()), ("status", status.to_string())];
    metrics::counter!(instruments::REQUESTS, &labels).increment(1);
    metrics::histogram!(instruments::REQUEST_TIME, "route" => route.clone()).record(elapsed.as_secs_f64());
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    // Before compression; of a stream nobody knows yet. The query string is left out: it holds values of dimensions.
    let bytes = response.body().size_hint().exact();
    let free = app.requests.available_permits();
    let trace = trace.id();
    tracing::info!(%method, route, path, status, ms, bytes, id, trace, principal = asked_by, free, "request");
    response
}

/// The client's id if it is harmless to repeat, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let harmless = |text: &&str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        (1..=MAX_REQUEST_ID).contains(&text.len()) && text.bytes().all(allowed)
    };
    let own = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(harmless);
    own.map_or_else(|| new_id().to_string(), str::to_owned)
}

fn too_long(uri: &Uri) -> Option<Problem> {
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    (length > MAX_URI).then(|| {
        let detail = format!("path and query string are {length} bytes long, at most {MAX_URI} are allowed");
        Problem::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail)
    })
}

/// Lets so many requests run and so many wait for a moment, sheds the others at once, and ends what takes too long.
pub(crate) async fn limit(State(app): State<App>, request: Request, next: Next) -> Response<Body> {
    let Some(_permit) = permit(&app).await else {
        metrics::counter!(instruments::SHED).increment(1);
        return Problem::unavailable("overloaded", "too many requests at once: send it again later").into_response();
    };
    let within = app.config.request_timeout + MAX_WAIT;
    match tokio::time::timeout(within, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("no answer within {} s: ask for less, or again later", within.as_secs());
            Problem::unavailable("timeout", detail).into_response()
        }
    }
}

async fn permit(app: &App) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(&app.requests).try_acquire_owned() {
        return Some(permit);
    }
    let _place = Arc::clone(&app.queue).try_acquire_owned().ok()?;
    let waiting = Arc::clone(&app.requests).acquire_owned();
    tokio::time::timeout(app.config.queue_wait, waiting).await.ok()?.ok()
}

pub(crate) async fn unknown_path(uri: Uri) -> Problem {
    Problem::not_found("not_found", format!("there is nothing at {}; /docs lists what there is", uri.path()))
}

pub(crate) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response<Body> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Problem::internal(&format_args!("a handler panicked: {}", text.unwrap_or("without a text"))).into_response()
}
