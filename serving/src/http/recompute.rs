//! `POST /v1/recomputes`: asks batch to rebuild a range from the archive.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use lamina_core::jobs::{self, Job, JobKind, Recompute};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    body,
    http::{
        idempotency::{self, Begun},
        jobs::{MAX_BODY, accepted, check_reason, parse},
    },
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
    responses((status = 202, description = "The queued job; `location` is where to follow it", body = serde_json::Value),
        (status = 400, description = "The body cannot be used"), (status = 404, description = "Unknown metric"),
        (status = 409, description = "A request with this key is under way"),
        (status = 422, description = "The key was used with another body")))]
async fn recompute(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    if !matches!(body::media_type(&parts.headers).as_str(), "" | "application/json") {
        let detail = "send application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    let bytes = body::read(body, MAX_BODY, app.config.request_timeout).await?;
    let request = checked(&app, parse(&bytes, "metrics, metric, from, to, dry_run, reason")?)?;
    let job = Job::new(JobKind::Recompute, request, app.deps.clock.now());
    let job = match idempotency::key(&parts.headers)? {
        None => {
            jobs::create(&*app.deps.store, &job).await?;
            job
        }
        Some(key) => match idempotency::begin(&app, &key, &bytes, &job.id).await? {
            Begun::Done(id) => jobs::load(&*app.deps.store, &id).await?.map_or(job, |(_, job)| job),
            Begun::New(id) => {
                let job = create(&app, Job { id, ..job }).await?;
                idempotency::finish(&app, &key).await?;
                if let Err(error) = idempotency::sweep(&app).await {
                    tracing::warn!(%error, "old idempotency keys were not removed");
                }
                job
            }
        },
    };
    Ok(accepted(&job))
}

/// Creates the job, unless an earlier attempt under the same key got that far.
async fn create(app: &App, job: Job) -> Result<Job, Problem> {
    if let Some((_, existing)) = jobs::load(&*app.deps.store, &job.id).await? {
        return Ok(existing);
    }
    jobs::create(&*app.deps.store, &job).await?;
    Ok(job)
}

fn checked(app: &App, body: Body) -> Result<Recompute, Problem> {
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
        _ => Ok(Recompute { metrics, from, to, dry_run: body.dry_run, reason: body.reason }),
    }
}

/// A text, or a number of milliseconds.
fn instant(name: &str, value: Option<Value>) -> Result<Option<i64>, Problem> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => instant_of(name, &text).map(Some),
        Some(other) => instant_of(name, &other.to_string()).map(Some),
    }
}
