//! Values of users' tables: CQL's types to lamina's few and back.

use bytes::Bytes;
use lamina_core::{
    StoreError,
    tables::{ColumnType, Value},
};
use scylla::{
    cluster::metadata::ColumnType as CqlType,
    deserialize::{FrameSlice, value::DeserializeValue},
    serialize::{
        SerializationError,
        value::SerializeValue,
        writers::{CellWriter, WrittenCellProof},
    },
    value::{CqlDate, CqlDecimal, CqlTimestamp, CqlValue},
};

use super::errors;

/// Days from CQL's first date to 1970-01-01.
const EPOCH_DAY: i64 = 1 << 31;
const MILLI: i64 = 1_000;

/// What values of a type are read as, and whether lamina writes it, by the type's name in `system_schema.columns`.
pub(super) fn column_type(declared: &str) -> (ColumnType, bool) {
    match declared {
        "text" | "varchar" | "ascii" => (ColumnType::Text, true),
        "uuid" | "timeuuid" | "inet" => (ColumnType::Text, false),
        "bigint" | "int" | "smallint" | "tinyint" => (ColumnType::Int, true),
        "counter" => (ColumnType::Int, false),
        "double" => (ColumnType::Float, true),
        // It holds less than what it would be compared with.
        "float" => (ColumnType::Float, false),
        "decimal" => (ColumnType::Decimal, true),
        "varint" => (ColumnType::Decimal, false),
        "boolean" => (ColumnType::Bool, true),
        "timestamp" => (ColumnType::Time, true),
        "date" => (ColumnType::Date, true),
        _ => (ColumnType::Other, false),
    }
}

/// Reads one cell.
pub(super) fn read(kind: &CqlType<'_>, cell: Option<FrameSlice<'_>>) -> Result<Value, StoreError> {
    // An empty value is what some tools write where they mean none; a text is a text.
    let Some(cell) = cell else { return Ok(Value::Null) };
    let value = CqlValue::deserialize(kind, Some(cell)).map_err(errors::shape)?;
    Ok(match value {
        CqlValue::Empty => Value::Null,
        CqlValue::Ascii(text) | CqlValue::Text(text) => Value::Text(text),
        CqlValue::Uuid(id) => Value::Text(id.to_string()),
        CqlValue::Timeuuid(id) => Value::Text(id.to_string()),
        CqlValue::Inet(address) => Value::Text(address.to_string()),
        CqlValue::BigInt(number) => Value::Int(number),
        CqlValue::Counter(number) => Value::Int(number.0),
        CqlValue::Int(number) => Value::Int(number.into()),
        CqlValue::SmallInt(number) => Value::Int(number.into()),
        CqlValue::TinyInt(number) => Value::Int(number.into()),
        CqlValue::Double(number) => Value::Float(number),
        CqlValue::Float(number) => Value::Float(number.into()),
        CqlValue::Boolean(flag) => Value::Bool(flag),
        CqlValue::Decimal(number) => {
            let (bytes, scale) = number.as_signed_be_bytes_slice_and_exponent();
            decimal(bytes, scale)
        }
        CqlValue::Varint(number) => decimal(number.as_signed_bytes_be_slice(), 0),
        CqlValue::Timestamp(CqlTimestamp(millis)) => millis
            .checked_mul(MILLI)
            .map_or_else(|| Value::Unreadable(format!("time {millis} ms is out of range")), Value::Time),
        CqlValue::Date(CqlDate(days)) => {
            i32::try_from(i64::from(days) - EPOCH_DAY).map_or(Value::Unreadable("date".to_owned()), Value::Date)
        }
        _ => Value::Unreadable("a value of a type that is not read".to_owned()),
    })
}

fn decimal(bytes: &[u8], scale: i32) -> Value {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let extra = bytes.len().saturating_sub(16);
    let (head, tail) = bytes.split_at(extra);
    let mut all = [fill; 16];
    all[16 - tail.len()..].copy_from_slice(tail);
    let unscaled = i128::from_be_bytes(all);
    if head.iter().all(|byte| *byte == fill) && (unscaled < 0) == negative {
        return Value::Decimal { unscaled, scale };
    }
    Value::Unreadable("a number of more than 38 digits".to_owned())
}

/// What is bound to a marker of a statement.
pub(super) enum Bound {
    /// A key's part as it was read.
    Raw(Bytes),
    Value(Value),
    /// A timestamp.
    Long(i64),
    /// A time to live.
    Int(i32),
}

/// Why a value does not go into its column.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} does not fit a column of type {1}")]
struct DoesNotFit(Value, String);

impl SerializeValue for Bound {
    fn serialize<'b>(
        &self,
        kind: &CqlType<'_>,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        match self {
            Self::Raw(bytes) => writer.set_value(bytes).map_err(SerializationError::new),
            Self::Long(number) => number.serialize(kind, writer),
            Self::Int(number) => number.serialize(kind, writer),
            Self::Value(value) => written(value, kind)
                .ok_or_else(|| SerializationError::new(DoesNotFit(value.clone(), format!("{kind:?}"))))?
                .serialize(kind, writer),
        }
    }
}

/// `Some(None)` is null.
fn written(value: &Value, kind: &CqlType<'_>) -> Option<Option<CqlValue>> {
    use scylla::cluster::metadata::NativeType as Native;
    let CqlType::Native(native) = kind else { return None };
    Some(Some(match (value, native) {
        (Value::Null, _) => return Some(None),
        (Value::Text(text), Native::Ascii) if text.is_ascii() => CqlValue::Ascii(text.clone()),
        (Value::Text(text), Native::Text) => CqlValue::Text(text.clone()),
        (Value::Int(number), Native::BigInt) => CqlValue::BigInt(*number),
        (Value::Int(number), Native::Int) => CqlValue::Int((*number).try_into().ok()?),
        (Value::Int(number), Native::SmallInt) => CqlValue::SmallInt((*number).try_into().ok()?),
        (Value::Int(number), Native::TinyInt) => CqlValue::TinyInt((*number).try_into().ok()?),
        (Value::Float(number), Native::Double) => CqlValue::Double(*number),
        (Value::Bool(flag), Native::Boolean) => CqlValue::Boolean(*flag),
        (Value::Decimal { unscaled, scale }, Native::Decimal) => {
            CqlValue::Decimal(CqlDecimal::from_signed_be_bytes_slice_and_exponent(&unscaled.to_be_bytes(), *scale))
        }
        (Value::Time(at), Native::Timestamp) => CqlValue::Timestamp(CqlTimestamp(at.div_euclid(MILLI))),
        (Value::Date(day), Native::Date) => CqlValue::Date(CqlDate(u32::try_from(i64::from(*day) + EPOCH_DAY).ok()?)),
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_of_any_length_are_read_as_far_as_they_fit() {
        let read = |bytes: &[u8]| decimal(bytes, 2);
        assert_eq!(read(&[0x7b]), Value::Decimal { unscaled: 123, scale: 2 });
        assert_eq!(read(&[0xff, 0x85]), Value::Decimal { unscaled: -123, scale: 2 });
        assert_eq!(read(&[]), Value::Decimal { unscaled: 0, scale: 2 });
        let long = [[0; 4].as_slice(), &i128::MAX.to_be_bytes()].concat();
        assert_eq!(read(&long), Value::Decimal { unscaled: i128::MAX, scale: 2 });
        let too_long = [[1].as_slice(), &[0; 16]].concat();
        assert!(matches!(read(&too_long), Value::Unreadable(_)));
        let sign_lost = [[0].as_slice(), &[0xff; 16]].concat();
        assert!(matches!(read(&sign_lost), Value::Unreadable(_)));
    }

    #[test]
    fn a_number_goes_only_where_it_fits() {
        use scylla::cluster::metadata::NativeType;
        let fits = |number, native| written(&Value::Int(number), &CqlType::Native(native)).is_some();
        assert!(fits(127, NativeType::TinyInt) && !fits(128, NativeType::TinyInt));
        assert!(fits(i64::MAX, NativeType::BigInt) && !fits(i64::MAX, NativeType::Int));
        assert!(!fits(1, NativeType::Double));
    }
}
