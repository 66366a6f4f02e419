//! From a part of a question to what is read and how it is put together.
//!
//! # Invariants
//! - The stored width hits every edge of every bucket exactly, or the query is refused: nothing is approximated.
//! - Nothing below the width's horizon is read or answered, and nothing below a rule's of the series that match the rule.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use axum::http::StatusCode;
use lamina_core::{Micros, ViewState, store};
use lamina_metric::{Expiry, Length, Metric, Series, SeriesFilter, View};

use crate::{
    problem::Problem,
    query::{
        calendar::{Buckets, EARLIEST},
        question::{Part, round_up},
    },
};

/// How a part of a question is answered.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) metric: Arc<Metric>,
    pub(crate) view: View,
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
    pub(crate) filter: Option<SeriesFilter>,
    /// The only stored series that are read, ascending, with the overflow's: `None` is all.
    pub(crate) named: Option<Vec<Series>>,
}

impl Plan {
    /// Over a view of [`views`] in this state.
    pub(crate) fn of(part: &Part, view: &View, state: &ViewState) -> Result<Self, Problem> {
        let metric = &part.metric;
        let filter = filter(part)?;
        let Buckets { range, division } = &part.buckets;
        let horizons = |width| Horizons::of(metric, filter.as_ref(), state, width);
        let width = choose_width(metric, &part.buckets, &horizons)?;
        let Horizons { all: horizon, mut rules } = horizons(width);
        rules.retain(|_, horizon| *horizon > range.start);
        let start = range.start.max(horizon.min(range.end));
        Ok(Self {
            keep: keep(metric, view, &part.group_by),
            buckets: Buckets { range: start..range.end, division: *division },
            retained_from: (horizon > range.start).then_some(horizon),
            expired: rules,
            metric: Arc::clone(metric),
            named: named(filter.as_ref(), view),
            view: view.clone(),
            width,
            filter,
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

/// The views that hold what the part groups and filters by, the smallest first.
pub(crate) fn views(part: &Part) -> Result<Vec<&View>, Problem> {
    let metric = &part.metric;
    let filter = filter(part)?;
    let mut columns: Vec<&str> = part.group_by.iter().map(String::as_str).collect();
    let filtered = filter.iter().flat_map(|filter| filter.columns().iter());
    columns.extend(filtered.filter_map(|&at| metric.dimensions.get(at)).map(|dimension| dimension.name.as_str()));
    metric.views_for(&columns).map_err(|error| Problem::parameter("group_by", error))
}

/// The filter of a query within the rules over rows of whoever asks: every read of values goes through here.
fn filter(part: &Part) -> Result<Option<SeriesFilter>, Problem> {
    let Part { metric, rows, .. } = part;
    if let Some(name) = rows.keys().find(|name| metric.dimensions.iter().all(|own| own.name != **name)) {
        return Err(Problem::row_rules(&metric.name, name));
    }
    let parsed = SeriesFilter::within(part.filter.as_deref(), rows, metric);
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
