//! A boolean SQL filter over a metric's dimensions, for queries: comparisons, IN, LIKE, BETWEEN, IS, AND, OR, NOT; no
//! functions, no arithmetic, no subqueries. [`condition`] reads it; DataFusion coerces its types and evaluates it.

mod condition;
mod events;
mod pinned;
mod rows;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use datafusion::{
    common::DFSchema, execution::session_state::SessionStateBuilder, logical_expr::Expr, physical_expr::PhysicalExpr,
};

pub use self::events::EventFilter;
use self::pinned::Pinned;
use crate::{
    metric::{Dimension, Metric, View},
    series::{DimensionValue, Series},
};

/// Most series that [`SeriesFilter::series`] names.
const MAX_NAMED: usize = 256;

/// A boolean filter over dimensions; only TRUE passes.
#[derive(Clone, Debug)]
pub struct SeriesFilter {
    /// Indexes of the dimensions read, ascending.
    columns: Vec<usize>,
    schema: SchemaRef,
    condition: Arc<dyn PhysicalExpr>,
    pinned: Pinned,
}

impl SeriesFilter {
    /// # Errors
    /// If the text is not a condition over the metric's dimensions; says what is wrong and what is allowed.
    pub fn parse(sql: &str, metric: &Metric) -> Result<Self, String> {
        Self::over(sql, &metric.dimensions)
    }

    pub(crate) fn over(sql: &str, dimensions: &[Dimension]) -> Result<Self, String> {
        let (condition, columns) = condition::parse(sql, dimensions)?;
        let pinned = pinned::pinned(&condition, dimensions);
        Self::compile(condition, columns, pinned, dimensions)
    }

    fn compile(condition: Expr, columns: Vec<usize>, pinned: Pinned, dimensions: &[Dimension]) -> Result<Self, String> {
        let field = |&at: &usize| Field::new(&dimensions[at].name, dimensions[at].data_type.clone(), true);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let named = DFSchema::try_from(Arc::clone(&schema)).map_err(readable)?;
        let state = SessionStateBuilder::new().build();
        let condition = state.create_physical_expr(condition, &named).map_err(readable)?;
        match condition.data_type(&schema).map_err(readable)? {
            DataType::Boolean | DataType::Null => Ok(Self { columns, schema, condition, pinned }),
            other => Err(format!("the filter must be a condition, this is of type {other}")),
        }
    }

    /// Indexes of the dimensions that a view must have for [`SeriesFilter::mask`], ascending.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Whether no series can pass both, as far as the values show that this one leaves to the other's dimensions.
    pub fn excludes(&self, other: &Self, metric: &Metric) -> bool {
        let Some(series) = self.series_of(&other.columns) else { return false };
        let mask = other.mask_of(&other.columns, &metric.dimensions, &series.iter().collect::<Vec<_>>());
        mask.is_ok_and(|mask| !mask.contains(&true))
    }

    /// The only series of the view that can pass, where the condition leaves few: `None` if they are many or not known.
    pub fn series(&self, view: &View) -> Option<Vec<Series>> {
        self.series_of(&view.dimensions)
    }

    fn series_of(&self, view: &[usize]) -> Option<Vec<Series>> {
        let values: Vec<&Vec<DimensionValue>> = view.iter().map(|at| self.pinned.get(at)).collect::<Option<_>>()?;
        let number = values.iter().try_fold(1_usize, |number, values| number.checked_mul(values.len()))?;
        if number > MAX_NAMED {
            return None;
        }
        let longer = |heads: Vec<Vec<DimensionValue>>, values: &Vec<DimensionValue>| {
            let with =
                |head: &Vec<DimensionValue>, value: &DimensionValue| [head, std::slice::from_ref(value)].concat();
            heads.iter().flat_map(|head| values.iter().map(move |value| with(head, value))).collect()
        };
        let mut series: Vec<Series> =
            values.into_iter().fold(vec![Vec::new()], longer).iter().map(|values| Series::new(values)).collect();
        series.sort_unstable();
        series.dedup();
        Some(series)
    }

    /// Which of these series of a view pass.
    ///
    /// # Errors
    /// If the view lacks a dimension that the filter reads, or a series does not decode.
    pub fn mask(&self, view: &View, metric: &Metric, series: &[&Series]) -> Result<Vec<bool>, String> {
        self.mask_of(&view.dimensions, &metric.dimensions, series)
    }

    fn mask_of(&self, view: &[usize], dimensions: &[Dimension], series: &[&Series]) -> Result<Vec<bool>, String> {
        let values = series.iter().map(|series| series.values()).collect::<Result<Vec<_>, _>>().map_err(readable)?;
        let column = |&at: &usize| {
            let place = view.iter().position(|&own| own == at);
            let place = place.ok_or_else(|| format!("the view has no dimension `{}`", dimensions[at].name))?;
            Ok(dimension_array(&dimensions[at].data_type, values.iter().map(|values| values.get(place))))
        };
        let arrays = self.columns.iter().map(column).collect::<Result<Vec<_>, String>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(series.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(readable)?;
        let passed = self.condition.evaluate(&batch).and_then(|value| value.into_array(series.len()));
        let passed = passed.map_err(readable)?;
        Ok(match passed.as_boolean_opt() {
            Some(passed) => passed.iter().map(|pass| pass == Some(true)).collect(),
            // The condition is NULL whatever the series.
            None => vec![false; series.len()],
        })
    }
}

/// A dimension's column; values of another type (`$overflow` in a dimension that is no text) are null.
pub fn dimension_array<'a>(data_type: &DataType, values: impl Iterator<Item = Option<&'a DimensionValue>>) -> ArrayRef {
    match data_type {
        DataType::Int64 => Arc::new(Int64Array::from_iter(values.map(|value| match value {
            Some(DimensionValue::Int(value)) => Some(*value),
            _ => None,
        }))),
        DataType::Float64 => Arc::new(Float64Array::from_iter(values.map(|value| match value {
            Some(DimensionValue::Float(bits)) => Some(f64::from_bits(*bits)),
            _ => None,
        }))),
        DataType::Boolean => Arc::new(BooleanArray::from_iter(values.map(|value| match value {
            Some(DimensionValue::Bool(value)) => Some(*value),
            _ => None,
        }))),
        _ => Arc::new(StringArray::from_iter(values.map(|value| match value {
            Some(DimensionValue::Str(value)) => Some(value.as_str()),
            _ => None,
        }))),
    }
}

fn readable(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
