//! What happens to a topic under a running lamina: partitions added, made again, transactions aborted, compacted,
//! overtaken by retention, its broker gone; against a real broker, and judged by the answers.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lamina::backends::kafka::KafkaLog;
use lamina_core::log::Log;
use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AlterConfig, NewPartitions, ResourceSpecifier},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::Value;

use super::{
    faults::{
        ANSWER, EVENTS, Reply, SOON, World, all_of, assert_exact, count_and_sum, event, get, lines, post, query,
        visible,
    },
    kafka::{admin, broker, connect, options},
    process::{Addresses, Backend, Lamina, Settings},
};

/// How long lamina may take to notice what became of a topic.
const NOTICE: Duration = Duration::from_secs(60);
const EVERY_SECOND: &str = "* * * * * *";

fn launch(world: &World, partitions: u32) -> Lamina {
    let settings = Settings { schedule: EVERY_SECOND, partitions, ..world.settings(Backend::Real) };
    let mut lamina = Lamina::launch(world.path(), &settings, &world.name);
    lamina.wait_until_ready();
    lamina
}

fn log() -> KafkaLog {
    connect(broker())
}

/// Sends events to one partition.
fn produce(topic: &str, partition: i32, numbers: std::ops::Range<usize>) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker()).create().unwrap();
    for number in numbers {
        let payload = event(number);
        producer.send(BaseRecord::<str, str>::to(topic).partition(partition).payload(&payload)).unwrap();
    }
    producer.flush(SOON).unwrap();
}

fn covered(reply: &Reply) -> u64 {
    reply.body["meta"]["batch"]["cut"].as_object().map_or(0, |cut| cut.values().filter_map(Value::as_u64).sum())
}

/// Waits until batch covers so many offsets, and says the same.
fn batch_says(lamina: &Lamina, offsets: u64, expected: (u64, u64)) {
    lamina.until(&format!("batch covers {offsets} offsets"), || covered(&query(lamina, "")) >= offsets);
    assert_eq!(count_and_sum(&query(lamina, "&layer=batch")), expected, "the batch layer");
    assert_eq!(count_and_sum(&query(lamina, "")), expected, "both layers together");
}

fn freshness(lamina: &Lamina) -> (String, String) {
    let body = get(lamina, "/v1/freshness/bytes").body;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&body["metrics"][0]["status"]), text(&body["metrics"][0]["reason"]))
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning_by_every_layer() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let mut lamina = launch(&world, 2);
    assert_eq!(post(&lamina, &[], lines(0..100)).status, 202);
    visible(&lamina, 100);
    batch_says(&lamina, 100, all_of(100));

    let more = world.runtime.block_on(admin().create_partitions(&[NewPartitions::new(&world.name, 4)], &options()));
    more.unwrap().remove(0).unwrap();
    let begun = Instant::now();
    produce(&world.name, 2, 100..150);
    produce(&world.name, 3, 150..200);
    visible(&lamina, 200);
    eprintln!("events in new partitions are visible after {:?}", begun.elapsed());
    assert!(begun.elapsed() < NOTICE);
    let reply = query(&lamina, "");
    assert_exact(&reply);
    assert_eq!(reply.body["meta"]["speed"]["positions"].as_object().unwrap().len(), 4, "{}", reply.body);
    batch_says(&lamina, 200, all_of(200));

    // Ids are remembered within a partition: what comes again by another one is another event.
    produce(&world.name, 3, 10..11);
    let (count, sum) = all_of(200);
    lamina.until("an id counts once in each partition", || count_and_sum(&query(&lamina, "")) == (count + 1, sum + 10));
    batch_says(&lamina, 201, (count + 1, sum + 10));
    assert!(lamina.stop(SOON).success());
}

#[test]
fn a_topic_that_is_made_again_begins_anew_and_no_answer_mixes_the_two() {
    const NEW: usize = 1_000_000;
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let mut lamina = launch(&world, 1);
    assert_eq!(post(&lamina, &[], lines(0..300)).status, 202);
    visible(&lamina, 300);
    batch_says(&lamina, 300, all_of(300));

    let (name, log) = (&world.name, log());
    let before = world.runtime.block_on(log.topic(name)).unwrap().id;
    world.runtime.block_on(async {
        admin().delete_topics(&[name], &options()).await.unwrap();
        let begun = Instant::now();
        while log.ensure_topic(name, 1).await.is_ok_and(|topic| topic.id == before) || log.topic(name).await.is_err() {
            assert!(begun.elapsed() < SOON, "the topic is made again");
        }
    });
    // More than there were, so that the old position lies within the new topic.
    produce(name, 0, NEW..NEW + 500);
    let expected = (500, (NEW..NEW + 500).map(|number| number as u64).sum());
    let begun = Instant::now();
    lamina.until("the new topic is answered whole", || {
        let reply = query(&lamina, "");
        assert!(reply.status == 200 || reply.status == 503, "{}", reply.body);
        if reply.status != 200 {
            return false;
        }
        let (count, sum) = count_and_sum(&reply);
        let (old, new) = (sum <= all_of(300).1, sum >= count * NEW as u64);
        assert!(old || new, "{count} events with a sum of {sum} are of both topics: {}", reply.body);
        (count, sum) == expected
    });
    eprintln!("a topic made again is answered whole after {:?}", begun.elapsed());
    assert!(begun.elapsed() < NOTICE);
    batch_says(&lamina, 500, expected);
    let reply = query(&lamina, "");
    assert_eq!((&reply.body["version"], &reply.body["meta"]["complete"]), (&2.into(), &true.into()), "{}", reply.body);
    assert!(lamina.stop(SOON).success());
}

/// Transactions of 20 events, every fifth aborted; gives how many were committed and their sum.
fn transact(topic: &str) -> (u64, u64) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker()).set("transactional.id", topic).create().unwrap();
    producer.init_transactions(SOON).unwrap();
    let mut committed = (0, 0);
    for round in 0..50 {
        producer.begin_transaction().unwrap();
        for number in round * 20..round * 20 + 20 {
            let (payload, partition) = (event(number), (number % 2) as i32);
            producer.send(BaseRecord::<str, str>::to(topic).partition(partition).payload(&payload)).unwrap();
        }
        producer.flush(SOON).unwrap();
        // The last one is aborted: the log ends with markers.
        if round % 5 == 4 {
            producer.abort_transaction(SOON).unwrap();
        } else {
            producer.commit_transaction(SOON).unwrap();
            committed = (committed.0 + 20, committed.1 + (round * 20..round * 20 + 20).sum::<usize>() as u64);
        }
    }
    committed
}

#[test]
fn of_transactions_only_what_was_committed_counts_and_positions_reach_the_end() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    world.runtime.block_on(log().ensure_topic(&world.name, 2)).unwrap();
    let mut lamina = launch(&world, 2);
    let committed = transact(&world.name);
    assert_eq!(committed.0, 800);
    let spans = world.runtime.block_on(log().spans(&world.name)).unwrap();
    let ends: u64 = spans.values().map(|span| span.end).sum();
    assert!(ends > 1_000, "aborted records and markers have offsets: {spans:?}");
    lamina.until("every committed event is visible", || {
        let reply = query(&lamina, "");
        assert!(count_and_sum(&reply).0 <= committed.0, "{}", reply.body);
        let positions = reply.body["meta"]["speed"]["positions"].as_object().unwrap();
        positions.values().filter_map(Value::as_u64).sum::<u64>() == ends
    });
    let reply = query(&lamina, "");
    assert_eq!((count_and_sum(&reply), &reply.body["meta"]["complete"]), (committed, &true.into()), "{}", reply.body);
    batch_says(&lamina, ends, committed);
    let partitions = get(&lamina, "/v1/freshness/bytes").body["metrics"][0]["speed"]["partitions"].clone();
    assert!(partitions.as_array().unwrap().iter().all(|one| one["lag_records"] == 0), "{partitions}");
    let metrics = lamina.request(reqwest::Method::GET, "/metrics").send().unwrap().text().unwrap();
    let absent = metrics.lines().find(|line| line.contains("records_total{") && line.contains("absent")).unwrap();
    assert!(absent.ends_with(&format!(" {}", ends - 800)), "offsets without a record: {absent}");
    assert!(lamina.stop(SOON).success());
}

fn clean_up_by(world: &World, policy: &str) {
    let alter = AlterConfig::new(ResourceSpecifier::Topic(&world.name))
        .set("cleanup.policy", policy)
        .set("message.timestamp.type", "LogAppendTime");
    let altered = world.runtime.block_on(admin().alter_configs(&[alter], &options()));
    altered.unwrap().remove(0).unwrap();
}

#[test]
fn a_topic_that_becomes_compacted_is_refused_by_name_until_it_is_not() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let mut lamina = launch(&world, 1);
    assert_eq!(post(&lamina, &[], lines(0..50)).status, 202);
    visible(&lamina, 50);

    clean_up_by(&world, "compact");
    let begun = Instant::now();
    let named = |lamina: &Lamina| {
        let (status, reason) = freshness(lamina);
        status == "breach" && reason.contains("cleanup.policy") && reason.contains(&world.name)
    };
    lamina.until("freshness names the compacted topic", || named(&lamina));
    lamina.until("consumption stops", || lamina.log_tail().contains("topic is dropped"));
    eprintln!("compaction is noticed after {:?}", begun.elapsed());
    assert!(begun.elapsed() < NOTICE);
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker()).create().unwrap();
    for number in 50..60 {
        let (key, payload) = (number.to_string(), event(number));
        producer.send(BaseRecord::to(&world.name).key(&key).payload(&payload)).unwrap();
    }
    producer.flush(SOON).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(count_and_sum(&query(&lamina, "")), all_of(50), "what is stored is answered, and nothing is added");
    let detail = post(&lamina, &[], event(60)).problem(503, "log_refused");
    assert!(detail.contains("cleanup.policy"), "{detail}");

    // Nor is it consumed from a start on.
    lamina.kill();
    lamina.restart();
    lamina.until("freshness names the compacted topic from the start on", || named(&lamina));

    clean_up_by(&world, "delete");
    visible(&lamina, 60);
    assert_exact(&query(&lamina, ""));
    assert!(lamina.stop(SOON).success());
}

#[test]
fn what_retention_took_before_it_was_read_is_missing_in_every_answer_that_passes_it() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let definitions = world.path().join("metrics.toml");
    let text = std::fs::read_to_string(&definitions).unwrap();
    let other = text.replace(&world.name, &format!("{}-other", world.name)).replace("hits", "other");
    std::fs::write(&definitions, text + &other.replace("metric.bytes", "metric.others")).unwrap();
    let mut lamina = launch(&world, 1);
    assert_eq!(post(&lamina, &[], lines(0..100)).status, 202);
    let others = lamina.request(reqwest::Method::POST, &EVENTS.replace("hits", "other")).body(lines(0..10));
    assert_eq!(Reply::of(others).status, 202);
    visible(&lamina, 100);
    batch_says(&lamina, 100, all_of(100));

    // The worker is away, and retention overtakes it.
    lamina.kill();
    produce(&world.name, 0, 100..200);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&world.name, 0, rdkafka::Offset::Offset(150)).unwrap();
    world.runtime.block_on(admin().delete_records(&before, &options())).unwrap();
    lamina.restart();
    let flagged = |reply: &Reply| {
        let meta = &reply.body["meta"];
        let lost =
            |one: &Value| one["why"] == "lost" && one["partition"] == 0 && one["from"] == 100 && one["to"] == 150;
        meta["complete"] == false && meta["missing"].as_array().unwrap().iter().any(lost)
    };
    let position = |reply: &Reply| reply.body["meta"]["speed"]["positions"]["0"].as_u64().unwrap();
    lamina.until("what is left is visible", || {
        let reply = query(&lamina, "");
        assert!(reply.status == 200 || reply.status == 503, "{}", reply.body);
        if reply.status != 200 {
            return false;
        }
        assert_eq!(position(&reply) > 100, flagged(&reply), "{}", reply.body);
        position(&reply) == 200
    });
    let left: u64 = (0..100).chain(150..200).sum();
    assert_eq!(count_and_sum(&query(&lamina, "")), (150, left));
    let (status, reason) = freshness(&lamina);
    assert!(status == "breach" && reason.contains("100..150") && reason.contains("lost"), "{status}: {reason}");

    // Batch covers it, and the epoch leaves the ledger: the loss does not.
    batch_says(&lamina, 200, (150, left));
    for round in 0..3 {
        assert_eq!(post(&lamina, &[], lines(200 + round..201 + round)).status, 202);
        lamina.until("another epoch is covered", || covered(&query(&lamina, "")) == 201 + round as u64);
    }
    assert!(flagged(&query(&lamina, "")), "{}", query(&lamina, "").body);
    assert!(flagged(&query(&lamina, "&layer=batch")));
    lamina.recompute_all();
    assert!(flagged(&query(&lamina, "")), "a recompute does not find what is gone");
    let other = get(&lamina, "/v1/metrics/others/query?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z");
    assert_eq!(count_and_sum(&other), all_of(10));
    assert_eq!(other.body["meta"]["complete"], true, "another source lacks nothing: {}", other.body);
    assert!(lamina.stop(SOON).success());
}

/// A free port below those that the system gives to outgoing connections: one of those could take it while its owner is away.
fn lasting_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| 20_000 + (uuid::Uuid::new_v4().as_u128() % 12_000) as u16);
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// A broker of this test's own, which it may kill.
struct Broker {
    folder: PathBuf,
    ports: (u16, u16),
}

impl Broker {
    fn start(folder: &Path) -> Self {
        let broker = Self { folder: folder.join("broker"), ports: (lasting_port(), lasting_port()) };
        std::fs::create_dir(&broker.folder).unwrap();
        broker.up();
        broker
    }

    fn script(&self, name: &str, arguments: &[&str]) {
        let done = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local").join(name))
            .args(arguments)
            .env("LAMINA_RUN", &self.folder)
            .env("LAMINA_NO_DOCKER", "1")
            .env("LAMINA_KAFKA_PORT", self.ports.0.to_string())
            .env("LAMINA_KAFKA_CONTROLLER_PORT", self.ports.1.to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn up(&self) {
        self.script("up.sh", &["kafka"]);
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.join("kafka/pid")).unwrap();
        assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.0)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.folder.join("kafka/pid")) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_broker_that_vanishes_and_returns_costs_no_event_and_no_wrong_answer() {
    if Backend::Real.skipped() {
        return;
    }
    let world = World::with_keyspace();
    let kafka = Broker::start(world.path());
    let mut lamina = world.launch(Addresses { kafka: kafka.address(), ..Addresses::default() });
    lamina.wait_until_ready();
    let mut sent = 0;
    for away in ["-STOP", "-KILL"] {
        for _ in 0..10 {
            assert_eq!(post(&lamina, &[], lines(sent..sent + 10)).status, 202);
            sent += 10;
        }
        visible(&lamina, sent);
        kafka.signal(away);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) {
            let reply = query(&lamina, "");
            assert!(reply.took < ANSWER, "a query took {:?} while the broker was away", reply.took);
            assert_eq!(count_and_sum(&reply), all_of(sent), "what was visible stays visible");
            std::thread::sleep(Duration::from_millis(200));
        }
        lamina.until("readiness names the log", || get(&lamina, "/readyz").body["checks"]["log"] != "ok");
        // Whether or not it is in the log after all, it is sent again with the same id, and counts once.
        let reply = post(&lamina, &[], lines(sent..sent + 10));
        assert!(reply.status == 503 || reply.status == 202, "{}", reply.body);
        if away == "-STOP" {
            kafka.signal("-CONT")
        } else {
            kafka.up()
        }
        let back = Instant::now();
        lamina.until("it is ready again", || get(&lamina, "/readyz").status == 200);
        lamina.until("ingest goes on", || post(&lamina, &[], lines(sent..sent + 10)).status == 202);
        sent += 10;
        visible(&lamina, sent);
        eprintln!("after {away}: ready, and all of {sent} events visible {:?} after the return", back.elapsed());
    }
    lamina.recompute_all();
    assert_eq!(count_and_sum(&query(&lamina, "")), all_of(sent));
    assert!(lamina.stop(SOON).success());
}
