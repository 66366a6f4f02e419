//! A metric, compiled: events in, rows ready to fold out.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    compute::filter_record_batch,
    datatypes::{DataType, Float64Type, Schema, SchemaRef, TimestampMicrosecondType, UInt64Type},
    error::ArrowError,
};
use datafusion::common::DataFusionError;
use lamina_core::{Micros, Offset, Shard, ViewId};

use crate::{
    Aggregate, Expiry, MetricDefinition, Source, ValueType,
    compile_metric::{Expressions, bucket, prepared_schema},
    expression::{Expression, to_canonical},
    text::to_text,
};

/// A longer dimension value rejects the row.
pub const MAX_DIMENSION_BYTES: usize = 512;

/// Columns of events that every metric reads.
const ALWAYS: [&str; 4] = ["_partition", "_offset", "_time", "_order"];

/// Why a metric cannot do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum MetricError {
    #[error("metric {metric} has no dimension {name:?}; it has {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    UnknownDimension { metric: String, name: String, known: Vec<String> },
    #[error("events of metric {metric} do not have the columns of its source")]
    Events {
        metric: String,
        #[source]
        cause: ArrowError,
    },
}

/// A dimension of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimension {
    pub name: String,
    /// Utf8, Int64, Boolean or Float64.
    pub data_type: DataType,
}

/// One grouping of a metric: what is stored and queried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub id: ViewId,
    /// Indexes into [`Metric::dimensions`], ascending.
    pub dimensions: Vec<usize>,
    pub shards: Shard,
    /// Most series per partition and epoch; further ones are counted under `$overflow`.
    pub cap: u32,
}

/// A compiled metric.
#[derive(Debug)]
pub struct Metric {
    pub name: String,
    pub version: u32,
    /// The revision of the definitions since which this version counts.
    pub since: u64,
    pub description: Option<String>,
    pub source: Arc<Source>,
    pub definition: MetricDefinition,
    pub dimensions: Vec<Dimension>,
    pub aggregates: Vec<Aggregate>,
    pub value_type: ValueType,
    /// Width of the finest buckets.
    pub grain: Micros,
    /// Coarser widths, ascending, without the grain.
    pub rollups: Vec<Micros>,
    /// Width → how long its buckets are kept; absent = for ever.
    pub retention: BTreeMap<Micros, Micros>,
    /// Series that are kept for less, in the order of the definition.
    pub expire: Vec<Expiry>,
    /// The full set of dimensions, then the groupings in order, last the total (unless the full set is empty).
    pub views: Vec<View>,
    pub(crate) parts: Parts,
}

/// What preparing needs. Its expressions read a schema of only the columns that the metric needs.
#[derive(Debug)]
pub(crate) struct Parts {
    reads: SchemaRef,
    columns: Vec<String>,
    filter: Option<Expression>,
    dimensions: Vec<Expression>,
    value: Option<Expression>,
    inputs: Vec<Expression>,
    prepared: SchemaRef,
}

/// Rows ready to fold; schema of [`Metric::prepared_schema`].
#[derive(Clone, Debug)]
pub struct Prepared {
    pub rows: RecordBatch,
    /// Events that `where` left out.
    pub filtered: u64,
    /// Events whose expressions fail or give NaN or infinity, with the reason.
    pub rejected: Vec<(Offset, String)>,
}

impl Parts {
    /// Moves the expressions, planned over all columns of the source, to the columns that they read.
    pub(crate) fn new(
        source: &Schema,
        expressions: Expressions,
        inputs: usize,
        dimensions: &[Dimension],
        value: ValueType,
    ) -> Result<Self, DataFusionError> {
        let Expressions { filter, dimensions: by, value: of, inputs: arguments } = expressions;
        let all = filter.iter().chain(&by).chain(&of).chain(&arguments);
        let mut kept: Vec<usize> = all.flat_map(Expression::columns).collect();
        for name in ALWAYS {
            kept.push(source.index_of(name)?);
        }
        kept.sort_unstable();
        kept.dedup();
        let reads = Arc::new(source.project(&kept)?);
        let place = |column: usize| kept.binary_search(&column).unwrap_or(column);
        let moved = |expression: &Expression| expression.with_columns(place);
        let order = source.field_with_name("_order")?.data_type();
        Ok(Self {
            columns: reads.fields().iter().map(|field| field.name().clone()).collect(),
            filter: filter.as_ref().map(moved).transpose()?,
            dimensions: by.iter().map(moved).collect::<Result<_, _>>()?,
            value: of.as_ref().map(moved).transpose()?,
            inputs: arguments.iter().map(moved).collect::<Result<_, _>>()?,
            prepared: prepared_schema(order, dimensions, value, inputs),
            reads,
        })
    }
}

/// Reasons why rows are left out, per row.
type Reasons = Vec<Option<String>>;

impl Metric {
    /// Applies `where` and evaluates dimensions, bucket, value and inputs over decoded events, which may come from the
    /// archive and hold only [`Metric::columns`].
    ///
    /// # Errors
    /// If `events` lacks columns of the source. A row that fails is left out and listed.
    pub fn prepare(&self, events: &RecordBatch) -> Result<Prepared, MetricError> {
        self.try_prepare(events).map_err(|cause| MetricError::Events { metric: self.name.clone(), cause })
    }

    fn try_prepare(&self, events: &RecordBatch) -> Result<Prepared, ArrowError> {
        let mut rejected = Vec::new();
        let events = self.read(events)?;
        let (events, filtered) = self.filter(events, &mut rejected)?;
        let mut reasons: Reasons = vec![None; events.num_rows()];
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.parts.prepared.fields().len());
        for name in ALWAYS {
            columns.push(Arc::clone(events.column(events.schema_ref().index_of(name)?)));
        }
        let times = columns[2].as_primitive::<TimestampMicrosecondType>();
        let buckets: TimestampMicrosecondArray = times.unary(|at| bucket(at, self.grain));
        columns.push(Arc::new(buckets));
        for (dimension, expression) in self.dimensions.iter().zip(&self.parts.dimensions) {
            let values = evaluate(expression, &events, &format!("dimension {}", dimension.name), &mut reasons);
            columns.push(dimension_values(dimension, &values, &mut reasons)?);
        }
        if let Some(value) = &self.parts.value {
            columns.push(evaluate(value, &events, "value", &mut reasons));
        }
        for input in &self.parts.inputs {
            columns.push(Arc::new(to_text(&evaluate(input, &events, "argument", &mut reasons))?));
        }
        let mut rows = RecordBatch::try_new(self.prepared_schema(), columns)?;
        if reasons.iter().any(Option::is_some) {
            let kept: BooleanArray = reasons.iter().map(|reason| Some(reason.is_none())).collect();
            note(&events, reasons, &mut rejected)?;
            rows = filter_record_batch(&rows, &kept)?;
        }
        rejected.sort_by_key(|(offset, _)| *offset);
        Ok(Prepared { rows, filtered, rejected })
    }

    /// The columns that the expressions read, as their types were when they were planned.
    fn read(&self, events: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        if events.schema_ref() == &self.parts.reads {
            return Ok(events.clone());
        }
        let columns =
            self.parts.reads.fields().iter().map(|field| {
                to_canonical(events.column(events.schema_ref().index_of(field.name())?), field.data_type())
            });
        RecordBatch::try_new(SchemaRef::clone(&self.parts.reads), columns.collect::<Result<_, _>>()?)
    }

    /// Events for which `where` is true, and how many were left out.
    fn filter(
        &self,
        events: RecordBatch,
        rejected: &mut Vec<(Offset, String)>,
    ) -> Result<(RecordBatch, u64), ArrowError> {
        let Some(filter) = &self.parts.filter else { return Ok((events, 0)) };
        let mut reasons: Reasons = vec![None; events.num_rows()];
        let mask = evaluate(filter, &events, "where", &mut reasons);
        let mask: BooleanArray = mask.as_boolean().iter().map(|kept| Some(kept == Some(true))).collect();
        let left_out = mask.len() - mask.true_count() - reasons.iter().flatten().count();
        note(&events, reasons, rejected)?;
        let events = if mask.true_count() == mask.len() { events } else { filter_record_batch(&events, &mask)? };
        Ok((events, left_out as u64))
    }

    /// `_partition` UInt32, `_offset` UInt64, `_time` Timestamp(µs), `_order`, `_bucket` Timestamp(µs), `d0..`, then `v`
    /// (if the metric has a value) and `x0..` Utf8.
    pub fn prepared_schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.parts.prepared)
    }

    /// Names of the columns of decoded events that [`Metric::prepare`] reads; others need not be there.
    pub fn columns(&self) -> &[String] {
        &self.parts.columns
    }

    /// The grain first, then the rollups.
    pub fn widths(&self) -> Vec<Micros> {
        std::iter::once(self.grain).chain(self.rollups.iter().copied()).collect()
    }

    /// The views that hold all these dimensions, the smallest first.
    ///
    /// # Errors
    /// If a name is not a dimension.
    pub fn views_for(&self, columns: &[&str]) -> Result<Vec<&View>, MetricError> {
        let unknown = |name: &str| MetricError::UnknownDimension {
            metric: self.name.clone(),
            name: name.to_owned(),
            known: self.dimensions.iter().map(|dimension| dimension.name.clone()).collect(),
        };
        let index = |name: &&str| {
            self.dimensions.iter().position(|dimension| dimension.name == *name).ok_or_else(|| unknown(name))
        };
        let wanted: Vec<usize> = columns.iter().map(index).collect::<Result<_, _>>()?;
        let holds = |view: &&View| wanted.iter().all(|column| view.dimensions.contains(column));
        let mut views: Vec<&View> = self.views.iter().filter(holds).collect();
        views.sort_by_key(|view| view.dimensions.len());
        Ok(views)
    }

    /// Equal for metrics that fold the same events in the same way: the metric's definition and its source's.
    pub fn fingerprint(&self) -> String {
        format!("{}-{}", self.definition.fingerprint(), self.source.definition.fingerprint())
    }
}

fn evaluate(expression: &Expression, events: &RecordBatch, name: &str, reasons: &mut Reasons) -> ArrayRef {
    let evaluated = expression.evaluate(events);
    for (row, why) in evaluated.failed {
        reasons[row].get_or_insert_with(|| format!("{name}: {why}"));
    }
    evaluated.array
}

/// Adds the rows that have a reason to the list, by offset.
fn note(events: &RecordBatch, reasons: Reasons, rejected: &mut Vec<(Offset, String)>) -> Result<(), ArrowError> {
    let offsets = events.column(events.schema_ref().index_of("_offset")?).as_primitive::<UInt64Type>();
    let listed = reasons.into_iter().enumerate().filter_map(|(row, why)| Some((offsets.value(row), why?)));
    rejected.extend(listed);
    Ok(())
}

/// A dimension's values in its type. One zero is as good as the other: -0.0 becomes 0.0.
fn dimension_values(dimension: &Dimension, values: &ArrayRef, reasons: &mut Reasons) -> Result<ArrayRef, ArrowError> {
    match dimension.data_type {
        DataType::Utf8 => {
            let texts: StringArray = to_text(values)?;
            for (row, text) in texts.iter().enumerate() {
                let bytes = text.map_or(0, str::len);
                if bytes > MAX_DIMENSION_BYTES {
                    let name = &dimension.name;
                    reasons[row].get_or_insert_with(|| {
                        format!("dimension {name}: a value of {bytes} bytes; the limit is {MAX_DIMENSION_BYTES}")
                    });
                }
            }
            Ok(Arc::new(texts))
        }
        DataType::Float64 => {
            let values: Float64Array = values.as_primitive::<Float64Type>().unary(|value: f64| value + 0.0);
            Ok(Arc::new(values))
        }
        _ => Ok(Arc::clone(values)),
    }
}
