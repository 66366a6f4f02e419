//! Putting small files together: fewer and larger ones, sorted by event time, for whoever scans them.

use std::{ops::Range, sync::Arc};

use lamina_core::{Micros, Segment};

use super::{Place, rewrite};
use crate::{BatchError, Meter};

/// Records of one file at most: what a reader folds at once, and what putting together holds in memory.
const MOST_RECORDS: u64 = 256 * 1024;
/// Bytes of one file at most.
const MOST_BYTES: u64 = 32 << 20;
/// What comes of it is so many times as large as the largest part, so that a record is written again a few times only.
const GROWTH: u64 = 8;
/// Files that one run writes per partition: the schedule goes on.
const MOST_WRITTEN: u64 = 16;

/// Puts small files together, a few times; gives how many there were and how many came of them.
pub(super) async fn compact(
    place: Place,
    mut segments: Vec<Segment>,
    now: Micros,
    meter: Arc<Meter>,
) -> Result<(u64, u64), BatchError> {
    let (mut merged, mut written, mut from) = (0, 0, 0);
    while let Some(window) = window(&segments, from).filter(|_| written < MOST_WRITTEN) {
        meter.stage(format!("compacting {}", place.log.source()), window.len() as u64, "files");
        let parts = &segments[window.clone()];
        let (rows, alike) = rewrite::read_alike(&place, parts, &meter).await?;
        if alike < 2 {
            // Written under another definition than what follows.
            from = window.start + 1;
            continue;
        }
        let joined = rewrite::replace(&place, &parts[..alike], rewrite::by_time(&rows)?, None, now).await?;
        merged += alike as u64;
        written += 1;
        segments.splice(window.start..window.start + alike, [joined]);
        from = window.start;
    }
    Ok((merged, written))
}

/// Small files in a row that are worth it, at or after `from`.
fn window(segments: &[Segment], from: usize) -> Option<Range<usize>> {
    (from..segments.len()).find_map(|start| {
        let (mut bytes, mut records, mut largest, mut end) = (0, 0, 0, start);
        for segment in &segments[start..] {
            let Some(archive) = &segment.archive else { break };
            (bytes, records) = (bytes + archive.bytes, records + archive.counts.records());
            if bytes > MOST_BYTES || records > MOST_RECORDS {
                break;
            }
            largest = archive.bytes.max(largest);
            end += 1;
        }
        let sum: u64 = segments[start..end].iter().filter_map(|one| Some(one.archive.as_ref()?.bytes)).sum();
        (end - start > 1 && largest.saturating_mul(GROWTH) <= sum).then_some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use lamina_core::{Archive, Counts};

    use super::*;

    fn segments(sizes: &[u64]) -> Vec<Segment> {
        let one = |(at, &bytes): (usize, &u64)| {
            let counts = Counts { accepted: 10, ..Counts::default() };
            let archive =
                Archive { path: at.to_string(), bytes, checksum: 0, counts, event_time: None, last_record: None };
            let start = at as u64 * 10;
            Segment { start, end: start + 10, archive: (bytes > 0).then_some(archive), lost: Vec::new() }
        };
        sizes.iter().enumerate().map(one).collect()
    }

    #[test]
    fn small_files_in_a_row_are_put_together_once_enough_of_them_stand_there() {
        assert_eq!(window(&segments(&[9; 7]), 0), None);
        assert_eq!(window(&segments(&[9; 8]), 0), Some(0..8));
        assert_eq!(window(&segments(&[100, 9, 9, 9, 9, 9, 9, 9, 9]), 0), Some(1..9), "a large one is left out");
        assert_eq!(window(&segments(&[9, 9, 9, 9, 0, 9, 9, 9, 9]), 0), None, "what retention removed parts them");
        let large = MOST_BYTES / 4;
        assert_eq!(window(&segments(&[large; 20]), 0), None, "they are large enough");
    }

    #[test]
    fn a_record_is_written_again_a_few_times_only() {
        let (mut sizes, mut rewritten) = (Vec::new(), 0);
        for sealed in std::iter::repeat_n(20_000, 10_000) {
            sizes.push(sealed);
            while let Some(found) = window(&segments(&sizes), 0) {
                let sum: u64 = sizes[found.clone()].iter().sum();
                rewritten += sum;
                sizes.splice(found, [sum]);
            }
        }
        let total: u64 = sizes.iter().sum();
        assert!(sizes.len() < 60, "{} files", sizes.len());
        assert!(rewritten < 4 * total, "{rewritten} bytes for {total}");
    }
}
