//! The inputs of states as typed arrays, from prepared rows or from a UDAF's arguments.
//!
//! A float is mapped to an integer that sorts as it does, so that min, max, first and last are the same code for every
//! type of value.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, Decimal128Array, Float64Array, Int64Array, PrimitiveArray, StringArray,
        TimestampMicrosecondArray, UInt32Array, UInt64Array,
    },
    compute::cast,
    datatypes::{ArrowPrimitiveType, DataType, TimeUnit},
    record_batch::RecordBatch,
};

use super::{
    Kind, Layout, Number, StateError,
    extreme::{Moment, OrderKey},
};

enum Values {
    None,
    Int(Int64Array),
    Float(Float64Array),
    Decimal(Decimal128Array),
}

enum Orders {
    None,
    Number(Decimal128Array),
    Float(Float64Array),
    Text(StringArray),
}

/// Where events stand; only read for first and last.
struct Moments {
    partitions: UInt32Array,
    offsets: UInt64Array,
    times: TimestampMicrosecondArray,
    orders: Orders,
}

pub(crate) struct Inputs {
    pub(crate) rows: usize,
    values: Values,
    moments: Option<Moments>,
    texts: Vec<StringArray>,
}

impl Inputs {
    pub(crate) fn of_batch(layout: &Layout, prepared: &RecordBatch) -> Result<Self, StateError> {
        let column = |name: &str| {
            let column = prepared.column_by_name(name);
            column.cloned().ok_or_else(|| StateError::Input(format!("column `{name}` is missing")))
        };
        let names = ["_partition", "_offset", "_time", "_order"].into_iter().map(str::to_owned);
        let value = (layout.number != Number::None).then(|| "v".to_owned());
        let texts = (0..layout.texts()).map(|at| format!("x{at}"));
        let arrays = names.chain(value).chain(texts).map(|name| column(&name)).collect::<Result<Vec<_>, _>>()?;
        Self::of_arrays(layout, &arrays, prepared.num_rows())
    }

    /// Arrays in the order `_partition, _offset, _time, _order, v?, x0..`; more are ignored.
    pub(crate) fn of_arrays(layout: &Layout, arrays: &[ArrayRef], rows: usize) -> Result<Self, StateError> {
        let mut arrays = arrays.iter();
        let mut next = |what: &str| {
            let array = arrays.next().ok_or_else(|| StateError::Input(format!("{what} is missing")))?;
            if array.len() == rows { Ok(array) } else { Err(StateError::Input(format!("{what} has another length"))) }
        };
        let (partitions, offsets, times, orders) =
            (next("partition")?, next("offset")?, next("time")?, next("order value")?);
        let moments = layout.orders().then(|| Moments::new(partitions, offsets, times, orders)).transpose()?;
        let values = match layout.number {
            Number::None => Values::None,
            Number::Int => Values::Int(typed(next("value")?, "value")?),
            Number::Float => Values::Float(finite(typed(next("value")?, "value")?)?),
            Number::Decimal { .. } => Values::Decimal(typed(next("value")?, "value")?),
        };
        let texts = (0..layout.texts()).map(|_| typed(&casted(next("argument")?, &DataType::Utf8)?, "argument"));
        let texts = texts.collect::<Result<_, _>>()?;
        Ok(Self { rows, values, moments, texts })
    }

    /// Calls `each(row, group, value)` for every row with a value.
    pub(crate) fn values(&self, groups: &[usize], mut each: impl FnMut(usize, usize, i128)) {
        match &self.values {
            Values::None => {}
            Values::Int(array) => visit(array, groups, |row, group, value| each(row, group, i128::from(value))),
            Values::Decimal(array) => visit(array, groups, each),
            Values::Float(array) => visit(array, groups, |row, group, value| each(row, group, to_key(value))),
        }
    }

    /// Calls `each(group, value as a float)` for every row with a value.
    pub(crate) fn floats(&self, number: Number, groups: &[usize], mut each: impl FnMut(usize, f64)) {
        match &self.values {
            Values::Float(array) => visit(array, groups, |_, group, value| each(group, value + 0.0)),
            _ => self.values(groups, |_, group, value| each(group, to_float(value, number))),
        }
    }

    /// Calls `each(group, text)` for every row whose text input of this kind is not null.
    pub(crate) fn texts(&self, kind: &Kind, groups: &[usize], mut each: impl FnMut(usize, &str)) {
        let (Kind::Distinct { input } | Kind::Top { input, .. }) = kind else { return };
        let array = &self.texts[*input as usize];
        for (&group, text) in groups.iter().zip(array) {
            if let Some(text) = text {
                each(group, text);
            }
        }
    }

    /// Event time; only for layouts that order events.
    pub(crate) fn time(&self, row: usize) -> i64 {
        self.moments.as_ref().map_or(0, |moments| moments.times.value(row))
    }

    pub(crate) fn moment(&self, row: usize, value: i128) -> Moment {
        match &self.moments {
            None => Moment { time: 0, order: OrderKey::Null, partition: 0, offset: 0, value },
            Some(moments) => Moment {
                time: moments.times.value(row),
                order: moments.orders.key(row),
                partition: moments.partitions.value(row),
                offset: moments.offsets.value(row),
                value,
            },
        }
    }
}

impl Moments {
    fn new(partitions: &ArrayRef, offsets: &ArrayRef, times: &ArrayRef, orders: &ArrayRef) -> Result<Self, StateError> {
        Ok(Self {
            partitions: typed(partitions, "partition")?,
            offsets: typed(offsets, "offset")?,
            times: typed(times, "time")?,
            orders: Orders::new(orders)?,
        })
    }
}

impl Orders {
    fn new(array: &ArrayRef) -> Result<Self, StateError> {
        let integers = |array: &ArrayRef| typed(&casted(array, &DataType::Decimal128(38, 0))?, "order value");
        Ok(match array.data_type() {
            DataType::Null => Self::None,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Self::Text(typed(&casted(array, &DataType::Utf8)?, "order value")?)
            }
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                Self::Float(typed(&casted(array, &DataType::Float64)?, "order value")?)
            }
            // One column has one scale, so the unscaled numbers sort as the decimals do.
            DataType::Decimal128(..) => Self::Number(typed(array, "order value")?),
            DataType::Timestamp(..) => {
                let micros = casted(array, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
                Self::Number(integers(&casted(&micros, &DataType::Int64)?)?)
            }
            DataType::Date32 => Self::Number(integers(&casted(array, &DataType::Int32)?)?),
            DataType::Boolean => Self::Number(integers(&casted(array, &DataType::Int8)?)?),
            _ => Self::Number(integers(array)?),
        })
    }

    fn key(&self, row: usize) -> OrderKey {
        match self {
            Self::Number(array) if array.is_valid(row) => OrderKey::Number(array.value(row)),
            Self::Float(array) if array.is_valid(row) => OrderKey::Number(to_key(array.value(row))),
            Self::Text(array) if array.is_valid(row) => OrderKey::Text(array.value(row).into()),
            _ => OrderKey::Null,
        }
    }
}

/// Calls `each(row, group, value)` for every row that is not null.
fn visit<T: ArrowPrimitiveType>(
    array: &PrimitiveArray<T>,
    groups: &[usize],
    mut each: impl FnMut(usize, usize, T::Native),
) {
    match array.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => {
            for (row, (&group, &value)) in groups.iter().zip(array.values()).enumerate() {
                each(row, group, value);
            }
        }
        Some(nulls) => {
            for row in nulls.valid_indices() {
                each(row, groups[row], array.value(row));
            }
        }
    }
}

fn typed<A: Array + Clone + 'static>(array: &ArrayRef, what: &str) -> Result<A, StateError> {
    let typed = array.as_any().downcast_ref::<A>().cloned();
    typed.ok_or_else(|| StateError::Input(format!("{what} must not be of type {}", array.data_type())))
}

fn casted(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, StateError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    cast(array, to).map_err(|error| StateError::Input(error.to_string()))
}

/// Preparing leaves out rows that are not finite; one that slips through would spoil what it is merged into.
fn finite(array: Float64Array) -> Result<Float64Array, StateError> {
    if array.iter().flatten().all(f64::is_finite) {
        Ok(array)
    } else {
        Err(StateError::Input("a value is not finite".to_owned()))
    }
}

/// An integer that sorts as the float does. Negative zero counts as zero.
fn to_key(value: f64) -> i128 {
    i128::from(flip((value + 0.0).to_bits() as i64))
}

/// A kept value as a float.
pub(crate) fn to_float(value: i128, number: Number) -> f64 {
    match number {
        Number::Float => f64::from_bits(flip(value as i64) as u64),
        Number::Decimal { scale } => value as f64 / 10_f64.powi(i32::from(scale)),
        Number::Int | Number::None => value as f64,
    }
}

/// Makes a float's bits sort as integers; its own inverse.
fn flip(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_floats_sort_as_the_floats_and_give_them_back() {
        let sorted = [f64::MIN, -1.5, -f64::MIN_POSITIVE, -5e-324, 0.0, 5e-324, 0.1, 1.0, f64::MAX];
        for pair in sorted.windows(2) {
            assert!(to_key(pair[0]) < to_key(pair[1]), "{pair:?}");
        }
        for value in sorted {
            assert_eq!(to_float(to_key(value), Number::Float), value);
        }
        assert_eq!(to_key(-0.0), to_key(0.0));
    }
}
