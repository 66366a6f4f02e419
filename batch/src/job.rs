//! One job from queue to end: its metrics one after the other, retries with back-off, progress and cancellation through
//! its document.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use lamina_core::{Job, JobKind, JobState, Store, StoreError, jobs};
use lamina_metric::Metric;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{Batch, BatchError, Meter, Outcome, Wanted};

/// How often progress is stored and the wish to cancel is looked for.
const POLL: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Changed buckets that a job's result lists.
const EXAMPLES: usize = 100;

/// What a job's attempts have brought so far, by metric.
type Results = BTreeMap<String, Outcome>;

/// Runs the job of this id to its end, or until `stop`: then it is queued again for the next leader.
pub(crate) async fn execute(batch: &Batch, id: &str, retries: u32, stop: &CancellationToken) -> Result<(), StoreError> {
    let store = &*batch.deps.store;
    let mut results = Results::new();
    loop {
        let now = batch.deps.clock.now();
        let begun = jobs::update(store, id, |job| begin(job, now, retries)).await?;
        let Some(job) = begun.filter(|job| !job.state.is_finished()) else { return Ok(()) };
        let (meter, cancel) = (Arc::new(Meter::default()), CancellationToken::new());
        let ended = tokio::select! {
            biased;
            ended = attempt(batch, &job, &mut results, &meter, &cancel) => ended,
            () = stop.cancelled() => return requeue(store, id).await,
            gone = watch(store, id, &meter, &cancel) => match gone? {},
        };
        let Err(error) = ended else { return succeed(batch, id, &results, &meter).await };
        let again = error.is_transient() || matches!(error, BatchError::TakenOver);
        let text = error.chain();
        if again && job.attempts <= retries {
            tracing::warn!(job = id, error = text, "attempt failed and is made again");
            note(store, id, &text).await?;
            if pause(store, id, job.attempts, stop).await? {
                continue;
            }
            return Ok(());
        }
        return fail(batch, id, &error, &text).await;
    }
}

/// Takes a job up, unless it is over. A job whose runners died too often is not tried for ever.
fn begin(job: &mut Job, now: i64, retries: u32) -> bool {
    if job.state.is_finished() {
        return false;
    }
    if job.cancel_requested {
        job.finish(JobState::Cancelled, now);
    } else if job.attempts > retries.saturating_add(1) {
        job.error.get_or_insert_with(|| "its runner stopped without a word, each time".to_owned());
        job.finish(JobState::Failed, now);
    } else {
        job.state = JobState::Running;
        job.started_at = Some(now);
        job.attempts += 1;
    }
    true
}

/// Runs every metric that is not done yet; one that fails does not keep the others from running.
async fn attempt(
    batch: &Batch,
    job: &Job,
    results: &mut Results,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
) -> Result<(), BatchError> {
    let wanted = match (job.kind, job.request.dry_run) {
        (JobKind::Scheduled, _) => Wanted::Cover,
        (JobKind::Recompute, false) => Wanted::Rebuild { from: job.request.from, to: job.request.to },
        (JobKind::Recompute, true) => Wanted::DryRun { from: job.request.from, to: job.request.to },
    };
    let mut failed = None;
    for metric in metrics(batch, job)? {
        if results.contains_key(&metric.name) {
            continue;
        }
        match batch.run_metric(&metric, &wanted, meter, cancel).await {
            Ok(outcome) => {
                tracing::debug!(metric = metric.name, outcome = %outcome.to_json(), "metric done");
                results.insert(metric.name.clone(), outcome);
            }
            Err(BatchError::Cancelled) => return Err(BatchError::Cancelled),
            Err(error) => {
                tracing::error!(metric = metric.name, error = error.chain(), "batch run failed");
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn metrics(batch: &Batch, job: &Job) -> Result<Vec<Arc<Metric>>, BatchError> {
    let catalog = Arc::clone(&batch.deps.catalog.borrow());
    if job.request.metrics.is_empty() {
        return Ok(catalog.metrics.values().cloned().collect());
    }
    let find = |name: &String| {
        let unknown =
            || BatchError::UnknownMetric { name: name.clone(), known: catalog.metrics.keys().cloned().collect() };
        catalog.metrics.get(name).cloned().ok_or_else(unknown)
    };
    job.request.metrics.iter().map(find).collect()
}

/// Stores progress and passes the wish to cancel on, for as long as it is polled. A store that does not answer is asked
/// again: the run itself notices if it matters.
async fn watch(
    store: &dyn Store,
    id: &str,
    meter: &Meter,
    cancel: &CancellationToken,
) -> Result<Infallible, StoreError> {
    loop {
        tokio::time::sleep(POLL).await;
        let progress = meter.progress();
        let update = |job: &mut Job| {
            let changes = job.state == JobState::Running && job.progress != progress;
            if changes {
                job.progress = progress.clone();
            }
            changes
        };
        match jobs::update(store, id, update).await {
            Ok(Some(job)) if !job.cancel_requested && job.state != JobState::Cancelled => {}
            // Removed or cancelled.
            Ok(_) => cancel.cancel(),
            Err(error) => tracing::warn!(job = id, %error, "progress could not be stored"),
        }
    }
}

/// Waits before the next attempt; false if the job shall not go on here.
async fn pause(store: &dyn Store, id: &str, attempts: u32, stop: &CancellationToken) -> Result<bool, StoreError> {
    let pause = Duration::from_secs(1).saturating_mul(1 << attempts.saturating_sub(1).min(6)).min(LONGEST_PAUSE);
    tokio::select! {
        biased;
        () = tokio::time::sleep(pause) => Ok(true),
        () = stop.cancelled() => requeue(store, id).await.map(|()| false),
    }
}

async fn note(store: &dyn Store, id: &str, error: &str) -> Result<(), StoreError> {
    let noted =
        |job: &mut Job| !job.state.is_finished() && job.error.replace(error.to_owned()).as_deref() != Some(error);
    jobs::update(store, id, noted).await.map(drop)
}

async fn requeue(store: &dyn Store, id: &str) -> Result<(), StoreError> {
    let queued = |job: &mut Job| {
        let running = job.state == JobState::Running;
        if running {
            job.state = JobState::Queued;
            job.attempts = job.attempts.saturating_sub(1);
        }
        running
    };
    jobs::update(store, id, queued).await.map(drop)
}

async fn succeed(batch: &Batch, id: &str, results: &Results, meter: &Meter) -> Result<(), StoreError> {
    let (now, progress) = (batch.deps.clock.now(), meter.progress());
    let result = result(results).to_string();
    let ended = |job: &mut Job| {
        if job.state.is_finished() {
            return false;
        }
        job.finish(JobState::Succeeded, now);
        job.progress = progress.clone();
        job.progress.eta_ms = Some(0);
        job.error = None;
        job.result = Some(result.clone());
        true
    };
    jobs::update(&*batch.deps.store, id, ended).await.map(drop)
}

async fn fail(batch: &Batch, id: &str, error: &BatchError, text: &str) -> Result<(), StoreError> {
    let now = batch.deps.clock.now();
    let cancelled = matches!(error, BatchError::Cancelled);
    let ended = |job: &mut Job| {
        if job.state.is_finished() {
            return false;
        }
        if cancelled {
            job.finish(JobState::Cancelled, now);
        } else {
            job.error = Some(text.to_owned());
            job.finish(JobState::Failed, now);
        }
        true
    };
    jobs::update(&*batch.deps.store, id, ended).await.map(drop)
}

/// By metric, and of dry runs the sums over all.
fn result(results: &Results) -> Value {
    let metrics: BTreeMap<&String, Value> = results.iter().map(|(name, outcome)| (name, outcome.to_json())).collect();
    let mut result = json!({"metrics": metrics});
    let (mut all, mut sums) = (Vec::new(), (0, 0));
    let mut dry = false;
    for outcome in results.values() {
        if let Outcome::DryRun { buckets, series, changed, .. } = outcome {
            dry = true;
            sums = (sums.0 + buckets, sums.1 + series);
            all.extend(changed.iter().take(EXAMPLES.saturating_sub(all.len())).cloned());
        }
    }
    if dry {
        result["buckets"] = sums.0.into();
        result["series"] = sums.1.into();
        result["changed"] = all.into();
    }
    result
}
