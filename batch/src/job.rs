//! One job from queue to end: its metrics one after the other, retries with back-off, progress and cancellation through
//! its document.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use lamina_core::{Job, JobKind, JobState, Store, StoreError, jobs};
use lamina_metric::Metric;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    Batch, BatchError, Meter, Outcome, Wanted,
    archive::{Cared, Erasure},
    table, versions,
};

/// How often progress is stored and the wish to cancel is looked for.
const POLL: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Changed buckets that a job's result lists.
const EXAMPLES: usize = 100;

/// What a job's attempts have brought so far, by version.
#[derive(Default)]
struct Results {
    outcomes: BTreeMap<String, Outcome>,
    /// What sets a version that was built apart from the one that answers.
    comparisons: BTreeMap<String, Value>,
    /// What was done for the archive of each source.
    archive: BTreeMap<String, Value>,
    /// The report of an erasure.
    erased: Option<Value>,
    /// What scans of tables met and did, by source.
    tables: BTreeMap<String, Value>,
}

/// A version of a metric that a job works on.
struct Subject {
    /// The metric's name; `name@version` if that version does not answer.
    label: String,
    metric: Arc<Metric>,
    wanted: Wanted,
}

impl Subject {
    /// Whether it is over a table, which one scan covers for all its metrics.
    fn is_scanned(&self) -> bool {
        self.metric.source.table.is_some() && !matches!(self.wanted, Wanted::Rollback { .. })
    }
}

impl Results {
    fn scanned(&mut self, run: table::TableRun, outcomes: Vec<Outcome>, tally: &table::Tally) {
        tracing::debug!(source = run.source.name, ?tally, "table scanned");
        self.outcomes.extend(run.metrics.into_iter().map(|(label, _)| label).zip(outcomes));
        self.tables.insert(run.source.name.clone(), tally.to_json(run.effect == table::Effect::Everything));
    }
}

/// Runs the job of this id to its end, or until `stop`: then it is queued again for the next leader.
pub(crate) async fn execute(batch: &Batch, id: &str, retries: u32, stop: &CancellationToken) -> Result<(), StoreError> {
    let store = &*batch.deps.store;
    let mut results = Results::default();
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

impl Batch {
    /// Does once what a job asks for, whatever its document says, and gives its result.
    ///
    /// # Errors
    /// As [`Batch::run_metric`], of the first version or source that fails; what was done for the others stays done.
    pub async fn attempt_job(
        &self,
        job: &Job,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Value, BatchError> {
        let mut results = Results::default();
        attempt(self, job, &mut results, meter, cancel).await?;
        Ok(result(&results))
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

/// Runs every version that is not done yet; one that fails does not keep the others from running.
async fn attempt(
    batch: &Batch,
    job: &Job,
    results: &mut Results,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
) -> Result<(), BatchError> {
    if job.kind == JobKind::Erase {
        results.erased = Some(Erasure::of(batch, job)?.run(batch, meter, cancel).await?);
        return Ok(());
    }
    let mut failed = None;
    let (tables, logs): (Vec<_>, Vec<_>) = subjects(batch, job)?.into_iter().partition(Subject::is_scanned);
    let tables = tables.into_iter().map(|subject| (subject.label, subject.metric)).collect();
    for Subject { label, metric, wanted } in logs {
        if results.outcomes.contains_key(&label) {
            continue;
        }
        match batch.run_metric(&metric, &wanted, meter, cancel).await {
            Ok(outcome) => {
                tracing::debug!(metric = label, outcome = %outcome.to_json(), "metric done");
                results.outcomes.insert(label, outcome);
            }
            Err(BatchError::Cancelled) => return Err(BatchError::Cancelled),
            Err(error) => {
                tracing::error!(metric = label, error = error.chain(), "batch run failed");
                failed.get_or_insert(error);
            }
        }
    }
    let catalog = Arc::clone(&batch.deps.catalog.borrow());
    for run in table::runs(&catalog, job, tables) {
        if results.tables.contains_key(&run.source.name) {
            continue;
        }
        match batch.run_table(&run, meter, cancel).await {
            Ok((outcomes, tally)) => results.scanned(run, outcomes, &tally),
            Err(BatchError::Cancelled) => return Err(BatchError::Cancelled),
            Err(error) => {
                tracing::error!(source = run.source.name, error = error.chain(), "table was not scanned");
                failed.get_or_insert(error);
            }
        }
    }
    if job.kind == JobKind::Build && failed.is_none() {
        compare(batch, job, results).await?;
    }
    if job.kind == JobKind::Scheduled {
        care(batch, results, meter, cancel, &mut failed).await?;
    }
    failed.map_or(Ok(()), Err)
}

/// Looks after the archive of each source; one that fails does not keep the others from it.
async fn care(
    batch: &Batch,
    results: &mut Results,
    meter: &Arc<Meter>,
    cancel: &CancellationToken,
    failed: &mut Option<BatchError>,
) -> Result<(), BatchError> {
    let sources: Vec<_> = batch.deps.catalog.borrow().sources.values().cloned().collect();
    for source in sources {
        match batch.care(&source, meter, cancel).await {
            Ok(cared) if cared == Cared::default() => {}
            Ok(cared) => drop(results.archive.insert(source.name.clone(), cared.to_json())),
            Err(BatchError::Cancelled) => return Err(BatchError::Cancelled),
            Err(error) => {
                tracing::error!(source = source.name, error = error.chain(), "archive was not looked after");
                failed.get_or_insert(error);
            }
        }
    }
    Ok(())
}

/// What the job works on, in order. A recompute or rollback is of what answers; what covers newly sealed epochs does so for
/// versions that are being built, too.
fn subjects(batch: &Batch, job: &Job) -> Result<Vec<Subject>, BatchError> {
    let catalog = Arc::clone(&batch.deps.catalog.borrow());
    let request = &job.request;
    let wanted = match job.kind {
        JobKind::Scheduled | JobKind::Build => Wanted::Cover,
        JobKind::Recompute if request.dry_run => Wanted::DryRun { from: request.from, to: request.to },
        JobKind::Recompute => Wanted::Rebuild { from: request.from, to: request.to },
        JobKind::Erase => return Ok(Vec::new()),
        JobKind::Rollback => Wanted::Rollback { as_of: request.as_of.ok_or(BatchError::NoMoment)? },
    };
    let answers = |metric: &Arc<Metric>| Subject {
        label: metric.name.clone(),
        metric: Arc::clone(metric),
        wanted: wanted.clone(),
    };
    let built = |metric: &Arc<Metric>| Subject { label: label(metric), ..answers(metric) };
    if job.kind == JobKind::Build {
        // One that answers by now, or that was taken back, is nobody's concern any more.
        let asked = |metric: &&Arc<Metric>| request.metrics.contains(&label(metric));
        let pair = |metric: &Arc<Metric>| [catalog.metrics.get(&metric.name).map(answers), Some(built(metric))];
        return Ok(catalog.building.values().filter(asked).flat_map(pair).flatten().collect());
    }
    if request.metrics.is_empty() {
        let building = catalog.building.values().filter(|_| job.kind == JobKind::Scheduled);
        return Ok(catalog.metrics.values().map(answers).chain(building.map(built)).collect());
    }
    let find = |name: &String| {
        let unknown =
            || BatchError::UnknownMetric { name: name.clone(), known: catalog.metrics.keys().cloned().collect() };
        catalog.metrics.get(name).map(answers).ok_or_else(unknown)
    };
    request.metrics.iter().map(find).collect()
}

/// How a version that does not answer yet is named.
pub(crate) fn label(metric: &Metric) -> String {
    format!("{}@{}", metric.name, metric.version)
}

/// Compares the versions that a job has built with those that answer.
async fn compare(batch: &Batch, job: &Job, results: &mut Results) -> Result<(), BatchError> {
    let catalog = Arc::clone(&batch.deps.catalog.borrow());
    for metric in catalog.building.values().filter(|metric| job.request.metrics.contains(&label(metric))) {
        if let Some(before) = catalog.metrics.get(&metric.name) {
            let found = versions::compare(&*batch.deps.store, before, metric).await?;
            results.comparisons.insert(label(metric), found);
        }
    }
    Ok(())
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
        job.request.erase = None;
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

/// By version, and of dry runs the sums over all.
fn result(Results { outcomes, comparisons, archive, erased, tables }: &Results) -> Value {
    if let Some(report) = erased {
        return report.clone();
    }
    let mut metrics: BTreeMap<&String, Value> =
        outcomes.iter().map(|(label, outcome)| (label, outcome.to_json())).collect();
    for (label, found) in comparisons {
        metrics.entry(label).or_default()["comparison"] = found.clone();
    }
    let mut result = json!({"metrics": metrics});
    if !archive.is_empty() {
        result["archive"] = json!(archive);
    }
    if !tables.is_empty() {
        result["sources"] = json!(tables);
    }
    let (mut all, mut sums) = (Vec::new(), (0, 0));
    let mut dry = false;
    for outcome in outcomes.values() {
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
