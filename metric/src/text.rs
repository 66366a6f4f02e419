//! Values as texts: ids, dimensions and the arguments of `distinct` and `top`.

use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, TimestampMicrosecondType},
    error::ArrowError,
};

use crate::time::format_time;

/// Times are RFC 3339 in UTC, everything else as SQL's `CAST ... AS TEXT` has it.
pub(crate) fn to_text(values: &ArrayRef) -> Result<StringArray, ArrowError> {
    if let Some(times) = values.as_primitive_opt::<TimestampMicrosecondType>() {
        return Ok(times.iter().map(|at| at.map(format_time)).collect());
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let texts = cast_with_options(values, &DataType::Utf8, &options)?;
    match texts.as_string_opt::<i32>() {
        Some(texts) => Ok(texts.clone()),
        None => Err(ArrowError::CastError(format!("{} is not a text", values.data_type()))),
    }
}
