//! Lengths of time and the texts of times.
//!
//! # Invariants
//! - A time is microseconds since the Unix epoch, UTC; finer fractions are floored, also before 1970.
//! - A local time that occurs twice takes the earlier offset; one that does not exist moves forward.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use lamina_core::Micros;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

pub const SECOND: Micros = 1_000_000;
pub const DAY: Micros = 86_400 * SECOND;
/// Event times lie in the years 1 to 9999.
pub(crate) const EARLIEST: Micros = -719_162 * DAY;
pub(crate) const LATEST: Micros = 2_932_897 * DAY - 1;

const UNITS: [(&str, Micros); 5] =
    [("w", 7 * DAY), ("d", DAY), ("h", 3_600 * SECOND), ("m", 60 * SECOND), ("s", SECOND)];

/// A length of time in microseconds, written `10s`, `1m`, `1h`, `1d`, `1w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Length(pub Micros);

impl Length {
    /// # Errors
    /// If the text is not a whole number above 0 followed by `s`, `m`, `h`, `d`, `w` or `y`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a length of time");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let width = match unit {
            "y" => 365 * DAY,
            _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, width)| *width).ok_or_else(wrong)?,
        };
        let number: Micros = number.parse().map_err(|_| wrong())?;
        number.checked_mul(width).filter(|micros| *micros > 0).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, width)| self.0 % width == 0) {
            Some((unit, width)) => write!(f, "{}{unit}", self.0 / width),
            None => write!(f, "{}us", self.0),
        }
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|why| D::Error::custom(format!("{why}; write for example 10s, 1m, 1h or 1d")))
    }
}

/// The time that an ISO 8601 text names: `2015-09-12`, then `T` or a space, then `00:46[:58[.771]]`, then `Z`, `+02:00`,
/// `+0200` or `+02`. Without a zone it is a local time of `zone`.
pub(crate) fn parse_timestamp(text: &str, zone: Option<Tz>) -> Option<Micros> {
    let text = text.trim_ascii();
    let date = parse_date(text.get(..10)?)?;
    let rest = text.get(10..)?;
    if rest.is_empty() {
        return in_zone(date.and_time(NaiveTime::MIN), zone);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let clock_end = rest.find(['Z', 'z', '+', '-', ' ']).unwrap_or(rest.len());
    let (clock, offset) = rest.split_at(clock_end);
    let local = date.and_time(parse_clock(clock)?);
    match offset.trim_start_matches(' ') {
        "" => in_zone(local, zone),
        "Z" | "z" => Some(local.and_utc().timestamp_micros()),
        offset => Some(local.and_utc().timestamp_micros() - parse_offset(offset)?),
    }
}

/// `2015-09-12`.
pub(crate) fn parse_date(text: &str) -> Option<NaiveDate> {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let year = digits(text.get(..4)?)?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, digits(text.get(5..7)?)?, digits(text.get(8..)?)?)?;
    (date.year() >= 1).then_some(date)
}

/// Days since 1970-01-01.
pub(crate) fn days(date: NaiveDate) -> i32 {
    date.num_days_from_ce() - 719_163
}

fn parse_clock(text: &str) -> Option<NaiveTime> {
    let (clock, fraction) = match text.split_once(['.', ',']) {
        Some((clock, fraction)) => (clock, fraction),
        None => (text, "0"),
    };
    let bytes = clock.as_bytes();
    let seconds = match bytes.len() {
        5 => 0,
        8 if bytes[5] == b':' => digits(clock.get(6..)?)?,
        _ => return None,
    };
    if bytes[2] != b':' || (bytes.len() == 5 && clock.len() != text.len()) || fraction.is_empty() {
        return None;
    }
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let kept = &fraction[..fraction.len().min(6)];
    let micros = digits(kept)? * 10_u32.pow(6 - u32::try_from(kept.len()).ok()?);
    NaiveTime::from_hms_micro_opt(digits(clock.get(..2)?)?, digits(clock.get(3..5)?)?, seconds, micros)
}

/// `+02:00`, `+0200` or `+02`.
fn parse_offset(text: &str) -> Option<Micros> {
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let text = text.strip_prefix(['+', '-'])?;
    let (hours, minutes) = match text.len() {
        2 => (text, "00"),
        4 => text.split_at_checked(2)?,
        5 => text.split_once(':')?,
        _ => return None,
    };
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    (hours < 24 && minutes < 60).then(|| sign * Micros::from(hours * 60 + minutes) * 60 * SECOND)
}

fn digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The instant of a local time.
pub(crate) fn in_zone(local: NaiveDateTime, zone: Option<Tz>) -> Option<Micros> {
    let Some(zone) = zone else { return Some(local.and_utc().timestamp_micros()) };
    if let Some(at) = zone.from_local_datetime(&local).earliest() {
        return Some(at.timestamp_micros());
    }
    // In a gap: the offset from before the clocks moved, which puts the time as far behind the gap as it lay in it.
    let mut before = local;
    for _ in 0..16 {
        before = before.checked_sub_signed(TimeDelta::hours(3))?;
        if let Some(at) = zone.from_local_datetime(&before).earliest() {
            let offset = at.offset().fix().local_minus_utc();
            return Some(local.and_utc().timestamp_micros() - Micros::from(offset) * SECOND);
        }
    }
    None
}

/// Midnight of a day, in the zone.
pub(crate) fn midnight(days: i32, zone: Option<Tz>) -> Option<Micros> {
    let at = Micros::from(days) * DAY;
    match zone {
        None => Some(at),
        Some(_) => in_zone(DateTime::<Utc>::from_timestamp_micros(at)?.naive_utc(), zone),
    }
}

/// RFC 3339 in UTC with as much of the fraction as there is: `2015-09-12T00:46:58.771Z`.
pub fn format_time(at: Micros) -> String {
    let Some(time) = DateTime::<Utc>::from_timestamp_micros(at) else { return at.to_string() };
    let form = match at.rem_euclid(SECOND) {
        0 => "%Y-%m-%dT%H:%M:%SZ",
        fraction if fraction % 1_000 == 0 => "%Y-%m-%dT%H:%M:%S%.3fZ",
        _ => "%Y-%m-%dT%H:%M:%S%.6fZ",
    };
    time.format(form).to_string()
}

/// Seconds to microseconds, floored as the decimal that the float is written as: 0.3 s are 300,000 µs although the
/// float lies below.
pub(crate) fn floor_seconds(seconds: f64, per_second: f64) -> Option<Micros> {
    let floor = (seconds * per_second).floor();
    if !floor.is_finite() || floor.abs() >= 9.0e18 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked to lie within i64")]
    let floor = floor as Micros;
    #[expect(clippy::cast_precision_loss, reason = "compared as floats on purpose")]
    let fits = |micros: Micros| micros as f64 / per_second <= seconds;
    if fits(floor + 1) {
        Some(floor + 1)
    } else if fits(floor) {
        Some(floor)
    } else {
        Some(floor - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str, zone: Option<Tz>) -> Option<String> {
        parse_timestamp(text, zone).map(format_time)
    }

    #[test]
    fn iso_texts_are_read_with_or_without_zone_and_fraction() {
        let same = [
            "2015-09-12T00:46:58.771Z",
            "2015-09-12 00:46:58.771",
            "2015-09-12T02:46:58.771+02:00",
            "2015-09-11 19:46:58.771000-0500",
            "2015-09-12T01:46:58.771 +01",
        ];
        for text in same {
            assert_eq!(at(text, None).as_deref(), Some("2015-09-12T00:46:58.771Z"), "{text}");
        }
        assert_eq!(at("2015-09-12", None).as_deref(), Some("2015-09-12T00:00:00Z"));
        assert_eq!(at("2010-12-01 08:26", None).as_deref(), Some("2010-12-01T08:26:00Z"));
        assert_eq!(at("1969-12-31T23:59:59.9999999Z", None).as_deref(), Some("1969-12-31T23:59:59.999999Z"));
        for text in [
            "",
            "2015",
            "2015-02-30",
            "2015-09-12T",
            "2015-09-12T25:00",
            "2015-09-12T00:00:00+25:00",
            "12/1/2010",
            "2015-09-12T00:00:00.",
            "2015-09-12T00:00.5",
            "2015-09-12T00:00:00Zx",
            "\u{fc}015-09-12",
        ] {
            assert_eq!(parse_timestamp(text, None), None, "{text}");
        }
    }

    #[test]
    fn a_doubled_local_time_takes_the_earlier_offset_and_a_missing_one_moves_forward() {
        let new_york = Some(chrono_tz::America::New_York);
        assert_eq!(at("2014-11-02 01:30:00", new_york).as_deref(), Some("2014-11-02T05:30:00Z"));
        assert_eq!(at("2014-03-09 02:30:00", new_york).as_deref(), Some("2014-03-09T07:30:00Z"));
        assert_eq!(at("2014-03-09 03:00:00", new_york).as_deref(), Some("2014-03-09T07:00:00Z"));
        assert_eq!(at("2014-07-01 00:00:00Z", new_york).as_deref(), Some("2014-07-01T00:00:00Z"));
        assert_eq!(at("2011-12-30 12:00", Some(chrono_tz::Pacific::Apia)).as_deref(), Some("2011-12-30T22:00:00Z"));
    }

    #[test]
    fn lengths_are_written_in_the_largest_unit_that_divides_them() {
        for (text, written) in
            [("10s", "10s"), ("60s", "1m"), ("24h", "1d"), ("7d", "1w"), ("90m", "90m"), ("2y", "730d")]
        {
            assert_eq!(Length::parse(text).unwrap().to_string(), written);
        }
        for text in ["", "0s", "10", "s", "1.5h", "-1d", "1 h", "99999999999999d"] {
            assert!(Length::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn seconds_written_with_microseconds_come_back_exactly(micros in -4_000_000_000_000_000_i64..4_000_000_000_000_000) {
            let text = format!("{}{}.{:06}", if micros < 0 { "-" } else { "" }, micros.abs() / SECOND, micros.abs() % SECOND);
            prop_assert_eq!(floor_seconds(text.parse().unwrap(), 1e6), Some(micros));
        }

        #[test]
        fn a_written_time_is_read_back(micros in EARLIEST..LATEST) {
            prop_assert_eq!(parse_timestamp(&format_time(micros), None), Some(micros));
        }

        #[test]
        fn no_text_makes_reading_a_time_panic(text in "\\PC{0,40}", zoned in any::<bool>()) {
            let _ = parse_timestamp(&text, zoned.then_some(chrono_tz::Europe::Berlin));
            let _ = Length::parse(&text);
        }
    }
}
