//! Duplicates at every distance around the window, across epochs and takeovers: the rule as it is written down, the answers,
//! the archive and what is rebuilt from it say the same.

use std::{collections::HashMap, fs, sync::atomic::Ordering, time::Duration};

use arrow::{array::AsArray, datatypes::UInt8Type};
use lamina_core::{Micros, Offset, Partition};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::world::{TOPIC, WINDOW, World};

/// Append times whose distances crowd around the window, now and then a little back; few ids.
fn push_around_the_window(world: &World, random: &mut StdRng, at: &mut Micros, count: usize) {
    for _ in 0..count {
        *at += [1, 1_000, WINDOW / 3, WINDOW / 2, WINDOW - 1, WINDOW, WINDOW + 1, -1_000][random.random_range(0..8)]
            / [1, 1, 7, 40][random.random_range(0..4)];
        let partition = random.random_range(0..world.log.ends(TOPIC).len()) as Partition;
        world.push(
            partition,
            *at,
            &format!("id-{}", random.random_range(0..12)),
            "en",
            random.random_range(-50..1_000),
        );
    }
}

/// Offsets that are duplicates by the rule: an earlier record of the partition with the same id lies at most a window back, by
/// the running maximum of append time.
fn by_the_rule(world: &World, partition: Partition) -> Vec<Offset> {
    let (mut clock, mut last, mut duplicates) = (0, HashMap::new(), Vec::new());
    for record in world.log.records(TOPIC, partition) {
        clock = clock.max(record.appended_at);
        let event: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
        let before: Option<Micros> = last.insert(event["id"].to_string(), clock);
        if before.is_some_and(|before| clock - before <= WINDOW) {
            duplicates.push(record.offset);
        }
    }
    duplicates
}

/// Offsets that the archive says are duplicates.
fn archived(world: &World, partition: Partition) -> Vec<Offset> {
    let mut duplicates = Vec::new();
    for epoch in world.ledger(partition).sealed() {
        let file = fs::read(world.archive.path().join(&epoch.archive.as_ref().unwrap().path)).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(file)).unwrap().build().unwrap();
        for rows in reader.map(Result::unwrap) {
            let outcomes = rows["_outcome"].as_primitive::<UInt8Type>().clone();
            let offsets = rows["_offset"].as_primitive::<arrow::datatypes::UInt64Type>().clone();
            let pairs = outcomes.values().iter().zip(offsets.values());
            duplicates
                .extend(pairs.filter(|(outcome, _)| **outcome == lamina_metric::archive::DUPLICATE).map(|(_, at)| *at));
        }
    }
    duplicates
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_are_the_same_to_speed_archive_and_rebuild_whoever_took_over() {
    for seed in 0..6 {
        let mut world = World::new(2);
        world.config.ttl = Duration::from_secs(30);
        let (mut random, mut at) = (StdRng::seed_from_u64(seed), 1_000_000_000);
        for _ in 0..6 {
            push_around_the_window(&world, &mut random, &mut at, 150);
            let worker = world.start("g");
            for _ in 0..random.random_range(1..5) {
                tokio::time::sleep(Duration::from_millis(random.random_range(5..90))).await;
                push_around_the_window(&world, &mut random, &mut at, 60);
                world.check().await;
            }
            if random.random_ratio(1, 3) { worker.drain().await } else { worker.crash().await }
        }
        let worker = world.start("g");
        world.all_visible().await;
        world.all_sealed().await;
        worker.drain().await;
        for partition in 0..2 {
            let expected = by_the_rule(&world, partition);
            assert!(expected.len() > 20, "{} duplicates, seed {seed}", expected.len());
            assert_eq!(archived(&world, partition), expected, "partition {partition}, seed {seed}");
        }
        // Every chunk dies, and the epochs are folded again from their files.
        world.clock.0.store(60_000_000, Ordering::SeqCst);
        let worker = world.start("g");
        let is_whole = async || world.inputs("added").await.is_ok_and(|inputs| inputs.snapshot.missing().is_empty());
        world.until("the answer is whole again", is_whole).await;
        world.check().await;
        worker.drain().await;
    }
}
