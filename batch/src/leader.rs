//! Standing by, leading, and what a leader does: queued jobs one at a time, and the schedule.

use std::time::Duration;

use lamina_core::{Job, JobKind, JobRequest, JobState, Micros, ScheduleState, Store, StoreError, jobs};
use tokio_util::sync::CancellationToken;

use crate::{Batch, Schedule, job, lease::Lease, telemetry};

/// How often a leader looks for queued jobs.
const POLL: Duration = Duration::from_secs(1);
/// Finished jobs that are kept.
const KEPT: usize = 100;
/// How often a leader looks for what versions that are being built do not cover.
const BUILD_EVERY: Micros = 5_000_000;

/// Leads whenever nobody else does, until `stop`.
pub(crate) async fn stand(
    batch: &Batch,
    length: Duration,
    schedule: &Schedule,
    retries: u32,
    stop: &CancellationToken,
) {
    let lease = Lease::new(&*batch.deps.store, length);
    while !stop.is_cancelled() {
        match lease.hold().await {
            Ok(true) => {
                telemetry::leads(true);
                tracing::info!(holder = lease.holder(), "leads batch");
                // Losing the lease stops what is under way as `stop` does.
                let term = stop.child_token();
                tokio::join!(renew(&lease, &term), serve(batch, lease.holder(), schedule, retries, &term));
                telemetry::leads(false);
                if let Err(error) = lease.release().await {
                    tracing::debug!(%error, "lease not released");
                }
            }
            Ok(false) => telemetry::leads(false),
            Err(error) => tracing::warn!(%error, "lease could not be asked for"),
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(lease.pace()) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Renews until the term ends; ends it when another took the lease or it could not be renewed for too long.
async fn renew(lease: &Lease<'_>, term: &CancellationToken) {
    let mut failures = 0;
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(lease.pace()) => {}
            () = term.cancelled() => return,
        }
        match lease.hold().await {
            Ok(true) => failures = 0,
            Ok(false) => {
                tracing::info!("another leads batch");
                return term.cancel();
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "lease could not be renewed");
                if failures >= 3 {
                    return term.cancel();
                }
            }
        }
    }
}

/// Does a leader's work until the term ends. A store that does not answer is asked again.
async fn serve(batch: &Batch, holder: &str, schedule: &Schedule, retries: u32, term: &CancellationToken) {
    let mut agenda = Agenda { batch, holder, schedule, retries, next: None, built_at: Micros::MIN, taken_up: false };
    while !term.is_cancelled() {
        if let Err(error) = agenda.turn(term).await {
            tracing::warn!(%error, "batch cannot use the store");
            // A job whose end could not be stored would seem to run for ever, and keep the schedule from going on.
            agenda.taken_up = false;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(POLL) => {}
            () = term.cancelled() => {}
        }
    }
}

struct Agenda<'a> {
    batch: &'a Batch,
    holder: &'a str,
    schedule: &'a Schedule,
    retries: u32,
    /// When the next scheduled run is due.
    next: Option<Micros>,
    /// When it was last looked for versions to build.
    built_at: Micros,
    taken_up: bool,
}

impl Agenda<'_> {
    async fn turn(&mut self, term: &CancellationToken) -> Result<(), StoreError> {
        if !self.taken_up {
            self.take_up().await?;
            self.taken_up = true;
        }
        let now = self.batch.deps.clock.now();
        if self.next.is_some_and(|next| next <= now) && jobs::load_schedule(self.store()).await?.paused.is_none() {
            self.queue_scheduled(now).await?;
        }
        self.queue_builds(now).await?;
        let all = jobs::list(self.store()).await?;
        let Some((_, job)) = all.iter().find(|(_, job)| job.state == JobState::Queued) else { return Ok(()) };
        job::execute(self.batch, &job.id, self.retries, term).await?;
        self.forget_old().await
    }

    fn store(&self) -> &dyn Store {
        &*self.batch.deps.store
    }

    /// Jobs of a leader that is gone are queued again; a run that was missed, or the very first, is due at once.
    async fn take_up(&mut self) -> Result<(), StoreError> {
        for (_, job) in jobs::list(self.store()).await? {
            if job.state == JobState::Running {
                let queued = |job: &mut Job| {
                    let running = job.state == JobState::Running;
                    if running {
                        job.state = JobState::Queued;
                    }
                    running
                };
                jobs::update(self.store(), &job.id, queued).await?;
            }
        }
        let now = self.batch.deps.clock.now();
        let known = jobs::load_schedule(self.store()).await?;
        let due = known.last_run.map_or(Some(now), |last| self.schedule.after(last));
        self.next = self.schedule.after(now).zip(due).map(|(next, due)| next.min(due));
        self.note().await
    }

    /// One scheduled run at a time: while one waits or is under way, the next is left out.
    async fn queue_scheduled(&mut self, now: Micros) -> Result<(), StoreError> {
        jobs::queue_scheduled(self.store(), now).await?;
        self.next = self.schedule.after(now);
        self.note().await
    }

    /// A version that is being built is covered as soon as there is something to cover, so that it answers soon, unless that
    /// has failed or was cancelled: then the schedule does it.
    async fn queue_builds(&mut self, now: Micros) -> Result<(), StoreError> {
        let building: Vec<_> = self.batch.deps.catalog.borrow().building.values().cloned().collect();
        if building.is_empty() || now.saturating_sub(self.built_at) < BUILD_EVERY {
            return Ok(());
        }
        self.built_at = now;
        let all = jobs::list(self.store()).await?;
        for metric in building {
            let label = job::label(&metric);
            let own = |job: &Job| job.kind == JobKind::Build && job.request.metrics.contains(&label);
            if all.iter().any(|(_, job)| own(job) && job.state != JobState::Succeeded) {
                continue;
            }
            match self.batch.is_behind(&metric).await {
                Ok(true) => {
                    let reason = Some(format!("version {} of {} is being built", metric.version, metric.name));
                    let request = JobRequest { metrics: vec![label], reason, ..JobRequest::default() };
                    jobs::create(self.store(), &Job::new(JobKind::Build, request, now)).await?;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(metric = label, error = error.chain(), "cannot be built yet"),
            }
        }
        Ok(())
    }

    /// Tells what is followed.
    async fn note(&self) -> Result<(), StoreError> {
        let change = |state: &mut ScheduleState| {
            state.cron = self.schedule.to_string();
            state.time_zone = self.schedule.time_zone().name().to_owned();
            state.next_run = self.next;
            state.leader = Some(self.holder.to_owned());
        };
        jobs::update_schedule(self.store(), change).await.map(drop)
    }

    async fn forget_old(&self) -> Result<(), StoreError> {
        let all = jobs::list(self.store()).await?;
        let finished: Vec<_> = all.into_iter().filter(|(_, job)| job.state.is_finished()).collect();
        let old = finished.len().saturating_sub(KEPT);
        for (version, job) in finished.into_iter().take(old) {
            self.store().remove(jobs::JOB_DOCUMENTS, &job.id, version).await?;
        }
        Ok(())
    }
}
