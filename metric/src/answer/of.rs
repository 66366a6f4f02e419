//! Of which type answers are, before there is any, and what they are as floats.

use super::{Answer, Ask, What};
use crate::{Aggregate, Metric, ValueType};

/// The type of all answers of one question; null is of every type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerType {
    /// Fits 64 bits.
    Int,
    /// An integer of up to 38 digits.
    BigInt,
    Float,
    Decimal {
        scale: i8,
    },
    /// A list of frequent values.
    Top,
}

impl AnswerType {
    /// Zero, or the empty list.
    pub fn zero(self) -> Answer {
        match self {
            Self::Int | Self::BigInt => Answer::Int(0),
            Self::Float => Answer::Float(0.0),
            Self::Decimal { scale } => Answer::Decimal { value: 0, scale },
            Self::Top => Answer::Top(Vec::new()),
        }
    }
}

impl Answer {
    /// The nearest float; `None` of what is no number.
    #[expect(clippy::cast_precision_loss, reason = "the nearest is asked for")]
    pub fn to_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Decimal { value, scale } => Some(*value as f64 / 10_f64.powi(i32::from(*scale))),
            _ => None,
        }
    }
}

impl Ask {
    /// The type of its answers.
    pub fn answer_type(&self, metric: &Metric) -> AnswerType {
        let value = |integer| match metric.value_type {
            ValueType::None | ValueType::Int64 => integer,
            ValueType::Float64 => AnswerType::Float,
            ValueType::Decimal { scale, .. } => AnswerType::Decimal { scale },
        };
        match self.what {
            What::Count | What::Distinct { .. } => AnswerType::Int,
            What::Sum => value(AnswerType::BigInt),
            What::Min | What::Max | What::First | What::Last => value(AnswerType::Int),
            What::Avg | What::Quantile(_) => AnswerType::Float,
            What::Top { .. } => AnswerType::Top,
        }
    }

    /// What is answered where there was no event.
    pub fn of_nothing(&self) -> Answer {
        if self.what == What::Count { Answer::Int(0) } else { Answer::Null }
    }

    /// Whether nothing counts as zero in arithmetic.
    pub(crate) fn is_zero_of_nothing(&self) -> bool {
        matches!(self.what, What::Count | What::Sum | What::Distinct { .. })
    }

    /// Whether twice the events give twice the answer.
    pub(crate) fn adds_up(&self) -> bool {
        matches!(self.what, What::Count | What::Sum)
    }
}

impl Metric {
    /// What is answered when no aggregate is named: all that the metric declares.
    pub fn all_asks(&self) -> Vec<String> {
        let mut names = Vec::new();
        for aggregate in &self.aggregates {
            match aggregate {
                Aggregate::Count => names.push("count".to_owned()),
                Aggregate::Sum => names.push("sum".to_owned()),
                Aggregate::Min => names.push("min".to_owned()),
                Aggregate::Max => names.push("max".to_owned()),
                Aggregate::Avg => names.push("avg".to_owned()),
                Aggregate::First => names.push("first".to_owned()),
                Aggregate::Last => names.push("last".to_owned()),
                Aggregate::Distinct { field, .. } => names.push(format!("distinct({field})")),
                Aggregate::Quantiles => names.extend(["p50", "p95", "p99"].map(str::to_owned)),
                Aggregate::Top { field, .. } => names.push(format!("top({field})")),
            }
        }
        if names.is_empty() { vec!["count".to_owned()] } else { names }
    }
}
