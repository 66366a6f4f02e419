//! `POST /v1/sources/{source}/erasures`: asks batch to erase events for good.

use axum::{
    extract::{Path, Request, State},
    response::Response,
};
use lamina_core::jobs::{Job, JobKind, JobRequest};
use lamina_metric::EventFilter;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    body,
    http::{
        ingest::check_log,
        jobs::{JobStatus, MAX_BODY, check_json, check_reason, parse, queue},
    },
    problem::Problem,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(erase))
}

/// Which events to erase.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = ErasureRequest)]
struct Body {
    /// A condition over the source's fields and derived columns, in the language of a query's `where`.
    #[serde(rename = "where")]
    filter: String,
    /// Only say what would be erased.
    dry_run: bool,
    /// Kept with the job, other than the condition; for example the number of the request.
    reason: Option<String>,
}

/// Erases the events of a source that satisfy a condition, all that are in the log now: from the archive and from all views.
/// There is no way back. The job's result says what was removed and what may still hold it.
#[utoipa::path(post, path = "/v1/sources/{source}/erasures", tag = "jobs",
    params(("source" = String, Path, description = "Name of the source"),
        ("idempotency-key" = Option<String>, Header, description = "The same key within 24 hours gives the same job")),
    request_body = Body,
    responses((status = 202, description = "The queued job; `location` is where to follow it", body = JobStatus),
        (status = 400, description = "The condition cannot be used"), (status = 404, description = "Unknown source"),
        (status = 409, description = "The source is a table, not a log")))]
async fn erase(
    State(app): State<App>,
    principal: Principal,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let source = app.source(&name)?;
    check_log(&source)?;
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let bytes = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let asked: Body = parse(&bytes, "where, dry_run, reason")?;
    check_reason(asked.reason.as_ref())?;
    EventFilter::parse(&asked.filter, &source).map_err(|why| Problem::parameter("where", why))?;
    let Body { filter, dry_run, reason } = asked;
    let request =
        JobRequest { source: Some(name.clone()), erase: Some(filter), dry_run, reason, ..JobRequest::default() };
    let job = Job::new(JobKind::Erase, request, app.deps.clock.now());
    queue(&app, &parts.headers, &format!("erasures/{name}"), &principal, &bytes, job).await
}
