//! When scheduled runs are due.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use lamina_core::Micros;

use crate::BatchError;

/// Times of scheduled runs, in UTC.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// Runs only on request.
    Off,
    Cron(Box<Cron>),
}

impl FromStr for Schedule {
    type Err = BatchError;

    /// `off`, or a cron expression of five fields, with an optional sixth for seconds in front.
    fn from_str(text: &str) -> Result<Self, BatchError> {
        if text.trim().eq_ignore_ascii_case("off") {
            return Ok(Self::Off);
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let refuse = |why: String| BatchError::Schedule { text: text.to_owned(), why };
        let cron = parser.parse(text).map_err(|error| refuse(error.to_string()))?;
        let schedule = Self::Cron(Box::new(cron));
        match schedule.after(0) {
            Some(_) => Ok(schedule),
            None => Err(refuse("it is never due".to_owned())),
        }
    }
}

impl Schedule {
    /// The first time after `at`, if there is one.
    pub fn after(&self, at: Micros) -> Option<Micros> {
        let Self::Cron(cron) = self else { return None };
        let at = DateTime::<Utc>::from_timestamp_micros(at)?;
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
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_an_example() {
        for text in ["", "often", "61 * * * *", "0 0 31 2 *", "* * * * * * *"] {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains("*/10 * * * *"), "{text}: {error}");
        }
    }
}
