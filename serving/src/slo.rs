//! Whether metrics were as fresh as promised: samples of the last day, and how fast they use up what may be late.
//!
//! # Why in memory
//! A process tells what it saw itself, without writing anything for it. Prometheus keeps the same samples for longer and
//! over all processes: `lamina_freshness_samples_total`.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lamina_core::Micros;
use serde::Serialize;
use utoipa::ToSchema;

/// How often freshness is sampled.
pub(crate) const EVERY: Duration = Duration::from_secs(15);
/// How long samples are kept.
pub(crate) const KEPT: Duration = Duration::from_secs(86_400);
/// Samples of one metric, 24 bytes each.
const MOST_SAMPLES: usize = (KEPT.as_secs() / EVERY.as_secs()) as usize;
/// Metrics with a history, so that all of them together take at most 34 MiB; further ones have none.
const MOST_METRICS: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    Warn,
    Breach,
}

/// How fresh a metric was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) at: Micros,
    pub(crate) lag_ms: u32,
    pub(crate) coverage_gap_ms: u32,
    /// None if log or store did not answer.
    pub(crate) status: Option<Status>,
    /// Whether the objective was met. What cannot be told was not: nobody could have relied on it.
    pub(crate) fresh: bool,
}

impl Sample {
    /// Log or store did not say how fresh the metric is.
    pub(crate) fn unknown(at: Micros) -> Self {
        Self { at, lag_ms: 0, coverage_gap_ms: 0, status: None, fresh: false }
    }
}

/// What a range of samples comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) start: Micros,
    pub(crate) samples: usize,
    pub(crate) late: usize,
    pub(crate) unknown: usize,
    /// Largest of those that are known.
    pub(crate) lag_ms: u32,
    pub(crate) coverage_gap_ms: u32,
    pub(crate) status: Option<Status>,
}

/// The samples of each metric, oldest first.
#[derive(Default)]
pub(crate) struct History(Mutex<HashMap<String, VecDeque<Sample>>>);

impl History {
    /// Takes a sample in, and lets go of those that are older than a day.
    pub(crate) fn note(&self, metric: &str, sample: Sample) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(metric) && all.len() >= MOST_METRICS {
            return;
        }
        let samples = all.entry(metric.to_owned()).or_default();
        // A clock that was put back comes by the same moments again.
        while samples.back().is_some_and(|last| last.at >= sample.at) {
            samples.pop_back();
        }
        let oldest = sample.at - micros(KEPT);
        while samples.len() >= MOST_SAMPLES || samples.front().is_some_and(|first| first.at <= oldest) {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Forgets metrics that there are no more, and names them.
    pub(crate) fn keep(&self, metrics: &HashSet<&str>) -> Vec<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extract_if(|name, _| !metrics.contains(name.as_str())).map(|(name, _)| name).collect()
    }

    /// How many times as fast as the objective allows lateness was used up within `window` before `now`: 1 uses up exactly
    /// what is allowed. None without samples.
    pub(crate) fn burn_rate(&self, metric: &str, objective: f64, window: Duration, now: Micros) -> Option<f64> {
        let bucket = self.bucket(metric, now - micros(window) + 1, now + 1);
        (bucket.samples > 0).then(|| bucket.late as f64 / bucket.samples as f64 / (1.0 - objective))
    }

    /// The samples within `[from, to)` by steps that begin at `from`; steps without a sample are left out.
    pub(crate) fn buckets(&self, metric: &str, from: Micros, to: Micros, step: Micros) -> Vec<Bucket> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buckets: Vec<Bucket> = Vec::new();
        for sample in all.get(metric).into_iter().flatten().filter(|sample| (from..to).contains(&sample.at)) {
            let start = from + (sample.at - from).div_euclid(step) * step;
            if buckets.last().is_none_or(|last| last.start != start) {
                buckets.push(Bucket::at(start));
            }
            if let Some(bucket) = buckets.last_mut() {
                bucket.take(sample);
            }
        }
        buckets
    }

    fn bucket(&self, metric: &str, from: Micros, to: Micros) -> Bucket {
        self.buckets(metric, from, to, to - from).first().copied().unwrap_or(Bucket::at(from))
    }
}

impl Bucket {
    fn at(start: Micros) -> Self {
        Self { start, samples: 0, late: 0, unknown: 0, lag_ms: 0, coverage_gap_ms: 0, status: None }
    }

    fn take(&mut self, sample: &Sample) {
        self.samples += 1;
        self.late += usize::from(!sample.fresh);
        self.unknown += usize::from(sample.status.is_none());
        self.lag_ms = self.lag_ms.max(sample.lag_ms);
        self.coverage_gap_ms = self.coverage_gap_ms.max(sample.coverage_gap_ms);
        self.status = self.status.max(sample.status);
    }
}

fn micros(length: Duration) -> Micros {
    Micros::try_from(length.as_micros()).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;

    fn sample(at_s: i64, lag_ms: u32, fresh: bool) -> Sample {
        let status = Some(if fresh { Status::Ok } else { Status::Warn });
        Sample { at: at_s * SECOND, lag_ms, coverage_gap_ms: 0, status, fresh }
    }

    #[test]
    fn memory_is_bounded_in_samples_and_in_metrics() {
        assert_eq!(size_of::<Sample>(), 24);
        assert_eq!(MOST_METRICS * MOST_SAMPLES * 24 / (1 << 20), 33, "the documented 34 MiB");
        let history = History::default();
        for at in 0..MOST_SAMPLES as i64 + 100 {
            history.note("a", sample(at, 0, true));
        }
        for number in 0..2 * MOST_METRICS {
            history.note(&format!("m{number}"), sample(0, 0, true));
        }
        let all = history.0.lock().unwrap();
        assert_eq!((all.len(), all["a"].len(), all["a"][0].at), (MOST_METRICS, MOST_SAMPLES, 100 * SECOND));
    }

    #[test]
    fn what_is_older_than_a_day_goes_and_a_clock_put_back_repeats_nothing() {
        let history = History::default();
        for at in [0, 15, 86_400, 86_415, 86_400] {
            history.note("a", sample(at, 0, true));
        }
        let starts: Vec<Micros> =
            history.buckets("a", 0, Micros::MAX, SECOND).iter().map(|bucket| bucket.start / SECOND).collect();
        assert_eq!(starts, [86_400]);
        history.keep(&HashSet::from(["b"]));
        assert!(history.buckets("a", 0, Micros::MAX, SECOND).is_empty());
    }

    #[test]
    fn a_burn_rate_of_one_uses_up_exactly_what_the_objective_allows() {
        let history = History::default();
        assert_eq!(history.burn_rate("a", 0.99, Duration::from_secs(3_600), 0), None, "nothing is known");
        for number in 0..100 {
            history.note("a", sample(number * 15, 0, number != 50));
        }
        let now = 99 * 15 * SECOND;
        let burn = |seconds| history.burn_rate("a", 0.99, Duration::from_secs(seconds), now).unwrap();
        assert!((burn(3_600) - 1.0).abs() < 1e-9);
        assert!((burn(750) - 2.0).abs() < 1e-9, "one of the last 50");
        assert_eq!(burn(600), 0.0);
    }

    #[test]
    fn what_is_unknown_was_not_fresh() {
        let history = History::default();
        history.note("a", sample(0, 7, true));
        history.note("a", Sample::unknown(15 * SECOND));
        let whole = history.bucket("a", 0, 60 * SECOND);
        assert_eq!((whole.samples, whole.late, whole.unknown), (2, 1, 1));
        assert_eq!((whole.lag_ms, whole.status), (7, Some(Status::Ok)));
    }

    proptest! {
        #[test]
        fn every_sample_of_a_range_is_in_one_bucket(
            ats in prop::collection::btree_set(0_i64..4_000, 0..60),
            from in 0_i64..4_000, length in 1_i64..4_000, step in 1_i64..500,
        ) {
            let history = History::default();
            for &at in &ats {
                history.note("a", sample(at, u32::try_from(at).unwrap(), at % 3 != 0));
            }
            let (from, to) = (from * SECOND, (from + length) * SECOND);
            let buckets = history.buckets("a", from, to, step * SECOND);
            let within: Vec<i64> = ats.into_iter().filter(|at| (from..to).contains(&(at * SECOND))).collect();
            prop_assert_eq!(buckets.iter().map(|bucket| bucket.samples).sum::<usize>(), within.len());
            for bucket in buckets {
                let mine = within.iter().filter(|&&at| (0..step * SECOND).contains(&(at * SECOND - bucket.start)));
                let mine: Vec<i64> = mine.copied().collect();
                prop_assert_eq!(bucket.samples, mine.len());
                prop_assert_eq!(bucket.late, mine.iter().filter(|at| *at % 3 == 0).count());
                prop_assert_eq!(i64::from(bucket.lag_ms), mine.iter().copied().max().unwrap());
            }
        }
    }
}
