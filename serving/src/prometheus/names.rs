//! What Prometheus calls lamina's metrics and dimensions.
//!
//! A metric `added` gives `added_count`, `added_sum`, `added_min`, `added_max`, `added_avg`, `added_first`, `added_last` and
//! `added_distinct_user` as far as it keeps them; quantiles are `added` with a label `quantile`, and `added_bucket` within
//! `histogram_quantile`. Characters that names cannot have become `_`. Where two would be called the same, the first metric
//! in the order of names has it.

use std::{collections::BTreeMap, sync::Arc};

use lamina_metric::{Aggregate, Catalog, Metric};

use crate::auth::Principal;

/// The label of a quantile's rank.
pub(super) const QUANTILE: &str = "quantile";
pub(super) const NAME: &str = "__name__";
/// Ranks that are there without being asked for by name.
pub(super) const RANKS: [&str; 3] = ["0.5", "0.95", "0.99"];

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) metric: Arc<Metric>,
    pub(crate) value: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An aggregate as queries ask for it.
    Aggregate(String),
    /// Quantiles by the label `quantile`.
    Quantiles,
    /// Quantiles for `histogram_quantile`.
    Buckets,
}

impl Kind {
    /// Whether values of two sets of events add up to the value of both.
    pub(super) fn adds(&self) -> bool {
        matches!(self, Self::Aggregate(ask) if ask == "count" || ask == "sum")
    }

    /// Whether it is this aggregate.
    pub(super) fn is(&self, ask: &str) -> bool {
        matches!(self, Self::Aggregate(own) if own == ask)
    }
}

/// Every name that there is for whoever asks.
pub(super) fn names(catalog: &Catalog, principal: &Principal) -> BTreeMap<String, Named> {
    let mut names = BTreeMap::new();
    for metric in catalog.metrics.values().filter(|metric| principal.sees(metric)) {
        let base = name_of(&metric.name);
        for (suffix, value) in values(metric) {
            let named = || Named { metric: Arc::clone(metric), value };
            names.entry(format!("{base}{suffix}")).or_insert_with(named);
        }
    }
    names
}

fn values(metric: &Metric) -> Vec<(String, Kind)> {
    let mut values = vec![("_count".to_owned(), Kind::Aggregate("count".to_owned()))];
    for aggregate in &metric.aggregates {
        let simple = match aggregate {
            Aggregate::Count => continue,
            Aggregate::Sum => "sum",
            Aggregate::Min => "min",
            Aggregate::Max => "max",
            Aggregate::Avg => "avg",
            Aggregate::First => "first",
            Aggregate::Last => "last",
            Aggregate::Distinct { field, .. } => {
                let suffix = format!("_distinct_{}", name_of(field));
                values.push((suffix, Kind::Aggregate(format!("distinct({field})"))));
                continue;
            }
            Aggregate::Quantiles => {
                values.push((String::new(), Kind::Quantiles));
                values.push(("_bucket".to_owned(), Kind::Buckets));
                continue;
            }
            // A list is no number.
            Aggregate::Top { .. } => continue,
        };
        values.push((format!("_{simple}"), Kind::Aggregate(simple.to_owned())));
    }
    values
}

/// Letters, digits and `_`, not beginning with a digit.
pub(crate) fn name_of(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let name: String = text.chars().map(allowed).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// The labels of a metric's dimensions, in their order. One that Prometheus keeps for itself is prefixed with `exported_`,
/// one that is there already gets a number.
pub(super) fn labels(metric: &Metric) -> Vec<Arc<str>> {
    let mut labels: Vec<Arc<str>> = Vec::with_capacity(metric.dimensions.len());
    for dimension in &metric.dimensions {
        let mut label = name_of(&dimension.name);
        if label == QUANTILE || label == "le" || label.starts_with("__") {
            label = format!("exported_{label}");
        }
        let known = |label: &str| labels.iter().any(|own| &**own == label);
        if known(&label) {
            let numbered = (2..).map(|number| format!("{label}_{number}")).find(|label| !known(label));
            label = numbered.unwrap_or(label);
        }
        labels.push(label.into());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_only_what_prometheus_allows() {
        assert_eq!(
            ["added", "page-views", "geo.country", "9lives", "größe"].map(name_of),
            ["added", "page_views", "geo_country", "_9lives", "gr__e"]
        );
    }
}
