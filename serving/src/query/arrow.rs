//! An answer as an Arrow IPC stream: dimensions, `start`, aggregates. The schema's metadata holds everything else, as JSON under
//! `lamina`.
//!
//! Types depend on the query alone and never on the values: sums of integers are decimal(38, 0), which holds them all.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray,
        StringBuilder, StructBuilder, TimestampMicrosecondArray, UInt64Builder,
    },
    datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, Fields, Schema, TimeUnit},
    error::ArrowError,
    ipc::writer::StreamWriter,
};
use axum::http::StatusCode;
use lamina_metric::{Answer, AnswerType, DimensionValue, TopItem};

use crate::{
    problem::Problem,
    query::{
        encode::{Body, Frame},
        params::Fill,
        question::Column,
        table::{Point, Row},
    },
};

/// Most rows of one record batch.
const BATCH: usize = 65_536;

pub(crate) fn stream(body: &Body<'_>) -> Result<Vec<u8>, Problem> {
    let failed = |error: ArrowError| Problem::internal(&error);
    let rest = serde_json::to_string(&Frame(body, None)).map_err(|error| Problem::internal(&error))?;
    let schema = Arc::new(schema(body).with_metadata(HashMap::from([("lamina".to_owned(), rest)])));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(failed)?;
    let points: Vec<(&Row, &Point)> =
        body.rows.iter().flat_map(|row| row.points.iter().map(move |point| (row, point))).collect();
    for points in points.chunks(BATCH) {
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (at, field) in schema.fields().iter().take(body.group_by().len()).enumerate() {
            columns.push(dimension(field.data_type(), points.iter().map(|(row, _)| row.values.get(at))));
        }
        let starts = points.iter().map(|(_, point)| point.start);
        columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(starts).with_timezone("UTC")) as ArrayRef);
        for (at, column) in body.columns().iter().enumerate() {
            let answers: Vec<&Answer> = points.iter().filter_map(|(_, point)| point.answers.get(at)).collect();
            columns.push(answered(column, kind(body, column), &answers)?);
        }
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).map_err(failed)?).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)
}

fn schema(body: &Body<'_>) -> Schema {
    let dimensions = &body.document.question.dimensions;
    let mut fields: Vec<Field> =
        dimensions.iter().map(|one| Field::new(&one.name, one.data_type.clone(), true)).collect();
    fields.push(Field::new("start", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false));
    fields.extend(body.columns().iter().map(|column| Field::new(&column.name, data_type(kind(body, column)), true)));
    Schema::new(fields)
}

/// What stands between two points is a float, whatever they are.
fn kind(body: &Body<'_>, column: &Column) -> AnswerType {
    match column.kind {
        AnswerType::Top => AnswerType::Top,
        _ if body.document.question.params.fill == Some(Fill::Linear) => AnswerType::Float,
        own => own,
    }
}

fn data_type(kind: AnswerType) -> DataType {
    match kind {
        AnswerType::Int => DataType::Int64,
        AnswerType::BigInt => DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0),
        AnswerType::Float => DataType::Float64,
        AnswerType::Decimal { scale } => DataType::Decimal128(DECIMAL128_MAX_PRECISION, scale),
        AnswerType::Top => DataType::List(Arc::new(item())),
    }
}

fn item() -> Field {
    Field::new("item", DataType::Struct(item_fields()), true)
}

fn item_fields() -> Fields {
    let (count, error) = (Field::new("count", DataType::UInt64, true), Field::new("error", DataType::UInt64, true));
    Fields::from(vec![Field::new("value", DataType::Utf8, true), count, error])
}

fn dimension<'a>(kind: &DataType, values: impl Iterator<Item = Option<&'a DimensionValue>>) -> ArrayRef {
    let values = values.map(|value| value.unwrap_or(&DimensionValue::Null));
    // A value of another type cannot occur; it would be null.
    match kind {
        DataType::Int64 => Arc::new(Int64Array::from_iter(values.map(|value| match value {
            DimensionValue::Int(value) => Some(*value),
            _ => None,
        }))),
        DataType::Float64 => Arc::new(Float64Array::from_iter(values.map(|value| match value {
            DimensionValue::Float(bits) => Some(f64::from_bits(*bits)),
            _ => None,
        }))),
        DataType::Boolean => Arc::new(BooleanArray::from_iter(values.map(|value| match value {
            DimensionValue::Bool(value) => Some(*value),
            _ => None,
        }))),
        _ => Arc::new(StringArray::from_iter(values.map(|value| match value {
            DimensionValue::Str(value) => Some(value.as_str()),
            _ => None,
        }))),
    }
}

fn answered(column: &Column, kind: AnswerType, answers: &[&Answer]) -> Result<ArrayRef, Problem> {
    let wide = || {
        let detail = format!("`{}` has more than 38 digits, which Arrow does not hold: take JSON", column.name);
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "overflow", detail)
    };
    let whole = |answer: &&Answer| match answer {
        Answer::Int(value) | Answer::Decimal { value, .. } => Some(*value),
        _ => None,
    };
    Ok(match kind {
        AnswerType::Int => {
            let value = |answer| whole(answer).map(|value| i64::try_from(value).map_err(|_| wide())).transpose();
            Arc::new(Int64Array::from(answers.iter().map(value).collect::<Result<Vec<_>, _>>()?))
        }
        AnswerType::Float => Arc::new(Float64Array::from_iter(answers.iter().map(|answer| answer.to_f64()))),
        AnswerType::BigInt => decimals(answers.iter().map(whole), 0).ok_or_else(wide)?,
        AnswerType::Decimal { scale } => decimals(answers.iter().map(whole), scale).ok_or_else(wide)?,
        AnswerType::Top => tops(answers),
    })
}

/// `None` if some number is too wide.
fn decimals(values: impl Iterator<Item = Option<i128>>, scale: i8) -> Option<ArrayRef> {
    let array: Decimal128Array = values.collect();
    let array = array.with_precision_and_scale(DECIMAL128_MAX_PRECISION, scale).ok()?;
    array.validate_decimal_precision(DECIMAL128_MAX_PRECISION).ok()?;
    Some(Arc::new(array))
}

fn tops(answers: &[&Answer]) -> ArrayRef {
    let mut lists = ListBuilder::new(StructBuilder::from_fields(item_fields(), 0)).with_field(item());
    for answer in answers {
        let Answer::Top(items) = answer else {
            lists.append_null();
            continue;
        };
        for TopItem { value, count, error } in items {
            let item = lists.values();
            if let Some(values) = item.field_builder::<StringBuilder>(0) {
                values.append_value(value);
            }
            for (at, number) in [(1, count), (2, error)] {
                if let Some(numbers) = item.field_builder::<UInt64Builder>(at) {
                    numbers.append_value(*number);
                }
            }
            item.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}
