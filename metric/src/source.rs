//! A source, compiled: records in, columns out.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, NullArray, RecordBatch, StringArray, TimestampMicrosecondArray,
        UInt32Array, UInt64Array, new_null_array,
    },
    compute::filter_record_batch,
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, SchemaRef, TimeUnit as ArrowUnit,
        TimestampMicrosecondType,
    },
};
use bytes::Bytes;
use chrono_tz::Tz;
use lamina_core::{Micros, Offset, Partition};

use crate::{
    decode::{Decoded, Decoder, IngestRecord, Outcome, Scratch, payloads, unit_micros},
    definition::{SourceDefinition, TimeUnit},
    expression::Expression,
    table::SourceTable,
    text::to_text,
    time::{EARLIEST, LATEST, floor_seconds, midnight, parse_timestamp},
};

/// A compiled source.
#[derive(Debug)]
pub struct Source {
    pub name: String,
    /// Empty of a table.
    pub topic: String,
    /// The table that it is, if it is one: then it has no topic.
    pub table: Option<SourceTable>,
    pub definition: SourceDefinition,
    /// How long an id is remembered, by append time.
    pub dedup_window: Micros,
    pub(crate) schema: SchemaRef,
    pub(crate) parts: Parts,
}

/// What decoding needs.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) decoder: Decoder,
    /// In an order in which they can be computed.
    pub(crate) derived: Vec<Derived>,
    /// Fields, then derived columns in the order of `derived`.
    pub(crate) working: SchemaRef,
    pub(crate) time: Expression,
    pub(crate) id: Option<Expression>,
    /// Index into `working`.
    pub(crate) order: Option<usize>,
    pub(crate) zone: Option<Tz>,
}

/// A derived column.
#[derive(Debug)]
pub(crate) struct Derived {
    pub(crate) name: String,
    pub(crate) expression: Expression,
    /// The columns that it was planned over: a prefix of the working columns.
    pub(crate) reads: SchemaRef,
}

/// Rows that turned out dead after their fields were read.
pub(crate) type Reasons = Vec<Option<String>>;

impl Source {
    /// Columns of decoded events, in this order: `_partition` UInt32, `_offset` UInt64, `_time` Timestamp(µs) (event time,
    /// UTC), `_id` Utf8 (null where the source or the event has none), `_order` (type of the order field; Null if none),
    /// then the declared fields (dotted names as they are), then the derived columns.
    pub fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    /// Decodes log records, one outcome per record. Never fails as a whole.
    pub fn decode(&self, partition: Partition, records: &[(Offset, &[u8])]) -> Decoded {
        let mut columns = self.parts.decoder.columns(records.len());
        let mut outcomes = Vec::with_capacity(records.len());
        let mut read = Vec::with_capacity(records.len());
        let mut scratch = Scratch::default();
        for (at, (_, record)) in records.iter().enumerate() {
            outcomes.push(match self.parts.decoder.read(record, &mut scratch) {
                Ok(()) => {
                    columns.push(&scratch.cells);
                    read.push(at);
                    Outcome::Accepted
                }
                Err(why) => Outcome::Dead(why),
            });
        }
        let offsets: UInt64Array = read.iter().map(|at| records[*at].0).collect();
        let mut reasons = vec![None; read.len()];
        let events = self.complete(partition, offsets, columns.finish(), &mut reasons);
        for (at, reason) in read.into_iter().zip(reasons) {
            if let Some(reason) = reason {
                outcomes[at] = Outcome::Dead(reason);
            }
        }
        Decoded { events, outcomes }
    }

    /// Derived columns, event time and id over the declared fields; rows that fail are left out.
    pub(crate) fn complete(
        &self,
        partition: Partition,
        offsets: UInt64Array,
        fields: Vec<ArrayRef>,
        reasons: &mut Reasons,
    ) -> RecordBatch {
        let mut working = fields;
        for derived in &self.parts.derived {
            let seen = working.iter().take(derived.reads.fields().len()).cloned().collect();
            let column = match RecordBatch::try_new(SchemaRef::clone(&derived.reads), seen) {
                Ok(batch) => evaluate(&derived.expression, &batch, &derived.name, reasons),
                Err(error) => fail_all(derived.expression.data_type(), reasons, &error.to_string()),
            };
            working.push(column);
        }
        match self.assemble(partition, offsets, working, reasons) {
            Ok(events) => events,
            Err(error) => {
                fail_all(&DataType::Null, reasons, &error.to_string());
                RecordBatch::new_empty(self.schema())
            }
        }
    }

    fn assemble(
        &self,
        partition: Partition,
        offsets: UInt64Array,
        working: Vec<ArrayRef>,
        reasons: &mut Reasons,
    ) -> Result<RecordBatch, arrow::error::ArrowError> {
        let rows = offsets.len();
        let batch = RecordBatch::try_new(SchemaRef::clone(&self.parts.working), working)?;
        let times = evaluate(&self.parts.time, &batch, "time", reasons);
        let times = self.event_times(&times, reasons);
        let id: ArrayRef = match &self.parts.id {
            Some(id) => Arc::new(to_text(&evaluate(id, &batch, "id", reasons))?),
            None => Arc::new(StringArray::new_null(rows)),
        };
        let order = match self.parts.order {
            Some(at) => Arc::clone(batch.column(at)),
            None => Arc::new(NullArray::new(rows)),
        };
        let partitions = UInt32Array::from_value(partition, rows);
        let mut columns: Vec<ArrayRef> = vec![Arc::new(partitions), Arc::new(offsets), Arc::new(times), id, order];
        for field in self.schema.fields().iter().skip(columns.len()) {
            columns.push(Arc::clone(batch.column(batch.schema_ref().index_of(field.name())?)));
        }
        let events = RecordBatch::try_new(self.schema(), columns)?;
        if reasons.iter().all(Option::is_none) {
            return Ok(events);
        }
        let alive: BooleanArray = reasons.iter().map(|reason| Some(reason.is_none())).collect();
        filter_record_batch(&events, &alive)
    }

    /// Event times in microseconds; 0 in rows that are dead.
    fn event_times(&self, given: &ArrayRef, reasons: &mut Reasons) -> TimestampMicrosecondArray {
        let unit = self.definition.time_unit;
        let times = reasons.iter_mut().enumerate().map(|(row, reason)| {
            if reason.is_some() {
                return 0;
            }
            match event_time(given, row, unit, self.parts.zone) {
                Ok(at) => at,
                Err(why) => {
                    *reason = Some(format!("time ({}): {why}", self.definition.time));
                    0
                }
            }
        });
        TimestampMicrosecondArray::from_iter_values(times)
    }

    /// Splits a request body or file into log records, each checked by decoding.
    ///
    /// # Errors
    /// If the body as a whole is not of the source's format.
    pub fn split(&self, body: &[u8]) -> Result<Vec<Result<IngestRecord, String>>, String> {
        let payloads = payloads(&self.definition, body)?;
        let readable: Vec<(Offset, &[u8])> = (0..).zip(payloads.iter().flatten().map(Vec::as_slice)).collect();
        let Decoded { events, outcomes } = self.decode(0, &readable);
        let mut ids = events.column_by_name("_id").and_then(|ids| ids.as_string_opt::<i32>()).into_iter().flatten();
        let mut outcomes = outcomes.into_iter();
        let keys: Vec<Result<Option<Bytes>, String>> = payloads
            .iter()
            .map(|payload| {
                payload.as_ref().map_err(Clone::clone)?;
                match outcomes.next() {
                    Some(Outcome::Accepted) => Ok(ids.next().flatten().map(|id| Bytes::copy_from_slice(id.as_bytes()))),
                    Some(Outcome::Dead(why)) => Err(why),
                    None => Err("the record was not decoded".to_owned()),
                }
            })
            .collect();
        let records = keys
            .into_iter()
            .zip(payloads)
            .map(|(key, payload)| Ok(IngestRecord { key: key?, payload: payload?.into() }));
        Ok(records.collect())
    }
}

fn evaluate(expression: &Expression, batch: &RecordBatch, name: &str, reasons: &mut Reasons) -> ArrayRef {
    let evaluated = expression.evaluate(batch);
    for (row, why) in evaluated.failed {
        reasons[row].get_or_insert_with(|| format!("{name}: {why}"));
    }
    evaluated.array
}

fn fail_all(kind: &DataType, reasons: &mut Reasons, why: &str) -> ArrayRef {
    for reason in reasons.iter_mut() {
        reason.get_or_insert_with(|| why.to_owned());
    }
    new_null_array(kind, reasons.len())
}

/// The event time in one row.
fn event_time(given: &ArrayRef, row: usize, unit: Option<TimeUnit>, zone: Option<Tz>) -> Result<Micros, String> {
    if given.is_null(row) {
        return Err("the event time is missing".to_owned());
    }
    let (at, shown) = match given.data_type() {
        DataType::Timestamp(ArrowUnit::Microsecond, _) => {
            let at = given.as_primitive::<TimestampMicrosecondType>().value(row);
            (Some(at), at.to_string())
        }
        DataType::Utf8 => {
            let text = given.as_string::<i32>().value(row);
            (parse_timestamp(text, zone), format!("{text:.60}"))
        }
        DataType::Date32 => {
            let day = given.as_primitive::<Date32Type>().value(row);
            (midnight(day, zone), day.to_string())
        }
        DataType::Int64 => {
            let number = given.as_primitive::<Int64Type>().value(row);
            (unit.and_then(|unit| whole_micros(number, unit)), number.to_string())
        }
        DataType::Decimal128(..) => {
            let text = given.as_primitive::<Decimal128Type>().value_as_string(row);
            (unit.and_then(|unit| unit_micros(&text, unit)), text)
        }
        DataType::Float64 => {
            let number = given.as_primitive::<Float64Type>().value(row);
            (unit.and_then(|unit| float_micros(number, unit)), number.to_string())
        }
        other => (None, other.to_string()),
    };
    match at {
        Some(at) if (EARLIEST..=LATEST).contains(&at) => Ok(at),
        Some(_) => Err(format!("{shown} is outside the years 1 to 9999")),
        None => Err(format!("{shown} is not a time; a time looks like 2015-09-12T00:46:58.771Z")),
    }
}

fn whole_micros(number: i64, unit: TimeUnit) -> Option<Micros> {
    match unit {
        TimeUnit::Seconds => number.checked_mul(1_000_000),
        TimeUnit::Millis => number.checked_mul(1_000),
        TimeUnit::Micros => Some(number),
        TimeUnit::Nanos => Some(number.div_euclid(1_000)),
    }
}

fn float_micros(number: f64, unit: TimeUnit) -> Option<Micros> {
    let per_unit = match unit {
        TimeUnit::Seconds => 1e6,
        TimeUnit::Millis => 1e3,
        TimeUnit::Micros => 1.0,
        TimeUnit::Nanos => 1e-3,
    };
    floor_seconds(number, per_unit)
}
