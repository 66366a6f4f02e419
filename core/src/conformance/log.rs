//! Laws of topics, appending and reading.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::future::join_all;

use super::{Random, now, until};
use crate::{
    ids::{Offset, Partition},
    log::{Append, Log, LogError, MAX_RECORD, Record, Span},
};

pub(super) async fn laws(log: &dyn Log, fresh: &str) {
    log.ping().await.expect("ping: the log answers");
    making_a_topic_again_changes_nothing(log, &format!("{fresh}-topic")).await;
    an_absent_topic_is_named_as_such(log, &format!("{fresh}-absent")).await;
    appends_get_dense_offsets_in_order(log, &format!("{fresh}-dense")).await;
    concurrent_appends_share_no_offset(log, &format!("{fresh}-concurrent")).await;
    a_key_stays_in_its_partition_and_keyless_records_spread(log, &format!("{fresh}-keys")).await;
    reading_gives_what_was_appended_from_any_offset(log, &format!("{fresh}-read")).await;
    reading_outside_the_log_is_out_of_range(log, &format!("{fresh}-outside")).await;
    append_times_are_real_and_lead_back_to_offsets(log, &format!("{fresh}-times")).await;
    an_oversized_record_is_refused_and_nothing_appended(log, &format!("{fresh}-large")).await;
}

/// A keyless record.
pub(super) fn record(payload: impl Into<Bytes>) -> Append {
    Append { key: None, payload: payload.into() }
}

/// A record whose key is `key`.
pub(super) fn keyed(key: &str, payload: String) -> Append {
    Append { key: Some(Bytes::copy_from_slice(key.as_bytes())), payload: payload.into() }
}

/// Everything from `from` to the end, read in steps of about `step` bytes.
pub(super) async fn read_all(
    log: &dyn Log,
    topic: &str,
    partition: Partition,
    from: Offset,
    step: usize,
) -> Vec<Record> {
    let end = log.spans(topic).await.expect("spans")[&partition].end;
    let (mut all, mut at) = (Vec::new(), from);
    while at < end {
        let (records, next) = log.read(topic, partition, at, step).await.expect("read");
        assert!(next > at, "read at {at} of {topic}/{partition} must go forward while the end is {end}, got {next}");
        for record in &records {
            assert!((at..next).contains(&record.offset), "record at {} was read from {at}..{next}", record.offset);
        }
        all.extend(records);
        at = next;
    }
    all
}

async fn making_a_topic_again_changes_nothing(log: &dyn Log, name: &str) {
    let made = log.ensure_topic(name, 3).await.expect("ensure_topic");
    assert_eq!((made.name.as_str(), made.partitions), (name, 3), "the topic is as asked");
    assert!(!made.id.is_empty(), "a topic has an id");
    let again = log.ensure_topic(name, 5).await.expect("ensure_topic of an existing topic");
    assert_eq!(again, made, "an existing topic keeps its id and its partitions");
    assert_eq!(log.topic(name).await.expect("topic"), made, "topic() says what ensure_topic() said");
    let spans = log.spans(name).await.expect("spans");
    let empty: BTreeMap<_, _> = (0..3).map(|partition| (partition, Span { start: 0, end: 0 })).collect();
    assert_eq!(spans, empty, "a new topic has all its partitions, empty");
}

async fn an_absent_topic_is_named_as_such(log: &dyn Log, name: &str) {
    let answers = [
        ("topic", log.topic(name).await.map(drop)),
        ("append", log.append(name, vec![record("x")]).await.map(drop)),
        ("spans", log.spans(name).await.map(drop)),
        ("read", log.read(name, 0, 0, 1000).await.map(drop)),
        ("offset_at", log.offset_at(name, 0, 0).await.map(drop)),
    ];
    for (call, answer) in answers {
        match answer {
            Err(LogError::NoTopic(topic)) => assert_eq!(topic, name, "{call} names the topic"),
            other => panic!("{call} of an absent topic must be NoTopic, was {other:?}"),
        }
    }
}

async fn appends_get_dense_offsets_in_order(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 4).await.expect("ensure_topic");
    assert!(log.append(topic, Vec::new()).await.expect("append of nothing").is_empty(), "nothing gives nothing");
    let mut ends: BTreeMap<Partition, Offset> = BTreeMap::new();
    for round in 0..5 {
        let records = (0..200).map(|i| keyed(&format!("k{}", i % 37), format!("{round}:{i}"))).collect();
        let placed = log.append(topic, records).await.expect("append");
        assert_eq!(placed.len(), 200, "every record is acknowledged");
        for (i, (partition, offset)) in placed.into_iter().enumerate() {
            let end = ends.entry(partition).or_default();
            assert_eq!(offset, *end, "record {i} of append {round} follows without a gap in partition {partition}");
            *end += 1;
        }
    }
    let spans = log.spans(topic).await.expect("spans");
    for (partition, span) in spans {
        let end = ends.get(&partition).copied().unwrap_or(0);
        assert_eq!(span, Span { start: 0, end }, "the span of partition {partition} ends after the last append");
    }
}

async fn concurrent_appends_share_no_offset(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 2).await.expect("ensure_topic");
    let append = |caller: usize| async move {
        let mut placed = Vec::new();
        for round in 0..5 {
            let records = (0..20).map(|i| record(format!("{caller}:{round}:{i}"))).collect();
            let answer = log.append(topic, records).await.expect("append");
            placed.extend(answer.into_iter().zip((0..20).map(move |i| format!("{caller}:{round}:{i}"))));
        }
        placed
    };
    let placed: Vec<_> = join_all((0..6).map(append)).await.into_iter().flatten().collect();
    let distinct: BTreeSet<_> = placed.iter().map(|(place, _)| *place).collect();
    assert_eq!(distinct.len(), 600, "no two records were given the same place");
    let mut read = BTreeMap::new();
    for partition in 0..2 {
        for (i, record) in read_all(log, topic, partition, 0, 1 << 20).await.into_iter().enumerate() {
            assert_eq!(record.offset, i as Offset, "offsets are dense");
            read.insert((partition, record.offset), record.payload);
        }
    }
    assert_eq!(read.len(), 600, "every record was stored once");
    for (place, payload) in placed {
        assert_eq!(read[&place], payload.as_bytes(), "the record stands where the acknowledgement said: {place:?}");
    }
}

async fn a_key_stays_in_its_partition_and_keyless_records_spread(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 4).await.expect("ensure_topic");
    let mut homes: BTreeMap<usize, Partition> = BTreeMap::new();
    for _ in 0..3 {
        let records = (0..60).map(|key| keyed(&format!("key-{key}"), "x".into())).collect();
        for (key, (partition, _)) in log.append(topic, records).await.expect("append").into_iter().enumerate() {
            assert_eq!(*homes.entry(key).or_insert(partition), partition, "key-{key} stays in its partition");
        }
    }
    let used: BTreeSet<_> = homes.values().collect();
    assert_eq!(used.len(), 4, "60 keys use all of 4 partitions");
    let used = std::sync::Mutex::new(BTreeSet::new());
    until("keyless records reach every partition", || async {
        let records = (0..50).map(|_| record("x")).collect();
        let placed = log.append(topic, records).await.expect("append");
        let mut used = used.lock().expect("no panic under the lock");
        used.extend(placed.into_iter().map(|(partition, _)| partition));
        used.len() == 4
    })
    .await;
}

async fn reading_gives_what_was_appended_from_any_offset(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 1).await.expect("ensure_topic");
    let mut random = Random(7);
    let mut appended = Vec::new();
    for _ in 0..4 {
        let batch: Vec<Append> = (0..50)
            .map(|_| {
                let size = random.below(400) as usize;
                let key = (random.below(2) == 0).then(|| random.bytes(9));
                Append { key, payload: random.bytes(size) }
            })
            .collect();
        appended.extend(batch.iter().cloned());
        log.append(topic, batch).await.expect("append");
    }
    for (from, step) in [(0, 1), (0, 1 << 20), (1, 700), (99, 5000), (150, 1 << 20), (199, 1)] {
        let read = read_all(log, topic, 0, from, step).await;
        assert_eq!(read.len() as u64, 200 - from, "all records from {from} on, in steps of {step} bytes");
        for (record, offset) in read.into_iter().zip(from..) {
            let same = &appended[offset as usize];
            assert_eq!(record.offset, offset, "offsets follow each other");
            assert_eq!((&record.key, &record.payload), (&same.key, &same.payload), "record {offset} is as appended");
        }
    }
    let (records, next) = log.read(topic, 0, 0, 2000).await.expect("read");
    let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
    assert!(records.len() < 200 && bytes < 200_000, "max_bytes of 2000 bounds a read, got {bytes} bytes");
    assert_eq!(next, records.last().map_or(0, |last| last.offset + 1), "next is past the last record");
    let (records, next) = log.read(topic, 0, 200, 1000).await.expect("read at the end");
    assert!(records.is_empty() && next == 200, "reading at the end gives nothing and stays, got {next}");
}

async fn reading_outside_the_log_is_out_of_range(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 1).await.expect("ensure_topic");
    log.append(topic, vec![record("a"), record("b")]).await.expect("append");
    match log.read(topic, 0, 3, 1000).await {
        Err(LogError::OutOfRange { wanted: 3, start: 0, end: 2, .. }) => {}
        other => panic!("reading at 3 of 0..2 must be OutOfRange, was {other:?}"),
    }
}

async fn append_times_are_real_and_lead_back_to_offsets(log: &dyn Log, topic: &str) {
    const SECOND: i64 = 1_000_000;
    log.ensure_topic(topic, 1).await.expect("ensure_topic");
    let begun = now();
    for _ in 0..4 {
        log.append(topic, vec![record("x"), record("y")]).await.expect("append");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let records = read_all(log, topic, 0, 0, 1 << 20).await;
    let around = begun - 30 * SECOND..now() + 30 * SECOND;
    for record in &records {
        assert!(around.contains(&record.appended_at), "append time {} is now", record.appended_at);
    }
    for pair in records.windows(2) {
        assert!(pair[1].appended_at >= pair[0].appended_at - SECOND, "append times do not go back by a second");
    }
    let times = records.iter().flat_map(|record| [record.appended_at - 1, record.appended_at, record.appended_at + 1]);
    for at in times.chain([0, now() + 3600 * SECOND]) {
        let expected = records.iter().find(|record| record.appended_at >= at).map_or(8, |record| record.offset);
        let found = log.offset_at(topic, 0, at).await.expect("offset_at");
        assert_eq!(found, expected, "first offset appended at or after {at} of {records:?}");
    }
}

async fn an_oversized_record_is_refused_and_nothing_appended(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 1).await.expect("ensure_topic");
    let mut random = Random(11);
    let oversized = random.bytes(MAX_RECORD + 1);
    match log.append(topic, vec![record("small"), record(oversized)]).await {
        Err(LogError::TooLarge { bytes, limit }) => assert!(bytes > MAX_RECORD && limit <= bytes, "{bytes} > {limit}"),
        other => panic!("a record of {} bytes must be TooLarge, was {other:?}", MAX_RECORD + 1),
    }
    assert_eq!(log.spans(topic).await.expect("spans")[&0].end, 0, "nothing of a refused append is in the log");
    let large = random.bytes(MAX_RECORD - 4096);
    log.append(topic, vec![record(large.clone())]).await.expect("append of a record of nearly MAX_RECORD");
    let read = read_all(log, topic, 0, 0, 1000).await;
    assert!(read.len() == 1 && read[0].payload == large, "the large record is read whole, past max_bytes");
}
