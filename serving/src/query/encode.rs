//! An answer as JSON, with keys in the order of the contract.

use lamina_metric::{Answer, DimensionValue, Numbers};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    instant,
    query::{
        Document,
        meta::Meta,
        question::{Column, Question},
        table::{Point, Row},
    },
};

/// A whole answer, or a page of one.
pub(crate) struct Body<'a> {
    pub(crate) document: &'a Document,
    pub(crate) rows: &'a [Row],
    pub(crate) meta: &'a Meta,
    /// Of a page: where the next one begins, if there is one.
    pub(crate) next: Option<Option<&'a str>>,
}

impl Body<'_> {
    /// What stands before the series.
    fn head<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let Question { subject, params, range, .. } = &self.document.question;
        map.serialize_entry("metric", subject.name())?;
        map.serialize_entry("version", &subject.version())?;
        map.serialize_entry("from", &instant::format(range.start))?;
        map.serialize_entry("to", &instant::format(range.end))?;
        map.serialize_entry("step", &params.step.as_ref().map(|(_, text)| text.as_str()))?;
        if let Some(zone) = params.zone {
            map.serialize_entry("tz", zone.name())?;
        }
        Ok(())
    }

    fn tail<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("meta", self.meta)?;
        if let Some(next) = &self.next {
            map.serialize_entry("next_page_token", next)?;
        }
        Ok(())
    }

    pub(crate) fn points(&self) -> usize {
        self.rows.iter().map(|row| row.points.len()).sum()
    }

    pub(crate) fn columns(&self) -> &[Column] {
        &self.document.question.columns
    }

    pub(crate) fn numbers(&self) -> Numbers {
        self.document.question.params.numbers
    }

    pub(crate) fn group_by(&self) -> &[String] {
        &self.document.question.params.group_by
    }
}

/// All but the series.
pub(crate) struct Frame<'a>(pub(crate) &'a Body<'a>, pub(crate) Option<usize>);

impl Serialize for Frame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(rows) = self.1 {
            map.serialize_entry("rows", &rows)?;
        }
        self.0.head(&mut map)?;
        self.0.tail(&mut map)?;
        map.end()
    }
}

/// A point with its dimensions.
pub(crate) struct Line<'a>(pub(crate) &'a Body<'a>, pub(crate) &'a Row, pub(crate) &'a Point);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("dimensions", &Dimensions(self.0, &self.1.values))?;
        point(self.0, self.2, &mut map)?;
        map.end()
    }
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.head(&mut map)?;
        map.serialize_entry("series", &AllSeries(self))?;
        self.tail(&mut map)?;
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
        serializer.collect_seq(self.0.rows.iter().map(|row| OneSeries(self.0, row)))
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
        for (name, value) in self.0.group_by().iter().zip(self.1) {
            let value = match value {
                DimensionValue::Int(value) => Answer::Int(i128::from(*value)).to_json(self.0.numbers()),
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
        point(self.0, self.1, &mut map)?;
        map.end()
    }
}

fn point<M: SerializeMap>(body: &Body<'_>, point: &Point, map: &mut M) -> Result<(), M::Error> {
    map.serialize_entry("start", &instant::format(point.start))?;
    for (column, answer) in body.columns().iter().zip(&point.answers) {
        map.serialize_entry(&column.name, &answer.to_json(body.numbers()))?;
    }
    Ok(())
}
