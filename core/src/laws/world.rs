//! A store, workers and batch runs that may all fail, moved by dice.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::worker::Worker;
use crate::{
    Archive, Change, Counts, Cut, Epoch, EpochId, Ledger, Mark, Offset, Opened, Partition, Published, Scope, Shard,
    SpeedKey, ViewId, ViewState, generation,
    rules::{self, Rule},
    store::{self, Part},
};

pub(super) const PARTITIONS: Partition = 2;
pub(super) const EVENTS: Offset = 6;
const WORKERS: usize = 2;
const RUNS: usize = 2;

/// Kinds of steps that must all happen, see `every_kind_of_step_happens`.
pub(super) const KINDS: [&str; 26] = [
    "take over",
    "fold",
    "flush",
    "write chunk",
    "write mark",
    "publish",
    "consolidate",
    "seal",
    "crash",
    "fenced",
    "commit unknown",
    "delayed change applies",
    "delayed change is refused",
    "found applied",
    "repeat",
    "run begins",
    "run rebuilds",
    "run rolls back",
    "run writes",
    "run is refused",
    "publish run",
    "run crashes",
    "expire",
    "trim",
    "repair",
    "answer",
];

/// How often each event (partition, offset) was counted.
pub(super) type Folded = BTreeMap<(Partition, Offset), u32>;

/// What may go wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// Two workers may both believe that they own a partition.
    pub(super) zombies: bool,
    /// Answers may not step back, even in the open tail.
    pub(super) monotone: bool,
}

impl Faults {
    pub(super) fn all() -> Self {
        Self { zombies: true, monotone: false }
    }
}

/// A law that broke, with the steps that led there.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) law: String,
    pub(super) trace: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n  {}", self.law, self.trace.join("\n  "))
    }
}

#[derive(Clone, Debug)]
pub(super) struct BatchCell {
    pub(super) stamp: i64,
    pub(super) cut: Cut,
    pub(super) folded: Folded,
}

/// A batch run somewhere between opening its generation and publishing it.
#[derive(Clone, Debug)]
struct Run {
    view: ViewId,
    opened: Opened,
    /// What was published when it opened its generation.
    published: Published,
    todo: Vec<Shard>,
    /// A chunk that was read and not yet written.
    read: Option<(Shard, Option<BatchCell>)>,
}

pub(super) struct World {
    dice: u64,
    pub(super) faults: Faults,
    pub(super) ledgers: Vec<Ledger>,
    manifest: Vec<Vec<Epoch>>,
    pub(super) chunks: BTreeMap<SpeedKey, Folded>,
    pub(super) marks: BTreeMap<EpochId, Mark>,
    pub(super) views: BTreeMap<ViewId, ViewState>,
    pub(super) batch: BTreeMap<(ViewId, u32, Shard), BatchCell>,
    workers: Vec<Option<Worker>>,
    delayed: Vec<(Partition, Change)>,
    runs: Vec<Run>,
    ids: u128,
    now: i64,
    pub(super) trace: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    /// Highest positions answered so far.
    answered: Cut,
}

/// The views: one with two shards, one with a single one.
pub(super) fn views() -> [(ViewId, Shard); 2] {
    [(ViewId::new("a", 1, 0), 2), (ViewId::new("b", 1, 0), 1)]
}

pub(super) fn shards() -> Vec<(ViewId, Shard)> {
    views().into_iter().flat_map(|(view, n)| (0..n).map(move |shard| (view.clone(), shard))).collect()
}

/// The shard of `view` that event `offset` belongs to.
pub(super) fn shard_of(view: &ViewId, offset: Offset) -> Shard {
    let shards = views().into_iter().find(|(id, _)| id == view).map_or(1, |(_, n)| n);
    (offset % Offset::from(shards)) as Shard
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let faults = Faults { monotone: faults.monotone || !faults.zombies, ..faults };
        Self {
            dice: seed,
            faults,
            ledgers: vec![Ledger::default(); PARTITIONS as usize],
            manifest: vec![Vec::new(); PARTITIONS as usize],
            chunks: BTreeMap::new(),
            marks: BTreeMap::new(),
            views: views().into_iter().map(|(view, _)| (view, ViewState::default())).collect(),
            batch: BTreeMap::new(),
            workers: vec![None; WORKERS * PARTITIONS as usize],
            delayed: Vec::new(),
            runs: Vec::new(),
            ids: 0,
            now: 1_000_000_000,
            trace: Vec::new(),
            counts: BTreeMap::new(),
            answered: Cut::default(),
        }
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.clone()
    }

    pub(super) fn note(&mut self, kind: &'static str, what: impl std::fmt::Display) {
        *self.counts.entry(kind).or_default() += 1;
        self.trace.push(format!("{kind} {what}"));
    }

    pub(super) fn new_id(&mut self) -> EpochId {
        self.ids += 1;
        EpochId(Uuid::from_u128(self.ids))
    }

    pub(super) fn tick(&mut self) -> i64 {
        self.now += 1_000;
        self.now
    }

    /// Moves the world; every few steps somebody reads. At the end everything is drained, covered and read once more.
    pub(super) fn run(&mut self, steps: usize) -> Result<(), Violation> {
        let mut moved = 0;
        while moved < steps {
            let before = self.trace.len();
            if self.roll(8) == 0 {
                super::reader::read_and_check(self)?;
            } else {
                self.step();
            }
            moved += 1.max(self.trace.len() - before);
        }
        self.drain()
    }

    /// One random step of a worker, a run, a delayed message or expiry.
    pub(super) fn step(&mut self) {
        match self.roll(20) {
            0..=10 => self.step_worker(),
            11..=15 => self.step_batch(),
            16 => self.deliver_delayed(),
            17..=18 => self.expire(),
            _ => self.repair(),
        }
    }

    fn step_worker(&mut self) {
        let at = self.roll(self.workers.len());
        let partition = (at / WORKERS) as Partition;
        match self.workers[at].take() {
            Some(_) if self.roll(40) == 0 => self.note("crash", format!("worker {at}")),
            Some(mut worker) => {
                worker.step(self);
                self.workers[at] = (!worker.is_gone()).then_some(worker);
            }
            None => {
                let mut rivals = (0..WORKERS).map(|w| partition as usize * WORKERS + w).filter(|&w| w != at);
                let owned = rivals.any(|w| self.workers[w].is_some());
                // a rival makes the other a zombie; that should not happen all the time
                if !owned || (self.faults.zombies && self.roll(6) == 0) {
                    self.workers[at] = Worker::take_over(self, partition);
                }
            }
        }
    }

    /// A compare-and-set as a store does it.
    pub(super) fn commit(&mut self, partition: Partition, change: &Change) -> bool {
        let ledger = &self.ledgers[partition as usize];
        let Some(after) = ledger.apply(change) else { return false };
        if !change.remove.is_empty() && change.put.len() > 1 {
            self.note("trim", format!("{:?} of partition {partition}", change.remove));
        }
        self.ledgers[partition as usize] = after;
        true
    }

    /// A change whose outcome its sender does not learn: applied, or on its way, or never to arrive.
    pub(super) fn commit_unknown(&mut self, partition: Partition, change: &Change) {
        self.note("commit unknown", format!("partition {partition} at version {}", change.expected));
        match self.roll(3) {
            0 => drop(self.commit(partition, change)),
            1 => self.delayed.push((partition, change.clone())),
            _ => {}
        }
    }

    fn deliver_delayed(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let at = self.roll(self.delayed.len());
        let (partition, change) = self.delayed.swap_remove(at);
        let applied = self.commit(partition, &change);
        self.note(if applied { "delayed change applies" } else { "delayed change is refused" }, partition);
    }

    /// Below which offset the ledger of `partition` may be trimmed now.
    pub(super) fn trim_below(&self, partition: Partition) -> Offset {
        generation::trim_below(self.views.values(), partition, self.ledgers[partition as usize].sealed_end())
    }

    pub(super) fn archive(&mut self, partition: Partition, epochs: &[Epoch]) {
        let manifest = &mut self.manifest[partition as usize];
        manifest.extend(
            epochs
                .iter()
                .filter(|epoch| !manifest.iter().any(|old| old.start == epoch.start))
                .cloned()
                .collect::<Vec<_>>(),
        );
    }

    /// A chunk of an epoch that is covered, or that no ledger names, may be gone at any moment.
    fn expire(&mut self) {
        let needed: BTreeSet<(EpochId, ViewId)> = self.needed();
        let dead: Vec<SpeedKey> =
            self.chunks.keys().filter(|key| !needed.contains(&(key.epoch, key.view.clone()))).cloned().collect();
        if dead.is_empty() {
            return;
        }
        let key = dead[self.roll(dead.len())].clone();
        let live = self.workers.iter().flatten().any(|worker| worker.writes(key.epoch));
        if !live {
            self.chunks.remove(&key);
            self.note("expire", format!("{key:?}"));
        }
    }

    fn needed(&self) -> BTreeSet<(EpochId, ViewId)> {
        let mut needed = BTreeSet::new();
        for (partition, ledger) in self.ledgers.iter().enumerate() {
            for (view, state) in &self.views {
                let uncovered = |epoch: &&Epoch| !state.published.cut.covers(partition as Partition, epoch.start);
                needed.extend(ledger.epochs.iter().filter(uncovered).map(|epoch| (epoch.id, view.clone())));
            }
        }
        needed
    }

    /// A sealed uncovered epoch is rebuilt from its archive file under a new id.
    fn repair(&mut self) {
        let partition = self.roll(PARTITIONS as usize);
        let ledger = self.ledgers[partition].clone();
        let sealed: Vec<Epoch> =
            ledger.sealed().filter(|epoch| epoch.start >= self.trim_below(partition as Partition)).cloned().collect();
        if sealed.is_empty() {
            return;
        }
        let epoch = sealed[self.roll(sealed.len())].clone();
        let (id, now, end) = (self.new_id(), self.tick(), epoch.end.unwrap_or(epoch.start));
        for (view, shard) in shards() {
            let folded = fold(partition as Partition, epoch.start..end, &view, shard);
            let key = SpeedKey { view, shard, slot: store::slot(now), epoch: id, part: Part::Whole(end) };
            self.chunks.insert(key, folded);
        }
        if let Ok(change) = ledger.repair(epoch.id, id, now, i64::MAX) {
            self.commit(partition as Partition, &change);
            self.note("repair", format!("epoch {} of partition {partition}", epoch.start));
        }
    }

    fn step_batch(&mut self) {
        if self.runs.len() < RUNS && self.roll(3) == 0 {
            return self.begin_run();
        }
        if self.runs.is_empty() {
            return;
        }
        let at = self.roll(self.runs.len());
        let mut run = self.runs.swap_remove(at);
        if self.roll(25) == 0 {
            return self.note("run crashes", run.opened.generation);
        }
        if self.step_run(&mut run) {
            self.runs.push(run);
        }
    }

    fn begin_run(&mut self) {
        let pick = self.roll(views().len());
        let (view, shards) = views()[pick].clone();
        let state = self.views[&view].clone();
        let sealed: Cut = (0..PARTITIONS).map(|p| (p, self.ledgers[p as usize].sealed_end())).collect();
        let kept: Vec<_> = state.kept.iter().map(|kept| kept.published.generation).collect();
        let (scope, what) = match self.roll(8) {
            0 | 1 => (Scope { rebuild: Some(0..1_000), rollback: None }, "run rebuilds"),
            2 if !kept.is_empty() => {
                let rollback = Some(kept[self.roll(kept.len())]);
                (Scope { rebuild: None, rollback }, "run rolls back")
            }
            _ => (Scope::default(), "run begins"),
        };
        let now = self.tick();
        let Ok((after, opened)) = state.begin(sealed.clone(), scope, now) else { return };
        let Ok(published) = after.origin(&opened) else { return };
        let touched =
            |shard: &Shard| opened.rebuilds(0) || self.range(&published.cut, &sealed, &view, *shard).next().is_some();
        let todo = (0..shards).filter(touched).collect();
        self.note(what, format!("{} of {view} up to {sealed:?}", opened.generation));
        self.views.insert(view.clone(), after);
        self.runs.push(Run { view, opened, published, todo, read: None });
    }

    /// Events of a shard between two cuts.
    fn range<'a>(
        &'a self,
        from: &'a Cut,
        to: &'a Cut,
        view: &'a ViewId,
        shard: Shard,
    ) -> impl Iterator<Item = (Partition, Offset)> + 'a {
        let offsets = (0..PARTITIONS).flat_map(move |p| (from.at(p)..to.at(p)).map(move |offset| (p, offset)));
        offsets.filter(move |(_, offset)| shard_of(view, *offset) == shard)
    }

    /// Moves a run on; false once it is over.
    fn step_run(&mut self, run: &mut Run) -> bool {
        let base = if run.opened.rebuilds(0) { run.opened.base } else { run.published.base_at(0) };
        if let Some((shard, found)) = run.read.take() {
            self.write_batch(run, base, shard, found);
            run.todo.retain(|todo| *todo != shard);
            return true;
        }
        let early = !rules::on(Rule::PublishAfterChunks) && self.roll(2) == 0;
        if run.todo.is_empty() || early {
            self.publish_run(run);
            return false;
        }
        let shard = run.todo[self.roll(run.todo.len())];
        let found = self.batch.get(&(run.view.clone(), base, shard)).cloned();
        run.read = Some((shard, found));
        true
    }

    fn write_batch(&mut self, run: &Run, base: u32, shard: Shard, found: Option<BatchCell>) {
        let found = found.filter(|_| !run.opened.rebuilds(0));
        let from = match run.opened.rebuilds(0) {
            true => Cut::default(),
            false => run.published.extend_from(found.as_ref().map(|cell| &cell.cut)),
        };
        let mut folded = found.map(|cell| cell.folded).unwrap_or_default();
        for event in self.range(&from, &run.opened.cut, &run.view, shard).collect::<Vec<_>>() {
            *folded.entry(event).or_default() += 1;
        }
        let cell = BatchCell { stamp: run.opened.stamp, cut: run.opened.cut.clone(), folded };
        let key = (run.view.clone(), base, shard);
        let later = self.batch.get(&key).is_some_and(|old| old.stamp > cell.stamp);
        if !later || !rules::on(Rule::LaterGenerationWins) {
            self.batch.insert(key, cell);
        }
        self.note("run writes", format!("{} of {} shard {shard} base {base}", run.opened.generation, run.view));
    }

    fn publish_run(&mut self, run: &Run) {
        let now = self.tick();
        match self.views[&run.view].publish(&run.opened, now, None) {
            Ok(after) => {
                self.views.insert(run.view.clone(), after);
                self.note("publish run", format!("{} of {}", run.opened.generation, run.view));
            }
            Err(_) => self.note("run is refused", run.opened.generation),
        }
    }

    /// Checks an answer: the fold of exactly the prefix it names, and not below the floors.
    pub(super) fn check_answer(
        &mut self,
        view: &ViewId,
        folded: &Folded,
        positions: &Cut,
        floor: &Cut,
    ) -> Result<(), Violation> {
        self.note("answer", format!("{view} {positions:?}"));
        let mut expected = Folded::new();
        for partition in 0..PARTITIONS {
            expected.extend((0..positions.at(partition)).map(|offset| ((partition, offset), 1)));
        }
        if *folded != expected {
            let twice = folded.values().any(|&n| n > 1);
            return Err(self.violation(format!(
                "{}: answer of {view} at {positions:?} is {folded:?}",
                if twice { "double count" } else { "not the prefix it names" }
            )));
        }
        if !positions.reaches(floor) {
            return Err(self.violation(format!("answer at {positions:?} is below what was sealed, {floor:?}")));
        }
        if self.faults.monotone && !positions.reaches(&self.answered) {
            return Err(self.violation(format!("answer at {positions:?} steps back from {:?}", self.answered)));
        }
        self.answered = self.answered.max(positions);
        Ok(())
    }

    pub(super) fn violation(&self, law: String) -> Violation {
        Violation { law, trace: self.trace.clone() }
    }

    /// Quiet: no more faults; one worker a partition folds all and seals, one run a view covers all. Everything must then
    /// be served, once each.
    fn drain(&mut self) -> Result<(), Violation> {
        self.faults.zombies = false;
        self.delayed.clear();
        self.runs.clear();
        self.workers.iter_mut().for_each(|worker| *worker = None);
        for partition in 0..PARTITIONS {
            let mut worker = None;
            for _ in 0..2_000 {
                match worker.as_mut() {
                    None => worker = Worker::take_over(self, partition),
                    Some(found) => Worker::step(found, self),
                }
                worker = worker.filter(|worker| !worker.is_gone());
                if self.ledgers[partition as usize].sealed_end() == EVENTS {
                    break;
                }
            }
            if self.ledgers[partition as usize].sealed_end() != EVENTS {
                return Err(self.violation(format!("partition {partition} is never sealed to the end")));
            }
        }
        super::reader::read_and_check(self)?;
        for _ in 0..60 {
            self.step_batch();
        }
        super::reader::read_and_check(self)
    }
}

/// The independent oracle: a shard's events of a range.
pub(super) fn fold(partition: Partition, range: std::ops::Range<Offset>, view: &ViewId, shard: Shard) -> Folded {
    range.filter(|offset| shard_of(view, *offset) == shard).map(|offset| ((partition, offset), 1)).collect()
}

/// An archive file for `n` accepted records.
pub(super) fn archive_of(n: u64) -> Archive {
    let counts = Counts { accepted: n, ..Counts::default() };
    Archive { path: String::new(), bytes: 0, checksum: 0, counts, event_time: None, last_record: None }
}
