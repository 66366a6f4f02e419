//! `/metrics` for whoever reads it: described, with units, documented; and the alarms and the dashboard made of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use reqwest::Method;
use serde_json::Value;

use super::{
    clients::clients,
    place::{Place, event},
    process::{Backend, Lamina, run},
};

/// Gauges that count something, are a state, or are an offset.
const UNITLESS: &[&str] = &[
    "lamina_batch_covered_records",
    "lamina_batch_executors",
    "lamina_batch_generation",
    "lamina_batch_leader",
    "lamina_freshness_status",
    "lamina_live_queries",
    "lamina_source_partitions",
    "lamina_speed_position",
    "lamina_speed_topic_refused",
];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every measurement that the program can export, by the constants that name them.
fn exported() -> BTreeSet<String> {
    let mut files = Vec::new();
    for layer in ["src", "speed/src", "batch/src", "serving/src"] {
        sources(&at(layer), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        assert!(!source.contains("!(\"lamina_"), "{}: name measurements by constants", file.display());
        let constants = source.lines().filter_map(|line| line.split_once(": &str = \"lamina_"));
        names.extend(constants.filter_map(|(_, rest)| Some(format!("lamina_{}", rest.split_once('"')?.0))));
    }
    names
}

/// The table of docs/operations.md: name and kind.
fn documented() -> BTreeMap<String, String> {
    let page = text("docs/operations.md");
    let (_, section) = page.split_once("\n## Measurements\n").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells.map(|cells| (cells[0].trim_end_matches('`').to_owned(), cells[1].to_owned())).collect()
}

/// Words of a text that name measurements, without what histograms append.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let families = words.filter(|word| word.starts_with("lamina_"));
    families.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

fn has_unit(name: &str, kind: &str) -> bool {
    match kind {
        "counter" => name.ends_with("_total"),
        "histogram" => name.ends_with("_seconds") || name.ends_with("_bytes"),
        "gauge" => ["_seconds", "_bytes", "_ratio"].iter().any(|unit| name.ends_with(unit)) || UNITLESS.contains(&name),
        _ => false,
    }
}

#[test]
fn every_measurement_is_documented_with_a_unit() {
    let documented = documented();
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), exported(), "the table of docs/operations.md");
    for (name, kind) in &documented {
        assert!(has_unit(name, kind), "{name} is a {kind} without a unit in its name");
    }
}

#[test]
fn alarms_and_dashboard_name_what_there_is() {
    let exported = exported();
    for path in ["deploy/prometheus/lamina.rules.yml", "deploy/grafana/lamina.json"] {
        let named = named_in(&text(path));
        let unknown: Vec<&String> = named.difference(&exported).collect();
        assert!(unknown.is_empty() && named.len() > 5, "{path} names {unknown:?}");
    }
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/lamina.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    // A runbook is a section of the page.
    let anchors: BTreeSet<String> = text("docs/operations.md")
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace(' ', "-").replace(',', ""))
        .collect();
    let rules = text("deploy/prometheus/lamina.rules.yml");
    for runbook in rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: docs/operations.md#")) {
        assert!(anchors.contains(runbook), "{runbook} is no section of docs/operations.md");
    }
}

#[test]
fn what_a_running_lamina_measures_has_help() {
    let place = Place::new(Backend::Embedded);
    let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
    let file = place.path().join("events.ndjson");
    fs::write(&file, (0..100).map(|number| event(number) + "\n").collect::<String>()).unwrap();
    let token = lamina.ingest("hits", &file);
    let range = [("from", "2020-01-01T00:00:00Z"), ("at_least", &token), ("wait", "30s")];
    lamina.query("bytes", &range.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let recomputed = run(&["recompute", "bytes", "--server", &lamina.url]);
    assert!(recomputed.status.success(), "{}", String::from_utf8_lossy(&recomputed.stderr));
    let page = lamina.request(Method::GET, "/metrics").send().unwrap().text().unwrap();
    let told = |comment: &str| -> BTreeMap<&str, &str> {
        page.lines().filter_map(|line| line.strip_prefix(comment)?.split_once(' ')).collect()
    };
    let (help, types, documented) = (told("# HELP "), told("# TYPE "), documented());
    for (name, kind) in &types {
        assert!(help.get(name).is_some_and(|help| help.len() > 10), "{name} has no HELP");
        assert_eq!(documented.get(*name).map(String::as_str), Some(*kind), "{name} in docs/operations.md");
    }
    for name in ["lamina_speed_event_to_visible_seconds", "lamina_batch_runs_total", "lamina_http_request_seconds"] {
        assert!(types.contains_key(name), "no {name} in {page}");
    }
    assert!(page.contains("lamina_speed_event_to_visible_seconds_bucket{source=\"hits\",le=\"1\"}"), "{page}");
    assert!(page.contains("lamina_source_partitions{source=\"hits\",state=\"idle\"} 2"), "{page}");
    assert!(page.contains("lamina_freshness_samples_total{metric=\"bytes\",outcome=\"late\"}"), "{page}");
    let history = lamina.get("/v1/freshness/bytes/history", &[]);
    assert!(history["points"][0]["samples"].as_u64().is_some_and(|samples| samples > 0), "{history}");
}

#[test]
fn alarms_do_what_their_tests_say() {
    let Some(place) = clients() else { return };
    for arguments in [["check", "rules", "lamina.rules.yml"], ["test", "rules", "lamina.rules.test.yml"]] {
        let mut promtool = Command::new(format!("{place}/promtool"));
        let done = promtool.args(arguments).current_dir(at("deploy/prometheus")).output().unwrap();
        let (out, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{arguments:?}: {out}{error}");
    }
}
