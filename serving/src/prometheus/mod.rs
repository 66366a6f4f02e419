//! Metrics as Prometheus sees them: names and labels, PromQL over merged views, and Prometheus' JSON.
//!
//! Flow: text → [`mod@parse`] → [`expression`] with its selectors → [`fetch`] (each selector through the one planning
//! function of queries) → [`evaluate`], for all instants of the range at once → [`answer`].
//!
//! # Invariants
//! - A sample is a stored bucket of the metric's grain; its timestamp is the bucket's end. Buckets are deltas.
//! - What a window covers is whole buckets, so counts and integer sums are exact.
//! - What cannot be computed here is refused by name, never approximated.
//! - A query's length, nesting, selectors, instants, values and the samples that its windows touch are bounded.

mod aggregate;
pub(crate) mod answer;
mod binary;
mod catalogue;
mod evaluate;
mod expression;
mod fetch;
mod filter;
mod functions;
mod names;
mod parse;
mod times;
mod vector;
mod window;

use lamina_core::{Micros, offload::offload};
use serde_json::Value;

pub(crate) use self::{
    answer::{Failure, FailureKind},
    catalogue::{label_names, label_values, metadata, series},
    names::name_of,
    parse::{matchers, parse},
    times::{Grid, duration, instant},
};
use crate::{app::App, auth::Principal};

/// What was computed, with what must be said of it.
pub(crate) struct Computed {
    pub(crate) value: vector::Value,
    pub(crate) grid: Grid,
    /// An order other than by labels is the answer's own.
    pub(crate) sorted: bool,
    /// For people: what is missing.
    pub(crate) warnings: Vec<String>,
    /// What proves it, one for each read.
    pub(crate) meta: Vec<Value>,
}

/// Evaluates a query at the instants of a grid.
pub(crate) async fn compute(app: &App, principal: &Principal, query: &str, grid: Grid) -> Result<Computed, Failure> {
    let parsed = parse(query)?;
    let sorted = parsed.root.is_ordered();
    let mut fetched = fetch::fetch(app, principal, &parsed.selectors, &grid).await?;
    let (warnings, meta) = (std::mem::take(&mut fetched.warnings), std::mem::take(&mut fetched.meta));
    let work = offload(move || evaluate::evaluate(&parsed, &fetched, &grid));
    let value = work.await.map_err(|error| Failure::internal(&error))??;
    Ok(Computed { value, grid, sorted, warnings, meta })
}

/// Longest look back of a selector without a range; a longer grain looks back over one bucket.
const LOOKBACK: Micros = 300 * crate::query::calendar::SECOND;
