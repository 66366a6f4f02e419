//! Which values a condition leaves to its dimensions, as far as equality, IN and bare booleans joined by AND tell.

use std::collections::{BTreeMap, btree_map::Entry};

use arrow::datatypes::DataType;
use datafusion::{
    logical_expr::{BinaryExpr, Expr, Operator},
    scalar::ScalarValue,
};

use crate::{metric::Dimension, series::DimensionValue};

/// Dimension → the only values with which the condition can be true. A dimension that is left out may have any.
pub(super) type Pinned = BTreeMap<usize, Vec<DimensionValue>>;

pub(super) fn pinned(condition: &Expr, dimensions: &[Dimension]) -> Pinned {
    let mut pinned = Pinned::new();
    let mut rest = vec![condition];
    while let Some(part) = rest.pop() {
        if let Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) = part {
            rest.extend([&**left, &**right]);
        } else if let Some((at, values)) = values(part, dimensions) {
            match pinned.entry(at) {
                Entry::Vacant(free) => drop(free.insert(values)),
                Entry::Occupied(mut known) => {
                    known.get_mut().retain(|value| values.contains(value));
                }
            }
        }
    }
    pinned
}

/// The dimension and the values of `d = v`, `v = d`, `d IN (v, ...)`, `d` or `NOT d`.
fn values(part: &Expr, dimensions: &[Dimension]) -> Option<(usize, Vec<DimensionValue>)> {
    let column = |expr: &Expr| match expr {
        Expr::Column(column) => dimensions.iter().position(|dimension| dimension.name == column.name),
        _ => None,
    };
    let truth = |at: usize, truth| {
        (dimensions[at].data_type == DataType::Boolean).then(|| (at, vec![DimensionValue::Bool(truth)]))
    };
    match part {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
            let (at, literal) = match (column(left), column(right)) {
                (Some(at), None) => (at, right),
                (None, Some(at)) => (at, left),
                _ => return None,
            };
            Some((at, vec![value(literal, &dimensions[at])?]))
        }
        Expr::InList(list) if !list.negated => {
            let at = column(&list.expr)?;
            let values: Option<Vec<_>> = list.list.iter().map(|one| value(one, &dimensions[at])).collect();
            Some((at, values?))
        }
        Expr::Column(_) => truth(column(part)?, true),
        Expr::Not(inner) => truth(column(inner)?, false),
        _ => None,
    }
}

/// A literal of the dimension's own type. Others would be coerced, and floats are equal in more ways than one.
fn value(literal: &Expr, dimension: &Dimension) -> Option<DimensionValue> {
    let Expr::Literal(literal, _) = literal else { return None };
    if literal.data_type() != dimension.data_type {
        return None;
    }
    match literal {
        ScalarValue::Utf8(Some(text)) => Some(DimensionValue::Str(text.clone())),
        ScalarValue::Int64(Some(number)) => Some(DimensionValue::Int(*number)),
        ScalarValue::Boolean(Some(truth)) => Some(DimensionValue::Bool(*truth)),
        _ => None,
    }
}
