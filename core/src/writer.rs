//! The writer of an epoch: what one worker may do with one partition, and when.
//!
//! ```text
//! take_over ──► taking over ──publish──► live ──seal──► sealing ──► live (next epoch)
//!                    └────────────── fenced ◄─────────────┘
//! ```
//!
//! The writer does no I/O. It hands out keys, marks and ledger changes in the only order in which they may be written,
//! and is told what was acknowledged.
//!
//! # Invariants
//! - One id has one writer, for ever; the same chunk key always has the same bytes.
//! - A mark never names a chunk that was not acknowledged.
//! - Once a seal was sent, nothing more is written under that id.

use std::collections::BTreeMap;

use crate::{
    ids::{EpochId, Micros, Offset, Shard, ViewId},
    ledger::{Archive, Change, Epoch, Ledger, LedgerError},
    rules::{self, Rule},
    store::{self, Mark, Part, SpeedKey},
};

/// What a takeover needs to know besides the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    pub id: EpochId,
    pub now: Micros,
    /// Revision of the definitions that this worker folds with.
    pub revision: u64,
    /// Where the log begins now; only a partition without a ledger starts there.
    pub log_start: Offset,
    pub alive_until: Micros,
}

/// One worker's hold on one partition.
#[derive(Clone, Debug)]
pub struct Writer {
    epoch: Epoch,
    position: Offset,
    sequences: BTreeMap<(ViewId, Shard), u64>,
    marks: u64,
    /// End of the last acknowledged mark.
    marked: Offset,
    /// End up to which consolidated chunks were acknowledged.
    consolidated: Option<Offset>,
    role: Role,
}

#[derive(Clone, Debug)]
enum Role {
    TakingOver { predecessor: Option<EpochId>, goal: Offset },
    Live,
    Sealing(Box<Seal>),
    Fenced,
}

/// A seal as it was sent; repeated unchanged until its outcome is known.
#[derive(Clone, Debug)]
struct Seal {
    end: Offset,
    archive: Archive,
    next: Epoch,
    trim: Offset,
}

/// One flush: chunks first, all acknowledged, then the mark.
#[derive(Clone, Debug)]
pub struct Flush {
    /// One key for each dirty (view, shard), in the order given.
    pub keys: Vec<SpeedKey>,
    /// Write timestamp of chunks and mark.
    pub stamp: Micros,
    pub mark: Mark,
}

/// What the ledger says of a publish or seal whose outcome was not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It was applied; the writer is live (after a seal: in the next epoch).
    Applied,
    /// It was not applied, which proves nothing: send this.
    Repeat(Change),
    /// Another worker owns the partition: drop everything.
    Fenced,
}

impl Writer {
    /// Takes a partition over: a new id from the start of the open epoch.
    ///
    /// # Errors
    /// [`LedgerError::OldRevision`] if the open epoch was folded with newer definitions than ours.
    pub fn take_over(ledger: &Ledger, open_mark: Option<&Mark>, takeover: Takeover) -> Result<Self, LedgerError> {
        let open = ledger.open();
        if let Some(open) = open.filter(|open| open.revision > takeover.revision) {
            return Err(LedgerError::OldRevision { expected: open.revision, found: takeover.revision });
        }
        let goal = open_mark.map_or(0, |mark| mark.end);
        let mut start = open.map_or(takeover.log_start, |open| open.start);
        let mut id = takeover.id;
        if !rules::on(Rule::RewindAtTakeover) {
            start = start.max(goal);
        }
        if let (false, Some(open)) = (rules::on(Rule::NewIdAtTakeover), open) {
            id = open.id;
        }
        let epoch = Epoch {
            id,
            start,
            end: None,
            opened_at: takeover.now,
            revision: takeover.revision,
            dedup_clock: open.map_or(0, |open| open.dedup_clock),
            alive_until: takeover.alive_until,
            archive: None,
            lost: open.and_then(|open| open.lost),
        };
        let role = Role::TakingOver { predecessor: open.map(|open| open.id), goal };
        Ok(Self::at(epoch, role))
    }

    fn at(epoch: Epoch, role: Role) -> Self {
        let start = epoch.start;
        Self { epoch, position: start, sequences: BTreeMap::new(), marks: 0, marked: start, consolidated: None, role }
    }

    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Position after the last folded record.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// End of the last acknowledged mark.
    pub fn marked(&self) -> Offset {
        self.marked
    }

    pub fn is_live(&self) -> bool {
        matches!(self.role, Role::Live)
    }

    pub fn is_fenced(&self) -> bool {
        matches!(self.role, Role::Fenced)
    }

    /// Whether records may be folded and chunks written now.
    pub fn may_write(&self) -> bool {
        match self.role {
            Role::TakingOver { .. } | Role::Live => true,
            Role::Sealing(_) => !rules::on(Rule::StopAfterSeal),
            Role::Fenced => false,
        }
    }

    /// Notes that everything below `next` is folded.
    pub fn folded_to(&mut self, next: Offset) {
        debug_assert!(self.may_write() && next >= self.position, "folded backwards or after the seal");
        self.position = next;
    }

    /// Notes that the log no longer holds `range` of this epoch.
    pub fn lost(&mut self, range: (Offset, Offset)) {
        let known = self.epoch.lost.unwrap_or(range);
        self.epoch.lost = Some((known.0.min(range.0), known.1.max(range.1)));
    }

    /// Notes the shards of all views that this epoch folds: marks name each, changed or not.
    pub fn folds(&mut self, all: impl IntoIterator<Item = (ViewId, Shard)>) {
        for place in all {
            self.sequences.entry(place).or_default();
        }
    }

    /// The next flush: everything folded up to here, for the shards that changed since the last one.
    pub fn flush(
        &mut self,
        dirty: &[(ViewId, Shard)],
        watermark: Option<Micros>,
        appended_at: Option<Micros>,
    ) -> Flush {
        let slot = store::slot(self.epoch.opened_at);
        let keys = dirty.iter().map(|(view, shard)| {
            let next = self.sequences.entry((view.clone(), *shard)).or_default();
            let part = Part::Delta(*next);
            *next += 1;
            SpeedKey { view: view.clone(), shard: *shard, slot, epoch: self.epoch.id, part }
        });
        let keys = keys.collect();
        self.marks += 1;
        let mark = Mark {
            end: self.position,
            sequences: self.sequences.clone(),
            watermark,
            appended_at,
            number: self.marks,
            lost: self.epoch.lost,
        };
        Flush { keys, stamp: self.stamp(), mark }
    }

    /// Notes that a flush's chunks and then its mark were acknowledged.
    pub fn flushed(&mut self, flush: &Flush) {
        self.marked = self.marked.max(flush.mark.end);
    }

    /// Keys and stamp of the consolidated chunks that a seal at the present position needs, one per (view, shard).
    pub fn consolidation(&self, all: &[(ViewId, Shard)]) -> (Vec<SpeedKey>, Micros) {
        let slot = store::slot(self.epoch.opened_at);
        let part = Part::Whole(self.position);
        let key = |(view, shard): &(ViewId, Shard)| SpeedKey {
            view: view.clone(),
            shard: *shard,
            slot,
            epoch: self.epoch.id,
            part,
        };
        (all.iter().map(key).collect(), stamps(self.epoch.opened_at, self.marks).1)
    }

    /// Notes that the consolidated chunks up to `end` were acknowledged.
    pub fn consolidated(&mut self, end: Offset) {
        self.consolidated = Some(end);
    }

    fn stamp(&self) -> Micros {
        stamps(self.epoch.opened_at, self.marks).0
    }

    /// The change that makes this epoch count, or `None` while it is not due: something is unflushed, or the mark that
    /// readers could see before is not yet passed.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] if the open epoch is no longer the one that was taken over.
    pub fn publish(&self, ledger: &Ledger) -> Result<Option<Change>, LedgerError> {
        let Role::TakingOver { predecessor, goal } = self.role else { return Ok(None) };
        let flushed = self.marked == self.position;
        let past_goal = self.position >= goal || !rules::on(Rule::PublishPastTheGoal);
        if !flushed || !past_goal {
            return Ok(None);
        }
        if !rules::on(Rule::RewindAtTakeover) {
            return Ok(Some(self.publish_beside(ledger)));
        }
        ledger.replace_open(predecessor, self.epoch.clone()).map(Some)
    }

    /// Without the rewind, the open epoch would have to be ended where the new one starts.
    fn publish_beside(&self, ledger: &Ledger) -> Change {
        let ended = ledger.open().filter(|open| open.start < self.epoch.start);
        let ended = ended.map(|open| Epoch { end: Some(self.epoch.start), ..open.clone() });
        let put = ended.into_iter().chain([self.epoch.clone()]).collect();
        Change { expected: ledger.version, put, remove: Vec::new() }
    }

    /// Notes that the publish was applied.
    pub fn published(&mut self) {
        self.role = Role::Live;
    }

    /// Notes that another worker owns the partition.
    pub fn fence(&mut self) {
        self.role = Role::Fenced;
    }

    /// Whether a seal is due as far as order goes: something folded, all of it marked and consolidated.
    pub fn may_seal(&self) -> bool {
        let flushed = self.marked == self.position && self.consolidated == Some(self.position);
        self.is_live() && self.position > self.epoch.start && (flushed || !rules::on(Rule::FlushBeforeSeal))
    }

    /// The change that ends this epoch here and opens `next`; from now on nothing is written until it is resolved.
    /// `archive` is durable. Epochs that end at or below `trim` leave the ledger; they are in the manifest.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] if the open epoch is not ours, [`LedgerError::NotConserved`] if offsets are unaccounted for.
    pub fn seal(
        &mut self,
        ledger: &Ledger,
        archive: Archive,
        next: NextEpoch,
        trim: Offset,
    ) -> Result<Change, LedgerError> {
        let next = Epoch {
            id: next.id,
            start: self.position,
            end: None,
            opened_at: next.now.max(self.epoch.opened_at),
            revision: next.revision.max(self.epoch.revision),
            dedup_clock: next.dedup_clock,
            alive_until: next.alive_until,
            archive: None,
            lost: None,
        };
        let seal = Seal { end: self.position, archive, next, trim };
        let change = self.seal_change(ledger, &seal)?;
        self.role = Role::Sealing(Box::new(seal));
        Ok(change)
    }

    /// The sealed epoch lives as long as the next one is told to: its consolidated chunks are as young.
    fn seal_change(&self, ledger: &Ledger, seal: &Seal) -> Result<Change, LedgerError> {
        let mut change = ledger.seal(self.epoch.id, seal.end, seal.archive.clone(), seal.next.clone(), seal.trim)?;
        for epoch in change.put.iter_mut().filter(|epoch| epoch.id == self.epoch.id) {
            epoch.alive_until = seal.next.alive_until;
            epoch.lost = self.epoch.lost;
        }
        Ok(change)
    }

    /// Notes that the seal was applied: the writer goes on in the next epoch.
    pub fn sealed(&mut self) {
        if let Role::Sealing(seal) = &self.role {
            *self = Self::at(seal.next.clone(), Role::Live);
        }
    }

    /// Decides what became of a publish or seal, from the ledger read back at SERIAL.
    ///
    /// # Errors
    /// As [`Writer::publish`] and [`Writer::seal`], except that a lost partition is [`Resolved::Fenced`].
    pub fn resolve(&mut self, ledger: &Ledger) -> Result<Resolved, LedgerError> {
        let open = ledger.open().map(|open| open.id);
        let resolved = match &self.role {
            Role::TakingOver { .. } if open == Some(self.epoch.id) => Ok(Resolved::Applied),
            Role::TakingOver { .. } => match self.publish(ledger) {
                Ok(Some(change)) => Ok(Resolved::Repeat(change)),
                Ok(None) => Ok(Resolved::Applied),
                Err(error) => Err(error),
            },
            Role::Sealing(seal) if open == Some(seal.next.id) => {
                if rules::on(Rule::StopAfterSeal) {
                    Ok(Resolved::Applied)
                } else {
                    Ok(Resolved::Fenced)
                }
            }
            Role::Sealing(seal) if open == Some(self.epoch.id) => self.seal_change(ledger, seal).map(Resolved::Repeat),
            Role::Live => Ok(if open == Some(self.epoch.id) { Resolved::Applied } else { Resolved::Fenced }),
            Role::Sealing(_) | Role::Fenced => Ok(Resolved::Fenced),
        };
        let resolved = match resolved {
            Err(LedgerError::Fenced { .. }) => Resolved::Fenced,
            other => other?,
        };
        match (&resolved, &self.role) {
            (Resolved::Applied, Role::Sealing(_)) => self.sealed(),
            (Resolved::Applied, Role::TakingOver { .. }) => self.published(),
            (Resolved::Fenced, _) => self.fence(),
            _ if !rules::on(Rule::StopAfterSeal) => self.role = Role::Live,
            _ => {}
        }
        Ok(resolved)
    }
}

/// Write timestamps within an epoch: of its mark of this number (and the chunks flushed with it), and of consolidated
/// chunks that follow this mark. They grow with every flush and stay near real time. Whoever touches a sealed epoch
/// derives them from its last mark.
pub fn stamps(opened_at: Micros, marks: u64) -> (Micros, Micros) {
    let mark = opened_at.saturating_add(Micros::try_from(marks).unwrap_or(Micros::MAX).saturating_mul(2));
    (mark, mark.saturating_add(1))
}

/// What the epoch after a seal begins with.
#[derive(Clone, Copy, Debug)]
pub struct NextEpoch {
    pub id: EpochId,
    pub now: Micros,
    pub revision: u64,
    /// Running maximum of append time at the seal.
    pub dedup_clock: Micros,
    pub alive_until: Micros,
}
