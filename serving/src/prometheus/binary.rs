//! Operators between scalars and vectors. Vectors match one to one.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Failure,
    expression::{Comparison, Matching, Operator},
    names::NAME,
    vector::{Budget, Labels, Row, Value, distinct, kept, without_name},
};

pub(super) fn binary(
    operator: Operator,
    left: Value,
    right: Value,
    matching: &Matching,
    instants: usize,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    match (left, right) {
        (Value::Scalar(left), Value::Scalar(right)) => {
            budget.values(1, instants)?;
            if operator.is_set() || matches!(operator, Operator::Compare(_, false)) {
                let why = if operator.is_set() {
                    "set operators take vectors"
                } else {
                    "comparisons between scalars must use bool"
                };
                return Err(Failure::bad_data(why));
            }
            let values = left.into_iter().zip(right).map(|(left, right)| operator.of(left, right).unwrap_or(f64::NAN));
            Ok(Value::Scalar(values.collect()))
        }
        (Value::Vector(rows), Value::Scalar(scalar)) => {
            with_scalar(operator, rows, &scalar, budget, |value, scalar| (value, scalar))
        }
        (Value::Scalar(scalar), Value::Vector(rows)) => {
            with_scalar(operator, rows, &scalar, budget, |value, scalar| (scalar, value))
        }
        (Value::Vector(left), Value::Vector(right)) => {
            budget.values(left.len() + right.len(), instants)?;
            let rows = match operator {
                Operator::And | Operator::Or | Operator::Unless => set(operator, left, right, matching, instants),
                _ => one_to_one(operator, left, right, matching)?,
            };
            distinct(rows).map(Value::Vector)
        }
        _ => Err(Failure::bad_data("operators take scalars and instant vectors")),
    }
}

fn with_scalar(
    operator: Operator,
    rows: Vec<Row>,
    scalar: &[f64],
    budget: &mut Budget,
    sides: impl Fn(f64, f64) -> (f64, f64),
) -> Result<Value, Failure> {
    if operator.is_set() {
        return Err(Failure::bad_data("set operators take vectors"));
    }
    budget.values(rows.len(), scalar.len())?;
    let row = |row: Row| {
        let values = row.values.iter().zip(scalar).map(|(value, &scalar)| {
            let value = (*value)?;
            let (left, right) = sides(value, scalar);
            operator.kept(left, right, value)
        });
        Row {
            values: values.collect(),
            labels: if operator.drops_name() { without_name(row.labels) } else { row.labels },
        }
    };
    distinct(rows.into_iter().map(row).collect()).map(Value::Vector)
}

impl Operator {
    fn is_set(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }

    /// Whether the result is another quantity than the operands.
    fn drops_name(self) -> bool {
        !matches!(self, Self::Compare(_, false) | Self::And | Self::Or | Self::Unless)
    }

    /// The result; `None` where a comparison does not hold.
    fn of(self, left: f64, right: f64) -> Option<f64> {
        Some(match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Modulo => left % right,
            Self::Power => left.powf(right),
            Self::Atan2 => left.atan2(right),
            Self::Compare(comparison, true) => f64::from(u8::from(comparison.holds(left, right))),
            Self::Compare(comparison, false) => return comparison.holds(left, right).then_some(left),
            Self::And | Self::Or | Self::Unless => return None,
        })
    }

    /// The result; of a comparison that leaves out, `value`.
    fn kept(self, left: f64, right: f64, value: f64) -> Option<f64> {
        match self {
            Self::Compare(comparison, false) => comparison.holds(left, right).then_some(value),
            _ => self.of(left, right),
        }
    }
}

impl Comparison {
    #[expect(clippy::float_cmp, reason = "it is what was asked")]
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

/// The labels that must be equal.
fn key(labels: &Labels, matching: &Matching) -> Labels {
    kept(labels, |name| match matching {
        Matching::On(on) => on.iter().any(|own| own == name),
        Matching::Ignoring(ignored) => name != NAME && ignored.iter().all(|own| own != name),
    })
}

fn one_to_one(operator: Operator, left: Vec<Row>, right: Vec<Row>, matching: &Matching) -> Result<Vec<Row>, Failure> {
    let mut by_key: BTreeMap<Labels, Row> = BTreeMap::new();
    for row in right {
        if by_key.insert(key(&row.labels, matching), row).is_some() {
            return Err(many("right"));
        }
    }
    let mut rows: BTreeMap<Labels, Row> = BTreeMap::new();
    for row in left {
        let key = key(&row.labels, matching);
        let Some(other) = by_key.get(&key) else { continue };
        let values = row.values.iter().zip(&other.values).map(|(left, right)| operator.of((*left)?, (*right)?));
        let values = values.collect();
        let mut labels = key.clone();
        if let (false, Matching::Ignoring(_), Some((name, own))) =
            (operator.drops_name(), matching, row.labels.get_key_value(NAME))
        {
            labels.insert(Arc::clone(name), Arc::clone(own));
        }
        if rows.insert(key, Row { labels, values }).is_some() {
            return Err(many("left"));
        }
    }
    Ok(rows.into_values().collect())
}

fn many(side: &str) -> Failure {
    Failure::execution(format!(
        "several series on the {side} side match one of the other: name the labels that tell them apart with on or ignoring \
         (group_left and group_right are not supported)"
    ))
}

fn set(operator: Operator, left: Vec<Row>, right: Vec<Row>, matching: &Matching, instants: usize) -> Vec<Row> {
    let presence = |rows: &[Row]| {
        let mut presence: BTreeMap<Labels, Vec<bool>> = BTreeMap::new();
        for row in rows {
            let present = presence.entry(key(&row.labels, matching)).or_insert_with(|| vec![false; instants]);
            present.iter_mut().zip(&row.values).for_each(|(present, value)| *present |= value.is_some());
        }
        presence
    };
    let where_present = |row: Row, presence: &BTreeMap<Labels, Vec<bool>>, wanted: bool| {
        let present = presence.get(&key(&row.labels, matching));
        let is = |instant: usize| present.is_some_and(|present| present[instant]);
        let values = row.values.iter().enumerate().map(|(instant, value)| value.filter(|_| is(instant) == wanted));
        Row { values: values.collect(), labels: row.labels }
    };
    if operator != Operator::Or {
        let presence = presence(&right);
        return left.into_iter().map(|row| where_present(row, &presence, operator == Operator::And)).collect();
    }
    let presence = presence(&left);
    let mut rows: BTreeMap<Labels, Row> = left.into_iter().map(|row| (row.labels.clone(), row)).collect();
    for row in right {
        let row = where_present(row, &presence, false);
        match rows.get_mut(&row.labels) {
            Some(own) => own.values.iter_mut().zip(&row.values).for_each(|(own, other)| *own = own.or(*other)),
            None => drop(rows.insert(row.labels.clone(), row)),
        }
    }
    rows.into_values().collect()
}
