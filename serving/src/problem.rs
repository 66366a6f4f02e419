//! One shape for every error: RFC 9457 `application/problem+json`.
//!
//! A handler gives a [`Problem`]; the outermost layer writes it with the request's id, and turns whatever else is an
//! error without being a problem (the framework's own rejections) into one.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use lamina_core::{StoreError, log::LogError, read::ReadError};
use lamina_metric::StateError;
use serde_json::{Map, Value, json};

pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// How much of a foreign error's text becomes the detail.
const MAX_FOREIGN: usize = 4096;

/// An error as the client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// For programs; never changes its meaning.
    pub(crate) code: &'static str,
    /// For people: what is wrong and what would be right.
    pub(crate) detail: String,
    retry_after: Option<Duration>,
    extra: Vec<(&'static str, Value)>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, extra: Vec::new() }
    }

    /// A parameter of the query string, path or body that cannot be used; `detail` says what is allowed.
    pub(crate) fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_parameter", format!("`{name}`: {detail}")).with("parameter", name)
    }

    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 503: nothing is wrong with the request, it may be sent again.
    pub(crate) fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(Duration::from_secs(1))
    }

    /// 500: ours to look at. The detail stays in the log.
    pub(crate) fn internal(detail: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %detail, "request failed");
        let detail = "lamina failed to answer; its log says why under this request id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a member beyond the standard ones.
    pub(crate) fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        self.extra.push((member, value.into()));
        self
    }

    fn body(&self, request_id: &str) -> Vec<u8> {
        let mut members = Map::new();
        members.insert("type".into(), format!("urn:lamina:problem:{}", self.code).into());
        members.insert("title".into(), title(self.code).into());
        members.insert("status".into(), self.status.as_u16().into());
        members.insert("detail".into(), self.detail.as_str().into());
        members.insert("code".into(), self.code.into());
        members.insert("request_id".into(), request_id.into());
        for (member, value) in &self.extra {
            members.insert((*member).into(), value.clone());
        }
        Value::Object(members).to_string().into_bytes()
    }
}

/// `bad_parameter` → `Bad parameter`.
fn title(code: &str) -> String {
    let mut title = code.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

impl IntoResponse for Problem {
    /// Only marks the response; [`write()`] fills it in.
    fn into_response(self) -> Response<Body> {
        let mut response = self.status.into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Marks an error status whose body is meant as it is.
#[derive(Clone, Copy)]
pub(crate) struct Report;

/// Gives every error response its problem body.
pub(crate) async fn write(mut response: Response<Body>, request_id: &str) -> Response<Body> {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || response.extensions().get::<Report>().is_some() {
        return response;
    }
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None => {
            let body = std::mem::take(response.body_mut());
            foreign(status, body).await
        }
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    *response.body_mut() = Body::from(problem.body(request_id));
    response
}

/// An error that the framework answered by itself.
async fn foreign(status: StatusCode, body: Body) -> Problem {
    let text = axum::body::to_bytes(body, MAX_FOREIGN).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let (code, otherwise) = match status {
        StatusCode::NOT_FOUND => ("not_found", "there is nothing at this path; /docs lists what there is"),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this path does not take this method; see `allow`"),
        StatusCode::PAYLOAD_TOO_LARGE => ("too_large", "the body is too large"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported_media_type", "this content type is not taken here"),
        StatusCode::REQUEST_TIMEOUT => ("request_timeout", "the request did not arrive in time"),
        _ if status.is_server_error() => ("internal", "lamina failed to answer"),
        _ => ("bad_request", "the request cannot be understood"),
    };
    let detail = if text.is_empty() { otherwise.to_owned() } else { text };
    Problem::new(status, code, detail)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unavailable(_) | StoreError::Unknown(_) => {
                tracing::warn!(%error, "view store failed a request");
                Self::unavailable("store_unavailable", error.to_string())
            }
            StoreError::Full(_) => Self::unavailable("store_full", error.to_string()),
            StoreError::Corrupt { .. } | StoreError::Refused(_) => Self::internal(&error),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match &error {
            LogError::Unavailable(_) => {
                tracing::warn!(%error, "log failed a request");
                Self::unavailable("log_unavailable", error.to_string())
            }
            LogError::Full(_) => Self::unavailable("log_full", error.to_string()),
            LogError::NoTopic(_) => {
                Self::unavailable("no_topic", format!("{error} yet: a worker makes it, or its operator does"))
            }
            LogError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "event_too_large", error.to_string()),
            LogError::Refused(_) => Self::unavailable("log_refused", error.to_string()),
            LogError::OutOfRange { .. } => Self::internal(&error),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => error.into(),
            ReadError::ChunkMissing { .. } => {
                tracing::error!(%error, "a chunk that counts is missing");
                Self::unavailable("chunk_missing", format!("{error}: no answer rather than a low one"))
            }
            ReadError::NeverSettled | ReadError::OtherLog { .. } => Self::unavailable("unsettled", error.to_string()),
        }
    }
}

impl From<StateError> for Problem {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Overflow => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "overflow",
                "the sum does not fit its type: ask for a shorter range or finer groups",
            ),
            other => Self::internal(&other),
        }
    }
}

/// A failure of one of several checks, for `/readyz`.
pub(crate) fn not_ready(checks: &[(&'static str, Result<(), String>)]) -> Problem {
    let failed: Vec<_> = checks.iter().filter(|(_, outcome)| outcome.is_err()).map(|(name, _)| *name).collect();
    let outcome = |(name, outcome): &(&'static str, Result<(), String>)| {
        ((*name).to_owned(), outcome.as_ref().map_or_else(|why| json!(why), |()| json!("ok")))
    };
    let checks: Map<String, Value> = checks.iter().map(outcome).collect();
    Problem::unavailable("not_ready", format!("failing: {}", failed.join(", "))).with("checks", checks)
}
