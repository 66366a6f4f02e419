//! Runs over a source that is an existing table: one scan summarises its rows into all its metrics, writes what is to be
//! enriched, and deletes what has expired.
//!
//! Flow: `scan` (ranges of the ring, page by page) → `Source::judge` → rows that stay to the `fold` of each metric, new values
//! and deletions back to the table → chunks under a new base → publish.
//!
//! # Invariants
//! - A snapshot replaces the one before as a whole: its generation rebuilds all event time, its cut is empty, and readers see
//!   the one or the other.
//! - Every range is read once, and every row is an event, or expires, or is rejected: else nothing is published.
//! - Whatever a run has written when it stops is what the next would write.

mod fold;
mod job;
mod scan;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use lamina_core::{
    LogId, Micros, Store, StoreError,
    tables::{Reading, Table},
};
use lamina_metric::{Metric, Source};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    fold::{Chunks, chunks, fold},
    scan::Scan,
};
pub(crate) use self::{
    job::{TableRun, runs},
    scan::Tally,
};
use crate::{
    Batch, BatchError, Meter, Outcome,
    compare::Changes,
    compute::{Done, Mode},
    context::{Engine, stopped},
    fold::{Fates, Groups},
    open::{self, Aim, Target},
    plan::Sealed,
    telemetry,
};

/// Scans that feed one partition of a fold: while one waits for its page, the other is folded.
const SCANS_PER_FOLD: usize = 2;
/// Pages that wait for a fold.
const PAGES_WAITING: usize = 2;

/// What a run does with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Summarises, updates and deletes.
    Everything,
    /// Only summarises: for a version that is being built.
    Summary,
    /// Only says what would change.
    Nothing,
}

/// One metric of the run, with its views as the run writes them.
#[derive(Clone)]
struct Folded {
    metric: Arc<Metric>,
    targets: Vec<Arc<Target>>,
}

/// Everything that the work needs, so that it can move to batch's runtime.
struct Work {
    source: Arc<Source>,
    table: Arc<dyn Table>,
    reading: Reading,
    store: Arc<dyn Store>,
    engine: Arc<Engine>,
    metrics: Vec<Folded>,
    effect: Effect,
    began: Micros,
    meter: Arc<Meter>,
}

/// What one task of the work gave.
enum Part {
    Scanned(Tally),
    Folded(usize, Box<Groups>, Fates),
}

impl Sealed {
    /// Of a source without a log: nothing is sealed, and a snapshot's cut is empty.
    pub(crate) fn of_table(source: &Source) -> Self {
        Self { log: LogId::new(&source.name, ""), ledgers: BTreeMap::new(), gone_through: None }
    }
}

impl Batch {
    /// Scans a table once for all these metrics, which are over it.
    ///
    /// # Errors
    /// If the table is not as the source says, or cannot be read or written; if anything does not add up; as
    /// [`Batch::run_metric`]. Nothing is published then; what was updated or deleted by then stays so.
    pub(crate) async fn run_table(
        &self,
        run: &TableRun,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<(Vec<Outcome>, Tally), BatchError> {
        let (table, reading) = self.opened(run).await?;
        let mut metrics = Vec::with_capacity(run.metrics.len());
        for (_, metric) in &run.metrics {
            let targets = self.targets(metric, run.effect).await?;
            metrics.push(Folded { metric: Arc::clone(metric), targets });
        }
        let work = Work {
            source: Arc::clone(&run.source),
            table,
            reading,
            store: Arc::clone(&self.deps.store),
            engine: Arc::clone(&self.engine),
            metrics: metrics.clone(),
            effect: run.effect,
            // After the generations were opened: what was written before any of them is in all.
            began: self.deps.clock.now(),
            meter: Arc::clone(meter),
        };
        match self.on_engine(work.run(), cancel).await {
            Ok((done, tally)) => {
                if run.effect == Effect::Everything {
                    telemetry::scanned(&run.source.name, &tally);
                }
                Ok((self.publish_all(run, &metrics, done).await?, tally))
            }
            Err(error) => {
                if run.effect != Effect::Nothing && !matches!(error, BatchError::TakenOver) {
                    for folded in &metrics {
                        self.give_up(&folded.targets).await;
                    }
                }
                Err(error)
            }
        }
    }

    /// The table, once it was seen to be what the source says.
    async fn opened(&self, run: &TableRun) -> Result<(Arc<dyn Table>, Reading), BatchError> {
        let source_name = || run.source.name.clone();
        let wrong = |why: String| BatchError::Table { source_name: source_name(), why };
        let refused = |error| match error {
            StoreError::Refused(why) => wrong(why),
            other => other.into(),
        };
        let tables = self.deps.tables.as_ref().ok_or_else(|| BatchError::NoTables { source_name: source_name() })?;
        let definition = run.source.table.as_ref().ok_or_else(|| wrong("it is not a table".to_owned()))?;
        let columns = tables.describe(&definition.name).await.map_err(refused)?;
        let mut reading = definition.reading(&columns).map_err(wrong)?;
        reading.deletes &= run.effect == Effect::Everything;
        let table = tables.open(reading.clone()).await.map_err(refused)?;
        Ok((table, reading))
    }

    /// The views of a metric as a snapshot writes them, or compares with them.
    async fn targets(&self, metric: &Arc<Metric>, effect: Effect) -> Result<Vec<Arc<Target>>, BatchError> {
        let (store, everything) = (&*self.deps.store, Micros::MIN..Micros::MAX);
        let mut targets = Vec::with_capacity(metric.views.len());
        for view in &metric.views {
            let target = if effect == Effect::Nothing {
                Target::imagined(store, metric, view, everything.clone()).await?
            } else {
                let (aim, now) = (Aim::Rebuild(everything.clone()), self.deps.clock.now());
                open::open(store, metric, view, &Sealed::of_table(&metric.source), &aim, now).await?
            };
            targets.push(Arc::new(target));
        }
        Ok(targets)
    }

    async fn publish_all(
        &self,
        run: &TableRun,
        metrics: &[Folded],
        done: Vec<Done>,
    ) -> Result<Vec<Outcome>, BatchError> {
        let sealed = Sealed::of_table(&run.source);
        let mut outcomes = Vec::with_capacity(metrics.len());
        for (Folded { metric, targets }, done) in metrics.iter().zip(done) {
            if run.effect == Effect::Nothing {
                let Changes { buckets, series, chunks, examples } = done.changes;
                outcomes.push(Outcome::DryRun { rows: done.rows, buckets, series, chunks, changed: examples });
                continue;
            }
            outcomes.push(self.publish(metric, &sealed, targets, &done).await?);
            if let Err(error) = self.tidy(metric).await {
                tracing::warn!(metric = metric.name, error = error.chain(), "what was replaced was not tidied up");
            }
        }
        Ok(outcomes)
    }
}

impl Work {
    async fn run(self) -> Result<(Vec<Done>, Tally), BatchError> {
        let scan = Arc::new(self.scan());
        let ranges = scan.ranges.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len() as u64;
        self.meter.stage(format!("scanning {}", self.source.name), ranges, "ranges");
        let (tally, folded) = self.scan_and_fold(scan).await?;
        tally.check(ranges)?;
        let mode = if self.effect == Effect::Nothing { Mode::Compare } else { Mode::Write };
        let mut all = Vec::with_capacity(self.metrics.len());
        for (Folded { metric, targets }, (groups, fates)) in self.metrics.iter().zip(folded) {
            let found = fates.folded + fates.filtered + fates.rejected;
            if found != tally.events {
                return Err(BatchError::NotFolded { expected: tally.events, found });
            }
            let written = chunks(&*self.store, metric, targets, &groups, mode, self.engine.memory_bytes).await?;
            let Chunks { chunks, expired, expired_events, changes } = written;
            let through = tally.through;
            all.push(Done {
                rows: tally.rows,
                chunks,
                expired,
                expired_events,
                changes,
                fates,
                through,
                ..Done::default()
            });
        }
        Ok((all, tally))
    }

    fn scan(&self) -> Scan {
        Scan {
            source: Arc::clone(&self.source),
            ranges: VecDeque::from(self.table.ranges()).into(),
            table: Arc::clone(&self.table),
            reading: self.reading.clone(),
            began: self.began,
            writes: self.effect == Effect::Everything,
            meter: Arc::clone(&self.meter),
        }
    }

    /// Scans and folds at the same time: no more of the table is held than the pages under way.
    async fn scan_and_fold(&self, scan: Arc<Scan>) -> Result<(Tally, Vec<(Groups, Fates)>), BatchError> {
        let ways = self.engine.parallelism;
        let mut tasks: JoinSet<Result<Part, BatchError>> = JoinSet::new();
        let mut senders: Vec<Vec<mpsc::Sender<_>>> = vec![Vec::new(); ways];
        for (at, Folded { metric, .. }) in self.metrics.iter().enumerate() {
            let mut inputs = Vec::with_capacity(ways);
            for senders in &mut senders {
                let (sender, input) = mpsc::channel(PAGES_WAITING);
                senders.push(sender);
                inputs.push(input);
            }
            let folding = fold(self.engine.query(), Arc::clone(metric), inputs, self.engine.memory_bytes);
            tasks.spawn(async move {
                let (groups, fates) = folding.await?;
                Ok(Part::Folded(at, Box::new(groups), fates))
            });
        }
        for senders in senders {
            for _ in 0..SCANS_PER_FOLD {
                let scanning = Arc::clone(&scan).run(senders.clone());
                tasks.spawn(async move { Ok(Part::Scanned(scanning.await?)) });
            }
        }
        let (mut tally, mut folded) = (Tally::default(), Vec::new());
        while let Some(done) = tasks.join_next().await {
            match done.map_err(stopped)?? {
                Part::Scanned(part) => tally.add(part),
                Part::Folded(at, groups, fates) => folded.push((at, *groups, fates)),
            }
        }
        folded.sort_by_key(|(at, ..)| *at);
        Ok((tally, folded.into_iter().map(|(_, groups, fates)| (groups, fates)).collect()))
    }
}
