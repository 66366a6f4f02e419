//! When scheduled runs are due.

use std::{fmt, str::FromStr};

use chrono::DateTime;
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use lamina_core::Micros;

use crate::BatchError;

/// Times of scheduled runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// `None` runs only on request.
    cron: Option<Box<Cron>>,
    zone: Tz,
}

impl FromStr for Schedule {
    type Err = BatchError;

    /// `off`, or a cron expression of five fields, with an optional sixth for seconds in front; in UTC.
    fn from_str(text: &str) -> Result<Self, BatchError> {
        if text.trim().eq_ignore_ascii_case("off") {
            return Ok(Self::off());
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let refuse = |why: String| BatchError::Schedule { text: text.to_owned(), why };
        let cron = parser.parse(text).map_err(|error| refuse(error.to_string()))?;
        let schedule = Self { cron: Some(Box::new(cron)), zone: Tz::UTC };
        match schedule.after(0) {
            Some(_) => Ok(schedule),
            None => Err(refuse("it is never due".to_owned())),
        }
    }
}

/// The cron expression, or `off`.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cron {
            Some(cron) => f.write_str(&cron.pattern.to_string()),
            None => f.write_str("off"),
        }
    }
}

impl Schedule {
    /// Runs only on request.
    pub fn off() -> Self {
        Self { cron: None, zone: Tz::UTC }
    }

    /// The same expression by the clocks of `zone`. Where they are put forward, a time that is left out is due at the
    /// change; where they are put back, a time that comes twice is due the first time, unless it recurs within the hour.
    pub fn in_zone(self, zone: Tz) -> Self {
        Self { zone, ..self }
    }

    pub fn time_zone(&self) -> Tz {
        self.zone
    }

    /// The first time after `at`, if there is one.
    pub fn after(&self, at: Micros) -> Option<Micros> {
        let cron = self.cron.as_ref()?;
        let at = DateTime::from_timestamp_micros(at)?.with_timezone(&self.zone);
        cron.find_next_occurrence(&at, false).ok().map(|next| next.timestamp_micros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    #[test]
    fn a_schedule_is_due_at_its_next_time_in_utc() {
        let every_ten_minutes: Schedule = "*/10 * * * *".parse().unwrap();
        assert_eq!(every_ten_minutes.after(0), Some(600 * SECOND));
        assert_eq!(every_ten_minutes.after(599_999_999), Some(600 * SECOND));
        let every_fifteen_seconds: Schedule = "*/15 * * * * *".parse().unwrap();
        assert_eq!(every_fifteen_seconds.after(1), Some(15 * SECOND));
        assert_eq!("off".parse::<Schedule>().unwrap().after(0), None);
        assert_eq!((every_ten_minutes.to_string(), Schedule::off().to_string()), ("*/10 * * * *".into(), "off".into()));
    }

    #[test]
    fn in_a_zone_a_daily_run_is_due_once_a_day_through_both_changes_of_the_clock() {
        let at_half_past_two: Schedule = "30 2 * * *".parse().unwrap();
        let berlin = at_half_past_two.in_zone(chrono_tz::Europe::Berlin);
        let from = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
        let runs = |start: &str| -> Vec<String> {
            let next = |at: &Micros| berlin.after(*at);
            let times = std::iter::successors(berlin.after(from(start)), next).take(3);
            times.map(|at| DateTime::from_timestamp_micros(at).unwrap().to_rfc3339()).collect()
        };
        // 2:30 is left out on 29 March 2026 and comes twice on 25 October 2026.
        let spring = runs("2026-03-27T12:00:00Z");
        assert_eq!(spring, ["2026-03-28T01:30:00+00:00", "2026-03-29T01:00:00+00:00", "2026-03-30T00:30:00+00:00"]);
        let autumn = runs("2026-10-23T12:00:00Z");
        assert_eq!(autumn, ["2026-10-24T00:30:00+00:00", "2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"]);
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_an_example() {
        for text in ["", "often", "61 * * * *", "0 0 31 2 *", "* * * * * * *"] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains("*/10 * * * *"), "{text}: {error}");
        }
    }
}
