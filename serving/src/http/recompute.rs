//! `POST /v1/recomputes`: asks batch to rebuild a range from the archive.

use axum::{
    extract::{Request, State},
    response::Response,
};
use lamina_core::jobs::{Job, JobKind, JobRequest};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    body,
    http::jobs::{JobStatus, MAX_BODY, check_json, check_reason, parse, queue},
    problem::Problem,
    query::params::instant_of,
};

const MAX_METRICS: usize = 1_000;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(recompute))
}

/// What to rebuild. No metric named means all, no `from` or `to` the beginning or end.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = RecomputeRequest)]
struct Body {
    metrics: Vec<String>,
    /// One metric, instead of `metrics`.
    metric: Option<String>,
    /// RFC 3339 or Unix milliseconds.
    #[schema(value_type = Option<String>)]
    from: Option<Value>,
    /// Exclusive.
    #[schema(value_type = Option<String>)]
    to: Option<Value>,
    /// Only say what would change.
    dry_run: bool,
    reason: Option<String>,
}

/// Asks batch to rebuild metrics from the archive.
#[utoipa::path(post, path = "/v1/recomputes", tag = "jobs",
    params(("idempotency-key" = Option<String>, Header, description = "The same key within 24 hours gives the same job")),
    request_body = Body,
    responses((status = 202, description = "The queued job; `location` is where to follow it", body = JobStatus),
        (status = 400, description = "The body cannot be used"), (status = 404, description = "Unknown metric"),
        (status = 409, description = "A request with this key is under way"),
        (status = 422, description = "The key was used with another body")))]
async fn recompute(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let bytes = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let request = checked(&app, parse(&bytes, "metrics, metric, from, to, dry_run, reason")?)?;
    let job = Job::new(JobKind::Recompute, request, app.deps.clock.now());
    queue(&app, &parts.headers, "recomputes", &principal, &bytes, job).await
}

fn checked(app: &App, body: Body) -> Result<JobRequest, Problem> {
    let mut metrics = body.metrics;
    metrics.extend(body.metric);
    metrics.sort_unstable();
    metrics.dedup();
    if metrics.len() > MAX_METRICS {
        return Err(Problem::parameter("metrics", format!("at most {MAX_METRICS}; none named means all")));
    }
    for metric in &metrics {
        app.metric(metric)?;
    }
    check_reason(body.reason.as_ref())?;
    let (from, to) = (instant("from", body.from)?, instant("to", body.to)?);
    match (from, to) {
        (Some(from), Some(to)) if from >= to => Err(Problem::parameter("to", "must lie after `from`")),
        _ => Ok(JobRequest { metrics, from, to, dry_run: body.dry_run, reason: body.reason, ..JobRequest::default() }),
    }
}

/// A text, or a number of milliseconds.
pub(super) fn instant(name: &str, value: Option<Value>) -> Result<Option<i64>, Problem> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => instant_of(name, &text).map(Some),
        Some(other) => instant_of(name, &other.to_string()).map(Some),
    }
}
