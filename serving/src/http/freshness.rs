//! `/v1/freshness`: how far speed and batch have come, and whether that is as it should be.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use lamina_core::{
    Micros, Offset, Partition, Snapshot, generation, jobs,
    ledger::Epoch,
    snapshot::{Missing, MissingBecause},
};
use lamina_metric::Metric;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    config::FreshnessLimits,
    http::progress::{self, PartitionProgress, Progress},
    instant::{self, millis},
    instruments,
    problem::{Problem, Report},
    query::{meta::why, params::choice},
    slo::{Sample, Status},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(freshness)).routes(routes!(freshness_of))
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
    slo: Slo,
}

/// The promise, and how it is kept. Burn rates are of what this process saw: 1 uses up exactly what may be late.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Slo {
    /// How old by append time the oldest unread record may be.
    target_ms: u64,
    /// The part of the time for which that is to hold.
    objective: f64,
    /// Whether it holds now.
    ok: bool,
    /// Null while nothing was sampled.
    burn_rate_1h: Option<f64>,
    burn_rate_6h: Option<f64>,
}

impl Slo {
    pub(super) fn of(app: &App, metric: &str, ok: bool, now: Micros) -> Self {
        let FreshnessLimits { target, objective, .. } = app.config.freshness;
        let burn = |hours: u64| app.history.burn_rate(metric, objective, Duration::from_secs(hours * 3_600), now);
        let target_ms = u64::try_from(target.as_millis()).unwrap_or(u64::MAX);
        Self { target_ms, objective, ok, burn_rate_1h: burn(1), burn_rate_6h: burn(6) }
    }
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
    /// Null while the schedule is off or paused.
    next_run: Option<String>,
}

/// Sets the gauges of all metrics, as far as log and store answer.
pub(super) async fn measure(app: &App) {
    let limits = &app.config.freshness;
    instruments::objective(limits.target, limits.objective);
    let Ok(catalog) = app.definitions() else { return };
    let metrics: Vec<&Metric> = catalog.metrics.values().map(|metric| &**metric).collect();
    let _ = reports(app, &metrics).await;
}

/// How fresh metrics of one source are now, for the history.
pub(super) async fn samples(app: &App, metrics: &[&Metric]) -> Result<Vec<(String, Sample)>, Problem> {
    let at = app.deps.clock.now();
    let small = |ms: i64| u32::try_from(ms.max(0)).unwrap_or(u32::MAX);
    let sample = |report: MetricFreshness| {
        let (lag_ms, coverage_gap_ms) = (small(report.speed.lag_ms), small(report.coverage_gap_ms));
        (report.metric, Sample { at, lag_ms, coverage_gap_ms, status: Some(report.status), fresh: report.slo.ok })
    };
    Ok(reports(app, metrics).await?.into_iter().map(sample).collect())
}

type Pairs = Query<Vec<(String, String)>>;

/// How fresh all metrics are.
#[utoipa::path(get, path = "/v1/freshness", tag = "operation",
    params(("fail_on" = Option<String>, Query, description = "breach: answer 503 if the status is breach")),
    responses((status = 200, description = "Freshness", body = Freshness),
        (status = 503, description = "Asked to fail on a breach, and there is one", body = Freshness)))]
async fn freshness(State(app): State<App>, principal: Principal, Query(pairs): Pairs) -> Result<Response, Problem> {
    let fail = fail_on_breach(&pairs)?;
    let catalog = app.definitions()?;
    let seen = catalog.metrics.values().filter(|metric| principal.sees(metric));
    let metrics: Vec<&Metric> = seen.map(|metric| &**metric).collect();
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
    principal: Principal,
    Path(metric): Path<String>,
    Query(pairs): Pairs,
) -> Result<Response, Problem> {
    let fail = fail_on_breach(&pairs)?;
    let metric = app.metric(&metric)?;
    principal.check_sees(&metric)?;
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
    let reports = reports(app, metrics).await?;
    let status = reports.iter().map(|report| report.status).max().unwrap_or(Status::Ok);
    let body = Json(Freshness { status, metrics: reports });
    if fail && status == Status::Breach {
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
        response.extensions_mut().insert(Report);
        return Ok(response);
    }
    Ok(body.into_response())
}

async fn reports(app: &App, metrics: &[&Metric]) -> Result<Vec<MetricFreshness>, Problem> {
    let now = app.deps.clock.now();
    let schedule = jobs::load_schedule(&*app.deps.store).await?;
    let next_run = schedule.next_run.filter(|_| schedule.paused.is_none());
    instruments::batch_overdue(next_run.map_or(0, |due| (now - due).max(0)));
    let next_run = next_run.map(instant::format);
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
    Ok(reports)
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
        let snapshot = Snapshot { now, published: state.published, since: metric.since, taken: progress.taken.clone() };
        for missing in snapshot.missing() {
            verdict.add(Status::Breach, || in_words(&missing));
        }
        for uncovered in uncovered(&snapshot) {
            let left = millis(uncovered.epoch.alive_until - now);
            gap = gap.max(-left);
            headroom = Some(headroom.map_or(left, |least: i64| least.min(left)).max(0));
            verdict.judge_uncovered(&uncovered, now, &app.config.freshness);
        }
        let published = snapshot.published.clone();
        if behind.as_ref().is_none_or(|worst: &generation::Published| published.at < worst.at) {
            behind = Some(published);
        }
    }
    let published = behind.unwrap_or_default();
    if metric.source.table.is_some() && published.generation == 0 {
        verdict.add(Status::Warn, || "the table was not scanned yet, the next batch run does it".to_owned());
    }
    verdict.judge_speed(progress, &app.config.freshness);
    let status = verdict.status.unwrap_or(Status::Ok);
    let lag_ms = progress.lag_ms();
    let in_time = u128::try_from(lag_ms).is_ok_and(|lag| lag <= app.config.freshness.target.as_millis());
    let slo = Slo::of(app, &metric.name, in_time && status != Status::Breach, now);
    instruments::freshness(&metric.name, status, lag_ms, gap, headroom);
    let snapshot = Snapshot { now, published: published.clone(), since: metric.since, taken: progress.taken.clone() };
    Ok(MetricFreshness {
        metric: metric.name.clone(),
        status,
        reason: verdict.reason,
        speed: SpeedFreshness {
            watermark: snapshot.watermark().map(instant::format),
            lag_ms,
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
        slo,
    })
}

/// An epoch that holds records which batch has not covered.
struct Uncovered<'a> {
    partition: Partition,
    epoch: &'a Epoch,
    /// When its last record came, or when it was opened if that was later; of an open one, when it was opened. Touches and
    /// takeovers leave it as it is.
    since: Micros,
}

fn uncovered(snapshot: &Snapshot) -> impl Iterator<Item = Uncovered<'_>> {
    let positions: BTreeMap<Partition, Offset> = snapshot.positions();
    snapshot.taken.iter().flat_map(move |(&partition, taken)| {
        let position = positions.get(&partition).copied().unwrap_or(0);
        let epochs = &taken.ledger.epochs;
        let with_since = epochs.iter().enumerate().map(move |(at, epoch)| {
            let last_record = epochs.get(at + 1).map_or(epoch.opened_at, |next| next.dedup_clock);
            Uncovered { partition, epoch, since: epoch.opened_at.max(last_record) }
        });
        with_since.filter(move |Uncovered { epoch, .. }| {
            !snapshot.published.cut.covers(partition, epoch.start) && epoch.end.unwrap_or(position) > epoch.start
        })
    })
}

/// What an answer lacks, for whoever has to do something about it.
fn in_words(missing: &Missing) -> String {
    let Missing { partition, from, to, why: because } = missing;
    let (what, why) = (format!("partition {partition} lacks {from}..{to}"), why(*because));
    match because {
        MissingBecause::Expired => {
            format!(
                "{what}: {why}, neither covered by batch nor touched by a speed worker in time; a running one rebuilds it"
            )
        }
        MissingBecause::NotBuilt => format!("{what}: {why} yet, the next batch run does"),
        MissingBecause::Lost => format!("{what}: {why}, the log had dropped it before it was read"),
    }
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

    /// Half of the time to live is when speed touches chunks, and when batch is late; an open epoch waits longer, since one
    /// that was opened long before its first record is right.
    fn judge_uncovered(&mut self, uncovered: &Uncovered<'_>, now: Micros, limits: &FreshnessLimits) {
        let (Uncovered { partition, epoch, since }, ttl) = (uncovered, limits.ttl.as_millis());
        let age = millis(now - since);
        let over = |limit: u128| u128::try_from(age).is_ok_and(|age| age > limit);
        let left = millis(epoch.alive_until - now);
        if epoch.end.is_some() && over(ttl / 2) {
            self.add(Status::Warn, || {
                format!("batch has not covered partition {partition} from {} for {age} ms; it expires in {left} ms unless it is touched", epoch.start)
            });
        } else if epoch.end.is_none() && over(ttl / 4 * 3) {
            self.add(Status::Warn, || {
                format!("the epoch of partition {partition} from {} is not sealed for {age} ms", epoch.start)
            });
        }
    }

    fn judge_speed(&mut self, progress: &Progress, limits: &FreshnessLimits) {
        if let Some(why) = &progress.refused {
            self.add(Status::Breach, || why.clone());
        }
        for why in progress.partitions.iter().filter_map(PartitionProgress::stalled) {
            self.add(Status::Breach, || why);
        }
        for partition in &progress.partitions {
            if let Some(left) = partition.little_retention(limits.retention_warn) {
                let (partition, left) = (partition.partition, (100.0 * left).floor());
                let reason = || format!("partition {partition}: {left} % of retention is left before unread events go");
                self.add(Status::Warn, reason);
            }
        }
        let Some(behind) = progress.furthest_behind() else { return };
        let over = |limit: Duration| u128::try_from(progress.lag_ms()).is_ok_and(|lag| lag > limit.as_millis());
        if over(limits.breach) {
            self.add(Status::Breach, || behind.lateness());
        } else if over(limits.target) {
            self.add(Status::Warn, || behind.lateness());
        }
    }
}
