//! A metric, compiled: events in, rows ready to fold out.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use lamina_core::{Micros, Offset, Shard, ViewId};

use crate::{Aggregate, MetricDefinition, Source, ValueType};

/// Why a metric cannot do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum MetricError {
    #[error("metric {metric} has no dimension {name:?}; it has {}", known.join(", "))]
    UnknownDimension { metric: String, name: String, known: Vec<String> },
    #[error("events of metric {metric} do not have the columns of its source")]
    Events {
        metric: String,
        #[source]
        cause: arrow::error::ArrowError,
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
    /// The full set of dimensions, then the groupings in order, last the total (unless the full set is empty).
    pub views: Vec<View>,
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

impl Metric {
    /// Applies `where` and evaluates dimensions, bucket, value and inputs over decoded events.
    ///
    /// # Errors
    /// If `events` lacks columns of the source. A row that fails is left out and listed.
    pub fn prepare(&self, _events: &RecordBatch) -> Result<Prepared, MetricError> {
        unimplemented!()
    }

    /// `_partition` UInt32, `_offset` UInt64, `_time` Timestamp(µs), `_order`, `_bucket` Timestamp(µs), `d0..`, then `v`
    /// (if the metric has a value) and `x0..` Utf8.
    pub fn prepared_schema(&self) -> SchemaRef {
        unimplemented!()
    }

    /// Names of the columns of decoded events that [`Metric::prepare`] reads; others need not be there.
    pub fn columns(&self) -> &[String] {
        unimplemented!()
    }

    /// The grain first, then the rollups.
    pub fn widths(&self) -> Vec<Micros> {
        std::iter::once(self.grain).chain(self.rollups.iter().copied()).collect()
    }

    /// The smallest view that holds all these dimensions.
    ///
    /// # Errors
    /// If a name is not a dimension.
    pub fn view_for(&self, _columns: &[&str]) -> Result<&View, MetricError> {
        unimplemented!()
    }
}
