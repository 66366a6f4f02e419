//! Archive files: fetched whole, checked against the ledger before anything is parsed, then read column by column.
//!
//! A file is parsed from the very bytes that were checked. Reading Parquet piecewise from the store would fetch it twice,
//! and a truncated file can make the decoder panic.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{AsArray, BooleanArray, PrimitiveArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::{TimestampMicrosecondType, UInt8Type, UInt64Type},
    error::ArrowError,
};
use bytes::Bytes;
use lamina_core::{Counts, Micros, Offset};
use lamina_metric::{Metric, Source, archive};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};

use crate::{BatchError, plan::File};

/// Columns that are read of every file besides those that the metric names.
const CURRENT: [&str; 6] = ["_partition", "_offset", "_epoch", "_outcome", "_time", "_order"];
/// Columns that are read of a file which was written under another definition of its source.
const DECODED_AGAIN: [&str; 5] = ["_partition", "_offset", "_epoch", "_outcome", "_payload"];

/// A file whose bytes are what the ledger says.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) file: File,
    pub(crate) bytes: Bytes,
    /// Only events of this time are folded; `None` is all.
    window: Option<Range<Micros>>,
}

/// Fetches a file, of which events of `window` are folded, and checks its size and checksum.
pub(crate) async fn fetch(
    store: &Arc<dyn ObjectStore>,
    file: File,
    window: Option<Range<Micros>>,
) -> Result<Fetched, BatchError> {
    let path = &file.archive.path;
    let unreadable = |cause| BatchError::Unreadable { path: path.clone(), cause };
    let at = Path::parse(path).map_err(|cause| unreadable(cause.into()))?;
    let bytes = store.get(&at).await.map_err(unreadable)?.bytes().await.map_err(unreadable)?;
    let differs = |what, expected, found| BatchError::Mismatch { path: path.clone(), what, expected, found };
    let size = bytes.len() as u64;
    if size != file.archive.bytes {
        return Err(differs("bytes", file.archive.bytes, size));
    }
    let checksum = crc32fast::hash(&bytes);
    if checksum != file.archive.checksum {
        return Err(differs("CRC-32", file.archive.checksum.into(), checksum.into()));
    }
    Ok(Fetched { file, bytes, window })
}

/// Reads a file's accepted events, batch by batch, and proves at the end that the rows are those of the ledger.
pub(crate) struct Events {
    source: Arc<Source>,
    path: String,
    window: Option<Range<Micros>>,
    /// Whether the file holds the columns of the source as it is defined now; else its payloads are decoded again.
    current: bool,
    expected: Counts,
    found: Counts,
    reader: ParquetRecordBatchReader,
}

impl Events {
    /// `together` is the number of rows that are decoded at once.
    pub(crate) fn open(metric: &Metric, fetched: Fetched, together: usize) -> Result<Self, BatchError> {
        let Fetched { file, bytes, window } = fetched;
        let path = file.archive.path;
        let expected = file.archive.counts;
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|cause| BatchError::undecodable(&path, cause))?;
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        if rows != expected.records() {
            return Err(BatchError::Mismatch { path, what: "rows", expected: expected.records(), found: rows });
        }
        let current = archive::is_current(&metric.source, builder.schema());
        let wanted: Vec<&str> = if current {
            CURRENT.into_iter().chain(metric.columns().iter().map(String::as_str)).collect()
        } else {
            DECODED_AGAIN.to_vec()
        };
        // By root: a column's name may hold dots.
        let fields = builder.schema().fields().iter().enumerate();
        let roots: Vec<usize> =
            fields.filter(|(_, field)| wanted.contains(&field.name().as_str())).map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder.with_projection(mask).with_batch_size(together).build();
        let reader = reader.map_err(|cause| BatchError::undecodable(&path, cause))?;
        let source = Arc::clone(&metric.source);
        Ok(Self { source, path, window, current, expected, found: Counts::default(), reader })
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The next accepted events, with the starts of the epochs that they are of; `None` at the end, once all rows are
    /// accounted for.
    pub(crate) fn next(&mut self) -> Result<Option<(RecordBatch, Starts)>, BatchError> {
        let Some(rows) = self.reader.next() else {
            self.conserved()?;
            return Ok(None);
        };
        let events = rows.and_then(|rows| {
            let starts = Starts::of(&rows)?;
            Ok((self.accepted(&rows).and_then(|events| self.within_window(events))?, starts))
        });
        events.map(Some).map_err(|cause| BatchError::undecodable(&self.path, cause))
    }

    fn within_window(&self, events: RecordBatch) -> Result<RecordBatch, ArrowError> {
        let Some(window) = &self.window else { return Ok(events) };
        let times = events.column_by_name("_time").and_then(|column| column.as_primitive_opt());
        let times: &PrimitiveArray<TimestampMicrosecondType> =
            times.ok_or_else(|| ArrowError::SchemaError("column _time is missing".to_owned()))?;
        let within: BooleanArray = times.values().iter().map(|time| Some(window.contains(time))).collect();
        filter_record_batch(&events, &within)
    }

    /// Counts what became of the rows and keeps the accepted ones, of a current file with the columns that were read.
    fn accepted(&mut self, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let outcomes = rows.column_by_name("_outcome").and_then(|column| column.as_primitive_opt::<UInt8Type>());
        let outcomes = outcomes.ok_or_else(|| ArrowError::SchemaError("column _outcome is missing".to_owned()))?;
        for outcome in outcomes.values() {
            match *outcome {
                archive::ACCEPTED => self.found.accepted += 1,
                archive::DUPLICATE => self.found.duplicates += 1,
                archive::ERASED => self.found.erased += 1,
                _ => self.found.dead += 1,
            }
        }
        if !self.current {
            return archive::accepted_events(&self.source, rows);
        }
        let accepted: BooleanArray = outcomes.iter().map(|outcome| Some(outcome == Some(archive::ACCEPTED))).collect();
        filter_record_batch(rows, &accepted)
    }

    fn conserved(&self) -> Result<(), BatchError> {
        let (expected, found) = (&self.expected, &self.found);
        let pairs = [
            ("accepted rows", expected.accepted, found.accepted),
            ("duplicate rows", expected.duplicates, found.duplicates),
            ("undecodable rows", expected.dead, found.dead),
            ("erased rows", expected.erased, found.erased),
        ];
        match pairs.into_iter().find(|(_, expected, found)| expected != found) {
            Some((what, expected, found)) => {
                Err(BatchError::Mismatch { path: self.path.clone(), what, expected, found })
            }
            None => Ok(()),
        }
    }
}

/// The epochs that some rows are of, by their starts. An epoch goes on to where the next one starts, so that an offset says
/// which it is of.
pub(crate) struct Starts(Vec<Offset>);

impl Starts {
    fn of(rows: &RecordBatch) -> Result<Self, ArrowError> {
        let epochs = rows.column_by_name("_epoch").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let epochs = epochs.ok_or_else(|| ArrowError::SchemaError("column _epoch is missing".to_owned()))?;
        let mut starts = epochs.values().to_vec();
        starts.dedup();
        starts.sort_unstable();
        starts.dedup();
        Ok(Self(starts))
    }

    /// The start of the epoch of each of these offsets.
    pub(crate) fn of_offsets<'a>(&'a self, offsets: &'a [Offset]) -> impl Iterator<Item = Offset> + 'a {
        offsets.iter().map(|offset| {
            let at = self.0.partition_point(|start| start <= offset);
            self.0.get(at.saturating_sub(1)).copied().unwrap_or(0)
        })
    }
}
