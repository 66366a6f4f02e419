//! Names of batch's own metrics.

use std::time::Duration;

use lamina_core::Micros;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{archive::Cared, compute::Done, table::Tally};

const RUNS: &str = "lamina_batch_runs_total";
const ROWS: &str = "lamina_batch_rows_total";
const CHUNKS: &str = "lamina_batch_chunks_total";
const EXPIRED: &str = "lamina_batch_expired_total";
const REJECTED: &str = "lamina_batch_rejected_total";
const EVENTS: &str = "lamina_batch_events_total";
const TABLE_ROWS: &str = "lamina_batch_table_rows_total";
const VIOLATIONS: &str = "lamina_batch_conservation_violations_total";
const SECONDS: &str = "lamina_batch_run_seconds";
const GENERATION: &str = "lamina_batch_generation";
const COVERED: &str = "lamina_batch_covered_records";
const PUBLISHED: &str = "lamina_batch_published_timestamp_seconds";
const FILES: &str = "lamina_batch_archive_files_total";
const LEADER: &str = "lamina_batch_leader";
const EXECUTORS: &str = "lamina_batch_executors";
const LOST: &str = "lamina_batch_executors_lost_total";
const SHARES: &str = "lamina_executor_shares_total";

/// Describes batch's metrics to the recorder that is installed.
pub(crate) fn describe_metrics() {
    describe_counter!(
        RUNS,
        Unit::Count,
        "Runs of one metric by outcome: published, unchanged, failed, cancelled, taken_over, dry_run"
    );
    describe_counter!(ROWS, Unit::Count, "Archive rows read and verified");
    describe_counter!(CHUNKS, Unit::Count, "Batch chunks written");
    describe_counter!(EXPIRED, Unit::Count, "Events left out of a rollup because their buckets are past retention");
    describe_counter!(REJECTED, Unit::Count, "Events left out because the metric's expressions fail on them");
    describe_counter!(
        EVENTS,
        Unit::Count,
        "Offsets of the epochs read, by metric and fate: folded, filtered, dead_lettered, duplicate, erased, expired, without_record"
    );
    describe_counter!(
        TABLE_ROWS,
        Unit::Count,
        "Rows of users' own tables that whole scans met, by source and fate: summarised, expired, rejected; updated ones are summarised, too"
    );
    describe_counter!(
        VIOLATIONS,
        Unit::Count,
        "Runs that failed because offsets, archive rows or events did not add up; 0 is right"
    );
    describe_histogram!(SECONDS, Unit::Seconds, "Seconds that a run of one metric took");
    describe_gauge!(GENERATION, Unit::Count, "Published generation of a metric's full view");
    describe_gauge!(
        COVERED,
        Unit::Count,
        "Log offsets covered by a metric's published generation, over all partitions"
    );
    describe_gauge!(PUBLISHED, Unit::Seconds, "Unix time of a metric's last publication");
    describe_counter!(
        FILES,
        Unit::Count,
        "Files of the archive by what was done: merged, written, expired (by retention), removed"
    );
    describe_gauge!(LEADER, Unit::Count, "1 while this process leads batch");
    describe_gauge!(EXECUTORS, Unit::Count, "Executors that the run under way, or the last one, could use");
    describe_counter!(
        LOST,
        Unit::Count,
        "Times that an executor was left out of a run: not there, silent, or of another version"
    );
}

/// Describes an executor's metrics to the recorder that is installed.
pub(crate) fn describe_executor() {
    describe_counter!(
        SHARES,
        Unit::Count,
        "Plans that leaders sent, by outcome: taken, or refused as no fold of archive files"
    );
}

/// Notes how many executors a run can use.
pub(crate) fn executors(count: usize) {
    gauge!(EXECUTORS).set(count as f64);
}

/// Counts an executor that is left out of a run.
pub(crate) fn lost(executor: &str) {
    counter!(LOST, "executor" => executor.to_owned()).increment(1);
}

/// Counts a plan that a leader sent to this executor.
pub(crate) fn taken(yes: bool) {
    counter!(SHARES, "outcome" => if yes { "taken" } else { "refused" }).increment(1);
}

pub(crate) fn ran(metric: &str, outcome: &'static str, took: Duration) {
    counter!(RUNS, "metric" => metric.to_owned(), "outcome" => outcome).increment(1);
    histogram!(SECONDS, "metric" => metric.to_owned()).record(took.as_secs_f64());
}

/// Counts what a run read and what became of it.
pub(crate) fn read(metric: &str, done: &Done) {
    counter!(ROWS, "metric" => metric.to_owned()).increment(done.rows);
    counter!(REJECTED, "metric" => metric.to_owned()).increment(done.fates.rejected);
    for (fate, count) in done.by_fate() {
        counter!(EVENTS, "metric" => metric.to_owned(), "fate" => fate).increment(count);
    }
}

/// Counts what a scan of a table met, and wrote.
pub(crate) fn scanned(source: &str, tally: &Tally) {
    let fates = [
        ("summarised", tally.events),
        ("expired", tally.expired),
        ("rejected", tally.rejected),
        ("updated", tally.updated),
    ];
    for (fate, count) in fates {
        counter!(TABLE_ROWS, "source" => source.to_owned(), "fate" => fate).increment(count);
    }
}

/// Counts a run that failed because something did not add up.
pub(crate) fn violated(metric: &str) {
    counter!(VIOLATIONS, "metric" => metric.to_owned()).increment(1);
}

/// Counts what was done for the archive of a source.
pub(crate) fn cared(source: &str, Cared { merged, written, let_go, removed }: Cared) {
    for (action, count) in [("merged", merged), ("written", written), ("expired", let_go), ("removed", removed)] {
        counter!(FILES, "source" => source.to_owned(), "action" => action).increment(count);
    }
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
