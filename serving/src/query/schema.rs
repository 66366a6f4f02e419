//! The shape of an answer, for the OpenAPI document; [`super::encode`] writes it.

#![expect(dead_code, reason = "describes what others write")]

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::meta::{BatchMeta, Meta, SpeedMeta};

/// Series of points, with the proof of what they fold.
#[derive(ToSchema)]
pub(crate) struct QueryAnswer {
    metric: String,
    /// Of the definition; null of a derived metric.
    #[schema(required)]
    version: Option<u32>,
    /// As widened to the grain.
    from: String,
    /// Exclusive.
    to: String,
    /// As it was asked.
    #[schema(required)]
    step: Option<String>,
    /// The zone that was asked for.
    #[schema(nullable = false)]
    tz: Option<String>,
    series: Vec<Series>,
    meta: Meta,
    /// Of a page: where the next one begins, null at the end.
    next_page_token: Option<String>,
}

#[derive(ToSchema)]
struct Series {
    /// The values of the dimensions that the query groups by.
    dimensions: BTreeMap<String, DimensionValue>,
    points: Vec<Point>,
}

/// A bucket: its start, and the aggregates under the names by which they were asked.
#[derive(ToSchema)]
struct Point {
    start: String,
    #[serde(flatten)]
    values: BTreeMap<String, PointValue>,
}

#[derive(ToSchema)]
#[serde(untagged)]
enum DimensionValue {
    Text(String),
    Number(f64),
    Bool(bool),
    Null,
}

#[derive(ToSchema)]
#[serde(untagged)]
enum PointValue {
    /// A decimal has its scale. With `numbers=string`, decimals and integers beyond 2^53 are texts.
    Number(f64),
    Text(String),
    Bool(bool),
    /// Of `top`.
    Top(Vec<TopValue>),
    /// Nothing was there but nulls.
    Null,
}

#[derive(ToSchema)]
struct TopValue {
    value: DimensionValue,
    count: Count,
    /// How much too large the count may be.
    error: Count,
}

#[derive(ToSchema)]
#[serde(untagged)]
enum Count {
    Number(u64),
    Text(String),
}

/// [`super::meta::Layers`] of an answer that may be of a derived metric, which has none.
#[derive(ToSchema)]
pub(crate) struct OwnLayers {
    #[schema(nullable = false)]
    batch: Option<BatchMeta>,
    #[schema(nullable = false)]
    speed: Option<SpeedMeta>,
}

/// Of approximate values, how far they may be off, at 99 %.
#[derive(ToSchema)]
pub(crate) struct ErrorBound {
    /// Of the answer itself.
    #[schema(nullable = false)]
    relative_error: Option<f64>,
    /// Of each count, as a share of all events with a value.
    #[schema(nullable = false)]
    share_error: Option<f64>,
}

/// What became of a query among several.
#[derive(ToSchema)]
pub(crate) struct QueryResult {
    /// As it would have been of the query by itself.
    status: u16,
    #[schema(nullable = false)]
    answer: Option<QueryAnswer>,
    #[schema(nullable = false, value_type = Option<Object>)]
    problem: Option<serde_json::Value>,
}

#[derive(ToSchema)]
pub(crate) struct QueryResults {
    /// In the order of the queries.
    results: Vec<QueryResult>,
}

/// What becomes of bounds that are no multiples of the grain.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum Align {
    Widen,
    Strict,
}

/// How large integers and decimals are written.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum NumbersAs {
    Number,
    String,
}
