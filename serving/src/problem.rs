//! One shape for every error: RFC 9457 `application/problem+json`.
//!
//! A handler gives a [`Problem`]; the outermost layer writes it with the request's id, and turns whatever else is an
//! error without being a problem (the framework's own rejections) into one.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
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
    headers: Vec<(HeaderName, String)>,
    extra: Vec<(&'static str, Value)>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, headers: Vec::new(), extra: Vec::new() }
    }

    /// A parameter of the query string, path or body that cannot be used; `detail` says what is allowed.
    pub(crate) fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_parameter", format!("`{name}`: {detail}")).with("parameter", name)
    }

    pub(crate) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 401: nobody known asks. The challenge is that of RFC 6750.
    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            .header(header::WWW_AUTHENTICATE, "Bearer realm=\"lamina\"".to_owned())
    }

    /// 403: whoever asks may not.
    pub(crate) fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 403: a rule over rows is about a dimension that the metric has not, so nothing of it may be shown.
    pub(crate) fn row_rules(metric: &str, dimension: &str) -> Self {
        let detail = format!("you are bound to values of {dimension:?}, which metric {metric} has not as a dimension");
        Self::forbidden("row_rules", detail)
    }

    /// 429: the same request may be sent again after this time.
    pub(crate) fn too_many(detail: impl Into<String>, after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).retry_after(after)
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

    /// Sets a header of the response.
    pub(crate) fn header(mut self, name: HeaderName, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds a member beyond the standard ones.
    pub(crate) fn with(mut self, member: &'static str, value: impl Into<Value>) -> Self {
        self.extra.push((member, value.into()));
        self
    }

    fn body(&self, request_id: &str) -> Vec<u8> {
        self.to_json(request_id).to_string().into_bytes()
    }

    /// As it stands in a body.
    pub(crate) fn to_json(&self, request_id: &str) -> Value {
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
        Value::Object(members)
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

/// Rounded up, and one at least.
fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

impl IntoResponse for Problem {
    /// Only marks the response; [`write()`] fills it in.
    fn into_response(self) -> Response<Body> {
        let mut response = self.status.into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        for (name, value) in &self.headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
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
