//! A source definition proposed from a sample of events.
//!
//! # Invariants
//! - What is proposed compiles.
//! - A type is proposed only if every value of the sample can be read as it.

mod column;
mod sample;

use std::fmt::Write as _;

use crate::{
    Catalog, Versions,
    definition::{FieldType, Format, TimeUnit},
    time::format_time,
};
use column::Column;
use sample::Sample;

/// Names that event times usually have, the surest first.
const TIME_NAMES: [&str; 10] =
    ["event_time", "eventtime", "timestamp", "@timestamp", "time", "ts", "datetime", "date", "created_at", "created"];
/// Names that ids of events usually have, the surest first.
const ID_NAMES: [&str; 8] = ["event_id", "eventid", "uuid", "guid", "message_id", "messageid", "request_id", "id"];

/// A commented TOML source definition for the sample: NDJSON, a JSON array, CSV with a header, or lines of text.
///
/// # Errors
/// If the sample holds no event, or nothing in it looks like a time.
pub fn infer(sample: &[u8], name: &str) -> Result<String, String> {
    let name = source_name(name);
    let sample = Sample::read(sample)?;
    let text = match sample.format {
        Format::Text => propose_text(&sample, &name)?,
        Format::Json | Format::Csv | Format::Row => propose_fields(&sample, &name)?,
    };
    let catalog = Catalog::compile(&[("proposal".to_owned(), text.clone())], &Versions::default())
        .map_err(|found| format!("no definition could be found for this sample: {}", found[0].message))?;
    let source = catalog.sources.get(&name).ok_or("no definition could be found for this sample")?;
    let read = source.split(&sample.body)?;
    let good = read.iter().filter(|record| record.is_ok()).count();
    let head = format!(
        "# Proposed by `lamina infer`: {good} of {} events of the sample can be read with it.\n\
         # Check the types and the event time, and take out the fields that no metric uses.\n",
        read.len()
    );
    Ok(head + &text)
}

fn source_name(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    let name: String = name.chars().take(100).map(legal).collect();
    if name.is_empty() { "events".to_owned() } else { name }
}

fn propose_fields(sample: &Sample, name: &str) -> Result<String, String> {
    let (time, unit) = event_time(&sample.columns).ok_or(
        "nothing in the sample looks like an event time: no ISO 8601 text and no number that counts from 1970",
    )?;
    let mut out = format!("[source.{name}]\ntopic = \"{name}\"\n");
    match (sample.format, sample.delimiter) {
        (Format::Csv, Some(delimiter)) => {
            out.push_str("format = \"csv\"\nheader = true\n");
            if delimiter != b',' {
                let _ = writeln!(out, "delimiter = {}", quote(&char::from(delimiter).to_string()));
            }
        }
        _ => out.push_str("format = \"json\"\n"),
    }
    let _ = writeln!(out, "time = {}{}", quote(&time.name), span_of(time, unit));
    if let Some(unit) = unit {
        let unit = match unit {
            TimeUnit::Seconds => "s",
            TimeUnit::Millis => "ms",
            TimeUnit::Micros => "us",
            TimeUnit::Nanos => "ns",
        };
        let _ = writeln!(out, "time_unit = \"{unit}\"");
    } else if time.without_zone() {
        out.push_str("# time_zone = \"America/New_York\"  # its texts name no zone and are read as UTC\n");
    }
    match event_id(&sample.columns, sample.rows) {
        Some(id) => {
            let _ = writeln!(out, "id = {}  # different in every event of the sample", quote(&id.name));
        }
        None => out.push_str("# id = \"...\"  # the field by which a repeated event is known, if there is one\n"),
    }
    let _ = writeln!(out, "\n[source.{name}.fields]");
    for column in &sample.columns {
        let kind = column.kind().unwrap_or(FieldType::String);
        let _ = writeln!(out, "{} = \"{kind}\"{}", quote(&column.name), comment(column));
    }
    for (left_out, why) in &sample.left_out {
        let _ = writeln!(out, "# {} is left out: {why}", plain(left_out));
    }
    out.push_str(&example_metric(name, &sample.columns));
    Ok(out)
}

/// What a first metric could look like, as a comment.
fn example_metric(name: &str, columns: &[Column]) -> String {
    let number = columns.iter().find(|column| {
        column.kind() == Some(FieldType::Float64) || column.kind() == Some(FieldType::Int64) && column.distinct() > 2
    });
    let dimension = columns.iter().find(|c| c.kind() == Some(FieldType::String) && (2..=50).contains(&c.distinct()));
    let mut out = format!("\n# [metric.{name}_events]\n# source = \"{name}\"\n");
    if let Some(dimension) = dimension {
        let _ = writeln!(out, "# dimensions = [{}]", quote(&dimension.name));
    }
    let aggregates = match number {
        Some(number) => {
            let _ = writeln!(out, "# value = {}", quote(&number.name));
            "\"count\", \"sum\", \"min\", \"max\", \"quantiles\""
        }
        None => "\"count\"",
    };
    let _ = writeln!(out, "# aggregates = [{aggregates}]\n# grain = \"1m\"\n# rollups = [\"1h\", \"1d\"]");
    out
}

/// The column that is most likely the event time, with its unit if it is a number.
fn event_time(columns: &[Column]) -> Option<(&Column, Option<TimeUnit>)> {
    let rank = |column: &Column| {
        let last = column.name.rsplit('.').next().unwrap_or(&column.name).to_lowercase();
        let exact = TIME_NAMES.iter().position(|name| *name == last);
        let similar = ["time", "date", "stamp"].iter().any(|part| last.contains(part)) || last.ends_with("ts");
        exact.unwrap_or(if similar { TIME_NAMES.len() } else { TIME_NAMES.len() + 1 })
    };
    let candidates = columns.iter().enumerate().filter_map(|(place, column)| {
        let depth = column.name.matches('.').count();
        let missing = column.missing();
        match column.kind()? {
            FieldType::Timestamp => Some((missing, 0, rank(column), depth, place, None)),
            FieldType::Date => Some((missing, 2, rank(column), depth, place, None)),
            FieldType::Int64 | FieldType::Float64 if rank(column) <= TIME_NAMES.len() => {
                Some((missing, 1, rank(column), depth, place, Some(column.epoch_unit()?)))
            }
            _ => None,
        }
    });
    let best =
        candidates.min_by_key(|(missing, class, rank, depth, place, _)| (*missing, *class, *rank, *depth, *place));
    best.map(|(.., place, unit)| (&columns[place], unit))
}

fn event_id(columns: &[Column], rows: usize) -> Option<&Column> {
    let rank = |column: &Column| ID_NAMES.iter().position(|name| *name == column.name.to_lowercase());
    let unique = |column: &&Column| {
        let kind = column.kind();
        rows > 1
            && column.distinct() == rows
            && (kind == Some(FieldType::String) || kind == Some(FieldType::Int64))
            && rank(column).is_some()
    };
    columns.iter().filter(unique).min_by_key(|column| rank(column))
}

fn span_of(time: &Column, unit: Option<TimeUnit>) -> String {
    match time.span(unit) {
        Some((first, last)) => format!("  # {} to {} in the sample", format_time(first), format_time(last)),
        None => String::new(),
    }
}

fn comment(column: &Column) -> String {
    match (column.example(), column.missing()) {
        (None, _) => "  # always empty in the sample".to_owned(),
        (Some(example), 0) => format!("  # {}", plain(example)),
        (Some(example), missing) => format!("  # {}; empty in {missing} events", plain(example)),
    }
}

/// Forms of time in lines of text: what takes it out of the line, and its event time from that.
const LINE_TIMES: [(&str, &str); 2] = [
    (r"(\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:?\d{2})?)", "at"),
    (r"\[(\d{2}/[A-Z][a-z]{2}/\d{4}:\d{2}:\d{2}:\d{2} [+-]\d{4})\]", "to_timestamp(at, '%d/%b/%Y:%H:%M:%S %z')"),
];

fn propose_text(sample: &Sample, name: &str) -> Result<String, String> {
    for (pattern, time) in LINE_TIMES {
        let text = format!(
            "[source.{name}]\ntopic = \"{name}\"\nformat = \"text\"\ntime = \"{time}\"\n\n\
             [source.{name}.derive]\n# Take further parts of the line in the same way.\n\
             at = '''regexp_match(line, '{pattern}')[1]'''\n\n\
             # [metric.{name}_lines]\n# source = \"{name}\"\n# aggregates = [\"count\"]\n# grain = \"1m\"\n"
        );
        let files = [("proposal".to_owned(), text.clone())];
        let Ok(catalog) = Catalog::compile(&files, &Versions::default()) else { continue };
        let Some(source) = catalog.sources.get(name) else { continue };
        let read = source.split(&sample.body)?;
        if read.iter().filter(|line| line.is_ok()).count() * 2 >= read.len() {
            return Ok(text);
        }
    }
    Err("no time like 2015-09-12T00:46:58Z or [12/Sep/2015:00:46:58 +0000] was found in most of the lines".to_owned())
}

/// A TOML text in quotes, on one line.
fn quote(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.replace('\u{7f}', "\\u007F")
}

/// A text for a comment: on one line and not long.
fn plain(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests;
