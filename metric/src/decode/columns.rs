//! Cells to Arrow columns.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int64Builder, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    datatypes::{DataType, TimeUnit},
};

use super::cell::Cell;
use crate::definition::FieldType;

pub(super) fn arrow_type(kind: FieldType) -> DataType {
    match kind {
        FieldType::String => DataType::Utf8,
        FieldType::Int64 => DataType::Int64,
        FieldType::Float64 => DataType::Float64,
        FieldType::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
        FieldType::Bool => DataType::Boolean,
        FieldType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        FieldType::Date => DataType::Date32,
    }
}

enum Column {
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Decimal(Decimal128Builder),
    Bool(BooleanBuilder),
    Time(TimestampMicrosecondBuilder),
    Date(Date32Builder),
}

/// Columns under construction, one per declared field.
pub(crate) struct Columns {
    columns: Vec<Column>,
}

impl Columns {
    pub(crate) fn new(kinds: impl Iterator<Item = FieldType>, rows: usize) -> Self {
        let column = |kind: FieldType| match kind {
            FieldType::String => Column::Text(StringBuilder::with_capacity(rows, rows * 16)),
            FieldType::Int64 => Column::Int(Int64Builder::with_capacity(rows)),
            FieldType::Float64 => Column::Float(Float64Builder::with_capacity(rows)),
            FieldType::Decimal { .. } => {
                Column::Decimal(Decimal128Builder::with_capacity(rows).with_data_type(arrow_type(kind)))
            }
            FieldType::Bool => Column::Bool(BooleanBuilder::with_capacity(rows)),
            FieldType::Timestamp => Column::Time(TimestampMicrosecondBuilder::with_capacity(rows)),
            FieldType::Date => Column::Date(Date32Builder::with_capacity(rows)),
        };
        Self { columns: kinds.map(column).collect() }
    }

    /// Appends one record. A cell that is not of its column's type is null; conversion never makes one.
    pub(crate) fn push(&mut self, cells: &[Cell<'_>]) {
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            match (column, cell) {
                (Column::Text(column), Cell::Text(text)) => column.append_value(text),
                (Column::Text(column), _) => column.append_null(),
                (Column::Int(column), Cell::Int(number)) => column.append_value(*number),
                (Column::Int(column), _) => column.append_null(),
                (Column::Float(column), Cell::Float(number)) => column.append_value(*number),
                (Column::Float(column), _) => column.append_null(),
                (Column::Decimal(column), Cell::Decimal(number)) => column.append_value(*number),
                (Column::Decimal(column), _) => column.append_null(),
                (Column::Bool(column), Cell::Bool(flag)) => column.append_value(*flag),
                (Column::Bool(column), _) => column.append_null(),
                (Column::Time(column), Cell::Time(at)) => column.append_value(*at),
                (Column::Time(column), _) => column.append_null(),
                (Column::Date(column), Cell::Date(day)) => column.append_value(*day),
                (Column::Date(column), _) => column.append_null(),
            }
        }
    }

    pub(crate) fn finish(self) -> Vec<ArrayRef> {
        let finish = |column| -> ArrayRef {
            match column {
                Column::Text(mut column) => Arc::new(column.finish()),
                Column::Int(mut column) => Arc::new(column.finish()),
                Column::Float(mut column) => Arc::new(column.finish()),
                Column::Decimal(mut column) => Arc::new(column.finish()),
                Column::Bool(mut column) => Arc::new(column.finish()),
                Column::Time(mut column) => Arc::new(column.finish()),
                Column::Date(mut column) => Arc::new(column.finish()),
            }
        };
        self.columns.into_iter().map(finish).collect()
    }
}
