//! `POST /v1/metrics/{metric}/rollback`: returns to what a recompute replaced.

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
};
use lamina_core::{
    Generation, Micros, ViewState,
    generation::load_view,
    jobs::{Job, JobKind, JobRequest},
};
use lamina_metric::Metric;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    body,
    http::jobs::{JobStatus, MAX_BODY, check_json, check_reason, parse, queue},
    instant,
    problem::Problem,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(rollback))
}

/// What to return to. Neither named means: before the latest recompute or rollback.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = RollbackRequest)]
struct Body {
    /// A generation, as answers name it in `meta.batch.generation`; of a metric with several views, the full view's.
    generation: Option<Generation>,
    /// What was served at this moment: RFC 3339 or Unix milliseconds.
    #[schema(value_type = Option<String>)]
    as_of: Option<Value>,
    reason: Option<String>,
}

/// Returns a metric to what a recompute replaced, extended to what was sealed since.
#[utoipa::path(post, path = "/v1/metrics/{metric}/rollback", tag = "jobs",
    params(("metric" = String, Path, description = "Name of the metric"),
        ("idempotency-key" = Option<String>, Header, description = "The same key within 24 hours gives the same job")),
    request_body = Body,
    responses((status = 202, description = "The queued job; `location` is where to follow it", body = JobStatus),
        (status = 400, description = "The body cannot be used"), (status = 404, description = "Unknown metric"),
        (status = 409, description = "Nothing that was served then is kept; `kept` lists what is")))]
async fn rollback(
    State(app): State<App>,
    principal: Principal,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let metric = app.metric(&name)?;
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let bytes = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let asked: Body = parse(&bytes, "generation, as_of, reason")?;
    check_reason(asked.reason.as_ref())?;
    let as_of = Some(moment(&app, &metric, &asked).await?);
    let request = JobRequest { metrics: vec![name.clone()], as_of, reason: asked.reason, ..JobRequest::default() };
    let job = Job::new(JobKind::Rollback, request, app.deps.clock.now());
    queue(&app, &parts.headers, &format!("rollback/{name}"), &principal, &bytes, job).await
}

/// The moment to return to, by which every view finds its own generation.
async fn moment(app: &App, metric: &Metric, asked: &Body) -> Result<Micros, Problem> {
    let Some(full) = metric.views.first() else { return Err(Problem::internal(&"a metric without views")) };
    let (_, state) = load_view(&*app.deps.store, &full.id).await?;
    let found = match (asked.generation, &asked.as_of) {
        (Some(_), Some(_)) => return Err(Problem::parameter("as_of", "give either `generation` or `as_of`")),
        (None, None) => state.kept.first(),
        (Some(generation), None) => kept_of(&state, generation),
        (None, Some(at)) => match super::recompute::instant("as_of", Some(at.clone()))? {
            Some(at) => state.kept_at(at),
            None => state.kept.first(),
        },
    };
    let found = found.map(|kept| kept.replaced_at.saturating_sub(1));
    found.ok_or_else(|| {
        let detail = format!(
            "metric {}: nothing that was served then is kept; a rollback returns to what a recompute or rollback \
             replaced, and what is published now is generation {}",
            metric.name, state.published.generation
        );
        Problem::new(StatusCode::CONFLICT, "not_kept", detail).with("kept", kept(&state))
    })
}

/// The kept publication with the bases under which this generation was published.
fn kept_of(state: &ViewState, generation: Generation) -> Option<&lamina_core::generation::Kept> {
    let earlier = state.kept.iter().rev().find(|kept| generation <= kept.published.generation)?;
    // Of what came before the earliest one kept, nothing is known but its own end.
    let before = state.kept.iter().filter(|kept| kept.replaced_at < earlier.replaced_at).count();
    let known = before > 0 || earlier.published.bases_since.is_none() || generation == earlier.published.generation;
    known.then_some(earlier)
}

/// What can be returned to, the latest first.
pub(super) fn kept(state: &ViewState) -> Vec<Value> {
    let one = |kept: &lamina_core::generation::Kept| {
        json!({"generation": kept.published.generation,
            "since": kept.published.bases_since.map(instant::format),
            "until": instant::format(kept.replaced_at)})
    };
    state.kept.iter().map(one).collect()
}
