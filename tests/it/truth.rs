//! Independently computed truths of real data sets, and how they are asked of lamina: `examples/truths.toml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

/// One data set: how its truths are asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataSet {
    /// Truths, or columns of them (`truth.column`), that these aggregates cannot express, with the reason.
    #[serde(default)]
    pub(crate) left_out: BTreeMap<String, String>,
    pub(crate) query: Vec<Truth>,
}

/// One truth as a query; the format is told in `examples/truths.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Truth {
    pub(crate) truth: String,
    pub(crate) metric: String,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) map: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) how: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) rows: Rows,
    pub(crate) absent: Option<f64>,
}

/// Whether the answer may have points that the truth does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rows {
    #[default]
    Equal,
    Subset,
}

/// The data folder beside the project, if it is there. Continuous integration must have it.
pub(crate) fn data_folder() -> Option<PathBuf> {
    let given = std::env::var_os("LAMINA_TEST_DATA").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"));
    let there = folder.join("wikiticker.ndjson.gz").is_file();
    assert!(
        there || !super::process::in_ci(),
        "{} must hold the real data sets in continuous integration",
        folder.display()
    );
    if !there {
        eprintln!(
            "skipped: {} does not hold the real data sets (LAMINA_TEST_DATA names another folder)",
            folder.display()
        );
    }
    there.then_some(folder)
}

/// The events of a data set.
pub(crate) fn file_of(data: &Path, name: &str) -> PathBuf {
    let forms = ["ndjson.gz", "csv.gz"].map(|form| data.join(format!("{name}.{form}")));
    forms.into_iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("{} holds no {name}", data.display()))
}

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

pub(crate) fn data_sets() -> BTreeMap<String, DataSet> {
    let path = examples().join("truths.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of every truth of a data set.
pub(crate) fn truths(data: &Path, name: &str) -> BTreeMap<String, Vec<Value>> {
    let path = data.join(format!("{name}.truth.json"));
    let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let truths = &file["truths"];
    let rows = |truth: &Value| truth["rows"].as_array().expect("rows").clone();
    match truths {
        Value::Array(list) => {
            list.iter().map(|truth| (truth["name"].as_str().unwrap().to_owned(), rows(truth))).collect()
        }
        Value::Object(map) => map.iter().map(|(name, truth)| (name.clone(), rows(truth))).collect(),
        other => panic!("{}: truths are {other}", path.display()),
    }
}

impl Truth {
    /// The query's parameters, with the aggregates that are compared.
    pub(crate) fn parameters(&self) -> Vec<(String, String)> {
        let mut asked: Vec<&str> = self.map.values().filter_map(|what| what.strip_prefix("aggregate:")).collect();
        asked.sort_unstable();
        asked.dedup();
        let given = self.params.iter().map(|(name, value)| (name.clone(), value.clone()));
        given.chain([("aggregate".to_owned(), asked.join(","))]).collect()
    }

    /// Every difference between the answer and the truth, in words.
    pub(crate) fn differences(&self, answer: &Value, truth: &[Value]) -> Vec<String> {
        let mut found = self.points(answer);
        let mut differences = Vec::new();
        for row in truth {
            let is_it = |point: &BTreeMap<&str, Value>| {
                self.keys().all(|(column, what)| same_key(what, &point[column], &row[column]))
            };
            match found.iter().position(is_it) {
                Some(at) => differences.extend(self.compare(row, &found.swap_remove(at))),
                None if self
                    .absent
                    .is_some_and(|absent| self.values().all(|(column, _)| row[column].as_f64() == Some(absent))) => {}
                None => differences.push(format!("{row} is not in the answer")),
            }
        }
        if self.rows == Rows::Equal {
            differences.extend(found.into_iter().map(|point| format!("{point:?} is not in the truth")));
        }
        differences
    }

    fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.map
            .iter()
            .map(|(column, what)| (column.as_str(), what.as_str()))
            .filter(|(_, what)| !what.starts_with("aggregate:"))
    }

    fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.map.iter().filter_map(|(column, what)| Some((column.as_str(), what.strip_prefix("aggregate:")?)))
    }

    /// The answer's points as columns of the truth.
    fn points(&self, answer: &Value) -> Vec<BTreeMap<&str, Value>> {
        let mut points = Vec::new();
        for series in answer["series"].as_array().expect("series") {
            for point in series["points"].as_array().expect("points") {
                let cell = |what: &str| match what.split_once(':') {
                    None => point["start"].clone(),
                    Some(("dimension", name)) => {
                        series["dimensions"].get(name).unwrap_or_else(|| panic!("no dimension {name}")).clone()
                    }
                    Some((_, name)) => {
                        point.get(name).unwrap_or_else(|| panic!("no aggregate {name} in {point}")).clone()
                    }
                };
                points.push(self.map.iter().map(|(column, what)| (column.as_str(), cell(what))).collect());
            }
        }
        points
    }

    fn compare(&self, wanted: &Value, got: &BTreeMap<&str, Value>) -> Vec<String> {
        let differs = self.values().filter(|(column, _)| {
            let (wanted, got) =
                (wanted.get(column).unwrap_or_else(|| panic!("{}: no column {column}", self.truth)), &got[column]);
            match self.how.get(*column).map_or("exact", String::as_str) {
                "exact" => exact(wanted) != exact(got),
                "float" => !close(wanted, got, 1e-9),
                "quantile" => !close(wanted, got, 0.01),
                "distinct" => !close(wanted, got, 0.05),
                other => panic!("{}: {other:?} is no way to compare", self.truth),
            }
        });
        differs
            .map(|(column, _)| format!("{column} is {} and should be {} in {wanted}", got[column], wanted[column]))
            .collect()
    }
}

/// A start is the same if the truth's text is its beginning; a dimension that is null equals null and the empty text.
fn same_key(what: &str, got: &Value, wanted: &Value) -> bool {
    match what {
        "start" => text(got).starts_with(&text(wanted)),
        _ => text(got) == text(wanted),
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
        Some((whole, fraction)) => {
            format!("{whole}.{}", fraction.trim_end_matches('0')).trim_end_matches('.').to_owned()
        }
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
            "truth = 't'\nmetric = 'm'\nparams = {}\nmap = { day = 'start', who = 'dimension:who', n = 'aggregate:count', \
             avg = 'aggregate:avg' }\nhow = { avg = 'float' }",
        )
        .unwrap()
    }

    #[test]
    fn a_difference_of_any_kind_is_seen() {
        let answer = |n: i64, avg: f64| json!({"series": [{"dimensions": {"who": null}, "points": [{"start": "2020-01-02T00:00:00Z", "count": n, "avg": avg}]}]});
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
