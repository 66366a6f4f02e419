//! Definitions as they are written: the schema of the TOML files and of the API's bodies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Length;

/// A map in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered<V>(pub Vec<(String, V)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Json,
    Csv,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeUnit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Millis,
    #[serde(rename = "us")]
    Micros,
    #[serde(rename = "ns")]
    Nanos,
}

/// The type of a raw field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    String,
    Int64,
    Float64,
    Decimal { precision: u8, scale: i8 },
    Bool,
    Timestamp,
    Date,
}

/// `[source.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceDefinition {
    pub description: Option<String>,
    /// The log's topic; the source's name if left out.
    pub topic: Option<String>,
    pub format: Format,
    pub delimiter: Option<char>,
    pub header: Option<bool>,
    pub columns: Option<Vec<String>>,
    pub time: String,
    pub time_unit: Option<TimeUnit>,
    pub time_zone: Option<String>,
    pub id: Option<String>,
    pub order: Option<String>,
    pub dedup_window: Option<Length>,
    pub fields: Ordered<FieldType>,
    pub derive: Ordered<String>,
}

/// A dimension: a field, a derived name or an expression, or an expression with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DimensionDefinition {
    Text(String),
    Named { name: String, sql: String },
}

/// `[metric.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricDefinition {
    pub description: Option<String>,
    pub source: String,
    pub filter: Option<String>,
    pub value: Option<String>,
    pub dimensions: Vec<DimensionDefinition>,
    pub groupings: Vec<Vec<String>>,
    pub aggregates: Vec<String>,
    pub grain: Length,
    pub rollups: Vec<Length>,
    pub retention: BTreeMap<Length, Length>,
    pub shards: Option<u32>,
    pub max_series: Option<u32>,
}

impl SourceDefinition {
    /// Equal for definitions that mean the same.
    pub fn fingerprint(&self) -> String {
        unimplemented!()
    }
}

impl MetricDefinition {
    /// Equal for definitions that mean the same.
    pub fn fingerprint(&self) -> String {
        unimplemented!()
    }
}
