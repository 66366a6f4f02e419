//! TOML tables to definitions, with the place of everything that may turn out wrong later.
//!
//! A required text that is missing is empty in the draft; its absence has been noted.

use std::{collections::BTreeMap, ops::Range};

use toml::{Spanned, de::DeValue};

use crate::{
    definition::{
        DimensionDefinition, ExpireDefinition, FieldType, Format, MetricDefinition, Ordered, SourceDefinition,
        SourceKind, TimeUnit,
    },
    diagnostic::{Problem, Problems},
    reading_table::{read_kind, read_row_expire, read_update, refuse_foreign_keys},
    time::Length,
    toml_table::{At, Table, length_of, text_of},
};

/// Where the parts of a definition stand, by path: `time`, `fields.added`, `dimensions[2]`.
#[derive(Debug, Default)]
pub(crate) struct Places {
    whole: Range<usize>,
    /// A field's type could not be read: expressions over the fields would be wrong for that reason alone.
    pub(crate) untyped: bool,
    parts: BTreeMap<String, Range<usize>>,
}

impl Places {
    /// Of the definition whose name stands there.
    pub(crate) fn at(name: &At<String>) -> Self {
        Self { whole: name.span.clone(), ..Self::default() }
    }

    pub(crate) fn of(&self, path: &str) -> Range<usize> {
        self.parts.get(path).unwrap_or(&self.whole).clone()
    }

    pub(crate) fn keep<T>(&mut self, path: impl Into<String>, at: At<T>) -> T {
        self.parts.insert(path.into(), at.span);
        at.value
    }
}

/// A definition as read, before its expressions are compiled.
#[derive(Debug)]
pub(crate) struct Draft<D> {
    pub(crate) name: At<String>,
    pub(crate) definition: D,
    pub(crate) places: Places,
}

const FORMATS: &str = "this version reads json, csv and text";

pub(crate) fn read_source(
    name: At<String>,
    mut table: Table<'_, '_>,
    problems: &mut Problems<'_>,
) -> Draft<SourceDefinition> {
    let mut places = Places::at(&name);
    check_name("source", &name, problems);
    let t = &mut table;
    let description = t.text("description", problems).map(|text| text.value);
    let kind = read_kind(t, problems);
    let table_name = t.text("table", problems).map(|name| places.keep("table", name));
    let topic = t.text("topic", problems).map(|topic| places.keep("topic", topic));
    let format = read_format(t, kind, problems);
    let csv = read_csv(t, format, &mut places, problems);
    let help = "name the field or SQL expression that gives the event time, as in time = \"ts\"";
    let time = t.required("time", help, problems).map(|time| places.keep("time", time)).unwrap_or_default();
    let time_unit = t.text("time_unit", problems).and_then(|unit| read_unit(unit, problems));
    let time_zone = t.text("time_zone", problems).map(|zone| places.keep("time_zone", zone));
    let id = t.text("id", problems).map(|id| places.keep("id", id));
    let order = t.text("order", problems).map(|order| places.keep("order", order));
    let dedup_window = t.length("dedup_window", problems).map(|window| window.value);
    let fields = t.entries("fields", problems).into_iter().map(|(name, kind)| {
        let kind = read_type(&name.value, kind, problems).unwrap_or_else(|| {
            places.untyped = true;
            FieldType::String
        });
        places.keep(format!("fields.{}", name.value), At::new((), name.span));
        (name.value, kind)
    });
    let fields = Ordered(fields.collect());
    let derive = t.entries("derive", problems).into_iter().map(|(name, sql)| {
        places.keep(format!("derive.{}", name.value), At::new((), name.span));
        let sql = places.keep(format!("derive.{}.sql", name.value), sql);
        (name.value, sql)
    });
    let derive = Ordered(derive.collect());
    let update = read_update(t, &mut places, problems);
    let expire = read_row_expire(t, &mut places, problems);
    refuse_foreign_keys(t, kind, problems);
    table.finish(problems);
    let Csv { delimiter, header, columns } = csv;
    let definition = SourceDefinition {
        description,
        kind,
        table: table_name,
        topic,
        format: format.unwrap_or(if kind == SourceKind::Log { Format::Json } else { Format::Row }),
        delimiter,
        header,
        columns,
        time,
        time_unit,
        time_zone,
        id,
        order,
        dedup_window,
        fields,
        derive,
        update,
        expire,
    };
    Draft { name, definition, places }
}

pub(crate) fn check_name(what: &str, name: &At<String>, problems: &mut Problems<'_>) {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.value.is_empty() || name.value.len() > 100 || !name.value.chars().all(legal) {
        let help = "use up to 100 letters, digits, _ and -";
        problems.add(name.span.clone(), Problem::new(format!("{what} name {:?} is not usable", name.value), help));
    }
}

fn read_format(table: &mut Table<'_, '_>, kind: SourceKind, problems: &mut Problems<'_>) -> Option<Format> {
    if kind == SourceKind::Cassandra {
        // That there is none is checked with the other keys that mean nothing.
        return table.text("format", problems).and(None);
    }
    let text = table.required("format", FORMATS, problems)?;
    match text.value.as_str() {
        "json" => Some(Format::Json),
        "csv" => Some(Format::Csv),
        "text" => Some(Format::Text),
        known @ ("avro" | "protobuf") => {
            problems.add(text.span, Problem::new(format!("format {known} is not read by this version"), FORMATS));
            None
        }
        other => {
            problems.add(text.span, Problem::new(format!("format {other:?} is not known"), FORMATS));
            None
        }
    }
}

struct Csv {
    delimiter: Option<char>,
    header: Option<bool>,
    columns: Option<Vec<String>>,
}

fn read_csv(
    table: &mut Table<'_, '_>,
    format: Option<Format>,
    places: &mut Places,
    problems: &mut Problems<'_>,
) -> Csv {
    let delimiter = table.text("delimiter", problems);
    let header = table.flag("header", problems);
    let columns = table.texts("columns", problems);
    if let Some(other @ (Format::Json | Format::Text)) = format {
        let spans = [
            ("delimiter", delimiter.as_ref().map(|at| at.span.clone())),
            ("header", header.as_ref().map(|at| at.span.clone())),
            ("columns", columns.as_ref().and_then(|list| list.first()).map(|at| at.span.clone())),
        ];
        for (key, span) in spans {
            let Some(span) = span else { continue };
            let message =
                format!("`{key}` has no meaning for format {}", if other == Format::Json { "json" } else { "text" });
            problems.add(span, Problem::new(message, "leave it out, or write format = \"csv\""));
        }
    }
    let delimiter = delimiter.and_then(|at| {
        let mut chars = at.value.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.is_ascii() && !matches!(c, '"' | '\n' | '\r') => Some(c),
            _ => {
                problems
                    .add(at.span, Problem::new("`delimiter` must be one ASCII character", "as in \";\" or \"\\t\""));
                None
            }
        }
    });
    let columns = columns.map(|columns| {
        let keep = |(i, column): (usize, At<String>)| places.keep(format!("columns[{i}]"), column);
        columns.into_iter().enumerate().map(keep).collect()
    });
    Csv { delimiter, header: header.map(|at| at.value), columns }
}

fn read_unit(unit: At<String>, problems: &mut Problems<'_>) -> Option<TimeUnit> {
    match unit.value.as_str() {
        "s" => Some(TimeUnit::Seconds),
        "ms" => Some(TimeUnit::Millis),
        "us" => Some(TimeUnit::Micros),
        "ns" => Some(TimeUnit::Nanos),
        other => {
            problems.add(
                unit.span,
                Problem::new(format!("time_unit {other:?} is not known"), "units are s, ms, us and ns"),
            );
            None
        }
    }
}

fn read_type(field: &str, kind: At<String>, problems: &mut Problems<'_>) -> Option<FieldType> {
    let parsed = FieldType::parse(&kind.value);
    if parsed.is_none() {
        let message = format!("field {field} has the unknown type {:?}", kind.value);
        problems.add(kind.span, Problem::new(message, format!("types are {}", FieldType::FORMS)));
    }
    parsed
}

pub(crate) fn read_metric(
    name: At<String>,
    mut table: Table<'_, '_>,
    problems: &mut Problems<'_>,
) -> Draft<MetricDefinition> {
    let mut places = Places::at(&name);
    check_name("metric", &name, problems);
    let t = &mut table;
    let description = t.text("description", problems).map(|text| text.value);
    let source = t.required("source", "name the source that it is over", problems);
    let source = source.map(|source| places.keep("source", source)).unwrap_or_default();
    let filter = t.text("where", problems).map(|filter| places.keep("where", filter));
    let value = t.text("value", problems).map(|value| places.keep("value", value));
    let dimensions = t.list("dimensions", problems).unwrap_or_default().into_iter().enumerate();
    let dimensions = dimensions.filter_map(|(i, item)| {
        let at = read_dimension(item, problems)?;
        Some(places.keep(format!("dimensions[{i}]"), at))
    });
    let dimensions = dimensions.collect();
    let groupings = read_groupings(t, &mut places, problems);
    let aggregates = read_aggregates(t, &mut places, problems);
    let help = "say how wide the finest buckets are, as in grain = \"10s\"";
    let grain = t.required("grain", help, problems).and_then(|text| length_of(text, problems));
    let grain = grain.map(|grain| places.keep("grain", grain)).unwrap_or(Length(0));
    let rollups = t.texts("rollups", problems).unwrap_or_default().into_iter().enumerate();
    let rollups =
        rollups.filter_map(|(i, text)| Some(places.keep(format!("rollups[{i}]"), length_of(text, problems)?)));
    let rollups = rollups.collect();
    let shards = t.number("shards", problems).map(|shards| places.keep("shards", shards));
    let max_series = t.number("max_series", problems).map(|most| most.value);
    let retention = read_retention(t, "", &mut places, problems);
    let rules = t.tables("expire", problems).into_iter().enumerate();
    let expire = rules.map(|(i, rule)| read_expire(rule, i, &mut places, problems)).collect();
    table.finish(problems);
    let definition = MetricDefinition {
        description,
        source,
        filter,
        value,
        dimensions,
        groupings,
        aggregates,
        grain,
        rollups,
        shards,
        max_series,
        retention,
        expire,
    };
    Draft { name, definition, places }
}

/// How long buckets of each width are kept; `path` is what the table stands in.
fn read_retention(
    table: &mut Table<'_, '_>,
    path: &str,
    places: &mut Places,
    problems: &mut Problems<'_>,
) -> BTreeMap<Length, Length> {
    let mut retention = BTreeMap::new();
    for (width, kept) in table.entries("retention", problems) {
        if let (Some(width), Some(kept)) = (length_of(width, problems), length_of(kept, problems)) {
            let width = places.keep(format!("{path}retention.{}", width.value), width);
            retention.insert(width, places.keep(format!("{path}retention.{width}.kept"), kept));
        }
    }
    retention
}

fn read_expire(
    mut table: Table<'_, '_>,
    at: usize,
    places: &mut Places,
    problems: &mut Problems<'_>,
) -> ExpireDefinition {
    let path = format!("expire[{at}].");
    places.keep(format!("expire[{at}]"), At::new((), table.span.clone()));
    let help = "say which series by their dimensions, as in where = \"tier = 'free'\"";
    let filter = table.required("where", help, problems).map(|filter| places.keep(format!("{path}where"), filter));
    let after = table.length("after", problems).map(|after| places.keep(format!("{path}after"), after));
    let retention = read_retention(&mut table, &path, places, problems);
    if table.has("after") == table.has("retention") {
        let message = format!("{} needs either `after` or `retention`", table.name);
        let help = "`after` is for all rollups, as in after = \"7d\"; a table `retention` says it by rollup";
        problems.add(table.span.clone(), Problem::new(message, help));
    }
    table.finish(problems);
    ExpireDefinition { filter: filter.unwrap_or_default(), after, retention }
}

fn read_dimension(item: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Option<At<DimensionDefinition>> {
    let DeValue::Table(entries) = item.get_ref() else {
        let text = text_of("dimensions", item, problems)?;
        return text.try_map(|text| Some(DimensionDefinition::Text(text)));
    };
    let mut table = Table::new("the dimension".to_owned(), item.span(), entries);
    let name = table.required("name", "as in { name = \"hour\", sql = \"...\" }", problems);
    let sql = table.required("sql", "as in { name = \"hour\", sql = \"...\" }", problems);
    table.finish(problems);
    let definition = DimensionDefinition::Named { name: name?.value, sql: sql?.value };
    Some(At::new(definition, item.span()))
}

fn read_groupings(table: &mut Table<'_, '_>, places: &mut Places, problems: &mut Problems<'_>) -> Vec<Vec<String>> {
    let mut groupings = Vec::new();
    for (i, item) in table.list("groupings", problems).unwrap_or_default().into_iter().enumerate() {
        let DeValue::Array(names) = item.get_ref() else {
            let help = "groupings is a list of lists: [[\"a\"], [\"a\", \"b\"]]";
            problems.add(item.span(), Problem::new("a grouping is a list of dimensions", help));
            continue;
        };
        let names = names.iter().filter_map(|name| text_of("groupings", name, problems));
        let names = names.map(|name| name.value).collect();
        groupings.push(places.keep(format!("groupings[{i}]"), At::new(names, item.span())));
    }
    groupings
}

fn read_aggregates(table: &mut Table<'_, '_>, places: &mut Places, problems: &mut Problems<'_>) -> Vec<String> {
    const HELP: &str = "as in aggregates = [\"count\", \"sum\"]";
    let missing = !table.has("aggregates");
    let aggregates = table.texts("aggregates", problems);
    if missing || aggregates.as_ref().is_some_and(Vec::is_empty) {
        problems.add(table.span.clone(), Problem::new(format!("{} has no `aggregates`", table.name), HELP));
    }
    let keep = |(i, text): (usize, At<String>)| places.keep(format!("aggregates[{i}]"), text);
    aggregates.unwrap_or_default().into_iter().enumerate().map(keep).collect()
}
