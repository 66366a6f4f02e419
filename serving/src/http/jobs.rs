//! `/v1/jobs`: what batch was asked to do, and how it goes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use lamina_core::jobs::{self, Job, JobKind, JobState};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{app::App, auth::Principal, body, instant, problem::Problem, query::params::choice};

use super::idempotency::{self, Begun};

/// Most jobs in one list, and how many if nothing is said.
const MAX_JOBS: usize = 1_000;
const DEFAULT_JOBS: usize = 100;
/// Largest body of a request, and longest reason in it.
pub(super) const MAX_BODY: usize = 64 << 10;
/// Deepest nesting in it: such bodies are flat.
const MAX_DEPTH: usize = 16;
const MAX_REASON: usize = 1_000;
/// How often the document of a followed job is read.
const FOLLOW: Duration = Duration::from_millis(500);

const STATES: &[(&str, JobState)] = &[
    ("queued", JobState::Queued),
    ("running", JobState::Running),
    ("succeeded", JobState::Succeeded),
    ("failed", JobState::Failed),
    ("cancelled", JobState::Cancelled),
];
const KINDS: &[(&str, JobKind)] = &[
    ("scheduled", JobKind::Scheduled),
    ("recompute", JobKind::Recompute),
    ("build", JobKind::Build),
    ("rollback", JobKind::Rollback),
    ("erase", JobKind::Erase),
];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs))
        .routes(routes!(get_job))
        .routes(routes!(cancel_job))
        .routes(routes!(follow_job))
}

/// A job that was queued, and where to follow it.
pub(super) fn accepted(job: &Job) -> Response {
    let headers = [(header::LOCATION, format!("/v1/jobs/{}", job.id)), (header::RETRY_AFTER, "1".to_owned())];
    (StatusCode::ACCEPTED, headers, Json(JobStatus::from(job))).into_response()
}

/// Queues a job for a request to `endpoint`, or finds the one that an earlier request with the same key queued.
pub(super) async fn queue(
    app: &App,
    headers: &HeaderMap,
    endpoint: &str,
    principal: &Principal,
    body: &[u8],
    job: Job,
) -> Result<Response, Problem> {
    let Some(key) = idempotency::key(headers, endpoint, principal)? else {
        jobs::create(&*app.deps.store, &job).await?;
        return Ok(accepted(&job));
    };
    let job = match idempotency::begin(app, &key, body, &job.id).await? {
        Begun::Done(id) => jobs::load(&*app.deps.store, &id).await?.map_or(job, |(_, job)| job),
        Begun::New(id) => {
            let job = create(app, Job { id, ..job }).await?;
            idempotency::finish(app, &key).await?;
            if let Err(error) = idempotency::sweep(app).await {
                tracing::warn!(%error, "old idempotency keys were not removed");
            }
            job
        }
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

pub(super) fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    if matches!(body::media_type(headers).as_str(), "" | "application/json") {
        return Ok(());
    }
    let detail = "send application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail))
}

/// The object in a request's body, by default if that is empty. `holds` says what it may hold.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], holds: &str) -> Result<T, Problem> {
    body::check_depth(bytes, MAX_DEPTH)?;
    let bytes: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    let bad = |why: &dyn std::fmt::Display| {
        let detail = format!("the body cannot be used: {why}; it is an object of {holds}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_body", detail)
    };
    // A list would be taken for the members in their order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(bad(&"it is a list"));
    }
    serde_json::from_slice(bytes).map_err(|error| bad(&error))
}

pub(super) fn check_reason(reason: Option<&String>) -> Result<(), Problem> {
    if reason.is_some_and(|reason| reason.len() > MAX_REASON) {
        return Err(Problem::parameter("reason", format!("at most {MAX_REASON} bytes")));
    }
    Ok(())
}

/// A job as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobStatus {
    id: String,
    /// scheduled, recompute, build, rollback or erase
    kind: &'static str,
    /// queued, running, succeeded, failed or cancelled
    state: &'static str,
    progress: JobProgress,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    error: Option<String>,
    /// What it did, by kind.
    result: Option<Value>,
    request: JobAsked,
    cancel_requested: bool,
    attempts: u32,
}

#[derive(Debug, Serialize, ToSchema)]
struct JobProgress {
    stage: String,
    done: u64,
    total: u64,
    unit: String,
    rows: u64,
    eta_ms: Option<u64>,
}

/// What was asked of it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobRequest)]
struct JobAsked {
    metrics: Vec<String>,
    source: Option<String>,
    #[serde(rename = "where")]
    filter: Option<String>,
    from: Option<String>,
    to: Option<String>,
    dry_run: bool,
    as_of: Option<String>,
    reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Jobs {
    jobs: Vec<JobStatus>,
    /// Give it as `before` for the next page.
    next: Option<String>,
}

impl From<&Job> for JobStatus {
    fn from(job: &Job) -> Self {
        let (job, time) = (job.clone(), |at: Option<i64>| at.map(instant::format));
        let result = job.result.map(|text| serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text)));
        Self {
            id: job.id,
            kind: job.kind.as_str(),
            state: job.state.as_str(),
            progress: JobProgress {
                stage: job.progress.stage,
                done: job.progress.done,
                total: job.progress.total,
                unit: job.progress.unit,
                rows: job.progress.rows,
                eta_ms: job.progress.eta_ms,
            },
            created_at: instant::format(job.created_at),
            started_at: time(job.started_at),
            finished_at: time(job.finished_at),
            error: job.error,
            result,
            request: JobAsked {
                metrics: job.request.metrics,
                source: job.request.source,
                filter: job.request.erase,
                from: time(job.request.from),
                to: time(job.request.to),
                dry_run: job.request.dry_run,
                as_of: time(job.request.as_of),
                reason: job.request.reason,
            },
            cancel_requested: job.cancel_requested,
            attempts: job.attempts,
        }
    }
}

/// Lists jobs, the newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    params(
        ("state" = Option<String>, Query, description = "queued, running, succeeded, failed or cancelled"),
        ("kind" = Option<String>, Query, description = "scheduled, recompute, build, rollback or erase"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1_000, description = "Most jobs; 100 if left out"),
        ("before" = Option<String>, Query, description = "Only jobs older than this id: the next page")
    ),
    responses((status = 200, description = "Jobs", body = Jobs),
        (status = 400, description = "A parameter cannot be used")))]
async fn list_jobs(State(app): State<App>, Query(pairs): Query<Vec<(String, String)>>) -> Result<Json<Jobs>, Problem> {
    let (mut state, mut kind, mut limit, mut before) = (None, None, DEFAULT_JOBS, None);
    for (name, value) in &pairs {
        match name.as_str() {
            "state" => state = choice("state", Some(value), STATES)?,
            "kind" => kind = choice("kind", Some(value), KINDS)?,
            "before" => before = Some(value.as_str()),
            "limit" => {
                let asked = value.parse().ok().filter(|limit| (1..=MAX_JOBS).contains(limit));
                limit = asked.ok_or_else(|| Problem::parameter("limit", format!("a number from 1 to {MAX_JOBS}")))?;
            }
            _ => return Err(Problem::parameter(name, "is not a parameter; there are state, kind, limit, before")),
        }
    }
    let matches = |job: &Job| {
        state.is_none_or(|state| job.state == state)
            && kind.is_none_or(|kind| job.kind == kind)
            && before.is_none_or(|before| job.id.as_str() < before)
    };
    let all = jobs::list(&*app.deps.store).await?;
    let mut found = all.iter().rev().map(|(_, job)| job).filter(|job| matches(job));
    let page: Vec<&Job> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(|job| job.id.clone());
    Ok(Json(Jobs { jobs: page.into_iter().map(JobStatus::from).collect(), next }))
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobStatus), (status = 404, description = "Unknown job")))]
async fn get_job(State(app): State<App>, Path(id): Path<String>) -> Result<Json<JobStatus>, Problem> {
    Ok(Json(JobStatus::from(&load(&app, &id).await?)))
}

/// Cancels a queued job, or asks a running one to stop.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 202, description = "The job; a running one stops soon", body = JobStatus),
        (status = 404, description = "Unknown job"), (status = 409, description = "It has finished")))]
async fn cancel_job(State(app): State<App>, Path(id): Path<String>) -> Result<(StatusCode, Json<JobStatus>), Problem> {
    let job = jobs::cancel(&*app.deps.store, &id, app.deps.clock.now()).await?.ok_or_else(|| unknown(&id))?;
    match job.state {
        JobState::Succeeded | JobState::Failed => {
            let detail = format!("job {id} has {} already", job.state.as_str());
            Err(Problem::new(StatusCode::CONFLICT, "finished", detail))
        }
        JobState::Queued | JobState::Running | JobState::Cancelled => {
            Ok((StatusCode::ACCEPTED, Json(JobStatus::from(&job))))
        }
    }
}

/// Follows a job: an event for every change, until it has finished.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "Events named after the job's state, with the job as data", content_type = "text/event-stream"),
        (status = 404, description = "Unknown job"), (status = 503, description = "Too many streams are open")))]
async fn follow_job(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let permit = Arc::clone(&app.streams).try_acquire_owned().map_err(|_| {
        Problem::unavailable("overloaded", "too many streams are open: ask for the job itself from time to time")
    })?;
    let job = load(&app, &id).await?;
    let follow = Follow { app, seen: None, next: Some(job), done: false, _permit: permit };
    let events = stream::unfold(follow, |mut follow| async move {
        let event = follow.next_event().await?;
        Some((Ok(event), follow))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

struct Follow {
    app: App,
    seen: Option<Job>,
    next: Option<Job>,
    done: bool,
    _permit: OwnedSemaphorePermit,
}

impl Follow {
    async fn next_event(&mut self) -> Option<Event> {
        if self.done {
            return None;
        }
        loop {
            if let Some(job) = self.next.take().filter(|job| self.seen.as_ref() != Some(job)) {
                self.done = job.state.is_finished();
                let event = Event::default().event(job.state.as_str());
                let data = serde_json::to_string(&JobStatus::from(&job)).unwrap_or_default();
                let event = event.data(data);
                self.seen = Some(job);
                return Some(event);
            }
            tokio::time::sleep(FOLLOW).await;
            let id = self.seen.as_ref().map(|job| job.id.clone())?;
            match jobs::load(&*self.app.deps.store, &id).await {
                Ok(Some((_, job))) => self.next = Some(job),
                Ok(None) => return None,
                // The client keeps what it has; the next look may succeed.
                Err(error) => tracing::warn!(%error, job = id, "following a job failed"),
            }
        }
    }
}

async fn load(app: &App, id: &str) -> Result<Job, Problem> {
    let found = jobs::load(&*app.deps.store, id).await?;
    found.map(|(_, job)| job).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Problem {
    Problem::not_found("unknown_job", format!("there is no job {id:?}; GET /v1/jobs lists them"))
}
