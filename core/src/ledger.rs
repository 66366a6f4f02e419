//! The ledger: per partition, the ordered list of epochs that count.
//!
//! A ledger changes only by compare-and-set on its version. The functions here make a [`Change`] for the ledger that the
//! caller has read; the store applies it only if the version is still the same.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{EpochId, Micros, Offset},
    rules::{self, Rule},
};

/// A contiguous offset range of one partition, folded by exactly one writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    pub id: EpochId,
    pub start: Offset,
    /// Exclusive; `None` while the epoch is open.
    pub end: Option<Offset>,
    /// When the epoch was opened: bounds the partitions of the speed tables and stamps its writes.
    pub opened_at: Micros,
    /// The revision of the definitions that folded it; never lower than the one before.
    pub revision: u64,
    /// Running maximum of the append time of all records before `start`; the dedup window ends here.
    pub dedup_clock: Micros,
    /// Until when the epoch's chunks are sure to live; past it they may be gone.
    pub alive_until: Micros,
    /// The archive file, once sealed.
    pub archive: Option<Archive>,
    /// Offsets whose records were gone from the log before they could be read.
    pub lost: Option<(Offset, Offset)>,
}

/// What a sealed epoch left in the archive, and what became of each of its offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// Path of the file below the archive's root.
    pub path: String,
    pub bytes: u64,
    /// CRC-32 of the file.
    pub checksum: u32,
    pub counts: Counts,
    /// Smallest and largest event time of the accepted records.
    pub event_time: Option<(Micros, Micros)>,
    /// Offset of the last record and the CRC-32 of its payload: a log that was cut off and written anew holds another there.
    pub last_record: Option<(Offset, u32)>,
}

impl Archive {
    /// Whether these are the bytes of the file, by size and checksum.
    pub fn describes(&self, file: &[u8]) -> bool {
        file.len() as u64 == self.bytes && crc32fast::hash(file) == self.checksum
    }
}

/// Conservation: what became of each offset of an epoch. The sum is the epoch's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records that the metrics' folds saw.
    pub accepted: u64,
    /// Records that could not be decoded.
    pub dead: u64,
    /// Records whose id had been seen within the dedup window.
    pub duplicates: u64,
    /// Records that were erased from the archive on request: their rows say no more than that.
    pub erased: u64,
    /// Offsets that hold no record: transaction markers, or what the log had already lost.
    pub absent: u64,
}

impl Counts {
    /// Rows of the archive file: every record, whatever became of it.
    pub fn records(&self) -> u64 {
        self.accepted + self.dead + self.duplicates + self.erased
    }

    pub fn offsets(&self) -> u64 {
        self.records() + self.absent
    }

    pub fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.dead += other.dead;
        self.duplicates += other.duplicates;
        self.erased += other.erased;
        self.absent += other.absent;
    }
}

/// The epochs of one partition in offset order; the last one is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Grows by one with every change; 0 is the ledger that was never written.
    pub version: u64,
    pub epochs: Vec<Epoch>,
}

/// A change of one ledger: applies to `expected` only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub expected: u64,
    /// Rows to write, keyed by their start.
    pub put: Vec<Epoch>,
    /// Starts of rows to remove.
    pub remove: Vec<Offset>,
}

/// Why a change cannot be made, or a ledger not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    #[error("the open epoch is {found:?}, not {expected}: another worker owns the partition")]
    Fenced { expected: EpochId, found: Option<EpochId> },
    #[error("epoch {0} is not in the ledger")]
    NotFound(EpochId),
    #[error("epochs do not chain at offset {at}")]
    Broken { at: Offset },
    #[error("epoch {id} covers {expected} offsets but accounts for {found}")]
    NotConserved { id: EpochId, expected: u64, found: u64 },
    #[error("definition revision {found} is older than the open epoch's {expected}")]
    OldRevision { expected: u64, found: u64 },
}

impl Ledger {
    pub fn open(&self) -> Option<&Epoch> {
        self.epochs.last().filter(|epoch| epoch.end.is_none())
    }

    pub fn epoch_at(&self, start: Offset) -> Option<&Epoch> {
        self.epochs.binary_search_by_key(&start, |epoch| epoch.start).ok().map(|at| &self.epochs[at])
    }

    pub fn sealed(&self) -> impl Iterator<Item = &Epoch> {
        self.epochs.iter().filter(|epoch| epoch.end.is_some())
    }

    /// Where sealed epochs end: the furthest that a batch generation may cover.
    pub fn sealed_end(&self) -> Offset {
        self.epochs.last().map_or(0, |epoch| epoch.end.unwrap_or(epoch.start))
    }

    /// Epochs chain without gap or overlap and only the last one is open.
    ///
    /// # Errors
    /// [`LedgerError::Broken`] where they do not: the pages read were of different versions.
    pub fn check(&self) -> Result<(), LedgerError> {
        for pair in self.epochs.windows(2) {
            if pair[0].end != Some(pair[1].start) {
                return Err(LedgerError::Broken { at: pair[1].start });
            }
        }
        match self.epochs.last() {
            Some(last) if last.end.is_some() => Err(LedgerError::Broken { at: last.start }),
            _ => Ok(()),
        }
    }

    /// Whether `cut` may be met by a reader of this ledger: an epoch start of it, or at or below its first start.
    pub fn knows(&self, cut: Offset) -> bool {
        match self.epochs.first() {
            None => cut == 0,
            Some(first) => cut <= first.start || self.epoch_at(cut).is_some(),
        }
    }

    /// A takeover: `epoch` replaces the open epoch, or is the first.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] if the open epoch is not `predecessor`, [`LedgerError::OldRevision`] if its revision is
    /// newer.
    pub fn replace_open(&self, predecessor: Option<EpochId>, epoch: Epoch) -> Result<Change, LedgerError> {
        let open = self.open();
        let unchanged = open.map(|open| open.id) == predecessor;
        if !unchanged && rules::on(Rule::CompareAndSet) {
            return Err(LedgerError::Fenced { expected: epoch.id, found: open.map(|open| open.id) });
        }
        if let Some(open) = open.filter(|open| open.revision > epoch.revision) {
            return Err(LedgerError::OldRevision { expected: open.revision, found: epoch.revision });
        }
        let remove = open.map(|open| open.start).filter(|&start| start != epoch.start).into_iter().collect();
        Ok(Change { expected: self.version, put: vec![epoch], remove })
    }

    /// A seal: ends the open epoch at `end` with its archive file and opens `next` there. Epochs that end at or below
    /// `trim` leave the ledger in the same change; the caller has put them into the manifest before.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] if `id` is not the open epoch, [`LedgerError::NotConserved`] if its offsets are not all
    /// accounted for.
    pub fn seal(
        &self,
        id: EpochId,
        end: Offset,
        archive: Archive,
        next: Epoch,
        trim: Offset,
    ) -> Result<Change, LedgerError> {
        let open = self.open().filter(|open| open.id == id);
        let open = match open.or_else(|| self.open().filter(|_| !rules::on(Rule::CompareAndSet))) {
            Some(open) => open,
            None => return Err(LedgerError::Fenced { expected: id, found: self.open().map(|open| open.id) }),
        };
        let (expected, found) = (end.saturating_sub(open.start), archive.counts.offsets());
        if expected != found {
            return Err(LedgerError::NotConserved { id, expected, found });
        }
        let sealed = Epoch { end: Some(end), archive: Some(archive), ..open.clone() };
        let remove = self.trimmable(trim).map(|epoch| epoch.start).collect();
        Ok(Change { expected: self.version, put: vec![sealed, next], remove })
    }

    /// Sealed epochs that end at or below `below`.
    pub fn trimmable(&self, below: Offset) -> impl Iterator<Item = &Epoch> {
        self.sealed().filter(move |epoch| epoch.end.is_some_and(|end| end <= below))
    }

    /// A repair: a sealed epoch whose chunks died is replaced by `id`, rebuilt from its archive file over the same range.
    ///
    /// # Errors
    /// [`LedgerError::NotFound`] if `old` is not a sealed epoch of this ledger.
    pub fn repair(
        &self,
        old: EpochId,
        id: EpochId,
        opened_at: Micros,
        alive_until: Micros,
    ) -> Result<Change, LedgerError> {
        let epoch = self.sealed().find(|epoch| epoch.id == old).ok_or(LedgerError::NotFound(old))?;
        let rebuilt = Epoch { id, opened_at, alive_until, ..epoch.clone() };
        Ok(Change { expected: self.version, put: vec![rebuilt], remove: Vec::new() })
    }

    /// Moves `alive_until` of epochs whose every chunk was re-written before the old value passed.
    pub fn touched(&self, ids: &[EpochId], alive_until: Micros) -> Change {
        let touched = self.epochs.iter().filter(|epoch| ids.contains(&epoch.id));
        let put = touched.map(|epoch| Epoch { alive_until, ..epoch.clone() }).collect();
        Change { expected: self.version, put, remove: Vec::new() }
    }

    /// The ledger after `change`, or `None` if it was made for another version. Every store does exactly this.
    pub fn apply(&self, change: &Change) -> Option<Self> {
        if change.expected != self.version && rules::on(Rule::CompareAndSet) {
            return None;
        }
        let replaced = |epoch: &&Epoch| {
            !change.remove.contains(&epoch.start) && change.put.iter().all(|put| put.start != epoch.start)
        };
        let mut epochs: Vec<Epoch> = self.epochs.iter().filter(replaced).cloned().collect();
        epochs.extend(change.put.iter().cloned());
        epochs.sort_by_key(|epoch| epoch.start);
        Some(Self { version: self.version + 1, epochs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_whose_offsets_are_not_all_accounted_for_is_not_sealed() {
        let epoch = |start| Epoch {
            id: EpochId::new(),
            start,
            end: None,
            opened_at: 0,
            revision: 1,
            dedup_clock: 0,
            alive_until: 0,
            archive: None,
            lost: None,
        };
        let ledger = Ledger { version: 1, epochs: vec![epoch(10)] };
        let id = ledger.epochs[0].id;
        let seal = |counts| {
            let archive =
                Archive { path: String::new(), bytes: 0, checksum: 0, counts, event_time: None, last_record: None };
            ledger.seal(id, 20, archive, epoch(20), 0)
        };
        let whole = Counts { accepted: 6, dead: 1, duplicates: 1, erased: 0, absent: 2 };
        assert!(seal(whole).is_ok());
        for counts in [
            Counts { accepted: 5, ..whole },
            Counts { dead: 2, ..whole },
            Counts { duplicates: 0, ..whole },
            Counts { absent: 3, ..whole },
        ] {
            let found = counts.offsets();
            assert_eq!(seal(counts), Err(LedgerError::NotConserved { id, expected: 10, found }));
        }
    }
}
