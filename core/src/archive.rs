//! What stands where in the archive of a partition: the epochs' own files, and what took their place.
//!
//! A seal writes one file per epoch, and ledger and manifest name it for ever. Later, batch puts several of them together,
//! erases events, or lets go of what retention has ended: then a *segment* stands in place of the epochs it holds. All
//! segments of a partition are one document, changed by compare-and-set, so that every reader sees the archive before or
//! after a change and never in between.
//!
//! # Invariants
//! - Every sealed offset lies in exactly one segment: an epoch's own file is a segment of one epoch.
//! - Segments begin and end where epochs do.
//! - A path is noted as unused before its file is written and after nothing refers to it, so a file is never forgotten;
//!   one that is doomed never comes into use again, so a file in use is never removed.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    envelope,
    ids::{LogId, Micros, Offset, Partition},
    ledger::{Archive, Counts, Epoch, Ledger},
    store::{Commit, Documents, Ledgers, StoreError},
};

/// Kind of the documents that hold segments; their key is log and partition.
pub const ARCHIVE_DOCUMENTS: &str = "archive";
/// How often a refused compare-and-set is made again on what was read back.
const ATTEMPTS: u32 = 16;

/// Whole sealed epochs in a row, and the file with their records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub start: Offset,
    /// Exclusive.
    pub end: Offset,
    /// `None` once retention has removed it.
    pub archive: Option<Archive>,
    /// Offsets whose records were gone from the log before they could be read.
    pub lost: Vec<(Offset, Offset)>,
}

/// What stands in place of epochs' own files in one partition, and what is left over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// In offset order, without overlap.
    pub segments: Vec<Segment>,
    /// Files that nothing refers to.
    pub unused: Vec<Unused>,
    /// Largest event time that retention has removed.
    pub gone_through: Option<Micros>,
    /// What was erased, by the latest jobs.
    pub erased: Vec<Erased>,
}

/// A file that nothing refers to, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unused {
    pub path: String,
    pub since: Micros,
    /// Its removal has begun.
    pub doomed: bool,
}

/// What a job has erased from the archive of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    pub job: String,
    /// Events, and duplicates of them.
    pub records: u64,
    /// Files that were written anew.
    pub files: u64,
    /// Smallest and largest event time.
    pub event_time: Option<(Micros, Micros)>,
    /// Whether the views were rebuilt without it.
    pub rebuilt: bool,
}

/// Why a segment cannot take the place of others.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Another change of the archive came first.
    #[error("the archive's files of offsets {start}..{end} are not what they were")]
    Changed { start: Offset, end: Offset },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Segment {
    /// A sealed epoch with its own file; `None` while it is open or names none.
    pub fn of(epoch: &Epoch) -> Option<Self> {
        let archive = Some(epoch.archive.clone()?);
        Some(Self { start: epoch.start, end: epoch.end?, archive, lost: epoch.lost.into_iter().collect() })
    }

    /// Several in a row as one, with this file; `None` if they do not chain, or there are none.
    pub fn joined(segments: &[Self], archive: Option<Archive>) -> Option<Self> {
        let chains = segments.windows(2).all(|pair| pair[0].end == pair[1].start);
        let (first, last) = segments.first().zip(segments.last()).filter(|_| chains)?;
        let lost = segments.iter().flat_map(|segment| segment.lost.iter().copied()).collect();
        Some(Self { start: first.start, end: last.end, archive, lost })
    }

    pub fn counts(&self) -> Counts {
        self.archive.as_ref().map_or_else(Counts::default, |archive| archive.counts)
    }

    /// Smallest and largest event time of its accepted records.
    pub fn event_time(&self) -> Option<(Micros, Micros)> {
        self.archive.as_ref()?.event_time
    }
}

impl Holdings {
    /// Notes a path before its file is written.
    pub fn announce(&mut self, path: &str, now: Micros) {
        if self.unused.iter().all(|unused| unused.path != path) {
            self.unused.push(Unused { path: path.to_owned(), since: now, doomed: false });
        }
    }

    /// Puts a segment, whose file was announced and written, in place of `before`. Nothing happens if it is there already.
    ///
    /// # Errors
    /// [`ArchiveError::Changed`] if something else took their place, or the file was given up meanwhile.
    pub fn replace(&mut self, before: &[Segment], after: Segment, now: Micros) -> Result<(), ArchiveError> {
        if self.segments.contains(&after) {
            return Ok(());
        }
        let changed = ArchiveError::Changed { start: after.start, end: after.end };
        let known = |segment: &Segment| {
            let touching = |other: &&Segment| other.start < segment.end && segment.start < other.end;
            self.segments.iter().filter(touching).all(|other| other == segment)
        };
        let path = after.archive.as_ref().map(|archive| archive.path.as_str());
        let announced = path.is_none_or(|path| self.unused.iter().any(|unused| unused.path == path && !unused.doomed));
        let spans = Segment::joined(before, None).is_some_and(|all| (all.start, all.end) == (after.start, after.end));
        if !before.iter().all(known) || !announced || !spans {
            return Err(changed);
        }
        self.unused.retain(|unused| Some(unused.path.as_str()) != path);
        for path in before.iter().filter_map(|segment| segment.archive.as_ref()).map(|archive| &archive.path) {
            self.announce(path, now);
        }
        self.segments.retain(|segment| !before.contains(segment));
        let at = self.segments.partition_point(|segment| segment.start < after.start);
        self.segments.insert(at, after);
        Ok(())
    }

    /// [`Holdings::replace`], of a file that lacks what was erased.
    ///
    /// # Errors
    /// As [`Holdings::replace`].
    pub fn replace_erased(
        &mut self,
        before: &[Segment],
        after: Segment,
        erased: &Erased,
        now: Micros,
    ) -> Result<(), ArchiveError> {
        if self.segments.contains(&after) {
            return Ok(());
        }
        self.replace(before, after, now)?;
        self.erased.push(erased.clone());
        Ok(())
    }

    /// Lets go of segments in a row whose retention has ended.
    ///
    /// # Errors
    /// As [`Holdings::replace`].
    pub fn let_go(&mut self, segments: &[Segment], now: Micros) -> Result<(), ArchiveError> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let changed = ArchiveError::Changed { start: first.start, end: last.end };
        let gone = Segment::joined(segments, None).ok_or(changed)?;
        let through = segments.iter().filter_map(|segment| segment.event_time()).map(|(_, last)| last).max();
        self.replace(segments, gone, now)?;
        self.gone_through = self.gone_through.max(through);
        Ok(())
    }

    /// Dooms the files that were unused at `before`, and names all that are doomed: they can be removed.
    pub fn doom(&mut self, before: Micros) -> Vec<String> {
        for unused in &mut self.unused {
            unused.doomed = unused.doomed || unused.since <= before;
        }
        self.unused.iter().filter(|unused| unused.doomed).map(|unused| unused.path.clone()).collect()
    }

    /// Forgets doomed files that were removed.
    pub fn removed(&mut self, paths: &[String]) {
        self.unused.retain(|unused| !unused.doomed || !paths.contains(&unused.path));
    }

    /// The segments that reach into `range`, with epochs' own files where nothing took their place.
    fn over(&self, range: &Range<Offset>, own: impl IntoIterator<Item = Segment>) -> Vec<Segment> {
        let mut all: BTreeMap<Offset, Segment> = BTreeMap::new();
        let replaced = |own: &Segment| self.segments.iter().any(|one| one.start <= own.start && own.start < one.end);
        all.extend(own.into_iter().filter(|own| !replaced(own)).map(|own| (own.start, own)));
        all.extend(self.reaching_into(range).map(|segment| (segment.start, segment.clone())));
        all.into_values().collect()
    }

    fn reaching_into(&self, range: &Range<Offset>) -> impl Iterator<Item = &Segment> {
        let range = range.clone();
        self.segments.iter().filter(move |segment| segment.start < range.end && range.start < segment.end)
    }

    /// The stretches of `range` in which epochs' own files stand.
    fn gaps(&self, range: &Range<Offset>) -> Vec<Range<Offset>> {
        let mut gaps = Vec::new();
        let mut from = range.start;
        for segment in self.reaching_into(range) {
            if from < segment.start {
                gaps.push(from..segment.start);
            }
            from = segment.end;
        }
        if from < range.end {
            gaps.push(from..range.end);
        }
        gaps
    }
}

/// The holdings of a partition, with the version that a change must name.
///
/// # Errors
/// As the store, and [`StoreError::Corrupt`] if they do not decode.
pub async fn load<D: Documents + ?Sized>(
    store: &D,
    log: &LogId,
    partition: Partition,
) -> Result<(u64, Holdings), StoreError> {
    let key = key(log, partition);
    let Some(document) = store.get(ARCHIVE_DOCUMENTS, &key).await? else { return Ok((0, Holdings::default())) };
    let holdings = envelope::unpack(&document.value).map_err(|error| corrupt(&key, &error))?;
    Ok((document.version, holdings))
}

/// Changes the holdings of a partition by compare-and-set and gives them as they stand afterwards. `change` may be called
/// several times, each time on what was read, and must do nothing on what it has already changed.
///
/// # Errors
/// As [`load`] and `change`; [`StoreError::Unavailable`] if others kept changing them.
pub async fn update<D, F>(store: &D, log: &LogId, partition: Partition, mut change: F) -> Result<Holdings, ArchiveError>
where
    D: Documents + ?Sized,
    F: FnMut(&mut Holdings) -> Result<(), ArchiveError> + Send,
{
    let key = key(log, partition);
    for _ in 0..ATTEMPTS {
        let (version, before) = load(store, log, partition).await?;
        let mut after = before.clone();
        change(&mut after)?;
        if after == before {
            return Ok(after);
        }
        let value = envelope::pack(&after).map_err(|error| corrupt(&key, &error))?;
        match store.put(ARCHIVE_DOCUMENTS, &key, version, value.into()).await {
            Ok(Commit::Applied) => return Ok(after),
            // Both are decided by reading back.
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Unavailable(format!("archive of {key} kept changing")).into())
}

/// The sealed segments that reach into `range` of a partition with this ledger, in offset order.
///
/// # Errors
/// As the store.
pub async fn segments<S: Ledgers + Documents + ?Sized>(
    store: &S,
    log: &LogId,
    partition: Partition,
    ledger: &Ledger,
    range: Range<Offset>,
) -> Result<Vec<Segment>, StoreError> {
    let (_, holdings) = load(store, log, partition).await?;
    let mut own = Vec::new();
    for gap in holdings.gaps(&range) {
        // Epochs leave the ledger only after they were noted in the manifest; one that is in both counts as the ledger
        // has it.
        let noted = store.archived(log, partition, gap.clone()).await?;
        let mut epochs: BTreeMap<Offset, Epoch> = noted.into_iter().map(|epoch| (epoch.start, epoch)).collect();
        let listed = ledger.sealed().filter(|epoch| gap.contains(&epoch.start));
        epochs.extend(listed.map(|epoch| (epoch.start, epoch.clone())));
        own.extend(epochs.values().filter_map(Segment::of));
    }
    Ok(holdings.over(&range, own))
}

fn key(log: &LogId, partition: Partition) -> String {
    format!("{log}/{partition:05}")
}

fn corrupt(key: &str, error: &envelope::EnvelopeError) -> StoreError {
    StoreError::Corrupt { what: format!("archive of {key}"), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: Offset, end: Offset, file: &str) -> Segment {
        let archive = Archive {
            path: file.to_owned(),
            bytes: 1,
            checksum: 0,
            counts: Counts { accepted: end - start, ..Counts::default() },
            event_time: Some((start as Micros, end as Micros)),
            last_record: None,
        };
        Segment { start, end, archive: Some(archive), lost: Vec::new() }
    }

    fn paths(segments: &[Segment]) -> Vec<&str> {
        segments.iter().map(|one| one.archive.as_ref().map_or("gone", |archive| archive.path.as_str())).collect()
    }

    #[test]
    fn a_segment_takes_the_place_of_what_it_holds_and_only_of_that() {
        let own = [segment(0, 4, "a"), segment(4, 9, "b"), segment(9, 12, "c"), segment(12, 20, "d")];
        let mut holdings = Holdings::default();
        let joined = segment(4, 12, "bc");
        let unannounced = holdings.clone().replace(&own[1..3], joined.clone(), 1);
        assert!(matches!(unannounced, Err(ArchiveError::Changed { start: 4, end: 12 })));
        holdings.announce("bc", 1);
        assert!(holdings.clone().replace(&own[..2], joined.clone(), 1).is_err(), "it holds other offsets");
        holdings.replace(&own[1..3], joined.clone(), 2).unwrap();
        let after = holdings.clone();
        holdings.replace(&own[1..3], joined.clone(), 3).unwrap();
        assert_eq!(holdings, after, "once is enough");
        assert_eq!(paths(&holdings.over(&(0..20), own.clone())), ["a", "bc", "d"]);
        assert_eq!(holdings.gaps(&(0..20)), [0..4, 12..20]);
        assert_eq!(holdings.gaps(&(6..14)), vec![12..14]);
        assert_eq!(paths(&holdings.over(&(11..13), own[3..].to_vec())), ["bc", "d"]);
        holdings.announce("abc", 4);
        let late = holdings.replace(&own[..3], segment(0, 12, "abc"), 4);
        assert!(late.is_err(), "b and c are not what stands there");
        holdings.replace(&[own[0].clone(), joined], segment(0, 12, "abc"), 4).unwrap();
        assert_eq!(paths(&holdings.over(&(0..20), own.clone())), ["abc", "d"]);
        let mut unused: Vec<_> = holdings.unused.iter().map(|unused| unused.path.as_str()).collect();
        unused.sort_unstable();
        assert_eq!(unused, ["a", "b", "bc", "c"]);
    }

    #[test]
    fn a_doomed_file_never_comes_into_use() {
        let own = [segment(0, 4, "a"), segment(4, 9, "b")];
        let mut holdings = Holdings::default();
        holdings.announce("ab", 1);
        assert!(holdings.doom(0).is_empty());
        assert_eq!(holdings.doom(1), ["ab"]);
        assert!(holdings.replace(&own, segment(0, 9, "ab"), 2).is_err());
        holdings.removed(&["ab".to_owned()]);
        assert!(holdings.unused.is_empty());
    }

    #[test]
    fn what_retention_removed_keeps_its_place() {
        let own = [segment(0, 4, "a"), segment(4, 9, "b"), segment(9, 12, "c")];
        let mut holdings = Holdings::default();
        holdings.let_go(&own[..1], 1).unwrap();
        let gone = holdings.over(&(0..12), own.clone());
        holdings.let_go(&gone[..2], 2).unwrap();
        assert_eq!(paths(&holdings.over(&(0..12), own)), ["gone", "c"]);
        assert_eq!((holdings.segments.len(), holdings.gone_through), (1, Some(9)));
        assert_eq!(holdings.doom(2), ["a", "b"]);
    }
}
