//! The declared fields of one CSV line.

use std::borrow::Cow;

/// How a line is laid out.
#[derive(Debug)]
pub(super) struct Line {
    delimiter: u8,
    /// Per column of the line, the declared field that it is.
    fields: Vec<Option<usize>>,
}

impl Line {
    pub(super) fn new(delimiter: u8, columns: &[String], names: &[String]) -> Self {
        let fields = columns.iter().map(|column| names.iter().position(|name| name == column)).collect();
        Self { delimiter, fields }
    }

    /// Puts the texts of the declared fields into `found`.
    pub(super) fn read<'a>(&self, record: &'a [u8], found: &mut [Option<Cow<'a, str>>]) -> Result<(), String> {
        let record = std::str::from_utf8(record).map_err(|error| format!("the line is not UTF-8: {error}"))?;
        if record.contains(['"', '\n', '\r']) {
            self.read_quoted(record, found)
        } else {
            self.read_plain(record, found)
        }
    }

    /// Without quotes a field is what stands between two delimiters.
    fn read_plain<'a>(&self, record: &'a str, found: &mut [Option<Cow<'a, str>>]) -> Result<(), String> {
        let mut count = 0;
        for text in record.split(char::from(self.delimiter)) {
            self.put(count, Cow::Borrowed(text), found);
            count += 1;
        }
        self.check(count)
    }

    fn read_quoted<'a>(&self, record: &str, found: &mut [Option<Cow<'a, str>>]) -> Result<(), String> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .has_headers(false)
            .flexible(true)
            .from_reader(record.as_bytes());
        let mut lines = reader.records();
        let line = lines.next().transpose().map_err(|error| error.to_string())?.unwrap_or_default();
        for (column, text) in line.iter().enumerate() {
            self.put(column, Cow::Owned(text.to_owned()), found);
        }
        if lines.next().is_some() {
            return Err("the record holds more than one line".to_owned());
        }
        self.check(line.len())
    }

    fn put<'a>(&self, column: usize, text: Cow<'a, str>, found: &mut [Option<Cow<'a, str>>]) {
        let place = self.fields.get(column).copied().flatten().and_then(|field| found.get_mut(field));
        if let Some(place) = place {
            *place = Some(text);
        }
    }

    fn check(&self, count: usize) -> Result<(), String> {
        if count == self.fields.len() {
            return Ok(());
        }
        Err(format!("the line has {count} fields; the source has {}", self.fields.len()))
    }
}
