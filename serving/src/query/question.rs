//! What is asked, down to its parts: each is one metric over one range, planned and read by itself.

use std::{ops::Range, sync::Arc};

use lamina_core::Micros;
use lamina_metric::{AnswerType, Approximate, Derived, Dimension, Length, Measure, Metric, Resolved, derived::VALUE};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    app::App,
    auth::Rows,
    instant,
    problem::Problem,
    query::{
        calendar::{Buckets, DAY, Division, EARLIEST, LATEST, Step, earlier},
        params::{OrderBy, Params},
    },
};

/// A metric, or one that is made of others.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    Metric(Arc<Metric>),
    Derived(Resolved),
}

/// One metric over one range.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) metric: Arc<Metric>,
    /// The whole range, divided.
    pub(crate) buckets: Buckets,
    pub(crate) group_by: Vec<String>,
    pub(crate) filter: Option<String>,
    /// Rules over rows, beneath the filter.
    pub(crate) rows: Rows,
}

/// A key of a point.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) kind: AnswerType,
    pub(crate) approximate: Option<Approximate>,
}

/// Where the values of a column come from.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Measure {
        part: usize,
        measure: Measure,
    },
    /// Of the parts from this one on.
    Derived {
        first: usize,
        resolved: Resolved,
    },
}

/// What orders the series of an answer.
#[derive(Clone, Debug)]
pub(crate) enum OrderKey {
    /// Position in `group_by`.
    Dimension(usize),
    Column(Column),
}

/// A query of what is defined now, over a range that is fixed.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) subject: Subject,
    pub(crate) params: Params,
    /// As answered: widened to multiples of the grain.
    pub(crate) range: Range<Micros>,
    /// Of the range, then with `compare` as many of the earlier one.
    pub(crate) parts: Vec<Part>,
    pub(crate) columns: Vec<Column>,
    pub(crate) order_by: Vec<(OrderKey, bool)>,
    /// Those of `group_by`.
    pub(crate) dimensions: Vec<Dimension>,
    /// Where the parts of the earlier range begin; as many as all if there are none.
    pub(crate) present: usize,
}

impl Subject {
    pub(crate) fn find(app: &App, name: &str) -> Result<Self, Problem> {
        let catalog = app.definitions()?;
        let Some(derived) = catalog.derived.get(name) else { return app.metric(name).map(Self::Metric) };
        Self::over(derived, &catalog.metrics)
    }

    fn over(
        derived: &Arc<Derived>,
        metrics: &std::collections::BTreeMap<String, Arc<Metric>>,
    ) -> Result<Self, Problem> {
        // The metrics as they answer now may be older than those that the definition was checked over.
        derived.over(|name| metrics.get(name)).map(Self::Derived).map_err(|why| {
            let detail =
                format!("{} cannot be computed now: {why}; a new version may still be being built", derived.name);
            Problem::unavailable("not_built", detail)
        })
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Metric(metric) => &metric.name,
            Self::Derived(resolved) => &resolved.derived.name,
        }
    }

    /// A derived metric has none: it is computed as it is defined now.
    pub(crate) fn version(&self) -> Option<u32> {
        match self {
            Self::Metric(metric) => Some(metric.version),
            Self::Derived(_) => None,
        }
    }

    pub(crate) fn metrics(&self) -> &[Arc<Metric>] {
        match self {
            Self::Metric(metric) => std::slice::from_ref(metric),
            Self::Derived(resolved) => &resolved.metrics,
        }
    }

    fn grain(&self) -> Micros {
        match self {
            Self::Metric(metric) => metric.grain,
            Self::Derived(resolved) => resolved.grain,
        }
    }

    fn dimensions(&self) -> &[Dimension] {
        match self {
            Self::Metric(metric) => &metric.dimensions,
            Self::Derived(resolved) => &resolved.dimensions,
        }
    }

    /// What changes whenever its definition does.
    fn definition(&self) -> String {
        let versions = self.metrics().iter().map(|metric| format!("{}.{}", metric.name, metric.version));
        let own = match self {
            Self::Metric(_) => String::new(),
            Self::Derived(resolved) => resolved.derived.definition.fingerprint(),
        };
        versions.chain([own]).collect::<Vec<_>>().join(",")
    }

    fn column(&self, parameter: &str, name: &str) -> Result<Column, Problem> {
        match self {
            Self::Metric(metric) => {
                if name == "start" {
                    return Err(Problem::parameter(parameter, "`start` is no aggregate"));
                }
                let measure = Measure::parse(name, metric).map_err(|why| Problem::parameter(parameter, why))?;
                Ok(Column {
                    name: measure.name().to_owned(),
                    kind: measure.answer_type(metric),
                    approximate: measure.approximate(),
                    value: Value::Measure { part: 0, measure },
                })
            }
            Self::Derived(resolved) if name == VALUE => Ok(Column {
                name: VALUE.to_owned(),
                kind: resolved.answer_type(),
                approximate: None,
                value: Value::Derived { first: 0, resolved: resolved.clone() },
            }),
            Self::Derived(resolved) => {
                let detail = format!("{} has no `{name}`; a derived metric has only `{VALUE}`", resolved.derived.name);
                Err(Problem::parameter(parameter, detail))
            }
        }
    }

    fn all_columns(&self) -> Vec<String> {
        match self {
            Self::Metric(metric) => metric.all_asks(),
            Self::Derived(_) => vec![VALUE.to_owned()],
        }
    }
}

impl Column {
    /// The same of the earlier range, whose parts begin so much later.
    fn earlier(&self, period: &str, by: usize) -> Self {
        let value = match self.value.clone() {
            Value::Measure { part, measure } => Value::Measure { part: part + by, measure },
            Value::Derived { first, resolved } => Value::Derived { first: first + by, resolved },
        };
        Self { name: format!("{}@{period}", self.name), value, ..self.clone() }
    }
}

impl Question {
    /// `now` is what `to` is if it is left out.
    pub(crate) fn of(subject: Subject, params: &Params, now: Micros) -> Result<Self, Problem> {
        let dimensions = grouped(&subject, params)?;
        let range = widen(subject.grain(), params, now)?;
        let division = division(subject.grain(), params)?;
        let named = if params.aggregates.is_empty() { subject.all_columns() } else { params.aggregates.clone() };
        let columns = named.iter().map(|name| subject.column("aggregate", name)).collect::<Result<_, _>>()?;
        let order_by = order_by(&subject, params)?;
        let part = |range: &Range<Micros>| {
            let buckets = Buckets { range: range.clone(), division };
            let (group_by, filter, rows) = (params.group_by.clone(), params.filter.clone(), params.rows.clone());
            move |metric: &Arc<Metric>| Part {
                metric: Arc::clone(metric),
                buckets: buckets.clone(),
                group_by: group_by.clone(),
                filter: filter.clone(),
                rows: rows.clone(),
            }
        };
        let parts: Vec<Part> = subject.metrics().iter().map(part(&range)).collect();
        let present = parts.len();
        let mut question =
            Self { params: params.clone(), range, parts, columns, order_by, dimensions, present, subject };
        question.params.to = Some(question.range.end);
        if let Some((period, text)) = &params.compare {
            comparable(*period, division, question.subject.grain())?;
            let before = |at| earlier(at, *period, params.zone);
            let range = before(question.range.start)..before(question.range.end);
            if range.start < EARLIEST || range.is_empty() {
                return Err(Problem::parameter("compare", "the earlier range must lie within the years 1 to 9999"));
            }
            question.parts.extend(question.subject.metrics().iter().map(part(&range)).collect::<Vec<_>>());
            let more: Vec<Column> = question.columns.iter().map(|column| column.earlier(text, present)).collect();
            question.columns.extend(more);
        }
        Ok(question)
    }

    /// Buckets of the whole range.
    pub(crate) fn whole(&self) -> Buckets {
        // There is a part of every metric, and at least one metric.
        let division = self.parts.first().map_or(Division::Whole, |part| part.buckets.division);
        Buckets { range: self.range.clone(), division }
    }

    /// Equal for queries that ask the same of the same definitions, whatever page, and however `to` came about.
    pub(crate) fn fingerprint(&self) -> u128 {
        let params = Params { page: None, at_least: Vec::new(), from: self.range.start, ..self.params.clone() };
        let text = format!("{} {} {params:?}", env!("CARGO_PKG_VERSION"), self.subject.definition());
        xxh3_128(text.as_bytes())
    }
}

fn grouped(subject: &Subject, params: &Params) -> Result<Vec<Dimension>, Problem> {
    let all = subject.dimensions();
    let named = |name: &String| {
        all.iter().find(|dimension| dimension.name == *name).cloned().ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|dimension| dimension.name.as_str()).collect();
            let of = match subject {
                Subject::Metric(metric) => format!("metric {}", metric.name),
                Subject::Derived(resolved) => format!("derived metric {}", resolved.derived.name),
            };
            let detail = match (names.is_empty(), subject) {
                (true, Subject::Metric(_)) => format!("{of} has no dimensions"),
                (true, Subject::Derived(_)) => format!("{of} has no dimensions that all its metrics have"),
                (false, _) => format!("{of} has no dimension {name:?}; it has {}", names.join(", ")),
            };
            Problem::parameter("group_by", detail)
        })
    };
    params.group_by.iter().map(named).collect()
}

/// The range in multiples of the grain.
fn widen(grain: Micros, params: &Params, now: Micros) -> Result<Range<Micros>, Problem> {
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

pub(crate) fn round_up(at: Micros, width: Micros) -> Micros {
    at.div_euclid(width) * width + if at.rem_euclid(width) == 0 { 0 } else { width }
}

fn division(grain: Micros, params: &Params) -> Result<Division, Problem> {
    let Some((step, text)) = &params.step else { return Ok(Division::Whole) };
    if let Step::Fixed(length) = *step {
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

/// Whether each bucket has one of the same place in its unit a period earlier.
fn comparable(period: Step, division: Division, grain: Micros) -> Result<(), Problem> {
    let of_days = |step| match step {
        Step::Fixed(length) => Some(length),
        Step::Weeks(n) => Some(7 * n * DAY),
        Step::Months(_) => None,
    };
    let fits = match (division, period) {
        (Division::Whole, _) => of_days(period).is_none_or(|period| period % grain == 0),
        (Division::Utc(Step::Months(step)) | Division::Local(Step::Months(step), _), Step::Months(n)) => n % step == 0,
        (Division::Utc(step) | Division::Local(step, _), _) => {
            of_days(step).zip(of_days(period)).is_some_and(|(step, period)| period % step == 0)
        }
    };
    if fits {
        return Ok(());
    }
    let detail =
        "must be a multiple of `step` (without one: of the grain); months go with a `step` of months or with none";
    Err(Problem::parameter("compare", detail))
}

fn order_by(subject: &Subject, params: &Params) -> Result<Vec<(OrderKey, bool)>, Problem> {
    let key = |OrderBy { name, descending }: &OrderBy| {
        if let Some(at) = params.group_by.iter().position(|own| own == name) {
            return Ok((OrderKey::Dimension(at), *descending));
        }
        let column = subject.column("order_by", name).map_err(|mut problem| {
            if !params.group_by.is_empty() {
                problem.detail.push_str(&format!("; or a dimension of group_by: {}", params.group_by.join(", ")));
            }
            problem.detail.push_str("; then `asc` or `desc`");
            problem
        })?;
        if column.kind == AnswerType::Top {
            return Err(Problem::parameter("order_by", "`top` is a list and does not order"));
        }
        Ok((OrderKey::Column(column), *descending))
    };
    params.order_by.iter().map(key).collect()
}
