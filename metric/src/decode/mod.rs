//! Log records to cells to columns.
//!
//! The walk: record → raw texts of the declared fields ([`json`], [`delimited`]) → typed cells ([`cell`]) → Arrow columns
//! ([`columns`]). Derived columns, event time and id are the business of [`crate::Source`].
//!
//! # Invariants
//! - A record decodes whole or not at all: nothing is appended before every cell is known.
//! - Nothing is lost on the way: a value that its type cannot hold exactly is an error.
//! - No bytes make decoding panic.

mod cell;
mod columns;
mod delimited;
mod json;
mod number;
mod split;

use arrow::{datatypes::DataType, record_batch::RecordBatch};
use bytes::Bytes;
use chrono_tz::Tz;

pub(crate) use cell::{Cell, Kind, convert, unit_micros};
pub(crate) use columns::Columns;
pub(crate) use json::PathError;
pub(crate) use split::payloads;

use crate::definition::{FieldType, Format, SourceDefinition, TimeUnit};

/// A longer record is dead.
pub(crate) const MAX_RECORD_BYTES: usize = 1 << 20;

/// A record to append to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestRecord {
    /// The dedup id, if the source has one.
    pub key: Option<Bytes>,
    pub payload: Bytes,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    /// It does not decode: the reason names the field and what would be right.
    Dead(String),
}

/// Decoded records.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The accepted records, in order; schema of [`crate::Source::schema`].
    pub events: RecordBatch,
    /// One per record, in order.
    pub outcomes: Vec<Outcome>,
}

/// Reads records of one source into cells, one per declared field.
#[derive(Debug)]
pub(crate) struct Decoder {
    fields: Vec<(String, FieldType)>,
    shape: Shape,
    zone: Option<Tz>,
    unit: Option<TimeUnit>,
}

#[derive(Debug)]
enum Shape {
    Json(json::Paths),
    Delimited(delimited::Line),
    Text,
    /// A row of a table, which is no record: see [`crate::table`].
    Row,
}

impl Decoder {
    /// # Errors
    /// If a declared name is no path, or two of them cannot both be (JSON).
    pub(crate) fn new(definition: &SourceDefinition, zone: Option<Tz>) -> Result<Self, PathError> {
        let fields = definition.fields.0.clone();
        let names = definition.fields.names();
        let shape = match definition.format {
            Format::Json => Shape::Json(json::Paths::new(&names)?),
            Format::Csv => {
                let columns = definition.columns.clone().unwrap_or_else(|| names.clone());
                Shape::Delimited(delimited::Line::new(delimiter(definition), &columns, &names))
            }
            Format::Text => Shape::Text,
            Format::Row => Shape::Row,
        };
        Ok(Self { fields, shape, zone, unit: definition.time_unit })
    }

    pub(crate) fn columns(&self, rows: usize) -> Columns {
        Columns::new(self.fields.iter().map(|(_, kind)| *kind), rows)
    }

    /// The cells of one record, in the order of the declared fields.
    ///
    /// # Errors
    /// The reason why the record is dead.
    pub(crate) fn read<'a>(&self, record: &'a [u8], scratch: &mut Scratch<'a>) -> Result<(), String> {
        scratch.cells.clear();
        if record.len() > MAX_RECORD_BYTES {
            return Err(format!("the record has {} bytes; the limit is {MAX_RECORD_BYTES}", record.len()));
        }
        scratch.raw.clear();
        scratch.raw.resize(self.fields.len(), None);
        let kind = match &self.shape {
            Shape::Json(paths) => {
                paths.read(record, &mut scratch.raw)?;
                Kind::Json
            }
            Shape::Delimited(line) => {
                line.read(record, &mut scratch.raw)?;
                Kind::Text
            }
            Shape::Text => {
                let line = std::str::from_utf8(record).map_err(|error| format!("the line is not UTF-8: {error}"))?;
                scratch.raw.fill(Some(line.into()));
                Kind::Line
            }
            Shape::Row => return Err("the source is a table, not a log".to_owned()),
        };
        for ((name, wanted), raw) in self.fields.iter().zip(scratch.raw.drain(..)) {
            let cell = convert(raw, kind, *wanted, self.zone, self.unit);
            scratch.cells.push(cell.map_err(|why| format!("field {name}: {why}"))?);
        }
        Ok(())
    }
}

/// Buffers that are used again for each record.
#[derive(Default)]
pub(crate) struct Scratch<'a> {
    raw: Vec<Option<std::borrow::Cow<'a, str>>>,
    pub(crate) cells: Vec<Cell<'a>>,
}

pub(crate) fn delimiter(definition: &SourceDefinition) -> u8 {
    // Checked to be ASCII when the definition was compiled.
    definition.delimiter.and_then(|c| u8::try_from(c).ok()).unwrap_or(b',')
}

/// The Arrow type of a raw field.
pub(crate) fn arrow_type(kind: FieldType) -> DataType {
    columns::arrow_type(kind)
}
