//! Definitions as they are written: the schema of the TOML files and of the interface's bodies.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};
use xxhash_rust::xxh3::xxh3_128;

use crate::time::Length;

/// A map in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered<V>(pub Vec<(String, V)>);

/// Where a source's events come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Records of a topic.
    #[default]
    Log,
    /// The rows of an existing table, as they stand whenever batch scans it.
    Cassandra,
}

/// How an event is written in its log record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Json,
    Csv,
    Text,
    /// It is no record but a row of a table, whose columns are typed already. Nobody writes this.
    #[default]
    #[serde(skip)]
    Row,
}

/// What a numeric event time counts.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceDefinition {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "SourceKind::is_log")]
    pub kind: SourceKind,
    /// Of a table: `keyspace.table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The log's topic; the source's name if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(default, skip_serializing_if = "Format::is_row")]
    pub format: Format,
    /// CSV: what stands between fields; a comma if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// CSV: whether files and bodies begin with a line of names. Log records never do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// CSV: the fields of a log record in order; the declared fields if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// A field, a derived name or an SQL expression giving the event time.
    pub time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_unit: Option<TimeUnit>,
    /// The zone of texts of times that name none; UTC if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// The dedup key: a field, a derived name or an SQL expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What `first` and `last` go by between events of the same time: a field or a derived name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// How long an id is remembered; an hour if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup_window: Option<Length>,
    #[serde(default, skip_serializing_if = "Ordered::is_empty")]
    pub fields: Ordered<FieldType>,
    #[serde(default, skip_serializing_if = "Ordered::is_empty")]
    pub derive: Ordered<String>,
    /// Of a table: column → SQL over the fields; each run writes it where it differs from what stands there.
    #[serde(default, skip_serializing_if = "Ordered::is_empty")]
    pub update: Ordered<String>,
    /// Of a table: which rows each run deletes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expire: Vec<RowExpireDefinition>,
}

/// `[[source.NAME.expire]]`: rows for which `where` is true once `after` has passed since their event time. At least one of
/// both is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowExpireDefinition {
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Length>,
}

/// A dimension: a field, a derived name or an expression, or an expression with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DimensionDefinition {
    Text(String),
    Named { name: String, sql: String },
}

/// `[metric.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricDefinition {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub source: String,
    /// Only events for which this is true.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dimensions: Vec<DimensionDefinition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groupings: Vec<Vec<String>>,
    pub aggregates: Vec<String>,
    pub grain: Length,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollups: Vec<Length>,
    /// Shards of each view with dimensions; 4 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Most series per view, partition and epoch; 100,000 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_series: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retention: BTreeMap<Length, Length>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expire: Vec<ExpireDefinition>,
}

/// `[[metric.NAME.expire]]`: series that are kept for less than the others. Either `after` or `retention` is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpireDefinition {
    /// A condition over the metric's dimensions, as in queries.
    #[serde(rename = "where")]
    pub filter: String,
    /// How long, in every rollup that is kept for longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Length>,
    /// How long, by rollup.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retention: BTreeMap<Length, Length>,
}

impl SourceDefinition {
    /// Equal for definitions that mean the same, whatever the order in which they were written.
    pub fn fingerprint(&self) -> String {
        let columns = self.columns.clone().or_else(|| (self.format == Format::Csv).then(|| self.fields.names()));
        fingerprint(&Self { columns, description: None, ..self.clone() })
    }

    /// Whether events decode under this definition as under the older one, except for fields and derived names that it
    /// adds, and for what is written back to a table: then metrics that were defined over the older one can be folded over
    /// this one.
    pub fn extends(&self, older: &Self) -> bool {
        fn holds<V: PartialEq>(all: &Ordered<V>, some: &Ordered<V>) -> bool {
            some.iter().all(|(name, value)| all.get(name) == Some(value))
        }
        let columns = self.columns.clone().or_else(|| (self.format == Format::Csv).then(|| self.fields.names()));
        let (fields, derive) = (older.fields.clone(), older.derive.clone());
        let (update, expire) = (older.update.clone(), older.expire.clone());
        let without_more = Self { columns, fields, derive, update, expire, ..self.clone() };
        holds(&self.fields, &older.fields)
            && holds(&self.derive, &older.derive)
            && without_more.fingerprint() == older.fingerprint()
    }

    /// As a text that [`crate::Catalog::compile`] takes.
    ///
    /// # Errors
    /// Never for a definition that was read; a zero byte or the like cannot occur.
    pub fn to_toml(&self, name: &str) -> Result<String, toml::ser::Error> {
        toml::to_string(&BTreeMap::from([("source", BTreeMap::from([(name, self)]))]))
    }
}

impl SourceKind {
    fn is_log(&self) -> bool {
        *self == Self::Log
    }
}

impl Format {
    fn is_row(&self) -> bool {
        *self == Self::Row
    }
}

impl MetricDefinition {
    /// Equal for definitions that mean the same, whatever the order in which they were written.
    pub fn fingerprint(&self) -> String {
        fingerprint(&Self { description: None, ..self.clone() })
    }

    /// As a text that [`crate::Catalog::compile`] takes.
    ///
    /// # Errors
    /// Never for a definition that was read.
    pub fn to_toml(&self, name: &str) -> Result<String, toml::ser::Error> {
        toml::to_string(&BTreeMap::from([("metric", BTreeMap::from([(name, self)]))]))
    }
}

impl DimensionDefinition {
    /// The name by which queries ask.
    pub fn name(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Named { name, .. } => name,
        }
    }

    /// The field or expression.
    pub fn sql(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Named { sql, .. } => sql,
        }
    }
}

pub(crate) fn fingerprint<T: Serialize>(definition: &T) -> String {
    // A definition is plain data with text keys: it always serialises.
    let value = serde_json::to_value(definition).unwrap_or_default();
    let mut canonical = String::new();
    write_canonical(&value, &mut canonical);
    format!("{:032x}", xxh3_128(canonical.as_bytes()))
}

/// JSON with sorted keys.
fn write_canonical(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&format!("{key:?}:"));
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        serde_json::Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

impl FieldType {
    pub(crate) const FORMS: &str = "string, int64, float64, decimal(p,s), bool, timestamp or date";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "string" => Self::String,
            "int64" => Self::Int64,
            "float64" => Self::Float64,
            "bool" => Self::Bool,
            "timestamp" => Self::Timestamp,
            "date" => Self::Date,
            _ => {
                let inner = text.strip_prefix("decimal(")?.strip_suffix(')')?;
                let (precision, scale) = inner.split_once(',')?;
                let precision: u8 = precision.trim().parse().ok()?;
                let scale: i8 = scale.trim().parse().ok()?;
                let fits = (1..=38).contains(&precision) && scale >= 0 && scale.unsigned_abs() <= precision;
                return fits.then_some(Self::Decimal { precision, scale });
            }
        })
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "string",
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::Bool => "bool",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
            Self::Decimal { precision, scale } => return write!(f, "decimal({precision},{scale})"),
        })
    }
}

impl Serialize for FieldType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FieldType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a type; types are {}", Self::FORMS)))
    }
}

impl<V> Ordered<V> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub fn get(&self, name: &str) -> Option<&V> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V: Serialize> Serialize for Ordered<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Ordered<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Ordered<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
