//! The work of a run between opening and publishing: passes over event time, files in groups, chunks out.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Range,
    sync::Arc,
};

use futures::try_join;
use lamina_core::{Counts, Cut, Micros, Offset, Partition, Segment, Store, store::period};
use lamina_metric::Metric;
use tokio::task::JoinSet;

use crate::{
    BatchError, Meter,
    cap::{self, Named},
    compare::{Changes, compare},
    context::{Engine, stopped},
    distributed::Fleet,
    fold::{self, Fates, FatesByFile, Groups},
    names::{EpochKey, Names},
    open::Target,
    plan::{self, File, FileKey},
    rollup::Rollup,
    scan::Piece,
};

/// Records folded together at most, for each executor: a run can be stopped between groups, and so much is held besides
/// DataFusion.
const RECORDS_TOGETHER: u64 = 500_000;
/// Bytes that a record is assumed to cost in one rollup, states being fewer than records and larger.
const RECORD_COST: usize = 64;

/// What becomes of the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    Compare,
}

/// Everything that the work needs, so that it can move to batch's runtime.
pub(crate) struct Work {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) metric: Arc<Metric>,
    pub(crate) targets: Vec<Arc<Target>>,
    pub(crate) segments: Vec<(Partition, Segment)>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) mode: Mode,
}

/// What is known of the files that were read.
#[derive(Default)]
struct Known {
    seen: HashSet<FileKey>,
    /// Epochs in which a view's cap decides: which series come first cannot be told from a part of the file.
    capped: BTreeSet<EpochKey>,
    /// By which names epochs are folded; empty once something but the run's cuts tells epochs apart, so that each goes by its own.
    shared: BTreeMap<Partition, Arc<Names>>,
}

impl Known {
    /// What a further pass needs of a file: its own event time, unless that is not enough.
    fn window(&self, file: &File, pass: &Range<Micros>) -> Option<Range<Micros>> {
        let epochs = (file.partition, file.offsets.start)..(file.partition, file.offsets.end);
        let is_capped = self.capped.range(epochs).next().is_some();
        (self.seen.contains(&file.key()) && !is_capped).then(|| pass.clone())
    }
}

/// What files came to that were folded together.
struct Folded {
    /// With the series of each view.
    parts: Vec<(Groups, Vec<Named>)>,
    fates: FatesByFile,
    files: u64,
    /// Those that no earlier pass has read.
    new: Vec<(FileKey, Counts)>,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) rows: u64,
    pub(crate) files: u64,
    pub(crate) chunks: u64,
    pub(crate) expired: u64,
    /// What became of accepted events.
    pub(crate) fates: Fates,
    /// What became of the other offsets.
    pub(crate) others: Counts,
    /// Of the events folded, those that the finest rollup of the full view leaves out as past retention.
    pub(crate) expired_events: u64,
    /// Largest event time of all epochs given.
    pub(crate) through: Option<Micros>,
    /// What the log had lost of them.
    pub(crate) lost: Vec<(Partition, Range<Offset>)>,
    pub(crate) changes: Changes,
}

impl Done {
    /// How many offsets of the epochs read had which fate; together they are all of them.
    pub(crate) fn by_fate(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::from([
            ("folded", self.fates.folded.saturating_sub(self.expired_events)),
            ("filtered", self.fates.filtered),
            ("dead_lettered", self.others.dead + self.fates.rejected),
            ("duplicate", self.others.duplicates),
            ("erased", self.others.erased),
            ("expired", self.expired_events),
            ("without_record", self.others.absent),
        ])
    }
}

impl Work {
    /// Reads every epoch that some view does not cover yet or rebuilds, and writes or compares what changes.
    pub(crate) async fn run(self) -> Result<Done, BatchError> {
        // Without records there is no file to read.
        let empty = self.segments.iter().map(|(_, segment)| segment.counts()).filter(|counts| counts.records() == 0);
        let absent = empty.map(|counts| counts.absent).sum();
        let times = self.segments.iter().filter_map(|(_, segment)| segment.event_time());
        let extent = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let lost = self
            .segments
            .iter()
            .flat_map(|(partition, segment)| segment.lost.iter().map(|&(from, to)| (*partition, from..to)));
        let lost = lost.collect();
        let mut done = Done {
            through: extent.map(|(_, last)| last),
            lost,
            others: Counts { absent, ..Counts::default() },
            ..Done::default()
        };
        let files = self.needed();
        let mut fleet = if files.is_empty() { None } else { self.engine.fleet().await? };
        let ways = fleet.as_ref().map_or(1, Fleet::len);
        let passes = plan::passes(&files, period(self.metric.grain), self.budget());
        let shares: Vec<Vec<File>> = (0..passes.len()).map(|at| share(&files, &passes, at)).collect();
        let total = shares.iter().map(Vec::len).sum::<usize>() as u64;
        self.meter.stage(format!("reading {}", self.metric.name), total, "files");
        let widths = self.metric.widths();
        let mut rollups: Vec<Vec<Rollup>> = self
            .targets
            .iter()
            .map(|target| widths.iter().map(|&width| Rollup::new(&self.metric, Arc::clone(target), width)).collect())
            .collect();
        let mut known = Known { shared: self.shared_names(&files), ..Known::default() };
        for (pass, share) in passes.iter().zip(shares) {
            let bytes = (self.engine.memory_bytes / 4 * ways) as u64;
            let mut groups = plan::together(share, bytes, RECORDS_TOGETHER * ways as u64).into_iter();
            let mut last = None;
            loop {
                // The next files are folded while what the last ones gave is merged.
                let next = self.fold(groups.next(), pass, fleet.as_mut(), &mut known);
                let (next, ()) = try_join!(next, self.merge(last.take(), pass, &mut rollups, &mut done))?;
                if next.is_none() {
                    break;
                }
                last = next;
            }
            for rollup in rollups.iter_mut().flatten() {
                self.finish(rollup, pass, extent, &mut done).await?;
            }
        }
        done.expired = rollups.iter().flatten().map(|rollup| rollup.expired).sum();
        done.expired_events = rollups.first().and_then(|full| full.first()).map_or(0, |finest| finest.expired);
        done.files = known.seen.len() as u64;
        let expected = files.iter().map(|file| file.archive.counts.records()).sum();
        if done.rows != expected {
            return Err(BatchError::Incomplete { expected, found: done.rows });
        }
        Ok(done)
    }

    fn needed(&self) -> Vec<File> {
        let wanted = |file: &File| {
            self.targets.iter().any(|target| {
                let covered = file.offsets.end <= target.published.cut.at(file.partition);
                let rebuilt = target.opened.scope.rebuild.as_ref().is_some_and(|range| file.touches(range));
                target.opened.cut.covers(file.partition, file.offsets.start) && (!covered || rebuilt)
            })
        };
        let files = self.segments.iter().filter_map(|(partition, segment)| File::of(*partition, segment.clone()));
        files.filter(wanted).collect()
    }

    /// Records of one pass.
    fn budget(&self) -> u64 {
        let rollups = self.targets.len() * self.metric.widths().len();
        (self.engine.memory_bytes / 2 / (RECORD_COST * rollups.max(1))).max(1) as u64
    }

    /// By which names the epochs of these files go, unless caps tell them apart; none if chunks may.
    fn shared_names(&self, files: &[File]) -> BTreeMap<Partition, Arc<Names>> {
        if self.targets.iter().any(|target| target.has_beyond) {
            return BTreeMap::new();
        }
        let cuts: Vec<&Cut> =
            self.targets.iter().flat_map(|target| [&target.published.cut, &target.opened.cut]).collect();
        let partitions: BTreeSet<Partition> = files.iter().map(|file| file.partition).collect();
        Names::shared(&cuts, partitions).into_iter().map(|(partition, names)| (partition, Arc::new(names))).collect()
    }

    /// Folds files, and names the series of each view; by epoch if a cap may decide.
    async fn fold(
        &self,
        files: Option<Vec<File>>,
        pass: &Range<Micros>,
        mut fleet: Option<&mut Fleet>,
        known: &mut Known,
    ) -> Result<Option<Folded>, BatchError> {
        let Some(files) = files else { return Ok(None) };
        loop {
            let piece = |file: &File| {
                let names = known.shared.get(&file.partition).map_or_else(|| Arc::new(Names::Own), Arc::clone);
                Piece { file: file.clone(), window: known.window(file, pass), names }
            };
            let pieces: Vec<Piece> = files.iter().map(piece).collect();
            let (parts, fates) = fold::fold(&self.engine, fleet.as_deref_mut(), &self.metric, pieces).await?;
            let parts = self.named(parts).await?;
            let capped = || parts.iter().flat_map(|(_, named)| named).flat_map(|named| &named.capped);
            // No epoch has more series than all that share its name.
            if !known.shared.is_empty() && capped().next().is_some() {
                known.shared.clear();
                continue;
            }
            known.capped.extend(capped());
            // Several passes may read the same file: it counts once.
            let new = files.iter().filter(|file| known.seen.insert(file.key()));
            let new = new.map(|file| (file.key(), file.archive.counts)).collect();
            return Ok(Some(Folded { parts, fates, files: files.len() as u64, new }));
        }
    }

    /// With the series of each view, all parts at once.
    async fn named(&self, parts: Vec<Groups>) -> Result<Vec<(Groups, Vec<Named>)>, BatchError> {
        let mut tasks = JoinSet::new();
        for groups in parts {
            let targets = self.targets.clone();
            tasks.spawn(async move {
                let named = targets.iter().map(|target| cap::series_of(&groups, &target.view));
                named.collect::<Result<Vec<_>, BatchError>>().map(|named| (groups, named))
            });
        }
        let mut all = Vec::with_capacity(tasks.len());
        while let Some(done) = tasks.join_next().await {
            all.push(done.map_err(stopped)??);
        }
        Ok(all)
    }

    async fn merge(
        &self,
        folded: Option<Folded>,
        pass: &Range<Micros>,
        rollups: &mut [Vec<Rollup>],
        done: &mut Done,
    ) -> Result<(), BatchError> {
        let Some(Folded { parts, fates, files, new }) = folded else { return Ok(()) };
        for (groups, named) in &parts {
            for (rollups, named) in rollups.iter_mut().zip(named) {
                for rollup in rollups {
                    rollup.take(&*self.store, groups, named, pass).await?;
                    tokio::task::yield_now().await;
                }
            }
        }
        let rows = new.iter().map(|(_, counts)| counts.records()).sum();
        for (file, counts) in new {
            done.others.add(Counts { accepted: 0, ..counts });
            if let Some(Fates { folded, filtered, rejected }) = fates.get(&file) {
                done.fates.folded += folded;
                done.fates.filtered += filtered;
                done.fates.rejected += rejected;
            }
        }
        done.rows += rows;
        self.meter.advance(files, rows);
        Ok(())
    }

    /// Writes or compares the chunks for which nothing more comes after `pass`.
    async fn finish(
        &self,
        rollup: &mut Rollup,
        pass: &Range<Micros>,
        extent: Option<(Micros, Micros)>,
        done: &mut Done,
    ) -> Result<(), BatchError> {
        let chunks = rollup.finished(pass.end);
        done.chunks += chunks.len() as u64;
        match (self.mode, extent) {
            (Mode::Write, _) => rollup.write(&*self.store, &chunks).await,
            (Mode::Compare, None) => Ok(()),
            (Mode::Compare, Some((first, last))) => {
                let length = period(rollup.width());
                let rebuilt = rollup.target().opened.scope.rebuild.clone().unwrap_or(0..0);
                let Range { start, end } = plan::ended_within(pass, length);
                // As far as there are events.
                let start = start.max(rebuilt.start).max(first.div_euclid(length).saturating_mul(length));
                let end = end.min(rebuilt.end).min(last.saturating_add(1));
                if start < end {
                    let changes = compare(&*self.store, &self.metric, rollup, &(start..end), chunks).await?;
                    done.changes.add(changes);
                }
                Ok(())
            }
        }
    }
}

/// The files that one pass reads: those with events in it, and in the first also those without any.
fn share(files: &[File], passes: &[Range<Micros>], at: usize) -> Vec<File> {
    let wanted = |file: &&File| match file.archive.event_time {
        Some(_) => file.touches(&passes[at]),
        None => at == 0,
    };
    files.iter().filter(wanted).cloned().collect()
}
