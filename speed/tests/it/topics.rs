//! What happens to topics: made again, refused, cut off, forgotten; and that answers say what they lack.

use std::time::Duration;

use lamina_core::{
    LogId, Offset,
    snapshot::{Missing, MissingBecause},
};

use crate::world::{TOPIC, World};

fn push(world: &World, numbers: std::ops::Range<i64>) {
    for i in numbers {
        world.push(0, 1_000 + i, &i.to_string(), "en", i);
    }
}

/// What answers lack, if it was lost.
async fn lost(world: &World) -> Vec<(Offset, Offset)> {
    let missing = world.inputs("added").await.unwrap().snapshot.missing();
    let lost = missing.iter().filter(|missing| missing.why == MissingBecause::Lost);
    lost.map(|Missing { from, to, .. }| (*from, *to)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_passes_what_was_lost_says_so_from_the_first_one_on() {
    let mut world = World::new(1);
    world.config.epoch = Duration::from_secs(600);
    // The consumer stands still at the limit, and retention overtakes it.
    world.config.epoch_max_records = 50;
    let in_the_way = world.archive.path().join("edits");
    std::fs::write(&in_the_way, "x").unwrap();
    let worker = world.start("g");
    push(&world, 0..50);
    world.all_visible().await;
    push(&world, 50..100_000);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(lost(&world).await.is_empty());
    world.log.cut_off(TOPIC, 0, 99_900);
    std::fs::remove_file(in_the_way).unwrap();
    let passed = async || {
        let (before, inputs) = (lost(&world).await, world.inputs("added").await.unwrap());
        let (position, after) = (inputs.snapshot.positions()[&0], lost(&world).await);
        assert!(position < 99_900 || !after.is_empty(), "position {position} is beyond what was lost: {before:?}");
        position == 100_000
    };
    world.until("all of the log is passed", passed).await;
    let [(from, to)] = lost(&world).await[..] else { panic!("one range is lost") };
    assert_eq!(to, 99_900);
    world.log.push(TOPIC, 0, 200_000, None);
    let passed = async || world.inputs("added").await.unwrap().snapshot.positions()[&0] == 100_001;
    world.until("the offset without a record is passed", passed).await;
    worker.drain().await;
    assert_eq!(lost(&world).await, [(from, to)], "the sealed epoch keeps it");
    let absent: u64 = world.ledger(0).sealed().map(|epoch| epoch.archive.as_ref().unwrap().counts.absent).sum();
    assert_eq!(absent, to - from + 1, "what the log still held, without a record, is absent and not lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_again_begins_anew_under_a_running_worker() {
    let world = World::new(1);
    let worker = world.start("g");
    push(&world, 0..40);
    world.all_sealed().await;
    let before = world.ledger(0);
    // The new topic is longer than the old one was: the consumer reads on as if nothing had happened.
    world.log.remake(TOPIC, 1);
    push(&world, 1_000..1_060);
    let anew = LogId::new("edits", "t2");
    let sealed = async || world.store.ledger(&anew, 0).sealed_end() == 60;
    world.until("the new topic is sealed from its beginning", sealed).await;
    worker.drain().await;
    let counts: Vec<_> = world.store.ledger(&anew, 0).sealed().map(|epoch| epoch.start).collect();
    assert_eq!(counts[0], 0, "from its first record");
    assert_eq!(world.ledger(0).epochs[0], before.epochs[0], "the old topic's ledger stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_topic_is_not_consumed_and_its_holes_count_as_lost() {
    let mut world = World::new(1);
    world.config.epoch = Duration::from_secs(600);
    let worker = world.start("g");
    push(&world, 0..40);
    world.all_visible().await;
    world.log.refuse(TOPIC, true);
    world.log.remove(TOPIC, 0, 25);
    // Within the interval in which topics are looked at.
    tokio::time::sleep(Duration::from_secs(12)).await;
    push(&world, 40..60);
    world.log.remove(TOPIC, 0, 50);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stands = world.inputs("added").await.unwrap().snapshot.positions()[&0];
    assert_eq!(stands, 40, "nothing is consumed while the topic is refused");
    world.log.refuse(TOPIC, false);
    let passed = async || world.inputs("added").await.unwrap().snapshot.positions()[&0] == 60;
    world.until("it is consumed again", passed).await;
    assert_eq!(lost(&world).await, [(25, 51)], "what may have been compacted away is lost");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_cut_off_below_what_was_sealed_is_not_counted_on() {
    let world = World::new(1);
    let worker = world.start("g");
    push(&world, 0..40);
    world.all_sealed().await;
    worker.crash().await;
    let before = world.check().await;

    // It ends below what was sealed.
    let whole = world.log.records(TOPIC, 0);
    world.log.truncate(TOPIC, 0, 30);
    let worker = world.start("g");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.inputs("added").await.unwrap().snapshot.positions(), before, "answers stand");

    // Other records take the offsets, and more.
    push(&world, 5_000..5_020);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(
        world.inputs("added").await.unwrap().snapshot.positions(),
        before,
        "nothing is counted twice or left out"
    );
    assert_eq!(world.ledger(0).sealed_end(), 40);

    // The log as it was is gone on with.
    world.log.truncate(TOPIC, 0, 30);
    for record in &whole[30..] {
        world.log.push(TOPIC, 0, record.appended_at, Some(std::str::from_utf8(&record.payload).unwrap()));
    }
    push(&world, 100..110);
    world.all_visible().await;
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_cut_off_within_the_open_epoch_is_served_once_it_is_past_what_was_served() {
    let mut world = World::new(1);
    world.config.epoch = Duration::from_secs(600);
    let worker = world.start("g");
    push(&world, 0..40);
    world.all_visible().await;
    worker.crash().await;
    let (before, positions) = world.read("added").await.unwrap();
    world.log.truncate(TOPIC, 0, 30);
    push(&world, 500..505);
    let worker = world.start("g");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.read("added").await.unwrap(), (before, positions), "answers stand still");
    push(&world, 505..510);
    let moved = async || world.read("added").await.unwrap().1[&0] == 40 && world.ledger(0).version > 1;
    world.until("the log has passed what was served", moved).await;
    world.check().await;
    worker.drain().await;
}
