//! Erasure: rows of the archive that say no more than that there was a record.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, UInt8Array},
    compute::{filter_record_batch, nullif},
    datatypes::{UInt8Type, UInt64Type},
    error::ArrowError,
};

use super::{ACCEPTED, DUPLICATE, ERASED, column, events, is_current, other_type};
use crate::{select::EventFilter, source::Source};

/// Columns that an erased row keeps: where it stood and when it came.
const KEPT: [&str; 4] = ["_partition", "_offset", "_epoch", "_appended_at"];

/// The rows whose events pass the filter, duplicates included. Rows of another definition are decoded again; those that do
/// not decode under this one pass no filter.
///
/// # Errors
/// If `rows` are not of an archive file, or the filter fails on a value.
pub fn passing(source: &Source, filter: &EventFilter, rows: &RecordBatch) -> Result<BooleanArray, ArrowError> {
    let events = events(source, rows, &[ACCEPTED, DUPLICATE])?;
    let passed = filter.mask(&events).map_err(ArrowError::ComputeError)?;
    let passed = filter_record_batch(&events, &passed)?;
    let offsets = |rows: &RecordBatch| {
        let offsets = column(rows, "_offset")?.as_primitive_opt::<UInt64Type>();
        offsets.map(|offsets| offsets.values().to_vec()).ok_or_else(|| other_type("_offset"))
    };
    let passed: HashSet<u64> = offsets(&passed)?.into_iter().collect();
    Ok(offsets(rows)?.iter().map(|offset| Some(passed.contains(offset))).collect())
}

/// The rows, with the erased ones emptied: no key, no payload, no event, no reason.
///
/// # Errors
/// If `rows` are not of an archive file.
pub fn erase(rows: &RecordBatch, erased: &BooleanArray) -> Result<RecordBatch, ArrowError> {
    let gone = |row: usize| erased.value(row);
    let empty = |(field, old): (&Arc<arrow::datatypes::Field>, &ArrayRef)| -> Result<ArrayRef, ArrowError> {
        Ok(match field.name().as_str() {
            name if KEPT.contains(&name) => Arc::clone(old),
            "_outcome" => {
                let outcomes = old.as_primitive_opt::<UInt8Type>().ok_or_else(|| other_type("_outcome"))?;
                let outcome = |(row, &outcome)| if gone(row) { ERASED } else { outcome };
                Arc::new(UInt8Array::from_iter_values(outcomes.values().iter().enumerate().map(outcome)))
            }
            "_payload" => {
                let payloads = old.as_binary_opt::<i32>().ok_or_else(|| other_type("_payload"))?;
                let payload = |(row, payload)| if gone(row) { Some(&[][..]) } else { payload };
                Arc::new(payloads.iter().enumerate().map(payload).collect::<BinaryArray>())
            }
            _ => nullif(old, erased)?,
        })
    };
    let columns = rows.schema_ref().fields().iter().zip(rows.columns()).map(empty).collect::<Result<_, _>>()?;
    RecordBatch::try_new(rows.schema(), columns)
}

/// Records that pass no filter as they do not decode: dead ones, and those that only an earlier definition decoded.
///
/// # Errors
/// If `rows` are not of an archive file.
pub fn undecodable(source: &Source, rows: &RecordBatch) -> Result<u64, ArrowError> {
    let outcomes = column(rows, "_outcome")?.as_primitive_opt::<UInt8Type>().ok_or_else(|| other_type("_outcome"))?;
    let erased = outcomes.values().iter().filter(|outcome| **outcome == ERASED).count();
    let decoded = if is_current(source, rows.schema_ref()) {
        outcomes.values().iter().filter(|outcome| [ACCEPTED, DUPLICATE].contains(outcome)).count()
    } else {
        events(source, rows, &[ACCEPTED, DUPLICATE])?.num_rows()
    };
    Ok((rows.num_rows() - erased - decoded) as u64)
}
