//! What of a query's conditions goes into lamina's plan: bounds of time, and conditions over dimensions.
//!
//! DataFusion tests all of them again on the rows it gets: what is not understood here costs time, never truth.

use datafusion::{
    common::Column,
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList},
    scalar::ScalarValue,
};
use lamina_core::Micros;
use lamina_metric::Metric;

use super::columns::TIME;

/// Longest condition that is handed on.
const MAX_CONDITION: usize = 4_000;

/// What of the conditions, all of which must hold, was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The first start that can pass.
    pub(super) from: Option<Micros>,
    /// The first start that cannot pass any more.
    pub(super) to: Option<Micros>,
    /// SQL over dimensions.
    pub(super) condition: Option<String>,
}

/// What the conditions are over: a column of time, and a metric's dimensions.
#[derive(Clone, Copy)]
struct Table<'a> {
    time: &'a str,
    metric: Option<&'a Metric>,
}

impl Bounds {
    pub(super) fn of(filters: &[Expr], metric: &Metric) -> Self {
        Self::over(filters, Table { time: TIME, metric: Some(metric) })
    }

    /// Of a column of time alone.
    pub(super) fn of_time(filters: &[Expr], time: &str) -> Self {
        Self::over(filters, Table { time, metric: None })
    }

    fn over(filters: &[Expr], table: Table<'_>) -> Self {
        let mut bounds = Self::default();
        let mut conditions: Vec<String> = Vec::new();
        for filter in filters {
            bounds.add(filter, table, &mut conditions);
        }
        let mut joined = String::new();
        for condition in conditions {
            if joined.len() + condition.len() + 5 <= MAX_CONDITION {
                joined = if joined.is_empty() { condition } else { format!("{joined} AND {condition}") };
            }
        }
        bounds.condition = (!joined.is_empty()).then_some(joined);
        bounds
    }

    fn add(&mut self, filter: &Expr, table: Table<'_>, conditions: &mut Vec<String>) {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                self.add(left, table, conditions);
                self.add(right, table, conditions);
            }
            Expr::Between(between) if !between.negated => {
                let of = |op, bound: &Expr| {
                    Expr::BinaryExpr(BinaryExpr::new(between.expr.clone(), op, Box::new(bound.clone())))
                };
                self.add(&of(Operator::GtEq, &between.low), table, conditions);
                self.add(&of(Operator::LtEq, &between.high), table, conditions);
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let time = |column: &Expr, op: Operator, literal: &Expr| {
                    Some((is_column(column, table.time).then_some(op)?, micros(literal)?))
                };
                let swapped = op.swap().and_then(|op| time(right, op, left));
                match time(left, *op, right).or(swapped) {
                    Some((op, (floor, exact))) => self.bound(op, floor, exact),
                    None => conditions.extend(table.metric.and_then(|metric| condition(filter, metric))),
                }
            }
            _ => conditions.extend(table.metric.and_then(|metric| condition(filter, metric))),
        }
    }

    /// A comparison of the start with an instant, of which the microsecond at or before it is given.
    fn bound(&mut self, op: Operator, floor: Micros, exact: bool) {
        let next = floor.saturating_add(1);
        let (at_least, above) = (if exact { floor } else { next }, next);
        let mut from = |at: Micros| self.from = Some(self.from.map_or(at, |own| own.max(at)));
        match op {
            Operator::GtEq => from(at_least),
            Operator::Gt => from(above),
            Operator::Eq => from(at_least),
            _ => {}
        }
        let mut to = |at: Micros| self.to = Some(self.to.map_or(at, |own| own.min(at)));
        match op {
            Operator::Lt => to(at_least),
            Operator::LtEq | Operator::Eq => to(above),
            _ => {}
        }
    }
}

fn is_column(expr: &Expr, wanted: &str) -> bool {
    matches!(expr, Expr::Column(Column { name, .. }) if name == wanted)
}

/// The microsecond at or before an instant, and whether it is the instant.
fn micros(expr: &Expr) -> Option<(Micros, bool)> {
    let Expr::Literal(value, _) = expr else { return None };
    match value {
        ScalarValue::TimestampSecond(Some(at), _) => at.checked_mul(1_000_000).map(|at| (at, true)),
        ScalarValue::TimestampMillisecond(Some(at), _) => at.checked_mul(1_000).map(|at| (at, true)),
        ScalarValue::TimestampMicrosecond(Some(at), _) => Some((*at, true)),
        ScalarValue::TimestampNanosecond(Some(at), _) => Some((at.div_euclid(1_000), at.rem_euclid(1_000) == 0)),
        _ => None,
    }
}

/// A condition over one dimension and literals, in the language of lamina's filters.
fn condition(expr: &Expr, metric: &Metric) -> Option<String> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (name, op, value) = match (dimension(left, metric), dimension(right, metric)) {
                (Some(name), None) => (name, *op, literal(right)?),
                (None, Some(name)) => (name, op.swap()?, literal(left)?),
                _ => return None,
            };
            let sign = match op {
                Operator::Eq => "=",
                Operator::NotEq => "<>",
                Operator::Lt => "<",
                Operator::LtEq => "<=",
                Operator::Gt => ">",
                Operator::GtEq => ">=",
                _ => return None,
            };
            Some(format!("{name} {sign} {value}"))
        }
        Expr::InList(InList { expr, list, negated }) => {
            let name = dimension(expr, metric)?;
            let values = list.iter().map(literal).collect::<Option<Vec<_>>>()?;
            let not = if *negated { "NOT " } else { "" };
            (!values.is_empty()).then(|| format!("{name} {not}IN ({})", values.join(", ")))
        }
        Expr::IsNull(expr) => Some(format!("{} IS NULL", dimension(expr, metric)?)),
        Expr::IsNotNull(expr) => Some(format!("{} IS NOT NULL", dimension(expr, metric)?)),
        _ => None,
    }
}

/// The dimension that a column is, quoted.
fn dimension(expr: &Expr, metric: &Metric) -> Option<String> {
    let Expr::Column(Column { name, .. }) = expr else { return None };
    // A dimension that had to be renamed is not known by its column's name.
    let known = name != TIME && metric.dimensions.iter().any(|dimension| dimension.name == *name);
    known.then(|| format!("\"{}\"", name.replace('"', "\"\"")))
}

fn literal(expr: &Expr) -> Option<String> {
    let Expr::Literal(value, _) = expr else { return None };
    match value {
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => {
            Some(format!("'{}'", text.replace('\'', "''")))
        }
        ScalarValue::Int64(Some(value)) => Some(value.to_string()),
        ScalarValue::Boolean(Some(value)) => Some(value.to_string()),
        _ => None,
    }
}
