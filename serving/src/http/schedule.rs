//! `/v1/schedule`: when batch runs by itself; pausing it, and running it now.

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use lamina_core::{Pause, ScheduleState, jobs};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    body,
    http::jobs::{JobStatus, MAX_BODY, accepted, check_reason, parse},
    instant,
    problem::Problem,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get_schedule))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(run))
}

/// When batch runs by itself.
#[derive(Debug, Serialize, ToSchema)]
struct Schedule {
    /// As configured where batch is led: a cron expression, or `off`; null before any batch process has led.
    cron: Option<String>,
    /// IANA name of the zone that the expression is read in.
    time_zone: Option<String>,
    paused: bool,
    paused_since: Option<String>,
    paused_because: Option<String>,
    /// When the next run is due; null while the schedule is off or paused.
    next_run: Option<String>,
    /// When the last run was queued.
    last_run: Option<String>,
    /// The job of the last run.
    last_job: Option<String>,
    /// The batch process that leads.
    leader: Option<String>,
}

impl From<ScheduleState> for Schedule {
    fn from(state: ScheduleState) -> Self {
        let known = |text: String| (!text.is_empty()).then_some(text);
        let (paused_since, paused_because) = state.paused.map(|pause| (pause.since, pause.reason)).unzip();
        Self {
            cron: known(state.cron),
            time_zone: known(state.time_zone),
            paused: paused_since.is_some(),
            next_run: state.next_run.filter(|_| paused_since.is_none()).map(instant::format),
            paused_since: paused_since.map(instant::format),
            paused_because: paused_because.flatten(),
            last_run: state.last_run.map(instant::format),
            last_job: state.last_job,
            leader: state.leader,
        }
    }
}

/// When batch runs by itself.
#[utoipa::path(get, path = "/v1/schedule", tag = "jobs",
    responses((status = 200, description = "The schedule", body = Schedule)))]
async fn get_schedule(State(app): State<App>) -> Result<Json<Schedule>, Problem> {
    Ok(Json(jobs::load_schedule(&*app.deps.store).await?.into()))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = PauseRequest)]
struct Reason {
    reason: Option<String>,
}

/// Pauses the schedule: nothing is queued until it is resumed. A run under way goes on.
#[utoipa::path(post, path = "/v1/schedule/pause", operation_id = "pause_schedule", tag = "jobs", request_body = Reason,
    responses((status = 200, description = "The paused schedule", body = Schedule),
        (status = 400, description = "The body cannot be used")))]
async fn pause(State(app): State<App>, request: Request) -> Result<Json<Schedule>, Problem> {
    let bytes = body::read(request.into_body(), MAX_BODY, app.config.body_timeout).await?;
    let Reason { reason } = parse(&bytes, "reason")?;
    check_reason(reason.as_ref())?;
    let since = app.deps.clock.now();
    let change = |state: &mut ScheduleState| {
        // Who paused it first says since when.
        let since = state.paused.as_ref().map_or(since, |pause| pause.since);
        state.paused = Some(Pause { since, reason: reason.clone() });
    };
    Ok(Json(jobs::update_schedule(&*app.deps.store, change).await?.into()))
}

/// Resumes the schedule. A run that fell due meanwhile is made at once, and only once.
#[utoipa::path(post, path = "/v1/schedule/resume", operation_id = "resume_schedule", tag = "jobs",
    responses((status = 200, description = "The schedule", body = Schedule)))]
async fn resume(State(app): State<App>) -> Result<Json<Schedule>, Problem> {
    Ok(Json(jobs::update_schedule(&*app.deps.store, |state| state.paused = None).await?.into()))
}

/// Runs what the schedule runs, now, paused or not. While such a run waits or is under way, that one is answered.
#[utoipa::path(post, path = "/v1/schedule/run", operation_id = "run_schedule", tag = "jobs",
    responses((status = 202, description = "The job; `location` is where to follow it", body = JobStatus)))]
async fn run(State(app): State<App>) -> Result<Response, Problem> {
    let job = jobs::queue_scheduled(&*app.deps.store, app.deps.clock.now()).await?;
    Ok(accepted(&job))
}
