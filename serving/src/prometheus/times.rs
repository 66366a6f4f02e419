//! Instants and durations as Prometheus writes them, and the grid of instants that a query is evaluated at.

use lamina_core::Micros;

use super::Failure;
use crate::{
    instant as rfc3339,
    query::calendar::{EARLIEST, LATEST, SECOND},
};

/// Most instants of a range, as in Prometheus.
const MAX_INSTANTS: i64 = 11_000;
const UNITS: [(&str, Micros); 7] = [
    ("ms", 1_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3_600 * SECOND),
    ("d", 86_400 * SECOND),
    ("w", 7 * 86_400 * SECOND),
    ("y", 365 * 86_400 * SECOND),
];

/// Instants `start`, `start + step`, ...; one of an instant query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    start: Micros,
    step: Micros,
    len: usize,
    pub(crate) is_range: bool,
}

impl Grid {
    pub(crate) fn instant(at: Micros) -> Self {
        Self { start: at, step: SECOND, len: 1, is_range: false }
    }

    /// # Errors
    /// If the range is empty, or has too many instants.
    pub(crate) fn range(start: Micros, end: Micros, step: Micros) -> Result<Self, Failure> {
        if end < start {
            return Err(Failure::parameter("end", "must not lie before `start`"));
        }
        let last = (end - start) / step;
        if last >= MAX_INSTANTS {
            let why = format!("exceeds the resolution of {MAX_INSTANTS} points per series: take a longer step");
            return Err(Failure::parameter("step", &why));
        }
        Ok(Self { start, step, len: last as usize + 1, is_range: true })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn at(&self, index: usize) -> Micros {
        self.start + self.step * index as Micros
    }

    pub(crate) fn instants(&self) -> impl Iterator<Item = Micros> + '_ {
        (0..self.len).map(|index| self.at(index))
    }
}

/// An instant as Prometheus prints it: seconds.
#[expect(clippy::cast_precision_loss, reason = "microseconds of the years 1 to 9999 lose less than 64 µs")]
pub(crate) fn seconds(at: Micros) -> f64 {
    at as f64 / SECOND as f64
}

/// Unix seconds with a fraction, or RFC 3339.
pub(crate) fn instant(name: &str, text: &str) -> Result<Micros, Failure> {
    let at = text.parse::<f64>().ok().and_then(micros).or_else(|| {
        let is_time = text.contains('T');
        is_time.then(|| rfc3339::parse(text)).flatten()
    });
    at.ok_or_else(|| Failure::parameter(name, "Unix seconds or RFC 3339, within the years 1 to 9999"))
}

/// Seconds, or a duration such as `5m` or `1h30m`; above 0.
pub(crate) fn duration(name: &str, text: &str) -> Result<Micros, Failure> {
    let seconds = text.parse::<f64>().ok().and_then(micros);
    let length = seconds.or_else(|| units(text)).filter(|length| *length >= 1_000);
    length.ok_or_else(|| Failure::parameter(name, "seconds or a duration such as 15s, 5m or 1h30m; at least 1 ms"))
}

/// Whole milliseconds, as in Prometheus.
fn micros(seconds: f64) -> Option<Micros> {
    #[expect(clippy::cast_possible_truncation, reason = "what does not fit is out of range anyway")]
    let at = (seconds * 1_000.0).round() as i64;
    let at = seconds.is_finite().then(|| at.checked_mul(1_000)).flatten()?;
    (EARLIEST..=LATEST).contains(&at).then_some(at)
}

fn units(text: &str) -> Option<Micros> {
    let (mut rest, mut total) = (text, 0_i64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<Micros>().ok()?.checked_mul(*length)?)?;
        rest = tail;
    }
    (!text.is_empty() && total <= LATEST).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_rfc_3339_and_lengths_seconds_or_units() {
        for text in ["1442016000", "1442016000.0", "2015-09-12T00:00:00Z", "2015-09-12T02:00:00+02:00"] {
            assert_eq!(instant("time", text).unwrap(), 1_442_016_000 * SECOND, "{text}");
        }
        assert_eq!(instant("time", "1442016000.1239").unwrap(), 1_442_016_000_124_000);
        for text in ["", "now", "NaN", "Inf", "1e300", "-1e300", "2015-09-12", "0x10"] {
            assert!(instant("time", text).is_err(), "{text}");
        }
        assert_eq!(duration("step", "15").unwrap(), 15 * SECOND);
        assert_eq!(duration("step", "1h30m").unwrap(), 5_400 * SECOND);
        assert_eq!(duration("step", "0.5").unwrap(), SECOND / 2);
        for text in ["", "0", "-1", "NaN", "1x", "m", "99999999999999y", "0.0001"] {
            assert!(duration("step", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_grid_has_at_most_as_many_instants_as_prometheus_allows() {
        let grid = Grid::range(0, 10 * SECOND, 3 * SECOND).unwrap();
        assert_eq!(grid.instants().collect::<Vec<_>>(), [0, 3 * SECOND, 6 * SECOND, 9 * SECOND]);
        assert!(Grid::range(0, 11_000 * SECOND, SECOND).is_err());
        assert_eq!(Grid::range(0, 10_999 * SECOND, SECOND).unwrap().len(), 11_000);
        assert!(Grid::range(SECOND, 0, SECOND).is_err());
    }
}
