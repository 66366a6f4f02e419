//! Definitions of sources and metrics, compiled into one fold that both layers run.
//!
//! The walk: TOML → [`Catalog`] ([`Source`]s and [`Metric`]s) → records decoded to events → rows prepared → states.
//!
//! # Invariants
//! - Decoding and preparing are pure functions of a record and the definition: no clock, no chance, no I/O.
//! - What is wrong with one record or row never touches another.
//! - States merge in any order to the same value.

pub mod aggregate;
pub mod answer;
pub mod archive;
pub mod catalog;
pub mod chunk;
mod compile_metric;
mod compile_source;
mod compile_table;
pub mod decode;
pub mod definition;
pub mod derived;
pub mod diagnostic;
pub mod expiry;
pub mod expression;
pub mod fold;
pub mod infer;
pub mod measure;
pub mod metric;
mod reading;
mod reading_table;
pub mod select;
pub mod series;
pub mod source;
pub mod state;
pub mod summary;
pub mod table;
mod text;
pub mod time;
mod toml_table;
pub mod udaf;

pub use aggregate::{Aggregate, ValueType};
pub use answer::{Answer, AnswerType, Approximate, Ask, Numbers, TopItem};
pub use archive::{accepted_events, archive_schema};
pub use catalog::{Catalog, Versions};
pub use chunk::{BatchChunk, ChunkError, SpeedChunk};
pub use decode::{Decoded, IngestRecord, Outcome};
pub use definition::{
    DimensionDefinition, ExpireDefinition, FieldType, Format, MetricDefinition, Ordered, RowExpireDefinition,
    SourceDefinition, SourceKind, TimeUnit,
};
pub use derived::{Derived, DerivedDefinition, Resolved};
pub use diagnostic::Diagnostic;
pub use expiry::Expiry;
pub use fold::ViewFold;
pub use infer::infer;
pub use measure::Measure;
pub use metric::{Dimension, Metric, MetricError, Prepared, View};
pub use select::{EventFilter, SeriesFilter, dimension_array};
pub use series::{DimensionValue, FastHash, OVERFLOW, Series};
pub use source::Source;
pub use state::{Layout, StateError, States};
pub use table::{Judged, NewValue, SourceTable};
pub use time::Length;
pub use udaf::states_udaf;

#[cfg(test)]
mod tests;
