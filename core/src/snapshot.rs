//! What a reader took, and which of it counts.
//!
//! A [`Snapshot`] is the published generation of a view, then the ledgers with the marks of their open epochs, taken in
//! that order. It fixes the prefix of the log that the answer folds; speed and batch chunks read afterwards are
//! counted, or refused, by it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    cut::Cut,
    generation::Published,
    ids::{EpochId, Micros, Offset, Partition},
    ledger::{Epoch, Ledger},
    rules::{self, Rule},
    store::{self, Mark},
};

/// The revision of the first definitions. Epochs leave a ledger only below every active view's published cut, so an
/// unpublished view can lack trimmed epochs only if it was defined later.
pub const FIRST_REVISION: u64 = 1;

/// A ledger with the mark of its open epoch.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    pub ledger: Ledger,
    pub mark: Option<Mark>,
}

/// One reader's view of what counts.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken: epochs that may have expired by then are not read.
    pub now: Micros,
    pub published: Published,
    /// The revision of the definitions since which the view counts epochs.
    pub since: u64,
    pub taken: BTreeMap<Partition, Taken>,
}

/// The chunks of an epoch that a reader needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub partition: Partition,
    pub epoch: EpochId,
    pub slot: i64,
    /// Start offset of the epoch: coverage is judged by it.
    pub start: Offset,
    pub part: WantedPart,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedPart {
    /// The epoch is sealed: the consolidated chunk that ends here, alone.
    Whole(Offset),
    /// The epoch is open: the delta sequences that its mark names.
    Deltas(Mark),
}

/// A range of the log that the answer does not fold, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub partition: Partition,
    pub from: Offset,
    /// Exclusive.
    pub to: Offset,
    pub why: MissingBecause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingBecause {
    /// Folded before the view was defined; batch has not built it yet.
    NotBuilt,
    /// Its speed chunks may have expired before batch covered them.
    Expired,
    /// The log had lost the records before they were read.
    Lost,
}

/// The inputs were read at moments that do not fit together: take everything again, past all caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

impl Snapshot {
    /// The ledgers chain, know the published cut, and nothing above it has left them.
    ///
    /// # Errors
    /// [`Stale`] if batch published, and epochs were trimmed, between the two reads; or if the cut is of another log, as it
    /// is for a moment when a topic was made again.
    pub fn check(&self) -> Result<(), Stale> {
        if !self.admits(&self.published.cut) {
            return Err(Stale);
        }
        for (&partition, taken) in &self.taken {
            let trimmed = taken.ledger.epochs.first().map_or(0, |first| first.start);
            let not_built = self.published.generation == 0;
            let beyond = trimmed > self.published.cut.at(partition) && !not_built;
            if taken.ledger.check().is_err() || (beyond && rules::on(Rule::RecheckTrimmed)) {
                return Err(Stale);
            }
        }
        Ok(())
    }

    /// Whether nothing is published and a ledger begins past offset 0. Either the log did when lamina first saw it, or the
    /// view was defined later, or what is missing was published and trimmed after the view's state was read.
    pub fn begins_late(&self) -> bool {
        let late = |taken: &Taken| taken.ledger.epochs.first().is_some_and(|first| first.start > 0);
        self.published.generation == 0 && self.taken.values().any(late)
    }

    /// Epochs whose chunks are to be read, in offset order by partition.
    pub fn wanted(&self) -> Vec<Wanted> {
        let counted = |(&partition, taken)| self.counted(partition, taken);
        self.taken.iter().flat_map(counted).collect()
    }

    fn counted<'a>(&'a self, partition: Partition, taken: &'a Taken) -> impl Iterator<Item = Wanted> + 'a {
        let uncovered = move |epoch: &&Epoch| self.counts(partition, epoch.start, &self.published.cut);
        let active = |epoch: &&Epoch| epoch.revision >= self.since;
        let alive = |epoch: &&Epoch| !self.is_expired(epoch);
        taken.ledger.epochs.iter().filter(uncovered).filter(active).filter(alive).filter_map(move |epoch| {
            let part = match (epoch.end, &taken.mark) {
                (Some(end), _) => WantedPart::Whole(end),
                (None, Some(mark)) => WantedPart::Deltas(mark.clone()),
                (None, None) => return None,
            };
            let slot = store::slot(epoch.opened_at);
            Some(Wanted { partition, epoch: epoch.id, slot, start: epoch.start, part })
        })
    }

    /// Whether some chunk of the epoch may be gone. Then none of them is read: what is left of an epoch would be folded in
    /// one answer and not in the next.
    fn is_expired(&self, epoch: &Epoch) -> bool {
        epoch.alive_until < self.now
    }

    /// Whether a batch chunk with this cut fits the ledgers taken.
    pub fn admits(&self, cut: &Cut) -> bool {
        if !rules::on(Rule::RecheckCuts) {
            return true;
        }
        self.taken.iter().all(|(&partition, taken)| {
            let cut = cut.at(partition);
            if !rules::on(Rule::RecheckStarts) {
                return cut <= self.position(partition, taken);
            }
            taken.ledger.knows(cut)
        })
    }

    /// The cut that a (series, bucket) is batch-covered up to: its chunk's own, or the published one where that is later
    /// or there is no chunk.
    pub fn covered(&self, own: Option<&Cut>) -> Cut {
        own.map_or_else(|| self.published.cut.clone(), |own| own.max(&self.published.cut))
    }

    /// Whether the epoch that starts at `start` adds to what is covered up to `covered`: judged by offset, never by id or
    /// event time.
    pub fn counts(&self, partition: Partition, start: Offset, covered: &Cut) -> bool {
        !covered.covers(partition, start) || !rules::on(Rule::LedgerDecides)
    }

    /// The next offset per partition: exactly the prefix that the answer folds. Of a log that is gone, it is what batch has.
    pub fn positions(&self) -> BTreeMap<Partition, Offset> {
        let taken = self.taken.iter().map(|(&partition, taken)| (partition, self.position(partition, taken)));
        self.published.cut.iter().chain(taken).collect()
    }

    fn position(&self, partition: Partition, taken: &Taken) -> Offset {
        let marked = taken.mark.as_ref().map_or(0, |mark| mark.end);
        taken.ledger.sealed_end().max(marked).max(self.published.cut.at(partition))
    }

    /// Largest event time folded, as far as marks and archive files tell. An event that claims to lie ahead of the time
    /// at which the log took it in counts as of then: one such event must not make the rest look fresh for ever.
    pub fn watermark(&self) -> Option<Micros> {
        let sealed = |taken: &Taken| {
            let last =
                |epoch: &Epoch| epoch.archive.as_ref().and_then(|archive| archive.event_time).map(|(_, last)| last);
            // The epoch that follows says how far append time had come.
            let pairs = taken.ledger.epochs.windows(2);
            pairs.filter_map(|pair| last(&pair[0]).map(|last| no_later(last, pair[1].dedup_clock))).max()
        };
        let open = |taken: &Taken| taken.mark.as_ref().and_then(|mark| mark.watermark);
        self.taken.values().map(|taken| sealed(taken).max(open(taken))).max().flatten().max(self.published.through)
    }

    /// What the answer lacks.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (&partition, taken) in &self.taken {
            let cut = self.published.cut.at(partition);
            let first = taken.ledger.epochs.first().map_or(0, |first| first.start);
            if self.published.generation == 0 && self.since > FIRST_REVISION && first > 0 {
                missing.push(Missing { partition, from: 0, to: first, why: MissingBecause::NotBuilt });
            }
            for epoch in taken.ledger.epochs.iter().filter(|epoch| epoch.start >= cut) {
                let to = epoch.end.unwrap_or_else(|| self.position(partition, taken));
                let mut because = |why| missing.push(Missing { partition, from: epoch.start, to, why });
                if epoch.revision < self.since && to > epoch.start {
                    because(MissingBecause::NotBuilt);
                } else if self.is_expired(epoch) && to > epoch.start {
                    // An open epoch whose mark is gone too ends where it starts: the answer's positions say so.
                    because(MissingBecause::Expired);
                }
            }
            let lost = self.lost(partition, taken).into_iter();
            missing.extend(lost.map(|(from, to)| Missing { partition, from, to, why: MissingBecause::Lost }));
        }
        missing
    }

    /// What the log had lost of the prefix, each range once: as batch published it, and as ledger and mark say.
    fn lost(&self, partition: Partition, taken: &Taken) -> BTreeSet<(Offset, Offset)> {
        let published = self.published.lost.iter().filter(|(of, _)| *of == partition);
        let published = published.map(|(_, lost)| (lost.start, lost.end));
        let epochs = taken.ledger.epochs.iter().filter_map(|epoch| epoch.lost);
        let open = taken.mark.as_ref().and_then(|mark| mark.lost);
        let known: BTreeSet<_> = published.chain(epochs).chain(open).collect();
        let within = |one: &&(Offset, Offset), all: &(Offset, Offset)| all.0 <= one.0 && one.1 <= all.1 && *one != all;
        let is_part = |one: &(Offset, Offset)| known.iter().any(|all| within(&one, all));
        known.iter().filter(|one| !is_part(one)).copied().collect()
    }
}

/// An event time, or the running maximum of append time if that is known and earlier.
pub fn no_later(event_time: Micros, append_clock: Micros) -> Micros {
    if append_clock > 0 { event_time.min(append_clock) } else { event_time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Archive, Counts};

    fn epoch(start: Offset, end: Option<Offset>, last: Micros, dedup_clock: Micros) -> Epoch {
        let counts = Counts { accepted: end.unwrap_or(start) - start, ..Counts::default() };
        let event_time = Some((0, last));
        let archive =
            end.map(|_| Archive { path: String::new(), bytes: 0, checksum: 0, counts, event_time, last_record: None });
        let (id, opened_at, revision, alive_until, lost) = (EpochId::new(), 0, 1, Micros::MAX, None);
        Epoch { id, start, end, opened_at, revision, dedup_clock, alive_until, archive, lost }
    }

    fn snapshot(epochs: Vec<Epoch>, mark: Option<Mark>) -> Snapshot {
        let taken = Taken { ledger: Ledger { version: 1, epochs }, mark };
        Snapshot { now: 0, published: Published::default(), since: 1, taken: [(0, taken)].into() }
    }

    #[test]
    fn an_event_that_lies_ahead_counts_as_of_the_time_it_was_taken_in() {
        let epochs = vec![epoch(0, Some(5), 4_000_000, 0), epoch(5, None, 0, 1_000)];
        assert_eq!(snapshot(epochs, None).watermark(), Some(1_000));
        let epochs = vec![epoch(0, Some(5), 900, 0), epoch(5, None, 0, 1_000)];
        assert_eq!(snapshot(epochs, None).watermark(), Some(900));
    }

    #[test]
    fn what_was_lost_is_told_once_wherever_it_stands() {
        let lost = |snapshot: &Snapshot| {
            let missing = snapshot.missing().into_iter();
            missing
                .filter(|missing| missing.why == MissingBecause::Lost)
                .map(|one| (one.from, one.to))
                .collect::<Vec<_>>()
        };
        let sealed = Epoch { lost: Some((0, 3)), ..epoch(0, Some(5), 1, 0) };
        let mark = Mark { end: 9, lost: Some((6, 8)), ..Mark::default() };
        let mut all = snapshot(vec![sealed, epoch(5, None, 1, 1)], Some(mark));
        assert_eq!(lost(&all), [(0, 3), (6, 8)]);
        all.published.lose([(0, 0..3), (0, 0..3), (1, 7..9)]);
        assert_eq!(lost(&all), [(0, 3), (6, 8)], "what batch published is the same loss");
        all.taken.insert(0, Taken::default());
        assert_eq!(lost(&all), [(0, 3)], "and stays when the epoch has left the ledger");
    }

    #[test]
    fn a_cut_that_the_ledger_does_not_know_is_stale() {
        let mut other = snapshot(vec![epoch(0, Some(5), 1, 0), epoch(5, None, 1, 1)], None);
        other.published.generation = 1;
        other.published.cut.set(0, 5);
        assert_eq!(other.check(), Ok(()));
        other.published.cut.set(0, 3);
        assert_eq!(other.check(), Err(Stale));
    }
}
