//! Log records to columns.

use arrow::array::RecordBatch;
use bytes::Bytes;

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
