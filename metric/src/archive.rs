//! The archive's rows: every record of an epoch with what became of it, and the columns it was decoded into.
//!
//! The speed layer writes these rows, batch and repair read them. The bytes of each record stay in the file, so a
//! file that was written under an older definition of the source is decoded again.
//!
//! # Invariants
//! - One row per record, in offset order: accepted, dead and duplicate ones alike.
//! - [`accepted_events`] of a file gives the events that the speed layer folded, as long as the source stands unchanged.

mod erase;
mod file;

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

pub use self::{
    erase::{erase, passing, undecodable},
    file::{read, writer},
};

use crate::{Decoded, Outcome, Source};

/// Columns of [`Source::schema`] that stand first in both schemas.
const SHARED: usize = 2;
/// Key of the schema's metadata that names the definition of the source under which the events were decoded.
const DEFINITION: &str = "lamina.source";

/// The columns that every file has, whatever its source: all that is needed to decode its records again.
pub const SYSTEM: [&str; 8] =
    ["_partition", "_offset", "_epoch", "_appended_at", "_outcome", "_reason", "_key", "_payload"];

/// `_outcome` of a record that the metrics' folds saw.
pub const ACCEPTED: u8 = 0;
/// `_outcome` of a record that could not be decoded; `_reason` says why.
pub const DEAD: u8 = 1;
/// `_outcome` of a record whose id had been seen within the dedup window.
pub const DUPLICATE: u8 = 2;

/// `_outcome` of a record that was erased on request: its row has no key, payload or event any more.
pub const ERASED: u8 = 3;

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
/// A schema without metadata is judged by its columns alone: ask it of the file's schema, as Parquet readers leave the
/// metadata out of the batches.
pub fn is_current(source: &Source, schema: &Schema) -> bool {
    let definition = schema.metadata().get(DEFINITION);
    let same = definition.is_none_or(|definition| *definition == source.definition.fingerprint());
    let wanted = source.schema();
    let has = |field: &Arc<Field>| {
        schema.field_with_name(field.name()).is_ok_and(|found| found.data_type() == field.data_type())
    };
    same && wanted.fields().iter().all(has)
}

/// The events of the rows that were accepted (with the file's schema, see [`is_current`]), with exactly the columns of [`Source::schema`]. Rows that were written
/// under another definition of the source are decoded again; those that do not decode under this one are left out.
///
/// # Errors
/// If `rows` are not of an archive file.
pub fn accepted_events(source: &Source, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    events(source, rows, &[ACCEPTED])
}

/// Rows that were written under another definition of the source, with the columns of [`archive_schema`]: events are
/// decoded again, and those that do not decode under this definition are NULL; what became of each record stays.
///
/// # Errors
/// If `rows` are not of an archive file.
pub fn decoded_again(source: &Source, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let offsets = |rows: &RecordBatch| -> Result<_, ArrowError> {
        column(rows, "_offset")?.as_primitive_opt::<UInt64Type>().cloned().ok_or_else(|| other_type("_offset"))
    };
    let outcomes = column(rows, "_outcome")?.as_primitive_opt::<UInt8Type>().ok_or_else(|| other_type("_outcome"))?;
    let has_event: BooleanArray =
        outcomes.values().iter().map(|outcome| Some([ACCEPTED, DUPLICATE].contains(outcome))).collect();
    let events = decode_again(source, &filter_record_batch(rows, &has_event)?)?;
    let decoded = offsets(&events)?;
    let places: HashMap<u64, u64> = decoded.values().iter().copied().zip(0..).collect();
    let places: UInt64Array = offsets(rows)?.values().iter().map(|offset| places.get(offset).copied()).collect();
    let schema = archive_schema(source);
    let columns = schema.fields().iter().map(|field| match events.column_by_name(field.name()) {
        Some(events) if !SYSTEM.contains(&field.name().as_str()) => take(events, &places, None),
        _ => column(rows, field.name()).cloned(),
    });
    let columns = columns.collect::<Result<_, _>>()?;
    RecordBatch::try_new(schema, columns)
}

/// The events of the rows with one of these outcomes.
fn events(source: &Source, rows: &RecordBatch, wanted: &[u8]) -> Result<RecordBatch, ArrowError> {
    let outcomes = column(rows, "_outcome")?.as_primitive_opt::<UInt8Type>().ok_or_else(|| other_type("_outcome"))?;
    let wanted: BooleanArray = outcomes.values().iter().map(|outcome| Some(wanted.contains(outcome))).collect();
    let rows = filter_record_batch(rows, &wanted)?;
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

#[cfg(test)]
mod tests {
    use arrow::compute::concat_batches;
    use bytes::Bytes;

    use super::*;
    use crate::{Catalog, Versions};

    fn source(fields: &str) -> Arc<Source> {
        let text = format!(
            "[source.edits]\nformat = \"json\"\ntime = \"time\"\nid = \"id\"\norder = \"rank\"\n\
             [source.edits.fields]\ntime = \"timestamp\"\nid = \"string\"\nrank = \"int64\"\n{fields}"
        );
        let catalog = Catalog::compile(&[("t.toml".to_owned(), text)], &Versions::default()).unwrap();
        Arc::clone(&catalog.sources["edits"])
    }

    fn records() -> Vec<Record> {
        let payloads = [
            r#"{"id": "a", "time": "2024-05-01T00:00:00Z", "rank": 1, "user.name": "x", "added": 7}"#,
            "garbage",
            r#"{"id": "a", "time": "2024-05-01T00:00:01Z", "rank": 2, "user.name": "y", "added": 8}"#,
            r#"{"id": "b", "time": "2024-05-01T00:00:02Z", "rank": 3, "added": 9}"#,
        ];
        let record = |(at, payload): (usize, &&str)| Record {
            offset: 10 + 2 * at as Offset,
            appended_at: 1_000 + at as i64,
            key: (at % 2 == 0).then(|| Bytes::from_static(b"k")),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        payloads.iter().enumerate().map(record).collect()
    }

    fn decode(source: &Source, records: &[Record]) -> Decoded {
        let payloads: Vec<_> = records.iter().map(|record| (record.offset, &*record.payload)).collect();
        source.decode(3, &payloads)
    }

    const FIELDS: &str = "added = \"int64\"\n\"user.name\" = \"string\"\n[source.edits.derive]\ntwice = \"added * 2\"";

    #[test]
    fn accepted_events_of_an_archive_are_the_events_that_were_decoded() {
        let (source, records) = (source(FIELDS), records());
        let decoded = decode(&source, &records);
        let rows = archive_batch(&source, 3, 10, &records, &decoded, &[false, false, true, false]).unwrap();
        assert_eq!(rows.schema(), archive_schema(&source));
        assert_eq!(rows.num_rows(), 4, "every record is kept");
        let parts = [decoded.events.slice(0, 1), decoded.events.slice(2, 1)];
        let expected = concat_batches(&source.schema(), &parts).unwrap();
        assert_eq!(accepted_events(&source, &rows).unwrap(), expected);
    }

    #[test]
    fn rows_of_an_older_definition_are_decoded_again_even_if_their_columns_look_alike() {
        let (old, records) = (source(FIELDS), records());
        let rows = archive_batch(&old, 3, 10, &records, &decode(&old, &records), &[false; 4]).unwrap();
        for fields in [FIELDS.replace("added * 2", "added + 100"), "added = \"float64\"".to_owned()] {
            let new = source(&fields);
            assert!(!is_current(&new, rows.schema_ref()));
            let decoded = decode(&new, &records);
            assert_eq!(accepted_events(&new, &rows).unwrap(), decoded.events);
            let anew = archive_batch(&new, 3, 10, &records, &decoded, &[false; 4]).unwrap();
            assert_eq!(decoded_again(&new, &rows).unwrap(), anew);
        }
    }
}
