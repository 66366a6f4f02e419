//! A boolean SQL filter over a metric's dimensions, for queries.
//!
//! What is allowed is built up, not what is forbidden left out: tokens first (so that the parser never sees a function, a
//! subquery or a keyword of a statement, and a dimension may be named like one), then the syntax tree node by node into
//! DataFusion's expressions. Outside text can neither run long nor overflow the stack: its length is limited, the parser
//! bounds nesting, chains of AND or OR become balanced trees and other chains are bounded by [`MAX_DEPTH`].

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use datafusion::{
    common::{Column, DFSchema, ScalarValue},
    execution::session_state::SessionStateBuilder,
    logical_expr::{
        BinaryExpr, Expr, Like, Operator,
        expr::{Between, InList},
        lit,
    },
    physical_expr::PhysicalExpr,
    sql::sqlparser::{
        ast::{self, BinaryOperator, UnaryOperator},
        dialect::GenericDialect,
        keywords::Keyword,
        parser::Parser,
        tokenizer::{Token, Tokenizer, Word},
    },
};

use crate::{
    metric::{Dimension, Metric, View},
    series::{DimensionValue, Series},
};

/// Longest filter, in bytes.
const MAX_LENGTH: usize = 4096;
/// Deepest nesting, AND and OR chains not counted.
const MAX_DEPTH: usize = 48;

/// A boolean filter over dimensions; only TRUE passes.
#[derive(Clone, Debug)]
pub struct SeriesFilter {
    /// Indexes of the dimensions read, ascending.
    columns: Vec<usize>,
    schema: SchemaRef,
    condition: Arc<dyn PhysicalExpr>,
}

impl SeriesFilter {
    /// # Errors
    /// If the text is not a condition over the metric's dimensions; says what is wrong and what is allowed.
    pub fn parse(sql: &str, metric: &Metric) -> Result<Self, String> {
        Self::over(sql, &metric.dimensions)
    }

    pub(crate) fn over(sql: &str, dimensions: &[Dimension]) -> Result<Self, String> {
        if sql.len() > MAX_LENGTH {
            return Err(format!("the filter is {} bytes long, at most {MAX_LENGTH} are allowed", sql.len()));
        }
        let dialect = GenericDialect {};
        let tokens = allowed_tokens(Tokenizer::new(&dialect, sql).tokenize().map_err(readable)?, dimensions)?;
        let mut parser = Parser::new(&dialect).with_tokens(tokens);
        let tree = parser.parse_expr().map_err(readable)?;
        match parser.peek_token().token {
            Token::EOF => {}
            token => return Err(format!("the filter has something after its end: `{token}`")),
        }
        let mut reader = Reader { dimensions, used: Vec::new() };
        let condition = reader.expression(&tree, 0)?;
        let mut columns = reader.used;
        columns.sort_unstable();
        columns.dedup();
        Self::compile(condition, columns, dimensions)
    }

    fn compile(condition: Expr, columns: Vec<usize>, dimensions: &[Dimension]) -> Result<Self, String> {
        let field = |&at: &usize| Field::new(&dimensions[at].name, dimensions[at].data_type.clone(), true);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let named = DFSchema::try_from(Arc::clone(&schema)).map_err(readable)?;
        let state = SessionStateBuilder::new().build();
        let condition = state.create_physical_expr(condition, &named).map_err(readable)?;
        match condition.data_type(&schema).map_err(readable)? {
            DataType::Boolean | DataType::Null => Ok(Self { columns, schema, condition }),
            other => Err(format!("the filter must be a condition, this is of type {other}")),
        }
    }

    /// Indexes of the dimensions that a view must have for [`SeriesFilter::mask`], ascending.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Which of these series of a view pass.
    ///
    /// # Errors
    /// If the view lacks a dimension that the filter reads, or a series does not decode.
    pub fn mask(&self, view: &View, metric: &Metric, series: &[Series]) -> Result<Vec<bool>, String> {
        self.mask_of(&view.dimensions, &metric.dimensions, series)
    }

    fn mask_of(&self, view: &[usize], dimensions: &[Dimension], series: &[Series]) -> Result<Vec<bool>, String> {
        let values = series.iter().map(Series::values).collect::<Result<Vec<_>, _>>().map_err(readable)?;
        let column = |&at: &usize| {
            let place = view.iter().position(|&own| own == at);
            let place = place.ok_or_else(|| format!("the view has no dimension `{}`", dimensions[at].name))?;
            Ok(array(&dimensions[at].data_type, values.iter().map(|values| values.get(place))))
        };
        let arrays = self.columns.iter().map(column).collect::<Result<Vec<_>, String>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(series.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(readable)?;
        let passed = self.condition.evaluate(&batch).and_then(|value| value.into_array(series.len()));
        let passed = passed.map_err(readable)?;
        Ok(match passed.as_boolean_opt() {
            Some(passed) => passed.iter().map(|pass| pass == Some(true)).collect(),
            // The condition is NULL whatever the series.
            None => vec![false; series.len()],
        })
    }
}

/// A dimension's column; values of another type (`$overflow` in a dimension that is no text) are null.
fn array<'a>(data_type: &DataType, values: impl Iterator<Item = Option<&'a DimensionValue>>) -> ArrayRef {
    match data_type {
        DataType::Int64 => Arc::new(Int64Array::from_iter(values.map(|value| match value {
            Some(DimensionValue::Int(value)) => Some(*value),
            _ => None,
        }))),
        DataType::Float64 => Arc::new(Float64Array::from_iter(values.map(|value| match value {
            Some(DimensionValue::Float(bits)) => Some(f64::from_bits(*bits)),
            _ => None,
        }))),
        DataType::Boolean => Arc::new(BooleanArray::from_iter(values.map(|value| match value {
            Some(DimensionValue::Bool(value)) => Some(*value),
            _ => None,
        }))),
        _ => Arc::new(StringArray::from_iter(values.map(|value| match value {
            Some(DimensionValue::Str(value)) => Some(value.as_str()),
            _ => None,
        }))),
    }
}

/// Tokens that a filter may have, names quoted so that none is taken for a keyword.
fn allowed_tokens(tokens: Vec<Token>, dimensions: &[Dimension]) -> Result<Vec<Token>, String> {
    let mut tokens = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).peekable();
    let mut allowed = Vec::new();
    while let Some(token) = tokens.next() {
        let token = match token {
            Token::Word(word) if is_keyword(&word) && !is_dimension(&word.value, dimensions) => Token::Word(word),
            Token::Word(word) => {
                let mut name = word.value;
                while tokens.next_if_eq(&Token::Period).is_some() {
                    match tokens.next() {
                        Some(Token::Word(part)) => name = format!("{name}.{}", part.value),
                        _ => return Err(format!("a name is missing after `{name}.`")),
                    }
                }
                if word.quote_style.is_none() && tokens.peek() == Some(&Token::LParen) {
                    return Err(format!("functions are not allowed in a filter: `{name}(`"));
                }
                if !is_dimension(&name, dimensions) {
                    return Err(unknown(&name, dimensions));
                }
                Token::Word(Word { value: name, quote_style: Some('"'), keyword: Keyword::NoKeyword })
            }
            Token::Eq | Token::DoubleEq | Token::Neq | Token::Lt | Token::Gt | Token::LtEq | Token::GtEq => token,
            Token::LParen | Token::RParen | Token::Comma | Token::Minus => token,
            Token::Number(_, false) | Token::SingleQuotedString(_) => token,
            other => return Err(format!("`{other}` is not allowed in a filter")),
        };
        allowed.push(token);
    }
    Ok(allowed)
}

fn is_keyword(word: &Word) -> bool {
    use Keyword::{AND, BETWEEN, DISTINCT, ESCAPE, FALSE, FROM, ILIKE, IN, IS, LIKE, NOT, NULL, OR, TRUE, UNKNOWN};
    let keywords = [AND, BETWEEN, DISTINCT, ESCAPE, FALSE, FROM, ILIKE, IN, IS, LIKE, NOT, NULL, OR, TRUE, UNKNOWN];
    keywords.contains(&word.keyword)
}

fn is_dimension(name: &str, dimensions: &[Dimension]) -> bool {
    dimensions.iter().any(|dimension| dimension.name == name)
}

fn unknown(name: &str, dimensions: &[Dimension]) -> String {
    let known: Vec<_> = dimensions.iter().map(|dimension| dimension.name.as_str()).collect();
    match known[..] {
        [] => format!("`{name}` is no dimension: the metric has none"),
        _ => format!("`{name}` is no dimension; the metric has {}", known.join(", ")),
    }
}

fn readable(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Reads the syntax tree into DataFusion's expressions.
struct Reader<'a> {
    dimensions: &'a [Dimension],
    used: Vec<usize>,
}

impl Reader<'_> {
    fn expression(&mut self, tree: &ast::Expr, depth: usize) -> Result<Expr, String> {
        if depth > MAX_DEPTH {
            return Err(format!("the filter is nested deeper than {MAX_DEPTH}; use IN for many values"));
        }
        let mut read = |tree: &ast::Expr| self.expression(tree, depth + 1);
        Ok(match tree {
            ast::Expr::Nested(inner) => read(inner)?,
            ast::Expr::Identifier(name) => self.dimension(&name.value)?,
            ast::Expr::Value(value) => literal(&value.value, "")?,
            ast::Expr::UnaryOp { op: UnaryOperator::Not, expr } => Expr::Not(Box::new(read(expr)?)),
            ast::Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match &**expr {
                ast::Expr::Value(value) => literal(&value.value, "-")?,
                other => return Err(format!("`-` is allowed before a number only, not before `{other}`")),
            },
            ast::Expr::BinaryOp { op: BinaryOperator::And, .. } => self.chain(tree, Operator::And, depth)?,
            ast::Expr::BinaryOp { op: BinaryOperator::Or, .. } => self.chain(tree, Operator::Or, depth)?,
            ast::Expr::BinaryOp { left, op, right } => binary(read(left)?, comparison(op)?, read(right)?),
            ast::Expr::IsDistinctFrom(a, b) => binary(read(a)?, Operator::IsDistinctFrom, read(b)?),
            ast::Expr::IsNotDistinctFrom(a, b) => binary(read(a)?, Operator::IsNotDistinctFrom, read(b)?),
            ast::Expr::IsNull(inner) => Expr::IsNull(Box::new(read(inner)?)),
            ast::Expr::IsNotNull(inner) => Expr::IsNotNull(Box::new(read(inner)?)),
            ast::Expr::IsTrue(inner) => Expr::IsTrue(Box::new(read(inner)?)),
            ast::Expr::IsNotTrue(inner) => Expr::IsNotTrue(Box::new(read(inner)?)),
            ast::Expr::IsFalse(inner) => Expr::IsFalse(Box::new(read(inner)?)),
            ast::Expr::IsNotFalse(inner) => Expr::IsNotFalse(Box::new(read(inner)?)),
            ast::Expr::IsUnknown(inner) => Expr::IsUnknown(Box::new(read(inner)?)),
            ast::Expr::IsNotUnknown(inner) => Expr::IsNotUnknown(Box::new(read(inner)?)),
            ast::Expr::InList { expr, list, negated } => {
                let items = list.iter().map(&mut read).collect::<Result<_, _>>()?;
                Expr::InList(InList::new(Box::new(read(expr)?), items, *negated))
            }
            ast::Expr::Between { expr, negated, low, high } => Expr::Between(Between::new(
                Box::new(read(expr)?),
                *negated,
                Box::new(read(low)?),
                Box::new(read(high)?),
            )),
            ast::Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                Expr::Like(like(*negated, read(expr)?, read(pattern)?, escape_char.as_ref(), false)?)
            }
            ast::Expr::ILike { negated, any: false, expr, pattern, escape_char } => {
                Expr::Like(like(*negated, read(expr)?, read(pattern)?, escape_char.as_ref(), true)?)
            }
            other => return Err(format!("`{other}` is not allowed in a filter")),
        })
    }

    fn dimension(&mut self, name: &str) -> Result<Expr, String> {
        let at = self.dimensions.iter().position(|dimension| dimension.name == name);
        self.used.push(at.ok_or_else(|| unknown(name, self.dimensions))?);
        Ok(Expr::Column(Column::new_unqualified(name)))
    }

    /// `a AND b AND c ...` as a balanced tree: the parser gives a left-deep one, as deep as it is long.
    fn chain(&mut self, tree: &ast::Expr, operator: Operator, depth: usize) -> Result<Expr, String> {
        let mut links = Vec::new();
        let mut rest = tree;
        while let ast::Expr::BinaryOp { left, op, right } = rest
            && matches!((op, operator), (BinaryOperator::And, Operator::And) | (BinaryOperator::Or, Operator::Or))
        {
            links.push(self.expression(right, depth + 1)?);
            rest = left;
        }
        links.push(self.expression(rest, depth + 1)?);
        links.reverse();
        while links.len() > 1 {
            let mut pairs = links.into_iter();
            let mut joined = Vec::new();
            while let Some(left) = pairs.next() {
                joined.push(match pairs.next() {
                    Some(right) => binary(left, operator, right),
                    None => left,
                });
            }
            links = joined;
        }
        links.pop().ok_or_else(|| "the filter is empty".to_owned())
    }
}

fn binary(left: Expr, operator: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), operator, Box::new(right)))
}

fn comparison(operator: &BinaryOperator) -> Result<Operator, String> {
    Ok(match operator {
        BinaryOperator::Eq => Operator::Eq,
        BinaryOperator::NotEq => Operator::NotEq,
        BinaryOperator::Lt => Operator::Lt,
        BinaryOperator::LtEq => Operator::LtEq,
        BinaryOperator::Gt => Operator::Gt,
        BinaryOperator::GtEq => Operator::GtEq,
        other => return Err(format!("`{other}` is not allowed in a filter")),
    })
}

fn like(
    negated: bool,
    expression: Expr,
    pattern: Expr,
    escape: Option<&ast::ValueWithSpan>,
    ignore_case: bool,
) -> Result<Like, String> {
    let escape = match escape.map(|escape| &escape.value) {
        None => None,
        Some(ast::Value::SingleQuotedString(text)) if text.chars().count() == 1 => text.chars().next(),
        Some(other) => return Err(format!("ESCAPE takes one character, not {other}")),
    };
    Ok(Like::new(negated, Box::new(expression), Box::new(pattern), escape, ignore_case))
}

fn literal(value: &ast::Value, sign: &str) -> Result<Expr, String> {
    Ok(match value {
        ast::Value::Number(digits, false) => {
            let digits = format!("{sign}{digits}");
            match (digits.parse::<i64>(), digits.parse::<f64>()) {
                (Ok(value), _) => lit(value),
                (_, Ok(value)) if value.is_finite() => lit(value),
                _ => return Err(format!("`{digits}` is no number")),
            }
        }
        ast::Value::SingleQuotedString(text) if sign.is_empty() => lit(text.as_str()),
        ast::Value::Boolean(value) if sign.is_empty() => lit(*value),
        ast::Value::Null if sign.is_empty() => Expr::Literal(ScalarValue::Null, None),
        other => return Err(format!("`{sign}{other}` is not allowed in a filter")),
    })
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
