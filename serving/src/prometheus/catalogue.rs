//! Which names, labels and series there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use lamina_core::Micros;
use lamina_metric::Metric;
use promql_parser::label::Matcher;
use serde_json::{Map, Value, json};

use super::{
    Failure,
    fetch::{names_of, text},
    filter::LabelFilter,
    names::{self, Kind, NAME, Named, QUANTILE, RANKS},
    vector::Labels,
};
use crate::{
    app::App,
    auth::Principal,
    query::{
        self, Merging, Params,
        calendar::{DAY, EARLIEST},
    },
};

/// Most metrics that one listing reads.
const MAX_METRICS: usize = 64;
/// Most series or values of one listing.
const MAX_LISTED: usize = 10_000;

/// A list, and what is to be said of it.
pub(crate) struct Listed<T> {
    pub(crate) found: Vec<T>,
    pub(crate) warnings: Vec<String>,
}

/// Metrics that selectors select, with the matchers; all of them without a selector.
type Chosen<'a> = Vec<(&'a str, &'a Named, &'a [Matcher])>;

fn chosen<'a>(all: &'a BTreeMap<String, Named>, selectors: &'a [Vec<Matcher>]) -> Chosen<'a> {
    if selectors.is_empty() {
        return all.iter().map(|(name, named)| (name.as_str(), named, &[][..])).collect();
    }
    let of =
        |matchers: &'a Vec<Matcher>| names_of(all, matchers).map(|(name, named)| (name, named, matchers.as_slice()));
    selectors.iter().flat_map(of).collect()
}

/// Names of labels: those of the metrics, whether or not there are events in the range.
pub(crate) fn label_names(
    app: &App,
    principal: &Principal,
    selectors: &[Vec<Matcher>],
) -> Result<Vec<String>, Failure> {
    let all = names::names(&*app.definitions()?, principal);
    let mut found = BTreeSet::new();
    for (_, named, _) in chosen(&all, selectors) {
        found.insert(NAME.to_owned());
        found.extend(names::labels(&named.metric).iter().map(ToString::to_string));
        if named.value == Kind::Quantiles {
            found.insert(QUANTILE.to_owned());
        }
    }
    Ok(found.into_iter().collect())
}

/// Values of a label among the series with events in the range.
pub(crate) async fn label_values(
    app: &App,
    principal: &Principal,
    label: &str,
    selectors: &[Vec<Matcher>],
    range: Range<Micros>,
    limit: Option<usize>,
) -> Result<Listed<String>, Failure> {
    let all = names::names(&*app.definitions()?, principal);
    let chosen = chosen(&all, selectors);
    let (mut found, mut warnings) = (BTreeSet::new(), Vec::new());
    if label == NAME {
        found.extend(chosen.iter().map(|(name, ..)| (*name).to_owned()));
    } else {
        let ranked = chosen.iter().any(|(_, named, _)| label == QUANTILE && named.value == Kind::Quantiles);
        found.extend(RANKS.iter().filter(|_| ranked).map(|rank| (*rank).to_owned()));
        for (metric, matchers) in once_each(&chosen, &mut warnings) {
            let labels = names::labels(&metric);
            let Some(at) = labels.iter().position(|own| **own == *label) else { continue };
            for labels in series_of(app, principal, &metric, matchers, Some(at), &range).await? {
                found.extend(labels.get(label).map(ToString::to_string));
            }
        }
    }
    Ok(cut(found, limit, warnings))
}

/// The series that selectors select, among those with events in the range.
pub(crate) async fn series(
    app: &App,
    principal: &Principal,
    selectors: &[Vec<Matcher>],
    range: Range<Micros>,
    limit: Option<usize>,
) -> Result<Listed<Labels>, Failure> {
    let all = names::names(&*app.definitions()?, principal);
    let chosen = chosen(&all, selectors);
    let (mut found, mut warnings) = (BTreeSet::new(), Vec::new());
    for (metric, matchers) in once_each(&chosen, &mut warnings) {
        let read = series_of(app, principal, &metric, matchers, None, &range).await?;
        let own = |(_, named, own): &&(&str, &Named, &[Matcher])| {
            Arc::ptr_eq(&named.metric, &metric) && std::ptr::eq(*own, matchers)
        };
        for (name, named, _) in chosen.iter().filter(own) {
            for labels in &read {
                let mut labels = labels.clone();
                labels.insert(NAME.into(), (*name).into());
                if named.value != Kind::Quantiles {
                    found.insert(labels);
                    continue;
                }
                for rank in RANKS.iter().filter(|rank| passes(matchers, QUANTILE, rank)) {
                    labels.insert(QUANTILE.into(), (*rank).into());
                    found.insert(labels.clone());
                }
            }
            if found.len() > MAX_LISTED {
                break;
            }
        }
    }
    Ok(cut(found, limit, warnings))
}

fn passes(matchers: &[Matcher], label: &str, value: &str) -> bool {
    matchers.iter().filter(|one| one.name == label).all(|one| one.is_match(value))
}

/// The lamina metrics behind the chosen names, each once per selector.
fn once_each<'a>(chosen: &Chosen<'a>, warnings: &mut Vec<String>) -> Vec<(Arc<Metric>, &'a [Matcher])> {
    let mut metrics: Vec<(Arc<Metric>, &[Matcher])> = Vec::new();
    for (_, named, matchers) in chosen {
        let known = |(metric, own): &(Arc<Metric>, &[Matcher])| {
            Arc::ptr_eq(metric, &named.metric) && std::ptr::eq(*own, *matchers)
        };
        if metrics.iter().any(known) {
            continue;
        }
        if metrics.len() == MAX_METRICS {
            warnings.push(format!("more than {MAX_METRICS} metrics are selected: those after them are left out"));
            break;
        }
        metrics.push((Arc::clone(&named.metric), matchers));
    }
    metrics
}

/// Labels of a metric's series with events in the range; of one dimension, or of all.
async fn series_of(
    app: &App,
    principal: &Principal,
    metric: &Arc<Metric>,
    matchers: &[Matcher],
    only: Option<usize>,
    range: &Range<Micros>,
) -> Result<Vec<Labels>, Failure> {
    let labels = names::labels(metric);
    let Some(filter) = LabelFilter::of(matchers, metric, &labels, true) else { return Ok(Vec::new()) };
    let dimensions: Vec<usize> =
        (0..labels.len()).filter(|at| only.is_none_or(|only| only == *at) || filter.reads(*at)).collect();
    // Of days, which rollups answer, as far as the metric has them.
    let unit = if DAY % metric.grain == 0 { DAY } else { metric.grain };
    let start = range.start.max(EARLIEST + unit).div_euclid(unit) * unit;
    let end = range.end.max(start + 1);
    let end = (end.div_euclid(unit) + i64::from(end.rem_euclid(unit) != 0)) * unit;
    let mut params = Params::over(principal, start..end, None, vec!["count".to_owned()]);
    params.group_by = dimensions.iter().map(|&at| metric.dimensions[at].name.clone()).collect();
    params.filter = filter.sql();
    let Merging { merged, .. } = query::merged(app, metric, &params).await?;
    let mut found = Vec::new();
    for one in merged.series.into_iter().filter(|one| !one.rows.is_empty()) {
        let texts: Vec<Option<Arc<str>>> = one.values.iter().map(text).collect();
        if dimensions.iter().zip(&texts).all(|(at, text)| filter.passes(*at, text.as_deref())) {
            let named = dimensions.iter().zip(texts);
            found.push(named.filter_map(|(&at, text)| Some((Arc::clone(&labels[at]), text?))).collect());
        }
    }
    Ok(found)
}

fn cut<T>(found: BTreeSet<T>, limit: Option<usize>, mut warnings: Vec<String>) -> Listed<T> {
    let most = limit.unwrap_or(MAX_LISTED).min(MAX_LISTED);
    if found.len() > most {
        warnings.push(format!("results truncated: {most} of {}", found.len()));
    }
    Listed { found: found.into_iter().take(most).collect(), warnings }
}

/// Type and description of each name, as `/metadata` has them. What adds up is a counter, so that tools propose `rate`.
pub(crate) fn metadata(
    app: &App,
    principal: &Principal,
    name: Option<&str>,
    limit: Option<usize>,
) -> Result<Value, Failure> {
    let all = names::names(&*app.definitions()?, principal);
    let wanted = all.iter().filter(|(own, _)| name.is_none_or(|name| name == own.as_str()));
    let mut metadata = Map::new();
    for (own, Named { metric, value }) in wanted.take(limit.unwrap_or(usize::MAX)) {
        let what = match value {
            Kind::Aggregate(ask) => format!("{ask} per bucket"),
            Kind::Quantiles => "quantiles per bucket".to_owned(),
            Kind::Buckets => "for histogram_quantile".to_owned(),
        };
        let of = metric.description.clone().unwrap_or_else(|| format!("metric {}", metric.name));
        let help = format!("{of}: {what}");
        let kind = match value {
            Kind::Buckets => "histogram",
            value if value.adds() => "counter",
            _ => "gauge",
        };
        metadata.insert(own.clone(), json!([{"type": kind, "help": help, "unit": ""}]));
    }
    Ok(Value::Object(metadata))
}
