//! Which ids were seen within the dedup window: a pure function of the partition's log.
//!
//! A record is a duplicate if one with the same id precedes it in the partition at most a window earlier, by the running
//! maximum of append time. Whoever reads from one window before an offset knows all that matters at that offset.
//!
//! Memory: ids are kept as 128-bit hashes, at most about 100 bytes per record with an id within one window (a million
//! such records an hour with the default window: some 100 MB).

use std::collections::{HashMap, VecDeque};

use lamina_core::Micros;
use xxhash_rust::xxh3::xxh3_128;

#[derive(Debug)]
pub(crate) struct Dedup {
    window: Micros,
    /// Running maximum of append time.
    clock: Micros,
    /// Hash of the id → clock when it was last seen; nothing older than the window.
    seen: HashMap<u128, Micros>,
    /// Sightings in order. An id that was seen again has a later one, which counts.
    order: VecDeque<(u128, Micros)>,
}

impl Dedup {
    pub(crate) fn new(window: Micros) -> Self {
        Self { window, clock: 0, seen: HashMap::new(), order: VecDeque::new() }
    }

    /// Running maximum of append time so far.
    pub(crate) fn clock(&self) -> Micros {
        self.clock
    }

    /// Moves the clock on to a record's append time and forgets what lies before the window.
    pub(crate) fn advance(&mut self, appended_at: Micros) {
        self.clock = self.clock.max(appended_at);
        let oldest = self.clock.saturating_sub(self.window);
        while let Some(&(id, at)) = self.order.front().filter(|(_, at)| *at < oldest) {
            self.order.pop_front();
            if self.seen.get(&id) == Some(&at) {
                self.seen.remove(&id);
            }
        }
    }

    /// Notes the id of the record that the clock stands at; true if it was seen within the window.
    pub(crate) fn saw(&mut self, id: &str) -> bool {
        let id = xxh3_128(id.as_bytes());
        let before = self.seen.insert(id, self.clock);
        if before != Some(self.clock) {
            self.order.push_back((id, self.clock));
        }
        before.is_some()
    }

    /// Estimate of the memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.seen.capacity() * 33 + self.order.capacity() * 32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule as it is written down, over the whole log.
    fn by_the_rule(log: &[(Micros, u8)], window: Micros) -> Vec<bool> {
        let clocks: Vec<Micros> = log
            .iter()
            .scan(0, |clock, (at, _)| {
                *clock = (*clock).max(*at);
                Some(*clock)
            })
            .collect();
        let is_duplicate = |at: usize| (0..at).any(|b| log[b].1 == log[at].1 && clocks[at] - clocks[b] <= window);
        (0..log.len()).map(is_duplicate).collect()
    }

    proptest! {
        #[test]
        fn reading_one_window_back_knows_the_same_duplicates_as_reading_everything(
            log in proptest::collection::vec((0..60_i64, 0..6_u8), 1..80),
            window in 0..20_i64,
            start in 0..80_usize,
        ) {
            let start = start.min(log.len());
            let dedup_clock = log[..start].iter().map(|(at, _)| *at).max().unwrap_or(0);
            let from = log.iter().position(|(at, _)| *at >= dedup_clock - window).unwrap_or(start).min(start);
            let mut dedup = Dedup::new(window);
            let mut found = Vec::new();
            for (offset, (at, id)) in log.iter().enumerate().skip(from) {
                if offset >= start {
                    dedup.advance(dedup_clock);
                }
                dedup.advance(*at);
                let duplicate = dedup.saw(&id.to_string());
                if offset >= start {
                    found.push(duplicate);
                }
            }
            prop_assert_eq!(found, &by_the_rule(&log, window)[start..]);
        }
    }
}
