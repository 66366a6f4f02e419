//! The Kafka backend against a real broker: `make up`, or `LAMINA_TEST_KAFKA=host:port`.

use std::{
    collections::BTreeMap,
    future::Future,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lamina::backends::kafka::{KafkaConfig, KafkaLog};
use lamina_core::{
    conformance,
    ids::{Offset, Partition},
    log::{Append, Consumer, Event, Log, LogError, Span, TopicPartition},
};
use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer},
};
use uuid::Uuid;

const WAIT: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn broker() -> String {
    std::env::var("LAMINA_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned())
}

/// The only way around these tests.
fn skipped() -> bool {
    std::env::var_os("LAMINA_SKIP_REAL").is_some_and(|value| !value.is_empty())
}

pub(crate) fn connect(brokers: String) -> KafkaLog {
    KafkaLog::connect(KafkaConfig { brokers, replication_factor: 1, options: BTreeMap::new(), credentials: None })
        .expect("settings")
}

/// Runs a test with a log and a name that nobody used before.
fn with_log<F: Future<Output = ()>>(test: impl FnOnce(KafkaLog, String) -> F) {
    if skipped() {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let log = connect(broker());
        log.ping().await.expect("a Kafka broker; `make up` starts one");
        test(log, format!("lamina-test-{}", Uuid::now_v7().simple())).await;
    });
}

pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", broker()).create().expect("an admin client")
}

pub(crate) fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)))
}

fn keyless(payload: impl Into<Bytes>) -> Append {
    Append { key: None, payload: payload.into() }
}

/// The next event that is something.
async fn next(consumer: &mut Box<dyn Consumer>) -> Event {
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        match consumer.next(WAIT).await {
            Ok(Event::Idle) | Err(LogError::Unavailable(_)) => {}
            Ok(event) => return event,
            Err(error) => panic!("consumer: {error}"),
        }
    }
    panic!("no event within {DEADLINE:?}");
}

async fn assigned(consumer: &mut Box<dyn Consumer>) -> Vec<TopicPartition> {
    match next(consumer).await {
        Event::Assigned(partitions) => partitions,
        other => panic!("expected Assigned, was {other:?}"),
    }
}

#[test]
fn kafka_keeps_the_laws_of_a_log() {
    with_log(|log, fresh| async move { conformance::log_suite(&log, &fresh).await });
}

#[test]
fn a_topic_made_again_under_the_same_name_is_another_topic() {
    with_log(|log, name| async move {
        let first = log.ensure_topic(&name, 2).await.unwrap();
        log.append(&name, vec![keyless("x")]).await.unwrap();
        admin().delete_topics(&[&name], &options()).await.unwrap();
        let begun = Instant::now();
        while !matches!(log.topic(&name).await, Err(LogError::NoTopic(_))) {
            assert!(begun.elapsed() < DEADLINE, "a deleted topic is gone");
            tokio::time::sleep(WAIT).await;
        }
        let second = log.ensure_topic(&name, 1).await.unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!((second.partitions, log.spans(&name).await.unwrap()[&0]), (1, Span { start: 0, end: 0 }));
    });
}

#[test]
fn a_compacted_topic_is_refused() {
    with_log(|log, name| async move {
        let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact,delete");
        admin().create_topics([&topic], &options()).await.unwrap();
        let begun = Instant::now();
        let refusal = loop {
            match log.topic(&name).await {
                Err(LogError::NoTopic(_)) if begun.elapsed() < DEADLINE => tokio::time::sleep(WAIT).await,
                answer => break answer,
            }
        };
        assert!(matches!(&refusal, Err(LogError::Refused(why)) if why.contains("cleanup.policy")), "{refusal:?}");
        assert!(log.ensure_topic(&name, 1).await.is_err(), "and not taken for an existing one");
    });
}

/// Four transactions of five records: committed, aborted, committed, aborted; with their markers, offsets 0..24.
fn transact(topic: &str) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer =
        config.set("bootstrap.servers", broker()).set("transactional.id", topic).create().expect("a producer");
    producer.init_transactions(DEADLINE).expect("init");
    for round in 0..4 {
        producer.begin_transaction().expect("begin");
        for _ in 0..5 {
            producer.send(BaseRecord::<str, str>::to(topic).payload("x")).expect("send");
        }
        producer.flush(DEADLINE).expect("flush");
        let end =
            if round % 2 == 0 { producer.commit_transaction(DEADLINE) } else { producer.abort_transaction(DEADLINE) };
        end.expect("end");
    }
}

#[test]
fn readers_see_committed_records_and_come_to_the_end_of_the_log() {
    const COMMITTED: [Offset; 10] = [0, 1, 2, 3, 4, 12, 13, 14, 15, 16];
    with_log(|log, topic| async move {
        log.ensure_topic(&topic, 1).await.unwrap();
        let name = topic.clone();
        tokio::task::spawn_blocking(move || transact(&name)).await.unwrap();
        let begun = Instant::now();
        while log.spans(&topic).await.unwrap()[&0].end != 24 {
            assert!(begun.elapsed() < DEADLINE, "the last transaction ends");
            tokio::time::sleep(WAIT).await;
        }
        for from in [0, 5, 14, 17, 23] {
            let (mut at, mut read) = (from, Vec::new());
            while at < 24 {
                let (records, next) = log.read(&topic, 0, at, 1).await.unwrap();
                read.extend(records.iter().map(|record| record.offset));
                at = next;
            }
            let expected: Vec<_> = COMMITTED.into_iter().filter(|offset| *offset >= from).collect();
            assert_eq!((at, read), (24, expected.clone()), "read from {from}");
            let mut member = log.join(&format!("{topic}-{from}"), std::slice::from_ref(&topic)).await.unwrap();
            let partition = assigned(&mut member).await.remove(0);
            member.start(partition, from).await.unwrap();
            let (mut at, mut seen) = (from, Vec::new());
            while at < 24 {
                let Event::Records { records, next, .. } = next(&mut member).await else { panic!("only records come") };
                seen.extend(records.iter().map(|record| record.offset));
                at = next;
            }
            assert_eq!((at, seen), (24, expected), "consumed from {from}");
            member.leave().await.unwrap();
        }
    });
}

#[test]
fn a_deleted_offset_is_out_of_range_with_what_the_log_still_holds() {
    with_log(|log, topic| async move {
        log.ensure_topic(&topic, 1).await.unwrap();
        log.append(&topic, (0..100).map(|i| keyless(i.to_string())).collect()).await.unwrap();
        let mut member = log.join(&topic, std::slice::from_ref(&topic)).await.unwrap();
        let partition = assigned(&mut member).await.remove(0);
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(60)).unwrap();
        admin().delete_records(&before, &options()).await.unwrap();
        let held = |error: &LogError| matches!(error, LogError::OutOfRange { wanted: 10, start: 60, end: 100, .. });
        let error = log.read(&topic, 0, 10, 1000).await.unwrap_err();
        assert!(held(&error), "{error}");
        member.start(partition.clone(), 10).await.unwrap();
        match next(&mut member).await {
            Event::Failed { partition: 0, error, .. } => assert!(held(&error), "{error}"),
            other => panic!("expected Failed, was {other:?}"),
        }
        member.start(partition, 60).await.unwrap();
        match next(&mut member).await {
            Event::Records { records, .. } => assert_eq!(records[0].offset, 60),
            other => panic!("expected Records, was {other:?}"),
        }
        member.leave().await.unwrap();
    });
}

#[test]
fn a_revoked_partition_goes_to_the_next_member_only_once_released() {
    with_log(|log, topic| async move {
        log.ensure_topic(&topic, 2).await.unwrap();
        let mut first = log.join(&topic, std::slice::from_ref(&topic)).await.unwrap();
        for partition in assigned(&mut first).await {
            first.start(partition, 0).await.unwrap();
        }
        let mut second = log.join(&topic, std::slice::from_ref(&topic)).await.unwrap();
        let Event::Revoked(partitions) = next(&mut first).await else { panic!("the first member gives one up") };
        assert_eq!(partitions.len(), 1, "only what moves is revoked");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let event = second.next(WAIT).await.unwrap();
            assert!(matches!(event, Event::Idle), "the second member waits for the release, was told {event:?}");
        }
        first.commit(vec![(partitions[0].clone(), 0)]).await.unwrap();
        first.release(partitions.clone()).await.unwrap();
        assert_eq!(assigned(&mut second).await, partitions);
        drop(first);
        assert_eq!(assigned(&mut second).await.len(), 1, "a dropped member leaves the group");
        second.leave().await.unwrap();
    });
}

#[test]
fn a_consumer_that_stalls_gets_everything_once() {
    const COUNT: usize = 40_000;
    with_log(|log, topic| async move {
        log.ensure_topic(&topic, 4).await.unwrap();
        for _ in 0..COUNT / 1000 {
            let batch = (0..1000).map(|i| Append { key: Some(format!("{i}").into()), payload: vec![b'x'; 600].into() });
            log.append(&topic, batch.collect()).await.unwrap();
        }
        let mut member = log.join(&topic, std::slice::from_ref(&topic)).await.unwrap();
        let mut at: BTreeMap<Partition, Offset> = BTreeMap::new();
        for partition in assigned(&mut member).await {
            at.insert(partition.1, 0);
            member.start(partition, 0).await.unwrap();
        }
        let mut events = 0;
        while at.values().sum::<Offset>() < COUNT as Offset {
            let Event::Records { partition, records, next, .. } = next(&mut member).await else {
                panic!("records only")
            };
            for (record, expected) in records.iter().zip(at[&partition]..) {
                assert_eq!(record.offset, expected, "in order, without gap or repetition");
            }
            at.insert(partition, next);
            events += 1;
            // Long enough for the member to fill up and pause, twice.
            if events % 12 == 6 && events < 20 {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        }
        member.leave().await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_calls_answer_unavailable_and_nothing_hangs() {
    let log = connect("127.0.0.1:1".to_owned());
    let begun = Instant::now();
    let answers = [
        log.ping().await,
        log.topic("t").await.map(drop),
        log.append("t", vec![keyless("x")]).await.map(drop),
        log.read("t", 0, 0, 1).await.map(drop),
    ];
    for answer in answers {
        match answer {
            Err(LogError::Unavailable(why)) => assert!(why.contains("127.0.0.1:1"), "the brokers are named: {why}"),
            other => panic!("expected Unavailable, was {other:?}"),
        }
    }
    let mut member = log.join("group", &["t".to_owned()]).await.unwrap();
    while !matches!(member.next(WAIT).await, Err(LogError::Unavailable(_))) {
        assert!(begun.elapsed() < DEADLINE, "a member says that the log is away");
    }
    let leaving = Instant::now();
    member.leave().await.unwrap();
    assert!(leaving.elapsed() < Duration::from_secs(11), "leaving took {:?}", leaving.elapsed());
}
