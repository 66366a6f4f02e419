//! Series: one combination of dimension values, as canonical bytes that keys, shards and chunks share.

use std::hash::{BuildHasher, Hasher};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use bytes::Bytes;
use lamina_core::Shard;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::chunk::ChunkError;

/// The value that every dimension of the overflow series has.
pub const OVERFLOW: &str = "$overflow";

/// A value of a dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DimensionValue {
    Null,
    Bool(bool),
    Int(i64),
    /// The bits of a float; negative zero is stored as zero.
    Float(u64),
    Str(String),
}

impl DimensionValue {
    /// A row of a dimension's column.
    ///
    /// # Errors
    /// If the column is of a type that dimensions do not have.
    pub fn of(column: &dyn Array, row: usize) -> Result<Self, ChunkError> {
        if column.is_null(row) {
            return Ok(Self::Null);
        }
        Ok(match column.data_type() {
            DataType::Null => Self::Null,
            DataType::Utf8 => Self::Str(column.as_string::<i32>().value(row).to_owned()),
            DataType::Utf8View => Self::Str(column.as_string_view().value(row).to_owned()),
            DataType::Int64 => Self::Int(column.as_primitive::<Int64Type>().value(row)),
            DataType::Float64 => Self::Float((column.as_primitive::<Float64Type>().value(row) + 0.0).to_bits()),
            DataType::Boolean => {
                let column: &BooleanArray = column.as_boolean();
                Self::Bool(column.value(row))
            }
            _ => return Err(ChunkError::Invalid("a dimension must be text, an integer, a float or a boolean")),
        })
    }

    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Float(bits) => f64::from_bits(*bits).into(),
            Self::Str(value) => value.as_str().into(),
        }
    }
}

/// Dimension values of one series: the postcard of `Vec<DimensionValue>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series(Bytes);

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Series {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Self(Bytes::copy_from_slice(bytes)))
    }
}

impl Series {
    pub fn new(values: &[DimensionValue]) -> Self {
        // Plain data always serialises; postcard fails only on sequences of unknown length and on full buffers.
        Self(postcard::to_stdvec(values).unwrap_or_default().into())
    }

    /// The series of a row of dimension columns.
    ///
    /// # Errors
    /// If a column is of a type that dimensions do not have.
    pub fn of_row(columns: &[ArrayRef], row: usize) -> Result<Self, ChunkError> {
        let values: Result<Vec<_>, _> = columns.iter().map(|column| DimensionValue::of(column, row)).collect();
        Ok(Self::new(&values?))
    }

    /// The series that takes what a view's cap leaves out: every value is the text `$overflow`.
    pub fn overflow(dimensions: usize) -> Self {
        Self::new(&vec![DimensionValue::Str(OVERFLOW.to_owned()); dimensions])
    }

    /// # Errors
    /// If the bytes are not a series'.
    pub fn values(&self) -> Result<Vec<DimensionValue>, ChunkError> {
        postcard::from_bytes(&self.0).map_err(ChunkError::Body)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    pub fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The shard of a view that holds the series. It never changes: stored chunks lie where it says.
    pub fn shard(&self, shards: Shard) -> Shard {
        (xxh3_64(&self.0) % u64::from(shards.max(1))) as Shard
    }

    /// The series of the values at the positions `keep`. A position beyond the values, as in bytes that are no series
    /// (which no decoded chunk holds), gives null.
    pub fn project(&self, keep: &[usize]) -> Self {
        let values = self.values().unwrap_or_default();
        let kept: Vec<_> = keep.iter().map(|&at| values.get(at).cloned().unwrap_or(DimensionValue::Null)).collect();
        Self::new(&kept)
    }
}

/// Hashes keys by XXH3, which is fast on short byte strings.
#[derive(Clone, Copy, Debug, Default)]
pub struct FastHash;

#[derive(Debug)]
pub struct FastHasher(u64);

impl BuildHasher for FastHash {
    type Hasher = FastHasher;

    fn build_hasher(&self) -> FastHasher {
        FastHasher(0)
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_shards_of_a_series_never_change() {
        let series = Series::new(&[
            DimensionValue::Str("de".into()),
            DimensionValue::Int(-1),
            DimensionValue::Null,
            DimensionValue::Bool(true),
            DimensionValue::Float(1.5_f64.to_bits()),
        ]);
        assert_eq!(
            series.as_bytes(),
            [5, 4, 2, b'd', b'e', 2, 1, 0, 1, 1, 3, 128, 128, 128, 128, 128, 128, 128, 252, 63]
        );
        assert_eq!((series.shard(16), series.shard(1), series.shard(0)), (6, 0, 0));
        assert_eq!(series.project(&[1, 0]).values().unwrap()[1], DimensionValue::Str("de".into()));
        assert!(Series::from_bytes(Bytes::from_static(&[200, 1, 2])).values().is_err());
    }
}
