//! `/v1/freshness`: how far speed and batch have come, and whether that is as it should be.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use lamina_core::{Micros, Offset, Partition, Snapshot, generation, jobs, ledger::Epoch};
use lamina_metric::Metric;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    config::FreshnessLimits,
    http::progress::{self, PartitionProgress, Progress},
    instant::{self, millis},
    problem::{Problem, Report},
    query::{encode::why, params::choice},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(freshness)).routes(routes!(freshness_of))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Breach,
}

#[derive(Debug, Serialize, ToSchema)]
struct Freshness {
    /// The worst of all metrics.
    status: Status,
    metrics: Vec<MetricFreshness>,
}

#[derive(Debug, Serialize, ToSchema)]
struct MetricFreshness {
    metric: String,
    status: Status,
    /// Why the status is not `ok`.
    reason: Option<String>,
    speed: SpeedFreshness,
    batch: BatchFreshness,
    /// For how long something that batch has not covered may have been gone from the speed views; 0 is right.
    coverage_gap_ms: i64,
    /// How long everything that batch has not covered is still sure to live; null if batch covers everything.
    ttl_headroom_ms: Option<i64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct SpeedFreshness {
    /// Largest event time folded, for information.
    watermark: Option<String>,
    /// Age by append time of the oldest unread record, else 0.
    lag_ms: i64,
    partitions: Vec<PartitionProgress>,
}

#[derive(Debug, Serialize, ToSchema)]
struct BatchFreshness {
    generation: u64,
    through: Option<String>,
    /// Since the view that is furthest behind was published; null before the first time.
    age_ms: Option<i64>,
    /// Null while the schedule is off.
    next_run: Option<String>,
}

type Pairs = Query<Vec<(String, String)>>;

/// How fresh all metrics are.
#[utoipa::path(get, path = "/v1/freshness", tag = "operation",
    params(("fail_on" = Option<String>, Query, description = "breach: answer 503 if the status is breach")),
    responses((status = 200, description = "Freshness", body = Freshness),
        (status = 503, description = "Asked to fail on a breach, and there is one", body = Freshness)))]
async fn freshness(State(app): State<App>, Query(pairs): Pairs) -> Result<Response, Problem> {
    let fail = fail_on_breach(&pairs)?;
    let catalog = app.definitions()?;
    let metrics: Vec<&Metric> = catalog.metrics.values().map(|metric| &**metric).collect();
    report(&app, &metrics, fail).await
}

/// How fresh one metric is.
#[utoipa::path(get, path = "/v1/freshness/{metric}", tag = "operation",
    params(("metric" = String, Path, description = "Name of the metric"),
        ("fail_on" = Option<String>, Query, description = "breach: answer 503 if the status is breach")),
    responses((status = 200, description = "Freshness", body = Freshness), (status = 404, description = "Unknown metric"),
        (status = 503, description = "Asked to fail on a breach, and there is one", body = Freshness)))]
async fn freshness_of(
    State(app): State<App>,
    Path(metric): Path<String>,
    Query(pairs): Pairs,
) -> Result<Response, Problem> {
    let fail = fail_on_breach(&pairs)?;
    let metric = app.metric(&metric)?;
    report(&app, &[&metric], fail).await
}

fn fail_on_breach(pairs: &[(String, String)]) -> Result<bool, Problem> {
    let mut fail = false;
    for (name, value) in pairs {
        match name.as_str() {
            "fail_on" => fail = choice("fail_on", Some(value), &[("breach", true)])?.unwrap_or(false),
            _ => return Err(Problem::parameter(name, "is not a parameter; there is fail_on")),
        }
    }
    Ok(fail)
}

async fn report(app: &App, metrics: &[&Metric], fail: bool) -> Result<Response, Problem> {
    let now = app.deps.clock.now();
    let next_run = jobs::load_schedule(&*app.deps.store).await?.next_run.map(instant::format);
    let mut sources: BTreeMap<&str, Progress> = BTreeMap::new();
    let mut reports = Vec::with_capacity(metrics.len());
    for metric in metrics {
        let name = metric.source.name.as_str();
        if !sources.contains_key(name) {
            sources.insert(name, progress::of(app, &metric.source, now).await?);
        }
        let Some(progress) = sources.get(name) else { continue };
        reports.push(of_metric(app, metric, progress, next_run.clone(), now).await?);
    }
    let status = reports.iter().map(|report| report.status).max().unwrap_or(Status::Ok);
    let body = Json(Freshness { status, metrics: reports });
    if fail && status == Status::Breach {
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
        response.extensions_mut().insert(Report);
        return Ok(response);
    }
    Ok(body.into_response())
}

async fn of_metric(
    app: &App,
    metric: &Metric,
    progress: &Progress,
    next_run: Option<String>,
    now: Micros,
) -> Result<MetricFreshness, Problem> {
    let (mut behind, mut gap, mut headroom, mut verdict) = (None, 0, None, Verdict::default());
    for view in &metric.views {
        let (_, state) = generation::load_view(&*app.deps.store, &view.id).await?;
        let snapshot = Snapshot { published: state.published, since: metric.since, taken: progress.taken.clone() };
        for missing in snapshot.missing(now) {
            let (partition, from, to, why) = (missing.partition, missing.from, missing.to, why(missing.why));
            verdict.add(Status::Breach, || format!("partition {partition} lacks {from}..{to}: {why}"));
        }
        for epoch in uncovered(&snapshot) {
            let left = millis(epoch.alive_until - now);
            gap = gap.max(-left);
            headroom = Some(headroom.map_or(left, |least: i64| least.min(left)).max(0));
            // Speed touches at half of the time to live; less left means that neither it nor batch came by.
            if left < millis(epoch.alive_until - epoch.opened_at) / 2 {
                verdict.add(Status::Warn, || format!("batch has not covered what expires in {left} ms"));
            }
        }
        let published = snapshot.published.clone();
        if behind.as_ref().is_none_or(|worst: &generation::Published| published.at < worst.at) {
            behind = Some(published);
        }
    }
    let published = behind.unwrap_or_default();
    verdict.judge_speed(progress, &app.config.freshness);
    let snapshot = Snapshot { published: published.clone(), since: metric.since, taken: progress.taken.clone() };
    Ok(MetricFreshness {
        metric: metric.name.clone(),
        status: verdict.status.unwrap_or(Status::Ok),
        reason: verdict.reason,
        speed: SpeedFreshness {
            watermark: snapshot.watermark().map(instant::format),
            lag_ms: progress.lag_ms(),
            partitions: progress.partitions.clone(),
        },
        batch: BatchFreshness {
            generation: published.generation,
            through: published.through.map(instant::format),
            age_ms: (published.generation > 0).then(|| millis(now - published.at).max(0)),
            next_run,
        },
        coverage_gap_ms: gap,
        ttl_headroom_ms: headroom,
    })
}

/// Epochs that hold records which batch has not covered.
fn uncovered(snapshot: &Snapshot) -> impl Iterator<Item = &Epoch> {
    let positions: BTreeMap<Partition, Offset> = snapshot.positions();
    snapshot.taken.iter().flat_map(move |(&partition, taken)| {
        let position = positions.get(&partition).copied().unwrap_or(0);
        let uncovered = move |epoch: &&Epoch| {
            !snapshot.published.cut.covers(partition, epoch.start) && epoch.end.unwrap_or(position) > epoch.start
        };
        taken.ledger.epochs.iter().filter(uncovered)
    })
}

/// The worst found so far, with the first reason for it.
#[derive(Default)]
struct Verdict {
    status: Option<Status>,
    reason: Option<String>,
}

impl Verdict {
    fn add(&mut self, status: Status, reason: impl FnOnce() -> String) {
        if self.status.is_none_or(|worst| worst < status) {
            self.status = Some(status);
            self.reason = Some(reason());
        }
    }

    fn judge_speed(&mut self, progress: &Progress, limits: &FreshnessLimits) {
        if let Some(why) = &progress.refused {
            self.add(Status::Breach, || why.clone());
        }
        for partition in progress.partitions.iter().filter(|partition| partition.is_stalled()) {
            self.add(Status::Breach, || format!("partition {} is stalled", partition.partition));
        }
        for partition in &progress.partitions {
            if let Some(left) = partition.little_retention(limits.retention_warn) {
                let (partition, left) = (partition.partition, (100.0 * left).floor());
                let reason = || format!("partition {partition}: {left} % of retention is left before unread events go");
                self.add(Status::Warn, reason);
            }
        }
        let lag = progress.lag_ms();
        let over = |limit: std::time::Duration| u128::try_from(lag).is_ok_and(|lag| lag > limit.as_millis());
        if over(limits.lag_breach) {
            self.add(Status::Breach, || format!("the oldest unread event is {lag} ms old"));
        } else if over(limits.lag_warn) {
            self.add(Status::Warn, || format!("the oldest unread event is {lag} ms old"));
        }
    }
}
