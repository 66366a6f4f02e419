//! What a metric keeps of its events: the aggregates and the type of the value they are taken over.

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Problem, nearest};

const MOST_TOP: u32 = 1_000;
const AGGREGATES: &str = "count, sum, min, max, avg, first, last, distinct(FIELD), quantiles and top(FIELD, K)";

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
    /// The aggregate that a text names, as in `sum`, `distinct(user)`, `top(page, 10)`. `inputs` are the arguments so far;
    /// aggregates of the same argument share one.
    pub(crate) fn parse(text: &str, inputs: &mut Vec<String>) -> Result<Self, Problem> {
        let text = text.trim();
        let simple = match text {
            "count" => Some(Self::Count),
            "sum" => Some(Self::Sum),
            "min" => Some(Self::Min),
            "max" => Some(Self::Max),
            "avg" => Some(Self::Avg),
            "first" => Some(Self::First),
            "last" => Some(Self::Last),
            "quantiles" => Some(Self::Quantiles),
            _ => None,
        };
        if let Some(simple) = simple {
            return Ok(simple);
        }
        let unknown = || unknown(text);
        let mut input_of = |field: &str| match inputs.iter().position(|known| known == field) {
            Some(input) => input,
            None => {
                inputs.push(field.to_owned());
                inputs.len() - 1
            }
        };
        let (name, arguments) = text.strip_suffix(')').and_then(|text| text.split_once('(')).ok_or_else(unknown)?;
        let arguments = arguments.trim();
        match name.trim() {
            "distinct" if !arguments.is_empty() => {
                Ok(Self::Distinct { field: arguments.to_owned(), input: input_of(arguments) })
            }
            "top" if !arguments.is_empty() => {
                let split =
                    arguments.rsplit_once(',').and_then(|(field, k)| Some((field.trim(), k.trim().parse().ok()?)));
                let (field, k) = split.unwrap_or((arguments, 10));
                if !(1..=MOST_TOP).contains(&k) || field.is_empty() {
                    return Err(Problem::new(
                        format!("{text} is not usable"),
                        format!("write top(FIELD, K) with K from 1 to {MOST_TOP}"),
                    ));
                }
                Ok(Self::Top { field: field.to_owned(), input: input_of(field), k })
            }
            _ => Err(unknown()),
        }
    }

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

fn unknown(text: &str) -> Problem {
    let name = text.split('(').next().unwrap_or(text);
    let names = ["count", "sum", "min", "max", "avg", "first", "last", "distinct", "quantiles", "top"];
    let percentile = name.starts_with('p') && name[1..].starts_with(|c: char| c.is_ascii_digit());
    let help = match (percentile, nearest(name, names)) {
        (true, _) => "keep quantiles; queries ask for p50, p99.9 and so on".to_owned(),
        (false, _) if matches!(name, "mean" | "average") => "did you mean avg?".to_owned(),
        (false, _) if name == "median" => "keep quantiles; queries ask for p50".to_owned(),
        (false, Some("distinct")) => "write distinct(FIELD)".to_owned(),
        (false, Some("top")) => "write top(FIELD, K)".to_owned(),
        (false, Some(near)) => format!("did you mean {near}?"),
        (false, None) => format!("aggregates are {AGGREGATES}"),
    };
    Problem::new(format!("aggregate {text:?} is not known"), help)
}
