//! Served against recomputed, value by value.

use std::collections::BTreeMap;

use lamina_core::Micros;
use lamina_metric::{Answer, Ask, DimensionValue, Length, Numbers, Series, ValueType, time::format_time};
use serde_json::{Map, Value, json};

use super::{Asked, recompute::Sums};

/// Sums of floats may differ by so much, relatively, since their terms come in another order.
const FLOAT_ERROR: f64 = 1e-9;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few differ in the archive, and all are few")]
pub(super) enum Difference {
    Value {
        metric: String,
        series: Value,
        bucket: Micros,
        width: Micros,
        aggregate: String,
        /// Null where there is no such series.
        served: Value,
        recomputed: Value,
    },
    /// Of a source's archive.
    Archive { source: String, what: String },
}

impl Difference {
    pub(super) fn archive(source: &str, what: String) -> Self {
        Self::Archive { source: source.to_owned(), what }
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Value { metric, series, bucket, width, aggregate, served, recomputed } => {
                json!({"metric": metric, "series": series, "bucket": format_time(*bucket), "step": Length(*width).to_string(),
                    "aggregate": aggregate, "served": served, "recomputed": recomputed})
            }
            Self::Archive { source, what } => {
                json!({"metric": format!("source {source}"), "archive": what, "series": what})
            }
        }
    }
}

/// What an audit found.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) buckets: u64,
    pub(super) series: u64,
    pub(super) values: u64,
    pub(super) files: u64,
    pub(super) rows: u64,
    /// Sampled buckets that are no longer kept.
    pub(super) past_retention: u64,
    pub(super) differences: Vec<Difference>,
    /// What could not be compared, and why.
    pub(super) not_compared: Vec<(String, String)>,
}

impl Report {
    pub(super) fn unknown(&mut self, what: String, why: String) {
        self.not_compared.push((what, why));
    }

    pub(super) fn to_json(&self) -> Value {
        let not_compared = self.not_compared.iter().map(|(what, why)| json!({"what": what, "why": why}));
        json!({
            "seed": self.seed, "buckets": self.buckets, "series": self.series, "values": self.values, "files": self.files,
            "rows": self.rows, "past_retention": self.past_retention,
            "differences": self.differences.iter().map(Difference::to_json).collect::<Vec<_>>(),
            "not_compared": not_compared.collect::<Vec<_>>(),
        })
    }

    pub(super) fn summary(&self) -> String {
        let Self { seed, buckets, series, values, files, rows, .. } = self;
        let mut text = format!(
            "{buckets} buckets, {series} series, {values} values compared with {rows} records of {files} archive files (seed {seed}): {}",
            if self.differences.is_empty() {
                "no difference".to_owned()
            } else {
                format!("{} differences", self.differences.len())
            }
        );
        for (what, why) in &self.not_compared {
            text.push_str(&format!("\nnot compared: {what}: {why}"));
        }
        text
    }

    /// 1 if something differs; 2 if nothing does, but something, or everything, could not be compared.
    pub(super) fn code(&self) -> u8 {
        match (self.differences.is_empty(), self.not_compared.is_empty() && self.buckets > 0) {
            (false, _) => 1,
            (true, true) => 0,
            (true, false) => 2,
        }
    }
}

/// Holds one answer against what was recomputed for it.
pub(super) fn compare(asked: &Asked, sums: Sums, report: &mut Report) -> Result<(), String> {
    let names = asked.dimensions();
    let points = asked.answer["series"].as_array().into_iter().flatten();
    let served: BTreeMap<String, (&Value, &Value)> = points
        .filter(|one| one["points"][0].is_object())
        .map(|one| (one["dimensions"].to_string(), (&one["dimensions"], &one["points"][0])))
        .collect();
    let mut recomputed = BTreeMap::new();
    let all: Vec<&Series> = sums.rows.keys().collect();
    let expired = asked.metric.by_rules(&asked.metric.views[asked.view], &asked.expired, Micros::max, &all)?;
    let kept = sums.rows.iter().zip(expired).filter(|(_, expired)| expired.is_none());
    for ((series, &row), _) in kept {
        let dimensions = dimensions(&names, series)?;
        recomputed.insert(dimensions.to_string(), (dimensions, row));
    }
    let truncated = asked.answer["meta"]["truncated"] == json!(true);
    let points = served.values().filter_map(|(_, point)| point.as_object());
    let mut aggregates: Vec<String> = points.take(1).flat_map(|point| point.keys().cloned()).collect();
    aggregates.retain(|name| name != "start");
    if aggregates.is_empty() {
        aggregates.push("count".to_owned());
    }
    let asks: Vec<Ask> = aggregates.iter().map(|name| Ask::parse(name, &asked.metric)).collect::<Result<_, _>>()?;
    report.buckets += 1;
    let float = asked.metric.value_type == ValueType::Float64;
    let keys: std::collections::BTreeSet<&String> = served.keys().chain(recomputed.keys()).collect();
    for key in keys {
        let (stands, comes) = (served.get(key), recomputed.get(key));
        // An answer that was cut holds the first series only.
        if stands.is_none() && truncated {
            continue;
        }
        report.series += 1;
        for ask in &asks {
            report.values += 1;
            let served = stands.map_or(Value::Null, |(_, point)| point[ask.name()].clone());
            let answer = |row: usize| {
                sums.states
                    .answer(row, ask)
                    .map_or_else(|error| json!(error.to_string()), |answer| answer.to_json(Numbers::Number))
            };
            let recomputed = comes.map_or(Value::Null, |(_, row)| answer(*row));
            if same(&served, &recomputed, float) {
                continue;
            }
            let series = stands.map(|(dimensions, _)| (*dimensions).clone());
            let series = series.or_else(|| comes.map(|(dimensions, _)| dimensions.clone())).unwrap_or_default();
            report.differences.push(Difference::Value {
                metric: asked.metric.name.clone(),
                series,
                bucket: asked.bucket,
                width: asked.width,
                aggregate: ask.name().to_owned(),
                served,
                recomputed,
            });
        }
    }
    Ok(())
}

/// A series as the server writes it.
fn dimensions(names: &[&str], series: &Series) -> Result<Value, String> {
    let values = series.values().map_err(|error| error.to_string())?;
    let value = |value: &DimensionValue| match value {
        DimensionValue::Int(value) => Answer::Int(i128::from(*value)).to_json(Numbers::Number),
        other => other.to_json(),
    };
    let named = names.iter().zip(&values).map(|(name, one)| ((*name).to_owned(), value(one)));
    Ok(named.collect::<Map<_, _>>().into())
}

/// Equal by value; what is made of floats within its error, and of the most frequent the counts within what they say of
/// themselves.
fn same(served: &Value, recomputed: &Value, float: bool) -> bool {
    if served == recomputed {
        return true;
    }
    if let (Some(a), Some(b)) = (served.as_array(), recomputed.as_array()) {
        let number = |item: &Value, name: &str| item[name].as_f64().unwrap_or(0.0);
        let close = |a: &Value, b: &Value| {
            (number(a, "count") - number(b, "count")).abs() <= number(a, "error") + number(b, "error")
        };
        let known = |item: &Value| b.iter().find(|other| other["value"] == item["value"]);
        return a.iter().all(|item| known(item).is_none_or(|other| close(item, other)));
    }
    match (served.as_f64(), recomputed.as_f64()) {
        (Some(a), Some(b)) if float => (a - b).abs() <= FLOAT_ERROR * a.abs().max(b.abs()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn whole_numbers_are_equal_or_not_and_floats_within_their_error() {
        let cases = [
            ("9007199254740993", "9007199254740992", false, false),
            ("7", "7", false, true),
            ("0.30", "0.31", false, false),
            ("0.30000000000000004", "0.3", true, true),
            ("0.3000001", "0.3", true, false),
            ("null", "0", true, false),
            ("\"a\"", "\"b\"", true, false),
        ];
        for (a, b, float, equal) in cases {
            assert_eq!(same(&json(a), &json(b), float), equal, "{a} {b}");
        }
    }

    #[test]
    fn the_most_frequent_may_differ_by_what_they_say_of_themselves() {
        let a = json(r#"[{"value": "x", "count": 10, "error": 2}, {"value": "y", "count": 5, "error": 2}]"#);
        let b = json(r#"[{"value": "x", "count": 11, "error": 0}]"#);
        assert!(same(&a, &b, false));
        assert!(!same(&a, &json(r#"[{"value": "x", "count": 13, "error": 0}]"#), false));
    }

    #[test]
    fn a_difference_is_1_and_what_cannot_be_told_is_2() {
        let mut report = Report::default();
        assert_eq!(report.code(), 2, "nothing was compared");
        report.buckets = 1;
        assert_eq!(report.code(), 0);
        report.unknown("a bucket".to_owned(), "not complete".to_owned());
        assert_eq!(report.code(), 2);
        report.differences.push(Difference::archive("s", "a file is missing".to_owned()));
        assert_eq!(report.code(), 1);
    }
}
