//! A source that is an existing table: which of its columns are read, and what a run makes of each row.
//!
//! # Invariants
//! - A row stays and is an event, or expires, or is rejected with a reason: exactly one of the three.
//! - Rules and updates look at the row as it was read; metrics see it as the run leaves it.
//! - What is written is read back as the same value: a run over its own result writes nothing.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array},
    compute::{filter_record_batch, kernels::cmp::distinct, kernels::zip::zip},
    datatypes::{DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, SchemaRef, TimestampMicrosecondType},
    error::ArrowError,
};
use lamina_core::{
    Micros, Offset, TableName,
    tables::{Column, ColumnType, Reading, Role, Value},
};

use crate::{
    Source,
    decode::{Cell, Columns, Kind, convert},
    definition::FieldType,
    expression::Expression,
};

/// CQL keeps times in whole milliseconds.
const MILLI: Micros = 1_000;

/// A table as a source names it, compiled.
#[derive(Debug)]
pub struct SourceTable {
    pub name: TableName,
    /// What is read: the source's fields, then the columns that are written and are no fields.
    pub(crate) columns: Vec<(String, FieldType)>,
    pub(crate) updates: Vec<Update>,
    pub(crate) rules: Vec<Rule>,
    /// The fields: what expressions are planned over.
    pub(crate) reads: SchemaRef,
}

/// A column that each run writes where it differs.
#[derive(Debug)]
pub(crate) struct Update {
    /// Index into the columns.
    pub(crate) column: usize,
    pub(crate) expression: Expression,
}

/// Which rows go.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) filter: Option<Expression>,
    /// How long after their event time; `None` at once.
    pub(crate) after: Option<Micros>,
}

/// What a run makes of some rows.
#[derive(Debug)]
pub struct Judged {
    /// The rows that stay, with the values that they get; schema of [`Source::schema`].
    pub events: RecordBatch,
    /// Indexes of the rows that go.
    pub expired: Vec<usize>,
    /// Of rows that do not go.
    pub updates: Vec<NewValue>,
    /// Rows that are no events, and why.
    pub rejected: Vec<(usize, String)>,
    /// Rows for which an expression of `update` fails, and why: that column stays as it is.
    pub not_updated: Vec<(usize, String)>,
}

/// A value that differs from what stands there.
#[derive(Clone, Debug, PartialEq)]
pub struct NewValue {
    pub row: usize,
    /// Index into the reading's columns.
    pub column: usize,
    pub value: Value,
}

impl SourceTable {
    /// Whether a run writes anything.
    pub fn writes(&self) -> bool {
        !self.updates.is_empty() || !self.rules.is_empty()
    }

    /// What is read of a table with these columns, if it has what the source names. With `writes`, what it writes is
    /// checked as well.
    ///
    /// # Errors
    /// What does not fit.
    pub fn reading(&self, columns: &[Column]) -> Result<Reading, String> {
        let written: Vec<usize> = self.updates.iter().map(|update| update.column).collect();
        let mut living = Vec::new();
        for (at, (name, kind)) in self.columns.iter().enumerate() {
            let column = columns.iter().find(|column| column.name == *name).ok_or_else(|| {
                let known: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
                format!("table {} has no column {name}; it has {}", self.name, known.join(", "))
            })?;
            if !fits(column.kind, *kind) {
                let (table, declared) = (&self.name, &column.declared);
                return Err(format!("column {name} of table {table} is {declared}, which is not read as {kind}"));
            }
            if written.contains(&at) {
                check_written(&self.name, column, *kind)?;
            }
            if column.role == Role::Regular && !written.is_empty() {
                living.push(at);
            }
        }
        let names = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let deletes = !self.rules.is_empty();
        Ok(Reading { table: self.name.clone(), columns: names, written, living, deletes })
    }
}

fn check_written(table: &TableName, column: &Column, kind: FieldType) -> Result<(), String> {
    let Column { name, role, declared, writable, .. } = column;
    if *role != Role::Regular {
        let what = if *role == Role::Static { "static" } else { "part of the primary key" };
        return Err(format!("column {name} of table {table} is {what}: only regular columns are updated"));
    }
    if !writable || !is_read_as(column.kind, kind) {
        return Err(format!("column {name} of table {table} is {declared}, which a {kind} is not written to"));
    }
    Ok(())
}

/// Whether values of a column can be read as this type, row by row.
fn fits(column: ColumnType, field: FieldType) -> bool {
    match column {
        ColumnType::Text => true,
        ColumnType::Int => !matches!(field, FieldType::Date),
        ColumnType::Decimal => !matches!(field, FieldType::Date | FieldType::Bool),
        _ => is_read_as(column, field),
    }
}

fn is_read_as(column: ColumnType, field: FieldType) -> bool {
    matches!(
        (column, field),
        (ColumnType::Text, FieldType::String)
            | (ColumnType::Int, FieldType::Int64)
            | (ColumnType::Float, FieldType::Float64)
            | (ColumnType::Decimal, FieldType::Decimal { .. })
            | (ColumnType::Bool, FieldType::Bool)
            | (ColumnType::Time, FieldType::Timestamp)
            | (ColumnType::Date, FieldType::Date)
    )
}

impl Source {
    /// What a run at `now` makes of rows of its table, each with its number and one value per column of the reading; `None`
    /// if the source is no table.
    ///
    /// # Errors
    /// If rows do not go into columns, which is a fault of lamina.
    pub fn judge(&self, rows: &[(Offset, &[Value])], now: Micros) -> Result<Option<Judged>, ArrowError> {
        let Some(table) = &self.table else { return Ok(None) };
        let (mut columns, mut read, mut rejected) = (self.columns_of(table, rows.len()), Vec::new(), Vec::new());
        for (at, (_, values)) in rows.iter().enumerate() {
            match self.cells(table, values) {
                Ok(cells) => {
                    columns.push(&cells);
                    read.push(at);
                }
                Err(why) => rejected.push((at, why)),
            }
        }
        let columns = columns.finish();
        let fields = columns.get(..table.reads.fields().len()).unwrap_or_default().to_vec();
        let given = RecordBatch::try_new(SchemaRef::clone(&table.reads), fields)?;
        let (left, new, not_updated) = table.updated(&given, &columns)?;
        let offsets: UInt64Array = read.iter().map(|at| rows[*at].0).collect();
        let mut reasons = vec![None; read.len()];
        let events = self.complete(0, offsets, left, &mut reasons);
        let times = times(&events, &reasons)?;
        let goes = table.expired(&given, &times, now);
        let stays: BooleanArray =
            (0..read.len()).filter(|row| reasons[*row].is_none()).map(|row| Some(!goes[row])).collect();
        let events = filter_record_batch(&events, &stays)?;
        let no_events = reasons.into_iter().enumerate().filter(|(row, _)| !goes[*row]);
        rejected.extend(no_events.filter_map(|(row, why)| Some((read[row], why?))));
        let in_rows = |list: Vec<(usize, String)>| list.into_iter().map(|(row, why)| (read[row], why)).collect();
        let updates = new.into_iter().filter(|new| !goes[new.row]);
        Ok(Some(Judged {
            events,
            expired: (0..read.len()).filter(|row| goes[*row]).map(|row| read[row]).collect(),
            updates: updates.map(|new| NewValue { row: read[new.row], ..new }).collect(),
            rejected,
            not_updated: in_rows(not_updated),
        }))
    }

    fn columns_of(&self, table: &SourceTable, rows: usize) -> Columns {
        Columns::new(table.columns.iter().map(|(_, kind)| *kind), rows)
    }

    /// The values of a row in the types of the definition.
    fn cells<'a>(&self, table: &SourceTable, values: &'a [Value]) -> Result<Vec<Cell<'a>>, String> {
        let (zone, unit) = (self.parts.zone, self.definition.time_unit);
        let cell = |((name, wanted), value): (&(String, FieldType), &'a Value)| {
            let read = match (value, wanted) {
                (Value::Null, _) => Ok(Cell::Null),
                (Value::Text(text), FieldType::String) => Ok(Cell::Text(Cow::Borrowed(text))),
                (Value::Int(number), FieldType::Int64) => Ok(Cell::Int(*number)),
                (Value::Float(number), FieldType::Float64) if number.is_finite() => Ok(Cell::Float(*number)),
                (Value::Bool(flag), FieldType::Bool) => Ok(Cell::Bool(*flag)),
                (Value::Time(at), FieldType::Timestamp) => Ok(Cell::Time(*at)),
                (Value::Date(day), FieldType::Date) => Ok(Cell::Date(*day)),
                (Value::Unreadable(why), _) => Err(why.clone()),
                // By their text: exactly or not at all.
                (value, wanted) => convert(Some(Cow::Owned(text(value))), Kind::Text, *wanted, zone, unit),
            };
            read.map_err(|why| format!("field {name}: {why}"))
        };
        table.columns.iter().zip(values).map(cell).collect()
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Decimal { unscaled, scale } => decimal(*unscaled, *scale),
        Value::Time(at) => crate::time::format_time(*at),
        Value::Date(day) => day.to_string(),
        Value::Text(text) | Value::Unreadable(text) => text.clone(),
    }
}

/// As people write it, unless that would be long.
fn decimal(unscaled: i128, scale: i32) -> String {
    match usize::try_from(scale) {
        Ok(0) => unscaled.to_string(),
        Ok(places @ 1..=64) => {
            let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = places + 1);
            let (whole, fraction) = digits.split_at(digits.len() - places);
            format!("{}{whole}.{fraction}", if unscaled < 0 { "-" } else { "" })
        }
        _ => format!("{unscaled}e{}", -i64::from(scale)),
    }
}

type Updated = (Vec<ArrayRef>, Vec<NewValue>, Vec<(usize, String)>);

impl SourceTable {
    /// The fields as a run leaves them, and the values that are new.
    fn updated(&self, given: &RecordBatch, columns: &[ArrayRef]) -> Result<Updated, ArrowError> {
        let mut left = given.columns().to_vec();
        let (mut new, mut failed) = (Vec::new(), Vec::new());
        for Update { column, expression } in &self.updates {
            let evaluated = expression.evaluate(given);
            let (before, after) = (&columns[*column], whole_millis(evaluated.array));
            let mut writes = distinct(before, &after)?;
            if !evaluated.failed.is_empty() {
                let fails = |row| evaluated.failed.iter().any(|(failed, _)| *failed == row);
                writes = (0..writes.len()).map(|row| Some(writes.value(row) && !fails(row))).collect();
                let name = &self.columns[*column].0;
                failed.extend(evaluated.failed.into_iter().map(|(row, why)| (row, format!("update {name}: {why}"))));
            }
            let rows = (0..writes.len()).filter(|row| writes.value(*row));
            new.extend(rows.map(|row| NewValue { row, column: *column, value: value(&after, row) }));
            if let Some(field) = left.get_mut(*column) {
                *field = zip(&writes, &after, before)?;
            }
        }
        Ok((left, new, failed))
    }

    /// Which rows go. Where a rule's expression fails it does not hold.
    fn expired(&self, given: &RecordBatch, times: &[Option<Micros>], now: Micros) -> Vec<bool> {
        let mut goes = vec![false; given.num_rows()];
        for Rule { filter, after } in &self.rules {
            let holds = filter.as_ref().map(|filter| filter.evaluate(given).array);
            let holds = holds.as_ref().and_then(|holds| holds.as_boolean_opt());
            for (row, goes) in goes.iter_mut().enumerate() {
                let holds = filter.is_none() || holds.is_some_and(|holds| holds.is_valid(row) && holds.value(row));
                let due = after.is_none_or(|after| times[row].is_some_and(|at| at.saturating_add(after) <= now));
                *goes |= holds && due;
            }
        }
        goes
    }
}

/// Times are stored in whole milliseconds: what is finer would differ for ever.
fn whole_millis(array: ArrayRef) -> ArrayRef {
    match array.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(times) => {
            Arc::new(times.unary::<_, TimestampMicrosecondType>(|at| at.div_euclid(MILLI).saturating_mul(MILLI)))
        }
        None => array,
    }
}

/// The event time of each row that has one.
fn times(events: &RecordBatch, reasons: &[Option<String>]) -> Result<Vec<Option<Micros>>, ArrowError> {
    let times = events.column_by_name("_time").and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    let times = times.ok_or_else(|| ArrowError::SchemaError("column _time is missing".to_owned()))?;
    let mut times = times.values().iter();
    Ok(reasons.iter().map(|reason| if reason.is_none() { times.next().copied() } else { None }).collect())
}

fn value(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, scale) => {
            let unscaled = array.as_primitive::<Decimal128Type>().value(row);
            Value::Decimal { unscaled, scale: i32::from(*scale) }
        }
        DataType::Timestamp(..) => Value::Time(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Date32 => Value::Date(array.as_primitive::<Date32Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        other => Value::Unreadable(format!("a value of type {other}")),
    }
}
