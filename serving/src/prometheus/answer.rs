//! Prometheus' JSON.

use std::{fmt::Write, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use lamina_metric::StateError;
use serde_json::{Value as Json_, json};

use super::{
    Computed,
    times::seconds,
    vector::{Labels, Row, Value},
};
use crate::problem::{Problem, Report};

/// What Prometheus calls it in `errorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    BadData,
    Execution,
    Timeout,
    Unavailable,
    Internal,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn bad_data(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::BadData, message: message.into() }
    }

    pub(crate) fn parameter(name: &str, allowed: &str) -> Self {
        Self::bad_data(format!("invalid parameter \"{name}\": {allowed}"))
    }

    /// 422: understood, and not computed.
    pub(crate) fn execution(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Execution, message: message.into() }
    }

    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::execution(format!("{what} is not supported; see docs/prometheus.md for what is"))
    }

    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        Problem::internal(error).into()
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let kind = match (problem.status, problem.code) {
            // What one query may hold is a limit of the execution.
            (_, "too_many_points" | "too_many_series") => FailureKind::Execution,
            (_, "timeout") | (StatusCode::GATEWAY_TIMEOUT, _) => FailureKind::Timeout,
            (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _) => FailureKind::Unavailable,
            (StatusCode::UNPROCESSABLE_ENTITY, _) => FailureKind::Execution,
            (status, _) if status.is_client_error() => FailureKind::BadData,
            _ => FailureKind::Internal,
        };
        Self { kind, message: problem.detail }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, name) = match self.kind {
            FailureKind::BadData => (StatusCode::BAD_REQUEST, "bad_data"),
            FailureKind::Execution => (StatusCode::UNPROCESSABLE_ENTITY, "execution"),
            FailureKind::Timeout => (StatusCode::SERVICE_UNAVAILABLE, "timeout"),
            FailureKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            FailureKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        let body = json!({"status": "error", "errorType": name, "error": self.message});
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let after = Duration::from_secs(1).as_secs();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after));
        }
        // Clients of Prometheus read this shape, and no problem.
        response.extensions_mut().insert(Report);
        response
    }
}

/// An answer that is not the value of an expression.
pub(crate) fn success(data: &Json_, warnings: &[String]) -> Response {
    let mut body = json!({"status": "success", "data": data});
    if !warnings.is_empty() {
        body["warnings"] = json!(warnings);
    }
    Json(body).into_response()
}

/// The value of an expression, with `warnings` where something is missing, and in `lamina` what proves it, a member that
/// Prometheus does not have and its clients pass over.
pub(crate) fn value(computed: Computed) -> Response {
    let Computed { value, grid, sorted, warnings, meta } = computed;
    let mut text = String::from("{\"status\":\"success\",\"data\":{\"resultType\":");
    match value {
        Value::Text(string) => {
            text.push_str("\"string\",\"result\":");
            point(&mut text, grid.at(0), &Json_::from(string).to_string());
        }
        Value::Scalar(values) if !grid.is_range => {
            text.push_str("\"scalar\",\"result\":");
            point(&mut text, grid.at(0), &number(values.first().copied().unwrap_or(f64::NAN)));
        }
        Value::Scalar(values) => {
            let values = values.into_iter().map(Some).collect();
            matrix(&mut text, &grid, vec![Row { labels: Labels::new(), values }]);
        }
        Value::Vector(rows) if grid.is_range => matrix(&mut text, &grid, rows),
        Value::Vector(mut rows) => {
            if !sorted {
                rows.sort_by(|a, b| a.labels.cmp(&b.labels));
            }
            text.push_str("\"vector\",\"result\":[");
            let some = rows.iter().filter_map(|row| Some((row, row.values.first().copied().flatten()?)));
            for (at, (row, value)) in some.enumerate() {
                text.push_str(if at == 0 { "{\"metric\":" } else { ",{\"metric\":" });
                labels(&mut text, &row.labels);
                text.push_str(",\"value\":");
                point(&mut text, grid.at(0), &number(value));
                text.push('}');
            }
            text.push(']');
        }
    }
    text.push('}');
    if !warnings.is_empty() {
        let _ = write!(text, ",\"warnings\":{}", json!(warnings));
    }
    let _ = write!(text, ",\"lamina\":{}}}", json!(meta));
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn matrix(text: &mut String, grid: &super::Grid, mut rows: Vec<Row>) {
    rows.retain(|row| row.values.iter().any(Option::is_some));
    rows.sort_by(|a, b| a.labels.cmp(&b.labels));
    text.push_str("\"matrix\",\"result\":[");
    for (at, row) in rows.iter().enumerate() {
        text.push_str(if at == 0 { "{\"metric\":" } else { ",{\"metric\":" });
        labels(text, &row.labels);
        text.push_str(",\"values\":[");
        let some = grid.instants().zip(&row.values).filter_map(|(instant, value)| Some((instant, (*value)?)));
        for (at, (instant, value)) in some.enumerate() {
            if at > 0 {
                text.push(',');
            }
            point(text, instant, &number(value));
        }
        text.push_str("]}");
    }
    text.push(']');
}

fn labels(text: &mut String, labels: &Labels) {
    text.push('{');
    for (at, (name, value)) in labels.iter().enumerate() {
        let separator = if at == 0 { "" } else { "," };
        let _ = write!(text, "{separator}{}:{}", Json_::from(&**name), Json_::from(&**value));
    }
    text.push('}');
}

/// `[seconds, value]`, the value as JSON.
fn point(text: &mut String, at: lamina_core::Micros, value: &str) {
    let _ = write!(text, "[{},{value}]", seconds(at));
}

/// A value as Prometheus writes it: a text, so that it may be no number.
fn number(value: f64) -> String {
    if value.is_nan() {
        "\"NaN\"".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "\"+Inf\"".to_owned() } else { "\"-Inf\"".to_owned() }
    } else {
        format!("\"{value}\"")
    }
}
