//! Late, early, duplicate and hostile events: each is counted exactly, or set aside with its reason, in both layers alike.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::Write as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::{Compression, write::GzEncoder};
use lamina::backends::embedded;
use lamina_core::log::{Append, Log, LogError};
use rdkafka::{
    ClientConfig,
    admin::{NewTopic, TopicReplication},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::{Value, json};

use super::{
    faults::{NDJSON, RANGE, SOON, World, files, get, post},
    kafka::{admin, broker, connect, options},
    process::{Addresses, Backend, Lamina, Settings},
};

const DAY: i64 = 86_400;

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
price = "decimal(10,2)"
ratio = "float64"
ok = "bool"

[metric.bytes]
source = "hits"
value = "size"
dimensions = ["site"]
aggregates = ["count", "sum"]
grain = "1m"
rollups = ["1h", "1d"]
"#;

fn world(backend: Backend) -> World {
    let world = if backend == Backend::Real { World::with_keyspace() } else { World::new() };
    define(&world, DEFINITIONS);
    world
}

fn define(world: &World, definitions: &str) {
    std::fs::write(world.path().join("metrics.toml"), definitions.replace("TOPIC", &world.name)).unwrap();
}

/// site → (count, sum), over everything that there is or of one layer.
fn by_site(lamina: &Lamina, range: &str, more: &str) -> BTreeMap<String, (u64, i64)> {
    let reply = get(lamina, &format!("/v1/metrics/bytes/query?{range}&group_by=site{more}"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    let series = reply.body["series"].as_array().unwrap();
    let total = |series: &Value, name: &str| -> i64 {
        series["points"].as_array().unwrap().iter().filter_map(|point| point[name].as_i64()).sum()
    };
    let one = |series: &Value| {
        let site = series["dimensions"]["site"].as_str().unwrap_or("null").to_owned();
        (site, (total(series, "count").unsigned_abs(), total(series, "sum")))
    };
    series.iter().map(one).collect()
}

/// A hostile record, and whether its event counts all the same.
struct Poison {
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    /// Part of the reason why it is dead, or the event that it is.
    is: Result<(&'static str, i64), &'static str>,
}

fn dead(payload: impl Into<Vec<u8>>, reason: &'static str) -> Poison {
    Poison { key: None, payload: Some(payload.into()), is: Err(reason) }
}

fn alive(payload: impl Into<Vec<u8>>, site: &'static str, size: i64) -> Poison {
    Poison { key: None, payload: Some(payload.into()), is: Ok((site, size)) }
}

/// An event with these fields besides time.
fn with(fields: &str) -> String {
    format!(r#"{{"time": "2020-01-01T00:00:00Z", "site": "p", "size": 1, {fields}}}"#)
}

fn at(time: &str) -> String {
    format!(r#"{{"time": {time}, "site": "p", "size": 1}}"#)
}

/// Of every kind one. A log that takes records of 10 MB gets one, too.
fn poison(large: bool) -> Vec<Poison> {
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let keyed = |key: usize, site| {
        let payload = format!(r#"{{"time": "2020-01-01T00:00:00Z", "site": "{site}", "size": 1}}"#);
        Poison { key: Some(vec![b'k'; key]), payload: Some(payload.into()), is: Ok((site, 1)) }
    };
    let mut all = vec![
        dead(b"{\"time\": \"2020-01-01T00:00:00Z\", \"site\": \"\xff\xfe\", \"size\": 1}", "unicode"),
        dead(b"\x80\x81\x82\x00\xff".to_vec(), "JSON"),
        dead(with(r#""ratio": NaN"#), "JSON"),
        dead(with(r#""ratio": "NaN""#), "ratio"),
        dead(with(r#""ratio": 1e999"#), "ratio"),
        dead(with(r#""ratio": -Infinity"#), "JSON"),
        dead(with(r#""size": 9223372036854775808"#), "size"),
        dead(with(&format!(r#""size": 1{}"#, "0".repeat(100_000))), "size"),
        dead(with(r#""size": 1e400000000"#), "size"),
        dead(with(r#""price": 123456789.01"#), "price"),
        dead(with(r#""price": 0.001"#), "price"),
        dead(with(&format!(r#""price": {}"#, deep(10_000))), "price"),
        alive(with(&format!(r#""unknown": {}"#, deep(10_000))), "p", 1),
        dead(deep(10_000), "JSON"),
        dead(r#"{"time": "2020-01-01T00:00:00Z", "site": "p", "si"#, "JSON"),
        // The last one counts, as for most readers of JSON.
        alive(with(r#""site": "twice", "size": 7"#), "twice", 7),
        dead(with(r#""ok": "true""#), "ok"),
        dead(with(r#""site": {"a": 1}"#), "site"),
        dead(with(r#""size": [1]"#), "size"),
        dead("[1, 2]", "JSON"),
        dead("null", "JSON"),
        dead(at(r#""0000-01-01T00:00:00Z""#), "time"),
        dead(at(r#""+10000-01-01T00:00:00Z""#), "time"),
        dead(at(r#""2020-02-30T00:00:00Z""#), "time"),
        dead(at("1577836800"), "time_unit"),
        dead(at("null"), "time"),
        alive(at(r#""2020-01-01T00:00:00""#), "p", 1),
        dead(b"{\"time\": \"2020-01-01T00:00:00Z\", \"site\": \"a\x00b\", \"size\": 1}", "control character"),
        alive(with(r#""site": "nul\u0000""#), "nul\0", 1),
        dead(with(r#""site": "\ud800""#), "site"),
        dead(Vec::new(), "JSON"),
        Poison { key: Some(b"gone".to_vec()), payload: None, is: Err("JSON") },
        // Rejected by the metric: it has no series for it.
        dead(with(&format!(r#""site": "{}""#, "s".repeat(513))), "512"),
        alive(with(&format!(r#""site": "{}""#, "s".repeat(512))), LONGEST, 1),
        keyed(0, "empty key"),
        keyed(70_000, "long key"),
    ];
    if large {
        let payload = with(&format!(r#""unknown": "{}""#, "x".repeat(10 << 20)));
        all.push(dead(payload, "1048576"));
    }
    all
}

const LONGEST: &str = "longest";

fn good(number: usize) -> Append {
    let event = json!({"time": "2020-01-01T00:00:00Z", "id": format!("g{number}"), "site": "good", "size": number});
    Append { key: None, payload: event.to_string().into() }
}

/// Poison among a hundred times as many good events; gives how many good ones there are.
fn mix(world: &World, log: &dyn Log, poison: &[Poison], mut send: impl FnMut(&Poison)) -> usize {
    let mut sent = 0;
    for one in poison {
        world.runtime.block_on(log.append(&world.name, (sent..sent + 99).map(good).collect())).unwrap();
        send(one);
        sent += 99;
    }
    sent
}

/// Everything is where it belongs: in the answers of both layers, in the dead letters, in the archive.
fn judge(world: &World, lamina: &mut Lamina, poison: &[Poison], goods: usize, log: Option<&dyn Log>) {
    let mut expected = BTreeMap::from([("good".to_owned(), (goods as u64, (0..goods as i64).sum::<i64>()))]);
    for (site, size) in poison.iter().filter_map(|one| one.is.ok()) {
        let site = if site == LONGEST { "s".repeat(512) } else { site.to_owned() };
        let cell = expected.entry(site).or_default();
        *cell = (cell.0 + 1, cell.1 + size);
    }
    let records = goods + poison.len();
    let ready = Instant::now();
    lamina.until("the speed layer has all", || {
        let found = by_site(lamina, RANGE, "");
        assert!(ready.elapsed() < Duration::from_secs(60), "expected {expected:?}, found {found:?}");
        found == expected
    });
    let positions = get(lamina, &format!("/v1/metrics/bytes/query?{RANGE}")).body["meta"]["speed"]["positions"].clone();
    let passed: u64 = positions.as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(passed, records as u64, "nothing stands in the way");
    lamina.until("the batch layer has all", || {
        lamina.recompute_all();
        by_site(lamina, RANGE, "&layer=batch") == expected
    });
    assert!(lamina.stop(SOON).success(), "{}", lamina.log_tail());

    let own;
    let log = match log {
        Some(log) => log,
        None => {
            own = embedded::open(&world.path().join("data")).unwrap();
            &*own.log
        }
    };
    let mut letters: HashMap<Vec<u8>, Value> = HashMap::new();
    for letter in world.dead_letters(log) {
        let payload = letter["payload"].as_str().map(|text| BASE64_STANDARD.decode(text).unwrap());
        letters.insert(payload.unwrap_or_else(|| b"too large".to_vec()), letter);
    }
    let dead: Vec<&Poison> = poison.iter().filter(|one| one.is.is_err()).collect();
    for one in &dead {
        let payload = one.payload.clone().unwrap_or_default();
        let payload = if payload.len() > 1 << 20 { b"too large".to_vec() } else { payload };
        let letter = letters.get(&payload).unwrap_or_else(|| panic!("no letter of {}", payload.escape_ascii()));
        let (reason, wanted) = (letter["reason"].as_str().unwrap(), one.is.unwrap_err());
        assert!(reason.contains(wanted), "{} does not say {wanted}: {reason}", payload.escape_ascii());
    }
    let archived: usize = files(&world.path().join("data/archive")).iter().map(|file| rows(file)).sum();
    assert_eq!(archived, records, "every record is in the archive");
}

/// Rows of an archive file, by `lamina inspect`.
fn rows(file: &std::path::Path) -> usize {
    let bytes = std::fs::read(file).unwrap();
    let file = parquet::file::reader::SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
    let rows = parquet::file::reader::FileReader::metadata(&file).file_metadata().num_rows();
    usize::try_from(rows).unwrap()
}

#[test]
fn embedded_poison_of_every_kind_is_set_aside_and_its_neighbours_count() {
    let world = world(Backend::Embedded);
    let poison = poison(false);
    let goods = {
        let opened = embedded::open(&world.path().join("data")).unwrap();
        world.runtime.block_on(opened.log.ensure_topic(&world.name, 2)).unwrap();
        let huge = Append { key: None, payload: vec![b'x'; 10 << 20].into() };
        let refused = world.runtime.block_on(opened.log.append(&world.name, vec![huge])).unwrap_err();
        assert!(matches!(refused, LogError::TooLarge { .. }), "{refused}");
        mix(&world, &*opened.log, &poison, |one| {
            let key = one.key.clone().map(Into::into);
            let append = Append { key, payload: one.payload.clone().unwrap_or_default().into() };
            world.runtime.block_on(opened.log.append(&world.name, vec![append])).unwrap();
        })
    };
    let mut lamina = world.start();
    judge(&world, &mut lamina, &poison, goods, None);
}

#[test]
fn real_poison_of_every_kind_is_set_aside_and_its_neighbours_count() {
    if Backend::Real.skipped() {
        return;
    }
    let world = world(Backend::Real);
    let (log, poison) = (connect(broker()), poison(true));
    let topic = NewTopic::new(&world.name, 2, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime")
        .set("max.message.bytes", "20971520");
    world.runtime.block_on(admin().create_topics([&topic], &options())).unwrap().remove(0).unwrap();
    world.runtime.block_on(log.ensure_topic(&world.name, 2)).unwrap();
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker()).set("message.max.bytes", "20971520").create().unwrap();
    let goods = mix(&world, &log, &poison, |one| {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&world.name);
        record.key = one.key.as_deref();
        record.payload = one.payload.as_deref();
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(SOON).unwrap();
    });
    let mut lamina = world.launch(Addresses::default());
    lamina.wait_until_ready();
    judge(&world, &mut lamina, &poison, goods, Some(&log));
}

#[test]
fn bodies_that_would_burst_are_refused_and_memory_stays() {
    let world = world(Backend::Embedded);
    let lamina = world.start();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![b' '; 1 << 20];
    (0..1024).for_each(|_| gzip.write_all(&zeros).unwrap());
    let gzip = gzip.finish().unwrap();
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 19).unwrap();
    (0..1024).for_each(|_| zstd.write_all(&zeros).unwrap());
    let zstd = zstd.finish().unwrap();
    let before = lamina.peak_rss_kib();
    for _ in 0..8 {
        post(&lamina, &[("content-encoding", "gzip")], gzip.clone()).problem(413, "too_large");
        post(&lamina, &[("content-encoding", "zstd")], zstd.clone()).problem(413, "too_dense");
    }
    post(&lamina, &[("content-encoding", "deflate")], b"\x78\x9c garbage".to_vec())
        .problem(415, "unsupported_encoding");
    post(&lamina, &[("content-encoding", "zstd")], b"garbage".to_vec()).problem(400, "bad_encoding");
    let huge = with(&format!(r#""unknown": "{}""#, "x".repeat(10 << 20))) + "\n" + &with(r#""id": "1""#);
    let reply = post(&lamina, &[("content-type", NDJSON)], huge);
    assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(1)), "{}", reply.body);
    let error = reply.body["rejected"][0]["error"].as_str().unwrap();
    assert!(error.contains("1048576"), "{error}");
    let grown = lamina.peak_rss_kib() - before;
    assert!(grown < 300 << 10, "peak memory grew by {} MiB", grown >> 10);
    lamina.until("the good neighbour counts", || by_site(&lamina, RANGE, "").get("p") == Some(&(1, 1)));
}

/// An event of generated times.
#[derive(Clone)]
struct Hit {
    id: usize,
    /// Seconds since 1970.
    at: i64,
    site: usize,
    size: i64,
}

/// 10 % up to 30 days late, 1 % an hour ahead, one in a thousand a hundred years; one in 20 comes again.
fn hits(count: usize, now: i64) -> Vec<Hit> {
    let mut random = Random(7);
    let mut hits: Vec<Hit> = Vec::with_capacity(count);
    for id in 0..count {
        if id > 0 && random.below(20) == 0 {
            let again = hits[random.below(id as u64) as usize].clone();
            hits.push(again);
            continue;
        }
        let at = match random.below(1000) {
            0 => now + 100 * 365 * DAY,
            1..=10 => now + 3600,
            11..=110 => now - random.below(30 * 86_400) as i64,
            _ => now - random.below(10) as i64,
        };
        hits.push(Hit { id, at, site: random.below(5) as usize, size: random.below(2000) as i64 - 1000 });
    }
    hits
}

fn body(hits: &[Hit]) -> String {
    hits.iter().fold(String::new(), |mut body, Hit { id, at, site, size }| {
        let time = chrono::DateTime::from_timestamp(*at, 0).unwrap().to_rfc3339();
        let event = json!({"time": time, "id": format!("i{id}"), "site": format!("s{site}"), "size": size});
        let _ = writeln!(body, "{event}");
        body
    })
}

/// (site, day) → (count, sum) of each id once.
type Days = BTreeMap<(String, i64), (u64, i64)>;

fn folded(hits: &[Hit]) -> Days {
    let (mut seen, mut days) = (std::collections::HashSet::new(), Days::new());
    for hit in hits.iter().filter(|hit| seen.insert(hit.id)) {
        let cell = days.entry((format!("s{}", hit.site), hit.at.div_euclid(DAY))).or_default();
        *cell = (cell.0 + 1, cell.1 + hit.size);
    }
    days
}

fn answered(lamina: &Lamina, more: &str) -> (Days, Value) {
    const ALL: &str = "from=1990-01-01T00:00:00Z&to=2200-01-01T00:00:00Z&step=1d&group_by=site";
    let reply = get(lamina, &format!("/v1/metrics/bytes/query?{ALL}{more}"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut days = Days::new();
    for series in reply.body["series"].as_array().unwrap() {
        let site = series["dimensions"]["site"].as_str().unwrap();
        for point in series["points"].as_array().unwrap() {
            let start = chrono::DateTime::parse_from_rfc3339(point["start"].as_str().unwrap()).unwrap();
            let cell = (point["count"].as_u64().unwrap(), point["sum"].as_i64().unwrap());
            days.insert((site.to_owned(), start.timestamp() / DAY), cell);
        }
    }
    (days, reply.body["meta"].clone())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Sends hits and waits until the answer is their fold with what was sent before.
fn send(lamina: &Lamina, hits: &[Hit], expected: &Days) {
    for part in hits.chunks(500) {
        let reply = post(lamina, &[("content-type", NDJSON)], body(part));
        assert_eq!((reply.status, &reply.body["accepted"]), (202, &json!(part.len())), "{}", reply.body);
    }
    lamina.until("the answer is the fold of what was sent", || answered(lamina, "").0 == *expected);
}

/// Times that lie ahead lead nothing astray.
fn times_are_sane(lamina: &Lamina) {
    let (_, meta) = answered(lamina, "");
    let soon = now() + 60;
    for time in [&meta["speed"]["watermark"], &meta["batch"]["through"]].into_iter().filter_map(Value::as_str) {
        let time = chrono::DateTime::parse_from_rfc3339(time).unwrap().timestamp();
        assert!(time <= soon, "{meta}");
    }
    let fresh = get(lamina, "/v1/freshness/bytes").body;
    assert!(fresh["metrics"][0]["speed"]["lag_ms"].as_i64().is_some_and(|lag| (0..60_000).contains(&lag)), "{fresh}");
}

#[test]
fn late_early_and_repeated_events_count_once_wherever_batch_stopped() {
    let hits = hits(4_000, now());
    let (half, all) = (folded(&hits[..2_000]), folded(&hits));
    let world = world(Backend::Embedded);
    let mut lamina = world.start();
    send(&lamina, &hits[..2_000], &half);
    times_are_sane(&lamina);

    lamina.recompute_all();
    send(&lamina, &hits[2_000..], &all);
    times_are_sane(&lamina);

    lamina.kill();
    lamina.restart();
    lamina.until("the answer is the same after a crash", || answered(&lamina, "").0 == all);

    lamina.until("epochs are sealed by append time alone", || {
        let freshness = get(&lamina, "/v1/freshness/bytes").body;
        let epochs = files(&world.path().join("data/archive")).len();
        assert!(epochs > 0, "{freshness}");
        true
    });
    // Once all is sealed and covered, batch alone says the same, built up and rebuilt.
    lamina.until("batch covers all", || {
        lamina.recompute_all();
        answered(&lamina, "&layer=batch").0 == all
    });
    times_are_sane(&lamina);
    assert!(lamina.stop(SOON).success());

    // In another order the same events are other late ones and other duplicates.
    let mut shuffled = hits.clone();
    let mut random = Random(9);
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, random.below(at as u64 + 1) as usize);
    }
    let world = self::world(Backend::Embedded);
    let lamina = world.start();
    send(&lamina, &shuffled, &all);
    lamina.recompute_all();
    assert_eq!(answered(&lamina, "").0, all);
}

/// A flood of series over a metric with a cap, beside one without dimensions.
fn flood(
    world: &World,
    schedule: &'static str,
    (cap, series, per_request): (usize, usize, usize),
    mut each: impl FnMut(&Lamina, usize),
) -> Lamina {
    let capped = format!("dimensions = [\"site\"]\nmax_series = {cap}");
    let calm =
        "\n[metric.calm]\nsource = \"hits\"\nvalue = \"size\"\naggregates = [\"count\", \"sum\"]\ngrain = \"1m\"\n";
    define(world, &(DEFINITIONS.replace("dimensions = [\"site\"]", &capped) + calm));
    let settings = Settings { epoch: "5s", schedule, ..world.settings(Backend::Embedded) };
    let lamina = Lamina::start(world.path(), &settings, &world.name);
    let mut sent = 0;
    while sent < series {
        let to = series.min(sent + per_request);
        let body = (sent..to).fold(String::new(), |mut body, number| {
            let _ =
                writeln!(body, r#"{{"time":"2020-01-01T00:00:00Z","id":"{number}","site":"{number:07}","size":1}}"#);
            body
        });
        assert_eq!(post(&lamina, &[("content-type", NDJSON)], body).status, 202);
        sent = to;
        each(&lamina, sent);
    }
    lamina
}

fn calm(lamina: &Lamina, sent: usize) -> bool {
    let reply = get(lamina, &format!("/v1/metrics/calm/query?{RANGE}"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.body["series"][0]["points"][0]["count"] == sent
}

#[test]
fn series_beyond_the_cap_overflow_alike_in_both_layers_and_harm_no_other_metric() {
    const SERIES: usize = 5_000;
    let world = World::new();
    let lamina = flood(&world, "off", (100, SERIES, 500), |_, _| ());
    lamina.until("another metric counts all", || calm(&lamina, SERIES));
    let before = by_site(&lamina, RANGE, "");
    let reply = get(&lamina, &format!("/v1/metrics/bytes/query?{RANGE}&group_by=site"));
    let overflow = reply.body["meta"]["overflow"]["events"].as_u64().unwrap();
    assert_eq!(before["$overflow"], (overflow, overflow as i64), "the overflow is a series, and counted in meta");
    assert_eq!(before.values().map(|(count, _)| count).sum::<u64>(), SERIES as u64, "no event is left out");
    // Ever new ids, so that recomputes cover more and more of what speed counted.
    lamina.until("batch counts the same series and the same overflow", || {
        lamina.recompute_all();
        by_site(&lamina, RANGE, "&layer=batch") == before
    });
    assert_eq!(by_site(&lamina, RANGE, ""), before);
}

#[test]
#[ignore = "a measurement: a million new series, some minutes"]
fn a_million_new_series_in_five_minutes() {
    const SERIES: usize = 1_000_000;
    let world = World::new();
    let begun = Instant::now();
    let mut behind = Duration::ZERO;
    let mut lamina = flood(&world, "*/15 * * * * *", (100_000, SERIES, 10_000), |lamina, sent| {
        let asked = Instant::now();
        lamina.until("another metric is fresh", || calm(lamina, sent));
        behind = behind.max(asked.elapsed());
        if sent.is_multiple_of(100_000) {
            let took = begun.elapsed();
            eprintln!("{sent} series, {took:.0?}, peak {} MiB, calm behind {behind:.1?}", lamina.peak_rss_kib() >> 10);
        }
    });
    let covered = |metric: &str| {
        let reply = get(&lamina, &format!("/v1/metrics/{metric}/query?{RANGE}&layer=batch"));
        reply.body["series"][0]["points"][0]["count"] == SERIES
    };
    while !(covered("calm") && covered("bytes")) {
        assert!(begun.elapsed() < Duration::from_secs(1800), "{}", lamina.log_tail());
        std::thread::sleep(Duration::from_secs(1));
    }
    eprintln!("batch covers all after {:.0?}, peak {} MiB", begun.elapsed(), lamina.peak_rss_kib() >> 10);
    for more in ["&layer=batch", ""] {
        let asked = Instant::now();
        let most = format!("{RANGE}&group_by=site&limit=10&order_by=count%20desc{more}");
        let reply = get(&lamina, &format!("/v1/metrics/bytes/query?{most}"));
        let (took, peak) = (asked.elapsed(), lamina.peak_rss_kib() >> 10);
        eprintln!("ten of all series: {} in {took:.1?}, peak {peak} MiB, {}", reply.status, reply.body["meta"]);
    }
    lamina.kill();
    lamina.restart();
    lamina.until("all is there after a crash", || calm(&lamina, SERIES));
    eprintln!("after kill and restart: peak {} MiB", lamina.peak_rss_kib() >> 10);
}

/// A small generator whose sequence depends on the seed only (splitmix64).
struct Random(u64);

impl Random {
    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
