//! The formats that answers are written in, and which of them a client takes.

use axum::http::{HeaderMap, StatusCode, header};

use crate::{
    problem::Problem,
    query::encode::{Body, Frame, Line},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    /// A line for each point, then one that says that it was the last.
    Ndjson,
    Csv,
    /// Arrow IPC stream.
    Arrow,
}

/// Preferred from the first to the last where a client takes several.
const ALL: [Format; 4] = [Format::Json, Format::Ndjson, Format::Csv, Format::Arrow];
/// Longest `accept` header that is looked at.
const MAX_ACCEPT: usize = 1_024;

impl Format {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            other => other.media_type(),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
        }
    }

    /// What `accept` prefers; JSON if it says nothing.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let texts: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let text = texts.join(",");
        if text.trim().is_empty() {
            return Ok(Self::Json);
        }
        let ranges: Vec<Range<'_>> = match text.len() {
            0..=MAX_ACCEPT => text.split(',').filter_map(Range::parse).collect(),
            _ => Vec::new(),
        };
        let weighed = ALL.iter().map(|&format| (format, weight(format, &ranges)));
        let best = weighed.filter(|(_, weight)| *weight > 0).rev().max_by_key(|(_, weight)| *weight);
        best.map(|(format, _)| format).ok_or_else(|| {
            let known: Vec<&str> = ALL.iter().map(|format| format.media_type()).collect();
            let detail = format!("`accept` takes none of {}", known.join(", "));
            Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail).with("available", known)
        })
    }
}

/// A media range of `accept`.
struct Range<'a> {
    main: &'a str,
    sub: &'a str,
    /// Thousandths.
    weight: u32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (main, sub) = parts.next()?.split_once('/')?;
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.map_or(Some(1.0), |weight| weight.parse::<f32>().ok());
        let weight = weight.filter(|weight| (0.0..=1.0).contains(weight))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        let weight = (weight * 1000.0).round() as u32;
        Some(Self { main, sub, weight })
    }

    /// How exactly it names the format; `None` if it does not.
    fn names(&self, format: Format) -> Option<u32> {
        let (main, sub) = format.media_type().split_once('/')?;
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        // Both are in use, and neither is registered.
        let alias = format == Format::Ndjson && (same(self.sub, "ndjson") || same(self.sub, "jsonl"));
        match (same(self.main, main), same(self.sub, sub) || alias) {
            (true, true) => Some(2),
            (true, false) if self.sub == "*" => Some(1),
            (false, _) if self.main == "*" && self.sub == "*" => Some(0),
            _ => None,
        }
    }
}

/// Of the range that names the format most exactly.
fn weight(format: Format, ranges: &[Range<'_>]) -> u32 {
    let named = ranges.iter().filter_map(|range| Some((range.names(format)?, range.weight)));
    named.max().map_or(0, |(_, weight)| weight)
}

/// A line for each point, and a last one with all the rest: an answer without it was cut off.
pub(crate) fn ndjson(body: &Body<'_>) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    for row in body.rows {
        for point in &row.points {
            serde_json::to_writer(&mut bytes, &Line(body, row, point)).map_err(|error| Problem::internal(&error))?;
            bytes.push(b'\n');
        }
    }
    bytes.extend_from_slice(b"{\"$end\":");
    let end = Frame(body, Some(body.points()));
    serde_json::to_writer(&mut bytes, &end).map_err(|error| Problem::internal(&error))?;
    bytes.extend_from_slice(b"}\n");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_of_what_is_named_most_exactly_is_taken() {
        let of = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            Format::of(&headers)
        };
        for (accept, format) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("text/html, application/xhtml+xml, */*;q=0.8", Format::Json),
            ("text/csv", Format::Csv),
            ("Text/CSV; charset=utf-8", Format::Csv),
            ("text/*", Format::Csv),
            ("application/*", Format::Json),
            ("application/json;q=0.5, text/csv;q=0.6", Format::Csv),
            ("application/json, text/csv", Format::Json),
            ("*/*, application/json;q=0", Format::Ndjson),
            ("application/ndjson", Format::Ndjson),
            ("application/x-ndjson", Format::Ndjson),
            ("application/jsonl", Format::Ndjson),
            ("application/vnd.apache.arrow.stream", Format::Arrow),
        ] {
            assert_eq!(of(accept).unwrap(), format, "{accept}");
        }
        for accept in ["text/html", "application/json;q=0", "x", "image/*", "application/json;q=7"] {
            let problem = of(accept).unwrap_err();
            assert!(problem.status == 406 && problem.detail.contains("text/csv"), "{accept}: {problem:?}");
        }
    }
}
