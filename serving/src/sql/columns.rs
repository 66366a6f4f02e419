//! A metric's columns: the bucket's start, the dimensions, and what is kept of each bucket.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, Decimal128Array, Float64Array, Int64Array, RecordBatch, RecordBatchOptions,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use lamina_core::Micros;
use lamina_metric::{Aggregate, Answer, Ask, DimensionValue, Metric, States, ValueType, dimension_array};

use crate::{problem::Problem, prometheus::name_of};

/// The column of the bucket's start.
pub(super) const TIME: &str = "time";
/// Digits of a decimal.
const PRECISION: u8 = 38;

/// A column of a table.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Time,
    /// Index of the dimension.
    Dimension(usize),
    /// What the bucket answers to this question.
    Value(Ask, DataType),
    /// What the bucket keeps for an aggregate that does not simply add up.
    Summary(Aggregate),
}

/// Rows of a scan: dimension values, start and row of the states.
pub(super) struct Rows<'a> {
    pub(super) places: &'a [(usize, Micros, usize)],
    pub(super) series: &'a [Vec<DimensionValue>],
    /// Which dimensions the values are of.
    pub(super) dimensions: &'a [usize],
    pub(super) states: &'a States,
}

pub(super) fn columns(metric: &Metric) -> Result<Vec<Column>, String> {
    let mut columns = vec![Column { name: TIME.to_owned(), what: What::Time }];
    let base = name_of(&metric.name);
    let mut add = |name: String, what: What| {
        let known = |name: &str| columns.iter().any(|column: &Column| column.name == name);
        let numbered = || (2..).map(|number| format!("{name}_{number}")).find(|name| !known(name)).unwrap_or_default();
        let name = if known(&name) { numbered() } else { name };
        columns.push(Column { name, what });
    };
    for (at, dimension) in metric.dimensions.iter().enumerate() {
        add(dimension.name.clone(), What::Dimension(at));
    }
    let value = |ask: &str, data_type| Ok::<_, String>(What::Value(Ask::parse(ask, metric)?, data_type));
    let own = || match metric.value_type {
        ValueType::Decimal { scale, .. } => DataType::Decimal128(PRECISION, scale),
        ValueType::Float64 => DataType::Float64,
        ValueType::Int64 | ValueType::None => DataType::Int64,
    };
    add(format!("{base}_count"), value("count", DataType::Int64)?);
    let has = |one: Aggregate| metric.aggregates.contains(&one);
    if has(Aggregate::Sum) {
        // A sum of integers is wider than an integer, and sums of sums must not wrap.
        let wide = if own() == DataType::Int64 { DataType::Decimal128(PRECISION, 0) } else { own() };
        add(format!("{base}_sum"), value("sum", wide)?);
    }
    for (aggregate, name) in
        [(Aggregate::Min, "min"), (Aggregate::Max, "max"), (Aggregate::First, "first"), (Aggregate::Last, "last")]
    {
        if has(aggregate) {
            add(format!("{base}_{name}"), value(name, own())?);
        }
    }
    if has(Aggregate::Sum) || has(Aggregate::Avg) {
        add(format!("{base}_avg"), What::Summary(Aggregate::Avg));
    }
    for aggregate in &metric.aggregates {
        let suffix = match aggregate {
            Aggregate::Distinct { field, .. } => format!("distinct_{}", name_of(field)),
            Aggregate::Quantiles => "quantiles".to_owned(),
            Aggregate::Top { field, .. } => format!("top_{}", name_of(field)),
            _ => continue,
        };
        add(format!("{base}_{suffix}"), What::Summary(aggregate.clone()));
    }
    Ok(columns)
}

impl Column {
    pub(super) fn field(&self, metric: &Metric) -> Field {
        let (data_type, nullable) = match &self.what {
            What::Time => (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
            What::Dimension(at) => (metric.dimensions[*at].data_type.clone(), true),
            What::Value(ask, data_type) => (data_type.clone(), ask.name() != "count"),
            What::Summary(_) => (DataType::Binary, true),
        };
        Field::new(&self.name, data_type, nullable)
    }

    fn array(&self, rows: &Rows<'_>, metric: &Metric) -> Result<ArrayRef, Problem> {
        Ok(match &self.what {
            What::Time => {
                let starts = rows.places.iter().map(|(_, start, _)| *start);
                Arc::new(TimestampMicrosecondArray::from_iter_values(starts).with_timezone("UTC"))
            }
            What::Dimension(at) => {
                let place = rows.dimensions.iter().position(|own| own == at);
                let value = |series: &usize| place.and_then(|place| rows.series.get(*series)?.get(place));
                let values = rows.places.iter().map(|(series, ..)| value(series));
                dimension_array(&metric.dimensions[*at].data_type, values)
            }
            What::Value(ask, data_type) => {
                let answers = rows.places.iter().map(|(.., row)| rows.states.answer(*row, ask));
                values(answers.collect::<Result<Vec<_>, _>>()?, data_type)?
            }
            What::Summary(aggregate) => {
                let mut summaries = BinaryBuilder::new();
                for (.., row) in rows.places {
                    let summary = rows.states.summary(*row, aggregate).map_err(|error| Problem::internal(&error))?;
                    summaries.append_option(summary);
                }
                Arc::new(summaries.finish())
            }
        })
    }
}

/// One batch of these columns.
pub(super) fn batch(
    columns: &[Column],
    schema: &SchemaRef,
    rows: &Rows<'_>,
    metric: &Metric,
) -> Result<RecordBatch, Problem> {
    let arrays = columns.iter().map(|column| column.array(rows, metric)).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.places.len()));
    let batch = RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options);
    batch.map_err(|error| Problem::internal(&error))
}

pub(super) fn schema(columns: &[Column], metric: &Metric) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|column| column.field(metric)).collect::<Vec<_>>()))
}

fn values(answers: Vec<Answer>, data_type: &DataType) -> Result<ArrayRef, Problem> {
    let answers = answers.into_iter();
    Ok(match data_type {
        DataType::Int64 => Arc::new(Int64Array::from_iter(answers.map(|answer| match answer {
            Answer::Int(value) => i64::try_from(value).ok(),
            _ => None,
        }))),
        DataType::Float64 => Arc::new(Float64Array::from_iter(answers.map(|answer| match answer {
            Answer::Float(value) => Some(value),
            _ => None,
        }))),
        DataType::Decimal128(precision, scale) => {
            let values = answers.map(|answer| match answer {
                Answer::Int(value) | Answer::Decimal { value, .. } => Some(value),
                _ => None,
            });
            let array = Decimal128Array::from_iter(values).with_precision_and_scale(*precision, *scale);
            let array = array.and_then(|array| array.validate_decimal_precision(*precision).map(|()| array));
            Arc::new(array.map_err(|_: ArrowError| Problem::from(lamina_metric::StateError::Overflow))?)
        }
        other => return Err(Problem::internal(&format!("no column of type {other}"))),
    })
}
