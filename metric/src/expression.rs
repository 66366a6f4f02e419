//! SQL expressions over events: planned once by DataFusion, evaluated on whole batches.
//!
//! # Invariants
//! - An expression is a pure function of one row: volatile functions, subqueries, aggregates and windows are refused.
//! - A row that fails does not spoil its batch: the batch is halved until the failing rows are found.
//! - Results are of few types: Boolean, Int64, Float64, Decimal128, Utf8, Date32, Timestamp(µs) and lists.
//! - Whole numbers do not wrap: an overflow fails the row.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, new_empty_array, new_null_array},
    compute::{CastOptions, cast_with_options, concat},
    datatypes::{
        DataType, Float64Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType,
    },
    error::ArrowError,
};
use datafusion::{
    common::{
        DFSchema, DataFusionError, SchemaError,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SessionState, SessionStateBuilder},
    logical_expr::{Expr, Volatility, simplify::SimplifyContext},
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::{PhysicalExpr, expressions::BinaryExpr},
    prelude::SessionConfig,
};

use crate::diagnostic::{Problem, nearest};

const MICROS: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// Plans expressions.
pub(crate) struct Planner {
    state: SessionState,
}

/// Why a text is not a usable expression.
#[derive(Debug)]
pub(crate) enum PlanError {
    /// A column that does not exist (yet).
    NoColumn {
        name: String,
        problem: Problem,
    },
    Other(Problem),
}

impl PlanError {
    pub(crate) fn into_problem(self) -> Problem {
        match self {
            Self::NoColumn { problem, .. } | Self::Other(problem) => problem,
        }
    }
}

impl Planner {
    pub(crate) fn new() -> Self {
        let mut config = SessionConfig::new();
        config.options_mut().sql_parser.enable_ident_normalization = false;
        Self { state: SessionStateBuilder::new().with_config(config).with_default_features().build() }
    }

    /// The column of that name, or else the SQL expression that the text is.
    pub(crate) fn resolve(&self, text: &str, schema: &Schema) -> Result<Expression, PlanError> {
        if schema.index_of(text).is_ok() { self.plan(&quoted(text), schema) } else { self.plan(text, schema) }
    }

    /// # Errors
    /// If the text is not SQL, uses something unknown, or is not a pure function of one row.
    pub(crate) fn plan(&self, sql: &str, schema: &Schema) -> Result<Expression, PlanError> {
        let fail = |error: DataFusionError| explain(&error, schema);
        let df_schema = DFSchema::try_from(schema.clone()).map_err(fail)?;
        let logical = self.state.create_logical_expr(sql, &df_schema).map_err(fail)?;
        refuse_impure(&logical).map_err(PlanError::Other)?;
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(df_schema.clone()))
            .with_config_options(Arc::clone(self.state.config_options()))
            .build();
        let simplifier = ExprSimplifier::new(context);
        let logical = simplifier.coerce(logical, &df_schema).map_err(fail)?;
        self.check_constants(&logical, &df_schema).map_err(fail)?;
        let logical = simplifier.simplify(logical).map_err(fail)?;
        let physical = self.state.create_physical_expr(logical, &df_schema).map_err(fail)?;
        let physical = without_wrapping(physical).map_err(fail)?;
        let given = physical.data_type(schema).map_err(fail)?;
        let data_type = canonical(&given).ok_or_else(|| {
            let help = "cast it to a number, text, bool, date or timestamp";
            PlanError::Other(Problem::new(format!("the expression gives {given}, which cannot be used"), help))
        })?;
        Ok(Expression { physical, data_type })
    }

    /// Simplifying computes what is constant, and wraps where a row's arithmetic would fail: so it is computed here first.
    fn check_constants(&self, expr: &Expr, schema: &DFSchema) -> Result<(), DataFusionError> {
        let one_row = RecordBatchOptions::new().with_row_count(Some(1));
        let one_row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &one_row)?;
        expr.apply(|part| {
            let arithmetic = matches!(part, Expr::BinaryExpr(binary) if binary.op.is_numerical_operators());
            if !arithmetic || !part.column_refs().is_empty() {
                return Ok(TreeNodeRecursion::Continue);
            }
            let physical = self.state.create_physical_expr(part.clone(), schema)?;
            without_wrapping(physical)?.evaluate(&one_row)?;
            Ok(TreeNodeRecursion::Jump)
        })?;
        Ok(())
    }
}

/// An SQL identifier for a column.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn refuse_impure(expr: &Expr) -> Result<(), Problem> {
    let mut problem = None;
    let visited = expr.apply(|expr| {
        problem = match expr {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                let message = format!("{}() gives another value each time it is asked", call.func.name());
                Some(Problem::new(message, "an expression must depend on the event alone; take times from its fields"))
            }
            Expr::AggregateFunction(call) => Some(not_here(&format!("the aggregate {}", call.func.name()))),
            Expr::WindowFunction(_) => Some(not_here("a window function")),
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_) => {
                Some(not_here("a subquery"))
            }
            Expr::Alias(alias) => Some(Problem::new(
                format!("{:?} after an expression would name it, which has no meaning here", alias.name),
                "leave it out; a name that holds a space or a dot is quoted",
            )),
            Expr::Placeholder(_) => Some(not_here("a placeholder")),
            Expr::ScalarVariable(..) => Some(not_here("a variable")),
            #[expect(deprecated, reason = "refused as long as it exists")]
            Expr::Wildcard { .. } => Some(not_here("*")),
            Expr::Unnest(_) | Expr::GroupingSet(_) | Expr::OuterReferenceColumn(..) => Some(not_here("this")),
            _ => None,
        };
        Ok(if problem.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match (problem, visited) {
        (Some(problem), _) => Err(problem),
        (None, Err(error)) => Err(Problem::plain(one_line(&error))),
        (None, Ok(_)) => Ok(()),
    }
}

fn not_here(what: &str) -> Problem {
    Problem::new(format!("{what} cannot be used in an expression over one event"), "use columns and scalar functions")
}

/// Arithmetic that fails instead of wrapping.
fn without_wrapping(expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let changed = expr.transform_up(|node| {
        let Some(binary) = node.downcast_ref::<BinaryExpr>() else { return Ok(Transformed::no(node)) };
        Ok(Transformed::yes(Arc::new(binary.clone().with_fail_on_overflow(true)) as Arc<dyn PhysicalExpr>))
    })?;
    Ok(changed.data)
}

fn explain(error: &DataFusionError, schema: &Schema) -> PlanError {
    let DataFusionError::SchemaError(schema_error, _) = error.find_root() else {
        return PlanError::Other(Problem::plain(one_line(error)));
    };
    let SchemaError::FieldNotFound { field, .. } = schema_error.as_ref() else {
        return PlanError::Other(Problem::plain(one_line(error)));
    };
    let name = match &field.relation {
        Some(relation) => format!("{relation}.{}", field.name),
        None => field.name.clone(),
    };
    let known: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let help = if known.contains(&name.as_str()) {
        format!("quote a name that holds a dot: \"{name}\"")
    } else if let Some(near) = nearest(&name, known.iter().copied()) {
        format!("did you mean {near}? Names are case-sensitive")
    } else {
        let known: Vec<&str> = known.into_iter().filter(|name| !name.starts_with('_')).take(30).collect();
        format!("known are {}; a text stands in single quotes", known.join(", "))
    };
    PlanError::NoColumn { problem: Problem::new(format!("there is no field {name}"), help), name }
}

/// What DataFusion and Arrow put before what they have to say.
const NOISE: [&str; 8] = [
    "SQL error: ",
    "ParserError(\"",
    "Error during planning: ",
    "Arrow error: ",
    "Compute error: ",
    "Execution error: ",
    "External error: ",
    "Cast error: ",
];

/// An error of DataFusion for people.
fn one_line(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    let text = text.lines().next().unwrap_or_default();
    let mut text = text.trim();
    while let Some(rest) = NOISE.iter().find_map(|noise| text.strip_prefix(noise)) {
        text = rest;
    }
    text.trim_end_matches("\")").trim_end_matches('.').to_owned()
}

/// A planned expression.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    physical: Arc<dyn PhysicalExpr>,
    data_type: DataType,
}

/// Values of an expression, one per row; null for rows that fail.
pub(crate) struct Evaluated {
    pub(crate) array: ArrayRef,
    /// Rows that fail, ascending, with the reason.
    pub(crate) failed: Vec<(usize, String)>,
}

impl Expression {
    /// The type of its values, one of the few.
    pub(crate) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// Indexes of the columns it reads.
    pub(crate) fn columns(&self) -> Vec<usize> {
        let columns = datafusion::physical_expr::utils::collect_columns(&self.physical);
        columns.into_iter().map(|column| column.index()).collect()
    }

    /// The same over a schema that has only some of the columns; `place` says where a column went.
    pub(crate) fn with_columns(&self, place: impl Fn(usize) -> usize) -> Result<Self, DataFusionError> {
        use datafusion::physical_expr::expressions::Column;
        let moved = Arc::clone(&self.physical).transform_up(|node| {
            let Some(column) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
            let moved = Column::new(column.name(), place(column.index()));
            Ok(Transformed::yes(Arc::new(moved) as Arc<dyn PhysicalExpr>))
        })?;
        Ok(Self { physical: moved.data, data_type: self.data_type.clone() })
    }

    /// Values for all rows.
    pub(crate) fn evaluate(&self, batch: &RecordBatch) -> Evaluated {
        let mut parts = Vec::new();
        let mut failed = Vec::new();
        self.evaluate_part(batch, 0, &mut parts, &mut failed);
        let array = match parts.as_slice() {
            [] => new_empty_array(&self.data_type),
            [whole] => Arc::clone(whole),
            parts => {
                let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
                match concat(&parts) {
                    Ok(array) => array,
                    // Parts have one type; only more than 2 GiB of text can get here.
                    Err(error) => {
                        failed = (0..batch.num_rows()).map(|row| (row, error.to_string())).collect();
                        new_null_array(&self.data_type, batch.num_rows())
                    }
                }
            }
        };
        let mut evaluated = Evaluated { array, failed };
        evaluated.refuse_not_a_number();
        evaluated
    }

    fn evaluate_part(
        &self,
        batch: &RecordBatch,
        first: usize,
        parts: &mut Vec<ArrayRef>,
        failed: &mut Vec<(usize, String)>,
    ) {
        let rows = batch.num_rows();
        if rows == 0 {
            return;
        }
        match self.evaluate_whole(batch) {
            Ok(array) => parts.push(array),
            Err(error) if rows == 1 => {
                failed.push((first, one_line(&error)));
                parts.push(new_null_array(&self.data_type, 1));
            }
            Err(_) => {
                let half = rows / 2;
                self.evaluate_part(&batch.slice(0, half), first, parts, failed);
                self.evaluate_part(&batch.slice(half, rows - half), first + half, parts, failed);
            }
        }
    }

    fn evaluate_whole(&self, batch: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
        let array = self.physical.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(to_canonical(&array, &self.data_type)?)
    }
}

impl Evaluated {
    /// NaN and infinity are no values: the row fails.
    fn refuse_not_a_number(&mut self) {
        if self.array.data_type() != &DataType::Float64 {
            return;
        }
        let values = self.array.as_primitive::<Float64Type>();
        if values.values().iter().all(|value| value.is_finite()) {
            return;
        }
        let wrong = values.iter().enumerate().filter_map(|(row, value)| {
            let value = value.filter(|value| !value.is_finite())?;
            Some((row, format!("gives {value}, which is not a number")))
        });
        self.failed.extend(wrong);
        self.failed.sort_by_key(|(row, _)| *row);
        let kept = values.iter().map(|value| value.filter(|value| value.is_finite()));
        self.array = Arc::new(kept.collect::<arrow::array::Float64Array>());
    }
}

/// The one of the few types that holds values of `given`.
fn canonical(given: &DataType) -> Option<DataType> {
    Some(match given {
        DataType::Boolean => DataType::Boolean,
        integer if integer.is_integer() => DataType::Int64,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) => {
            DataType::Decimal128(*p, *s)
        }
        DataType::Decimal256(_, s) if *s <= 38 => DataType::Decimal128(38, *s),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::Dictionary(_, values) => return canonical(values),
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        DataType::Timestamp(..) => MICROS,
        DataType::List(_) => given.clone(),
        _ => return None,
    })
}

/// Casts without losing anything: what does not fit is an error; times are floored to microseconds.
pub(crate) fn to_canonical(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    if let DataType::Timestamp(unit, _) = array.data_type()
        && *to == MICROS
    {
        return floor_to_micros(array, *unit);
    }
    cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() })
}

fn floor_to_micros(array: &ArrayRef, unit: TimeUnit) -> Result<ArrayRef, ArrowError> {
    let overflow = || ArrowError::ComputeError("the time is out of range".to_owned());
    let widen = |values: &arrow::array::PrimitiveArray<Int64Type>, factor: i64| {
        values.try_unary::<_, TimestampMicrosecondType, _>(|at| at.checked_mul(factor).ok_or_else(overflow))
    };
    let micros = match unit {
        TimeUnit::Second => {
            widen(&array.as_primitive::<TimestampSecondType>().reinterpret_cast::<Int64Type>(), 1_000_000)?
        }
        TimeUnit::Millisecond => {
            widen(&array.as_primitive::<TimestampMillisecondType>().reinterpret_cast::<Int64Type>(), 1_000)?
        }
        TimeUnit::Microsecond => {
            array.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(None::<String>)
        }
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().unary(|at: i64| at.div_euclid(1_000)),
    };
    Ok(Arc::new(micros))
}
