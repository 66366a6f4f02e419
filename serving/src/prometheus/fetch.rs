//! Reads what selectors select: one query of lamina per metric name, as coarse and as small as gives the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use lamina_core::{Micros, offload::offload};
use lamina_metric::{Answer, Ask, DimensionValue, Layout, Metric, Numbers, States, summary};
use promql_parser::label::{MatchOp, Matcher};
use serde_json::Value;

use super::{
    Failure, Grid,
    expression::{Aggregator, Grouping, Selector, Take, Window},
    filter::LabelFilter,
    names::{self, Kind, NAME, Named, QUANTILE, RANKS},
    vector::{Labels, kept},
    window::{Sample, width, windows},
};
use crate::{
    app::App,
    auth::Principal,
    query::{self, Merged, MergedSeries, Merging, Params, meta::Meta, params::MAX_SERIES},
};

/// Most reads of one query: selectors times the metric names that each selects.
const MAX_READS: usize = 32;
/// Most states that the windows of `histogram_quantile` merge.
const MAX_MERGED: usize = 1_000_000;

/// What was read, by selector.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    pub(super) selected: Vec<Vec<Selected>>,
    pub(super) warnings: Vec<String>,
    pub(super) meta: Vec<Value>,
}

/// Series of one metric name.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) windows: Vec<Range<Micros>>,
    pub(super) series: Vec<(Labels, Held)>,
}

#[derive(Debug)]
pub(super) enum Held {
    /// Ascending by start.
    Samples(Vec<Sample>),
    /// One per instant.
    Values(Vec<Option<f64>>),
}

pub(super) async fn fetch(
    app: &App,
    principal: &Principal,
    selectors: &[Selector],
    grid: &Grid,
) -> Result<Fetched, Failure> {
    let names = names::names(&*app.definitions()?, principal);
    let mut fetched = Fetched::default();
    let mut reads = 0;
    for selector in selectors {
        let mut selected = Vec::new();
        let is_named = selector.matchers.iter().any(|one| one.name == NAME && matches!(one.op, MatchOp::Equal));
        for (name, named) in names_of(&names, &selector.matchers) {
            // A pattern of names means values.
            if !is_named && named.value == Kind::Buckets && !matches!(selector.take, Take::Quantile(..)) {
                continue;
            }
            let Some(read) = Reading::of(selector, name, named, grid)? else { continue };
            reads += 1;
            if reads > MAX_READS {
                return Err(Failure::execution(format!(
                    "the query selects more than {MAX_READS} metric names: name fewer"
                )));
            }
            selected.push(read.read(app, principal, &mut fetched).await?);
        }
        fetched.selected.push(selected);
    }
    fetched.warnings.sort();
    fetched.warnings.dedup();
    Ok(fetched)
}

/// The names that the matchers of `__name__` let pass.
pub(super) fn names_of<'a>(
    names: &'a BTreeMap<String, Named>,
    matchers: &'a [Matcher],
) -> impl Iterator<Item = (&'a str, &'a Named)> {
    let passes = |name: &str| matchers.iter().filter(|one| one.name == NAME).all(|one| one.is_match(name));
    names.iter().filter(move |(name, _)| passes(name)).map(|(name, named)| (name.as_str(), named))
}

/// One query of lamina for one metric name of a selector.
struct Reading {
    name: Arc<str>,
    metric: Arc<Metric>,
    take: Take,
    /// What the windows of a quantile are merged by.
    grouping: Option<Grouping>,
    windows: Vec<Range<Micros>>,
    width: Micros,
    filter: LabelFilter,
    /// Label and rank of each aggregate that is asked for.
    asks: Vec<(Option<String>, Ask)>,
    /// Indexes of the dimensions that are grouped by.
    dimensions: Vec<usize>,
}

impl Reading {
    /// `None` if nothing can pass.
    fn of(selector: &Selector, name: &str, named: &Named, grid: &Grid) -> Result<Option<Self>, Failure> {
        let Named { metric, value } = named;
        check(name, value, &selector.take)?;
        let labels = names::labels(metric);
        let Some(filter) = LabelFilter::of(&selector.matchers, metric, &labels, *value == Kind::Quantiles) else {
            return Ok(None);
        };
        let asks = match (value, &selector.take) {
            (_, Take::Quantile(percents, _)) => vec![(None, format!("p{percents}"))],
            (Kind::Aggregate(ask), _) => vec![(None, ask.clone())],
            (Kind::Quantiles | Kind::Buckets, _) => ranks(&selector.matchers),
        };
        if asks.is_empty() {
            return Ok(None);
        }
        let parsed = |(rank, ask): (Option<String>, String)| Ok((rank, Ask::parse(&ask, metric)?));
        let asks = asks.into_iter().map(parsed).collect::<Result<_, String>>().map_err(Failure::bad_data)?;
        let windows = windows(selector, grid, metric.grain);
        let width = width(&windows, metric.grain, value, &selector.take);
        let merged = selector.then.as_ref().filter(|(then, _)| merges(*then, value, &selector.take));
        let merged = merged.map(|(_, grouping)| grouping.clone());
        let kept = |at: &usize| merged.as_ref().is_none_or(|by| by.keeps(&labels[*at])) || filter.reads(*at);
        Ok(Some(Self {
            name: name.into(),
            dimensions: (0..labels.len()).filter(kept).collect(),
            grouping: matches!(selector.take, Take::Quantile(..)).then_some(merged).flatten(),
            metric: Arc::clone(metric),
            take: selector.take.clone(),
            windows,
            width,
            filter,
            asks,
        }))
    }

    async fn read(self, app: &App, principal: &Principal, into: &mut Fetched) -> Result<Selected, Failure> {
        let some = self.windows.iter().filter(|window| !window.is_empty());
        let range = some.fold(None, |range: Option<Range<Micros>>, window| {
            Some(range.map_or(window.clone(), |range| range.start.min(window.start)..range.end.max(window.end)))
        });
        let Some(range) = range else { return Ok(Selected { windows: self.windows, series: Vec::new() }) };
        let asks = self.asks.iter().map(|(_, ask)| ask.name().to_owned()).collect();
        let mut params = Params::over(principal, range, Some(self.width), asks);
        params.group_by = self.dimensions.iter().map(|&at| self.metric.dimensions[at].name.clone()).collect();
        params.filter = self.filter.sql();
        let merging = query::merged(app, &self.metric, &params).await?;
        into.warnings.extend(warnings(&merging.meta, &self.metric));
        into.meta.push(proof(&merging.meta, &self.metric)?);
        let work = offload(move || self.selected(merging));
        work.await.map_err(|error| Failure::internal(&error))?
    }

    fn selected(self, merging: Merging) -> Result<Selected, Failure> {
        let Merged { series, states, .. } = merging.merged;
        let labels = names::labels(&self.metric);
        let kept: Vec<Arc<str>> = self.dimensions.iter().map(|&at| Arc::clone(&labels[at])).collect();
        let labelled = series.into_iter().filter_map(|MergedSeries { values, rows }| {
            let texts: Vec<Option<Arc<str>>> = values.iter().map(text).collect();
            let passes = |(at, text): (&usize, &Option<Arc<str>>)| self.filter.passes(*at, text.as_deref());
            let all = self.dimensions.iter().zip(&texts).all(passes);
            let named = kept.iter().zip(texts).filter_map(|(label, text)| Some((Arc::clone(label), text?)));
            (all && !rows.is_empty()).then(|| (named.collect::<Labels>(), rows))
        });
        let labelled: Vec<(Labels, Vec<(Micros, usize)>)> = labelled.collect();
        if labelled.len() > MAX_SERIES {
            return Err(Failure::execution(format!(
                "{} has {} series in this range, more than {MAX_SERIES}: select fewer by labels, or aggregate",
                self.name,
                labelled.len()
            )));
        }
        let series = match self.take {
            Take::Quantile(..) => self.quantiles(&labelled, &states)?,
            _ => self.samples(&labelled, &states)?,
        };
        Ok(Selected { windows: self.windows, series })
    }

    fn samples(
        &self,
        labelled: &[(Labels, Vec<(Micros, usize)>)],
        states: &States,
    ) -> Result<Vec<(Labels, Held)>, Failure> {
        let mut series = Vec::with_capacity(labelled.len() * self.asks.len());
        for (labels, rows) in labelled {
            for (rank, ask) in &self.asks {
                let mut labels = labels.clone();
                labels.insert(NAME.into(), Arc::clone(&self.name));
                if let Some(rank) = rank {
                    labels.insert(QUANTILE.into(), rank.as_str().into());
                }
                let mut samples = Vec::with_capacity(rows.len());
                for &(start, row) in rows {
                    if let Some(value) = number(&states.answer(row, ask)?) {
                        samples.push((start, value));
                    }
                }
                series.push((labels, Held::Samples(samples)));
            }
        }
        Ok(series)
    }

    /// The quantile of each window, over the series of each group.
    fn quantiles(
        &self,
        labelled: &[(Labels, Vec<(Micros, usize)>)],
        states: &States,
    ) -> Result<Vec<(Labels, Held)>, Failure> {
        let mut groups: BTreeMap<Labels, Vec<&[(Micros, usize)]>> = BTreeMap::new();
        let keeps = |label: &str| self.grouping.as_ref().is_none_or(|grouping| grouping.keeps(label));
        for (labels, rows) in labelled {
            groups.entry(kept(labels, keeps)).or_default().push(rows);
        }
        let (mut series, mut left) = (Vec::with_capacity(groups.len()), MAX_MERGED);
        for (labels, members) in groups {
            let mut windows = States::new(&Layout::of(&self.metric));
            windows.resize(self.windows.len());
            for (window, range) in self.windows.iter().enumerate() {
                let within = members.iter().flat_map(|rows| {
                    let from = rows.partition_point(|(start, _)| *start < range.start);
                    let until = rows.partition_point(|(start, _)| *start < range.end);
                    rows[from..until.max(from)].iter().map(|(_, row)| *row)
                });
                let rows: Vec<usize> = within.collect();
                left = left.checked_sub(rows.len()).ok_or_else(|| {
                    Failure::execution(format!(
                        "the windows would merge more than {MAX_MERGED} sketches: take a longer step, or windows that are multiples of it"
                    ))
                })?;
                windows.merge(&states.take(&rows), &vec![window; rows.len()])?;
            }
            let Some((_, ask)) = self.asks.first() else { continue };
            let values = (0..self.windows.len()).map(|window| Ok(number(&windows.answer(window, ask)?)));
            series.push((labels, Held::Values(values.collect::<Result<_, Failure>>()?)));
        }
        Ok(series)
    }
}

/// Whether it has a meaning to take this of the name's samples.
fn check(name: &str, kind: &Kind, take: &Take) -> Result<(), Failure> {
    let refused = match (kind, take) {
        (Kind::Buckets, Take::Quantile(..)) => None,
        (Kind::Buckets, _) => Some("stands for sketches and is understood within histogram_quantile only"),
        (_, Take::Quantile(..)) => Some("holds no distribution: histogram_quantile takes names that end in _bucket"),
        (kind, Take::Window(Window::Increase | Window::Rate, _)) if !kind.adds() => {
            Some("does not add up: rate and increase are of names that end in _count or _sum")
        }
        _ => None,
    };
    refused.map_or(Ok(()), |why| Err(Failure::execution(format!("{name} {why}"))))
}

/// Whether series can be put together before the windows are taken.
fn merges(then: Aggregator, kind: &Kind, take: &Take) -> bool {
    match (then, take) {
        (Aggregator::Sum, Take::Window(Window::Increase | Window::Rate | Window::Sum, _)) => kind.adds(),
        (Aggregator::Min, Take::Window(Window::Min, _)) => kind.is("min"),
        (Aggregator::Max, Take::Window(Window::Max, _)) => kind.is("max"),
        (Aggregator::Sum, Take::Quantile(..)) => true,
        _ => false,
    }
}

/// The ranks that matchers of `quantile` name, as labels and aggregates; the usual ones where they name none.
fn ranks(matchers: &[Matcher]) -> Vec<(Option<String>, String)> {
    let own: Vec<&Matcher> = matchers.iter().filter(|one| one.name == QUANTILE).collect();
    let named = own.iter().flat_map(|one| one.value.split('|')).filter(|text| percents(text).is_some());
    let candidates: BTreeSet<&str> = named.chain(RANKS).collect();
    let passing = candidates.into_iter().filter(|rank| own.iter().all(|one| one.is_match(rank)));
    passing.filter_map(|rank| Some((Some(rank.to_owned()), format!("p{}", percents(rank)?)))).collect()
}

fn percents(rank: &str) -> Option<String> {
    rank.parse().ok().and_then(summary::percents)
}

/// A dimension's value as a label's; a missing one is no label.
pub(super) fn text(value: &DimensionValue) -> Option<Arc<str>> {
    match value {
        DimensionValue::Null => None,
        DimensionValue::Bool(value) => Some(value.to_string().into()),
        DimensionValue::Int(value) => Some(value.to_string().into()),
        DimensionValue::Float(bits) => Some(f64::from_bits(*bits).to_string().into()),
        DimensionValue::Str(value) => Some(value.as_str().into()),
    }
}

/// The nearest double.
fn number(answer: &Answer) -> Option<f64> {
    match answer {
        Answer::Float(value) => Some(*value),
        Answer::Int(_) | Answer::Decimal { .. } => answer.to_json(Numbers::Number).to_string().parse().ok(),
        Answer::Null | Answer::Str(_) | Answer::Bool(_) | Answer::Time(_) | Answer::Top(_) => None,
    }
}

/// What people must know of an answer.
fn warnings(meta: &Meta, metric: &Metric) -> Vec<String> {
    let name = &metric.name;
    let mut warnings = Vec::new();
    if !meta.complete {
        let missing = serde_json::to_string(&meta.missing).unwrap_or_default();
        warnings.push(format!("metric {name}: the answer cannot be shown to be complete; missing: {missing}"));
    }
    if let Some(from) = &meta.retained_from {
        warnings.push(format!("metric {name}: buckets this fine are kept from {from} on"));
    }
    for expired in &meta.expired {
        warnings
            .push(format!("metric {name}: series where {} are kept from {} on", expired.filter, expired.retained_from));
    }
    if let Some(overflow) = &meta.overflow {
        let events = overflow.events;
        warnings.push(format!("metric {name}: {events} events have no series of their own and are under $overflow"));
    }
    warnings
}

/// What proves an answer, for programs.
fn proof(meta: &Meta, metric: &Metric) -> Result<Value, Failure> {
    let mut proof = serde_json::to_value(meta).map_err(|error| Failure::internal(&error))?;
    proof["metric"] = metric.name.as_str().into();
    proof["version"] = metric.version.into();
    Ok(proof)
}
