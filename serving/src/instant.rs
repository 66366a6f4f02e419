//! Instants as clients write and read them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use lamina_core::Micros;

use crate::query::calendar::{EARLIEST, LATEST};

/// RFC 3339 (with an offset) or Unix milliseconds.
pub(crate) fn parse(text: &str) -> Option<Micros> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let at = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        text.parse::<Micros>().ok()?.checked_mul(1_000)?
    } else {
        // In a query string an unescaped `+` of the offset arrives as a space.
        let spaced = text.len() > 6 && text.is_char_boundary(text.len() - 6) && text[text.len() - 6..].starts_with(' ');
        let text = if spaced { &format!("{}+{}", &text[..text.len() - 6], &text[text.len() - 5..]) } else { text };
        DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros()
    };
    (EARLIEST..=LATEST).contains(&at).then_some(at)
}

/// RFC 3339 in UTC; an instant beyond the calendar as its microseconds.
pub(crate) fn format(at: Micros) -> String {
    DateTime::from_timestamp_micros(at)
        .map_or_else(|| at.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// `500ms`, `5s`, `1m`, `0`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => number,
        "s" => number.checked_mul(1_000)?,
        "m" => number.checked_mul(60_000)?,
        "" if number == 0 => 0,
        _ => return None,
    };
    Some(Duration::from_millis(millis))
}

/// Whole milliseconds of a length of time.
pub(crate) fn millis(length: Micros) -> i64 {
    length.div_euclid(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_rfc_3339_or_unix_milliseconds() {
        for text in ["2015-09-12T00:00:00Z", "2015-09-12T02:00:00+02:00", "2015-09-12T02:00:00 02:00", "1442016000000"]
        {
            assert_eq!(parse(text).map(format).as_deref(), Some("2015-09-12T00:00:00Z"), "{text}");
        }
        assert_eq!(parse("-1"), Some(-1_000));
        for text in ["", "-", "2015-09-12", "2015-09-12T00:00:00", "now", "99999999999999999", "é 02:00", "9e3"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(format(1_500_000), "1970-01-01T00:00:01.500Z");
    }
}
