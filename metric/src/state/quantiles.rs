//! Quantiles with 1 % relative error: DDSketch's logarithmic bins, kept sparse.
//!
//! The mapping is `sketches-ddsketch`'s. Its store is dense and collapses bins beyond a limit, which would make two
//! far-apart values cost half a megabyte or the error depend on the order; here only bins that hold something are kept, so
//! the state is a pure function of the multiset of values. All finite floats have about 73,000 bins of either sign, which
//! bounds a state to 2.4 MB; values within a factor of 1,000 need at most 346 bins, 6 kB.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use sketches_ddsketch::Config;

use super::{Cell, Kind};

/// Relative error of every quantile.
pub(crate) const QUANTILE_ERROR: f64 = 0.01;

/// Bins by key, ascending, none empty.
type Bins = Vec<(i32, u64)>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    min: f64,
    max: f64,
    zeros: u64,
    /// Bins of the magnitudes of negative values.
    negative: Bins,
    positive: Bins,
}

/// A quantile as an exact fraction, so that ranks do not suffer from rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rank {
    numerator: u64,
    denominator: u64,
}

impl Rank {
    /// From percents such as `50`, `99.9`; at most six decimals.
    pub(crate) fn parse(percents: &str) -> Option<Self> {
        let (whole, decimals) = percents.split_once('.').unwrap_or((percents, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let formed = !whole.is_empty() && whole.len() <= 3 && decimals.len() <= 6 && !percents.ends_with('.');
        if !formed || !digits(whole) || !digits(decimals) {
            return None;
        }
        let numerator = format!("{whole}{decimals}").parse().ok()?;
        let denominator = 100 * 10_u64.pow(decimals.len() as u32);
        (numerator <= denominator).then_some(Self { numerator, denominator })
    }

    /// Nearest rank among `n` values, from 1: at least this share of them lies at or below it.
    fn of(self, n: u64) -> u128 {
        (u128::from(n) * u128::from(self.numerator)).div_ceil(u128::from(self.denominator)).max(1)
    }
}

fn mapping() -> Config {
    // The other two bound the crate's own store, which is not used.
    Config::new(QUANTILE_ERROR, u32::MAX, f64::MIN_POSITIVE)
}

impl Quantiles {
    pub(crate) fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        match value.total_cmp(&0.0) {
            Ordering::Equal => self.zeros = self.zeros.saturating_add(1),
            Ordering::Greater => increase(&mut self.positive, mapping().key(value), 1),
            Ordering::Less => increase(&mut self.negative, mapping().key(-value), 1),
        }
    }

    /// The smallest value with at least this share of the values at or below it, within 1 %; `None` of no values.
    pub(crate) fn quantile(&self, rank: Rank) -> Option<f64> {
        let total = |bins: &Bins| bins.iter().fold(0_u64, |total, &(_, count)| total.saturating_add(count));
        let n = total(&self.negative).saturating_add(self.zeros).saturating_add(total(&self.positive));
        if n == 0 {
            return None;
        }
        let rank = rank.of(n);
        // The ends are known exactly.
        if rank == 1 {
            return Some(self.min);
        }
        if rank == u128::from(n) {
            return Some(self.max);
        }
        let mapping = mapping();
        let negative = self.negative.iter().rev().map(|&(key, count)| (-mapping.value(key), count));
        let positive = self.positive.iter().map(|&(key, count)| (mapping.value(key), count));
        let mut below = 0_u128;
        let mut ascending = negative.chain([(0.0, self.zeros)]).chain(positive);
        let found = ascending.find(|&(_, count)| {
            below += u128::from(count);
            below >= rank
        });
        found.map(|(value, _)| value.max(self.min).min(self.max))
    }
}

fn increase(bins: &mut Bins, key: i32, by: u64) {
    match bins.binary_search_by_key(&key, |&(key, _)| key) {
        Ok(at) => bins[at].1 = bins[at].1.saturating_add(by),
        Err(at) => bins.insert(at, (key, by)),
    }
}

impl Cell for Quantiles {
    fn empty(_: &Kind) -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY, zeros: 0, negative: Vec::new(), positive: Vec::new() }
    }

    fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.zeros = self.zeros.saturating_add(other.zeros);
        other.negative.iter().for_each(|&(key, count)| increase(&mut self.negative, key, count));
        other.positive.iter().for_each(|&(key, count)| increase(&mut self.positive, key, count));
    }

    fn heap(&self) -> usize {
        (self.negative.capacity() + self.positive.capacity()) * size_of::<(i32, u64)>()
    }

    fn fits(&self, _: &Kind) -> bool {
        let formed = |bins: &Bins| bins.is_sorted_by(|a, b| a.0 < b.0) && bins.iter().all(|&(_, count)| count > 0);
        let empty = self.zeros == 0 && self.negative.is_empty() && self.positive.is_empty();
        let ends = if empty {
            self.min == f64::INFINITY && self.max == f64::NEG_INFINITY
        } else {
            self.min.is_finite() && self.max.is_finite() && self.min <= self.max
        };
        ends && formed(&self.negative) && formed(&self.positive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_exact() {
        let rank = |text: &str, n| Rank::parse(text).unwrap().of(n);
        assert_eq!((rank("50", 4), rank("50", 5), rank("0", 9), rank("100", 9)), (2, 3, 1, 9));
        assert_eq!(rank("99.9", 1000), 999);
        assert_eq!(rank("99.9", 1001), 1000);
        assert!(
            ["", ".5", "5.", "101", "100.1", "-1", "1e1", "0.0000001"].iter().all(|text| Rank::parse(text).is_none())
        );
    }
}
