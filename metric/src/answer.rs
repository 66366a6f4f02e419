//! What queries ask of states, and what they are answered.

mod of;

use lamina_core::Micros;
use serde::Serialize;
use serde_json::Value;

pub use self::of::AnswerType;
use crate::{
    aggregate::Aggregate,
    metric::Metric,
    state::{
        Column, DISTINCT_ERROR, Kind, Number, QUANTILE_ERROR, Rank, StateError, States, quotient, to_float, top_error,
    },
};

pub use crate::state::TopItem;

/// What a query asks of a metric, as parsed from `sum`, `p99.9`, `distinct(user)`, `top(page)` or `top(page, 5)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    text: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Count,
    Sum,
    Avg,
    Min,
    Max,
    First,
    Last,
    Distinct { input: u32 },
    Quantile(Rank),
    Top { input: u32, k: u32, limit: u32 },
}

/// The error bound of an approximate answer; it holds at 99 % or better.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Approximate {
    /// Of the answer itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
    /// Of each count, as a share of all events with a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_error: Option<f64>,
}

impl Ask {
    /// # Errors
    /// If the metric does not keep what is asked, or the text asks nothing known; names what is allowed.
    pub fn parse(text: &str, metric: &Metric) -> Result<Self, String> {
        Self::of(text, &metric.aggregates, &metric.name)
    }

    pub(crate) fn of(text: &str, aggregates: &[Aggregate], metric: &str) -> Result<Self, String> {
        let text = text.trim();
        let what = What::parse(text, aggregates);
        let what = what.ok_or_else(|| format!("metric {metric} has no `{text}`; it has {}", allowed(aggregates)))?;
        Ok(Self { text: text.to_owned(), what })
    }

    /// As it was asked.
    pub fn name(&self) -> &str {
        &self.text
    }

    /// The error bound, if the answer is not exact.
    pub fn approximate(&self) -> Option<Approximate> {
        let relative = |error| Approximate { relative_error: Some(error), share_error: None };
        match self.what {
            What::Distinct { .. } => Some(relative(DISTINCT_ERROR)),
            What::Quantile(_) => Some(relative(QUANTILE_ERROR)),
            What::Top { k, .. } => Some(Approximate { relative_error: None, share_error: Some(top_error(k)) }),
            _ => None,
        }
    }
}

impl What {
    fn parse(text: &str, aggregates: &[Aggregate]) -> Option<Self> {
        let has = |aggregate: Aggregate| aggregates.contains(&aggregate);
        // The sum is kept for the average and gives it.
        let sums = has(Aggregate::Sum) || has(Aggregate::Avg);
        match text {
            "count" => return Some(Self::Count),
            "sum" if sums => return Some(Self::Sum),
            "avg" if sums => return Some(Self::Avg),
            "min" if has(Aggregate::Min) => return Some(Self::Min),
            "max" if has(Aggregate::Max) => return Some(Self::Max),
            "first" if has(Aggregate::First) => return Some(Self::First),
            "last" if has(Aggregate::Last) => return Some(Self::Last),
            _ => {}
        }
        if let Some(percents) = text.strip_prefix('p').filter(|_| has(Aggregate::Quantiles))
            && let Some(rank) = Rank::parse(percents)
        {
            return Some(Self::Quantile(rank));
        }
        let (function, arguments) = text.strip_suffix(')')?.split_once('(')?;
        match function.trim_end() {
            "distinct" => aggregates.iter().find_map(|aggregate| match aggregate {
                Aggregate::Distinct { field, input } if field == arguments.trim() => {
                    Some(Self::Distinct { input: *input as u32 })
                }
                _ => None,
            }),
            "top" => aggregates.iter().find_map(|aggregate| match aggregate {
                Aggregate::Top { field, input, k } => {
                    limit(arguments, field, *k).map(|limit| Self::Top { input: *input as u32, k: *k, limit })
                }
                _ => None,
            }),
            _ => None,
        }
    }
}

/// How many of `top(FIELD)` or `top(FIELD, N)` are asked for, if it is this field and the metric keeps as many.
fn limit(arguments: &str, field: &str, k: u32) -> Option<u32> {
    let arguments = arguments.trim();
    if arguments == field {
        return Some(k);
    }
    // A field may be quoted and hold a comma itself: the number comes after the last.
    let (asked, limit) = arguments.rsplit_once(',')?;
    let limit = limit.trim().parse().ok()?;
    (asked.trim() == field && (1..=k).contains(&limit)).then_some(limit)
}

fn allowed(aggregates: &[Aggregate]) -> String {
    let mut names = vec!["count".to_owned()];
    for aggregate in aggregates {
        let of = match aggregate {
            Aggregate::Count => continue,
            Aggregate::Sum | Aggregate::Avg => vec!["sum".to_owned(), "avg".to_owned()],
            Aggregate::Min => vec!["min".to_owned()],
            Aggregate::Max => vec!["max".to_owned()],
            Aggregate::First => vec!["first".to_owned()],
            Aggregate::Last => vec!["last".to_owned()],
            Aggregate::Distinct { field, .. } => vec![format!("distinct({field})")],
            Aggregate::Quantiles => vec!["p0 to p100 (such as p50 or p99.9)".to_owned()],
            Aggregate::Top { field, k, .. } => vec![format!("top({field}) or top({field}, N) with N up to {k}")],
        };
        names.extend(of.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    }
    names.join(", ")
}

/// The value of an aggregate.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// There was nothing but nulls.
    Null,
    Int(i128),
    Float(f64),
    /// `value` / 10^`scale`.
    Decimal {
        value: i128,
        scale: i8,
    },
    Str(String),
    Bool(bool),
    Time(Micros),
    Top(Vec<TopItem>),
}

/// How numbers that a double does not hold are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    /// Every number is a JSON number with all its digits.
    #[default]
    Number,
    /// Integers beyond 2^53 and decimals are strings.
    String,
}

impl Answer {
    pub fn to_json(&self, numbers: Numbers) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Int(value) => {
                let large = value.unsigned_abs() > 1 << 53;
                number(value.to_string(), large && numbers == Numbers::String)
            }
            Self::Decimal { value, scale } => number(decimal(*value, *scale), numbers == Numbers::String),
            // States hold finite floats only.
            Self::Float(value) => Value::from(*value),
            Self::Str(value) => value.as_str().into(),
            Self::Bool(value) => (*value).into(),
            Self::Time(micros) => time(*micros).into(),
            Self::Top(items) => items.iter().map(|item| top_item(item, numbers)).collect(),
        }
    }
}

fn number(digits: String, quoted: bool) -> Value {
    let number = (!quoted).then(|| digits.parse::<serde_json::Number>().ok()).flatten();
    number.map_or(Value::String(digits), Value::Number)
}

fn top_item(item: &TopItem, numbers: Numbers) -> Value {
    let count = |count: u64| Answer::Int(i128::from(count)).to_json(numbers);
    serde_json::json!({"value": item.value, "count": count(item.count), "error": count(item.error)})
}

/// RFC 3339 in UTC; an instant beyond the calendar as its microseconds.
fn time(micros: Micros) -> String {
    chrono::DateTime::from_timestamp_micros(micros)
        .map_or_else(|| micros.to_string(), |time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

/// A decimal with all the digits of its scale: 1230 at scale 2 is `12.30`.
fn decimal(value: i128, scale: i8) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let digits = value.unsigned_abs().to_string();
    let Ok(scale) = usize::try_from(scale) else {
        let zeros = if value == 0 { 0 } else { usize::from(scale.unsigned_abs()) };
        return format!("{sign}{digits}{}", "0".repeat(zeros));
    };
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

impl States {
    /// The answer of one row.
    ///
    /// # Errors
    /// [`StateError::Overflow`] if the sum of this row does not fit; [`StateError::NotKept`] if the states are another
    /// metric's.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn answer(&self, row: usize, ask: &Ask) -> Result<Answer, StateError> {
        let number = self.layout.number;
        let kept = |kind: Kind| {
            let at = self.layout.kinds.iter().position(|own| *own == kind);
            at.map(|at| &self.columns[at]).ok_or_else(|| StateError::NotKept(ask.text.clone()))
        };
        let valued = |value: Option<i128>| value.map_or(Answer::Null, |value| typed(value, number));
        let column = match &ask.what {
            What::Count => return Ok(Answer::Int(i128::from(self.counts[row]))),
            What::Sum | What::Avg => kept(Kind::Sum)?,
            What::Min => kept(Kind::Min)?,
            What::Max => kept(Kind::Max)?,
            What::First => kept(Kind::First)?,
            What::Last => kept(Kind::Last)?,
            What::Quantile(_) => kept(Kind::Quantiles)?,
            What::Distinct { input } => kept(Kind::Distinct { input: *input })?,
            What::Top { input, k, .. } => kept(Kind::Top { input: *input, k: *k })?,
        };
        Ok(match (column, &ask.what) {
            (Column::Sum(cells), _) if cells[row].n == 0 => Answer::Null,
            (Column::Sum(cells), What::Avg) => {
                let sum = cells[row].total(matches!(number, Number::Decimal { .. }))?;
                Answer::Float(scaled(quotient(sum, cells[row].n), number))
            }
            (Column::Sum(cells), _) => typed(cells[row].total(matches!(number, Number::Decimal { .. }))?, number),
            (Column::FloatSum(cells), _) if cells[row].n == 0 => Answer::Null,
            (Column::FloatSum(cells), What::Avg) => Answer::Float(cells[row].total()? / cells[row].n as f64),
            (Column::FloatSum(cells), _) => Answer::Float(cells[row].total()?),
            (Column::Min(cells), _) => valued(cells[row].0),
            (Column::Max(cells), _) => valued(cells[row].0),
            (Column::First(cells), _) => valued(cells[row].0.as_ref().map(|moment| moment.value)),
            (Column::Last(cells), _) => valued(cells[row].0.as_ref().map(|moment| moment.value)),
            (Column::Quantiles(cells), What::Quantile(rank)) => {
                cells[row].quantile(*rank).map_or(Answer::Null, Answer::Float)
            }
            (Column::Distinct(cells), _) => {
                cells[row].estimate()?.map_or(Answer::Null, |count| Answer::Int(i128::from(count)))
            }
            (Column::Top(cells), What::Top { limit, .. }) => match cells[row].most(*limit) {
                items if items.is_empty() => Answer::Null,
                items => Answer::Top(items),
            },
            _ => return Err(StateError::NotKept(ask.text.clone())),
        })
    }
}

/// A kept value as an answer of the metric's type.
fn typed(value: i128, number: Number) -> Answer {
    match number {
        Number::Decimal { scale } => Answer::Decimal { value, scale },
        Number::Float => Answer::Float(to_float(value, number)),
        Number::Int | Number::None => Answer::Int(value),
    }
}

fn scaled(unscaled: f64, number: Number) -> f64 {
    match number {
        Number::Decimal { scale } => unscaled / 10_f64.powi(i32::from(scale)),
        _ => unscaled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_all_their_digits() {
        let json = |answer: Answer, numbers| serde_json::to_string(&answer.to_json(numbers)).unwrap();
        let dec = |value, scale| Answer::Decimal { value, scale };
        assert_eq!(json(Answer::Int(i128::MAX), Numbers::Number), i128::MAX.to_string());
        assert_eq!(json(Answer::Int((1 << 53) + 1), Numbers::String), "\"9007199254740993\"");
        assert_eq!(json(Answer::Int(1 << 53), Numbers::String), "9007199254740992");
        assert_eq!(json(dec(1230, 2), Numbers::Number), "12.30");
        assert_eq!(json(dec(-5, 3), Numbers::Number), "-0.005");
        assert_eq!(json(dec(-5, 3), Numbers::String), "\"-0.005\"");
        assert_eq!((json(dec(7, -2), Numbers::Number), json(dec(7, 0), Numbers::Number)), ("700".into(), "7".into()));
        assert_eq!(json(Answer::Float(0.1 + 0.2), Numbers::Number), "0.30000000000000004");
        assert_eq!(json(Answer::Time(1_500_000), Numbers::Number), "\"1970-01-01T00:00:01.500Z\"");
    }

    #[test]
    fn an_ask_names_what_the_metric_allows() {
        let kept = [
            Aggregate::Avg,
            Aggregate::Quantiles,
            Aggregate::Distinct { field: "geo.user".into(), input: 0 },
            Aggregate::Top { field: "page".into(), input: 1, k: 10 },
        ];
        let ask = |text: &str| Ask::of(text, &kept, "edits");
        for text in ["count", "sum", "avg", "p0", "p99.9", "p100", "distinct(geo.user)", "top(page)", "top( page , 3 )"]
        {
            assert_eq!(ask(text).unwrap().name(), text);
        }
        for text in
            ["min", "", "p", "p101", "distinct(page)", "distinct", "top(page, 11)", "top(page, 0)", "top(page,x)"]
        {
            let error = ask(text).unwrap_err();
            assert!(error.contains("count, sum, avg, p0 to p100") && error.contains("distinct(geo.user)"), "{error}");
        }
        let bound = |text: &str| serde_json::to_string(&ask(text).unwrap().approximate()).unwrap();
        assert_eq!(bound("p95"), r#"{"relative_error":0.01}"#);
        assert_eq!(bound("top(page)"), r#"{"share_error":0.0078125}"#);
        assert_eq!(bound("sum"), "null");
    }
}
