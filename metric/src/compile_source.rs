//! A source's definition to a [`Source`]: derived columns in the order in which they can be computed, event time, id.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono_tz::Tz;

use crate::{
    compile_table::compile_table,
    decode::{Decoder, arrow_type},
    definition::{FieldType, Format, SourceDefinition, SourceKind},
    diagnostic::{Problem, Problems, nearest},
    expression::{Expression, PlanError, Planner},
    reading::{Draft, Places},
    source::{Derived, Source},
    time::SECOND,
};

/// Columns that every source has.
pub(crate) const OWN_COLUMNS: [&str; 5] = ["_partition", "_offset", "_time", "_id", "_order"];
const HOUR: i64 = 3_600 * SECOND;
const LINE: &str = "line";

/// Notes every problem; gives a source only if there is none.
pub(crate) fn compile_source(
    draft: Draft<SourceDefinition>,
    planner: &Planner,
    problems: &mut Problems<'_>,
    before: usize,
) -> Option<Source> {
    let Draft { name, mut definition, places } = draft;
    if definition.format == Format::Text && definition.fields.is_empty() {
        definition.fields.0.push((LINE.to_owned(), FieldType::String));
    }
    let is_table = definition.kind == SourceKind::Cassandra;
    let named = definition.topic.clone().unwrap_or_else(|| name.value.clone());
    let topic = if is_table { String::new() } else { named };
    if !is_table {
        check_topic(&topic, &places, problems);
    }
    let zone = definition.time_zone.as_ref().and_then(|zone| find_zone(zone, &places, problems));
    check_fields(&definition, &places, problems);
    let decoder = match Decoder::new(&definition, zone) {
        Ok(decoder) => Some(decoder),
        Err(error) => {
            problems.add(places.of(&format!("fields.{}", error.name)), Problem::plain(error.message));
            None
        }
    };
    if places.untyped || definition.fields.is_empty() {
        return None;
    }
    let fields = definition.fields.iter().map(|(name, kind)| Field::new(name, arrow_type(*kind), true));
    let mut columns: Vec<Field> = fields.collect();
    let derived = plan_derived(&definition, &mut columns, planner, &places, problems);
    let working = Arc::new(Schema::new(columns));
    // With a derived column missing, every use of it would be a second complaint about the same thing.
    if derived.len() < definition.derive.0.len() {
        return None;
    }
    let time = plan_time(&definition, &working, planner, &places, problems);
    let id = definition.id.as_ref().map(|id| plan_id(id, &working, planner, &places, problems));
    let order = definition.order.as_ref().map(|order| find_order(order, &working, &places, problems));
    let table = is_table.then(|| compile_table(&definition, planner, &places, problems)).flatten();
    if problems.count() > before {
        return None;
    }
    let (id, order) = (id.flatten(), order.flatten());
    let schema = source_schema(&definition, &working, order);
    let dedup_window = definition.dedup_window.map_or(HOUR, |window| window.0);
    let parts = crate::source::Parts { decoder: decoder?, derived, working, time: time?, id, order, zone };
    Some(Source { name: name.value, topic, table, definition, dedup_window, schema, parts })
}

fn check_topic(topic: &str, places: &Places, problems: &mut Problems<'_>) {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.len() > 249 || !topic.chars().all(legal) || topic.chars().all(|c| c == '.') {
        let help = "use up to 249 letters, digits, dots, _ and -";
        problems.add(places.of("topic"), Problem::new(format!("topic {topic:?} is not a topic name"), help));
    }
}

fn find_zone(zone: &str, places: &Places, problems: &mut Problems<'_>) -> Option<Tz> {
    if let Ok(zone) = zone.parse() {
        return Some(zone);
    }
    let help = match nearest(zone, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())) {
        Some(near) => format!("did you mean {near}?"),
        None => "write a name of the tz database, as in America/New_York".to_owned(),
    };
    problems.add(places.of("time_zone"), Problem::new(format!("time_zone {zone:?} is not known"), help));
    None
}

fn check_fields(definition: &SourceDefinition, places: &Places, problems: &mut Problems<'_>) {
    if definition.fields.is_empty() {
        let help = "list the fields that metrics use: [source.NAME.fields] with name = \"type\"";
        problems.add(places.of(""), Problem::new("the source has no fields", help));
    }
    let fields = definition.fields.iter().map(|(name, _)| (name, "fields"));
    let derived = definition.derive.iter().map(|(name, _)| (name, "derive"));
    for (name, table) in fields.chain(derived) {
        if OWN_COLUMNS.contains(&name) {
            let place = places.of(&format!("{table}.{name}"));
            problems
                .add(place, Problem::new(format!("{name} is a column that every source has"), "choose another name"));
        }
        if table == "derive" && definition.fields.get(name).is_some() {
            let place = places.of(&format!("derive.{name}"));
            problems.add(place, Problem::new(format!("{name} is a field already"), "choose another name"));
        }
    }
    if definition.format == Format::Text {
        for (name, kind) in definition.fields.iter().filter(|(name, kind)| *name != LINE || **kind != FieldType::String)
        {
            let place = places.of(&format!("fields.{name}"));
            let message = format!("text has one field, line of type string, not {name} of type {kind}");
            problems
                .add(place, Problem::new(message, "take parts of the line in derive, with regexp_match for example"));
        }
    }
    let Some(columns) = &definition.columns else { return };
    for (i, column) in columns.iter().enumerate() {
        if columns[..i].contains(column) {
            problems
                .add(places.of(&format!("columns[{i}]")), Problem::plain(format!("column {column} is listed twice")));
        }
    }
    for (name, _) in definition.fields.iter().filter(|(name, _)| !columns.iter().any(|column| column == name)) {
        let place = places.of(&format!("fields.{name}"));
        let help = "columns lists the fields of a line in their order, declared or not";
        problems.add(place, Problem::new(format!("field {name} is not among the columns"), help));
    }
}

/// Plans derived columns as soon as the columns that they use are there, until no more can be.
fn plan_derived(
    definition: &SourceDefinition,
    columns: &mut Vec<Field>,
    planner: &Planner,
    places: &Places,
    problems: &mut Problems<'_>,
) -> Vec<Derived> {
    let mut waiting: Vec<(&str, &str)> = definition.derive.iter().map(|(name, sql)| (name, sql.as_str())).collect();
    let mut planned = Vec::new();
    loop {
        let mut errors = Vec::new();
        let before = waiting.len();
        let schema = Schema::new(columns.clone());
        let mut ready = Vec::new();
        waiting.retain(|(name, sql)| match planner.plan(sql, &schema) {
            Ok(expression) => {
                ready.push((*name, expression));
                false
            }
            Err(error) => {
                errors.push((*name, error));
                true
            }
        });
        for (name, expression) in ready {
            columns.push(Field::new(name, expression.data_type().clone(), true));
            let reads: SchemaRef = Arc::new(schema.clone());
            planned.push(Derived { name: name.to_owned(), expression, reads });
        }
        if waiting.is_empty() {
            return planned;
        }
        if waiting.len() == before {
            note_unplanned(&waiting, errors, places, problems);
            return planned;
        }
    }
}

/// Says what is wrong with the columns that cannot be planned; those that merely use such a column are passed over.
fn note_unplanned(
    waiting: &[(&str, &str)],
    errors: Vec<(&str, PlanError)>,
    places: &Places,
    problems: &mut Problems<'_>,
) {
    let is_waiting = |column: &str| waiting.iter().any(|(name, _)| *name == column);
    let (uses, own): (Vec<_>, Vec<_>) = errors
        .into_iter()
        .partition(|(_, error)| matches!(error, PlanError::NoColumn { name, .. } if is_waiting(name)));
    if own.is_empty() {
        let names: Vec<&str> = uses.iter().map(|(name, _)| *name).collect();
        let first = names.first().copied().unwrap_or_default();
        let message = format!("derived columns need one another in a circle: {}", names.join(", "));
        problems
            .add(places.of(&format!("derive.{first}")), Problem::new(message, "define one of them from fields alone"));
    }
    for (name, error) in own {
        problems.add(places.of(&format!("derive.{name}.sql")), error.into_problem());
    }
}

fn plan_time(
    definition: &SourceDefinition,
    columns: &Schema,
    planner: &Planner,
    places: &Places,
    problems: &mut Problems<'_>,
) -> Option<Expression> {
    if definition.time.is_empty() {
        return None;
    }
    let expression = match planner.resolve(&definition.time, columns) {
        Ok(expression) => expression,
        Err(error) => {
            problems.add(places.of("time"), error.into_problem());
            return None;
        }
    };
    let problem = match expression.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Utf8 => return Some(expression),
        DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) if definition.time_unit.is_some() => {
            return Some(expression);
        }
        DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) => {
            Problem::new("`time` is a number", "say what it counts: time_unit = \"s\", \"ms\", \"us\" or \"ns\"")
        }
        other => {
            Problem::new(format!("`time` is of type {other}"), "it must be a timestamp, a date, a text or a number")
        }
    };
    problems.add(places.of("time"), problem);
    None
}

fn plan_id(
    id: &str,
    columns: &Schema,
    planner: &Planner,
    places: &Places,
    problems: &mut Problems<'_>,
) -> Option<Expression> {
    match planner.resolve(id, columns) {
        Ok(expression) if matches!(expression.data_type(), DataType::List(_)) => {
            problems.add(places.of("id"), Problem::new("`id` is a list", "take one item of it, as in x[1]"));
            None
        }
        Ok(expression) => Some(expression),
        Err(error) => {
            problems.add(places.of("id"), error.into_problem());
            None
        }
    }
}

fn find_order(order: &str, columns: &Schema, places: &Places, problems: &mut Problems<'_>) -> Option<usize> {
    let found = columns.index_of(order).ok();
    let sortable = found.filter(|at| !matches!(columns.field(*at).data_type(), DataType::List(_)));
    if sortable.is_none() {
        let help = "it must be a field or derived column of one value; put an expression into derive";
        problems
            .add(places.of("order"), Problem::new(format!("`order` {order:?} is not a column of the source"), help));
    }
    sortable
}

/// The columns of decoded events. Derived columns stand in the order in which they were written.
fn source_schema(definition: &SourceDefinition, working: &Schema, order: Option<usize>) -> SchemaRef {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    let order_type = order.map_or(DataType::Null, |at| working.field(at).data_type().clone());
    let mut fields = vec![
        Field::new("_partition", DataType::UInt32, false),
        Field::new("_offset", DataType::UInt64, false),
        Field::new("_time", micros, false),
        Field::new("_id", DataType::Utf8, true),
        Field::new("_order", order_type, true),
    ];
    let names = definition.fields.names().into_iter().chain(definition.derive.names());
    fields.extend(names.filter_map(|name| working.field_with_name(&name).ok().cloned()));
    Arc::new(Schema::new(fields))
}
