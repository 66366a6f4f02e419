//! A metric's definition to a [`Metric`]: what it reads, what it keeps, in which widths and views.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use lamina_core::{Micros, ViewId};

use crate::{
    aggregate::{Aggregate, ValueType},
    definition::{DimensionDefinition, MetricDefinition},
    diagnostic::{Problem, Problems, nearest},
    expression::{Expression, Planner},
    metric::{Dimension, Metric, Parts, View},
    reading::{Draft, Places},
    source::Source,
    time::{DAY, SECOND},
};

const DEFAULT_SHARDS: u32 = 4;
const MOST_SHARDS: u32 = 256;
const DEFAULT_CAP: u32 = 100_000;
const MOST_DIMENSIONS: usize = 16;

/// The source that a metric is over.
pub(crate) enum Over<'a> {
    Compiled(&'a Arc<Source>),
    /// It is defined, but has problems of its own.
    Broken,
    Unknown(Vec<&'a str>),
}

/// Compiles one metric.
pub(crate) struct Compiler<'a, 'p> {
    pub(crate) definition: &'a MetricDefinition,
    pub(crate) places: &'a Places,
    pub(crate) planner: &'a Planner,
    pub(crate) problems: &'a mut Problems<'p>,
}

/// Notes every problem; gives a metric only if there is none.
pub(crate) fn compile_metric(
    draft: Draft<MetricDefinition>,
    over: Over<'_>,
    (version, since): (u32, u64),
    planner: &Planner,
    problems: &mut Problems<'_>,
    before: usize,
) -> Option<Metric> {
    let Draft { name, definition, places } = draft;
    let mut compiler = Compiler { definition: &definition, places: &places, planner, problems };
    compiler.check_widths();
    compiler.check_dimension_names();
    let groupings = compiler.groupings();
    let asked = compiler.aggregates();
    compiler.check_limits();
    let source = match over {
        Over::Compiled(source) => Arc::clone(source),
        Over::Broken => return None,
        Over::Unknown(known) => {
            compiler.note_unknown_source(&known);
            return None;
        }
    };
    let compiled = compiler.expressions(&source.schema(), &asked);
    let dimensions = compiled.as_ref().map(|(expressions, _)| dimensions(&definition, expressions)).unwrap_or_default();
    let expire = if compiled.is_some() { compiler.rules(&dimensions) } else { Vec::new() };
    if problems.count() > before {
        return None;
    }
    let (expressions, inputs) = compiled?;
    let aggregates = asked.into_iter().map(|(aggregate, _)| aggregate).collect();
    let value_type = value_type(expressions.value.as_ref());
    let parts = Parts::new(&source.schema(), expressions, inputs, &dimensions, value_type).ok()?;
    let views = views(&name.value, version, &definition, groupings);
    let rollups = definition.rollups.iter().map(|width| width.0).collect();
    let retention = definition.retention.iter().map(|(width, kept)| (width.0, kept.0)).collect();
    Some(Metric {
        name: name.value,
        version,
        since,
        description: definition.description.clone(),
        grain: definition.grain.0,
        source,
        dimensions,
        aggregates,
        value_type,
        rollups,
        retention,
        expire,
        views,
        parts,
        definition,
    })
}

/// The expressions of a metric.
pub(crate) struct Expressions {
    pub(crate) filter: Option<Expression>,
    pub(crate) dimensions: Vec<Expression>,
    pub(crate) value: Option<Expression>,
    pub(crate) inputs: Vec<Expression>,
}

/// An aggregate with its argument's text and place.
type Asked = Vec<(Aggregate, Option<(String, String)>)>;

impl Compiler<'_, '_> {
    pub(crate) fn note(&mut self, path: &str, problem: Problem) {
        self.problems.add(self.places.of(path), problem);
    }

    fn note_unknown_source(&mut self, known: &[&str]) {
        let name = &self.definition.source;
        if name.is_empty() {
            return;
        }
        let help = match (nearest(name, known.iter().copied()), known) {
            (Some(near), _) => format!("did you mean {near}?"),
            (None, []) => format!("define [source.{name}]"),
            (None, known) => format!("defined are {}", known.join(", ")),
        };
        self.note("source", Problem::new(format!("there is no source {name}"), help));
    }

    fn check_widths(&mut self) {
        let grain = self.definition.grain;
        if grain.0 == 0 {
            return;
        }
        if grain.0 < SECOND || grain.0 > DAY || DAY % grain.0 != 0 {
            let help = "a grain of at least 1s that divides a day, as 10s, 1m, 5m, 1h or 1d";
            self.note("grain", Problem::new(format!("grain {grain} does not divide a day"), help));
        }
        let mut finer = grain;
        for (i, width) in self.definition.rollups.iter().enumerate() {
            let path = format!("rollups[{i}]");
            if *width <= finer || width.0 % finer.0 != 0 {
                let help = "rollups ascend, each a multiple of the one before and of the grain";
                self.note(&path, Problem::new(format!("rollup {width} is not a multiple of {finer}"), help));
            } else if width.0 > DAY {
                let help = "weeks, months and years are put together of days when they are asked for";
                self.note(&path, Problem::new(format!("rollup {width} is longer than a day"), help));
            }
            finer = *width;
        }
        for (width, kept) in &self.definition.retention {
            self.check_kept("", *width, *kept);
        }
        self.check_expire();
    }

    fn check_limits(&mut self) {
        if self.definition.shards.is_some_and(|shards| shards > MOST_SHARDS) {
            self.note("shards", Problem::plain(format!("there can be at most {MOST_SHARDS} shards")));
        }
    }

    fn check_dimension_names(&mut self) {
        let dimensions = &self.definition.dimensions;
        if dimensions.len() > MOST_DIMENSIONS {
            let problem =
                Problem::plain(format!("there are {} dimensions; at most {MOST_DIMENSIONS}", dimensions.len()));
            self.note(&format!("dimensions[{MOST_DIMENSIONS}]"), problem);
        }
        for (i, dimension) in dimensions.iter().enumerate() {
            let name = dimension.name();
            if dimensions[..i].iter().any(|earlier| earlier.name() == name) {
                self.note(&format!("dimensions[{i}]"), Problem::plain(format!("dimension {name} is listed twice")));
            }
            // `group_by` is a list with commas.
            if name.contains(',') {
                let help = "give it a name: { name = \"...\", sql = \"...\" }";
                let problem =
                    Problem::new(format!("dimension {name} could not be asked for: its name holds a comma"), help);
                self.note(&format!("dimensions[{i}]"), problem);
            }
        }
    }

    /// The groupings as indexes of dimensions, ascending.
    fn groupings(&mut self) -> Vec<Vec<usize>> {
        let definition = self.definition;
        let names: Vec<&str> = definition.dimensions.iter().map(DimensionDefinition::name).collect();
        let mut groupings: Vec<Vec<usize>> = Vec::new();
        for (i, grouping) in definition.groupings.iter().enumerate() {
            let path = format!("groupings[{i}]");
            let mut columns = Vec::new();
            for name in grouping {
                match names.iter().position(|known| known == name) {
                    Some(column) => columns.push(column),
                    None => self.note(&path, unknown_dimension(name, &names)),
                }
            }
            columns.sort_unstable();
            columns.dedup();
            if columns.len() < grouping.len() {
                // An unknown name has been noted; a name that stands twice does no harm.
            } else if columns.is_empty() || columns.len() == names.len() {
                let what = if columns.is_empty() { "the total" } else { "the full set of dimensions" };
                self.note(&path, Problem::new(format!("{what} is always kept"), "leave this grouping out"));
            } else if groupings.contains(&columns) {
                self.note(&path, Problem::plain(format!("grouping {} is listed twice", grouping.join(", "))));
            }
            groupings.push(columns);
        }
        groupings
    }

    fn aggregates(&mut self) -> Asked {
        let definition = self.definition;
        let mut asked: Asked = Vec::new();
        let mut inputs: Vec<String> = Vec::new();
        for (i, text) in definition.aggregates.iter().enumerate() {
            let path = format!("aggregates[{i}]");
            let aggregate = match Aggregate::parse(text, &mut inputs) {
                Ok(aggregate) => aggregate,
                Err(problem) => {
                    self.note(&path, problem);
                    continue;
                }
            };
            if asked.iter().any(|(known, _)| *known == aggregate) {
                self.note(&path, Problem::plain(format!("aggregate {text} is listed twice")));
                continue;
            }
            if aggregate.needs_value() && definition.value.is_none() {
                let help = "say which field or expression it is of, as in value = \"amount\"";
                self.note(&path, Problem::new(format!("{text} needs a `value`"), help));
            }
            let argument = match &aggregate {
                Aggregate::Distinct { field, .. } | Aggregate::Top { field, .. } => Some((field.clone(), path)),
                _ => None,
            };
            asked.push((aggregate, argument));
        }
        asked
    }

    fn expressions(&mut self, schema: &Schema, asked: &Asked) -> Option<(Expressions, usize)> {
        let definition = self.definition;
        let filter = definition.filter.as_ref().map(|sql| self.filter(sql, schema));
        let dimensions: Vec<Option<Expression>> = definition
            .dimensions
            .iter()
            .enumerate()
            .map(|(i, dimension)| {
                let path = format!("dimensions[{i}]");
                let expression = match dimension {
                    DimensionDefinition::Text(text) => self.resolve(text, &path, schema),
                    DimensionDefinition::Named { sql, .. } => self.resolve(sql, &path, schema),
                };
                self.one_value(expression, "a dimension", &path)
            })
            .collect();
        let value = definition.value.as_ref().map(|sql| self.value(sql, schema));
        let mut inputs: BTreeMap<usize, Option<Expression>> = BTreeMap::new();
        for (aggregate, argument) in asked {
            let (Aggregate::Distinct { input, .. } | Aggregate::Top { input, .. }) = aggregate else { continue };
            let Some((field, path)) = argument else { continue };
            if !inputs.contains_key(input) {
                let expression = self.resolve(field, path, schema);
                inputs.insert(*input, self.one_value(expression, "the argument", path));
            }
        }
        let count = inputs.len();
        let inputs: Option<Vec<Expression>> = inputs.into_values().collect();
        let dimensions: Option<Vec<Expression>> = dimensions.into_iter().collect();
        let (filter, value) = (transpose(filter)?, transpose(value)?);
        Some((Expressions { filter, dimensions: dimensions?, value, inputs: inputs? }, count))
    }

    fn resolve(&mut self, sql: &str, path: &str, schema: &Schema) -> Option<Expression> {
        match self.planner.resolve(sql, schema) {
            Ok(expression) => Some(expression),
            Err(error) => {
                self.note(path, error.into_problem());
                None
            }
        }
    }

    fn one_value(&mut self, expression: Option<Expression>, what: &str, path: &str) -> Option<Expression> {
        let expression = expression?;
        if matches!(expression.data_type(), DataType::List(_)) {
            self.note(path, Problem::new(format!("{what} is a list"), "take one item of it, as in x[1]"));
            return None;
        }
        Some(expression)
    }

    fn filter(&mut self, sql: &str, schema: &Schema) -> Option<Expression> {
        let expression = self.resolve(sql, "where", schema)?;
        if expression.data_type() == &DataType::Boolean {
            return Some(expression);
        }
        let message = format!("`where` is of type {}", people_type(expression.data_type()));
        self.note("where", Problem::new(message, "it must be true or false, as in status = 200"));
        None
    }

    fn value(&mut self, sql: &str, schema: &Schema) -> Option<Expression> {
        let expression = self.resolve(sql, "value", schema)?;
        let help = match expression.data_type() {
            DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) => return Some(expression),
            DataType::Boolean => "it must be a number: CASE WHEN x THEN 1 ELSE 0 END counts what is true",
            _ => "it must be a number; cast it, or ask for distinct(x) or top(x, 10) of a text",
        };
        let message = format!("`value` is of type {}", people_type(expression.data_type()));
        self.note("value", Problem::new(message, help));
        None
    }
}

/// None if it is there but wrong.
fn transpose(expression: Option<Option<Expression>>) -> Option<Option<Expression>> {
    match expression {
        None => Some(None),
        Some(None) => None,
        Some(Some(expression)) => Some(Some(expression)),
    }
}

fn unknown_dimension(name: &str, known: &[&str]) -> Problem {
    let help = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("dimensions are {}", known.join(", ")),
    };
    Problem::new(format!("{name} is not a dimension of the metric"), help)
}

fn people_type(kind: &DataType) -> &'static str {
    match kind {
        DataType::Boolean => "bool",
        DataType::Int64 => "int64",
        DataType::Float64 => "float64",
        DataType::Decimal128(..) => "decimal",
        DataType::Date32 => "date",
        DataType::Timestamp(..) => "timestamp",
        DataType::List(_) => "list",
        _ => "string",
    }
}

fn value_type(value: Option<&Expression>) -> ValueType {
    match value.map(Expression::data_type) {
        Some(DataType::Int64) => ValueType::Int64,
        Some(DataType::Decimal128(precision, scale)) => ValueType::Decimal { precision: *precision, scale: *scale },
        Some(_) => ValueType::Float64,
        None => ValueType::None,
    }
}

fn dimension_type(kind: &DataType) -> DataType {
    match kind {
        DataType::Int64 | DataType::Float64 | DataType::Boolean => kind.clone(),
        _ => DataType::Utf8,
    }
}

fn dimensions(definition: &MetricDefinition, expressions: &Expressions) -> Vec<Dimension> {
    let typed = definition.dimensions.iter().zip(&expressions.dimensions).map(|(dimension, sql)| Dimension {
        name: dimension.name().to_owned(),
        data_type: dimension_type(sql.data_type()),
    });
    typed.collect()
}

fn views(name: &str, version: u32, definition: &MetricDefinition, groupings: Vec<Vec<usize>>) -> Vec<View> {
    let full: Vec<usize> = (0..definition.dimensions.len()).collect();
    let total = (!full.is_empty()).then(Vec::new);
    let sets = std::iter::once(full).chain(groupings).chain(total);
    let view = |(grouping, dimensions): (usize, Vec<usize>)| View {
        id: ViewId::new(name, version, grouping),
        shards: if dimensions.is_empty() { 1 } else { definition.shards.unwrap_or(DEFAULT_SHARDS) },
        cap: definition.max_series.unwrap_or(DEFAULT_CAP),
        dimensions,
    };
    sets.enumerate().map(view).collect()
}

/// The columns of prepared rows.
pub(crate) fn prepared_schema(
    order: &DataType,
    dimensions: &[Dimension],
    value: ValueType,
    inputs: usize,
) -> SchemaRef {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    let mut fields = vec![
        Field::new("_partition", DataType::UInt32, false),
        Field::new("_offset", DataType::UInt64, false),
        Field::new("_time", micros.clone(), false),
        Field::new("_order", order.clone(), true),
        Field::new("_bucket", micros, false),
    ];
    fields.extend(dimensions.iter().enumerate().map(|(i, d)| Field::new(format!("d{i}"), d.data_type.clone(), true)));
    let value = match value {
        ValueType::None => None,
        ValueType::Int64 => Some(DataType::Int64),
        ValueType::Float64 => Some(DataType::Float64),
        ValueType::Decimal { precision, scale } => Some(DataType::Decimal128(precision, scale)),
    };
    fields.extend(value.map(|value| Field::new("v", value, true)));
    fields.extend((0..inputs).map(|i| Field::new(format!("x{i}"), DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

/// The start of the bucket of `grain` that holds `at`.
pub(crate) fn bucket(at: Micros, grain: Micros) -> Micros {
    at.div_euclid(grain) * grain
}
