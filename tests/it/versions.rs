//! A definition that changes while it is asked, and a recompute that is taken back, by real processes.

use std::fs;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    place::Place,
    process::{Backend, Lamina, run},
};

const EVENTS: u64 = 400;
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z";

const SOURCE: &str = r#"
topic = "TOPIC"
format = "json"
time = "time"
id = "id"
[fields]
time = "timestamp"
id = "string"
size = "int64"
"#;

const METRIC: &str = r#"
source = "visits"
value = "size"
aggregates = ["count", "sum"]
grain = "1m"
rollups = ["1h"]
"#;

/// Every event carries a `kind`, whether or not the source declares it.
fn event(number: u64) -> String {
    let (minute, second, kind) = (number % 5, number % 60, if number.is_multiple_of(4) { "bot" } else { "human" });
    format!(
        r#"{{"time": "2020-01-01T00:0{minute}:{second:02}Z", "id": "v{number}", "size": {number}, "kind": "{kind}"}}"#
    )
}

struct Visits {
    place: Place,
    lamina: Lamina,
}

impl Visits {
    /// With a metric that was defined over HTTP.
    fn new(backend: Backend) -> Self {
        let place = Place::new(backend);
        let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
        let visits = Self { place, lamina };
        visits.define("sources", &SOURCE.replace("TOPIC", &format!("{}-visits", visits.place.name)));
        visits.define("metrics", METRIC);
        visits
    }

    fn define(&self, kind: &str, text: &str) {
        let request = self.lamina.request(Method::PUT, &format!("/v1/{kind}/visits"));
        let answer = request.header("content-type", "application/toml").body(text.to_owned()).send().unwrap();
        let (status, body) = (answer.status(), answer.text().unwrap());
        assert!(status.is_success(), "{kind}: {body}");
    }

    fn send(&self, numbers: std::ops::Range<u64>) {
        let file = self.place.path().join("events.ndjson");
        fs::write(&file, numbers.map(event).collect::<Vec<_>>().join("\n")).unwrap();
        let token = self.lamina.ingest("visits", &file);
        self.ask(&format!("&at_least={token}&wait=30s"));
    }

    fn ask(&self, more: &str) -> Value {
        self.lamina.get(&format!("/v1/metrics/visits/query?{RANGE}&aggregate=count,sum{more}"), &[])
    }

    fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.lamina.request(Method::POST, path).json(body).send().unwrap();
        (answer.status(), answer.json().unwrap())
    }

    fn succeeds(&self, job: &Value) -> Value {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        self.lamina.until(&format!("{path} succeeds"), || {
            let job = self.lamina.get(&path, &[]);
            assert!(!["failed", "cancelled"].contains(&job["state"].as_str().unwrap()), "{job}");
            job["state"] == "succeeded"
        });
        self.lamina.get(&path, &[])
    }
}

fn point(answer: &Value) -> (u64, u64) {
    let point = &answer["series"][0]["points"][0];
    (point["count"].as_u64().unwrap(), point["sum"].as_u64().unwrap())
}

/// Of the numbers below [`EVENTS`].
fn folded(counts: impl Fn(&u64) -> bool) -> (u64, u64) {
    (0..EVENTS).filter(counts).fold((0, 0), |(count, sum), number| (count + 1, sum + number))
}

fn the_old_version_answers_until_the_new_one_is_built(backend: Backend) {
    if backend.skipped() {
        return;
    }
    let visits = Visits::new(backend);
    visits.send(0..EVENTS);
    let everything = folded(|_| true);
    assert_eq!(point(&visits.ask("")), everything);
    visits.lamina.recompute_all();
    let before: Value = visits.lamina.get("/v1/metrics/visits", &[]);

    // A field that no event was ever decoded with, and a metric that leaves some events out by it.
    visits.define(
        "sources",
        &format!("{}kind = \"string\"\n", SOURCE.replace("TOPIC", &format!("{}-visits", visits.place.name))),
    );
    visits.define("metrics", &format!("where = \"kind = 'human'\"\ndimensions = [\"kind\"]\n{METRIC}"));
    let during: Value = visits.lamina.get("/v1/metrics/visits", &[]);
    assert_eq!((&during["version"], &during["definition"]), (&before["version"], &before["definition"]));
    assert_ne!(during["etag"], before["etag"], "the one that was defined last is what If-Match is for");
    let mut asked = [0, 0];
    visits.lamina.until("the new version answers", || {
        let answer = visits.ask("");
        assert_eq!(answer["meta"]["complete"], true, "{answer}");
        let new = answer["version"] != before["version"];
        let expected = if new { folded(|number| !number.is_multiple_of(4)) } else { everything };
        assert_eq!(point(&answer), expected, "{answer}");
        asked[usize::from(new)] += 1;
        asked[1] > 5
    });
    assert!(asked[0] > 0, "the old version was never asked while the new one was built");
    let by_kind = visits.ask("&group_by=kind");
    assert_eq!(by_kind["series"][0]["dimensions"]["kind"], "human", "{by_kind}");
    let after: Value = visits.lamina.get("/v1/metrics/visits", &[]);
    assert!(after["building"].is_null(), "{after}");

    let jobs = visits.lamina.get("/v1/jobs?kind=build&state=succeeded", &[]);
    let label = format!("visits@{}", after["version"]);
    let mut built = jobs["jobs"].as_array().unwrap().iter().filter_map(|job| job["result"]["metrics"].get(&label));
    let compared = built.any(|built| built["comparison"]["differing"].as_u64() > Some(0));
    assert!(compared, "no build of {label} told what changes: {jobs}");
}

#[test]
fn the_old_version_answers_until_the_new_one_is_built_embedded() {
    the_old_version_answers_until_the_new_one_is_built(Backend::Embedded);
}

#[test]
fn the_old_version_answers_until_the_new_one_is_built_on_kafka_and_cassandra() {
    the_old_version_answers_until_the_new_one_is_built(Backend::Real);
}

fn a_recompute_can_be_taken_back(backend: Backend) {
    if backend.skipped() {
        return;
    }
    let visits = Visits::new(backend);
    let path = "/v1/metrics/visits/rollback";
    let generation = |visits: &Visits| visits.ask("")["meta"]["batch"]["generation"].as_u64().unwrap();
    visits.send(0..EVENTS / 2);
    visits.lamina.until("batch covers what was sealed", || {
        visits.succeeds(&visits.post("/v1/schedule/run", &json!({})).1);
        generation(&visits) > 0
    });
    let (status, problem) = visits.post(path, &json!({}));
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &"not_kept".into()), "{problem}");

    let first = generation(&visits);
    visits.succeeds(&visits.post("/v1/recomputes", &json!({"metric": "visits"})).1);
    visits.send(EVENTS / 2..EVENTS);
    let second = generation(&visits);
    assert!(second > first);

    let done = visits.succeeds(&visits.post(path, &json!({"generation": first, "reason": "test"})).1);
    assert_eq!((&done["kind"], &done["request"]["reason"]), (&"rollback".into(), &"test".into()));
    assert_eq!((point(&visits.ask("")), &visits.ask("")["meta"]["complete"]), (folded(|_| true), &true.into()));
    let kept = visits.lamina.get("/v1/metrics/visits", &[])["views"][0]["kept"].clone();
    assert_eq!(kept.as_array().unwrap().len(), 2, "{kept}");
    let third = generation(&visits);
    assert!(third > second);

    let back = run(&["rollback", "visits", "--generation", &second.to_string(), "--server", &visits.lamina.url]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    assert!(generation(&visits) > third);
    assert_eq!(point(&visits.ask("")), folded(|_| true));
    let (status, problem) = visits.post(path, &json!({"generation": 1, "as_of": "2020-01-01T00:00:00Z"}));
    assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &"bad_parameter".into()), "{problem}");
}

#[test]
fn a_recompute_can_be_taken_back_embedded() {
    a_recompute_can_be_taken_back(Backend::Embedded);
}

#[test]
fn a_recompute_can_be_taken_back_on_kafka_and_cassandra() {
    a_recompute_can_be_taken_back(Backend::Real);
}
