//! Jobs: what batch was asked to do and how it goes, as documents of the store.
//!
//! Serving creates, lists and cancels jobs, batch runs them, perhaps in another process: the documents are all that they
//! share. Every change is a compare-and-set, so nobody's change is lost.
//!
//! # Invariants
//! - A finished job never changes again.
//! - A cancelled job publishes nothing; one that finishes before it sees the request has simply finished.

use serde::{Deserialize, Serialize};

use crate::{
    envelope::{self, EnvelopeError},
    ids::{Micros, new_id},
    store::{Commit, Document, Documents, StoreError},
};

/// Kind of the documents that hold jobs; their key is the job's id.
pub const JOB_DOCUMENTS: &str = "job";
/// Kind and key of the document that says when batch runs next.
pub const SCHEDULE_DOCUMENTS: &str = "schedule";
const SCHEDULE_KEY: &str = "batch";
/// How often a refused compare-and-set is made again on what was read back.
const ATTEMPTS: u32 = 16;

/// One run of batch over some metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// `job_` and a UUIDv7: ids sort by creation.
    pub id: String,
    pub kind: JobKind,
    pub state: JobState,
    pub request: JobRequest,
    pub progress: Progress,
    pub created_at: Micros,
    /// When its last attempt began.
    pub started_at: Option<Micros>,
    pub finished_at: Option<Micros>,
    /// Why the last attempt failed; kept while it is retried.
    pub error: Option<String>,
    /// A JSON object, once succeeded.
    pub result: Option<String>,
    pub cancel_requested: bool,
    /// How often it was begun.
    pub attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// Covers newly sealed epochs, as the schedule says.
    Scheduled,
    /// Was asked for.
    Recompute,
    /// Covers a version of a metric that does not answer yet, from the archive.
    Build,
    /// Returns to what a recompute replaced.
    Rollback,
    /// Erases events from the archive and from all views.
    Erase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

/// What a job shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    /// By name; none means all. Of a build: `name@version`.
    pub metrics: Vec<String>,
    /// Event time from which to rebuild; `None` is the beginning. Widened to whole batch chunks.
    pub from: Option<Micros>,
    /// Exclusive; `None` is the end.
    pub to: Option<Micros>,
    /// Only say what would change.
    pub dry_run: bool,
    /// Of a rollback: the moment whose publication is wanted back. It fails without one.
    pub as_of: Option<Micros>,
    /// Of an erasure: the source.
    pub source: Option<String>,
    /// Of an erasure: a filter over the source's events. It says about whom it is, so it is forgotten once that is done.
    pub erase: Option<String>,
    pub reason: Option<String>,
}

/// How far a running job has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub stage: String,
    /// Of `total`, in `unit`s.
    pub done: u64,
    pub total: u64,
    pub unit: String,
    /// Archive rows read so far.
    pub rows: u64,
    pub eta_ms: Option<u64>,
}

/// When batch runs: what the leader follows, and what people want of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// The cron expression that the leader was configured with, or `off`; empty before anybody led.
    pub cron: String,
    /// IANA name of the zone that the expression is read in.
    pub time_zone: String,
    /// While it is paused nothing is queued; a run that falls due meanwhile is made once it goes on.
    pub paused: Option<Pause>,
    /// `None` while the schedule is off.
    pub next_run: Option<Micros>,
    /// When the last scheduled run was queued.
    pub last_run: Option<Micros>,
    /// The job of the last scheduled run.
    pub last_job: Option<String>,
    /// Who leads batch.
    pub leader: Option<String>,
}

/// Since when and why the schedule is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub since: Micros,
    pub reason: Option<String>,
}

impl JobKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Recompute => "recompute",
            Self::Build => "build",
            Self::Rollback => "rollback",
            Self::Erase => "erase",
        }
    }
}

impl JobState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether a job in this state never changes again.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl Job {
    /// A queued job with a new id.
    pub fn new(kind: JobKind, request: JobRequest, now: Micros) -> Self {
        Self {
            id: format!("job_{}", new_id().simple()),
            kind,
            state: JobState::Queued,
            request,
            progress: Progress::default(),
            created_at: now,
            started_at: None,
            finished_at: None,
            error: None,
            result: None,
            cancel_requested: false,
            attempts: 0,
        }
    }

    /// Ends the job in `state`.
    pub fn finish(&mut self, state: JobState, now: Micros) {
        self.state = state;
        self.finished_at = Some(now);
    }
}

/// Stores a new job.
///
/// # Errors
/// As the store; [`StoreError::Refused`] if the id is taken.
pub async fn create<D: Documents + ?Sized>(store: &D, job: &Job) -> Result<(), StoreError> {
    let value = envelope::pack(job).map_err(|error| corrupt(&job.id, &error))?;
    match store.put(JOB_DOCUMENTS, &job.id, 0, value.into()).await {
        Ok(Commit::Applied) => Ok(()),
        Ok(Commit::Refused) => Err(StoreError::Refused(format!("job {} exists already", job.id))),
        // The id is new: if a job stands under it, it is this one.
        Err(StoreError::Unknown(why)) => match load(store, &job.id).await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Unknown(why)),
        },
        Err(error) => Err(error),
    }
}

/// The job of this id, with the version that a change must name.
///
/// # Errors
/// As the store, and [`StoreError::Corrupt`] if it does not decode.
pub async fn load<D: Documents + ?Sized>(store: &D, id: &str) -> Result<Option<(u64, Job)>, StoreError> {
    let Some(document) = store.get(JOB_DOCUMENTS, id).await? else { return Ok(None) };
    decode(id, &document).map(|job| Some((document.version, job)))
}

/// All jobs with their versions, the oldest first.
///
/// # Errors
/// As [`load`].
pub async fn list<D: Documents + ?Sized>(store: &D) -> Result<Vec<(u64, Job)>, StoreError> {
    let mut jobs = Vec::new();
    for (id, document) in store.list(JOB_DOCUMENTS).await? {
        jobs.push((document.version, decode(&id, &document)?));
    }
    jobs.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    Ok(jobs)
}

/// Changes a job by compare-and-set and gives it as it stands afterwards; `None` if there is no such job. `change` says
/// whether there is anything to write; it may be called several times, each time on the job as it was read, and must do
/// nothing on a job that it has already changed.
///
/// # Errors
/// As [`load`]; [`StoreError::Unavailable`] if others kept changing the job.
pub async fn update<D, F>(store: &D, id: &str, mut change: F) -> Result<Option<Job>, StoreError>
where
    D: Documents + ?Sized,
    F: FnMut(&mut Job) -> bool + Send,
{
    for _ in 0..ATTEMPTS {
        let Some((version, mut job)) = load(store, id).await? else { return Ok(None) };
        if !change(&mut job) {
            return Ok(Some(job));
        }
        let value = envelope::pack(&job).map_err(|error| corrupt(id, &error))?;
        match store.put(JOB_DOCUMENTS, id, version, value.into()).await {
            Ok(Commit::Applied) => return Ok(Some(job)),
            // Both are decided by reading back.
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Unavailable(format!("job {id} kept changing")))
}

/// Cancels a queued job at once and asks a running one to stop. A finished job stays as it is.
///
/// # Errors
/// As [`update`].
pub async fn cancel<D: Documents + ?Sized>(store: &D, id: &str, now: Micros) -> Result<Option<Job>, StoreError> {
    update(store, id, |job| {
        let queued = job.state == JobState::Queued;
        let changes = queued || (job.state == JobState::Running && !job.cancel_requested);
        if changes {
            job.cancel_requested = true;
        }
        if queued {
            job.finish(JobState::Cancelled, now);
        }
        changes
    })
    .await
}

/// Queues a scheduled run now, unless one waits or is under way: then that one is given.
///
/// Two callers at once may queue two; the second finds nothing left to cover.
///
/// # Errors
/// As [`create`] and [`update_schedule`].
pub async fn queue_scheduled<D: Documents + ?Sized>(store: &D, now: Micros) -> Result<Job, StoreError> {
    let waits = |job: &Job| job.kind == JobKind::Scheduled && !job.state.is_finished();
    let waiting = list(store).await?.into_iter().map(|(_, job)| job).find(waits);
    let job = match waiting {
        Some(job) => job,
        None => {
            let job = Job::new(JobKind::Scheduled, JobRequest::default(), now);
            create(store, &job).await?;
            job
        }
    };
    update_schedule(store, |state| {
        state.last_run = Some(now);
        state.last_job = Some(job.id.clone());
    })
    .await?;
    Ok(job)
}

/// When batch runs; the default before anybody led.
///
/// # Errors
/// As the store, and [`StoreError::Corrupt`] if it does not decode.
pub async fn load_schedule<D: Documents + ?Sized>(store: &D) -> Result<ScheduleState, StoreError> {
    Ok(read_schedule(store).await?.1)
}

/// Changes what [`load_schedule`] gives by compare-and-set, and gives it as it stands afterwards. `change` may be called
/// several times, each time on the state as it was read.
///
/// # Errors
/// As [`load_schedule`]; [`StoreError::Unavailable`] if others kept changing it.
pub async fn update_schedule<D, F>(store: &D, mut change: F) -> Result<ScheduleState, StoreError>
where
    D: Documents + ?Sized,
    F: FnMut(&mut ScheduleState) + Send,
{
    for _ in 0..ATTEMPTS {
        let (version, before) = read_schedule(store).await?;
        let mut state = before.clone();
        change(&mut state);
        if state == before {
            return Ok(state);
        }
        let value = envelope::pack(&state).map_err(|error| corrupt_schedule(&error))?;
        match store.put(SCHEDULE_DOCUMENTS, SCHEDULE_KEY, version, value.into()).await {
            Ok(Commit::Applied) => return Ok(state),
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Unavailable("batch schedule kept changing".to_owned()))
}

async fn read_schedule<D: Documents + ?Sized>(store: &D) -> Result<(u64, ScheduleState), StoreError> {
    let Some(document) = store.get(SCHEDULE_DOCUMENTS, SCHEDULE_KEY).await? else {
        return Ok((0, ScheduleState::default()));
    };
    let state = envelope::unpack(&document.value).map_err(|error| corrupt_schedule(&error))?;
    Ok((document.version, state))
}

fn corrupt_schedule(error: &EnvelopeError) -> StoreError {
    StoreError::Corrupt { what: "batch schedule".to_owned(), why: error.to_string() }
}

fn decode(id: &str, document: &Document) -> Result<Job, StoreError> {
    envelope::unpack(&document.value).map_err(|error| corrupt(id, &error))
}

fn corrupt(id: &str, error: &EnvelopeError) -> StoreError {
    StoreError::Corrupt { what: format!("job {id}"), why: error.to_string() }
}
