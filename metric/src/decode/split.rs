//! A request body or file to log records, before they are decoded.

use serde_json::value::RawValue;

use super::delimiter;
use crate::definition::{Format, SourceDefinition};

/// The payloads of a body's events, in order; for one that cannot be made, why.
///
/// # Errors
/// If the body as a whole is not of the source's format.
pub(crate) fn payloads(definition: &SourceDefinition, body: &[u8]) -> Result<Vec<Result<Vec<u8>, String>>, String> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    match definition.format {
        Format::Json => json(body),
        Format::Csv => delimited(definition, body),
        Format::Row => Err("the source is a table, not a log".to_owned()),
        Format::Text => Ok(lines(body).map(|line| Ok(line.to_vec())).collect()),
    }
}

/// Lines that are not blank, without their ends.
fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = body.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.trim_ascii().is_empty())
}

fn json(body: &[u8]) -> Result<Vec<Result<Vec<u8>, String>>, String> {
    if body.trim_ascii_start().starts_with(b"[") {
        let items: Vec<&RawValue> =
            serde_json::from_slice(body).map_err(|error| format!("the body is not a JSON array: {error}"))?;
        return Ok(items.into_iter().map(|item| Ok(item.get().as_bytes().to_vec())).collect());
    }
    // An object may be spread over lines; then the first line alone is not one.
    let spread = lines(body).next().is_some_and(|first| serde_json::from_slice::<&RawValue>(first).is_err());
    if spread {
        let values: Result<Vec<&RawValue>, _> = serde_json::Deserializer::from_slice(body).into_iter().collect();
        if let Ok(values) = values {
            return Ok(values.into_iter().map(|value| Ok(value.get().as_bytes().to_vec())).collect());
        }
    }
    Ok(lines(body).map(|line| Ok(line.trim_ascii().to_vec())).collect())
}

/// Lines in the order of the source's columns: by the names in the header if there is one, else as they are.
fn delimited(definition: &SourceDefinition, body: &[u8]) -> Result<Vec<Result<Vec<u8>, String>>, String> {
    let columns = definition.columns.clone().unwrap_or_else(|| definition.fields.names());
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter(definition)).has_headers(false).flexible(true).from_reader(body);
    let mut lines = reader.byte_records();
    let mut from: Vec<Option<usize>> = (0..columns.len()).map(Some).collect();
    let mut width = columns.len();
    if definition.header == Some(true) {
        let Some(header) = lines.next() else { return Ok(Vec::new()) };
        let header = header.map_err(|error| format!("the header line cannot be read: {error}"))?;
        from = columns
            .iter()
            .map(|column| header.iter().position(|name| name.trim_ascii() == column.as_bytes()))
            .collect();
        width = header.len();
        if from.iter().all(Option::is_none) {
            let given = header.iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join(", ");
            return Err(format!("the header names none of the columns {}; it begins {given:.60}", columns.join(", ")));
        }
    }
    let mut writer = LineWriter::new(delimiter(definition));
    let payloads = lines.map(|line| {
        let line = line.map_err(|error| error.to_string())?;
        if line.len() != width {
            return Err(format!("the line has {} fields; it should have {width}", line.len()));
        }
        writer.line(from.iter().map(|place| place.and_then(|at| line.get(at)).unwrap_or_default()))
    });
    Ok(payloads.collect())
}

/// Writes CSV lines one by one, with one buffer.
struct LineWriter {
    delimiter: u8,
    core: csv::Writer<Vec<u8>>,
}

impl LineWriter {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, core: Self::writer(delimiter) }
    }

    fn writer(delimiter: u8) -> csv::Writer<Vec<u8>> {
        csv::WriterBuilder::new().delimiter(delimiter).flexible(true).from_writer(Vec::new())
    }

    /// One line without its end.
    fn line<'a>(&mut self, fields: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, String> {
        let start = self.core.get_ref().len();
        self.core.write_record(fields).map_err(|error| error.to_string())?;
        self.core.flush().map_err(|error| error.to_string())?;
        let written = self.core.get_ref().get(start..).unwrap_or_default();
        let line = written.strip_suffix(b"\n").unwrap_or(written).to_vec();
        if self.core.get_ref().len() > Self::KEEP_BYTES {
            self.core = Self::writer(self.delimiter);
        }
        Ok(line)
    }

    const KEEP_BYTES: usize = 1 << 20;
}
