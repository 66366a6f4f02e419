//! `/v1/freshness/{metric}/history`: how fresh a metric was, as this process saw it; and what looks.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use axum::{
    Json,
    extract::{Path, Query, State},
};
use lamina_core::Micros;
use lamina_metric::Metric;
use serde::Serialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    http::freshness,
    instant, instruments,
    problem::Problem,
    query::{
        calendar::{SECOND, Step},
        params::instant_of,
    },
    slo::{Bucket, EVERY, KEPT, Sample, Status},
};

/// Step unless one is asked for.
const MINUTE: Micros = 60 * SECOND;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(history))
}

#[derive(Debug, Serialize, ToSchema)]
struct HistoryOf {
    metric: String,
    from: String,
    to: String,
    step_ms: i64,
    /// How often this process looks.
    sampled_every_ms: u64,
    target_ms: u64,
    objective: f64,
    /// Oldest first; steps in which this process did not look are left out.
    points: Vec<Point>,
}

/// What was seen within one step.
#[derive(Debug, Serialize, ToSchema)]
struct Point {
    start: String,
    samples: usize,
    /// Those that missed the target, or of which nothing could be known.
    late: usize,
    /// Those at which log or store did not answer.
    unknown: usize,
    /// The worst; null if nothing was known.
    status: Option<Status>,
    /// Largest age by append time of the oldest unread record.
    lag_ms: Option<u32>,
    coverage_gap_ms: Option<u32>,
}

impl From<Bucket> for Point {
    fn from(bucket: Bucket) -> Self {
        let Bucket { start, samples, late, unknown, lag_ms, coverage_gap_ms, status } = bucket;
        let known = |value: u32| status.map(|_| value);
        let (lag_ms, coverage_gap_ms) = (known(lag_ms), known(coverage_gap_ms));
        Self { start: instant::format(start), samples, late, unknown, status, lag_ms, coverage_gap_ms }
    }
}

/// What is asked for.
struct Range {
    from: Micros,
    to: Micros,
    step: Micros,
}

/// How fresh one metric was within the last day.
///
/// Each process keeps its own, in memory: after a restart it begins anew.
#[utoipa::path(get, path = "/v1/freshness/{metric}/history", tag = "operation",
    params(("metric" = String, Path, description = "Name of the metric"),
        ("from" = Option<String>, Query, description = "RFC 3339 or Unix milliseconds; a day before `to` if left out"),
        ("to" = Option<String>, Query, description = "As `from`, exclusive; now if left out"),
        ("step" = Option<String>, Query, description = "Such as 1m (the default) or 1h; at least 15s")),
    responses((status = 200, description = "What was seen", body = HistoryOf),
        (status = 404, description = "Unknown metric")))]
async fn history(
    State(app): State<App>,
    principal: Principal,
    Path(metric): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<HistoryOf>, Problem> {
    let metric = app.metric(&metric)?;
    principal.check_sees(&metric)?;
    let Range { from, to, step } = Range::asked(&pairs, app.deps.clock.now())?;
    let limits = &app.config.freshness;
    let millis = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let points = app.history.buckets(&metric.name, from, to, step);
    Ok(Json(HistoryOf {
        metric: metric.name.clone(),
        from: instant::format(from),
        to: instant::format(to),
        step_ms: instant::millis(step),
        sampled_every_ms: millis(EVERY),
        target_ms: millis(limits.target),
        objective: limits.objective,
        points: points.into_iter().map(Point::from).collect(),
    }))
}

impl Range {
    fn asked(pairs: &[(String, String)], now: Micros) -> Result<Self, Problem> {
        let (mut from, mut to, mut step) = (None, None, MINUTE);
        for (name, value) in pairs {
            match name.as_str() {
                "from" => from = Some(instant_of("from", value)?),
                "to" => to = Some(instant_of("to", value)?),
                "step" => step = step_of(value)?,
                _ => return Err(Problem::parameter(name, "is not a parameter; there are from, to and step")),
            }
        }
        // What was seen just now is part of it.
        let to = to.unwrap_or(now + 1);
        let from = from.unwrap_or(to - Micros::try_from(KEPT.as_micros()).unwrap_or(Micros::MAX));
        if from >= to {
            return Err(Problem::parameter("from", "an instant before `to`"));
        }
        // Whole steps, so that the same moments fall together whenever one asks.
        let from = from.div_euclid(step) * step;
        Ok(Self { from, to, step })
    }
}

fn step_of(text: &str) -> Result<Micros, Problem> {
    let least = Micros::try_from(EVERY.as_micros()).unwrap_or(Micros::MAX);
    let most = Micros::try_from(KEPT.as_micros()).unwrap_or(Micros::MAX);
    match Step::parse(text) {
        Some(Step::Fixed(step)) if (least..=most).contains(&step) => Ok(step),
        _ => Err(Problem::parameter("step", "a length from 15s to 1d, such as 1m or 1h")),
    }
}

/// Looks at the freshness of all metrics from time to time, for the history and the burn rates.
pub struct Sampler(App);

impl Sampler {
    pub(super) fn new(app: App) -> Self {
        Self(app)
    }

    /// Samples until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if stop.run_until_cancelled(self.sample()).await.is_none() {
                return;
            }
        }
    }

    /// Takes one sample of each metric.
    pub async fn sample(&self) {
        let Self(app) = self;
        let Ok(catalog) = app.definitions() else { return };
        let gone = app.history.keep(&catalog.metrics.keys().map(String::as_str).collect::<HashSet<_>>());
        gone.iter().for_each(|metric| instruments::gone(metric));
        let mut by_source: BTreeMap<&str, Vec<&Metric>> = BTreeMap::new();
        for metric in catalog.metrics.values() {
            by_source.entry(&metric.source.name).or_default().push(metric);
        }
        // A source whose log does not answer leaves the others as they are.
        futures::future::join_all(by_source.into_values().map(|metrics| self.sample_source(metrics))).await;
    }

    async fn sample_source(&self, metrics: Vec<&Metric>) {
        let Self(app) = self;
        let samples = match tokio::time::timeout(EVERY / 2, freshness::samples(app, &metrics)).await {
            Ok(Ok(samples)) => samples,
            _ => {
                let unknown = Sample::unknown(app.deps.clock.now());
                metrics.iter().map(|metric| (metric.name.clone(), unknown)).collect()
            }
        };
        for (metric, sample) in samples {
            instruments::sampled(&metric, &sample);
            app.history.note(&metric, sample);
        }
    }
}
