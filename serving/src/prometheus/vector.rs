//! Values of an evaluation, at all instants of the grid at once.

use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc};

use super::{Failure, names::NAME};

/// Labels by name, `__name__` among them; one that is missing is as good as an empty one.
pub(crate) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Most values that one evaluation computes, over all series, instants and steps of the expression.
const MAX_VALUES: usize = 2_000_000;
/// Most samples that windows touch, counted as often as they are.
const MAX_SAMPLES: usize = 50_000_000;

/// One series, a value or none per instant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) labels: Labels,
    pub(crate) values: Vec<Option<f64>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// One per instant.
    Scalar(Vec<f64>),
    Text(String),
    Vector(Vec<Row>),
}

impl Value {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "scalar",
            Self::Text(_) => "string",
            Self::Vector(_) => "instant vector",
        }
    }
}

/// Some of the labels.
pub(super) fn kept(labels: &Labels, keeps: impl Fn(&str) -> bool) -> Labels {
    let kept = labels.iter().filter(|(name, _)| keeps(name));
    kept.map(|(name, value)| (Arc::clone(name), Arc::clone(value))).collect()
}

/// The same without the metric's name.
pub(super) fn without_name(mut labels: Labels) -> Labels {
    labels.remove(NAME);
    labels
}

/// # Errors
/// If two series have the same labels, as after their names were dropped.
pub(super) fn distinct(rows: Vec<Row>) -> Result<Vec<Row>, Failure> {
    let mut seen = BTreeSet::new();
    if rows.iter().all(|row| seen.insert(&row.labels)) {
        return Ok(rows);
    }
    Err(Failure::execution(
        "the result would hold several series with the same labels: select one metric name, or aggregate",
    ))
}

/// What an evaluation may still compute.
#[derive(Debug)]
pub(crate) struct Budget {
    values: usize,
    samples: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { values: MAX_VALUES, samples: MAX_SAMPLES }
    }
}

impl Budget {
    /// Before so many values are held.
    pub(super) fn values(&mut self, series: usize, instants: usize) -> Result<(), Failure> {
        let left = series.checked_mul(instants).and_then(|wanted| self.values.checked_sub(wanted));
        self.values = left.ok_or_else(|| {
            Failure::execution(format!(
                "the query would compute more than {MAX_VALUES} values: take a longer step or a shorter range, or aggregate by fewer labels"
            ))
        })?;
        Ok(())
    }

    /// Before a window touches so many samples.
    pub(super) fn samples(&mut self, wanted: usize) -> Result<(), Failure> {
        self.samples = self.samples.checked_sub(wanted).ok_or_else(|| {
            Failure::execution(format!(
                "the windows of the query would touch more than {MAX_SAMPLES} samples: take a longer step or a shorter window"
            ))
        })?;
        Ok(())
    }
}
