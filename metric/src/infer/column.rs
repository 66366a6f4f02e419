//! What the sample says about one field.

use std::{borrow::Cow, collections::BTreeSet};

use lamina_core::Micros;

use crate::{
    decode::{Cell, Kind, convert, unit_micros},
    definition::{FieldType, TimeUnit},
    time::{DAY, midnight},
};

/// Types in the order in which they are preferred.
const JSON_TYPES: [FieldType; 6] =
    [FieldType::Bool, FieldType::Int64, FieldType::Float64, FieldType::Date, FieldType::Timestamp, FieldType::String];
const CSV_TYPES: [FieldType; 6] =
    [FieldType::Int64, FieldType::Float64, FieldType::Bool, FieldType::Date, FieldType::Timestamp, FieldType::String];
/// Whole numbers beyond int64 that float64 would round.
const WIDE: FieldType = FieldType::Decimal { precision: 38, scale: 0 };
const DISTINCT_MOST: usize = 100_000;
/// 2000-01-01 and 2100-01-01.
const PLAUSIBLE: std::ops::Range<Micros> = 10_957 * DAY..47_482 * DAY;
const UNITS: [TimeUnit; 4] = [TimeUnit::Seconds, TimeUnit::Millis, TimeUnit::Micros, TimeUnit::Nanos];

/// One field of the sample.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    kind: Kind,
    /// The types that every value so far can be read as.
    possible: Vec<FieldType>,
    values: usize,
    rows: usize,
    example: Option<String>,
    distinct: BTreeSet<String>,
    times: Vec<String>,
}

impl Column {
    pub(super) fn new(name: String, kind: Kind) -> Self {
        let types = if kind == Kind::Json { JSON_TYPES } else { CSV_TYPES };
        let mut possible = types.to_vec();
        possible.insert(2, WIDE);
        Self { name, kind, possible, values: 0, rows: 0, example: None, distinct: BTreeSet::new(), times: Vec::new() }
    }

    /// Takes in the value of the next event: a raw JSON value or the text of a CSV field.
    pub(super) fn add(&mut self, raw: Option<&str>) {
        self.rows += 1;
        let Some(raw) = raw else { return };
        let text = Cow::Borrowed(raw);
        let cell = convert(Some(text.clone()), self.kind, FieldType::String, None, None);
        if cell == Ok(Cell::Null) {
            return;
        }
        self.values += 1;
        let identifier = self.kind != Kind::Json && looks_like_identifier(raw);
        let kind = self.kind;
        self.possible.retain(|wanted| {
            let number = matches!(wanted, FieldType::Int64 | FieldType::Float64) || *wanted == WIDE;
            let quoted = *wanted == WIDE && raw.starts_with('"');
            !(quoted || number && identifier) && convert(Some(text.clone()), kind, *wanted, None, None).is_ok()
        });
        if self.example.is_none() {
            self.example = Some(raw.chars().take(80).collect());
        }
        if self.distinct.len() < DISTINCT_MOST {
            self.distinct.insert(raw.to_owned());
        }
        if self.times.len() < DISTINCT_MOST {
            self.times.push(raw.to_owned());
        }
    }

    /// The type to propose; none if no type reads every value.
    pub(super) fn kind(&self) -> Option<FieldType> {
        if self.values == 0 { Some(FieldType::String) } else { self.possible.first().copied() }
    }

    /// Events without a value.
    pub(super) fn missing(&self) -> usize {
        self.rows - self.values
    }

    pub(super) fn distinct(&self) -> usize {
        self.distinct.len()
    }

    pub(super) fn example(&self) -> Option<&str> {
        self.example.as_deref()
    }

    /// True if a time in it names no zone.
    pub(super) fn without_zone(&self) -> bool {
        let zoned = |raw: &String| {
            let text = raw.trim_matches('"');
            text.ends_with(['Z', 'z']) || text.get(10..).is_some_and(|clock| clock.contains(['+', '-']))
        };
        self.kind() == Some(FieldType::Timestamp) && !self.times.iter().all(zoned)
    }

    /// The unit in which all its numbers count from 1970 to a time between 2000 and 2100.
    pub(super) fn epoch_unit(&self) -> Option<TimeUnit> {
        let fits = |unit: TimeUnit| {
            let plausible = |raw: &String| unit_micros(raw.trim(), unit).is_some_and(|at| PLAUSIBLE.contains(&at));
            !self.times.is_empty() && self.times.iter().all(plausible)
        };
        UNITS.into_iter().find(|unit| fits(*unit))
    }

    /// The first and last time in it.
    pub(super) fn span(&self, unit: Option<TimeUnit>) -> Option<(Micros, Micros)> {
        let wanted = if unit.is_some() { FieldType::Timestamp } else { self.kind()? };
        let times = self.times.iter().filter_map(|raw| {
            match convert(Some(Cow::Borrowed(raw)), self.kind, wanted, None, unit).ok()? {
                Cell::Time(at) => Some(at),
                Cell::Date(day) => midnight(day, None),
                _ => None,
            }
        });
        let (first, last) = times.fold((Micros::MAX, Micros::MIN), |(first, last), at| (first.min(at), last.max(at)));
        (first <= last).then_some((first, last))
    }
}

/// Digits that are a name rather than a number: `00123`.
fn looks_like_identifier(text: &str) -> bool {
    let text = text.trim_ascii();
    text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
}
