//! From merged states to the rows of an answer: what belongs together, limits, order, and the values asked for.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use axum::http::StatusCode;
use lamina_core::Micros;
use lamina_metric::{Answer, DimensionValue, FastHash, Layout, States};

use crate::{
    problem::Problem,
    query::{
        compare::Earlier,
        fill,
        merge::{Merged, MergedSeries},
        params::MAX_SERIES,
        plan::Plan,
        question::{Column, OrderKey, Question, Value},
    },
};

pub(crate) const MAX_POINTS: usize = 1_000_000;

/// A part of the question, merged.
#[derive(Debug)]
pub(crate) struct Operand<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) merged: Merged,
}

/// The rows of an answer.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) series: Vec<Row>,
    /// Whether `limit` left series out.
    pub(crate) truncated: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) values: Vec<DimensionValue>,
    pub(crate) points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) start: Micros,
    /// One per column.
    pub(crate) answers: Vec<Answer>,
}

/// A series of the answer, and which of each operand's it is.
struct Joined {
    values: Vec<DimensionValue>,
    members: Vec<Option<usize>>,
}

/// What one operand has for a point.
#[derive(Clone, Copy)]
struct Cell<'a> {
    states: &'a States,
    row: usize,
    /// How long its bucket is.
    seconds: f64,
}

pub(crate) fn table(question: &Question, operands: &[Operand<'_>]) -> Result<Table, Problem> {
    let params = &question.params;
    let mut series = joined(operands);
    if series.is_empty() && params.group_by.is_empty() {
        series.push(Joined { values: Vec::new(), members: vec![None; operands.len()] });
    }
    let all = series.len();
    if params.limit.is_none() && params.page.is_none() && all > MAX_SERIES {
        let detail = format!(
            "the answer has {all} series, more than {MAX_SERIES}: give `limit` or `page_size`, or group or filter more"
        );
        return Err(Problem::new(StatusCode::BAD_REQUEST, "too_many_series", detail));
    }
    order(question, operands, &mut series)?;
    series.truncate(params.limit.unwrap_or(all));
    let shown = Shown::of(question, operands)?;
    let spine = params.fill.map(|_| spine(&shown, series.len())).transpose()?;
    let (mut points, mut rows) = (0, Vec::with_capacity(series.len()));
    for one in series {
        let mut own = shown.points(question, operands, &one.members)?;
        points += own.len();
        if points > MAX_POINTS {
            return Err(too_many_points(points));
        }
        if let (Some(fill), Some(spine)) = (params.fill, &spine) {
            own = fill::filled(own, spine, fill, &question.columns);
        }
        rows.push(Row { values: one.values, points: own });
    }
    Ok(Table { truncated: rows.len() < all, series: rows })
}

/// The series that have anything at all, by their values.
fn joined(operands: &[Operand<'_>]) -> Vec<Joined> {
    let mut known: HashMap<&[DimensionValue], usize, FastHash> = HashMap::default();
    let mut all: Vec<Joined> = Vec::new();
    for (at, operand) in operands.iter().enumerate() {
        for (member, series) in operand.merged.series.iter().enumerate().filter(|(_, series)| !series.rows.is_empty()) {
            let next = all.len();
            let place = *known.entry(&series.values).or_insert(next);
            if place == next {
                all.push(Joined { values: series.values.clone(), members: vec![None; operands.len()] });
            }
            all[place].members[at] = Some(member);
        }
    }
    all
}

/// The buckets that points are shown under.
struct Shown {
    /// Without what lies below all horizons.
    present: crate::query::calendar::Buckets,
    earlier: Option<Earlier>,
    /// Whether some column needs to know how long buckets are.
    rated: bool,
}

impl Shown {
    fn of(question: &Question, operands: &[Operand<'_>]) -> Result<Self, Problem> {
        let (now, before) = operands.split_at(question.present.min(operands.len()));
        let mut present = question.whole();
        let start = |operands: &[Operand<'_>]| operands.iter().map(|operand| operand.plan.buckets.range.start).min();
        present.range.start = start(now).unwrap_or(present.range.start);
        let earlier = start(before).map(|start| Earlier::of(question, &present, start)).transpose()?;
        let rated = question.columns.iter().any(Column::is_rate);
        Ok(Self { present, earlier, rated })
    }

    /// Points of one series, ascending.
    fn points(
        &self,
        question: &Question,
        operands: &[Operand<'_>],
        members: &[Option<usize>],
    ) -> Result<Vec<Point>, Problem> {
        let answered = |start, cells: &[Option<Cell<'_>>]| {
            let answers = question.columns.iter().map(|column| column.answer(cells)).collect::<Result<_, _>>()?;
            Ok(Point { start, answers })
        };
        let rows = |at: usize| {
            let operand = &operands[at];
            let series = members[at].map(|member| &operand.merged.series[member]);
            series.into_iter().flat_map(|series: &MergedSeries| &series.rows).map(move |&(start, row)| {
                let seconds = if self.rated { seconds(operand.plan, start) } else { 1.0 };
                (start, Cell { states: &operand.merged.states, row, seconds })
            })
        };
        if operands.len() == 1 {
            return rows(0).map(|(start, cell)| answered(start, &[Some(cell)])).collect();
        }
        let mut points: BTreeMap<Micros, Vec<Option<Cell<'_>>>> = BTreeMap::new();
        for at in 0..operands.len() {
            for (start, cell) in rows(at) {
                let mut put = |start: Micros| {
                    points.entry(start).or_insert_with(|| vec![None; operands.len()])[at] = Some(cell);
                };
                match &self.earlier {
                    Some(earlier) if at >= question.present => earlier.shown_at(start).for_each(put),
                    _ => put(self.present.start_of(start)),
                }
            }
        }
        points.iter().map(|(&start, cells)| answered(start, cells)).collect()
    }
}

/// How long the bucket is that begins there, within what is answered.
fn seconds(plan: &Plan, start: Micros) -> f64 {
    let end = plan.buckets.next(start).min(plan.buckets.range.end);
    (end - start) as f64 / 1e6
}

impl Column {
    fn is_rate(&self) -> bool {
        match &self.value {
            Value::Measure { measure, .. } => measure.is_rate(),
            Value::Derived { resolved, .. } => resolved.operands.iter().any(|(_, measure)| measure.is_rate()),
        }
    }

    /// The answer where each part has this.
    fn answer(&self, cells: &[Option<Cell<'_>>]) -> Result<Answer, Problem> {
        let of = |part: usize, measure: &lamina_metric::Measure| match cells.get(part).copied().flatten() {
            Some(cell) => measure.answer(Some((cell.states, cell.row)), cell.seconds),
            None => measure.answer(None, 1.0),
        };
        Ok(match &self.value {
            Value::Measure { part, measure } => of(*part, measure)?,
            Value::Derived { first, resolved } => resolved.value(|at| {
                let (metric, measure) = &resolved.operands[at];
                of(first + metric, measure)
            })?,
        })
    }
}

/// Every bucket of the range, for filling.
fn spine(shown: &Shown, series: usize) -> Result<Vec<Micros>, Problem> {
    let most = MAX_POINTS / series.max(1);
    shown.present.starts(most).ok_or_else(|| {
        let detail = format!("`fill` would make more than {MAX_POINTS} points: take a longer step or a shorter range");
        Problem::new(StatusCode::BAD_REQUEST, "too_many_points", detail)
    })
}

fn too_many_points(points: usize) -> Problem {
    let detail = format!(
        "the answer has at least {points} points, more than {MAX_POINTS}: take a longer step, a shorter range or a lower `limit`"
    );
    Problem::new(StatusCode::BAD_REQUEST, "too_many_points", detail)
}

/// By `order_by`, then by dimension values.
fn order(question: &Question, operands: &[Operand<'_>], series: &mut Vec<Joined>) -> Result<(), Problem> {
    series.sort_by(|a, b| compare_values(&a.values, &b.values));
    if question.order_by.is_empty() {
        return Ok(());
    }
    let by_totals = question.order_by.iter().any(|(key, _)| matches!(key, OrderKey::Column(_)));
    let present = if by_totals { &operands[..question.present.min(operands.len())] } else { &[] };
    let totals = present.iter().map(totals).collect::<Result<Vec<_>, _>>()?;
    let mut keyed = Vec::with_capacity(series.len());
    for one in std::mem::take(series) {
        let whole = present.iter().zip(&totals).zip(&one.members).map(|((operand, states), member)| {
            let range = &operand.plan.buckets.range;
            let seconds = (range.end - range.start) as f64 / 1e6;
            member.map(|row| Cell { states, row, seconds })
        });
        let whole: Vec<Option<Cell<'_>>> = whole.collect();
        let keys = question.order_by.iter().map(|(key, _)| match key {
            OrderKey::Dimension(dimension) => Ok(Key::Dimension(one.values[*dimension].clone())),
            OrderKey::Column(column) => Ok(Key::Answer(column.answer(&whole)?)),
        });
        let keys = keys.collect::<Result<Vec<_>, Problem>>()?;
        keyed.push((keys, one));
    }
    keyed.sort_by(|(a, _), (b, _)| {
        let pairs = a.iter().zip(b).zip(&question.order_by);
        let ways = pairs.map(|((a, b), (_, descending))| a.compare(b, *descending));
        ways.fold(Ordering::Equal, Ordering::then)
    });
    series.extend(keyed.into_iter().map(|(_, one)| one));
    Ok(())
}

/// One state per series of the operand, over the whole range.
fn totals(operand: &Operand<'_>) -> Result<States, Problem> {
    let Merged { series, states, .. } = &operand.merged;
    let mut into = vec![series.len(); states.len()];
    for (at, series) in series.iter().enumerate() {
        for &(_, row) in &series.rows {
            into[row] = at;
        }
    }
    let mut totals = States::new(&Layout::of(&operand.plan.metric));
    // Rows of no series are empty states; they go behind the last.
    totals.resize(series.len() + 1);
    totals.merge(states, &into)?;
    Ok(totals)
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
        (Answer::Time(a), Answer::Time(b)) => a.cmp(b),
        (Answer::Str(a), Answer::Str(b)) => a.cmp(b),
        (Answer::Bool(a), Answer::Bool(b)) => a.cmp(b),
        // The answers of one question are of one type; others are compared as numbers.
        _ => a.to_f64().zip(b.to_f64()).map_or(Ordering::Equal, |(a, b)| a.total_cmp(&b)),
    }
}
