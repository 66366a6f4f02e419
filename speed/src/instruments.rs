//! What the speed layer tells of itself, by the `metrics` crate.

use std::time::Duration;

use lamina_core::{Counts, Micros, Offset, Partition};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::views::Fates;

const RECORDS: &str = "lamina_speed_records_total";
const EVENTS: &str = "lamina_speed_events_total";
const VIOLATIONS: &str = "lamina_speed_conservation_violations_total";
const FLUSH: &str = "lamina_speed_flush_seconds";
const SEAL: &str = "lamina_speed_seal_seconds";
const POSITION: &str = "lamina_speed_position";
const VISIBLE: &str = "lamina_speed_event_to_visible_seconds";
const TAKEOVERS: &str = "lamina_speed_takeovers_total";
const FENCED: &str = "lamina_speed_fenced_total";
const BUFFERED: &str = "lamina_speed_buffered_bytes";
const REJECTED: &str = "lamina_speed_rejected_total";
const SEAL_DELAYED: &str = "lamina_speed_seal_delayed_total";
const LOST: &str = "lamina_speed_lost_offsets_total";
const HEADROOM: &str = "lamina_speed_ttl_headroom_seconds";
const TOUCHED: &str = "lamina_speed_touched_epochs_total";
const REFUSED: &str = "lamina_speed_topic_refused";
const CUT_OFF: &str = "lamina_speed_cut_off_total";
const REPAIRED: &str = "lamina_speed_repaired_epochs_total";

pub(crate) fn describe() {
    describe_counter!(
        RECORDS,
        Unit::Count,
        "Offsets passed, by what became of them (accepted, dead, duplicate, absent)"
    );
    describe_counter!(
        EVENTS,
        Unit::Count,
        "Accepted events by metric and fate (folded, filtered, dead_lettered); those of an open epoch again after a takeover"
    );
    describe_counter!(
        VIOLATIONS,
        Unit::Count,
        "Epochs that were not sealed because their offsets or events did not add up; 0 is right"
    );
    describe_histogram!(FLUSH, Unit::Seconds, "Time that a flush took: encoding, dead letters, chunks, mark");
    describe_histogram!(SEAL, Unit::Seconds, "Time that a successful seal took, from its flush to the ledger");
    describe_gauge!(POSITION, "Next offset that readers do not see yet, by source and partition");
    describe_histogram!(
        VISIBLE,
        Unit::Seconds,
        "From the append of a record to the moment at which any reader sees it: of the oldest record of each flush, when its mark was acknowledged"
    );
    describe_counter!(TAKEOVERS, Unit::Count, "Partitions taken over");
    describe_counter!(FENCED, Unit::Count, "Partitions lost to another worker by the ledger");
    describe_gauge!(BUFFERED, Unit::Bytes, "Memory of a partition: open epoch, ids, and records that wait");
    describe_counter!(REJECTED, Unit::Count, "Events that a metric's expressions rejected");
    describe_counter!(SEAL_DELAYED, Unit::Count, "Seals that had to wait for the archive, the log or the store");
    describe_counter!(LOST, Unit::Count, "Offsets that the log had lost before they could be read");
    describe_gauge!(REFUSED, Unit::Count, "1 while a topic is not consumed because it is compacted or otherwise unfit");
    describe_counter!(CUT_OFF, Unit::Count, "Takeovers refused because the log is not the one that was read");
    describe_gauge!(
        HEADROOM,
        Unit::Seconds,
        "How long everything of a partition that batch has not covered is still sure to live; negative: answers are incomplete"
    );
    describe_counter!(
        TOUCHED,
        Unit::Count,
        "Epochs whose chunks were written again to live on, since batch had not covered them for half of their life"
    );
    describe_counter!(REPAIRED, Unit::Count, "Sealed epochs rebuilt from their archive files");
}

/// Whether a topic is refused now.
pub(crate) fn refused(topic: &str, refused: bool) {
    gauge!(REFUSED, "topic" => topic.to_owned()).set(if refused { 1.0 } else { 0.0 });
}

/// Counts what became of events in one metric.
pub(crate) fn fates(fates: &Fates) {
    let counts =
        [("folded", fates.folded), ("filtered", fates.filtered), ("dead_lettered", fates.rejected.len() as u64)];
    for (fate, count) in counts {
        counter!(EVENTS, "metric" => fates.metric.clone(), "fate" => fate).increment(count);
    }
}

/// The labels of one partition's instruments.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    source: String,
    partition: String,
}

impl Instruments {
    pub(crate) fn new(source: &str, partition: Partition) -> Self {
        Self { source: source.to_owned(), partition: partition.to_string() }
    }

    /// Counts what was folded between two states of an epoch's counts.
    pub(crate) fn records(&self, before: Counts, after: Counts) {
        let outcomes = [
            ("accepted", before.accepted, after.accepted),
            ("dead", before.dead, after.dead),
            ("duplicate", before.duplicates, after.duplicates),
            ("absent", before.absent, after.absent),
        ];
        for (outcome, before, after) in outcomes.into_iter().filter(|(_, before, after)| before != after) {
            counter!(RECORDS, "source" => self.source.clone(), "outcome" => outcome).increment(after - before);
        }
    }

    pub(crate) fn flushed(&self, took: Duration, position: Offset, visible: Option<Micros>) {
        histogram!(FLUSH, "source" => self.source.clone()).record(took);
        gauge!(POSITION, "source" => self.source.clone(), "partition" => self.partition.clone()).set(position as f64);
        if let Some(visible) = visible {
            histogram!(VISIBLE, "source" => self.source.clone()).record(visible.max(0) as f64 / 1e6);
        }
    }

    pub(crate) fn sealed(&self, took: Duration) {
        histogram!(SEAL, "source" => self.source.clone()).record(took);
    }

    pub(crate) fn buffered(&self, bytes: usize) {
        gauge!(BUFFERED, "source" => self.source.clone(), "partition" => self.partition.clone()).set(bytes as f64);
    }

    pub(crate) fn taken_over(&self) {
        self.count(TAKEOVERS, 1);
    }

    pub(crate) fn fenced(&self) {
        self.count(FENCED, 1);
    }

    pub(crate) fn cut_off(&self) {
        self.count(CUT_OFF, 1);
    }

    pub(crate) fn rejected(&self, events: u64) {
        self.count(REJECTED, events);
    }

    pub(crate) fn violated(&self) {
        self.count(VIOLATIONS, 1);
    }

    pub(crate) fn seal_delayed(&self) {
        self.count(SEAL_DELAYED, 1);
    }

    pub(crate) fn lost(&self, offsets: u64) {
        self.count(LOST, offsets);
    }

    pub(crate) fn headroom(&self, left: Micros) {
        let labels = [("source", self.source.clone()), ("partition", self.partition.clone())];
        gauge!(HEADROOM, &labels).set(left as f64 / 1e6);
    }

    pub(crate) fn touched(&self, epochs: u64) {
        self.count(TOUCHED, epochs);
    }

    pub(crate) fn repaired(&self) {
        self.count(REPAIRED, 1);
    }

    fn count(&self, name: &'static str, by: u64) {
        if by > 0 {
            counter!(name, "source" => self.source.clone()).increment(by);
        }
    }
}
