//! The definition of a table to a [`SourceTable`]: what is written back, and which rows go.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use lamina_core::TableName;

use crate::{
    decode::arrow_type,
    definition::{FieldType, SourceDefinition},
    diagnostic::{Problem, Problems},
    expression::{Expression, Planner},
    reading::Places,
    table::{Rule, SourceTable, Update},
};

/// Notes every problem; what is given then is not used.
pub(crate) fn compile_table(
    definition: &SourceDefinition,
    planner: &Planner,
    places: &Places,
    problems: &mut Problems<'_>,
) -> Option<SourceTable> {
    let name = table_name(definition.table.as_deref(), places, problems)?;
    let fields = definition.fields.iter().map(|(name, kind)| Field::new(name, arrow_type(*kind), true));
    let reads = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut columns: Vec<(String, FieldType)> = definition.fields.0.clone();
    let mut updates = Vec::new();
    for (name, sql) in definition.update.iter() {
        let planned = plan(sql, &format!("update.{name}.sql"), &reads, planner, places, problems);
        let Some(expression) = planned else { continue };
        let column = columns.iter().position(|(known, _)| known == name);
        match check_update(name, column.map(|at| columns[at].1), expression.data_type()) {
            Ok(kind) => {
                let column = column.unwrap_or_else(|| {
                    columns.push((name.to_owned(), kind));
                    columns.len() - 1
                });
                updates.push(Update { column, expression });
            }
            Err(problem) => problems.add(places.of(&format!("update.{name}.sql")), problem),
        }
    }
    let mut rules = Vec::new();
    for (at, rule) in definition.expire.iter().enumerate() {
        let path = format!("expire[{at}].where");
        let filter = rule.filter.as_ref().map(|sql| plan(sql, &path, &reads, planner, places, problems));
        let filter = filter.flatten();
        if let Some(other) = filter.as_ref().map(Expression::data_type).filter(|kind| **kind != DataType::Boolean) {
            let problem = Problem::new(format!("`where` is of type {other}"), "it must be true or false");
            problems.add(places.of(&path), problem);
        }
        rules.push(Rule { filter, after: rule.after.map(|after| after.0) });
    }
    Some(SourceTable { name, columns, updates, rules, reads })
}

fn table_name(text: Option<&str>, places: &Places, problems: &mut Problems<'_>) -> Option<TableName> {
    const HELP: &str = "name keyspace and table as the cluster keeps them, as in table = \"shop.accounts\"";
    let Some(text) = text else {
        problems.add(places.of(""), Problem::new("a source of kind cassandra has no `table`", HELP));
        return None;
    };
    let legal = |name: &str| {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic());
        first && name.len() <= 48 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match text.split_once('.') {
        Some((keyspace, table)) if legal(keyspace) && legal(table) => {
            Some(TableName { keyspace: keyspace.to_owned(), table: table.to_owned() })
        }
        _ => {
            problems.add(places.of("table"), Problem::new(format!("table {text:?} is not a table's name"), HELP));
            None
        }
    }
}

fn plan(
    sql: &str,
    path: &str,
    reads: &Schema,
    planner: &Planner,
    places: &Places,
    problems: &mut Problems<'_>,
) -> Option<Expression> {
    let planned = planner.resolve(sql, reads).map_err(|error| problems.add(places.of(path), error.into_problem()));
    planned.ok()
}

/// The type of a column that is written: its field's, or the expression's if it is no field.
fn check_update(name: &str, field: Option<FieldType>, given: &DataType) -> Result<FieldType, Problem> {
    let Some(of_expression) = field_type(given) else {
        return Err(Problem::new(format!("the expression gives {given}"), format!("it must be {}", FieldType::FORMS)));
    };
    match field {
        Some(field) if arrow_type(field) != *given => Err(Problem::new(
            format!("the expression gives {of_expression}, and field {name} is {field}"),
            format!("cast it, as in CAST(... AS {})", sql_type(field)),
        )),
        field => Ok(field.unwrap_or(of_expression)),
    }
}

fn field_type(given: &DataType) -> Option<FieldType> {
    Some(match given {
        DataType::Utf8 => FieldType::String,
        DataType::Int64 => FieldType::Int64,
        DataType::Float64 => FieldType::Float64,
        DataType::Decimal128(precision, scale) => FieldType::Decimal { precision: *precision, scale: *scale },
        DataType::Boolean => FieldType::Bool,
        DataType::Timestamp(..) => FieldType::Timestamp,
        DataType::Date32 => FieldType::Date,
        _ => return None,
    })
}

fn sql_type(field: FieldType) -> String {
    match field {
        FieldType::String => "VARCHAR".to_owned(),
        FieldType::Int64 => "BIGINT".to_owned(),
        FieldType::Float64 => "DOUBLE".to_owned(),
        FieldType::Decimal { precision, scale } => format!("DECIMAL({precision},{scale})"),
        FieldType::Bool => "BOOLEAN".to_owned(),
        FieldType::Timestamp => "TIMESTAMP".to_owned(),
        FieldType::Date => "DATE".to_owned(),
    }
}
