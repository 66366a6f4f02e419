//! Buckets of an answer: which instants belong together.
//!
//! A bucket is a half-open interval of UTC. Without a zone, buckets are multiples of the step. With one, a step of whole
//! days, weeks or months begins at the first instant of a local day, and a shorter step counts wall-clock time from local
//! midnight: a day may have 23 or 25 hours, an hour that occurs twice is two buckets.

use std::ops::Range;

use chrono::{DateTime, Datelike, MappedLocalTime, NaiveDate, NaiveDateTime, Offset, TimeZone};
use chrono_tz::{GapInfo, Tz};
use lamina_core::Micros;

pub(crate) const SECOND: Micros = 1_000_000;
pub(crate) const DAY: Micros = 86_400 * SECOND;
/// Times lie within the years 1 to 9999: beyond them they cannot be written.
pub(crate) const EARLIEST: Micros = -719_162 * DAY;
pub(crate) const LATEST: Micros = 2_932_897 * DAY - 1;
/// Outside of these years no zone changes its offset, as far as anyone knows.
const CHANGES: Range<Micros> = -130 * 365 * DAY..140 * 365 * DAY;

/// Length of a bucket, as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Fixed(Micros),
    /// Weeks begin on Monday.
    Weeks(i64),
    /// Calendar months; counted from January 1970.
    Months(i64),
}

/// How a range is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Division {
    /// One bucket.
    Whole,
    Utc(Step),
    Local(Step, Tz),
}

/// A divided range.
#[derive(Clone, Debug)]
pub(crate) struct Buckets {
    pub(crate) range: Range<Micros>,
    pub(crate) division: Division,
}

impl Step {
    /// `10s`, `1m`, `6h`, `1d`, `1w`, `1mo`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let number: i64 = number.parse().ok().filter(|number| *number > 0)?;
        let fixed = |unit: Micros| number.checked_mul(unit).filter(|step| *step <= LATEST).map(Self::Fixed);
        match unit {
            "ms" => fixed(1_000),
            "s" => fixed(SECOND),
            "m" => fixed(60 * SECOND),
            "h" => fixed(3_600 * SECOND),
            "d" => fixed(DAY),
            "w" if number <= 1_000 => Some(Self::Weeks(number)),
            "mo" if number <= 1_200 => Some(Self::Months(number)),
            _ => None,
        }
    }

    /// The length that every bucket's length is a multiple of.
    pub(crate) fn unit(self) -> Micros {
        match self {
            Self::Fixed(step) => step,
            Self::Weeks(_) | Self::Months(_) => DAY,
        }
    }

    /// Number of the unit that holds a day.
    fn of_day(self, day: i64) -> i64 {
        match self {
            Self::Fixed(step) => day.div_euclid(step / DAY),
            // Day 0 was a Thursday.
            Self::Weeks(n) => (day + 3).div_euclid(7 * n),
            Self::Months(n) => month_of(day).div_euclid(n),
        }
    }

    /// First day of a unit.
    fn first_day(self, unit: i64) -> i64 {
        match self {
            Self::Fixed(step) => unit * (step / DAY),
            Self::Weeks(n) => unit * 7 * n - 3,
            Self::Months(n) => first_of_month(unit * n),
        }
    }
}

/// Months since January 1970.
fn month_of(day: i64) -> i64 {
    let date = i32::try_from(day + 719_163).ok().and_then(NaiveDate::from_num_days_from_ce_opt);
    // Times are bounded by EARLIEST and LATEST, far within the calendar.
    date.map_or(0, |date| (i64::from(date.year()) - 1970) * 12 + i64::from(date.month0()))
}

fn first_of_month(month: i64) -> i64 {
    let (year, month) = (1970 + month.div_euclid(12), month.rem_euclid(12) + 1);
    let date = i32::try_from(year).ok().zip(u32::try_from(month).ok());
    let date = date.and_then(|(year, month)| NaiveDate::from_ymd_opt(year, month, 1));
    date.map_or(0, |date| i64::from(date.num_days_from_ce()) - 719_163)
}

impl Buckets {
    /// Start of the bucket that holds `at`, clipped to the range.
    pub(crate) fn start_of(&self, at: Micros) -> Micros {
        let start = match self.division {
            Division::Whole => self.range.start,
            Division::Utc(Step::Fixed(step)) => at.div_euclid(step) * step,
            Division::Utc(step) => step.first_day(step.of_day(at.div_euclid(DAY))) * DAY,
            Division::Local(Step::Fixed(step), zone) if step % DAY != 0 => local_start(zone, step, at),
            Division::Local(step, zone) => local_day_start(zone, step, at),
        };
        start.max(self.range.start)
    }

    /// Start of the bucket after the one that begins at `start`; the range's end or later if it is the last.
    pub(crate) fn next(&self, start: Micros) -> Micros {
        match self.division {
            Division::Whole => self.range.end,
            Division::Utc(Step::Fixed(step)) => (start.div_euclid(step) + 1) * step,
            Division::Utc(step) => step.first_day(step.of_day(start.div_euclid(DAY)) + 1) * DAY,
            Division::Local(Step::Fixed(step), zone) if step % DAY != 0 => {
                // A bucket is longer than the step where clocks go back, and ends where they go forward.
                let mut at = start + step;
                while at < self.range.end && self.start_of(at) <= start {
                    at += step;
                }
                if at < self.range.end { local_start(zone, step, at) } else { self.range.end }
            }
            Division::Local(step, zone) => {
                let day = (start + offset_at(zone, start)).div_euclid(DAY);
                let mut unit = step.of_day(day) + 1;
                while first_instant(zone, step.first_day(unit)) <= start {
                    unit += 1;
                }
                first_instant(zone, step.first_day(unit))
            }
        }
    }

    /// Starts of all buckets, or `None` if there are more than `most`.
    pub(crate) fn starts(&self, most: usize) -> Option<Vec<Micros>> {
        let mut starts = Vec::new();
        let mut at = self.range.start;
        while at < self.range.end {
            if starts.len() == most {
                return None;
            }
            starts.push(at);
            at = self.next(at);
        }
        Some(starts)
    }

    /// Whether stored buckets of `width` each lie within one bucket of the range.
    pub(crate) fn hit_by(&self, width: Micros) -> bool {
        if self.range.start % width != 0 || self.range.end % width != 0 {
            return false;
        }
        match self.division {
            Division::Whole => true,
            Division::Utc(step) => step.unit() % width == 0,
            Division::Local(step, zone) => {
                let unit = if step.unit() % DAY == 0 { DAY } else { step.unit() };
                unit % width == 0 && offsets_hit(zone, &self.range, width)
            }
        }
    }
}

/// Whether every offset of the zone within the range, and every change of it, is a multiple of `width`.
fn offsets_hit(zone: Tz, range: &Range<Micros>, width: Micros) -> bool {
    let hit = |at: Micros| offset_at(zone, at) % width == 0;
    if !hit(range.start) || !hit(range.end) {
        return false;
    }
    let (from, to) = (range.start.max(CHANGES.start), range.end.min(CHANGES.end));
    let mut at = from;
    while at < to {
        let next = (at + DAY).min(to);
        if offset_at(zone, at) != offset_at(zone, next) && (!hit(next) || change_within(zone, at, next) % width != 0) {
            return false;
        }
        at = next;
    }
    true
}

/// The zone's offset from UTC at an instant.
fn offset_at(zone: Tz, at: Micros) -> Micros {
    let offset = zone.offset_from_utc_datetime(&naive(at)).fix().local_minus_utc();
    Micros::from(offset) * SECOND
}

fn naive(at: Micros) -> NaiveDateTime {
    DateTime::from_timestamp_micros(at).unwrap_or_default().naive_utc()
}

/// The first instant after `before` at which the offset is that of `after`; the offsets differ.
fn change_within(zone: Tz, before: Micros, after: Micros) -> Micros {
    let (mut low, mut high) = (before, after);
    let target = offset_at(zone, after);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if offset_at(zone, middle) == target { high = middle } else { low = middle }
    }
    high
}

/// Start of a bucket shorter than a day: `step` divides the day, counted in wall-clock time from local midnight.
fn local_start(zone: Tz, step: Micros, at: Micros) -> Micros {
    let wall = |at: Micros, offset: Micros| (at + offset).div_euclid(step) * step;
    let offset = offset_at(zone, at);
    let start = wall(at, offset) - offset;
    let before = offset_at(zone, start);
    if before == offset {
        return start;
    }
    // The clocks were changed within the bucket, or where it begins.
    let change = change_within(zone, start, at);
    if wall(change - 1, before) == wall(at, offset) { wall(at, offset) - before } else { change }
}

/// Start of a bucket of whole local days.
fn local_day_start(zone: Tz, step: Step, at: Micros) -> Micros {
    let day = (at + offset_at(zone, at)).div_euclid(DAY);
    let unit = step.of_day(day);
    let start = |unit: i64| first_instant(zone, step.first_day(unit));
    // Where clocks go back over midnight, a day begins at its first midnight.
    match start(unit + 1) {
        next if next <= at => next,
        _ => match start(unit) {
            own if own <= at => own,
            _ => start(unit - 1),
        },
    }
}

/// The first instant of a local day, which is not midnight where that does not exist.
fn first_instant(zone: Tz, day: i64) -> Micros {
    first_at(zone, day * DAY)
}

/// The first instant at which clocks show this time, or at which they have jumped over it.
fn first_at(zone: Tz, wall: Micros) -> Micros {
    let local = naive(wall);
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => at.timestamp_micros(),
        MappedLocalTime::None => match GapInfo::new(&local, &zone).and_then(|gap| gap.end) {
            Some(end) => end.timestamp_micros(),
            None => wall - offset_at(zone, wall),
        },
    }
}

/// The same moment of the calendar a period earlier. Whole days, weeks and months are those of the zone if there is one:
/// the clock shows the same, however many hours lie between.
pub(crate) fn earlier(at: Micros, period: Step, zone: Option<Tz>) -> Micros {
    match zone {
        Some(zone) if period.unit() % DAY == 0 => {
            first_at(zone, wall_earlier(at.saturating_add(offset_at(zone, at)), period))
        }
        _ => wall_earlier(at, period),
    }
}

fn wall_earlier(at: Micros, period: Step) -> Micros {
    match period {
        Step::Fixed(length) => at.saturating_sub(length),
        Step::Weeks(n) => at.saturating_sub(7 * n * DAY),
        Step::Months(n) => {
            let (day, rest) = (at.div_euclid(DAY), at.rem_euclid(DAY));
            let month = month_of(day);
            let (within, first) = (day - first_of_month(month), first_of_month(month - n));
            // The 31st of a shorter month is its last day.
            (first + within.min(first_of_month(month - n + 1) - first - 1)) * DAY + rest
        }
    }
}

#[cfg(test)]
#[path = "calendar_tests.rs"]
mod tests;
