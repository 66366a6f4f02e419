//! A source, compiled: records in, columns out.

use arrow::datatypes::SchemaRef;
use lamina_core::{Micros, Offset, Partition};

use crate::{Decoded, IngestRecord, SourceDefinition};

/// A compiled source.
#[derive(Debug)]
pub struct Source {
    pub name: String,
    pub topic: String,
    pub definition: SourceDefinition,
    /// How long an id is remembered, by append time.
    pub dedup_window: Micros,
    schema: SchemaRef,
}

impl Source {
    /// Columns of decoded events, in this order: `_partition` UInt32, `_offset` UInt64, `_time` Timestamp(µs) (event time,
    /// UTC), `_id` Utf8 (null where the source or the event has none), `_order` (type of the order field; Null if none),
    /// then the declared fields (dotted names as they are), then the derived columns.
    pub fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    /// Decodes log records, one outcome per record. Never fails as a whole.
    pub fn decode(&self, _partition: Partition, _records: &[(Offset, &[u8])]) -> Decoded {
        unimplemented!()
    }

    /// Splits a request body or file into log records, each checked by decoding.
    ///
    /// # Errors
    /// If the body as a whole is not of the source's format.
    pub fn split(&self, _body: &[u8]) -> Result<Vec<Result<IngestRecord, String>>, String> {
        unimplemented!()
    }
}
