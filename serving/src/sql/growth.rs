//! Values that grow: memory that a function takes for one value is not accounted for, so it is bounded beforehand.

use datafusion::{
    common::{
        Result,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, LogicalPlan, Operator},
    scalar::ScalarValue,
};

use super::{archive, guard::refused};
use crate::problem::Problem;

/// Functions that make a value of any size from a small one.
const REFUSED: [&str; 12] = [
    "repeat",
    "lpad",
    "rpad",
    "range",
    "generate_series",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
    "to_char",
    "date_format",
    "input_file_name",
];
/// By how much values may grow in a query, put upon one another: with 512 bytes of a dimension and 1,024 rows of a batch,
/// 128 MiB.
const MOST_GROWTH: f64 = 256.0;
/// The same where raw events are read, whose batches are about 1 MiB.
const MOST_GROWTH_OF_RAW: f64 = 16.0;

/// Whether a function is there at all.
pub(super) fn is_allowed(name: &str) -> bool {
    !REFUSED.contains(&name)
}

/// # Errors
/// If what the plan computes could grow values too much.
pub(super) fn check(plan: &LogicalPlan) -> Result<(), Problem> {
    let (mut growth, mut most) = (1.0_f64, MOST_GROWTH);
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.table_name.schema() == Some(archive::SCHEMA)
        {
            most = MOST_GROWTH_OF_RAW;
        }
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                growth *= factor(part);
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    walked.map_err(|error| refused(error.strip_backtrace()))?;
    if growth > most {
        return Err(refused(format!(
            "the query puts too many values together (`||`, concat, replace, arrays): together they may make a value \
             {most} times as long, this could make it {growth} times as long"
        )));
    }
    Ok(())
}

/// By how much the value may be longer than its longest operand.
#[expect(clippy::cast_precision_loss, reason = "numbers of arguments and lengths of literals are small")]
fn factor(expr: &Expr) -> f64 {
    match expr {
        Expr::BinaryExpr(binary) if binary.op == Operator::StringConcat => 2.0,
        Expr::ScalarFunction(call) => {
            let arguments = call.args.len().max(1) as f64;
            match call.func.name() {
                "concat" | "concat_ws" | "array_concat" | "make_array" | "struct" | "named_struct" | "map" => arguments,
                "array_append" | "array_prepend" | "array_to_string" | "array_union" | "overlay" => 2.0,
                "replace" | "regexp_replace" | "translate" | "array_replace" | "array_replace_all" => {
                    call.args.get(2).map_or(1.0, literal_length)
                }
                _ => 1.0,
            }
        }
        _ => 1.0,
    }
}

/// The length of what is put in place of something else.
#[expect(clippy::cast_precision_loss, reason = "a literal is shorter than the query")]
fn literal_length(expr: &Expr) -> f64 {
    match expr {
        Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) => text.len().max(1) as f64,
        // As long as a dimension's longest value.
        _ => 512.0,
    }
}
