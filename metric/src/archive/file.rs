//! How the archive's rows are written as Parquet, and read again.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use bytes::Bytes;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};

/// Rows of a row group: what a reader must hold at once.
const ROW_GROUP: usize = 128 * 1024;
/// Rows read at a time.
const READ_ROWS: usize = 4096;

/// A writer of rows with this schema into memory.
///
/// # Errors
/// If Parquet has no type for one of the schema's.
pub fn writer(schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        // Payloads hardly ever repeat: a dictionary of them would only cost memory.
        .set_column_dictionary_enabled(ColumnPath::from("_payload"), false)
        .set_column_dictionary_enabled(ColumnPath::from("_offset"), false)
        .build();
    ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties))
}

/// The rows of a file, in order, with the schema they were written under.
///
/// # Errors
/// If the bytes are no Parquet file; each batch, if it does not decode.
pub fn read(file: Bytes) -> Result<impl Iterator<Item = Result<RecordBatch, ArrowError>>, ParquetError> {
    let file = ParquetRecordBatchReaderBuilder::try_new(file)?;
    // The reader leaves the schema's metadata out of its batches; it says under which definition they were decoded.
    let schema = Arc::clone(file.schema());
    let rows = file.with_batch_size(READ_ROWS).build()?;
    Ok(rows.map(move |rows| rows?.with_schema(Arc::clone(&schema))))
}
