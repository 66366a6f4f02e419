//! One run over one metric: all its views in one go, up to the same sealed cut.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use lamina_core::{Cut, Micros, Opened, generation::load_view, log::LogError, snapshot::no_later};
use lamina_metric::{Metric, Source};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    BatchError, Config, Deps, Meter,
    archive::Retention,
    compare::Changes,
    compute::{Done, Mode, Work},
    context::Engine,
    open::{self, Aim, Target},
    plan::{self, Sealed},
    telemetry,
};

/// The batch layer with its own runtime.
pub struct Batch {
    pub(crate) deps: Deps,
    pub(crate) engine: Arc<Engine>,
    keep: Duration,
    pub(crate) retention: Retention,
    pub(crate) compaction: bool,
}

/// What a run of one metric shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Cover newly sealed epochs.
    Cover,
    /// Cover them, and rebuild this event time from the archive; `None` is the beginning, the end.
    Rebuild { from: Option<Micros>, to: Option<Micros> },
    /// Say what a rebuild would change.
    DryRun { from: Option<Micros>, to: Option<Micros> },
    /// Return to what was served at this moment from what stands in the archive, extended to what is sealed now.
    Rollback { as_of: Micros },
}

/// What a run of one metric did.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing was sealed since the last run.
    Unchanged,
    Published {
        generation: u64,
        cut: Cut,
        rows: u64,
        files: u64,
        chunks: u64,
        expired: u64,
        rejected: u64,
        /// Offsets of the epochs read, by what became of them.
        fates: BTreeMap<&'static str, u64>,
    },
    /// Nothing was written.
    DryRun { rows: u64, buckets: u64, series: u64, chunks: u64, changed: Vec<Value> },
}

impl Outcome {
    pub fn to_json(&self) -> Value {
        match self {
            Self::Unchanged => json!({"outcome": "unchanged"}),
            Self::Published { generation, cut, rows, files, chunks, expired, rejected, fates } => {
                let cut: Value = cut.iter().map(|(partition, at)| (partition.to_string(), Value::from(at))).collect();
                json!({"outcome": "published", "generation": generation, "cut": cut, "rows": rows, "files": files,
                    "chunks": chunks, "expired": expired, "rejected": rejected, "fates": fates})
            }
            Self::DryRun { rows, buckets, series, chunks, changed } => {
                json!({"outcome": "dry_run", "rows": rows, "buckets": buckets, "series": series, "chunks": chunks,
                    "changed": changed})
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Published { .. } => "published",
            Self::DryRun { .. } => "dry_run",
        }
    }
}

impl Batch {
    /// # Errors
    /// If the runtime cannot start.
    pub fn new(deps: Deps, config: &Config) -> Result<Self, BatchError> {
        let engine = Engine::new(config, Arc::clone(&deps.archive))?;
        let Config { keep, retention, compaction, .. } = config.clone();
        Ok(Self { deps, engine: Arc::new(engine), keep, retention, compaction })
    }

    /// Runs one metric once. Whatever happens, what is served stays exactly right.
    ///
    /// # Errors
    /// If anything is not as ledger and manifest say, or cannot be read or written; [`BatchError::TakenOver`] if a later
    /// generation was opened meanwhile, [`BatchError::Cancelled`] once `cancel` is. Nothing is published then.
    pub async fn run_metric(
        &self,
        metric: &Arc<Metric>,
        wanted: &Wanted,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Outcome, BatchError> {
        let began = Instant::now();
        let result = self.attempt(metric, wanted, meter, cancel).await;
        let outcome = match &result {
            Ok(outcome) => outcome.name(),
            Err(BatchError::Cancelled) => "cancelled",
            Err(BatchError::TakenOver) => "taken_over",
            Err(_) => "failed",
        };
        telemetry::ran(&metric.name, outcome, began.elapsed());
        if result.as_ref().is_err_and(BatchError::is_violation) {
            telemetry::violated(&metric.name);
        }
        result
    }

    async fn attempt(
        &self,
        metric: &Arc<Metric>,
        wanted: &Wanted,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Outcome, BatchError> {
        let Some(sealed) = self.sealed(&metric.source).await? else { return Ok(Outcome::Unchanged) };
        if metric.source.table.is_some() && !matches!(wanted, Wanted::Rollback { .. }) {
            return Err(BatchError::Table {
                source_name: metric.source.name.clone(),
                why: "a table is scanned for all its metrics at once".to_owned(),
            });
        }
        match wanted {
            Wanted::Cover => self.cover(metric, &sealed, Aim::Cover, meter, cancel).await,
            Wanted::Rebuild { from, to } => {
                let range = plan::widen(metric, *from, *to)?;
                self.cover(metric, &sealed, Aim::Rebuild(range), meter, cancel).await
            }
            Wanted::Rollback { as_of } => self.cover(metric, &sealed, Aim::Rollback(*as_of), meter, cancel).await,
            Wanted::DryRun { from, to } => {
                let range = plan::widen(metric, *from, *to)?;
                self.dry_run(metric, &sealed, range, meter, cancel).await
            }
        }
    }

    async fn cover(
        &self,
        metric: &Arc<Metric>,
        sealed: &Sealed,
        aim: Aim,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Outcome, BatchError> {
        let (store, clock) = (&*self.deps.store, &*self.deps.clock);
        let cut = sealed.cut();
        let mut current = aim == Aim::Cover;
        let mut returns = false;
        for view in &metric.views {
            let (_, state) = load_view(store, &view.id).await?;
            if !state.published.is_of(&sealed.log) {
                // The topic was made again: the metric's next version counts it.
                return Ok(Outcome::Unchanged);
            }
            current = current && open::is_current(&state, &cut);
            returns = returns || matches!(aim, Aim::Rollback(at) if state.kept_at(at).is_some());
        }
        if matches!(aim, Aim::Rollback(_)) && !returns {
            return Err(BatchError::NothingKept);
        }
        if current {
            self.tidy(metric).await?;
            return Ok(Outcome::Unchanged);
        }
        let mut targets = Vec::with_capacity(metric.views.len());
        for view in &metric.views {
            targets.push(Arc::new(open::open(store, metric, view, sealed, &aim, clock.now()).await?));
        }
        match self.compute(metric, sealed, &targets, Mode::Write, meter, cancel).await {
            Ok(done) => {
                let outcome = self.publish(metric, sealed, &targets, &done).await?;
                if let Err(error) = self.tidy(metric).await {
                    tracing::warn!(metric = metric.name, error = error.chain(), "what was replaced was not tidied up");
                }
                Ok(outcome)
            }
            Err(error) => {
                if !matches!(error, BatchError::TakenOver) {
                    self.give_up(&targets).await;
                }
                Err(error)
            }
        }
    }

    /// What is sealed of a source; `None` if its topic does not exist.
    pub(crate) async fn sealed(&self, source: &Source) -> Result<Option<Sealed>, BatchError> {
        if source.table.is_some() {
            return Ok(Some(Sealed::of_table(source)));
        }
        let topic = match self.deps.log.topic(&source.topic).await {
            Ok(topic) => topic,
            Err(LogError::NoTopic(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let log = topic.log_id(&source.name);
        Sealed::load(&*self.deps.store, log, topic.partitions).await.map(Some)
    }

    /// Whether something was sealed that the metric's views do not cover.
    pub(crate) async fn is_behind(&self, metric: &Metric) -> Result<bool, BatchError> {
        let Some(sealed) = self.sealed(&metric.source).await? else { return Ok(false) };
        let cut = sealed.cut();
        for view in &metric.views {
            let (_, state) = load_view(&*self.deps.store, &view.id).await?;
            if state.published.generation == 0 || !open::is_current(&state, &cut) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn compute(
        &self,
        metric: &Arc<Metric>,
        sealed: &Sealed,
        targets: &[Arc<Target>],
        mode: Mode,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Done, BatchError> {
        let store = &*self.deps.store;
        let rebuilds = targets.iter().any(|target| target.opened.scope.rebuild.is_some());
        let cuts = |cut: fn(&Target) -> &Cut| targets.iter().map(move |target| cut(target).clone());
        let published = cuts(|target| &target.published.cut).reduce(|a, b| a.min(&b)).unwrap_or_default();
        let from = if rebuilds { Cut::default() } else { published };
        let upto = cuts(|target| &target.opened.cut).reduce(|a, b| a.max(&b)).unwrap_or_default();
        let work = Work {
            segments: sealed.segments(store, &from, &upto).await?,
            store: Arc::clone(&self.deps.store),
            engine: Arc::clone(&self.engine),
            metric: Arc::clone(metric),
            targets: targets.to_vec(),
            meter: Arc::clone(meter),
            mode,
        };
        let done = self.on_engine(work.run(), cancel).await?;
        telemetry::read(&metric.name, &done);
        Ok(done)
    }

    /// Does work on batch's own runtime; it is dropped once `cancel` is.
    pub(crate) async fn on_engine<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, BatchError>> + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<T, BatchError> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(BatchError::Cancelled),
            done = self.engine.run(work) => done,
        }
    }

    pub(crate) async fn publish(
        &self,
        metric: &Metric,
        sealed: &Sealed,
        targets: &[Arc<Target>],
        done: &Done,
    ) -> Result<Outcome, BatchError> {
        let through = done.through.map(|last| no_later(last, sealed.append_clock()));
        for target in targets {
            open::publish(&*self.deps.store, &sealed.log, target, self.deps.clock.now(), through, &done.lost).await?;
        }
        telemetry::wrote(&metric.name, done.chunks, done.expired);
        let Some(full) = targets.first() else { return Ok(Outcome::Unchanged) };
        let Opened { generation, cut, .. } = full.opened.clone();
        let covered = cut.iter().map(|(_, at)| at).sum();
        telemetry::published(&metric.name, generation, covered, self.deps.clock.now());
        let &Done { rows, files, chunks, expired, .. } = done;
        let (rejected, fates) = (done.fates.rejected, done.by_fate());
        Ok(Outcome::Published { generation, cut, rows, files, chunks, expired, rejected, fates })
    }

    pub(crate) async fn tidy(&self, metric: &Metric) -> Result<(), BatchError> {
        let now = self.deps.clock.now();
        let keep = i64::try_from(self.keep.as_micros()).unwrap_or(Micros::MAX);
        for view in &metric.views {
            open::tidy(&*self.deps.store, metric, view, now, now.saturating_sub(keep)).await?;
        }
        Ok(())
    }

    /// What is open stays open if this fails too: the next run inherits it, at the cost of its work only.
    pub(crate) async fn give_up(&self, targets: &[Arc<Target>]) {
        for target in targets {
            if let Err(error) = open::give_up(&*self.deps.store, target).await {
                tracing::warn!(view = %target.view.id, error = error.chain(), "a generation could not be given up");
            }
        }
    }

    /// Compares within what is published: newly sealed epochs are not the question.
    async fn dry_run(
        &self,
        metric: &Arc<Metric>,
        sealed: &Sealed,
        range: Range<Micros>,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Outcome, BatchError> {
        let mut targets = Vec::with_capacity(metric.views.len());
        for view in &metric.views {
            targets.push(Arc::new(Target::imagined(&*self.deps.store, metric, view, range.clone()).await?));
        }
        let done = self.compute(metric, sealed, &targets, Mode::Compare, meter, cancel).await?;
        let Changes { buckets, series, chunks, examples } = done.changes;
        Ok(Outcome::DryRun { rows: done.rows, buckets, series, chunks, changed: examples })
    }
}
