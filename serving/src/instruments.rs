//! What the serving layer tells of itself, by the `metrics` crate. Labels take few values: metrics, sources, routes, words.

use lamina_core::Micros;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

use crate::{
    http::movements::PartitionState,
    slo::{Sample, Status},
};

pub(crate) const REQUESTS: &str = "lamina_http_requests_total";
pub(crate) const REQUEST_TIME: &str = "lamina_http_request_seconds";
pub(crate) const SHED: &str = "lamina_http_shed_total";
pub(crate) const STALLED: &str = "lamina_http_stalled_total";
pub(crate) const UNAUTHORIZED: &str = "lamina_http_unauthorized_total";
pub(crate) const RATE_LIMITED: &str = "lamina_http_rate_limited_total";
pub(crate) const INGESTED: &str = "lamina_ingest_events_total";
pub(crate) const LIVE_QUERIES: &str = "lamina_live_queries";
pub(crate) const LIVE_EVALUATIONS: &str = "lamina_live_evaluations_total";
const STATUS: &str = "lamina_freshness_status";
const LAG: &str = "lamina_freshness_lag_seconds";
const TARGET: &str = "lamina_freshness_target_seconds";
const OBJECTIVE: &str = "lamina_freshness_objective_ratio";
const SAMPLES: &str = "lamina_freshness_samples_total";
const GAP: &str = "lamina_coverage_gap_seconds";
const HEADROOM: &str = "lamina_ttl_headroom_seconds";
const PARTITIONS: &str = "lamina_source_partitions";
const OVERDUE: &str = "lamina_batch_overdue_seconds";

/// Describes all of it to the recorder that is installed.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Requests answered, by method, route and status");
    describe_histogram!(REQUEST_TIME, Unit::Seconds, "Time from a request's head to the head of its answer, by route");
    describe_counter!(SHED, Unit::Count, "Requests refused at once since too many were under way");
    describe_counter!(STALLED, Unit::Count, "Connections closed since the client took nothing of its answer");
    describe_counter!(UNAUTHORIZED, Unit::Count, "Requests with credentials that are not known, current or valid");
    describe_counter!(RATE_LIMITED, Unit::Count, "Requests refused since their principal is over its rate");
    describe_counter!(INGESTED, Unit::Count, "Events sent over HTTP, by source and outcome: accepted, rejected");
    describe_gauge!(LIVE_QUERIES, Unit::Count, "Distinct queries that are followed");
    describe_counter!(LIVE_EVALUATIONS, Unit::Count, "Times that a followed query was evaluated");
    describe_gauge!(STATUS, Unit::Count, "Freshness of a metric: 0 ok, 1 warn, 2 breach");
    describe_gauge!(LAG, Unit::Seconds, "Age by append time of the oldest record of a metric that is unread, else 0");
    describe_gauge!(TARGET, Unit::Seconds, "How old the oldest unread record may be: serving.slo.target");
    describe_gauge!(
        OBJECTIVE,
        Unit::Count,
        "The part of the time for which the target is to hold: serving.slo.objective"
    );
    describe_counter!(
        SAMPLES,
        Unit::Count,
        "Looks at the freshness of a metric, every 15 s, by outcome: fresh (the target was met), late, or unknown (log or store did not answer)"
    );
    describe_gauge!(
        GAP,
        Unit::Seconds,
        "For how long something of a metric that batch has not covered may have been gone from the speed views; 0 is right"
    );
    describe_gauge!(
        HEADROOM,
        Unit::Seconds,
        "How long everything of a metric that batch has not covered is still sure to live; +Inf if batch covers everything, 0 if answers are incomplete"
    );
    describe_gauge!(
        PARTITIONS,
        Unit::Count,
        "Partitions of a source by state: idle, running, catching_up, lagging, stalled"
    );
    describe_gauge!(
        OVERDUE,
        Unit::Seconds,
        "For how long the next scheduled batch run is overdue; 0 if it is not, or the schedule is off or paused"
    );
}

/// How fresh a metric is now.
pub(crate) fn freshness(metric: &str, status: Status, lag_ms: i64, gap_ms: i64, headroom_ms: Option<i64>) {
    let seconds = |ms: i64| ms as f64 / 1e3;
    for (name, value) in [
        (STATUS, f64::from(status as u8)),
        (LAG, seconds(lag_ms)),
        (GAP, seconds(gap_ms)),
        (HEADROOM, headroom_ms.map_or(f64::INFINITY, seconds)),
    ] {
        gauge!(name, "metric" => metric.to_owned()).set(value);
    }
}

/// A metric that there is no more has no freshness: NaN fulfils no condition of an alarm.
pub(crate) fn gone(metric: &str) {
    for name in [STATUS, LAG, GAP, HEADROOM] {
        gauge!(name, "metric" => metric.to_owned()).set(f64::NAN);
    }
}

/// What is promised.
pub(crate) fn objective(target: std::time::Duration, objective: f64) {
    gauge!(TARGET).set(target.as_secs_f64());
    gauge!(OBJECTIVE).set(objective);
}

/// Counts a sample of the history.
pub(crate) fn sampled(metric: &str, sample: &Sample) {
    let outcome = match sample {
        Sample { status: None, .. } => "unknown",
        Sample { fresh: true, .. } => "fresh",
        Sample { fresh: false, .. } => "late",
    };
    // All of them from the first on: a counter that appears when something is late has no increase yet.
    for each in ["fresh", "late", "unknown"] {
        counter!(SAMPLES, "metric" => metric.to_owned(), "outcome" => each).increment(u64::from(each == outcome));
    }
}

/// How the partitions of a source do.
pub(crate) fn partition_states(source: &str, found: &[PartitionState]) {
    for state in PartitionState::ALL {
        let count = found.iter().filter(|found| **found == state).count();
        gauge!(PARTITIONS, "source" => source.to_owned(), "state" => state.as_str()).set(count as f64);
    }
}

/// For how long a scheduled batch run is overdue.
pub(crate) fn batch_overdue(overdue: Micros) {
    gauge!(OVERDUE).set(overdue as f64 / 1e6);
}
