//! The archive's rows: every record of an epoch with what became of it, and the columns it was decoded into.
//!
//! The speed layer writes these rows, batch and repair read them. The bytes of each record stay in the file, so a
//! file that was written under an older definition of the source is decoded again.
//!
//! # Invariants
//! - One row per record, in offset order: accepted, dead and duplicate ones alike.
//! - [`accepted_events`] of a file gives the events that the speed layer folded, as long as the source stands unchanged.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt8Array,
        UInt32Array, UInt64Array,
    },
    compute::{filter_record_batch, take},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, UInt8Type, UInt32Type, UInt64Type},
    error::ArrowError,
};
use lamina_core::{Offset, Partition, log::Record};

use crate::{Decoded, Outcome, Source};

/// Columns of [`Source::schema`] that stand first in both schemas.
const SHARED: usize = 2;
/// Key of the schema's metadata that names the definition of the source under which the events were decoded.
const DEFINITION: &str = "lamina.source";

/// `_outcome` of a record that the metrics' folds saw.
pub const ACCEPTED: u8 = 0;
/// `_outcome` of a record that could not be decoded; `_reason` says why.
pub const DEAD: u8 = 1;
/// `_outcome` of a record whose id had been seen within the dedup window.
pub const DUPLICATE: u8 = 2;

/// Schema of a source's archive files: `_partition`, `_offset`, `_epoch` (start of the epoch, constant within a file),
/// `_appended_at`, `_outcome`, `_reason`, `_key`, `_payload`, then the source's event columns, NULL for dead records.
pub fn archive_schema(source: &Source) -> SchemaRef {
    let mut fields = vec![
        Field::new("_partition", DataType::UInt32, false),
        Field::new("_offset", DataType::UInt64, false),
        Field::new("_epoch", DataType::UInt64, false),
        Field::new("_appended_at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("_outcome", DataType::UInt8, false),
        Field::new("_reason", DataType::Utf8, true),
        Field::new("_key", DataType::Binary, true),
        Field::new("_payload", DataType::Binary, false),
    ];
    let events = source.schema();
    fields.extend(events.fields().iter().skip(SHARED).map(|field| field.as_ref().clone().with_nullable(true)));
    let definition = HashMap::from([(DEFINITION.to_owned(), source.definition.fingerprint())]);
    Arc::new(Schema::new_with_metadata(fields, definition))
}

/// The archive's rows of `records`, which gave `decoded`; `duplicates` says of each record whether it is one.
///
/// # Errors
/// If `decoded` does not belong to `records`.
pub fn archive_batch(
    source: &Source,
    partition: Partition,
    epoch: Offset,
    records: &[Record],
    decoded: &Decoded,
    duplicates: &[bool],
) -> Result<RecordBatch, ArrowError> {
    let rows = records.len();
    let mut outcomes = Vec::with_capacity(rows);
    let mut reasons = Vec::with_capacity(rows);
    let mut events = Vec::with_capacity(rows);
    let mut next_event = 0;
    for (outcome, &duplicate) in decoded.outcomes.iter().zip(duplicates) {
        let (code, reason, event) = match outcome {
            Outcome::Dead(reason) => (DEAD, Some(reason.as_str()), None),
            Outcome::Accepted => {
                next_event += 1;
                (if duplicate { DUPLICATE } else { ACCEPTED }, None, Some(next_event - 1))
            }
        };
        outcomes.push(code);
        reasons.push(reason);
        events.push(event);
    }
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_value(partition, rows)),
        Arc::new(UInt64Array::from_iter_values(records.iter().map(|record| record.offset))),
        Arc::new(UInt64Array::from_value(epoch, rows)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(records.iter().map(|record| record.appended_at))),
        Arc::new(UInt8Array::from(outcomes)),
        Arc::new(StringArray::from(reasons)),
        Arc::new(BinaryArray::from_iter(records.iter().map(|record| record.key.as_deref()))),
        Arc::new(BinaryArray::from_iter_values(records.iter().map(|record| &record.payload))),
    ];
    let events = UInt64Array::from(events);
    for column in decoded.events.columns().iter().skip(SHARED) {
        columns.push(take(column, &events, None)?);
    }
    RecordBatch::try_new(archive_schema(source), columns)
}

/// Whether rows with this schema hold events as `source` decodes them now, so that columns can be read as they are.
/// A schema without metadata (as after a projection) is judged by its columns alone.
pub fn is_current(source: &Source, schema: &Schema) -> bool {
    let definition = schema.metadata().get(DEFINITION);
    let same = definition.is_none_or(|definition| *definition == source.definition.fingerprint());
    let wanted = source.schema();
    let has = |field: &Arc<Field>| {
        schema.field_with_name(field.name()).is_ok_and(|found| found.data_type() == field.data_type())
    };
    same && wanted.fields().iter().all(has)
}

/// The events of the rows that were accepted, with exactly the columns of [`Source::schema`]. Rows that were written
/// under another definition of the source are decoded again; those that do not decode under this one are left out.
///
/// # Errors
/// If `rows` are not of an archive file.
pub fn accepted_events(source: &Source, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let outcomes = column(rows, "_outcome")?.as_primitive_opt::<UInt8Type>().ok_or_else(|| other_type("_outcome"))?;
    let accepted: BooleanArray = outcomes.iter().map(|outcome| Some(outcome == Some(ACCEPTED))).collect();
    let rows = filter_record_batch(rows, &accepted)?;
    if !is_current(source, rows.schema_ref()) {
        return decode_again(source, &rows);
    }
    let schema = source.schema();
    let columns = schema.fields().iter().map(|field| column(&rows, field.name()).cloned());
    RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)
}

fn decode_again(source: &Source, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let partitions =
        column(rows, "_partition")?.as_primitive_opt::<UInt32Type>().ok_or_else(|| other_type("_partition"))?;
    let offsets = column(rows, "_offset")?.as_primitive_opt::<UInt64Type>().ok_or_else(|| other_type("_offset"))?;
    let payloads = column(rows, "_payload")?.as_binary_opt::<i32>().ok_or_else(|| other_type("_payload"))?;
    if partitions.is_empty() {
        return Ok(RecordBatch::new_empty(source.schema()));
    }
    let partition = partitions.value(0);
    if partitions.iter().any(|other| other != Some(partition)) {
        return Err(ArrowError::InvalidArgumentError("archive rows of several partitions in one batch".to_owned()));
    }
    let records: Vec<(Offset, &[u8])> =
        (0..rows.num_rows()).map(|at| (offsets.value(at), payloads.value(at))).collect();
    Ok(source.decode(partition, &records).events)
}

fn column<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    rows.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("archive rows lack the column {name}")))
}

fn other_type(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("column {name} of archive rows is of another type"))
}
