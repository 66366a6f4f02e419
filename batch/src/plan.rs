//! Which epochs a run reads, in which passes over event time, and which files together.

use std::{collections::BTreeMap, ops::Range};

use lamina_core::{
    Archive, Cut, Ledger, LogId, Micros, Offset, Partition, Segment, Store, archive,
    store::{Consistency, period},
};
use lamina_metric::Metric;
use serde::{Deserialize, Serialize};

use crate::BatchError;

/// The ledgers of a source's partitions, read at SERIAL.
pub(crate) struct Sealed {
    pub(crate) log: LogId,
    pub(crate) ledgers: BTreeMap<Partition, Ledger>,
    /// Largest event time that retention removed from the archive.
    pub(crate) gone_through: Option<Micros>,
}

impl Sealed {
    pub(crate) async fn load(store: &dyn Store, log: LogId, partitions: u32) -> Result<Self, BatchError> {
        let mut ledgers = BTreeMap::new();
        let mut gone_through = None;
        for partition in 0..partitions {
            let ledger = store.load(&log, partition, Consistency::Serial).await?;
            ledger.check().map_err(|cause| BatchError::Ledger { partition, cause })?;
            ledgers.insert(partition, ledger);
            gone_through = archive::load(store, &log, partition).await?.1.gone_through.max(gone_through);
        }
        Ok(Self { log, ledgers, gone_through })
    }

    /// The furthest that a generation may cover.
    pub(crate) fn cut(&self) -> Cut {
        self.ledgers.iter().map(|(&partition, ledger)| (partition, ledger.sealed_end())).collect()
    }

    /// Running maximum of append time of all that is sealed.
    pub(crate) fn append_clock(&self) -> Micros {
        self.ledgers.values().filter_map(|ledger| Some(ledger.open()?.dedup_clock)).max().unwrap_or(0)
    }

    /// What of the archive reaches into `[from, upto)` of each partition, all of it.
    pub(crate) async fn segments(
        &self,
        store: &dyn Store,
        from: &Cut,
        upto: &Cut,
    ) -> Result<Vec<(Partition, Segment)>, BatchError> {
        let mut all = Vec::new();
        for (&partition, ledger) in &self.ledgers {
            let range = from.at(partition)..upto.at(partition);
            if range.is_empty() {
                continue;
            }
            let segments = archive::segments(store, &self.log, partition, ledger, range.clone()).await?;
            check_chain(partition, &range, &segments)?;
            all.extend(segments.into_iter().map(|segment| (partition, segment)));
        }
        Ok(all)
    }
}

/// The segments follow each other from the start of `range` to its end; only the partition's very first may start above 0,
/// and the outer two may reach beyond.
fn check_chain(partition: Partition, range: &Range<Offset>, segments: &[Segment]) -> Result<(), BatchError> {
    let mut next = segments.first().map_or(range.start, |first| first.start);
    if next > range.start && range.start > 0 {
        return Err(BatchError::Hole { partition, from: range.start, to: next });
    }
    for &Segment { start, end, ref archive, .. } in segments {
        if start != next {
            return Err(BatchError::Hole { partition, from: next, to: start });
        }
        let found = archive.as_ref().map(|archive| archive.counts.offsets());
        if let Some(found) = found.filter(|found| *found != end.saturating_sub(start)) {
            return Err(BatchError::NotConserved { partition, start, end, found });
        }
        next = end;
    }
    if next >= range.end { Ok(()) } else { Err(BatchError::Hole { partition, from: next, to: range.end }) }
}

/// What a file is known by within a run: its partition and first offset.
pub(crate) type FileKey = (Partition, Offset);

/// An archive file to read: whole epochs of one partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) partition: Partition,
    pub(crate) offsets: Range<Offset>,
    pub(crate) archive: Archive,
}

impl File {
    /// The segment's file; `None` if it has no record, or retention removed it.
    pub(crate) fn of(partition: Partition, segment: Segment) -> Option<Self> {
        let archive = segment.archive.filter(|archive| archive.counts.records() > 0)?;
        Some(Self { partition, offsets: segment.start..segment.end, archive })
    }

    pub(crate) fn key(&self) -> FileKey {
        (self.partition, self.offsets.start)
    }

    pub(crate) fn touches(&self, range: &Range<Micros>) -> bool {
        self.archive.event_time.is_some_and(|(first, last)| first < range.end && last >= range.start)
    }
}

/// Widens a range of event time to whole chunks of every width: a base holds for all widths alike.
pub(crate) fn widen(metric: &Metric, from: Option<Micros>, to: Option<Micros>) -> Result<Range<Micros>, BatchError> {
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(BatchError::EmptyRange);
    }
    let whole = metric.widths().into_iter().map(period).try_fold(1, common_multiple);
    // Without a common multiple within a number's reach, everything is one range.
    let Some(whole) = whole else { return Ok(Micros::MIN..Micros::MAX) };
    let start = from.and_then(|from| from.div_euclid(whole).checked_mul(whole));
    let end = to.and_then(|to| (to - 1).div_euclid(whole).checked_add(1)?.checked_mul(whole));
    Ok(start.unwrap_or(Micros::MIN)..end.unwrap_or(Micros::MAX))
}

fn common_multiple(a: Micros, b: Micros) -> Option<Micros> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).checked_mul(b)
}

/// Passes over event time, in order and without gap, each with about `budget` records; their bounds are multiples of
/// `step`. One pass if all fits.
pub(crate) fn passes(files: &[File], step: Micros, budget: u64) -> Vec<Range<Micros>> {
    let total: u64 = files.iter().map(|file| file.archive.counts.accepted).sum();
    let mut bounds = Vec::new();
    if total > budget {
        let mut weight = BTreeMap::<Micros, u64>::new();
        for file in files {
            spread(file, step, &mut weight);
        }
        let mut gathered = 0;
        for (at, records) in weight {
            if gathered > 0 && gathered + records > budget {
                bounds.push(at);
                gathered = 0;
            }
            gathered += records;
        }
    }
    between(&bounds)
}

/// All of event time, in passes that end at these bounds.
pub(crate) fn between(bounds: &[Micros]) -> Vec<Range<Micros>> {
    let starts = std::iter::once(Micros::MIN).chain(bounds.iter().copied());
    let ends = bounds.iter().copied().chain(std::iter::once(Micros::MAX));
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

/// Starts of the periods that end within a pass.
pub(crate) fn ended_within(pass: &Range<Micros>, length: Micros) -> Range<Micros> {
    let moved = |at: Micros| match at {
        Micros::MIN | Micros::MAX => at,
        at => at.saturating_sub(length).saturating_add(1),
    };
    moved(pass.start)..moved(pass.end)
}

/// Most events are as late as their file's latest and a few much earlier, or they are spread evenly: half is counted at the
/// end and half spread over at most `PLACES` places, so that either guess is off by two at most.
fn spread(file: &File, step: Micros, weight: &mut BTreeMap<Micros, u64>) {
    const PLACES: i64 = 64;
    let Some((first, last)) = file.archive.event_time else { return };
    let (first, last) = (first.div_euclid(step), last.div_euclid(step));
    let records = file.archive.counts.accepted;
    let mut add = |at: i64, records: u64| *weight.entry(at.saturating_mul(step)).or_default() += records;
    add(last, records - records / 2);
    let places = last.saturating_sub(first).saturating_add(1).clamp(1, PLACES);
    let apart = (last.saturating_sub(first) / places).max(1);
    for place in 0..places {
        add(first.saturating_add(place.saturating_mul(apart)), (records / 2).div_ceil(places.unsigned_abs()));
    }
}

/// Files that are folded together, in order: at most `bytes` and `records`, at least one file.
pub(crate) fn together(files: Vec<File>, bytes: u64, records: u64) -> Vec<Vec<File>> {
    let mut groups: Vec<Vec<File>> = Vec::new();
    let mut size = (0, 0);
    for file in files {
        let own = (file.archive.bytes, file.archive.counts.records());
        match groups.last_mut() {
            Some(group) if size.0 + own.0 <= bytes && size.1 + own.1 <= records => {
                size = (size.0 + own.0, size.1 + own.1);
                group.push(file);
            }
            _ => {
                size = own;
                groups.push(vec![file]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use lamina_core::Counts;

    use super::*;

    fn segment(start: Offset, end: Offset) -> Segment {
        let counts = Counts { accepted: end - start, ..Counts::default() };
        let archive =
            Archive { path: String::new(), bytes: 1, checksum: 0, counts, event_time: None, last_record: None };
        Segment { start, end, archive: Some(archive), lost: Vec::new() }
    }

    fn file(records: u64, event_time: (Micros, Micros)) -> File {
        let counts = Counts { accepted: records, ..Counts::default() };
        let archive = Archive {
            path: String::new(),
            bytes: 10,
            checksum: 0,
            counts,
            event_time: Some(event_time),
            last_record: None,
        };
        File { partition: 0, offsets: 0..records, archive }
    }

    #[test]
    fn a_hole_between_epochs_is_an_error_and_only_the_first_may_start_above_zero() {
        assert!(check_chain(0, &(0..9), &[segment(3, 5), segment(5, 9)]).is_ok());
        assert!(check_chain(0, &(5..9), &[segment(5, 9)]).is_ok());
        assert!(check_chain(0, &(4..9), &[segment(3, 5), segment(5, 12)]).is_ok());
        let holes: [(Range<Offset>, &[Segment]); 4] =
            [(0..9, &[segment(0, 4), segment(5, 9)]), (0..9, &[segment(0, 4)]), (3..9, &[segment(5, 9)]), (0..9, &[])];
        for (range, segments) in holes {
            assert!(matches!(check_chain(0, &range, segments), Err(BatchError::Hole { .. })), "{range:?} {segments:?}");
        }
        let short = Segment { end: 10, ..segment(0, 9) };
        assert!(matches!(check_chain(0, &(0..10), &[short]), Err(BatchError::NotConserved { found: 9, .. })));
    }

    #[test]
    fn passes_cover_event_time_without_gap_and_stay_near_the_budget() {
        let files: Vec<File> = (0..100).map(|minute| file(100, (minute * 60, minute * 60 + 59))).collect();
        let passes = passes(&files, 600, 2_000);
        assert_eq!((passes[0].start, passes[passes.len() - 1].end), (Micros::MIN, Micros::MAX));
        assert!(passes.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % 600 == 0));
        assert!((5..=10).contains(&passes.len()), "{passes:?}");
        assert_eq!(super::passes(&files, 600, 10_000), vec![Micros::MIN..Micros::MAX]);
        let one_late_event = [file(100, (-900_000, 59))];
        assert!(super::passes(&one_late_event, 600, 60).len() <= 3);
    }
}
