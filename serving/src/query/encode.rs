//! An answer as JSON, with keys in the order of the contract.

use std::{collections::BTreeMap, ops::Range};

use lamina_core::{
    Cut, Micros, Offset, Partition,
    snapshot::{Missing, MissingBecause},
};
use lamina_metric::{Answer, Approximate, Ask, DimensionValue, Numbers};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    instant,
    query::table::{Point, Row},
};

/// A whole answer.
pub(crate) struct Body<'a> {
    pub(crate) metric: &'a str,
    pub(crate) version: u32,
    pub(crate) range: Range<Micros>,
    pub(crate) step: Option<&'a str>,
    pub(crate) zone: Option<&'a str>,
    pub(crate) group_by: &'a [String],
    pub(crate) asks: &'a [Ask],
    pub(crate) numbers: Numbers,
    pub(crate) series: &'a [Row],
    pub(crate) meta: Meta,
}

/// What proves the answer.
#[derive(Serialize)]
pub(crate) struct Meta {
    pub(crate) complete: bool,
    pub(crate) missing: Vec<MissingRange>,
    pub(crate) batch: BatchMeta,
    pub(crate) speed: SpeedMeta,
    pub(crate) approximate: BTreeMap<String, Approximate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retained_from: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) expired: Vec<Expired>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overflow: Option<Overflow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) truncated: Option<bool>,
}

/// A rule of expiry that reaches into the range.
#[derive(Serialize)]
pub(crate) struct Expired {
    #[serde(rename = "where")]
    pub(crate) filter: String,
    /// Where buckets of the series that match it begin.
    pub(crate) retained_from: String,
}

/// A range of the log that the answer does not fold.
#[derive(Serialize)]
pub(crate) struct MissingRange {
    partition: Partition,
    from: Offset,
    to: Offset,
    why: &'static str,
}

#[derive(Serialize)]
pub(crate) struct BatchMeta {
    pub(crate) generation: u64,
    pub(crate) through: Option<String>,
    pub(crate) cut: BTreeMap<Partition, Offset>,
    /// Of a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scanned: Option<Scanned>,
}

/// Between when and when a table was scanned: what was written before is in, what was written after is not, and of what was
/// written meanwhile each row may be.
#[derive(Serialize)]
pub(crate) struct Scanned {
    pub(crate) from: String,
    pub(crate) to: String,
}

#[derive(Serialize)]
pub(crate) struct SpeedMeta {
    pub(crate) watermark: Option<String>,
    pub(crate) positions: BTreeMap<Partition, Offset>,
}

/// Events that a view's cap left without their own series.
#[derive(Serialize)]
pub(crate) struct Overflow {
    pub(crate) events: u64,
}

impl From<&Missing> for MissingRange {
    fn from(missing: &Missing) -> Self {
        Self { partition: missing.partition, from: missing.from, to: missing.to, why: why(missing.why) }
    }
}

pub(crate) fn why(because: MissingBecause) -> &'static str {
    match because {
        MissingBecause::NotBuilt => "not_built",
        MissingBecause::Expired => "expired",
        MissingBecause::Lost => "lost",
    }
}

/// A cut, its partitions in numerical order as far as JSON readers keep it.
pub(crate) fn cut(cut: &Cut) -> BTreeMap<Partition, Offset> {
    cut.iter().collect()
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("metric", self.metric)?;
        map.serialize_entry("version", &self.version)?;
        map.serialize_entry("from", &instant::format(self.range.start))?;
        map.serialize_entry("to", &instant::format(self.range.end))?;
        map.serialize_entry("step", &self.step)?;
        if let Some(zone) = self.zone {
            map.serialize_entry("tz", zone)?;
        }
        map.serialize_entry("series", &AllSeries(self))?;
        map.serialize_entry("meta", &self.meta)?;
        map.end()
    }
}

struct AllSeries<'a>(&'a Body<'a>);
struct OneSeries<'a>(&'a Body<'a>, &'a Row);
struct Dimensions<'a>(&'a Body<'a>, &'a [DimensionValue]);
struct Points<'a>(&'a Body<'a>, &'a [Point]);
struct OnePoint<'a>(&'a Body<'a>, &'a Point);

impl Serialize for AllSeries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.series.iter().map(|row| OneSeries(self.0, row)))
    }
}

impl Serialize for OneSeries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("dimensions", &Dimensions(self.0, &self.1.values))?;
        map.serialize_entry("points", &Points(self.0, &self.1.points))?;
        map.end()
    }
}

impl Serialize for Dimensions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.1.len()))?;
        for (name, value) in self.0.group_by.iter().zip(self.1) {
            let value = match value {
                DimensionValue::Int(value) => Answer::Int(i128::from(*value)).to_json(self.0.numbers),
                other => other.to_json(),
            };
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

impl Serialize for Points<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.iter().map(|point| OnePoint(self.0, point)))
    }
}

impl Serialize for OnePoint<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.1.answers.len() + 1))?;
        map.serialize_entry("start", &instant::format(self.1.start))?;
        for (ask, answer) in self.0.asks.iter().zip(&self.1.answers) {
            map.serialize_entry(ask.name(), &answer.to_json(self.0.numbers))?;
        }
        map.end()
    }
}
