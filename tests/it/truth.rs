//! Independently computed truths of real data sets, and how they are asked of lamina: `examples/truths.toml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

/// One data set: its file and how its truths are asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSet {
    pub file: String,
    pub source: String,
    /// Truths that these aggregates cannot express, with the reason.
    #[serde(default)]
    pub left_out: BTreeMap<String, String>,
    pub truths: Vec<Truth>,
}

/// One truth as a query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    pub truth: String,
    pub metric: String,
    pub query: BTreeMap<String, String>,
    /// Column of the truth → `start`, `start FORMAT`, `dimension NAME` or `aggregate NAME`.
    pub columns: BTreeMap<String, String>,
    /// Column → `float` (1e-9 relative) or `sketch ERROR`; left out: exact.
    #[serde(default)]
    pub tolerance: BTreeMap<String, String>,
}

/// The data folder beside the project, if it is there. Continuous integration must have it.
pub fn data_folder() -> Option<PathBuf> {
    let given = std::env::var_os("LAMINA_TEST_DATA").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    let there = folder.join("wikiticker.ndjson.gz").is_file();
    assert!(there || !super::process::in_ci(), "{} must hold the real data sets in continuous integration", folder.display());
    if !there {
        eprintln!("skipped: {} does not hold the real data sets (LAMINA_TEST_DATA names another folder)", folder.display());
    }
    there.then_some(folder)
}

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

pub fn data_sets() -> BTreeMap<String, DataSet> {
    let path = examples().join("truths.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of every truth of a data set.
pub fn truths(data: &Path, name: &str) -> BTreeMap<String, Vec<Value>> {
    let path = data.join(format!("{name}.truth.json"));
    let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let truths = &file["truths"];
    let rows = |truth: &Value| truth["rows"].as_array().expect("rows").clone();
    match truths {
        Value::Array(list) => list.iter().map(|truth| (truth["name"].as_str().unwrap().to_owned(), rows(truth))).collect(),
        Value::Object(map) => map.iter().map(|(name, truth)| (name.clone(), rows(truth))).collect(),
        other => panic!("{}: truths are {other}", path.display()),
    }
}

impl Truth {
    pub fn parameters(&self) -> Vec<(String, String)> {
        self.query.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Every difference between the answer and the truth, in words.
    pub fn differences(&self, answer: &Value, truth: &[Value]) -> Vec<String> {
        let found = self.rows(answer);
        let key = |row: &BTreeMap<String, Value>| {
            let parts = self.columns.iter().filter(|(_, what)| !what.starts_with("aggregate"));
            parts.map(|(column, _)| text(&row[column])).collect::<Vec<_>>()
        };
        let wanted = truth.iter().map(|row| {
            let cell = |column: &String| {
                let value = row.get(column).unwrap_or_else(|| panic!("truth {} has no column {column}", self.truth));
                (column.clone(), value.clone())
            };
            self.columns.keys().map(cell).collect::<BTreeMap<_, _>>()
        });
        let mut found: BTreeMap<Vec<String>, Vec<_>> = found.into_iter().fold(BTreeMap::new(), |mut all, row| {
            all.entry(key(&row)).or_insert_with(Vec::new).push(row);
            all
        });
        let mut differences = Vec::new();
        for row in wanted {
            match found.get_mut(&key(&row)).and_then(Vec::pop) {
                None => differences.push(format!("{row:?} is not in the answer")),
                Some(got) => differences.extend(self.compare(&row, &got)),
            }
        }
        let left = found.into_values().flatten().map(|row| format!("{row:?} is not in the truth"));
        differences.into_iter().chain(left).collect()
    }

    fn rows(&self, answer: &Value) -> Vec<BTreeMap<String, Value>> {
        let mut rows = Vec::new();
        for series in answer["series"].as_array().expect("series") {
            for point in series["points"].as_array().expect("points") {
                let cell = |what: &str| match what.split_once(' ') {
                    None => point["start"].clone(),
                    Some(("start", form)) => {
                        let start: DateTime<Utc> = point["start"].as_str().expect("a start").parse().expect("a time");
                        start.format(form).to_string().into()
                    }
                    Some(("dimension", name)) => series["dimensions"].get(name).unwrap_or_else(|| panic!("no dimension {name}")).clone(),
                    Some((_, name)) => point.get(name).unwrap_or_else(|| panic!("no aggregate {name} in {point}")).clone(),
                };
                rows.push(self.columns.iter().map(|(column, what)| (column.clone(), cell(what))).collect());
            }
        }
        rows
    }

    fn compare(&self, wanted: &BTreeMap<String, Value>, got: &BTreeMap<String, Value>) -> Vec<String> {
        let aggregates = self.columns.iter().filter(|(_, what)| what.starts_with("aggregate"));
        let differs = aggregates.filter(|(column, _)| {
            let (wanted, got) = (&wanted[*column], &got[*column]);
            match self.tolerance.get(*column).map(|tolerance| tolerance.split_once(' ').unwrap_or((tolerance, ""))) {
                None => exact(wanted) != exact(got),
                Some(("float", _)) => !close(wanted, got, 1e-9),
                Some(("sketch", error)) => !close(wanted, got, error.parse().expect("an error bound")),
                Some((other, _)) => panic!("{}: tolerance {other:?} is not known", self.truth),
            }
        });
        differs.map(|(column, _)| format!("{column} is {} and should be {} in {wanted:?}", got[column], wanted[column])).collect()
    }
}

/// A key: null and the empty text are the same.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => exact(other),
    }
}

/// A number in its shortest form, so that 1.50 equals 1.5 and nothing else.
fn exact(value: &Value) -> String {
    let Value::Number(number) = value else { return value.to_string() };
    let text = number.to_string();
    if text.contains(['e', 'E']) {
        return number.as_f64().expect("a number").to_string();
    }
    match text.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{}", fraction.trim_end_matches('0')).trim_end_matches('.').to_owned(),
        None => text,
    }
}

fn close(wanted: &Value, got: &Value, error: f64) -> bool {
    match (wanted.as_f64(), got.as_f64()) {
        (Some(wanted), Some(got)) => (wanted - got).abs() <= error * wanted.abs().max(f64::MIN_POSITIVE),
        _ => wanted.is_null() && got.is_null(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn truth() -> Truth {
        toml::from_str(
            "truth = 't'\nmetric = 'm'\nquery = {}\ncolumns = { day = 'start %Y-%m-%d', who = 'dimension who', n = 'aggregate count', \
             avg = 'aggregate avg' }\ntolerance = { avg = 'float' }",
        )
        .unwrap()
    }

    #[test]
    fn a_difference_of_any_kind_is_seen() {
        let answer = |n: i64, avg: f64| {
            json!({"series": [{"dimensions": {"who": null}, "points": [{"start": "2020-01-02T00:00:00Z", "count": n, "avg": avg}]}]})
        };
        let wanted = [json!({"day": "2020-01-02", "who": "", "n": 3, "avg": 0.1, "other": 1})];
        assert!(truth().differences(&answer(3, 0.100_000_000_000_01), &wanted).is_empty());
        assert_eq!(truth().differences(&answer(4, 0.1), &wanted).len(), 1);
        assert_eq!(truth().differences(&answer(3, 0.100_001), &wanted).len(), 1);
        assert_eq!(truth().differences(&answer(3, 0.1), &[]).len(), 1);
        assert_eq!(truth().differences(&json!({"series": []}), &wanted).len(), 1);
    }

    #[test]
    fn decimals_are_equal_by_value() {
        assert_eq!(exact(&json!(1.5)), exact(&serde_json::from_str("1.500").unwrap()));
        assert_ne!(exact(&json!(1.5)), exact(&serde_json::from_str("1.501").unwrap()));
        assert_eq!(exact(&json!(10)), exact(&serde_json::from_str("10.0").unwrap()));
    }
}
