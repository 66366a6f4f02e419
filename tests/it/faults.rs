//! Bad input and missing backends, as a user meets them: a clear error, readiness false where it should be, nothing lost,
//! and recovery without a restart.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use lamina::backends::{
    cassandra::{CassandraConfig, migrate},
    embedded,
    kafka::{KafkaConfig, KafkaLog},
};
use lamina_core::log::{Append, Log};
use reqwest::{Method, blocking::RequestBuilder};
use scylla::client::session_builder::SessionBuilder;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};

use super::{
    process::{Addresses, Backend, LAMINA, Lamina, Settings, configure},
    proxy::{Line, proxy},
};

pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long a query may take whatever is down.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
pub(crate) const EVENTS: &str = "/v1/sources/hits/events";
pub(crate) const NDJSON: &str = "application/x-ndjson";
pub(crate) const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z";

const DEFINITIONS: &str = r#"
[source.hits]
topic = "TOPIC"
format = "json"
time = "time"
id = "id"

[source.hits.fields]
time = "timestamp"
id = "string"
site = "string"
size = "int64"

[metric.bytes]
source = "hits"
value = "size"
dimensions = ["site"]
aggregates = ["count", "sum"]
grain = "1m"
rollups = ["1h"]
"#;

/// A folder with definitions over a topic of its own.
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) name: String,
    pub(crate) runtime: Runtime,
    /// Made for this test only, if there is a keyspace.
    keyspace: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("f{}", uuid::Uuid::new_v4().simple());
        fs::write(folder.path().join("metrics.toml"), DEFINITIONS.replace("TOPIC", &name)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { folder, name, runtime, keyspace: false }
    }

    /// With a keyspace on the real node.
    pub(crate) fn with_keyspace() -> Self {
        let mut world = Self::new();
        world.keyspace = true;
        let config = CassandraConfig {
            contact_points: vec![Addresses::default().cassandra],
            keyspace: world.name.clone(),
            request_timeout: Duration::from_secs(10),
            ..CassandraConfig::default()
        };
        world.runtime.block_on(migrate(&config)).unwrap();
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn settings(&self, backend: Backend) -> Settings {
        Settings {
            definitions: self.path().join("metrics.toml"),
            backend,
            addresses: Addresses::default(),
            partitions: 2,
            epoch: "1s",
            schedule: "off",
        }
    }

    pub(crate) fn start(&self) -> Lamina {
        Lamina::start(self.path(), &self.settings(Backend::Embedded), &self.name)
    }

    /// Launches on the real backends at these addresses.
    pub(crate) fn launch(&self, addresses: Addresses) -> Lamina {
        Lamina::launch(self.path(), &Settings { addresses, ..self.settings(Backend::Real) }, &self.name)
    }

    /// A line to Cassandra that can be disturbed, and the addresses by which it is used.
    fn line_to_cassandra(&self, line: Line) -> (Addresses, watch::Sender<Line>) {
        let (cassandra, sender) = self.runtime.block_on(proxy(Addresses::default().cassandra));
        sender.send_replace(line);
        (Addresses { cassandra, ..Addresses::default() }, sender)
    }

    /// Puts records into the topic without ingest in between.
    pub(crate) fn append(&self, log: &dyn Log, payloads: &[&[u8]]) {
        let append = |payload: &&[u8]| Append { key: None, payload: Bytes::copy_from_slice(payload) };
        self.runtime.block_on(async {
            log.ensure_topic(&self.name, 1).await.unwrap();
            // one by one, so that they stand in this order
            for payload in payloads {
                log.append(&self.name, vec![append(payload)]).await.unwrap();
            }
        });
    }

    pub(crate) fn dead_letters(&self, log: &dyn Log) -> Vec<Value> {
        let topic = format!("{}.dead-letter", self.name);
        let (records, _) = self.runtime.block_on(log.read(&topic, 0, 0, 1 << 20)).unwrap();
        records.iter().map(|record| serde_json::from_slice(&record.payload).unwrap()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.keyspace {
            let drop_keyspace = format!("DROP KEYSPACE IF EXISTS {}", self.name);
            let dropped = self.runtime.block_on(async {
                let session = SessionBuilder::new().known_node(Addresses::default().cassandra).build().await.ok()?;
                session.query_unpaged(drop_keyspace, ()).await.ok()
            });
            if dropped.is_none() {
                eprintln!("keyspace {} is left behind", self.name);
            }
        }
    }
}

/// An answer, read whole.
pub(crate) struct Reply {
    pub(crate) status: u16,
    content_type: String,
    retry_after: bool,
    request_id: String,
    pub(crate) body: Value,
    pub(crate) took: Duration,
}

impl Reply {
    pub(crate) fn of(request: RequestBuilder) -> Self {
        let begun = Instant::now();
        let answer = request.send().unwrap();
        let header =
            |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let (content_type, request_id, retry_after) =
            (header("content-type"), header("x-request-id"), !header("retry-after").is_empty());
        let status = answer.status().as_u16();
        let text = answer.text().unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, content_type, retry_after, request_id, body, took: begun.elapsed() }
    }

    /// The answer is a whole problem of this status and code; gives its detail.
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        let Self { body, content_type, .. } = self;
        assert_eq!((self.status, body["code"].as_str()), (status, Some(code)), "{body}");
        assert_eq!(content_type, "application/problem+json");
        assert_eq!(body["status"], status);
        assert!(!self.request_id.is_empty() && body["request_id"] == self.request_id.as_str(), "{body}");
        assert!(body["type"].is_string() && body["title"].is_string(), "{body}");
        assert!(status != 503 || self.retry_after, "a 503 says when to come back: {body}");
        body["detail"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn get(lamina: &Lamina, path: &str) -> Reply {
    Reply::of(lamina.request(Method::GET, path))
}

pub(crate) fn query(lamina: &Lamina, more: &str) -> Reply {
    get(lamina, &format!("/v1/metrics/bytes/query?{RANGE}{more}"))
}

pub(crate) fn post(lamina: &Lamina, headers: &[(&str, &str)], body: impl Into<reqwest::blocking::Body>) -> Reply {
    let request = lamina.request(Method::POST, EVENTS).body(body);
    Reply::of(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
}

pub(crate) fn event(number: usize) -> String {
    json!({"time": "2020-01-01T00:00:00Z", "id": format!("e{number}"), "site": "a", "size": number}).to_string()
}

pub(crate) fn lines(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| event(number) + "\n").collect()
}

/// Count and sum of a successful answer.
pub(crate) fn count_and_sum(reply: &Reply) -> (u64, u64) {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let point = &reply.body["series"][0]["points"][0];
    (point["count"].as_u64().unwrap_or(0), point["sum"].as_u64().unwrap_or(0))
}

/// The answer is complete and the fold of exactly the prefix that it names, in which each record is an event.
pub(crate) fn assert_exact(reply: &Reply) {
    let positions = reply.body["meta"]["speed"]["positions"].as_object().unwrap();
    let records: u64 = positions.values().filter_map(Value::as_u64).sum();
    assert_eq!(count_and_sum(reply).0, records, "{}", reply.body);
    assert_eq!(reply.body["meta"]["complete"], true, "{}", reply.body);
}

/// Numbers 0..n, each once.
pub(crate) fn all_of(n: usize) -> (u64, u64) {
    (n as u64, (n * n.saturating_sub(1) / 2) as u64)
}

/// Waits until everything that was acknowledged is visible, and exact.
pub(crate) fn visible(lamina: &Lamina, n: usize) {
    lamina.until(&format!("{n} events are visible"), || {
        let reply = query(lamina, "");
        assert!(reply.status == 200 || reply.status == 503, "{}", reply.body);
        reply.status == 200 && count_and_sum(&reply) == all_of(n)
    });
}

/// Waits for the end of a process.
fn ended(mut child: Child, within: Duration) -> Output {
    let from = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if from.elapsed() > within {
            child.kill().unwrap();
            panic!("the process still runs after {within:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let child = Command::new(LAMINA)
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = ended(child, SOON);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn garbage_among_events_is_rejected_one_by_one_and_the_rest_counts() {
    let world = World::new();
    let mut lamina = world.start();
    let huge = format!(r#"{{"time":"2020-01-01T00:00:00Z","id":"h","site":"{}","size":1}}"#, "x".repeat(1 << 20));
    let garbage: [&[u8]; 9] = [
        b"{\"time\": \"2020-01-01T00:00:00Z\", \"id\": ",
        b"\x00\xff\xfe\x80 binary",
        b"[1, 2]",
        b"null",
        br#"{"id": "no time", "site": "a", "size": 1}"#,
        br#"{"time": "yesterday", "id": "x", "site": "a", "size": 1}"#,
        br#"{"time": "2020-01-01T00:00:00Z", "id": "x", "site": "a", "size": "many"}"#,
        br#"{"time": "2020-01-01T00:00:00Z", "id": "x", "site": "a", "size": 99999999999999999999}"#,
        huge.as_bytes(),
    ];
    let mut body = Vec::new();
    for (number, bad) in garbage.iter().enumerate() {
        writeln!(body, "{}", event(number)).unwrap();
        body.extend_from_slice(bad);
        body.push(b'\n');
    }
    let reply = post(&lamina, &[("content-type", NDJSON)], body);
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(garbage.len())), "{}", reply.body);
    let rejected = reply.body["rejected"].as_array().unwrap();
    let indices: Vec<_> = rejected.iter().filter_map(|one| one["index"].as_u64()).collect();
    assert_eq!(indices, (0..garbage.len() as u64).map(|n| 2 * n + 1).collect::<Vec<_>>(), "{}", reply.body);
    for (at, named) in [(4, "event time is missing"), (5, "yesterday"), (6, "size"), (7, "size"), (8, "1048576")] {
        let error = rejected[at]["error"].as_str().unwrap();
        assert!(error.contains(named), "{error:?} does not say {named:?}");
    }
    assert!(rejected.iter().all(|one| one["error"].as_str().is_some_and(|error| !error.is_empty())), "{}", reply.body);

    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(lines(0..1000).as_bytes()).unwrap();
    let mut gzip = gzip.finish().unwrap();
    gzip.truncate(gzip.len() - 20);
    let detail = post(&lamina, &[("content-encoding", "gzip")], gzip).problem(400, "bad_encoding");
    assert!(detail.contains("content-encoding"), "{detail}");
    let half = format!("[{},", event(500));
    let detail = post(&lamina, &[("content-type", "application/json")], half).problem(400, "unreadable_body");
    assert!(detail.contains("JSON array"), "{detail}");
    let detail = post(&lamina, &[("content-type", "text/csv")], event(500)).problem(415, "unsupported_media_type");
    assert!(detail.contains(NDJSON), "{detail}");
    post(&lamina, &[("content-encoding", "br")], event(500)).problem(415, "unsupported_encoding");
    let detail = post(&lamina, &[], vec![b'\n'; (32 << 20) + 1]).problem(413, "too_large");
    assert!(detail.contains("33554432"), "{detail}");
    let noise: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    let reply = post(&lamina, &[], noise);
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(0)), "{}", reply.body);

    visible(&lamina, garbage.len());
    assert!(lamina.stop(SOON).success());
}

/// Three records that do not decode among three that do; gives what should be in the letters.
fn poison(world: &World, log: &dyn Log) -> Vec<Vec<u8>> {
    let bad: [&[u8]; 3] =
        [b"\xff\x00 not json", br#"{"id": "no time"}"#, br#"{"time": "2020-01-01T00:00:00Z", "size": []}"#];
    let good: Vec<String> = (0..3).map(event).collect();
    world.append(log, &[good[0].as_bytes(), bad[0], good[1].as_bytes(), bad[1], bad[2], good[2].as_bytes()]);
    bad.iter().map(|bad| bad.to_vec()).collect()
}

fn check_letters(world: &World, log: &dyn Log, bad: &[Vec<u8>]) {
    let mut letters = world.dead_letters(log);
    // at least once
    letters.dedup_by(|a, b| a["offset"] == b["offset"]);
    assert_eq!(letters.len(), bad.len(), "{letters:?}");
    for ((letter, payload), offset) in letters.iter().zip(bad).zip([1, 3, 4]) {
        assert_eq!((&letter["source"], &letter["topic"]), (&json!("hits"), &json!(world.name)), "{letter}");
        assert_eq!((&letter["partition"], &letter["offset"]), (&json!(0), &json!(offset)), "{letter}");
        assert!(letter["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{letter}");
        assert_eq!(letter["payload"], BASE64_STANDARD.encode(payload), "{letter}");
    }
    let reason = letters[1]["reason"].as_str().unwrap();
    assert!(reason.contains("event time is missing"), "{reason}");
}

#[test]
fn embedded_what_does_not_decode_is_a_dead_letter_and_the_partition_goes_on() {
    let world = World::new();
    let data = world.path().join("data");
    let bad = poison(&world, &*embedded::open(&data).unwrap().log);
    let mut lamina = world.start();
    visible(&lamina, 3);
    assert!(lamina.stop(SOON).success());
    check_letters(&world, &*embedded::open(&data).unwrap().log, &bad);
}

#[test]
fn real_what_does_not_decode_is_a_dead_letter_and_the_partition_goes_on() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let brokers = Addresses::default().kafka;
    let config =
        KafkaConfig { brokers, replication_factor: 1, options: std::collections::BTreeMap::new(), credentials: None };
    let log = KafkaLog::connect(config).unwrap();
    let bad = poison(&world, &log);
    let mut lamina = world.launch(Addresses::default());
    lamina.wait_until_ready();
    visible(&lamina, 3);
    check_letters(&world, &log, &bad);
    assert!(lamina.stop(SOON).success());
}

#[test]
fn a_wrong_request_is_a_problem_that_names_what_is_allowed() {
    let world = World::new();
    let lamina = world.start();
    let path = |query: &str| format!("/v1/metrics/bytes/query?{query}");
    for (path, status, code, names) in [
        (format!("/v1/metrics/nope/query?{RANGE}"), 404, "unknown_metric", "GET /v1/metrics lists"),
        ("/v1/metrics/nope".to_owned(), 404, "unknown_metric", "GET /v1/metrics lists"),
        ("/v1/sources/nope".to_owned(), 404, "unknown_source", "there are hits"),
        ("/v1/nothing".to_owned(), 404, "not_found", "/v1/nothing"),
        (path("to=2020-01-02T00:00:00Z"), 400, "bad_parameter", "`from`"),
        (path(&format!("{RANGE}&colour=red")), 400, "bad_parameter", "group_by"),
        (path(&format!("{RANGE}&layer=both")), 400, "bad_parameter", "merged, batch, speed"),
        (path(&format!("{RANGE}&limit=10001")), 400, "bad_parameter", "1 to 10000"),
        (path(&format!("{RANGE}&limit=-1")), 400, "bad_parameter", "1 to 10000"),
        (path(&format!("{RANGE}&wait=1h")), 400, "bad_parameter", "60s"),
        (path("from=99999-01-01T00:00:00Z"), 400, "bad_parameter", "years 1 to 9999"),
        (path("from=2020-01-02T00:00:00Z&to=2020-01-01T00:00:00Z"), 400, "bad_parameter", "after `from`"),
        (path(&format!("{RANGE}&aggregate=median")), 400, "bad_parameter", "sum"),
        (path(&format!("{RANGE}&group_by=colour")), 400, "bad_parameter", "site"),
    ] {
        let detail = get(&lamina, &path).problem(status, code);
        assert!(detail.contains(names), "{path}: {detail:?} does not say {names:?}");
    }
    Reply::of(lamina.request(Method::DELETE, &path(RANGE))).problem(405, "method_not_allowed");
    Reply::of(lamina.request(Method::GET, EVENTS)).problem(405, "method_not_allowed");
}

#[test]
fn without_cassandra_at_start_nothing_is_answered_and_all_is_well_once_it_is_there() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let (addresses, line) = world.line_to_cassandra(Line::Cut);
    let cassandra = addresses.cassandra.clone();
    let mut lamina = world.launch(addresses);
    lamina
        .until("it lives", || lamina.request(Method::GET, "/livez").send().is_ok_and(|answer| answer.status() == 200));
    let ready = get(&lamina, "/readyz");
    let detail = ready.problem(503, "not_ready");
    assert!(detail.contains("store") && !detail.contains("log"), "{detail}");
    let why = ready.body["checks"]["store"].as_str().unwrap();
    assert!(why.contains(&cassandra), "{why:?} does not name {cassandra}");
    assert_eq!(ready.body["checks"]["log"], "ok");
    for reply in [query(&lamina, ""), post(&lamina, &[], event(0)), get(&lamina, "/v1/metrics")] {
        reply.problem(503, "store_unavailable");
        assert!(reply.took < ANSWER, "{:?}", reply.took);
    }
    assert_eq!(get(&lamina, "/livez").status, 200);

    line.send_replace(Line::Whole);
    lamina.wait_until_ready();
    assert_eq!(post(&lamina, &[], lines(0..50)).status, 202);
    visible(&lamina, 50);
    assert!(lamina.stop(SOON).success());
}

#[test]
fn a_process_that_would_write_otherwise_than_its_keyspace_refuses_to_start() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let (config, _) = configure(world.path(), &world.settings(Backend::Real), &world.name);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[speed]", "write_consistency = \"each_quorum\"\n[speed]")).unwrap();
    for role in ["speed", "batch", "serving"] {
        let (code, _, errors) = run(&["serve", "--role", role, "--config", &config.to_string_lossy()]);
        assert_eq!(code, 2, "{role}: {errors}");
        assert!(errors.contains("is written at local_quorum") && errors.contains("migrate"), "{role}: {errors}");
    }
    let (code, _, errors) = run(&["migrate", "--config", &config.to_string_lossy(), "--change-write-consistency"]);
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) = run(&["migrate", "--config", &config.to_string_lossy()]);
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn without_kafka_at_start_nothing_is_ready_and_ingest_says_to_come_back() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let mut lamina = world.launch(Addresses { kafka: "127.0.0.1:1".to_owned(), ..Addresses::default() });
    lamina
        .until("it lives", || lamina.request(Method::GET, "/livez").send().is_ok_and(|answer| answer.status() == 200));
    lamina.until("it has definitions", || get(&lamina, "/readyz").body["checks"]["definitions"] == "ok");
    let ready = get(&lamina, "/readyz");
    let detail = ready.problem(503, "not_ready");
    assert!(detail.contains("log") && !detail.contains("store"), "{detail}");
    let detail = post(&lamina, &[], event(0)).problem(503, "log_unavailable");
    assert!(detail.contains("127.0.0.1:1"), "{detail}");
    query(&lamina, "").problem(503, "log_unavailable");
    assert!(lamina.stop(Duration::from_secs(15)).success());
}

/// Sends ten events every so often for a while, all of them acknowledged; gives how many were sent so far.
fn keep_sending(lamina: &Lamina, from: usize, during: Duration, mut meanwhile: impl FnMut(usize)) -> usize {
    let begun = Instant::now();
    let mut sent = from;
    while begun.elapsed() < during {
        let reply = post(lamina, &[], lines(sent..sent + 10));
        assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(10)), "{}", reply.body);
        assert!(reply.took < ANSWER, "ingest took {:?}", reply.took);
        sent += 10;
        meanwhile(sent);
        std::thread::sleep(Duration::from_millis(50));
    }
    sent
}

#[test]
fn while_cassandra_is_away_ingest_goes_on_queries_say_so_and_nothing_is_lost() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let (addresses, line) = world.line_to_cassandra(Line::Whole);
    let mut lamina = world.launch(addresses);
    lamina.wait_until_ready();
    let sent = keep_sending(&lamina, 0, Duration::from_secs(1), |_| ());
    visible(&lamina, sent);

    let refused = |_: usize| {
        let reply = query(&lamina, "");
        reply.problem(503, "store_unavailable");
        assert!(reply.took < ANSWER, "a query took {:?}", reply.took);
    };
    line.send_replace(Line::Mute);
    let sent = keep_sending(&lamina, sent, Duration::from_secs(4), refused);
    line.send_replace(Line::Cut);
    let sent = keep_sending(&lamina, sent, Duration::from_secs(4), refused);
    let ready = get(&lamina, "/readyz");
    assert!(ready.problem(503, "not_ready").contains("store"), "{}", ready.body);
    assert_eq!(ready.body["checks"]["log"], "ok");

    line.send_replace(Line::Whole);
    let back = Instant::now();
    // an answer on the way back may be behind, but never holds what was not sent
    let sent = keep_sending(&lamina, sent, Duration::from_secs(1), |sent| {
        let reply = query(&lamina, "");
        assert!(reply.status == 503 || count_and_sum(&reply) <= all_of(sent), "{}", reply.body);
        if reply.status == 200 {
            assert_exact(&reply);
        }
    });
    visible(&lamina, sent);
    assert_exact(&query(&lamina, ""));
    eprintln!("{sent} events are visible {:?} after Cassandra is back", back.elapsed());
    assert_eq!(get(&lamina, "/readyz").status, 200);
    assert!(lamina.stop(SOON).success());
}

#[test]
fn a_stop_drains_and_seals_and_a_folder_has_one_process() {
    let world = World::new();
    let settings = Settings { epoch: "10m", ..world.settings(Backend::Embedded) };
    let mut lamina = Lamina::start(world.path(), &settings, &world.name);
    assert_eq!(post(&lamina, &[], lines(0..500)).status, 202);
    visible(&lamina, 500);

    // the same data folder under another port
    let second = world.path().join("second");
    fs::create_dir(&second).unwrap();
    let (config, _) = configure(&second, &settings, &world.name);
    let text = fs::read_to_string(&config).unwrap();
    let data = world.path().join("data").to_string_lossy().into_owned();
    fs::write(&config, text.replace(&*second.join("data").to_string_lossy(), &data)).unwrap();
    let (code, _, errors) = run(&["serve", "--config", &config.to_string_lossy()]);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("in use by another process") && errors.contains(&data), "{errors}");
    assert_eq!(count_and_sum(&query(&lamina, "")), all_of(500), "the first one is not disturbed");

    assert!(files(&world.path().join("data/archive")).is_empty(), "the epoch is sealed too early for this test");
    let begun = Instant::now();
    let status = lamina.stop(Duration::from_secs(15));
    assert_eq!(status.code(), Some(0), "{}", lamina.log_tail());
    eprintln!("stopped within {:?}", begun.elapsed());
    assert!(!files(&world.path().join("data/archive")).is_empty(), "the epoch is not sealed");
    lamina.restart();
    assert_eq!(count_and_sum(&query(&lamina, "")), all_of(500), "right after the start");
    assert_eq!(post(&lamina, &[], lines(500..600)).status, 202);
    visible(&lamina, 600);
}

#[test]
fn a_full_disk_is_named_and_passes_without_a_restart() {
    let world = World::new();
    let mut lamina = world.start();
    assert_eq!(post(&lamina, &[], lines(0..100)).status, 202);
    visible(&lamina, 100);

    lamina.limit_files("1");
    let data = world.path().join("data").to_string_lossy().into_owned();
    let detail = post(&lamina, &[], lines(100..110)).problem(503, "log_full");
    assert!(detail.contains(&data), "{detail}");
    let ready = get(&lamina, "/readyz");
    ready.problem(503, "not_ready");
    assert!(ready.body["checks"]["log"].as_str().is_some_and(|why| why.contains(&data)), "{}", ready.body);
    assert_eq!(count_and_sum(&query(&lamina, "")), all_of(100), "reads go on");

    lamina.limit_files("unlimited");
    lamina.wait_until_ready();
    // with the same ids: whether the log has them from before or not, they count once
    assert_eq!(post(&lamina, &[], lines(100..110)).status, 202);
    visible(&lamina, 110);
    assert!(lamina.stop(SOON).success());
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn the_command_line_exits_with_what_came_of_it() {
    let world = World::new();
    let path = |name: &str| world.path().join(name).to_string_lossy().into_owned();
    let (code, said, errors) = run(&["validate", &path("metrics.toml")]);
    assert_eq!((code, said.trim()), (0, "1 sources, 1 metrics: all well"), "{errors}");

    let wrong =
        DEFINITIONS.replace("\"sum\"", "\"mode\"").replace("dimensions = [\"site\"]", "dimensions = [\"town\"]");
    fs::write(path("wrong.toml"), &wrong).unwrap();
    let (code, _, errors) = run(&["validate", &path("wrong.toml")]);
    assert_eq!(code, 1, "{errors}");
    for word in ["mode", "town"] {
        let line = wrong.lines().position(|line| line.contains(word)).unwrap() + 1;
        let place = format!("wrong.toml:{line}:");
        assert!(errors.contains(&place) && errors.contains(word), "no {place} and {word} in {errors}");
    }
    let (code, _, errors) = run(&["validate", &path("missing.toml")]);
    assert!(code == 2 && errors.contains("missing.toml does not exist"), "{code}: {errors}");

    fs::write(path("sample.ndjson"), lines(0..100)).unwrap();
    let (code, proposal, errors) = run(&["infer", &path("sample.ndjson")]);
    assert_eq!(code, 0, "{errors}");
    fs::write(path("proposal.toml"), proposal).unwrap();
    let (code, _, errors) = run(&["validate", &path("proposal.toml")]);
    assert_eq!(code, 0, "{errors}");

    let config = path("lamina.toml");
    fs::write(&config, "[stroe]\nkind = \"embedded\"\n").unwrap();
    let (code, _, errors) = run(&["serve", "--config", &config]);
    assert!(code == 2 && errors.contains("stroe"), "{code}: {errors}");
    let ask = |server: &str, metric: &str| {
        run(&["query", metric, "--from", "2020-01-01T00:00:00Z", "--to", "2020-01-02T00:00:00Z", "--server", server])
    };
    let (code, _, errors) = ask("http://127.0.0.1:1", "bytes");
    assert!(code == 1 && errors.contains("is lamina running there?"), "{code}: {errors}");

    let lamina = world.start();
    let (code, _, errors) = run(&["freshness", "--server", &lamina.url]);
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) = ask(&lamina.url, "nope");
    assert!(code == 1 && errors.contains("unknown_metric") && errors.contains("/v1/metrics"), "{code}: {errors}");
    fs::write(path("mixed.ndjson"), event(0) + "\n{broken\n").unwrap();
    let (code, token, errors) = run(&["ingest", "--server", &lamina.url, "--source", "hits", &path("mixed.ndjson")]);
    assert!(code == 1 && !token.is_empty() && errors.contains("1 events acknowledged, 1 rejected"), "{code}: {errors}");
    visible(&lamina, 1);
    let (code, table, errors) = ask(&lamina.url, "bytes");
    assert!(code == 0 && table.contains("count"), "{code}: {table} {errors}");
}
