//! Definitions of sources and metrics, compiled into one fold that both layers run.

pub mod aggregate;
pub mod catalog;
mod compile_metric;
mod compile_source;
pub mod decode;
pub mod definition;
pub mod diagnostic;
pub mod expression;
pub mod infer;
pub mod metric;
mod reading;
pub mod source;
mod text;
pub mod time;
mod toml_table;

pub use aggregate::{Aggregate, ValueType};
pub use catalog::{Catalog, Versions};
pub use decode::{Decoded, IngestRecord, Outcome};
pub use definition::{DimensionDefinition, FieldType, Format, MetricDefinition, Ordered, SourceDefinition, TimeUnit};
pub use diagnostic::Diagnostic;
pub use infer::infer;
pub use metric::{Dimension, Metric, MetricError, Prepared, View};
pub use source::Source;
pub use time::Length;

#[cfg(test)]
mod tests;
