//! Short-lived chunks on a real node, by real processes: touched while batch is away, named as missing once nobody touches
//! them, and whole again once a worker is back. And rules of expiry, which leave out what they take, whatever is still stored.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{
    place::{Place, count_and_sum, event},
    process::{Backend, LAMINA, Lamina, configure, run},
};

const TTL: Duration = Duration::from_secs(20);
const EVENTS: usize = 300;
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z&aggregate=count,sum";

/// A process with one role. Killed when dropped.
struct Role {
    child: Child,
    url: String,
    client: reqwest::blocking::Client,
}

impl Role {
    fn start(place: &Place, role: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (config, _) = configure(place.path(), &place.settings(), &place.name);
        let text = fs::read_to_string(&config).unwrap();
        let lines = text.lines().map(|line| match line.split(' ').next() {
            Some("listen") => format!("listen = \"127.0.0.1:{port}\""),
            Some("epoch") => format!("{line}\nttl = \"{}s\"", TTL.as_secs()),
            _ => line.to_owned(),
        });
        let config = place.path().join(format!("{role}.toml"));
        fs::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let log =
            fs::OpenOptions::new().create(true).append(true).open(place.path().join(format!("{role}.log"))).unwrap();
        let child = Command::new(LAMINA)
            .args(["serve", "--role", role, "--config", &config.to_string_lossy()])
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let role = Self { child, url: format!("http://127.0.0.1:{port}"), client: super::process::client() };
        role.until("it is ready", || role.status("/readyz") == 200);
        role
    }

    fn status(&self, path: &str) -> u16 {
        self.client.get(format!("{}{path}", self.url)).send().map_or(0, |answer| answer.status().as_u16())
    }

    fn text(&self, path: &str) -> String {
        let answer = self.client.get(format!("{}{path}", self.url)).send().unwrap();
        let (status, text) = (answer.status(), answer.text().unwrap());
        assert!(status.is_success(), "GET {path}: {status} {text}");
        text
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path)).unwrap()
    }

    /// Whether the answer is complete, and then it is exact.
    fn is_complete(&self) -> (bool, Value) {
        let answer = self.get(&format!("/v1/metrics/bytes/query?{RANGE}"));
        let point = &answer["series"][0]["points"][0];
        let found = (point["count"].as_u64().unwrap_or(0), point["sum"].as_u64().unwrap_or(0));
        let complete = answer["meta"]["complete"] == true;
        assert!(found == count_and_sum(EVENTS) || !complete, "{found:?}: {answer}");
        (complete, answer)
    }

    fn sealed(&self) -> Vec<Value> {
        let answer = self.get("/v1/sources/hits/epochs");
        let partitions = answer["partitions"].as_array().unwrap();
        partitions.iter().flat_map(|one| one["epochs"].as_array().unwrap().clone()).collect()
    }

    fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let from = Instant::now();
        while !condition() {
            assert!(from.elapsed() < Duration::from_secs(90), "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ids(epochs: &[Value]) -> Vec<&Value> {
    epochs.iter().map(|epoch| &epoch["id"]).collect()
}

#[test]
fn chunks_outlive_a_batch_outage_and_past_one_of_the_workers_answers_say_what_is_missing_until_it_is_rebuilt() {
    if Backend::Real.skipped() {
        return;
    }
    let place = Place::new(Backend::Real);
    let (config, _) = configure(place.path(), &place.settings(), &place.name);
    let migrated = run(&["migrate", "--config", &config.to_string_lossy()]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let serving = Role::start(&place, "serving");
    let speed = Role::start(&place, "speed");
    let body: String = (0..EVENTS).map(|number| event(number) + "\n").collect();
    let sent = serving.client.post(format!("{}/v1/sources/hits/events", serving.url)).body(body).send().unwrap();
    assert_eq!(sent.status(), 202);
    serving.until("all is sealed", || {
        let offsets = |epoch: &Value| epoch["end"].as_u64().unwrap() - epoch["start"].as_u64().unwrap();
        serving.sealed().iter().map(offsets).sum::<u64>() == EVENTS as u64
    });
    let before = serving.sealed();

    // Batch is away for more than twice the time to live.
    let (began, mut warned) = (Instant::now(), false);
    while began.elapsed() < TTL * 2 + Duration::from_secs(5) {
        let (complete, answer) = serving.is_complete();
        assert!(complete, "after {:?}: {answer}", began.elapsed());
        let fresh = serving.get("/v1/freshness/bytes");
        let metric = &fresh["metrics"][0];
        assert_ne!(metric["status"], "breach", "{metric}");
        assert!(metric["ttl_headroom_ms"].as_i64().is_some_and(|left| left > 0), "{metric}");
        let reason = metric["reason"].as_str().unwrap_or_default();
        warned |= metric["status"] == "warn" && reason.contains("batch has not covered");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(warned, "past half of the time to live nothing was said");
    let touched = serving.sealed();
    assert_eq!(ids(&touched), ids(&before), "a touch keeps the epochs");
    let alive = |epochs: &[Value]| epochs[0]["alive_until"].as_i64().unwrap();
    assert!(alive(&touched) > alive(&before) + 20_000_000);
    assert!(speed.text("/metrics").contains("lamina_speed_touched_epochs_total"), "{}", speed.text("/metrics"));
    let metrics = serving.text("/metrics");
    for gauge in ["lamina_ttl_headroom_seconds{metric=\"bytes\"}", "lamina_freshness_status{metric=\"bytes\"} 1"] {
        assert!(metrics.contains(gauge), "{gauge} is not in {metrics}");
    }

    // Nobody touches: what may be gone is named, and no answer is silently low, while it goes and once it is gone.
    drop(speed);
    serving.until("the answer says that it is not complete", || !serving.is_complete().0);
    let over = Instant::now();
    while over.elapsed() < TTL / 2 {
        let (complete, answer) = serving.is_complete();
        assert!(!complete);
        let missing = answer["meta"]["missing"].as_array().unwrap();
        let named: u64 = missing.iter().map(|one| one["to"].as_u64().unwrap() - one["from"].as_u64().unwrap()).sum();
        assert!(named <= EVENTS as u64 && missing.iter().all(|one| one["why"] == "expired"), "{answer}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let (_, answer) = serving.is_complete();
    let missing = answer["meta"]["missing"].as_array().unwrap();
    let named: u64 = missing.iter().map(|one| one["to"].as_u64().unwrap() - one["from"].as_u64().unwrap()).sum();
    assert_eq!(named, EVENTS as u64, "{answer}");
    assert_eq!(serving.status("/v1/freshness?fail_on=breach"), 503);
    let fresh = serving.get("/v1/freshness/bytes");
    let reason = fresh["metrics"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("partition") && reason.contains("expired") && reason.contains("rebuilds"), "{fresh}");

    let speed = Role::start(&place, "speed");
    let back = Instant::now();
    serving.until("the epochs are rebuilt", || serving.is_complete().0);
    eprintln!("complete again {:?} after the worker is back", back.elapsed());
    let rebuilt = serving.sealed();
    assert!(ids(&rebuilt).iter().all(|id| !ids(&before).contains(id)), "each under a new id");
    assert!(speed.text("/metrics").contains("lamina_speed_repaired_epochs_total"));
}

const RULE: &str = "site = 'a'";

/// A metric with a rule that takes site `a` after a day; half of the events are ten days old.
struct Ruled {
    place: Place,
    lamina: Lamina,
    now: DateTime<Utc>,
}

impl Ruled {
    fn new(backend: Backend) -> Self {
        let place = Place::new(backend);
        let definitions = place.path().join("metrics.toml");
        let text = fs::read_to_string(&definitions).unwrap();
        let rule = format!("[[metric.bytes.expire]]\nwhere = \"{RULE}\"\nafter = \"1d\"\n");
        fs::write(definitions, text + &rule).unwrap();
        let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
        Self { place, lamina, now: Utc::now() }
    }

    /// Sends one event for each number: sites in turn, old ones and new ones in turn.
    fn send(&self, numbers: std::ops::Range<i64>) {
        let event = |number: i64| {
            let ago = if number % 4 < 2 { TimeDelta::days(10) } else { TimeDelta::minutes(number % 50) };
            let (time, site) = ((self.now - ago).to_rfc3339(), ["a", "b"][number as usize % 2]);
            json!({"time": time, "id": format!("r{number}"), "site": site, "size": 1}).to_string()
        };
        let file = self.place.path().join("events.ndjson");
        fs::write(&file, numbers.map(event).collect::<Vec<_>>().join("\n")).unwrap();
        let token = self.lamina.ingest("hits", &file);
        self.query(&[("at_least", &token), ("wait", "30s")]);
    }

    fn query(&self, more: &[(&str, &str)]) -> Value {
        let time = |days| (self.now + TimeDelta::days(days)).to_rfc3339();
        let own =
            [("from".to_owned(), time(-11)), ("to".to_owned(), time(1)), ("aggregate".to_owned(), "count".to_owned())];
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let answer = self.lamina.query("bytes", &own.into_iter().chain(more).collect::<Vec<_>>());
        assert_eq!(answer["meta"]["complete"], true, "{answer}");
        answer
    }

    /// Counts of sites `a` and `b` and of the total, and whether the rule is named for the sites; it never is for the total.
    fn counts(&self) -> ([u64; 3], bool) {
        let (sites, total) = (self.query(&[("group_by", "site")]), self.query(&[]));
        let count = |answer: &Value, at: usize| answer["series"][at]["points"][0]["count"].as_u64().unwrap();
        assert!(total["meta"].get("expired").is_none(), "{total}");
        let named = &sites["meta"]["expired"];
        if !named.is_null() {
            let from: DateTime<Utc> = named[0]["retained_from"].as_str().unwrap().parse().unwrap();
            assert!(named[0]["where"] == RULE && from <= self.now && from > self.now - TimeDelta::days(9), "{named}");
        }
        ([count(&sites, 0), count(&sites, 1), count(&total, 0)], !named.is_null())
    }

    fn succeeds(&self, path: &str, body: &Value) -> Value {
        let answer = self.lamina.request(reqwest::Method::POST, path).json(body).send().unwrap();
        let (status, job) = (answer.status(), answer.json::<Value>().unwrap());
        assert_eq!(status, 202, "{job}");
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        self.lamina.until(&format!("{path} succeeds"), || {
            let job = self.lamina.get(&path, &[]);
            assert!(!["failed", "cancelled"].contains(&job["state"].as_str().unwrap()), "{job}");
            job["state"] == "succeeded"
        });
        self.lamina.get(&path, &[])
    }

    fn audited(&self) {
        let config = self.place.path().join("lamina.toml");
        let config = config.to_string_lossy();
        let arguments =
            ["--config", &config, "--server", &self.lamina.url, "--sample", "40", "--seed", "3", "--output", "json"];
        let audited = run(&[&["audit"], &arguments[..]].concat());
        let report: Value = serde_json::from_slice(&audited.stdout).unwrap_or_default();
        assert_eq!(audited.status.code(), Some(0), "{report:#} {}", String::from_utf8_lossy(&audited.stderr));
        assert!(report["buckets"].as_u64() > Some(5), "{report}");
    }
}

fn what_a_rule_takes_is_neither_kept_nor_answered(backend: Backend) {
    if backend.skipped() {
        return;
    }
    let mut ruled = Ruled::new(backend);
    ruled.send(0..200);
    assert_eq!(ruled.counts(), ([100, 100, 200], false), "no horizon has risen yet");
    ruled.lamina.recompute_all();
    assert_eq!(ruled.counts(), ([50, 100, 200], true));
    ruled.send(200..240);
    assert_eq!(ruled.counts(), ([60, 120, 240], true), "late events of old buckets are not answered either");
    ruled.audited();

    ruled.lamina.until("batch has covered all", || {
        ruled.succeeds("/v1/schedule/run", &json!({}));
        let answer = ruled.query(&[("group_by", "site"), ("layer", "batch")]);
        (0..2).map(|at| answer["series"][at]["points"][0]["count"].as_u64()).eq([Some(60), Some(120)])
    });
    let dry = ruled.succeeds("/v1/recomputes", &json!({"metric": "bytes", "dry_run": true}));
    assert_eq!((&dry["result"]["buckets"], &dry["result"]["series"]), (&json!(0), &json!(0)), "{dry}");
    ruled.lamina.recompute_all();
    ruled.succeeds("/v1/metrics/bytes/rollback", &json!({}));
    assert_eq!(ruled.counts(), ([60, 120, 240], true));
    ruled.audited();
    let status = ruled.lamina.get("/v1/metrics/bytes", &[]);
    assert_eq!(status["views"][0]["expired"][0]["where"], RULE, "{status}");
    assert!(status["views"][0]["expired"][0]["retained_from"]["1m"].is_string(), "{status}");

    // Without the rule the metric is another version, and is built with all that the archive holds.
    let definitions = ruled.place.path().join("metrics.toml");
    let text = fs::read_to_string(&definitions).unwrap();
    fs::write(&definitions, &text[..text.find("[[metric.bytes.expire]]").unwrap()]).unwrap();
    assert!(ruled.lamina.stop(Duration::from_secs(30)).success());
    ruled.lamina.restart();
    ruled.lamina.until("the new version answers", || ruled.query(&[])["version"] == 2);
    assert_eq!(ruled.counts(), ([120, 120, 240], false));
}

#[test]
fn what_a_rule_takes_is_neither_kept_nor_answered_embedded() {
    what_a_rule_takes_is_neither_kept_nor_answered(Backend::Embedded);
}

#[test]
fn what_a_rule_takes_is_neither_kept_nor_answered_on_kafka_and_cassandra() {
    what_a_rule_takes_is_neither_kept_nor_answered(Backend::Real);
}
