//! From parameters and a metric to what is read and how it is put together.
//!
//! # Invariants
//! - The stored width hits every edge of every bucket exactly, or the query is refused: nothing is approximated.
//! - Nothing below the width's horizon is read or answered, and nothing below a rule's of the series that match the rule.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use axum::http::StatusCode;
use lamina_core::{Micros, ViewState, store};
use lamina_metric::{Aggregate, Ask, Expiry, Length, Metric, Series, SeriesFilter, View};

use crate::{
    instant,
    problem::Problem,
    query::{
        calendar::{Buckets, DAY, Division, EARLIEST, LATEST, Step},
        params::{OrderBy, Params},
    },
};

/// What orders the series of an answer.
#[derive(Clone, Debug)]
pub(crate) enum OrderKey {
    /// Position in `group_by`.
    Dimension(usize),
    Aggregate(Ask),
}

/// How a query is answered.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) metric: Arc<Metric>,
    pub(crate) view: View,
    /// As answered: widened to multiples of the grain.
    pub(crate) range: Range<Micros>,
    /// Width of the stored buckets that are read.
    pub(crate) width: Micros,
    /// What of the range is above the horizon, divided.
    pub(crate) buckets: Buckets,
    /// Where the horizon lies, if within the range.
    pub(crate) retained_from: Option<Micros>,
    /// Rules that may take series of the answer, by index, with their horizons within the range.
    pub(crate) expired: BTreeMap<usize, Micros>,
    /// Positions of the `group_by` dimensions within the view's, in the order asked.
    pub(crate) keep: Vec<usize>,
    pub(crate) group_by: Vec<String>,
    pub(crate) filter: Option<SeriesFilter>,
    /// The only stored series that are read, ascending, with the overflow's: `None` is all.
    pub(crate) named: Option<Vec<Series>>,
    pub(crate) asks: Vec<Ask>,
    pub(crate) order_by: Vec<(OrderKey, bool)>,
    /// Whether `order_by` asks for totals over the whole range.
    pub(crate) totals: bool,
}

impl Plan {
    /// Over a view of [`views`] in this state.
    pub(crate) fn of(
        metric: &Arc<Metric>,
        view: &View,
        params: &Params,
        now: Micros,
        state: &ViewState,
    ) -> Result<Self, Problem> {
        let filter = filter(metric, params)?;
        let range = widen(metric, params, now)?;
        let division = division(metric, params)?;
        let whole = Buckets { range: range.clone(), division };
        let horizons = |width| Horizons::of(metric, filter.as_ref(), state, width);
        let width = choose_width(metric, &whole, &horizons)?;
        let Horizons { all: horizon, mut rules } = horizons(width);
        rules.retain(|_, horizon| *horizon > range.start);
        let start = range.start.max(horizon.min(range.end));
        let asks = asks(metric, params)?;
        let order_by = order_by(metric, params)?;
        Ok(Self {
            keep: keep(metric, view, &params.group_by),
            group_by: params.group_by.clone(),
            buckets: Buckets { range: start..range.end, division },
            retained_from: (horizon > range.start).then_some(horizon),
            expired: rules,
            totals: order_by.iter().any(|(key, _)| matches!(key, OrderKey::Aggregate(_))),
            metric: Arc::clone(metric),
            named: named(filter.as_ref(), view),
            view: view.clone(),
            range,
            width,
            filter,
            asks,
            order_by,
        })
    }

    /// The rules that cut the answer, each with where its series begin.
    pub(crate) fn cut_by(&self) -> impl Iterator<Item = (&Expiry, Micros)> {
        self.expired.iter().filter_map(|(&rule, &horizon)| Some((self.metric.expire.get(rule)?, horizon)))
    }

    /// Starts of the batch periods that hold the range.
    pub(crate) fn periods(&self) -> Range<Micros> {
        let range = &self.buckets.range;
        if range.is_empty() { range.clone() } else { self.period_of(range.start)..range.end }
    }

    /// Start of the batch period that holds a bucket.
    pub(crate) fn period_of(&self, bucket: Micros) -> Micros {
        let period = store::period(self.width);
        bucket.div_euclid(period) * period
    }
}

/// From when on a view keeps buckets of one width; multiples of the width.
struct Horizons {
    all: Micros,
    /// Of the series that match a rule, without the rules that the query's filter excludes.
    rules: BTreeMap<usize, Micros>,
}

impl Horizons {
    fn of(metric: &Metric, filter: Option<&SeriesFilter>, state: &ViewState, width: Micros) -> Self {
        let excluded = |rule: usize| {
            let rule = metric.expire.get(rule);
            filter.zip(rule).is_some_and(|(filter, rule)| filter.excludes(&rule.filter, metric))
        };
        let rules = state.rule_horizons.get(&width).into_iter().flatten();
        Self {
            all: round_up(state.horizons.get(&width).copied().unwrap_or(EARLIEST), width),
            rules: rules
                .filter(|(rule, _)| !excluded(**rule))
                .map(|(&rule, &horizon)| (rule, round_up(horizon, width)))
                .collect(),
        }
    }
}

/// The series that can pass the filter, if few; and the overflow's, whose events every answer of the view tells.
fn named(filter: Option<&SeriesFilter>, view: &View) -> Option<Vec<Series>> {
    let mut series = filter?.series(view)?;
    if !view.dimensions.is_empty() {
        series.push(Series::overflow(view.dimensions.len()));
    }
    series.sort_unstable();
    series.dedup();
    Some(series)
}

/// The views that hold what the query groups and filters by, the smallest first.
pub(crate) fn views<'a>(metric: &'a Metric, params: &Params) -> Result<Vec<&'a View>, Problem> {
    let filter = filter(metric, params)?;
    let known = || metric.dimensions.iter().map(|dimension| dimension.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = params.group_by.iter().find(|name| dimension(metric, name).is_none()) {
        let detail = match metric.dimensions.is_empty() {
            true => format!("metric {} has no dimensions", metric.name),
            false => format!("metric {} has no dimension {unknown:?}; it has {}", metric.name, known()),
        };
        return Err(Problem::parameter("group_by", detail));
    }
    let mut columns: Vec<&str> = params.group_by.iter().map(String::as_str).collect();
    let filtered = filter.iter().flat_map(|filter| filter.columns().iter());
    columns.extend(filtered.filter_map(|&at| metric.dimensions.get(at)).map(|dimension| dimension.name.as_str()));
    metric.views_for(&columns).map_err(|error| Problem::parameter("group_by", error))
}

fn filter(metric: &Metric, params: &Params) -> Result<Option<SeriesFilter>, Problem> {
    let parsed = params.filter.as_deref().map(|sql| SeriesFilter::parse(sql, metric)).transpose();
    parsed.map_err(|why| Problem::parameter("where", why))
}

fn dimension(metric: &Metric, name: &str) -> Option<usize> {
    metric.dimensions.iter().position(|dimension| dimension.name == name)
}

fn keep(metric: &Metric, view: &View, group_by: &[String]) -> Vec<usize> {
    let within = |name: &String| {
        let at = dimension(metric, name)?;
        view.dimensions.iter().position(|&own| own == at)
    };
    group_by.iter().filter_map(within).collect()
}

/// The range in multiples of the grain.
fn widen(metric: &Metric, params: &Params, now: Micros) -> Result<Range<Micros>, Problem> {
    let grain = metric.grain;
    let (from, to) = (params.from, params.to.unwrap_or(now));
    let (start, end) = (from.div_euclid(grain) * grain, round_up(to, grain));
    if params.strict {
        strict("from", from, grain)?;
        if params.to.is_some() {
            strict("to", to, grain)?;
        }
    }
    if start >= end {
        return Err(Problem::parameter("from", format!("must lie before `to`, which is {}", instant::format(to))));
    }
    if start < EARLIEST || end > LATEST {
        return Err(Problem::parameter("to", "the range must lie within the years 1 to 9999"));
    }
    Ok(start..end)
}

fn strict(name: &str, at: Micros, grain: Micros) -> Result<(), Problem> {
    if at % grain == 0 {
        return Ok(());
    }
    let below = at.div_euclid(grain) * grain;
    let (below, above) = (instant::format(below), instant::format(below + grain));
    Err(Problem::parameter(
        name,
        format!("is not a multiple of the grain {}; the nearest are {below} and {above}", Length(grain)),
    ))
}

fn round_up(at: Micros, width: Micros) -> Micros {
    at.div_euclid(width) * width + if at.rem_euclid(width) == 0 { 0 } else { width }
}

fn division(metric: &Metric, params: &Params) -> Result<Division, Problem> {
    let Some((step, text)) = &params.step else { return Ok(Division::Whole) };
    if let Step::Fixed(length) = *step {
        let grain = metric.grain;
        if length % grain != 0 {
            let below = (length / grain * grain).max(grain);
            let nearest = match length > grain {
                true => format!("{} or {}", Length(below), Length(below + grain)),
                false => Length(grain).to_string(),
            };
            let detail = format!("{text} is not a multiple of the grain {}; the nearest is {nearest}", Length(grain));
            return Err(Problem::parameter("step", detail));
        }
        if params.zone.is_some() && length % DAY != 0 && DAY % length != 0 {
            let detail = format!("{text} with `tz` must divide a day, or be whole days, weeks or months");
            return Err(Problem::parameter("step", detail));
        }
    }
    Ok(params.zone.map_or(Division::Utc(*step), |zone| Division::Local(*step, zone)))
}

/// The coarsest stored width that hits every edge and is kept for the whole range; if none is, the one kept longest, first
/// for all series and then for those that rules take.
fn choose_width(metric: &Metric, buckets: &Buckets, horizons: &impl Fn(Micros) -> Horizons) -> Result<Micros, Problem> {
    let mut hits: Vec<Micros> = metric.widths().into_iter().filter(|&width| buckets.hit_by(width)).collect();
    hits.sort_unstable_by(|a, b| b.cmp(a));
    let kept_from = |width: &Micros| {
        let Horizons { all, rules } = horizons(*width);
        let start = buckets.range.start;
        (all.max(start), rules.into_values().fold(start, Micros::max))
    };
    hits.into_iter().min_by_key(kept_from).ok_or_else(|| {
        let stored: Vec<String> = metric.widths().iter().map(|&width| Length(width).to_string()).collect();
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unaligned",
            format!(
                "metric {} stores buckets of {} in UTC, which do not add up to the buckets asked for: choose another `step` or `tz`",
                metric.name,
                stored.join(", ")
            ),
        )
    })
}

fn asks(metric: &Metric, params: &Params) -> Result<Vec<Ask>, Problem> {
    let all;
    let names = if params.aggregates.is_empty() {
        all = all_of(metric);
        &all
    } else {
        &params.aggregates
    };
    names.iter().map(|name| ask("aggregate", name, metric)).collect()
}

fn ask(parameter: &str, name: &str, metric: &Metric) -> Result<Ask, Problem> {
    if name == "start" {
        return Err(Problem::parameter(parameter, "`start` is no aggregate"));
    }
    Ask::parse(name, metric).map_err(|why| Problem::parameter(parameter, why))
}

/// What is answered when no aggregate is named: all that the metric declares.
pub(crate) fn all_of(metric: &Metric) -> Vec<String> {
    let mut names = Vec::new();
    for aggregate in &metric.aggregates {
        match aggregate {
            Aggregate::Count => names.push("count".to_owned()),
            Aggregate::Sum => names.push("sum".to_owned()),
            Aggregate::Min => names.push("min".to_owned()),
            Aggregate::Max => names.push("max".to_owned()),
            Aggregate::Avg => names.push("avg".to_owned()),
            Aggregate::First => names.push("first".to_owned()),
            Aggregate::Last => names.push("last".to_owned()),
            Aggregate::Distinct { field, .. } => names.push(format!("distinct({field})")),
            Aggregate::Quantiles => names.extend(["p50", "p95", "p99"].map(str::to_owned)),
            Aggregate::Top { field, .. } => names.push(format!("top({field})")),
        }
    }
    if names.is_empty() { vec!["count".to_owned()] } else { names }
}

fn order_by(metric: &Metric, params: &Params) -> Result<Vec<(OrderKey, bool)>, Problem> {
    let key = |OrderBy { name, descending }: &OrderBy| {
        if let Some(at) = params.group_by.iter().position(|own| own == name) {
            return Ok((OrderKey::Dimension(at), *descending));
        }
        let allowed = |why: String| {
            let dimensions = params.group_by.join(", ");
            let also = if dimensions.is_empty() {
                String::new()
            } else {
                format!("; or a dimension of group_by: {dimensions}")
            };
            Problem::parameter("order_by", format!("{why}{also}; then `asc` or `desc`"))
        };
        let ask = Ask::parse(name, metric).map_err(allowed)?;
        if name.starts_with("top") {
            return Err(Problem::parameter("order_by", "`top` is a list and does not order"));
        }
        Ok((OrderKey::Aggregate(ask), *descending))
    };
    params.order_by.iter().map(key).collect()
}
