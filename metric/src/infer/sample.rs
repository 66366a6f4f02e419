//! A sample of events, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;

use super::column::Column;
use crate::{compile_source::OWN_COLUMNS, decode::Kind, definition::Format};

/// Events that are looked at.
const MOST_ROWS: usize = 10_000;
/// Fields beyond this are not proposed.
const MOST_FIELDS: usize = 300;
/// Items of an array that become fields.
const MOST_ITEMS: usize = 4;
const MOST_DEPTH: usize = 8;
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) format: Format,
    /// CSV only.
    pub(super) delimiter: Option<u8>,
    pub(super) columns: Vec<Column>,
    pub(super) rows: usize,
    /// Fields that are not proposed, and why.
    pub(super) left_out: Vec<(String, String)>,
    /// What was looked at.
    pub(super) body: Vec<u8>,
}

impl Sample {
    /// # Errors
    /// If there is no event in it.
    pub(super) fn read(sample: &[u8]) -> Result<Self, String> {
        let sample = sample.strip_prefix(b"\xef\xbb\xbf").unwrap_or(sample);
        if sample.trim_ascii().is_empty() {
            return Err("the sample is empty".to_owned());
        }
        if let Some(read) = json(sample) {
            return read;
        }
        if let Some(delimiter) = find_delimiter(sample) {
            return csv(sample, delimiter);
        }
        let body: Vec<u8> = sample.split_inclusive(|b| *b == b'\n').take(MOST_ROWS).flatten().copied().collect();
        Ok(Self { format: Format::Text, delimiter: None, columns: Vec::new(), rows: 0, left_out: Vec::new(), body })
    }
}

/// None if the sample is not JSON.
fn json(sample: &[u8]) -> Option<Result<Sample, String>> {
    let first = sample.trim_ascii_start();
    let values: Vec<&RawValue> = if first.starts_with(b"[") {
        serde_json::from_slice(sample).ok()?
    } else if first.starts_with(b"{") {
        // A sample may end in the middle of an event.
        serde_json::Deserializer::from_slice(sample).into_iter().map_while(Result::ok).take(MOST_ROWS).collect()
    } else {
        return None;
    };
    let objects: Vec<Object<'_>> =
        values.into_iter().take(MOST_ROWS).filter_map(|value| serde_json::from_str(value.get()).ok()).collect();
    Some(if objects.is_empty() { Err("the sample holds no JSON object".to_owned()) } else { Ok(flatten(&objects)) })
}

type Object<'a> = BTreeMap<String, &'a RawValue>;

fn flatten(objects: &[Object<'_>]) -> Sample {
    let mut names: Vec<String> = Vec::new();
    let mut rows: Vec<BTreeMap<String, &str>> = Vec::new();
    let mut notes = Notes::default();
    let mut body = Vec::new();
    for object in objects {
        let mut row = BTreeMap::new();
        for (key, value) in object {
            leaves(key.clone(), key, value, 0, &mut row, &mut notes);
        }
        for name in row.keys().filter(|name| !names.contains(*name)).cloned().collect::<Vec<_>>() {
            if names.len() < MOST_FIELDS {
                names.push(name);
            } else {
                notes.left_out.insert(name, format!("there are more than {MOST_FIELDS} fields"));
            }
        }
        body.extend_from_slice(serde_json::to_string(object).unwrap_or_default().as_bytes());
        body.push(b'\n');
        rows.push(row);
    }
    let Notes { mut left_out, containers } = notes;
    let is_value = |name: &str| rows.iter().any(|row| row.get(name).is_some_and(|text| *text != "null"));
    let both: Vec<&String> = containers.iter().filter(|name| is_value(name) || left_out.contains_key(*name)).collect();
    let mut columns = Vec::new();
    for name in &names {
        if both.iter().any(|outer| *outer == name || lies_inside(name, outer)) {
            left_out
                .entry(name.clone())
                .or_insert_with(|| "it is one value in some events and holds others elsewhere".to_owned());
        } else if !containers.contains(name) {
            let mut column = Column::new(name.clone(), Kind::Json);
            rows.iter().for_each(|row| column.add(row.get(name).copied()));
            columns.push(column);
        }
    }
    finish(Format::Json, None, columns, objects.len(), left_out, body)
}

/// What was met on the way through the events.
#[derive(Default)]
struct Notes {
    /// Fields that are not proposed, and why.
    left_out: BTreeMap<String, String>,
    /// Paths at which an object or array stands in some event.
    containers: BTreeSet<String>,
}

/// Notes the single values below `value`, by path.
fn leaves<'a>(
    path: String,
    key: &str,
    value: &'a RawValue,
    depth: usize,
    row: &mut BTreeMap<String, &'a str>,
    notes: &mut Notes,
) {
    let text = value.get();
    if key.is_empty() || key.contains(['.', '[', ']']) {
        notes.left_out.insert(path, "its name holds a dot or a bracket".to_owned());
        return;
    }
    if depth > MOST_DEPTH {
        notes.left_out.insert(path, "it lies too deep".to_owned());
        return;
    }
    if text.starts_with(['{', '[']) {
        notes.containers.insert(path.clone());
    }
    if text.starts_with('{') {
        let inner: Object<'a> = serde_json::from_str(text).unwrap_or_default();
        for (key, value) in inner {
            leaves(format!("{path}.{key}"), &key, value, depth + 1, row, notes);
        }
    } else if text.starts_with('[') {
        let items: Vec<&'a RawValue> = serde_json::from_str(text).unwrap_or_default();
        if items.len() > MOST_ITEMS {
            notes
                .left_out
                .insert(path, format!("it is an array of {} items; name one of them as in \"a[0]\"", items.len()));
            return;
        }
        for (i, item) in items.into_iter().enumerate() {
            leaves(format!("{path}[{i}]"), key, item, depth + 1, row, notes);
        }
    } else {
        row.insert(path, text);
    }
}

fn lies_inside(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with(['.', '[']))
}

/// The delimiter that the first lines have in common, if the first line looks like names.
fn find_delimiter(sample: &[u8]) -> Option<u8> {
    let counts = |delimiter: u8| {
        let mut reader =
            csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(sample);
        let lines: Vec<csv::ByteRecord> = reader.byte_records().take(20).filter_map(Result::ok).collect();
        let width = lines.first()?.len();
        let names = lines.first()?.iter().all(|name| {
            std::str::from_utf8(name).is_ok_and(|name| !name.trim().is_empty() && name.trim().parse::<f64>().is_err())
        });
        // The last line of a sample may be cut off.
        let whole = lines.iter().take(lines.len().max(2) - 1).all(|line| line.len() == width);
        (width > 1 && names && whole && lines.len() > 1).then_some(width)
    };
    let found = DELIMITERS.into_iter().filter_map(|delimiter| Some((counts(delimiter)?, delimiter)));
    found.max_by_key(|(width, _)| *width).map(|(_, delimiter)| delimiter)
}

fn csv(sample: &[u8], delimiter: u8) -> Result<Sample, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(sample);
    let header = reader.headers().map_err(|error| format!("the header line cannot be read: {error}"))?.clone();
    let mut left_out = BTreeMap::new();
    let mut columns: Vec<(usize, Column)> = Vec::new();
    for (place, name) in header.iter().map(str::trim).enumerate() {
        if columns.iter().any(|(_, column)| column.name == name) {
            left_out.insert(name.to_owned(), "the header names it twice; the first one is meant".to_owned());
        } else if columns.len() < MOST_FIELDS {
            columns.push((place, Column::new(name.to_owned(), Kind::Text)));
        } else {
            left_out.insert(name.to_owned(), format!("there are more than {MOST_FIELDS} fields"));
        }
    }
    let mut rows = 0;
    // The last line of a sample may be cut off: what counts ends after the last whole one.
    let mut end = 0;
    let mut line = csv::StringRecord::new();
    while rows < MOST_ROWS {
        match reader.read_record(&mut line) {
            Ok(true) if line.len() == header.len() => {
                columns.iter_mut().for_each(|(place, column)| column.add(line.get(*place)));
                rows += 1;
                end = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX).min(sample.len());
            }
            Ok(true) => {}
            Ok(false) => break,
            Err(_) if reader.is_done() => break,
            Err(_) => {}
        }
    }
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    if rows == 0 {
        return Err("the sample holds no line after its header".to_owned());
    }
    Ok(finish(Format::Csv, Some(delimiter), columns, rows, left_out, sample[..end].to_vec()))
}

/// Leaves out what cannot be declared.
fn finish(
    format: Format,
    delimiter: Option<u8>,
    mut columns: Vec<Column>,
    rows: usize,
    mut left_out: BTreeMap<String, String>,
    body: Vec<u8>,
) -> Sample {
    columns.retain(|column| {
        let why = if OWN_COLUMNS.contains(&column.name.as_str()) {
            "every source has a column of that name"
        } else if column.kind().is_none() {
            "its values are of several types"
        } else {
            return true;
        };
        left_out.insert(column.name.clone(), why.to_owned());
        false
    });
    Sample { format, delimiter, columns, rows, left_out: left_out.into_iter().collect(), body }
}
