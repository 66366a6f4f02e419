//! The most frequent texts: counters as in Misra and Gries, with a batched decrement.
//!
//! At most C counters are kept. When one more comes, the median counter is subtracted from all and what falls to zero is
//! dropped: each unit of `error` so removed at least C/2 events, hence `error` ≤ 2·N/C for N events, also after merging
//! ("Mergeable Summaries", Agarwal et al. 2012). While C texts suffice the counts are exact and the state is a pure function
//! of the events. datasketches' sketch has the same law, but keeps its items in an order that shows in its bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cell, Kind};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Top {
    /// How many can be asked for; fixes the number of counters.
    k: u32,
    /// What at most was subtracted from any text's count.
    error: u64,
    counters: BTreeMap<Box<str>, u64>,
}

/// A frequent value: its true count lies between `count − error` and `count`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopItem {
    pub value: String,
    pub count: u64,
    pub error: u64,
}

fn capacity(k: u32) -> usize {
    (k as usize).saturating_mul(16).clamp(256, 65_536)
}

/// Greatest possible error of a count, as a share of all events with a value.
pub(crate) fn top_error(k: u32) -> f64 {
    2.0 / capacity(k) as f64
}

impl Top {
    pub(crate) fn add(&mut self, text: &str) {
        match self.counters.get_mut(text) {
            Some(count) => *count = count.saturating_add(1),
            None => {
                self.counters.insert(text.into(), 1);
                self.shrink();
            }
        }
    }

    fn shrink(&mut self) {
        let capacity = capacity(self.k);
        if self.counters.len() <= capacity {
            return;
        }
        let mut counts: Vec<u64> = self.counters.values().copied().collect();
        let (_, &mut median, _) = counts.select_nth_unstable_by(capacity / 2, |a, b| b.cmp(a));
        self.counters.retain(|_, count| {
            *count = count.saturating_sub(median);
            *count > 0
        });
        self.error = self.error.saturating_add(median);
    }

    /// The `limit` most frequent texts, by descending count, then by value.
    pub(crate) fn most(&self, limit: u32) -> Vec<TopItem> {
        let mut sorted: Vec<_> = self.counters.iter().collect();
        sorted.sort_unstable_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        sorted.truncate(limit as usize);
        let items = sorted.into_iter().map(|(value, &count)| TopItem {
            value: value.to_string(),
            count: count.saturating_add(self.error),
            error: self.error,
        });
        items.collect()
    }
}

impl Cell for Top {
    fn empty(kind: &Kind) -> Self {
        let k = if let Kind::Top { k, .. } = kind { *k } else { 0 };
        Self { k, error: 0, counters: BTreeMap::new() }
    }

    fn merge(&mut self, other: &Self) {
        self.error = self.error.saturating_add(other.error);
        for (text, &count) in &other.counters {
            match self.counters.get_mut(text) {
                Some(own) => *own = own.saturating_add(count),
                None => {
                    self.counters.insert(text.clone(), count);
                }
            }
        }
        self.shrink();
    }

    fn heap(&self) -> usize {
        self.counters.keys().map(|text| text.len() + 32).sum()
    }

    fn fits(&self, kind: &Kind) -> bool {
        let Kind::Top { k, .. } = kind else { return false };
        self.k == *k && self.counters.len() <= capacity(*k) && self.counters.values().all(|&count| count > 0)
    }
}
