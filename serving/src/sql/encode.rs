//! Results as their clients take them: JSON, NDJSON, CSV or an Arrow stream.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    csv,
    datatypes::{Field, Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::StreamWriter,
    json::{
        WriterBuilder,
        writer::{JsonArray, LineDelimited},
    },
};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{problem::Problem, query::format::Format};

/// Writes batches of one schema.
pub(super) struct Encoder {
    format: Format,
    schema: SchemaRef,
    /// Of Arrow.
    stream: Option<StreamWriter<Vec<u8>>>,
    rows: usize,
}

impl Encoder {
    /// With the bytes that come before the first row.
    pub(super) fn begin(format: Format, id: &str, schema: &SchemaRef) -> Result<(Self, Bytes), Problem> {
        let schema = named(schema);
        let mut encoder = Self { format, schema: Arc::clone(&schema), stream: None, rows: 0 };
        let head = match format {
            Format::Ndjson => Bytes::new(),
            Format::Json => {
                let column = |field: &Arc<Field>| json!({"name": field.name(), "type": field.data_type().to_string()});
                let columns: Vec<Value> = schema.fields().iter().map(column).collect();
                format!("{{\"id\":{},\"columns\":{},\"rows\":[", json!(id), json!(columns)).into()
            }
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(Vec::new());
                writer.write(&RecordBatch::new_empty(Arc::clone(&schema))).map_err(failed)?;
                writer.into_inner().into()
            }
            Format::Arrow => {
                let mut stream = StreamWriter::try_new(Vec::new(), &schema).map_err(failed)?;
                let head = std::mem::take(stream.get_mut());
                encoder.stream = Some(stream);
                head.into()
            }
        };
        Ok((encoder, head))
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes, Problem> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let (schema, columns) = (Arc::clone(&self.schema), batch.columns().to_vec());
        let batch = RecordBatch::try_new_with_options(schema, columns, &options).map_err(failed)?;
        let first = self.rows == 0;
        self.rows += batch.num_rows();
        if batch.num_rows() == 0 {
            return Ok(Bytes::new());
        }
        match self.format {
            Format::Json => {
                let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
                writer.write(&batch).and_then(|()| writer.finish()).map_err(failed)?;
                let mut array = writer.into_inner();
                // The brackets are those of the whole result.
                array.pop();
                if let Some(bracket) = array.first_mut() {
                    *bracket = if first { b' ' } else { b',' };
                }
                Ok(array.into())
            }
            Format::Ndjson => {
                let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
                writer.write(&batch).and_then(|()| writer.finish()).map_err(failed)?;
                Ok(writer.into_inner().into())
            }
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(false).build(Vec::new());
                writer.write(&batch).map_err(failed)?;
                Ok(writer.into_inner().into())
            }
            Format::Arrow => {
                let Some(stream) = &mut self.stream else { return Ok(Bytes::new()) };
                stream.write(&batch).map_err(failed)?;
                Ok(std::mem::take(stream.get_mut()).into())
            }
        }
    }

    /// The bytes after the last row.
    pub(super) fn end(mut self, meta: &Value) -> Result<Bytes, Problem> {
        Ok(match self.format {
            Format::Json => format!("],\"row_count\":{},\"meta\":{meta}}}", self.rows).into(),
            Format::Ndjson => format!("{}\n", json!({"$end": {"rows": self.rows, "meta": meta}})).into(),
            Format::Csv => Bytes::new(),
            Format::Arrow => {
                let Some(stream) = &mut self.stream else { return Ok(Bytes::new()) };
                stream.finish().map_err(failed)?;
                std::mem::take(stream.get_mut()).into()
            }
        })
    }
}

/// The same schema with a name of its own for each column: JSON objects and data frames need it.
fn named(schema: &Schema) -> SchemaRef {
    let mut known: HashSet<String> = HashSet::new();
    let field = |field: &Arc<Field>| {
        let mut name = field.name().clone();
        let mut number = 2;
        while !known.insert(name.clone()) {
            name = format!("{}_{number}", field.name());
            number += 1;
        }
        field.as_ref().clone().with_name(name)
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn failed(error: ArrowError) -> Problem {
    let why = format!("the result cannot be written so: {error}");
    Problem::new(axum::http::StatusCode::UNPROCESSABLE_ENTITY, "not_representable", why)
}
