//! Windows of buckets, and what is taken of them at each instant.

use std::ops::Range;

use lamina_core::Micros;

use super::{
    Failure, Grid, LOOKBACK,
    expression::{Selector, Take, Window},
    functions::quantile,
    names::Kind,
    vector::Budget,
};
use crate::query::calendar::{EARLIEST, SECOND};

/// A bucket's start and value.
pub(super) type Sample = (Micros, f64);

/// Of each instant, the range of the starts of those buckets whose ends lie in `(instant - offset - window, instant -
/// offset]`: both edges floored to the grain.
pub(super) fn windows(selector: &Selector, grid: &Grid, grain: Micros) -> Vec<Range<Micros>> {
    let length = match &selector.take {
        Take::Latest => LOOKBACK.max(grain),
        Take::Window(_, length) | Take::Quantile(_, length) => *length,
    };
    let floor = |at: Micros| at.div_euclid(grain) * grain;
    let lowest = floor(EARLIEST) + grain;
    let window = |at: Micros| {
        let end = at.saturating_sub(selector.offset);
        floor(end.saturating_sub(length)).max(lowest)..floor(end).max(lowest)
    };
    grid.instants().map(window).collect()
}

/// The width of buckets to read: the widest that all windows are made of, if merged buckets are as good as single ones.
pub(super) fn width(windows: &[Range<Micros>], grain: Micros, kind: &Kind, take: &Take) -> Micros {
    let merges = match take {
        Take::Quantile(..) => true,
        Take::Window(Window::Increase | Window::Rate | Window::Sum, _) => kind.adds(),
        Take::Window(Window::Min, _) => kind.is("min"),
        Take::Window(Window::Max, _) => kind.is("max"),
        Take::Window(..) | Take::Latest => false,
    };
    if !merges {
        return grain;
    }
    let edges = windows.iter().filter(|window| !window.is_empty()).flat_map(|window| [window.start, window.end]);
    edges.fold(0, gcd).max(grain)
}

fn gcd(a: Micros, b: Micros) -> Micros {
    let (mut a, mut b) = (a.abs(), b.abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What is taken of samples, ascending by start, at each instant.
pub(super) fn taken(
    samples: &[Sample],
    windows: &[Range<Micros>],
    take: &Take,
    budget: &mut Budget,
) -> Result<Vec<Option<f64>>, Failure> {
    let mut values = Vec::with_capacity(windows.len());
    for window in windows {
        let from = samples.partition_point(|(start, _)| *start < window.start);
        let until = from + samples[from..].partition_point(|(start, _)| *start < window.end);
        let within = &samples[from..until];
        values.push(match take {
            _ if within.is_empty() => None,
            Take::Window(window, length) => {
                budget.samples(within.len())?;
                Some(window.of(within, *length))
            }
            Take::Latest | Take::Quantile(..) => within.last().map(|(_, value)| *value),
        });
    }
    Ok(values)
}

impl Window {
    /// Of at least one sample.
    #[expect(clippy::cast_precision_loss, reason = "numbers of samples and lengths of windows are far below 2^53")]
    fn of(self, samples: &[Sample], length: Micros) -> f64 {
        let values = || samples.iter().map(|(_, value)| *value);
        let n = samples.len() as f64;
        match self {
            Self::Increase | Self::Sum => sum(values()),
            Self::Rate => sum(values()) / (length as f64 / SECOND as f64),
            Self::Avg => sum(values()) / n,
            Self::Min => values().fold(f64::INFINITY, f64::min),
            Self::Max => values().fold(f64::NEG_INFINITY, f64::max),
            Self::Count => n,
            Self::Last => samples.last().map_or(f64::NAN, |(_, value)| *value),
            Self::Present => 1.0,
            Self::Quantile(rank) => quantile(rank, values().collect()),
            Self::Stddev => variance(values(), n).sqrt(),
            Self::Stdvar => variance(values(), n),
        }
    }
}

/// Population variance.
pub(super) fn variance(values: impl Iterator<Item = f64> + Clone, n: f64) -> f64 {
    let mean = sum(values.clone()) / n;
    sum(values.map(|value| (value - mean) * (value - mean))) / n
}

/// Compensated (Neumaier): as good as exact for sums that a double holds.
pub(super) fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0_f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
        sum = next;
    }
    if lost.is_finite() { sum + lost } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Micros = 60 * SECOND;

    #[test]
    fn a_window_holds_the_buckets_that_end_within_it() {
        let selector = |take, offset| Selector { matchers: Vec::new(), offset, take, then: None };
        let increase = |length| Take::Window(Window::Increase, length);
        let of = |at, selector: &Selector| windows(selector, &Grid::instant(at), MINUTE)[0].clone();
        assert_eq!(of(600 * SECOND, &selector(increase(5 * MINUTE), 0)), 300 * SECOND..600 * SECOND);
        assert_eq!(of(659 * SECOND, &selector(increase(5 * MINUTE), 0)), 300 * SECOND..600 * SECOND);
        assert_eq!(of(600 * SECOND, &selector(increase(90 * SECOND), MINUTE)), 420 * SECOND..540 * SECOND);
        assert_eq!(of(600 * SECOND, &selector(Take::Latest, -MINUTE)), 360 * SECOND..660 * SECOND);
        assert!(of(630 * SECOND, &selector(increase(SECOND), 0)).is_empty());
    }

    #[test]
    fn merged_buckets_are_read_where_they_come_to_the_same() {
        let windows = [0..60 * MINUTE, 30 * MINUTE..90 * MINUTE];
        let (count, max) = (Kind::Aggregate("count".into()), Kind::Aggregate("max".into()));
        let width = |kind, window| width(&windows, MINUTE, kind, &Take::Window(window, 60 * MINUTE));
        assert_eq!(width(&count, Window::Rate), 30 * MINUTE);
        assert_eq!(width(&max, Window::Max), 30 * MINUTE);
        assert_eq!(
            (width(&max, Window::Sum), width(&count, Window::Count), width(&count, Window::Max)),
            (MINUTE, MINUTE, MINUTE)
        );
    }

    #[test]
    fn a_sum_keeps_what_rounding_would_lose() {
        assert_eq!(sum([1e100, 1.0, -1e100].into_iter()), 1.0);
        assert_eq!(sum([f64::INFINITY, 1.0].into_iter()), f64::INFINITY);
    }
}
