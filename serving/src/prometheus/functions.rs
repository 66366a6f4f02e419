//! Functions of instant vectors and scalars.

use super::{
    Failure,
    expression::Function,
    vector::{Budget, Labels, Row, Value, distinct, without_name},
};

impl Function {
    /// Of evaluated arguments, at so many instants; `labels` are those that [`Function::Absent`] gives its series.
    pub(super) fn of(
        self,
        arguments: Vec<Value>,
        labels: Labels,
        instants: usize,
        budget: &mut Budget,
    ) -> Result<Value, Failure> {
        let mut arguments = arguments.into_iter();
        let first = arguments.next().ok_or_else(|| Failure::bad_data("a function without arguments"))?;
        let more = arguments.map(scalar).collect::<Result<Vec<_>, _>>()?;
        if let Self::Vector = self {
            budget.values(1, instants)?;
            let values = scalar(first)?.into_iter().map(Some).collect();
            return Ok(Value::Vector(vec![Row { labels: Labels::new(), values }]));
        }
        let rows = vector(first)?;
        budget.values(rows.len().max(1), instants)?;
        let at = |argument: usize, instant: usize| {
            let value = more.get(argument).and_then(|values| values.get(instant));
            value.copied().unwrap_or(f64::NAN)
        };
        match self {
            Self::Math(function) => each(rows, |_, value| function(value)),
            Self::Round if more.is_empty() => each(rows, |_, value| round(value, 1.0)),
            Self::Round => each(rows, |instant, value| round(value, at(0, instant))),
            Self::Clamp => each(rows, |instant, value| most(least(value, at(0, instant)), at(1, instant))),
            Self::ClampMin => each(rows, |instant, value| least(value, at(0, instant))),
            Self::ClampMax => each(rows, |instant, value| most(value, at(0, instant))),
            Self::Sort { descending } => Ok(Value::Vector(sorted(rows, descending))),
            Self::Absent => {
                let values = (0..instants).map(|instant| present(&rows, instant).next().is_none().then_some(1.0));
                Ok(Value::Vector(vec![Row { labels, values: values.collect() }]))
            }
            Self::Scalar | Self::Vector => {
                Ok(Value::Scalar((0..instants).map(|instant| only(&rows, instant)).collect()))
            }
        }
    }
}

/// The values at an instant.
fn present(rows: &[Row], instant: usize) -> impl Iterator<Item = f64> + '_ {
    rows.iter().filter_map(move |row| row.values.get(instant).copied().flatten())
}

/// The value at an instant, if there is exactly one.
fn only(rows: &[Row], instant: usize) -> f64 {
    let mut values = present(rows, instant);
    let first = values.next();
    first.filter(|_| values.next().is_none()).unwrap_or(f64::NAN)
}

pub(super) fn scalar(value: Value) -> Result<Vec<f64>, Failure> {
    match value {
        Value::Scalar(values) => Ok(values),
        other => Err(Failure::bad_data(format!("a scalar is expected, not a{}", article(&other)))),
    }
}

pub(super) fn vector(value: Value) -> Result<Vec<Row>, Failure> {
    match value {
        Value::Vector(rows) => Ok(rows),
        other => Err(Failure::bad_data(format!("an instant vector is expected, not a{}", article(&other)))),
    }
}

fn article(value: &Value) -> String {
    let kind = value.kind();
    if kind.starts_with('i') { format!("n {kind}") } else { format!(" {kind}") }
}

fn each(rows: Vec<Row>, of: impl Fn(usize, f64) -> f64) -> Result<Value, Failure> {
    let row = |row: Row| {
        let values = row.values.into_iter().enumerate();
        let values = values.map(|(instant, value)| value.map(|value| of(instant, value))).collect();
        Row { labels: without_name(row.labels), values }
    };
    distinct(rows.into_iter().map(row).collect()).map(Value::Vector)
}

/// To the nearest multiple; ties up.
fn round(value: f64, nearest: f64) -> f64 {
    // As Prometheus computes it, so that 0.1 does not come out as 0.10000000000000009.
    let inverse = 1.0 / nearest;
    (value * inverse + 0.5).floor() / inverse
}

fn least(value: f64, bound: f64) -> f64 {
    if value.is_nan() || bound.is_nan() { f64::NAN } else { value.max(bound) }
}

fn most(value: f64, bound: f64) -> f64 {
    if value.is_nan() || bound.is_nan() { f64::NAN } else { value.min(bound) }
}

/// By the value of the only instant; what is not a number comes last.
fn sorted(mut rows: Vec<Row>, descending: bool) -> Vec<Row> {
    let key = |row: &Row| row.values.first().copied().flatten().unwrap_or(f64::NAN);
    rows.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        let ascending = a.total_cmp(&b);
        a.is_nan().cmp(&b.is_nan()).then(if descending { ascending.reverse() } else { ascending })
    });
    rows
}

/// As Prometheus interpolates between ranks.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranks are between 0 and the number of values"
)]
pub(super) fn quantile(rank: f64, mut values: Vec<f64>) -> f64 {
    if values.is_empty() || rank.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&rank) {
        return if rank < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    values.sort_unstable_by(f64::total_cmp);
    let place = rank * (values.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    let weight = place - place.floor();
    values[low] * (1.0 - weight) + values[high.min(values.len() - 1)] * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_ranked_as_prometheus_does() {
        assert_eq!([2.5, -2.5, 2.4].map(|value| round(value, 1.0)), [3.0, -2.0, 2.0]);
        assert_eq!(round(1.23, 0.1), 1.2);
        assert_eq!(quantile(0.5, vec![4.0, 1.0, 2.0]), 2.0);
        assert_eq!(quantile(0.25, vec![0.0, 10.0]), 2.5);
        assert_eq!(quantile(1.0, vec![0.0, 10.0]), 10.0);
        assert_eq!(quantile(-0.1, vec![1.0]), f64::NEG_INFINITY);
        assert!(quantile(f64::NAN, vec![1.0]).is_nan() && quantile(0.5, Vec::new()).is_nan());
    }
}
