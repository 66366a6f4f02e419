//! What the simulated processes share: time, the log, the store, the archive, and what is still on its way to them.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use lamina_core::{
    Archive, BatchRow, Change, Commit, Epoch, EpochId, Holdings, Ledger, LogId, Mark, Micros, Offset, Part, Partition,
    Shard, SpeedKey, Stamp, ViewId, ViewState,
    archive::ARCHIVE_DOCUMENTS,
    conformance::memory::{LogState, StoreState},
    envelope,
    generation::VIEW_DOCUMENTS,
};

use crate::{
    counts::{Counts, Happening},
    determinism,
    plan::{Plan, SOURCE, TOPIC},
    random::Random,
};

/// What a law that does not hold is called by, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub law: &'static str,
    pub seen: String,
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Speed,
    Batch,
    Serving,
}

/// One life of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Who {
    pub(crate) role: Role,
    pub(crate) number: usize,
    /// Grows with every start.
    pub(crate) life: u64,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}.{}", self.role, self.number, self.life)
    }
}

/// What a batch process is at, as far as its writes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Idle,
    Opened,
    Writing,
    Publishing,
}

/// What the world knows of one life.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Life {
    pub(crate) dead: bool,
    /// Calls that are still made; then the process dies.
    pub(crate) calls_left: Option<u64>,
    /// It made its last call.
    pub(crate) halted: bool,
    pub(crate) stage: Stage,
    /// The process's clock minus the world's, in µs.
    pub(crate) skew: Micros,
}

/// A write on its way.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Chunks { chunks: Vec<(SpeedKey, Bytes)>, stamp: Stamp },
    Mark { log: LogId, partition: Partition, epoch: EpochId, mark: Mark, stamp: Stamp },
    Rows(Vec<BatchRow>),
    RemoveRows { view: ViewId, width: Micros, base: u32, shard: Shard, periods: Range<Micros>, upto: Micros },
    Manifest { log: LogId, partition: Partition, epochs: Vec<Epoch> },
    Commit { log: LogId, partition: Partition, change: Change },
    Document { kind: String, key: String, expected: u64, value: Option<Bytes> },
    File { path: String, bytes: Bytes, create: bool },
    RemoveFile { path: String },
}

impl Effect {
    pub(crate) fn is_conditional(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Document { .. })
    }

    /// Single writes of which any may arrive without the others.
    pub(crate) fn parts(&self) -> Vec<Self> {
        match self {
            Self::Chunks { chunks, stamp } => {
                chunks.iter().map(|one| Self::Chunks { chunks: vec![one.clone()], stamp: *stamp }).collect()
            }
            Self::Rows(rows) => rows.iter().map(|row| Self::Rows(vec![row.clone()])).collect(),
            Self::Manifest { log, partition, epochs } => {
                let one = |epoch: &Epoch| Self::Manifest {
                    log: log.clone(),
                    partition: *partition,
                    epochs: vec![epoch.clone()],
                };
                epochs.iter().map(one).collect()
            }
            other => vec![other.clone()],
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Chunks { .. } => "put chunks",
            Self::Mark { .. } => "put mark",
            Self::Rows(_) => "put rows",
            Self::RemoveRows { .. } => "remove rows",
            Self::Manifest { .. } => "archive",
            Self::Commit { .. } => "commit",
            Self::Document { .. } => "document",
            Self::File { .. } => "put file",
            Self::RemoveFile { .. } => "remove file",
        }
    }
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Written,
    Conditional(Commit),
    /// A file stands there already.
    Exists,
}

/// The order of everything that happened, as a hash and, if asked for, as text.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    line: String,
    lines: Option<Vec<String>>,
}

pub(crate) struct World {
    /// µs since the Unix epoch.
    pub(crate) now: Micros,
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    /// No more faults.
    pub(crate) calm: bool,
    pub(crate) log: LogState,
    pub(crate) store: StoreState,
    pub(crate) files: BTreeMap<String, Bytes>,
    /// Ledgers whose last change is decided, but not seen at quorum yet: what quorum readers see.
    uncommitted: BTreeMap<(LogId, Partition), Ledger>,
    on_their_way: BTreeMap<(Micros, u64), (Who, Effect)>,
    sent: u64,
    pub(crate) lives: BTreeMap<Who, Life>,
    /// Per partition, ends of sealed epochs with the time at which they were sealed.
    pub(crate) sealed: BTreeMap<Partition, BTreeMap<Offset, Micros>>,
    /// Counts of sealed epochs by their start.
    pub(crate) accounts: BTreeMap<(Partition, Offset), Epoch>,
    slots: BTreeMap<EpochId, i64>,
    writers: BTreeMap<EpochId, Who>,
    opened_by: BTreeMap<ViewId, Who>,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
}

/// The world as processes hold it. One thread runs them all.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trace {
    fn note(&mut self, now: Micros, what: fmt::Arguments<'_>) {
        self.line.clear();
        let _ = write!(self.line, "{:>10.3} {what}", (now - crate::plan::BEGIN) as f64 / 1e6);
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(self.line.clone());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn take(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}

impl World {
    pub(crate) fn new(plan: Plan, random: Random, keep_trace: bool) -> Self {
        let mut log = LogState::default();
        log.ensure_topic(TOPIC, plan.partitions);
        log.groups.session = 6_000_000;
        log.groups.release_within = 9_000_000;
        Self {
            now: plan.begin,
            plan,
            random,
            calm: false,
            log,
            store: StoreState::default(),
            files: BTreeMap::new(),
            uncommitted: BTreeMap::new(),
            on_their_way: BTreeMap::new(),
            sent: 0,
            lives: BTreeMap::new(),
            sealed: BTreeMap::new(),
            accounts: BTreeMap::new(),
            slots: BTreeMap::new(),
            writers: BTreeMap::new(),
            opened_by: BTreeMap::new(),
            counts: Counts::default(),
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, line: String::new(), lines: keep_trace.then(Vec::new) },
            violation: None,
        }
    }

    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    pub(crate) fn count(&mut self, what: Happening) {
        self.counts.add(what);
    }

    /// Notes that a law does not hold; the first counts.
    pub(crate) fn violate(&mut self, law: &'static str, seen: String) {
        self.note(format_args!("VIOLATION of {law}: {seen}"));
        self.violation.get_or_insert(Violation { law, seen });
    }

    pub(crate) fn life(&mut self, who: Who) -> &mut Life {
        self.lives.entry(who).or_default()
    }

    pub(crate) fn log_id(&self) -> LogId {
        let id = self.log.topic(TOPIC).map_or(String::new(), |topic| topic.id);
        LogId::new(SOURCE, &id)
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        0..self.plan.partitions
    }

    pub(crate) fn ledger(&self, partition: Partition) -> Ledger {
        self.store.ledger(&self.log_id(), partition)
    }

    /// The ledger as quorum reads see it.
    pub(crate) fn ledger_at_quorum(&self, log: &LogId, partition: Partition) -> Ledger {
        let veiled = self.uncommitted.get(&(log.clone(), partition));
        veiled.cloned().unwrap_or_else(|| self.store.ledger(log, partition))
    }

    /// What a conditional write or a serial read of a ledger does to a change that was decided before.
    pub(crate) fn complete(&mut self, log: &LogId, partition: Partition) {
        self.uncommitted.remove(&(log.clone(), partition));
    }

    /// Sends a write that arrives `after` µs.
    pub(crate) fn send(&mut self, who: Who, effect: Effect, after: Micros) {
        self.sent += 1;
        self.on_their_way.insert((self.now + after, self.sent), (who, effect));
    }

    /// Moves time on and lets arrive what is due.
    pub(crate) fn advance(&mut self, now: Micros) {
        self.now = now;
        determinism::set_now(now);
        while let Some(entry) = self.on_their_way.first_entry().filter(|entry| entry.key().0 <= now) {
            let (who, effect) = entry.remove();
            self.count(Happening::Late);
            if effect.is_conditional() {
                self.count(Happening::LateChange);
            }
            if self.life(who).dead {
                self.count(Happening::LateAfterCrash);
            }
            let done = self.apply(who, &effect);
            self.note(format_args!("{who} {} arrives late: {done:?}", effect.name()));
        }
    }

    pub(crate) fn apply(&mut self, who: Who, effect: &Effect) -> Done {
        let now = self.now;
        match effect {
            Effect::Chunks { chunks, stamp } => {
                for (key, value) in chunks {
                    self.slots.insert(key.epoch, key.slot);
                    self.store.put_chunk(key, value, *stamp, now);
                }
                self.heed_store();
            }
            Effect::Mark { log, partition, epoch, mark, stamp } => {
                self.writers.insert(*epoch, who);
                let slot = self.slots.get(epoch).copied().unwrap_or_default();
                let unwritten = self.store.unwritten(slot, *epoch, mark);
                if !unwritten.is_empty() {
                    self.violate("marks-name-acknowledged-chunks", format!("{who}: {unwritten:?}"));
                }
                self.store.put_mark((log, *partition, *epoch), mark, *stamp, now);
            }
            Effect::Rows(rows) => {
                self.life(who).stage = Stage::Writing;
                rows.iter().for_each(|row| self.store.put_row(row));
            }
            Effect::RemoveRows { view, width, base, shard, periods, upto } => {
                self.count(Happening::Unused);
                self.store.remove_chunks((view, *width, *base, *shard), periods, *upto);
            }
            Effect::Manifest { log, partition, epochs } => self.store.archive(log, *partition, epochs),
            Effect::Commit { log, partition, change } => {
                return Done::Conditional(self.commit(who, log, *partition, change));
            }
            Effect::Document { kind, key, expected, value } => {
                let before = self.store.document(kind, key).map(|document| document.value);
                let done = self.store.change_document(kind, key, *expected, value.clone());
                if kind == VIEW_DOCUMENTS && done == Commit::Applied {
                    self.view_changed(who, &ViewId::from_text(key), before.as_ref(), value.as_ref());
                }
                if kind == ARCHIVE_DOCUMENTS && done == Commit::Applied {
                    self.holdings_changed(who, key, before.as_ref(), value.as_ref());
                }
                return Done::Conditional(done);
            }
            Effect::File { path, bytes, create } => {
                if *create && self.files.contains_key(path) {
                    return Done::Exists;
                }
                self.files.insert(path.clone(), bytes.clone());
            }
            Effect::RemoveFile { path } => drop(self.files.remove(path)),
        }
        Done::Written
    }

    fn heed_store(&mut self) {
        if let Some(broken) = self.store.broken.pop() {
            let law = if broken.starts_with("ledger") { "ledgers-chain" } else { "one-key-one-content" };
            self.violate(law, broken);
        }
    }

    fn commit(&mut self, who: Who, log: &LogId, partition: Partition, change: &Change) -> Commit {
        self.complete(log, partition);
        let before = self.store.ledger(log, partition);
        let done = self.store.commit(log, partition, change);
        self.heed_store();
        if done == Commit::Refused {
            let owner = before.open().and_then(|open| self.writers.get(&open.id).copied());
            if owner.is_some_and(|owner| owner != who) {
                self.count(Happening::Fenced);
            }
            return done;
        }
        for epoch in &change.put {
            if epoch.end.is_none() {
                self.writers.insert(epoch.id, who);
            }
        }
        let after = self.store.ledger(log, partition);
        self.ledger_changed(partition, &before, &after);
        done
    }

    fn ledger_changed(&mut self, partition: Partition, before: &Ledger, after: &Ledger) {
        let now = self.now;
        if let (Some(old), Some(new)) = (before.open(), after.open())
            && (old.id, old.start) != (new.id, new.start)
            && old.start == new.start
        {
            self.count(Happening::Takeover);
        }
        for epoch in after.sealed() {
            let (end, old) = (epoch.end.unwrap_or(epoch.start), before.epoch_at(epoch.start));
            match old {
                Some(old) if old.end.is_some() && old.id != epoch.id => self.count(Happening::Repair),
                Some(old) if old.end.is_some() && old.alive_until < epoch.alive_until => self.count(Happening::Touch),
                Some(old) if old.end.is_some() => {}
                _ => self.count(Happening::Seal),
            }
            if let Some(old) = old.filter(|old| old.end.is_some() && old.end != epoch.end) {
                self.violate("sealed-ranges-stay", format!("{partition}: {old:?} became {epoch:?}"));
            }
            self.sealed.entry(partition).or_default().entry(end).or_insert(now);
            self.check_file(partition, epoch);
            if epoch.lost.is_some() && old.is_none_or(|old| old.end.is_none()) {
                self.count(Happening::Lost);
            }
            self.accounts.insert((partition, epoch.start), epoch.clone());
        }
        let log = self.log_id();
        for gone in before.sealed().filter(|old| after.epoch_at(old.start).is_none()) {
            self.count(Happening::Trim);
            if self.store.archived(&log, partition, gone.start..gone.start + 1).is_empty() {
                self.violate("trimmed-epochs-are-in-the-manifest", format!("{partition}: {gone:?}"));
            }
        }
        if after.sealed_end() < before.sealed_end() {
            self.violate("sealed-ranges-stay", format!("{partition}: {before:?} became {after:?}"));
        }
    }

    /// A sealed epoch's file is durable, whole, and accounts for every offset.
    fn check_file(&mut self, partition: Partition, epoch: &Epoch) {
        let length = epoch.end.unwrap_or(epoch.start) - epoch.start;
        let Some(Archive { path, bytes, checksum, counts, .. }) = &epoch.archive else {
            return self.violate("sealed-epochs-are-archived", format!("{partition}: {epoch:?}"));
        };
        if counts.offsets() != length {
            self.violate("epochs-conserve", format!("{partition}: {epoch:?}"));
        }
        if self.accounts.get(&(partition, epoch.start)).is_some_and(|known| known.archive == epoch.archive) {
            return;
        }
        if !self.is_whole(path, *bytes, *checksum) {
            self.violate("sealed-epochs-are-archived", format!("{partition}: {path} is not there, or not whole"));
        }
    }

    fn is_whole(&self, path: &str, bytes: u64, checksum: u32) -> bool {
        self.files.get(path).is_some_and(|file| file.len() as u64 == bytes && crc32fast::hash(file) == checksum)
    }

    /// What takes the place of epochs' own files is durable, whole, and accounts for the same offsets.
    fn holdings_changed(&mut self, who: Who, key: &str, before: Option<&Bytes>, after: Option<&Bytes>) {
        let read = |bytes: Option<&Bytes>| bytes.and_then(|bytes| envelope::unpack::<Holdings>(bytes).ok());
        let (before, after) = (read(before).unwrap_or_default(), read(after).unwrap_or_default());
        for segment in after.segments.iter().filter(|segment| !before.segments.contains(segment)) {
            let Some(Archive { path, bytes, checksum, counts, .. }) = &segment.archive else { continue };
            self.count(Happening::Compacted);
            self.note(format_args!("{who} puts offsets {}..{} of {key} together", segment.start, segment.end));
            if counts.offsets() != segment.end - segment.start {
                self.violate("epochs-conserve", format!("{key}: {segment:?}"));
            }
            if !self.is_whole(path, *bytes, *checksum) {
                self.violate("sealed-epochs-are-archived", format!("{key}: {path} is not there, or not whole"));
            }
        }
    }

    fn view_changed(&mut self, who: Who, view: &ViewId, before: Option<&Bytes>, after: Option<&Bytes>) {
        let read = |bytes: Option<&Bytes>| bytes.and_then(|bytes| envelope::unpack::<ViewState>(bytes).ok());
        let (before, after) = (read(before).unwrap_or_default(), read(after).unwrap_or_default());
        let generation = |state: &ViewState| state.open.as_ref().map(|open| open.generation);
        if let Some(open) = generation(&after).filter(|open| generation(&before) != Some(*open)) {
            self.note(format_args!("{who} opens generation {open} of {view}"));
            if generation(&before).is_some() {
                self.count(Happening::Abandoned);
                let other = self.opened_by.get(view).copied().filter(|other| *other != who);
                if other.is_some_and(|other| !self.life(other).dead) {
                    self.count(Happening::TwoLeaders);
                }
            }
            self.opened_by.insert(view.clone(), who);
            self.life(who).stage = Stage::Opened;
        }
        if after.published.generation != before.published.generation {
            self.count(Happening::Published);
            let unfinished = self.store.list(VIEW_DOCUMENTS).into_iter().any(|(view, document)| {
                let open = read(Some(&document.value)).is_some_and(|state| state.open.is_some());
                open && self.opened_by.get(&ViewId::from_text(&view)) == Some(&who)
            });
            self.life(who).stage = if unfinished { Stage::Publishing } else { Stage::Idle };
            self.note(format_args!("{who} publishes {view}: {:?}", after.published.cut));
            if after.published.bases.len() > before.published.bases.len() {
                self.count(Happening::Recompute);
            }
            if before.open.as_ref().is_some_and(|open| open.scope.rollback.is_some()) {
                self.count(Happening::Rollback);
            }
            if !after.published.cut.reaches(&before.published.cut) {
                self.violate("cuts-only-rise", format!("{view}: {before:?} became {after:?}"));
            }
            for (partition, cut) in after.published.cut.iter() {
                let sealed = self.ledger(partition).sealed_end();
                if cut > sealed {
                    self.violate(
                        "cuts-lie-in-sealed-epochs",
                        format!("{view}: {cut} in {partition} sealed to {sealed}"),
                    );
                }
            }
        }
    }

    /// Leaves quorum readers with the ledger as it was: the change is decided, but only a serial read completes it.
    pub(crate) fn veil(&mut self, log: &LogId, partition: Partition, before: Ledger) {
        if before.version > 0 && before.version + 1 == self.store.ledger(log, partition).version {
            self.uncommitted.insert((log.clone(), partition), before);
            self.count(Happening::Uncommitted);
        }
    }

    /// Notes that a life ended.
    pub(crate) fn died(&mut self, who: Who) {
        let stage = {
            let life = self.life(who);
            life.dead = true;
            life.stage
        };
        match stage {
            Stage::Idle => {}
            Stage::Opened => self.count(Happening::BatchKilledOpened),
            Stage::Writing => self.count(Happening::BatchKilledWriting),
            Stage::Publishing => self.count(Happening::BatchKilledPublishing),
        }
    }

    /// Whether a speed chunk stood under this key and is gone.
    pub(crate) fn expired(&mut self, key: &SpeedKey) -> bool {
        let gone = self.store.chunk(key, self.now).is_none() && self.store.chunk(key, Micros::MIN).is_some();
        if gone && matches!(key.part, Part::Whole(_)) {
            self.count(Happening::Expired);
        }
        gone
    }
}
