//! Names of batch's own metrics.

use std::time::Duration;

use lamina_core::Micros;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const RUNS: &str = "lamina_batch_runs_total";
const ROWS: &str = "lamina_batch_rows_total";
const CHUNKS: &str = "lamina_batch_chunks_total";
const EXPIRED: &str = "lamina_batch_expired_total";
const REJECTED: &str = "lamina_batch_rejected_total";
const SECONDS: &str = "lamina_batch_run_seconds";
const GENERATION: &str = "lamina_batch_generation";
const COVERED: &str = "lamina_batch_covered_records";
const PUBLISHED: &str = "lamina_batch_published_seconds";
const LEADER: &str = "lamina_batch_leader";

/// Describes batch's metrics to the recorder that is installed.
pub fn describe_metrics() {
    describe_counter!(
        RUNS,
        "Runs of one metric by outcome: published, unchanged, failed, cancelled, taken_over, dry_run"
    );
    describe_counter!(ROWS, "Archive rows read and verified");
    describe_counter!(CHUNKS, "Batch chunks written");
    describe_counter!(EXPIRED, "Events left out of a rollup because their buckets are past retention");
    describe_counter!(REJECTED, "Events left out because the metric's expressions fail on them");
    describe_histogram!(SECONDS, "Seconds that a run of one metric took");
    describe_gauge!(GENERATION, "Published generation of a metric's full view");
    describe_gauge!(COVERED, "Log offsets covered by a metric's published generation, over all partitions");
    describe_gauge!(PUBLISHED, "Unix time of a metric's last publication");
    describe_gauge!(LEADER, "1 while this process leads batch");
}

pub(crate) fn ran(metric: &str, outcome: &'static str, took: Duration) {
    counter!(RUNS, "metric" => metric.to_owned(), "outcome" => outcome).increment(1);
    histogram!(SECONDS, "metric" => metric.to_owned()).record(took.as_secs_f64());
}

pub(crate) fn read(metric: &str, rows: u64, rejected: u64) {
    counter!(ROWS, "metric" => metric.to_owned()).increment(rows);
    counter!(REJECTED, "metric" => metric.to_owned()).increment(rejected);
}

pub(crate) fn wrote(metric: &str, chunks: u64, expired: u64) {
    counter!(CHUNKS, "metric" => metric.to_owned()).increment(chunks);
    counter!(EXPIRED, "metric" => metric.to_owned()).increment(expired);
}

pub(crate) fn published(metric: &str, generation: u64, covered: u64, at: Micros) {
    gauge!(GENERATION, "metric" => metric.to_owned()).set(generation as f64);
    gauge!(COVERED, "metric" => metric.to_owned()).set(covered as f64);
    gauge!(PUBLISHED, "metric" => metric.to_owned()).set(at as f64 / 1e6);
}

pub(crate) fn leads(yes: bool) {
    gauge!(LEADER).set(if yes { 1.0 } else { 0.0 });
}
