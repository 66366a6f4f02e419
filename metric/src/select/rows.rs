//! A filter with rules over rows beneath it, which no text of the filter can get around: the two are joined as expressions.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use datafusion::{
    common::Column,
    logical_expr::{BinaryExpr, Expr, Operator, expr::InList, lit},
};

use super::{SeriesFilter, condition, pinned};
use crate::metric::{Dimension, Metric};

impl SeriesFilter {
    /// The filter `sql`, if any, within rules: dimension → the only values of it that pass. `None` if there is neither. Of a
    /// dimension that is no text, a value is what a filter would call it; one of another type passes nothing.
    ///
    /// # Errors
    /// As [`SeriesFilter::parse`]; and if the metric lacks a dimension that a rule is about.
    pub fn within(
        sql: Option<&str>,
        rules: &BTreeMap<String, Vec<String>>,
        metric: &Metric,
    ) -> Result<Option<Self>, String> {
        Self::joined(sql, rules, &metric.dimensions)
    }

    pub(super) fn joined(
        sql: Option<&str>,
        rules: &BTreeMap<String, Vec<String>>,
        dimensions: &[Dimension],
    ) -> Result<Option<Self>, String> {
        // By itself first: it must be a condition of its own.
        let asked = sql.map(|sql| Self::over(sql, dimensions)).transpose()?;
        if rules.is_empty() {
            return Ok(asked);
        }
        let (mut links, mut columns) = (Vec::new(), Vec::new());
        if let Some(sql) = sql {
            let (condition, used) = condition::parse(sql, dimensions)?;
            links.push(condition);
            columns.extend(used);
        }
        for (name, values) in rules {
            let at = dimensions.iter().position(|dimension| dimension.name == *name);
            let at = at.ok_or_else(|| format!("there is no dimension {name:?}, which a rule over rows is about"))?;
            columns.push(at);
            links.push(one_of(&dimensions[at], values));
        }
        columns.sort_unstable();
        columns.dedup();
        let and = |left, right| Expr::BinaryExpr(BinaryExpr::new(Box::new(left), Operator::And, Box::new(right)));
        let Some(whole) = links.into_iter().reduce(and) else { return Ok(None) };
        let pinned = pinned::pinned(&whole, dimensions);
        Self::compile(whole, columns, pinned, dimensions).map(Some)
    }
}

/// `dimension IN (values)`; FALSE if no value is of its type.
fn one_of(dimension: &Dimension, values: &[String]) -> Expr {
    let literal = |text: &String| match dimension.data_type {
        DataType::Int64 => text.parse::<i64>().ok().map(lit),
        DataType::Float64 => text.parse::<f64>().ok().map(lit),
        DataType::Boolean => text.parse::<bool>().ok().map(lit),
        _ => Some(lit(text.as_str())),
    };
    let literals: Vec<Expr> = values.iter().filter_map(literal).collect();
    if literals.is_empty() {
        return lit(false);
    }
    let column = Expr::Column(Column::new_unqualified(dimension.name.clone()));
    Expr::InList(InList::new(Box::new(column), literals, false))
}
