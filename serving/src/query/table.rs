//! From merged states to the rows of an answer: limits, order, and the values asked for.

use std::cmp::Ordering;

use axum::http::StatusCode;
use lamina_core::Micros;
use lamina_metric::{Answer, Ask, DimensionValue, Layout, States};

use crate::{
    problem::Problem,
    query::{
        fill,
        merge::{Merged, MergedSeries},
        params::{Fill, MAX_SERIES},
        plan::{OrderKey, Plan},
    },
};

const MAX_POINTS: usize = 1_000_000;

/// The rows of an answer.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) series: Vec<Row>,
    /// Whether `limit` left series out.
    pub(crate) truncated: bool,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) values: Vec<DimensionValue>,
    pub(crate) points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) start: Micros,
    /// One per aggregate asked for.
    pub(crate) answers: Vec<Answer>,
}

pub(crate) fn table(plan: &Plan, merged: Merged, limit: Option<usize>, fill: Option<Fill>) -> Result<Table, Problem> {
    let Merged { mut series, states, .. } = merged;
    series.retain(|series| !series.rows.is_empty());
    if series.is_empty() && plan.group_by.is_empty() {
        series.push(MergedSeries { values: Vec::new(), rows: Vec::new() });
    }
    let all = series.len();
    if limit.is_none() && all > MAX_SERIES {
        let detail =
            format!("the answer has {all} series, more than {MAX_SERIES}: give `limit`, or group or filter more");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "too_many_series", detail));
    }
    order(plan, &mut series, &states)?;
    series.truncate(limit.unwrap_or(all));
    let spine = fill.map(|_| spine(plan, series.len())).transpose()?;
    let points = series.iter().map(|series| series.rows.len()).sum::<usize>();
    if points > MAX_POINTS {
        return Err(too_many_points(points));
    }
    let row = |series: MergedSeries| {
        let point = |&(start, row): &(Micros, usize)| {
            let answers = plan.asks.iter().map(|ask| states.answer(row, ask)).collect::<Result<_, _>>()?;
            Ok(Point { start, answers })
        };
        let points = series.rows.iter().map(point).collect::<Result<Vec<_>, Problem>>()?;
        let points = match (fill, &spine) {
            (Some(fill), Some(spine)) => fill::filled(points, spine, fill, &states, &plan.asks),
            _ => points,
        };
        Ok(Row { values: series.values, points })
    };
    let rows = series.into_iter().map(row).collect::<Result<Vec<_>, Problem>>()?;
    Ok(Table { truncated: rows.len() < all, series: rows })
}

/// Every bucket of the range, for filling.
fn spine(plan: &Plan, series: usize) -> Result<Vec<Micros>, Problem> {
    let most = MAX_POINTS / series.max(1);
    plan.buckets.starts(most).ok_or_else(|| {
        let detail = format!("`fill` would make more than {MAX_POINTS} points: take a longer step or a shorter range");
        Problem::new(StatusCode::BAD_REQUEST, "too_many_points", detail)
    })
}

fn too_many_points(points: usize) -> Problem {
    let detail = format!(
        "the answer has {points} points, more than {MAX_POINTS}: take a longer step, a shorter range or a lower `limit`"
    );
    Problem::new(StatusCode::BAD_REQUEST, "too_many_points", detail)
}

/// By `order_by`, then by dimension values.
fn order(plan: &Plan, series: &mut Vec<MergedSeries>, states: &States) -> Result<(), Problem> {
    series.sort_by(|a, b| compare_values(&a.values, &b.values));
    if plan.order_by.is_empty() {
        return Ok(());
    }
    let totals = if plan.totals { totals(plan, series, states)? } else { States::new(&Layout::of(&plan.metric)) };
    let mut keyed = Vec::with_capacity(series.len());
    for (at, series) in std::mem::take(series).into_iter().enumerate() {
        let keys = plan.order_by.iter().map(|(key, _)| match key {
            OrderKey::Dimension(dimension) => Ok(Key::Dimension(series.values[*dimension].clone())),
            OrderKey::Aggregate(ask) => Ok(Key::Answer(total(&totals, at, ask)?)),
        });
        let keys = keys.collect::<Result<Vec<_>, Problem>>()?;
        keyed.push((keys, series));
    }
    keyed.sort_by(|(a, _), (b, _)| {
        let pairs = a.iter().zip(b).zip(&plan.order_by);
        let ways = pairs.map(|((a, b), (_, descending))| a.compare(b, *descending));
        ways.fold(Ordering::Equal, Ordering::then)
    });
    series.extend(keyed.into_iter().map(|(_, series)| series));
    Ok(())
}

/// One state per series, over the whole range.
fn totals(plan: &Plan, series: &[MergedSeries], states: &States) -> Result<States, Problem> {
    let mut into = vec![series.len(); states.len()];
    for (at, series) in series.iter().enumerate() {
        for &(_, row) in &series.rows {
            into[row] = at;
        }
    }
    let mut totals = States::new(&Layout::of(&plan.metric));
    // Rows of no series are empty states; they go behind the last.
    totals.resize(series.len() + 1);
    totals.merge(states, &into)?;
    Ok(totals)
}

fn total(totals: &States, at: usize, ask: &Ask) -> Result<Answer, Problem> {
    Ok(totals.answer(at, ask)?)
}

enum Key {
    Dimension(DimensionValue),
    Answer(Answer),
}

impl Key {
    /// Nulls come last either way.
    fn compare(&self, other: &Self, descending: bool) -> Ordering {
        let nulls = self.is_null().cmp(&other.is_null());
        let values = match (self, other) {
            (Self::Dimension(a), Self::Dimension(b)) => compare_value(a, b),
            (Self::Answer(a), Self::Answer(b)) => compare_answer(a, b),
            _ => Ordering::Equal,
        };
        nulls.then(if descending { values.reverse() } else { values })
    }

    fn is_null(&self) -> bool {
        matches!(self, Self::Dimension(DimensionValue::Null) | Self::Answer(Answer::Null))
    }
}

fn compare_values(a: &[DimensionValue], b: &[DimensionValue]) -> Ordering {
    let ways = a.iter().zip(b).map(|(a, b)| {
        let null = |value: &DimensionValue| matches!(value, DimensionValue::Null);
        null(a).cmp(&null(b)).then_with(|| compare_value(a, b))
    });
    ways.fold(Ordering::Equal, Ordering::then)
}

fn compare_value(a: &DimensionValue, b: &DimensionValue) -> Ordering {
    match (a, b) {
        (DimensionValue::Float(a), DimensionValue::Float(b)) => f64::from_bits(*a).total_cmp(&f64::from_bits(*b)),
        _ => a.cmp(b),
    }
}

fn compare_answer(a: &Answer, b: &Answer) -> Ordering {
    match (a, b) {
        (Answer::Int(a), Answer::Int(b)) => a.cmp(b),
        (Answer::Decimal { value: a, scale: x }, Answer::Decimal { value: b, scale: y }) if x == y => a.cmp(b),
        (Answer::Float(a), Answer::Float(b)) => a.total_cmp(b),
        (Answer::Time(a), Answer::Time(b)) => a.cmp(b),
        (Answer::Str(a), Answer::Str(b)) => a.cmp(b),
        (Answer::Bool(a), Answer::Bool(b)) => a.cmp(b),
        // The answers of one question are of one type.
        _ => Ordering::Equal,
    }
}
