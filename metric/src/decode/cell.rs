//! One value of one record: from its text to its type, without loss.

use std::borrow::Cow;

use chrono_tz::Tz;
use lamina_core::Micros;

use super::number::{Inexact, exact};
use crate::{
    definition::{FieldType, TimeUnit},
    time::{days, floor_seconds, parse_date, parse_timestamp},
};

/// A typed value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// The number times 10 to the power of the type's scale.
    Decimal(i128),
    Time(Micros),
    Date(i32),
    Text(Cow<'a, str>),
}

/// What a raw text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A JSON value as it stands in the record.
    Json,
    /// A CSV field: an empty one is null.
    Text,
    /// A line of text, empty or not.
    Line,
}

/// # Errors
/// Why the value does not fit its type.
pub(crate) fn convert<'a>(
    raw: Option<Cow<'a, str>>,
    kind: Kind,
    wanted: FieldType,
    zone: Option<Tz>,
    unit: Option<TimeUnit>,
) -> Result<Cell<'a>, String> {
    let Some(raw) = raw else { return Ok(Cell::Null) };
    match kind {
        Kind::Line => Ok(Cell::Text(raw)),
        Kind::Text if raw.is_empty() => Ok(Cell::Null),
        Kind::Text if wanted == FieldType::String => Ok(Cell::Text(raw)),
        Kind::Text => from_text(raw.trim_ascii(), wanted, zone, unit),
        Kind::Json => match raw {
            Cow::Borrowed(raw) => from_json(raw, wanted, zone, unit),
            // JSON values are borrowed from the record; an owned one still converts, through its text.
            Cow::Owned(raw) => from_json(&raw, wanted, zone, unit).map(Cell::into_owned),
        },
    }
}

fn from_json<'a>(
    raw: &'a str,
    wanted: FieldType,
    zone: Option<Tz>,
    unit: Option<TimeUnit>,
) -> Result<Cell<'a>, String> {
    match (raw.as_bytes().first(), wanted) {
        (Some(b'n'), _) => Ok(Cell::Null),
        (Some(b't' | b'f'), FieldType::Bool) => Ok(Cell::Bool(raw == "true")),
        (Some(b'"'), FieldType::String) => Ok(Cell::Text(unescape(raw)?)),
        (Some(b'"'), FieldType::Timestamp | FieldType::Date | FieldType::Decimal { .. }) => {
            from_text(&unescape(raw)?, wanted, zone, unit).map(Cell::into_owned)
        }
        (
            Some(b'-' | b'0'..=b'9'),
            FieldType::Int64 | FieldType::Float64 | FieldType::Decimal { .. } | FieldType::Timestamp,
        ) => from_text(raw, wanted, zone, unit),
        (first, wanted) => Err(mismatch(first, raw, wanted)),
    }
}

fn mismatch(first: Option<&u8>, raw: &str, wanted: FieldType) -> String {
    let given = match first {
        Some(b'"') => "text",
        Some(b't' | b'f') => "a bool",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        _ => "a number",
    };
    format!("expected {wanted}, found {given} {}", shorten(raw))
}

/// The text of a JSON string; borrowed unless something is escaped in it.
fn unescape(raw: &str) -> Result<Cow<'_, str>, String> {
    match raw.get(1..raw.len().saturating_sub(1)) {
        Some(inner) if !inner.contains('\\') => Ok(Cow::Borrowed(inner)),
        _ => serde_json::from_str(raw).map(Cow::Owned).map_err(|error| format!("is not a JSON text: {error}")),
    }
}

/// A value of any type but string from its text, without blanks around it.
fn from_text<'a>(text: &str, wanted: FieldType, zone: Option<Tz>, unit: Option<TimeUnit>) -> Result<Cell<'a>, String> {
    let wrong = || format!("expected {wanted}, found {}", shorten(text));
    match wanted {
        FieldType::Int64 => match text.parse() {
            Ok(number) => Ok(Cell::Int(number)),
            Err(_) => {
                let number = exact(text, 0).map_err(|why| inexact(why, text, wanted))?;
                i64::try_from(number).map(Cell::Int).map_err(|_| inexact(Inexact::Size, text, wanted))
            }
        },
        FieldType::Float64 => float(text).map(Cell::Float),
        FieldType::Decimal { precision, scale } => {
            let number = exact(text, scale).map_err(|why| inexact(why, text, wanted))?;
            let fits = number.unsigned_abs() < 10_u128.pow(u32::from(precision));
            fits.then_some(Cell::Decimal(number)).ok_or_else(|| inexact(Inexact::Size, text, wanted))
        }
        FieldType::Bool => match text {
            "true" | "True" | "TRUE" | "1" => Ok(Cell::Bool(true)),
            "false" | "False" | "FALSE" | "0" => Ok(Cell::Bool(false)),
            _ => Err(wrong()),
        },
        FieldType::Timestamp => match parse_timestamp(text, zone) {
            Some(at) => Ok(Cell::Time(at)),
            None => time_number(text, unit).map(Cell::Time),
        },
        FieldType::Date => parse_date(text).map(|date| Cell::Date(days(date))).ok_or_else(wrong),
        FieldType::String => Ok(Cell::Text(Cow::Owned(text.to_owned()))),
    }
}

fn inexact(why: Inexact, text: &str, wanted: FieldType) -> String {
    let text = shorten(text);
    match why {
        Inexact::NotANumber => format!("expected {wanted}, found {text}"),
        Inexact::Fraction => format!("{text} has digits after the point that {wanted} would lose"),
        Inexact::Size => format!("{text} has more digits than {wanted} holds"),
    }
}

fn float(text: &str) -> Result<f64, String> {
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    let number: f64 = text.parse().map_err(|_| format!("expected float64, found {}", shorten(text)))?;
    if !number.is_finite() {
        return Err(format!("{} is not a number that float64 holds", shorten(text)));
    }
    // A fraction is rounded as everybody expects of floats; a whole number is meant exactly.
    if number.abs() >= WHOLE && !text.contains(['.', 'e', 'E']) {
        #[expect(clippy::cast_possible_truncation, reason = "beyond i128 the comparison fails, as it should")]
        let back = number as i128;
        if exact(text, 0) != Ok(back) {
            return Err(format!("{} has more digits than float64 holds; declare a decimal or int64", shorten(text)));
        }
    }
    Ok(number)
}

/// An event time that is a number.
fn time_number(text: &str, unit: Option<TimeUnit>) -> Result<Micros, String> {
    if exact(text, 0) == Err(Inexact::NotANumber) {
        let help = "a time looks like 2015-09-12T00:46:58.771Z";
        return Err(format!("expected timestamp, found {}; {help}", shorten(text)));
    }
    let unit = unit.ok_or_else(|| format!("{} is a number; the source needs a time_unit to read it", shorten(text)))?;
    unit_micros(text, unit).ok_or_else(|| format!("{} is out of range for a time", shorten(text)))
}

/// Microseconds of a number of `unit`, floored.
pub(crate) fn unit_micros(text: &str, unit: TimeUnit) -> Option<Micros> {
    let scale = match unit {
        TimeUnit::Seconds => 6,
        TimeUnit::Millis => 3,
        TimeUnit::Micros => 0,
        TimeUnit::Nanos => -3,
    };
    match exact(text, scale) {
        Ok(micros) => Micros::try_from(micros).ok(),
        // Finer than a microsecond: whole attoseconds or the like are exact, then floored.
        Err(Inexact::Fraction) => match exact(text, scale + 12) {
            Ok(fine) => Micros::try_from(fine.div_euclid(1_000_000_000_000)).ok(),
            Err(_) => floor_seconds(text.parse().ok()?, 10_f64.powi(scale.into())),
        },
        Err(_) => None,
    }
}

fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

impl Cell<'_> {
    fn into_owned<'b>(self) -> Cell<'b> {
        match self {
            Self::Null => Cell::Null,
            Self::Bool(value) => Cell::Bool(value),
            Self::Int(value) => Cell::Int(value),
            Self::Float(value) => Cell::Float(value),
            Self::Decimal(value) => Cell::Decimal(value),
            Self::Time(value) => Cell::Time(value),
            Self::Date(value) => Cell::Date(value),
            Self::Text(value) => Cell::Text(Cow::Owned(value.into_owned())),
        }
    }
}
