//! What a metric keeps of its events: the aggregates and the type of the value they are taken over.

use serde::{Deserialize, Serialize};

/// An aggregate that a metric keeps. `input` is the index of the argument's column (`x0`, `x1`, ...) in prepared rows;
/// `field` is the argument as it was written, the name by which queries ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Aggregate {
    Count,
    Sum,
    Min,
    Max,
    Avg,
    First,
    Last,
    Distinct { field: String, input: usize },
    Quantiles,
    Top { field: String, input: usize, k: u32 },
}

impl Aggregate {
    /// Whether the metric must have a `value` for it.
    pub fn needs_value(&self) -> bool {
        !matches!(self, Self::Count | Self::Distinct { .. } | Self::Top { .. })
    }
}

/// The type of a metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ValueType {
    /// The metric has no value: it only counts.
    None,
    Int64,
    Float64,
    /// Values are decimal(precision, scale); sums accumulate in decimal(38, scale).
    Decimal {
        precision: u8,
        scale: i8,
    },
}
