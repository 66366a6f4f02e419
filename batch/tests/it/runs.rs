//! Single runs: what fails them loudly, what they leave out, what a dry run says.

use std::{sync::Arc, time::Duration};

use lamina_batch::{Batch, BatchError, Config, Deps, Meter, Outcome, Wanted};
use lamina_core::{Micros, store::period};
use lamina_metric::Series;
use object_store::{
    ObjectStoreExt,
    throttle::{ThrottleConfig, ThrottledStore},
};
use tokio_util::sync::CancellationToken;

use crate::world::{DEFINITIONS, Event, Fate, HOUR, PARTITIONS, SECOND, START, World};

pub(crate) fn events(number: i64) -> Vec<Event> {
    let event = |at: i64| Event {
        at: at * 7,
        page: (at % 4) as u8,
        country: (at % 3) as u8,
        user: (at % 5) as u8,
        added: at,
        fate: Fate::Accepted,
    };
    (0..number).map(event).collect()
}

async fn nothing_published(world: &World) {
    for view in &world.metric.views {
        assert_eq!(world.published(view).await.published.generation, 0);
    }
    world.check("after the failure").await;
}

#[tokio::test]
async fn a_file_that_is_not_what_the_ledger_says_fails_the_run_and_publishes_nothing() {
    let world = World::new(DEFINITIONS);
    let path = world.seal(0, &events(50)).await;
    world.seal(1, &events(30)).await;
    let whole = world.files.get(&path).await.unwrap().bytes().await.unwrap();

    world.files.delete(&path).await.unwrap();
    let missing = world.run(Wanted::Cover).await.unwrap_err();
    assert!(matches!(&missing, BatchError::Unreadable { path: named, .. } if *named == path.to_string()), "{missing}");

    world.files.put(&path, whole.slice(..whole.len() - 9).into()).await.unwrap();
    let short = world.run(Wanted::Cover).await.unwrap_err();
    assert!(matches!(short, BatchError::Mismatch { what: "bytes", expected, found, .. } if expected == found + 9));

    let mut damaged = whole.to_vec();
    damaged[whole.len() / 2] ^= 1;
    world.files.put(&path, damaged.into()).await.unwrap();
    assert!(matches!(world.run(Wanted::Cover).await, Err(BatchError::Mismatch { what: "CRC-32", .. })));
    nothing_published(&world).await;

    world.files.put(&path, whole.into()).await.unwrap();
    world.run(Wanted::Cover).await.unwrap();
    world.check("after the repair").await;
}

#[tokio::test]
async fn rows_that_the_ledger_does_not_count_fail_the_run() {
    for (what, change) in [("rows", 1_i64), ("accepted rows", 0)] {
        let world = World::new(DEFINITIONS);
        world.seal(0, &events(20)).await;
        let mut ledger = world.store.ledger(&world.log, 0);
        let epoch = &mut ledger.epochs[0];
        let counts = &mut epoch.archive.as_mut().unwrap().counts;
        if change == 1 {
            counts.accepted -= 1;
            counts.absent += 1;
        } else {
            counts.accepted -= 1;
            counts.duplicates += 1;
        }
        world.store.set_ledger(&world.log, 0, ledger);
        let error = world.run(Wanted::Cover).await.unwrap_err();
        assert!(matches!(error, BatchError::Mismatch { what: found, .. } if found == what), "{error}");
        nothing_published(&world).await;
    }
}

#[tokio::test]
async fn every_offset_that_a_run_read_has_one_fate() {
    let world = World::new(&format!("{DEFINITIONS}\n[metric.added.retention]\n\"10s\" = \"1h\"\n"));
    world.clock.set(START + HOUR + period(10 * SECOND) + SECOND);
    let fates = [Fate::Accepted, Fate::Filtered, Fate::Dead, Fate::Duplicate, Fate::Absent];
    let mixed: Vec<Event> =
        events(200).into_iter().zip(fates.into_iter().cycle()).map(|(event, fate)| Event { fate, ..event }).collect();
    world.seal(0, &mixed).await;
    world.seal(1, &mixed.iter().map(|event| Event { fate: Fate::Absent, ..event.clone() }).collect::<Vec<_>>()).await;
    let outcome = world.run(Wanted::Cover).await.unwrap();
    let Outcome::Published { fates, .. } = outcome else { panic!("{outcome:?}") };
    // Of 40 accepted events, one in 35 seconds, those of the first 600 seconds are past retention.
    let expected = [
        ("dead_lettered", 40),
        ("duplicate", 40),
        ("erased", 0),
        ("expired", 18),
        ("filtered", 40),
        ("folded", 22),
        ("without_record", 240),
    ];
    assert_eq!(fates.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_file_of_zeros_or_cut_short_is_named_and_never_parsed() {
    let world = World::new(DEFINITIONS);
    let path = world.seal(0, &events(50)).await;
    let whole = world.files.get(&path).await.unwrap().bytes().await.unwrap();
    // As a crash leaves them: the size is there and the bytes are not, or only some of both.
    world.files.put(&path, vec![0; whole.len()].into()).await.unwrap();
    let zeros = world.run(Wanted::Cover).await.unwrap_err();
    assert!(matches!(&zeros, BatchError::Mismatch { what: "CRC-32", path: named, .. } if *named == path.to_string()));
    for length in [0, 4, whole.len() / 2, whole.len() - 1] {
        world.files.put(&path, whole.slice(..length).into()).await.unwrap();
        let short = world.run(Wanted::Cover).await.unwrap_err();
        assert!(matches!(short, BatchError::Mismatch { what: "bytes", .. }), "{length} bytes: {short}");
    }
    nothing_published(&world).await;
}

#[tokio::test]
async fn a_hole_between_epochs_fails_the_run() {
    let world = World::new(DEFINITIONS);
    for _ in 0..3 {
        world.seal(0, &events(10)).await;
    }
    world.run(Wanted::Cover).await.unwrap();
    world.trim().await;
    world.seal(0, &events(10)).await;
    world.store.forget(&world.log, 0, 10);
    let error = world.run(Wanted::Rebuild { from: None, to: None }).await.unwrap_err();
    assert!(matches!(error, BatchError::Hole { partition: 0, from: 10, to: 20 }), "{error}");
    world.run(Wanted::Cover).await.unwrap();
    world.check("the failed rebuild was given up and covering goes on").await;
}

#[tokio::test]
async fn series_beyond_the_cap_overflow_as_in_the_speed_layer() {
    let world = World::new(&DEFINITIONS.replace("max_series = 5", "max_series = 2"));
    world.seal(0, &events(60)).await;
    world.seal(1, &events(7)).await;
    world.run(Wanted::Cover).await.unwrap();
    world.check("capped").await;
    let overflow = Series::overflow(2);
    assert!(world.expected(0, 10 * SECOND, |_, _| true).keys().any(|(series, _)| *series == overflow));
}

#[tokio::test]
async fn buckets_past_retention_are_neither_written_nor_served() {
    let world = World::new(&format!("{DEFINITIONS}\n[metric.added.retention]\n\"10s\" = \"1h\"\n"));
    let grain = 10 * SECOND;
    world.clock.set(START + HOUR + 2 * period(grain) + SECOND);
    world.seal(0, &events(300)).await;
    let outcome = world.run(Wanted::Cover).await.unwrap();
    let horizon = START + 2 * period(grain);
    let horizons = world.published(&world.metric.views[0]).await.horizons;
    assert_eq!(horizons.into_iter().collect::<Vec<_>>(), [(grain, horizon)]);
    world.check("retention").await;
    let rows = world.store.rows();
    assert!(rows.iter().filter(|row| row.key.width == grain).all(|row| row.key.period >= horizon));
    let outlives = |row: &lamina_core::BatchRow| row.expires_at.is_some_and(|at| at > row.key.period + HOUR);
    assert!(rows.iter().filter(|row| row.key.width == grain).all(outlives));
    assert!(rows.iter().filter(|row| row.key.width != grain).all(|row| row.expires_at.is_none()));
    // 1,200 of 2,100 seconds, an event every 7, in each of three views.
    assert!(matches!(outcome, Outcome::Published { expired: 516, rows: 300, .. }), "{outcome:?}");

    world.clock.set(START + 2 * HOUR);
    assert!(matches!(world.run(Wanted::Cover).await.unwrap(), Outcome::Unchanged));
    let horizons = world.published(&world.metric.views[0]).await.horizons;
    assert_eq!(horizons[&grain], START + HOUR, "the horizon rises although nothing was sealed");
}

#[tokio::test]
async fn a_cancelled_run_publishes_nothing_and_its_rebuild_is_not_inherited() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let wanted = Wanted::Rebuild { from: None, to: None };
    let result = world.batch.run_metric(&world.metric, &wanted, &Arc::new(Meter::default()), &cancel).await;
    assert!(matches!(result, Err(BatchError::Cancelled)));
    nothing_published(&world).await;
    assert!(world.published(&world.metric.views[0]).await.open.is_none());
}

#[tokio::test]
async fn a_rebuild_whose_process_died_is_done_by_the_next_run() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    world.run(Wanted::Cover).await.unwrap();
    world.store.fail_after(Some(world.metric.views.len() + 1));
    world.run(Wanted::Rebuild { from: None, to: None }).await.unwrap_err();
    world.store.fail_after(None);
    let outcome = world.run(Wanted::Cover).await.unwrap();
    assert!(matches!(outcome, Outcome::Published { generation: 3, rows: 50, .. }), "{outcome:?}");
    assert_eq!(world.published(&world.metric.views[0]).await.published.bases, [(Micros::MIN..Micros::MAX, 2)]);
    world.check("inherited").await;
}

#[tokio::test]
async fn a_dry_run_names_what_differs_and_writes_nothing() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(100)).await;
    world.run(Wanted::Cover).await.unwrap();
    let dry = Wanted::DryRun { from: None, to: None };
    let same = world.run(dry.clone()).await.unwrap();
    assert!(matches!(same, Outcome::DryRun { rows: 100, buckets: 0, series: 0, .. }), "{same:?}");

    // A chunk appears of a series that never was.
    let rows = world.store.rows();
    let total = rows.iter().find(|row| row.key.view == world.metric.views[2].id && row.key.width == HOUR).unwrap();
    let mut phantom = total.clone();
    phantom.key.view = world.metric.views[1].id.clone();
    phantom.key.series = Series::overflow(1).as_bytes().to_vec().into();
    phantom.key.shard = Series::overflow(1).shard(2);
    world.store.arrive(vec![phantom]);
    let before = world.store.rows();
    let differs = world.run(dry).await.unwrap();
    assert!(
        matches!(&differs, Outcome::DryRun { buckets: 1, series: 1, changed, .. }
        if changed[0]["dimensions"]["page"] == "$overflow" && changed[0]["after"].is_null()),
        "{differs:?}"
    );
    assert_eq!(world.store.rows(), before);
    assert!(world.published(&world.metric.views[0]).await.open.is_none());
}

#[tokio::test]
async fn small_memory_means_several_passes_and_the_same_chunks() {
    let small = Config { memory_bytes: 1_000_000, parallelism: 2, ..Config::default() };
    // With a cap that decides, so that files are folded whole in each pass, and with one that does not.
    for cap in ["max_series = 5", "max_series = 100"] {
        let world = World::with(&DEFINITIONS.replace("max_series = 5", cap), &small);
        for partition in (0..PARTITIONS).cycle().take(6) {
            world.seal(partition, &events(500)).await;
        }
        let outcome = tokio::time::timeout(Duration::from_secs(60), world.run(Wanted::Cover)).await.unwrap().unwrap();
        assert!(
            matches!(&outcome, Outcome::Published { rows: 3000, files: 6, fates, .. } if fates["folded"] == 3000),
            "{outcome:?}"
        );
        world.check(cap).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_are_as_right_as_one() {
    let slow =
        |millis| ThrottleConfig { wait_get_per_call: Duration::from_millis(millis), ..ThrottleConfig::default() };
    let world = World::new(DEFINITIONS);
    for round in 0..6_u64 {
        world.seal(0, &events(30)).await;
        world.seal(1, &events(20)).await;
        let archive = Arc::new(ThrottledStore::new(world.files.fork(), slow(10 + round % 3 * 10)));
        let other = Batch::new(Deps { archive, ..world.deps.clone() }, &Config::default()).unwrap();
        let (meter, cancel) = (Arc::new(Meter::default()), CancellationToken::new());
        let wanted = if round % 2 == 0 { Wanted::Cover } else { Wanted::Rebuild { from: None, to: None } };
        let (slow, fast) = tokio::join!(other.run_metric(&world.metric, &wanted, &meter, &cancel), async {
            tokio::time::sleep(Duration::from_millis(round * 4)).await;
            world.run(Wanted::Cover).await
        });
        for result in [slow, fast] {
            assert!(matches!(result, Ok(_) | Err(BatchError::TakenOver)), "{result:?}");
        }
        world.check("two at once").await;
        world.run(Wanted::Cover).await.unwrap();
        world.check("and one after").await;
    }
}
