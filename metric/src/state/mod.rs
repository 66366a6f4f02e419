//! Aggregate states: what a metric keeps of many rows, a column of cells per kind.
//!
//! Invariants:
//! - Merging is associative and commutative by value (float sums: within rounding), so the order of rows, batches, flushes
//!   and epochs does not show in an answer. Only `top` beyond its capacity depends on it, within its stated error.
//! - [`States`] carry their [`Layout`]; states of different layouts never mix.
//! - Decoded states are checked ([`States::decode_row`], and chunks): damaged bytes give an error, never a panic.

mod cell;
mod distinct;
mod extreme;
mod inputs;
mod quantiles;
mod sum;
mod top;

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

pub use self::top::TopItem;
pub(crate) use self::{
    cell::{Cell, Column},
    distinct::{DISTINCT_ERROR, Distinct},
    extreme::{First, Last, Max, Min},
    inputs::{Inputs, to_float},
    quantiles::{QUANTILE_ERROR, Quantiles, Rank},
    sum::{FloatSum, Sum, quotient},
    top::{Top, top_error},
};
use crate::{
    aggregate::{Aggregate, ValueType},
    chunk::ChunkError,
    metric::Metric,
};

/// Why states cannot be folded, merged or answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The result does not fit its type; it concerns this one state.
    #[error("the sum overflows")]
    Overflow,
    #[error("prepared rows do not fit the metric: {0}")]
    Input(String),
    #[error("states of different layouts do not merge")]
    Layout,
    #[error("group {group} does not exist, there are {len} states")]
    Group { group: usize, len: usize },
    #[error("the metric keeps no state for `{0}`")]
    NotKept(String),
    #[error("the sketch does not answer: {0}")]
    Sketch(String),
}

/// How a metric's values are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Number {
    None,
    Int,
    Float,
    Decimal { scale: i8 },
}

/// One kept state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Kind {
    Sum,
    Min,
    Max,
    First,
    Last,
    Quantiles,
    Distinct { input: u32 },
    Top { input: u32, k: u32 },
}

/// Which states a metric keeps besides the count of events, from its aggregates and value type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    pub(crate) number: Number,
    pub(crate) kinds: Vec<Kind>,
}

impl Layout {
    pub fn of(metric: &Metric) -> Self {
        Self::new(&metric.aggregates, metric.value_type)
    }

    pub(crate) fn new(aggregates: &[Aggregate], value: ValueType) -> Self {
        let number = match value {
            ValueType::None => Number::None,
            ValueType::Int64 => Number::Int,
            ValueType::Float64 => Number::Float,
            ValueType::Decimal { scale, .. } => Number::Decimal { scale },
        };
        let mut kinds = Vec::new();
        for aggregate in aggregates {
            let kind = match aggregate {
                Aggregate::Count => continue,
                Aggregate::Sum | Aggregate::Avg => Kind::Sum,
                Aggregate::Min => Kind::Min,
                Aggregate::Max => Kind::Max,
                Aggregate::First => Kind::First,
                Aggregate::Last => Kind::Last,
                Aggregate::Quantiles => Kind::Quantiles,
                Aggregate::Distinct { input, .. } => Kind::Distinct { input: *input as u32 },
                Aggregate::Top { input, k, .. } => Kind::Top { input: *input as u32, k: *k },
            };
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        Self { number, kinds }
    }

    /// Number of text inputs (`x0..`) that the states read.
    pub(crate) fn texts(&self) -> usize {
        let input = |kind: &Kind| match kind {
            Kind::Distinct { input } | Kind::Top { input, .. } => *input as usize + 1,
            _ => 0,
        };
        self.kinds.iter().map(input).max().unwrap_or(0)
    }

    pub(crate) fn orders(&self) -> bool {
        self.kinds.iter().any(|kind| matches!(kind, Kind::First | Kind::Last))
    }
}

/// States of many rows: a count of events per row, and a column per kept state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct States {
    pub(crate) layout: Layout,
    pub(crate) counts: Vec<u64>,
    pub(crate) columns: Vec<Column>,
}

impl States {
    pub fn new(layout: &Layout) -> Self {
        let columns = layout.kinds.iter().map(|kind| Column::new(kind, layout.number)).collect();
        Self { layout: layout.clone(), counts: Vec::new(), columns }
    }

    pub fn len(&self) -> usize {
        self.counts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Events folded into a row.
    pub fn count(&self, row: usize) -> u64 {
        self.counts[row]
    }

    /// Makes it `n` rows; new ones are empty states.
    pub fn resize(&mut self, n: usize) {
        self.counts.resize(n, 0);
        for (column, kind) in self.columns.iter_mut().zip(&self.layout.kinds) {
            column.resize(n, kind);
        }
    }

    /// Folds row `i` of `prepared` (schema of `Metric::prepared_schema`) into state `groups[i]`.
    ///
    /// # Errors
    /// If a column is missing or of another type, or a group does not exist; then nothing was folded.
    pub fn update(&mut self, prepared: &RecordBatch, groups: &[usize]) -> Result<(), StateError> {
        self.fold(&Inputs::of_batch(&self.layout, prepared)?, groups)
    }

    pub(crate) fn fold(&mut self, inputs: &Inputs, groups: &[usize]) -> Result<(), StateError> {
        if groups.len() != inputs.rows {
            return Err(StateError::Input(format!("{} groups for {} rows", groups.len(), inputs.rows)));
        }
        self.check_groups(groups)?;
        for &group in groups {
            self.counts[group] += 1;
        }
        for (column, kind) in self.columns.iter_mut().zip(&self.layout.kinds) {
            column.fold(kind, self.layout.number, inputs, groups);
        }
        Ok(())
    }

    /// Merges row `i` of `other` into row `into[i]`.
    ///
    /// # Errors
    /// If the layouts differ or a row does not exist; then nothing was merged.
    pub fn merge(&mut self, other: &Self, into: &[usize]) -> Result<(), StateError> {
        if self.layout != other.layout {
            return Err(StateError::Layout);
        }
        if into.len() != other.len() {
            return Err(StateError::Input(format!("{} rows to merge into, for {} rows", into.len(), other.len())));
        }
        self.check_groups(into)?;
        self.absorb(other, into);
        Ok(())
    }

    /// [`States::merge`] where the caller knows that layouts match and rows exist.
    pub(crate) fn absorb(&mut self, other: &Self, into: &[usize]) {
        for (&to, &count) in into.iter().zip(&other.counts) {
            self.counts[to] = self.counts[to].saturating_add(count);
        }
        for (column, other) in self.columns.iter_mut().zip(&other.columns) {
            column.merge(other, into);
        }
    }

    /// The rows named, in that order.
    ///
    /// # Panics
    /// If one does not exist.
    pub fn take(&self, rows: &[usize]) -> Self {
        Self {
            layout: self.layout.clone(),
            counts: rows.iter().map(|&row| self.counts[row]).collect(),
            columns: self.columns.iter().map(|column| column.take(rows)).collect(),
        }
    }

    /// Appends one row to `bytes`, without its layout. The same states always give the same bytes.
    ///
    /// # Errors
    /// If a cell cannot be serialised, which plain data never runs into.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn encode_row(&self, row: usize, bytes: Vec<u8>) -> Result<Vec<u8>, ChunkError> {
        let bytes = postcard::to_extend(&self.counts[row], bytes).map_err(ChunkError::Body)?;
        self.columns.iter().try_fold(bytes, |bytes, column| column.encode(row, bytes))
    }

    /// Adds a row of the same layout that [`States::encode_row`] wrote.
    ///
    /// # Errors
    /// If the bytes are damaged; then nothing was added.
    pub fn decode_row(&mut self, bytes: &[u8]) -> Result<(), ChunkError> {
        let rows = self.len();
        let decoded = self.push_row(bytes);
        if decoded.is_err() {
            self.resize(rows);
        }
        decoded
    }

    fn push_row(&mut self, bytes: &[u8]) -> Result<(), ChunkError> {
        let (count, mut rest) = postcard::take_from_bytes(bytes).map_err(ChunkError::Body)?;
        self.counts.push(count);
        for (column, kind) in self.columns.iter_mut().zip(&self.layout.kinds) {
            rest = column.decode(kind, rest)?;
        }
        if rest.is_empty() { Ok(()) } else { Err(ChunkError::Invalid("a row of states goes on after its end")) }
    }

    /// Removes the first `n` rows.
    pub(crate) fn drop_first(&mut self, n: usize) {
        self.counts.drain(..n);
        self.columns.iter_mut().for_each(|column| column.drop_first(n));
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Estimate of the memory held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.counts) + self.columns.iter().map(Column::bytes).sum::<usize>()
    }

    /// Whether decoded states keep their invariants.
    pub(crate) fn check(&self) -> Result<(), ChunkError> {
        let fits = |(column, kind): (&Column, &Kind)| column.fits(kind, self.layout.number, self.len());
        let whole = self.columns.len() == self.layout.kinds.len();
        if whole && self.columns.iter().zip(&self.layout.kinds).all(fits) { Ok(()) } else { Err(cell::UNFIT) }
    }

    fn check_groups(&self, groups: &[usize]) -> Result<(), StateError> {
        match groups.iter().copied().max() {
            Some(group) if group >= self.len() => Err(StateError::Group { group, len: self.len() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
