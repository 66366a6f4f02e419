//! The scan of a table: ranges from one queue, page by page; what a row becomes is decided and written as it is read.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use lamina_core::{
    Micros,
    tables::{CellChange, Page, Reading, Table, TableRow, TokenRange, Value},
};
use lamina_metric::{Judged, NewValue, Source};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc::Sender;

use crate::{BatchError, Meter};

/// Reasons that are listed.
const EXAMPLES: usize = 20;

/// What a scan met, and what it made of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) ranges: u64,
    pub(crate) rows: u64,
    pub(crate) events: u64,
    pub(crate) expired: u64,
    /// Rows with a new value in some column.
    pub(crate) updated: u64,
    pub(crate) rejected: u64,
    pub(crate) not_updated: u64,
    /// Why some rows are rejected or not updated.
    pub(crate) reasons: Vec<String>,
    /// Largest event time.
    pub(crate) through: Option<Micros>,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.ranges += other.ranges;
        self.rows += other.rows;
        self.events += other.events;
        self.expired += other.expired;
        self.updated += other.updated;
        self.rejected += other.rejected;
        self.not_updated += other.not_updated;
        self.reasons.extend(other.reasons);
        self.reasons.truncate(EXAMPLES);
        self.through = self.through.max(other.through);
    }

    /// Every row is an event, or expires, or is rejected, and every range was read.
    pub(super) fn check(&self, ranges: u64) -> Result<(), BatchError> {
        let found = self.events + self.expired + self.rejected;
        if self.ranges != ranges {
            return Err(BatchError::Incomplete { expected: ranges, found: self.ranges });
        }
        if found != self.rows {
            return Err(BatchError::NotFolded { expected: self.rows, found });
        }
        Ok(())
    }

    pub(crate) fn to_json(&self, written: bool) -> Json {
        json!({"ranges": self.ranges, "rows": self.rows, "summarised": self.events, "expired": self.expired,
            "updated": self.updated, "rejected": self.rejected, "not_updated": self.not_updated,
            "reasons": self.reasons, "written": written})
    }
}

/// What all scans of a table share.
pub(super) struct Scan {
    pub(super) source: Arc<Source>,
    pub(super) table: Arc<dyn Table>,
    pub(super) reading: Reading,
    /// Those that nobody has taken yet.
    pub(super) ranges: Mutex<VecDeque<TokenRange>>,
    /// When it began: what was written later stays as it is.
    pub(super) began: Micros,
    /// Whether rows are updated and deleted; else it is only counted.
    pub(super) writes: bool,
    pub(super) meter: Arc<Meter>,
}

impl Scan {
    /// Scans ranges until none is left, and gives the events to every fold.
    pub(super) async fn run(self: Arc<Self>, folds: Vec<Sender<RecordBatch>>) -> Result<Tally, BatchError> {
        let mut tally = Tally::default();
        while let Some(range) = self.next_range() {
            let mut from = None;
            loop {
                let Page { rows, next } = self.table.page(range, from).await?;
                let judged = self.judge(&rows)?;
                let part = self.count(&rows, &judged);
                self.meter.advance(0, part.rows);
                tally.add(part);
                if self.writes {
                    self.write(&rows, &judged).await?;
                }
                for fold in &folds {
                    // A fold that is gone has failed, and says why itself.
                    if judged.events.num_rows() > 0 && fold.send(judged.events.clone()).await.is_err() {
                        return Ok(tally);
                    }
                }
                from = next;
                if from.is_none() {
                    break;
                }
            }
            tally.ranges += 1;
            self.meter.advance(1, 0);
        }
        Ok(tally)
    }

    fn next_range(&self) -> Option<TokenRange> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn judge(&self, rows: &[TableRow]) -> Result<Judged, BatchError> {
        let numbered: Vec<(u64, &[Value])> = rows.iter().map(|row| (row.key.number(), row.values.as_slice())).collect();
        let judged = self.source.judge(&numbered, self.began);
        let judged = judged.map_err(|cause| BatchError::undecodable(&self.reading.table.to_string(), cause))?;
        judged.ok_or_else(|| BatchError::Table {
            source_name: self.source.name.clone(),
            why: "it is not a table".to_owned(),
        })
    }

    fn count(&self, rows: &[TableRow], judged: &Judged) -> Tally {
        let Judged { events, expired, updates, rejected, not_updated } = judged;
        let mut updated: Vec<usize> = updates.iter().map(|new| new.row).collect();
        updated.sort_unstable();
        updated.dedup();
        let times =
            events.column_by_name("_time").and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        let reasons = rejected.iter().chain(not_updated).take(EXAMPLES).map(|(_, why)| why.clone()).collect();
        Tally {
            ranges: 0,
            rows: rows.len() as u64,
            events: events.num_rows() as u64,
            expired: expired.len() as u64,
            updated: updated.len() as u64,
            rejected: rejected.len() as u64,
            not_updated: not_updated.len() as u64,
            reasons,
            through: times.and_then(arrow::compute::max),
        }
    }

    async fn write(&self, rows: &[TableRow], judged: &Judged) -> Result<(), BatchError> {
        let changes: Vec<CellChange> = judged.updates.iter().map(|new| self.change(&rows[new.row], new)).collect();
        if !changes.is_empty() {
            self.table.update(&changes).await?;
        }
        let gone: Vec<_> = judged.expired.iter().map(|row| rows[*row].key.clone()).collect();
        if !gone.is_empty() {
            self.table.delete(&gone, self.began).await?;
        }
        Ok(())
    }

    /// A cell is written just after what it replaces, so that whatever else was or is written by anybody stays. Where
    /// nothing stands it may have been removed, nobody knows when: then the scan's beginning is later.
    fn change(&self, row: &TableRow, new: &NewValue) -> CellChange {
        let written = self.reading.written.iter().position(|at| *at == new.column);
        let before = written.and_then(|at| row.written_at.get(at).copied().flatten());
        CellChange {
            key: row.key.clone(),
            column: new.column,
            value: new.value.clone(),
            at: before.map_or(self.began, |before| before.saturating_add(1)),
            ttl: row.ttl,
        }
    }
}
