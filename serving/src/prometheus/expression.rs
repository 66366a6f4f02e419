//! What a query asks, as far as it can be computed here.

use lamina_core::Micros;
use promql_parser::label::Matcher;

/// A query with its selectors, which [`Node::Selected`] numbers.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) root: Node,
    pub(crate) selectors: Vec<Selector>,
}

#[derive(Debug)]
pub(crate) enum Node {
    Number(f64),
    Text(String),
    /// Seconds of each instant.
    Time,
    Selected(usize),
    Call(Function, Vec<Node>),
    Aggregate {
        operator: Aggregator,
        grouping: Grouping,
        parameter: Option<Box<Node>>,
        of: Box<Node>,
    },
    Binary {
        operator: Operator,
        left: Box<Node>,
        right: Box<Node>,
        matching: Matching,
    },
    Negated(Box<Node>),
}

impl Node {
    /// Whether an instant vector comes in an order of its own.
    pub(crate) fn is_ordered(&self) -> bool {
        match self {
            Self::Call(function, _) => matches!(function, Function::Sort { .. }),
            Self::Aggregate { operator, .. } => matches!(operator, Aggregator::TopK | Aggregator::BottomK),
            _ => false,
        }
    }
}

/// Series, and what is taken of their samples.
#[derive(Debug)]
pub(crate) struct Selector {
    /// Those of `__name__` among them.
    pub(crate) matchers: Vec<Matcher>,
    pub(crate) offset: Micros,
    pub(crate) take: Take,
    /// What is done next with the series: where that comes to the same, it is done while reading.
    pub(crate) then: Option<(Aggregator, Grouping)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Take {
    /// The latest sample within the look back.
    Latest,
    /// Of the samples of a window this long.
    Window(Window, Micros),
    /// The quantile of all events of a window, in percents, by the grouping of [`Selector::then`].
    Quantile(String, Micros),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Window {
    Increase,
    Rate,
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Last,
    Present,
    Quantile(f64),
    Stddev,
    Stdvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregator {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Group,
    Stddev,
    Stdvar,
    TopK,
    BottomK,
    Quantile,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Grouping {
    By(Vec<String>),
    Without(Vec<String>),
}

impl Grouping {
    /// Whether a label other than `__name__` stays.
    pub(crate) fn keeps(&self, label: &str) -> bool {
        match self {
            Self::By(labels) => labels.iter().any(|own| own == label),
            Self::Without(labels) => labels.iter().all(|own| own != label),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Function {
    Math(fn(f64) -> f64),
    Round,
    Clamp,
    ClampMin,
    ClampMax,
    Scalar,
    Vector,
    Sort { descending: bool },
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Power,
    Atan2,
    /// Of a comparison: whether it answers 0 and 1 instead of leaving out.
    Compare(Comparison, bool),
    And,
    Or,
    Unless,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Which labels of the two sides must be equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Matching {
    On(Vec<String>),
    Ignoring(Vec<String>),
}
