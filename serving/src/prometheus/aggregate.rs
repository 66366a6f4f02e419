//! Aggregation over the series of an instant vector.

use std::collections::BTreeMap;

use super::{
    Failure,
    expression::{Aggregator, Grouping},
    functions::quantile,
    names::NAME,
    vector::{Budget, Labels, Row, kept},
    window::{sum, variance},
};

/// Groups in the order of their labels. `parameter` is of `topk`, `bottomk` and `quantile`, one value per instant.
pub(super) fn aggregate(
    operator: Aggregator,
    grouping: &Grouping,
    parameter: Option<&[f64]>,
    rows: Vec<Row>,
    instants: usize,
    budget: &mut Budget,
) -> Result<Vec<Row>, Failure> {
    let mut groups: BTreeMap<Labels, Vec<Row>> = BTreeMap::new();
    for row in rows {
        groups.entry(key(&row.labels, grouping)).or_default().push(row);
    }
    let mut aggregated = Vec::with_capacity(groups.len());
    for (labels, members) in groups {
        match operator {
            Aggregator::TopK | Aggregator::BottomK => {
                budget.values(members.len(), instants)?;
                aggregated.extend(extremes(operator, parameter.unwrap_or_default(), members, instants));
            }
            _ => {
                budget.values(1, instants)?;
                let at = |instant: usize| {
                    let values = members.iter().filter_map(|row| row.values[instant]);
                    let rank = parameter.and_then(|ranks| ranks.get(instant)).copied().unwrap_or(f64::NAN);
                    operator.of(values, rank)
                };
                aggregated.push(Row { labels, values: (0..instants).map(at).collect() });
            }
        }
    }
    Ok(aggregated)
}

/// The labels of a group.
fn key(labels: &Labels, grouping: &Grouping) -> Labels {
    kept(labels, |name| match grouping {
        Grouping::By(_) => grouping.keeps(name),
        Grouping::Without(_) => name != NAME && grouping.keeps(name),
    })
}

impl Aggregator {
    #[expect(clippy::cast_precision_loss, reason = "numbers of series are far below 2^53")]
    fn of(self, values: impl Iterator<Item = f64> + Clone, rank: f64) -> Option<f64> {
        let n = values.clone().count();
        if n == 0 {
            return None;
        }
        // A NaN gives way to any number, as in Prometheus.
        let extreme = |better: fn(f64, f64) -> f64| values.clone().reduce(better).unwrap_or(f64::NAN);
        Some(match self {
            Self::Sum => sum(values),
            Self::Avg => sum(values) / n as f64,
            Self::Min => extreme(f64::min),
            Self::Max => extreme(f64::max),
            Self::Count => n as f64,
            Self::Stddev => variance(values, n as f64).sqrt(),
            Self::Stdvar => variance(values, n as f64),
            Self::Quantile => quantile(rank, values.collect()),
            Self::Group | Self::TopK | Self::BottomK => 1.0,
        })
    }
}

/// Each row with only those values that are among the `k` largest or smallest of their instant; the largest first (or
/// the smallest), as at the first instant.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float becomes the nearest size there is"
)]
fn extremes(operator: Aggregator, k: &[f64], mut members: Vec<Row>, instants: usize) -> Vec<Row> {
    let compare = |a: f64, b: f64| {
        let ascending = a.total_cmp(&b);
        let order = if operator == Aggregator::TopK { ascending.reverse() } else { ascending };
        a.is_nan().cmp(&b.is_nan()).then(order)
    };
    let mut order: Vec<usize> = Vec::with_capacity(members.len());
    for instant in 0..instants {
        let k = k.get(instant).copied().unwrap_or(0.0).max(0.0) as usize;
        let value = |row: &usize| members[*row].values[instant];
        order.clear();
        order.extend((0..members.len()).filter(|row| value(row).is_some()));
        order.sort_by(|a, b| compare(value(a).unwrap_or(f64::NAN), value(b).unwrap_or(f64::NAN)));
        let out: Vec<usize> = order.iter().skip(k).copied().collect();
        out.into_iter().for_each(|row| members[row].values[instant] = None);
    }
    members.retain(|row| row.values.iter().any(Option::is_some));
    let first = |row: &Row| row.values.first().copied().flatten().unwrap_or(f64::NAN);
    members.sort_by(|a, b| compare(first(a), first(b)));
    members
}
