//! What holds while log, store and archive answer: crashes, zombies, duplicates and garbage included.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use lamina_core::{LogId, log::Event};
use lamina_metric::{accepted_events, archive_schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::world::{DEFINITIONS, TOPIC, World, compile};

const FLAVOURS: [&str; 4] = ["en", "de", "fr", "hidden"];

/// Records of all kinds: events, duplicates within and outside the window, garbage, offsets without a record.
fn push_some(world: &World, random: &mut StdRng, appended_at: &mut i64, most: usize) {
    for _ in 0..random.random_range(1..=most) {
        let partition = random.random_range(0..world.log.ends(TOPIC).len()) as u32;
        // Append times wander back a little and now and then leap on, past the dedup window.
        *appended_at += if random.random_ratio(1, 50) { 6_000_000 } else { random.random_range(-20_000..100_000) };
        match random.random_range(0..20) {
            0 => world.log.push(TOPIC, partition, *appended_at, Some("{ this is no event")),
            1 => world.log.push(TOPIC, partition, *appended_at, None),
            _ => {
                let id = format!("id-{}", random.random_range(0..400));
                let channel = FLAVOURS[random.random_range(0..FLAVOURS.len())];
                world.push(partition, *appended_at, &id, channel, random.random_range(-50..1_000));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_folds_exactly_its_prefix_and_a_stop_seals_the_rest() {
    let world = World::new(2);
    let worker = world.start("g");
    let (mut random, mut at) = (StdRng::seed_from_u64(1), 1_000_000_000);
    for _ in 0..20 {
        push_some(&world, &mut random, &mut at, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.check().await;
    }
    world.all_visible().await;
    assert!(world.ledger(0).sealed().count() >= 2, "epochs were sealed meanwhile");
    worker.drain().await;
    for (partition, end) in world.log.ends(TOPIC) {
        assert_eq!(world.ledger(partition).sealed_end(), end, "a stop seals partition {partition}");
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_at_any_moment_lose_nothing_and_double_nothing() {
    let world = World::new(2);
    let (mut random, mut at) = (StdRng::seed_from_u64(2), 1_000_000_000);
    for _ in 0..15 {
        push_some(&world, &mut random, &mut at, 300);
        let worker = world.start("g");
        for _ in 0..random.random_range(0..8) {
            tokio::time::sleep(Duration::from_millis(random.random_range(1..60))).await;
            push_some(&world, &mut random, &mut at, 100);
            world.check().await;
        }
        worker.crash().await;
        world.check().await;
    }
    let worker = world.start("g");
    world.all_visible().await;
    worker.drain().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_on_one_partition_only_one_counts() {
    let world = World::new(1);
    let (mut random, mut at) = (StdRng::seed_from_u64(3), 1_000_000_000);
    push_some(&world, &mut random, &mut at, 300);
    let first = world.start("first");
    world.all_visible().await;
    let before = world.ledger(0).open().unwrap().id;
    let second = world.start("second");
    let taken = async || world.ledger(0).open().unwrap().id != before;
    world.until("the second takes over", taken).await;
    for _ in 0..30 {
        push_some(&world, &mut random, &mut at, 60);
        tokio::time::sleep(Duration::from_millis(15)).await;
        world.check().await;
    }
    world.all_visible().await;
    assert!(world.store.refused.load(Ordering::SeqCst) > 0, "the ledger refused one of the two");
    first.drain().await;
    second.drain().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fold_is_a_dead_letter_with_its_reason_before_it_is_passed() {
    let inverse = "[metric.inverse]\nsource = \"edits\"\nvalue = \"100 / added\"\ndimensions = [\"channel\"]\naggregates = [\"sum\"]\ngrain = \"1m\"";
    let world = World::with(1, inverse);
    world.push(0, 1_000, "a", "en", 4);
    world.log.push(TOPIC, 0, 1_001, Some("garbage"));
    world.push(0, 1_002, "b", "en", 0);
    let worker = world.start("g");
    world.all_visible().await;
    let letters: Vec<serde_json::Value> = world
        .log
        .records("edits.dead-letter", 0)
        .iter()
        .map(|letter| serde_json::from_slice(&letter.payload).unwrap())
        .collect();
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert_eq!((letters[0]["offset"].as_u64(), &letters[0]["metric"]), (Some(1), &serde_json::Value::Null));
    assert_eq!(BASE64_STANDARD.decode(letters[0]["payload"].as_str().unwrap()).unwrap(), b"garbage");
    assert!(!letters[0]["reason"].as_str().unwrap().is_empty());
    assert_eq!((letters[1]["offset"].as_u64(), letters[1]["metric"].as_str()), (Some(2), Some("inverse")));
    let (table, _) = world.read("inverse").await.unwrap();
    assert_eq!(table.values().copied().collect::<Vec<_>>(), [(1, 25)], "the other metrics' events still count");
    worker.drain().await;
    let archive = world.ledger(0).epochs[0].archive.clone().unwrap();
    assert_eq!((archive.counts.accepted, archive.counts.dead), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_holds_every_record_and_what_became_of_it() {
    let world = World::new(1);
    let (mut random, mut at) = (StdRng::seed_from_u64(4), 1_000_000_000);
    push_some(&world, &mut random, &mut at, 500);
    let worker = world.start("g");
    world.all_visible().await;
    push_some(&world, &mut random, &mut at, 500);
    world.all_sealed().await;
    worker.drain().await;
    let records = world.log.records(TOPIC, 0);
    let mut offsets = Vec::new();
    let source = Arc::clone(&world.catalog.borrow().sources["edits"]);
    for epoch in world.ledger(0).sealed() {
        let archive = epoch.archive.as_ref().unwrap();
        let file = fs::read(world.archive.path().join(&archive.path)).unwrap();
        assert_eq!((file.len() as u64, crc32fast::hash(&file)), (archive.bytes, archive.checksum));
        let (mut rows, mut accepted) = (0, 0);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(file)).unwrap();
        assert_eq!(**reader.schema(), *archive_schema(&source));
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            rows += batch.num_rows() as u64;
            accepted += accepted_events(&source, &batch).unwrap().num_rows() as u64;
            let column = batch.column_by_name("_offset").unwrap();
            let column = arrow::array::AsArray::as_primitive::<arrow::datatypes::UInt64Type>(column);
            offsets.extend(column.values().iter().copied());
        }
        assert_eq!((rows, accepted), (archive.counts.records(), archive.counts.accepted));
    }
    assert_eq!(offsets, records.iter().map(|record| record.offset).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_partition_is_sealed_before_it_is_released_and_a_lost_one_is_dropped() {
    let world = World::new(2);
    let mut world = world;
    world.config.epoch = Duration::from_secs(600);
    let worker = world.start("g");
    world.push(0, 1_000, "a", "en", 1);
    world.push(1, 1_000, "a", "en", 1);
    world.all_visible().await;
    world.log.send("g", Event::Revoked(vec![(TOPIC.to_owned(), 0)]));
    world.until("the partition is released", async || !world.log.released().is_empty()).await;
    assert_eq!(world.ledger(0).sealed_end(), 1, "sealed before it was released");
    world.until("its position is committed", async || world.log.committed(&(TOPIC.to_owned(), 0)) == Some(1)).await;
    world.log.send("g", Event::Lost(vec![(TOPIC.to_owned(), 1)]));
    world.push(0, 2_000, "b", "en", 1);
    world.push(1, 2_000, "b", "en", 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.ledger(1).sealed_end(), 0, "nothing is written of a lost partition");
    world.log.send("g", Event::Assigned(vec![(TOPIC.to_owned(), 0), (TOPIC.to_owned(), 1)]));
    world.all_visible().await;
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_definitions_count_from_the_next_epoch_on() {
    let world = World::new(1);
    let worker = world.start("g");
    world.push(0, 1_000, "a", "en", 3);
    world.all_visible().await;
    let mut versions = lamina_metric::Versions { revision: 2, ..Default::default() };
    versions.metrics.insert("later".to_owned(), (1, 2));
    let later = "[metric.later]\nsource = \"edits\"\nvalue = \"added\"\ndimensions = [\"channel\"]\naggregates = [\"count\", \"sum\"]\ngrain = \"1m\"";
    world.catalog.send_replace(compile(later, &versions));
    world.until("the open epoch has the new revision", async || world.ledger(0).open().unwrap().revision == 2).await;
    assert_eq!(world.ledger(0).open().unwrap().start, 1, "the epoch that was open is sealed");
    world.push(0, 2_000, "b", "en", 4);
    world.all_visible().await;
    let (table, _) = world.read("later").await.unwrap();
    assert_eq!(table.values().copied().collect::<Vec<_>>(), [(1, 4)], "earlier epochs do not count for a new metric");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_share_a_topic_are_each_folded() {
    let twin = DEFINITIONS.replace("edits", "twin").replace("metric.added", "metric.twin_added");
    let world = World::with(2, &twin.replace("format =", "topic = \"edits\"\nformat ="));
    let worker = world.start("g");
    for i in 0..100 {
        world.push(i % 2, 1_000 + i64::from(i), &i.to_string(), "en", 1);
    }
    world.all_visible().await;
    world.all_sealed().await;
    let twin = LogId::new("twin", "t1");
    let sealed = async || (0..2).all(|partition| world.store.ledger(&twin, partition).sealed_end() == 50);
    world.until("the other source is sealed too", sealed).await;
    worker.drain().await;
}
