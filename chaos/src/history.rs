//! The oracle: the log as it was read, and what a query must answer at given positions.
//!
//! # Invariants
//! - Imports nothing of lamina: it counts by the rules as they are written down.
//! - A record is a duplicate if one with the same id precedes it in its partition within the dedup window of append time,
//!   append time being the running maximum.

use std::collections::{BTreeMap, HashMap};

use crate::{
    event::{DEDUP_WINDOW, Event, PARTITIONS},
    query::{Query, State, States},
};

/// An event that counts.
#[derive(Clone, Copy, Debug)]
struct Row {
    offset: i64,
    time: i64,
    series: u16,
    value: i32,
}

#[derive(Default)]
struct Partition {
    rows: Vec<Row>,
    /// Next offset to be read.
    end: i64,
    /// (offset, append time in ms) of every record.
    appended: Vec<(i64, i64)>,
    ids: Vec<u64>,
    /// Running maximum of append time.
    clock: i64,
    /// Id → clock when it was last seen.
    seen: HashMap<u64, i64>,
}

/// All that the log holds so far.
pub(crate) struct History {
    partitions: Vec<Partition>,
    pub(crate) duplicates: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(), duplicates: 0 }
    }

    fn partition(&self, partition: i32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(partition).ok()?)
    }

    /// Takes in the next record of a partition.
    pub(crate) fn absorb(&mut self, partition: i32, offset: i64, appended_at: i64, event: Event) {
        let Some(of) = usize::try_from(partition).ok().and_then(|at| self.partitions.get_mut(at)) else { return };
        if offset < of.end {
            return;
        }
        of.end = offset + 1;
        of.appended.push((offset, appended_at));
        of.ids.push(event.id);
        of.clock = of.clock.max(appended_at);
        let before = of.seen.insert(event.id, of.clock);
        if before.is_some_and(|before| of.clock - before <= DEDUP_WINDOW) {
            self.duplicates += 1;
        } else {
            let Event { time, series, value, .. } = event;
            of.rows.push(Row { offset, time, series, value });
        }
    }

    /// Records read so far.
    pub(crate) fn records(&self) -> usize {
        self.partitions.iter().map(|partition| partition.ids.len()).sum()
    }

    /// Next offset of each partition.
    pub(crate) fn ends(&self) -> BTreeMap<i32, i64> {
        (0..).zip(&self.partitions).map(|(number, partition)| (number, partition.end)).collect()
    }

    /// Whether everything below `positions` was read.
    pub(crate) fn reaches(&self, positions: &BTreeMap<i32, i64>) -> bool {
        positions.iter().all(|(number, at)| self.partition(*number).is_some_and(|partition| partition.end >= *at))
    }

    /// Whether the event stands in the log, at this offset. A broker that acknowledges what was sent again does not say at
    /// which: then the offset is negative, and anywhere will do.
    pub(crate) fn holds(&self, partition: i32, offset: i64, id: u64) -> bool {
        let Some(partition) = self.partition(partition) else { return false };
        if offset < 0 {
            return partition.seen.contains_key(&id);
        }
        let at = partition.appended.binary_search_by_key(&offset, |(offset, _)| *offset);
        at.is_ok_and(|at| partition.ids.get(at) == Some(&id))
    }

    /// Append time of the oldest record that a reader at `positions` does not see.
    pub(crate) fn oldest_unseen(&self, positions: &BTreeMap<i32, i64>) -> Option<i64> {
        let unseen = |(number, partition): (i32, &Partition)| {
            let position = positions.get(&number).copied().unwrap_or(0);
            let at = partition.appended.partition_point(|(offset, _)| *offset < position);
            partition.appended.get(at).map(|(_, appended_at)| *appended_at)
        };
        (0..).zip(&self.partitions).filter_map(unseen).min()
    }

    /// What `query` must answer of the records below `positions`.
    pub(crate) fn answer(&self, query: &Query, positions: &BTreeMap<i32, i64>) -> States {
        let mut states: HashMap<(u16, i64), State> = HashMap::new();
        for (number, partition) in (0..).zip(&self.partitions) {
            let position = positions.get(&number).copied().unwrap_or(0);
            let below = partition.rows.partition_point(|row| row.offset < position);
            for row in &partition.rows[..below] {
                let Some(bucket) = query.bucket_of(row.time) else { continue };
                let Some(group) = query.group_of(row.series) else { continue };
                states
                    .entry((group, bucket))
                    .and_modify(|state| state.absorb(row.value))
                    .or_insert(State::of(row.value));
            }
        }
        states.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{Filter, Group};

    fn event(id: u64, time: i64, value: i32) -> Event {
        Event { id, time, series: 3, value }
    }

    fn totals(history: &History, positions: &[(i32, i64)]) -> Option<State> {
        let query = Query::everything(1_000_000_000, Group::All, Filter::None);
        history.answer(&query, &positions.iter().copied().collect()).into_values().next()
    }

    #[test]
    fn an_answer_folds_what_lies_below_its_positions() {
        let mut history = History::new();
        history.absorb(0, 0, 1, event(1, 1_000_000_000, 5));
        history.absorb(0, 1, 1, event(2, 1_000_000_000, 7));
        history.absorb(1, 4, 1, event(3, 1_000_000_000, -1));
        assert_eq!(totals(&history, &[(0, 1)]), Some(State::of(5)));
        assert_eq!(totals(&history, &[(0, 2), (1, 5)]), Some(State { count: 3, sum: 11, min: -1, max: 7 }));
        assert_eq!(totals(&history, &[(1, 4)]), None);
        assert_eq!(history.oldest_unseen(&[(0, 2), (1, 4)].into()), Some(1));
        assert!(history.holds(1, 4, 3) && !history.holds(1, 4, 2));
        assert!(history.holds(1, -1001, 3) && !history.holds(0, -1001, 3));
    }

    #[test]
    fn a_duplicate_is_one_within_the_window_of_its_own_partition() {
        let mut history = History::new();
        let all = |history: &History| totals(history, &[(0, 99), (1, 99)]).map_or(0, |state| state.count);
        history.absorb(0, 0, 1_000, event(1, 1_000_000_000, 5));
        history.absorb(0, 1, 1_000 + DEDUP_WINDOW, event(1, 1_000_000_000, 5));
        assert_eq!((all(&history), history.duplicates), (1, 1));
        // seen again, the later sighting counts
        history.absorb(0, 2, 1_000 + 2 * DEDUP_WINDOW, event(1, 1_000_000_000, 5));
        assert_eq!(all(&history), 1);
        history.absorb(0, 3, 1_001 + 3 * DEDUP_WINDOW, event(1, 1_000_000_000, 5));
        assert_eq!(all(&history), 2);
        // append times that go back do not move the clock back
        history.absorb(0, 4, 0, event(1, 1_000_000_000, 5));
        history.absorb(1, 0, 0, event(1, 1_000_000_000, 5));
        assert_eq!((all(&history), history.duplicates), (3, 3));
    }
}
