//! What holds while store, log or archive do not answer, or answer without saying what they did.

use std::{
    fs,
    sync::{atomic::Ordering, mpsc},
    time::Duration,
};

use crate::world::{TOPIC, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_delays_answers_and_harms_none() {
    let world = World::new(2);
    let worker = world.start("g");
    for i in 0..200 {
        world.push(i % 2, 1_000 + i64::from(i), &i.to_string(), "en", i.into());
    }
    world.all_visible().await;
    world.store.away.store(true, Ordering::SeqCst);
    for i in 200..2_000 {
        world.push(i % 2, 1_000 + i64::from(i), &i.to_string(), "en", i.into());
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    world.store.away.store(false, Ordering::SeqCst);
    world.all_visible().await;
    world.all_sealed().await;
    worker.drain().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_unknown_outcome_and_half_written_flushes_count_once() {
    let world = World::new(2);
    world.store.uncertain_every.store(3, Ordering::SeqCst);
    for round in 0..4 {
        let worker = world.start("g");
        for i in 0..150 {
            world.push(i % 2, 1_000 + i64::from(i), &format!("{round}-{i}"), "de", i.into());
            if i % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                world.check().await;
            }
        }
        world.all_visible().await;
        world.all_sealed().await;
        if round % 2 == 0 { worker.crash().await } else { worker.drain().await }
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_is_away_delays_the_seal_but_not_freshness() {
    let world = World::new(1);
    // A file where a folder must be: nothing can be put below it.
    let in_the_way = world.archive.path().join("edits");
    fs::write(&in_the_way, "x").unwrap();
    let worker = world.start("g");
    for i in 0..50 {
        world.push(0, 1_000 + i, &i.to_string(), "en", i);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.all_visible().await;
    assert_eq!(world.ledger(0).sealed_end(), 0, "nothing is sealed without a durable file");
    fs::remove_file(in_the_way).unwrap();
    world.all_sealed().await;
    let ledger = world.ledger(0);
    assert_eq!(ledger.sealed().map(|epoch| epoch.archive.as_ref().unwrap().counts.accepted).sum::<u64>(), 50);
    worker.drain().await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_seal_fails_consumption_stops_at_the_size_limit() {
    let mut world = World::new(1);
    world.config.epoch_max_records = 100;
    let in_the_way = world.archive.path().join("edits");
    fs::write(&in_the_way, "x").unwrap();
    let worker = world.start("g");
    for i in 0..20_000 {
        world.push(0, 1_000 + i, &i.to_string(), "en", i);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seen = world.check().await[&0];
    // The limit is met between batches: at most one is taken in beyond it.
    assert!((100..=10_100).contains(&seen), "{seen} records were taken in at a limit of 100");
    fs::remove_file(in_the_way).unwrap();
    world.all_visible().await;
    world.all_sealed().await;
    worker.drain().await;
    assert_eq!(world.log.ends(TOPIC)[&0], world.ledger(0).sealed_end());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_the_log_lost_are_recorded_as_lost() {
    let mut world = World::new(1);
    world.config.epoch = Duration::from_secs(600);
    let worker = world.start("g");
    for i in 0..10 {
        world.push(0, 1_000 + i, &i.to_string(), "en", i);
    }
    world.all_visible().await;
    worker.crash().await;
    world.log.cut_off(TOPIC, 0, 7);
    let worker = world.start("g");
    let lost = async || world.ledger(0).open().is_some_and(|open| open.lost == Some((0, 7)));
    world.until("the loss stands in the ledger", lost).await;
    worker.drain().await;
    let ledger = world.ledger(0);
    assert_eq!(ledger.epochs[0].lost, Some((0, 7)), "the sealed epoch keeps it");
    let counts = ledger.epochs[0].archive.as_ref().unwrap().counts;
    assert_eq!((counts.absent, counts.accepted), (7, 3));
    let snapshot = world.inputs("added").await.unwrap().snapshot;
    assert!(!snapshot.missing().is_empty(), "answers say so");
}

/// The clock of this runtime moves on only while every task waits: one that spins would stop it.
#[test]
fn a_takeover_that_waits_for_the_log_waits_quietly() {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(1);
            world.config.epoch = Duration::from_secs(600);
            let worker = world.start("g");
            for i in 0..10 {
                world.push(0, 1_000 + i, &i.to_string(), "en", i);
            }
            world.all_visible().await;
            worker.crash().await;
            world.log.silence(true);
            let worker = world.start("g");
            // Longer than the pause between two rounds of care, which a partition that is taken over must not be due for.
            tokio::time::sleep(Duration::from_secs(600)).await;
            world.log.silence(false);
            world.all_visible().await;
            worker.drain().await;
        });
        ended.send(()).unwrap();
    });
    assert!(end.recv_timeout(Duration::from_secs(60)).is_ok(), "time stands still: a task spins, or failed");
}
