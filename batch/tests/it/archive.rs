//! What becomes of the archive's files: put together, let go of, written anew without what was erased.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::{array::AsArray, util::pretty::pretty_format_batches};
use futures::TryStreamExt;
use lamina_batch::{BatchError, Config, Meter, Outcome, Retention, Wanted};
use lamina_core::{Job, JobKind, JobRequest, Segment, archive};
use lamina_metric::archive::read;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    runs::events,
    world::{DEFINITIONS, Event, Fate, HOUR, PARTITIONS, START, World},
};

const ALL: Wanted = Wanted::Rebuild { from: None, to: None };

async fn attempt(world: &World, id: &str, kind: JobKind, request: JobRequest) -> Result<Value, BatchError> {
    let job = Job { id: id.to_owned(), ..Job::new(kind, request, 1) };
    world.batch.attempt_job(&job, &Arc::new(Meter::default()), &CancellationToken::new()).await
}

async fn scheduled(world: &World) -> Result<Value, BatchError> {
    attempt(world, "job_0", JobKind::Scheduled, JobRequest::default()).await
}

async fn erase(world: &World, id: &str, filter: &str) -> Result<Value, BatchError> {
    let (source, erase) = (Some("edits".to_owned()), Some(filter.to_owned()));
    attempt(world, id, JobKind::Erase, JobRequest { source, erase, ..JobRequest::default() }).await
}

async fn segments(world: &World) -> Vec<Segment> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let ledger = world.store.ledger(&world.log, partition);
        let end = ledger.sealed_end();
        all.extend(archive::segments(&*world.store, &world.log, partition, &ledger, 0..end).await.unwrap());
    }
    all
}

/// Paths of the files that the archive refers to, and of those that are there.
async fn paths(world: &World) -> (Vec<String>, Vec<String>) {
    let mut named: Vec<String> =
        segments(world).await.into_iter().filter_map(|segment| Some(segment.archive?.path)).collect();
    let there: Vec<_> = world.files.list(None).try_collect().await.unwrap();
    let mut there: Vec<String> = there.into_iter().map(|file| file.location.to_string()).collect();
    named.sort();
    there.sort();
    (named, there)
}

/// Every value that the files hold, with the payloads in the clear.
async fn contents(world: &World, paths: &[String]) -> String {
    let mut all = String::new();
    for path in paths {
        let file = world.files.get(&Path::from(path.as_str())).await.unwrap().bytes().await.unwrap();
        for rows in read(file).unwrap() {
            let rows = rows.unwrap();
            all += &pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
            let payloads = rows.column_by_name("_payload").unwrap().as_binary::<i32>();
            all += &String::from_utf8_lossy(payloads.value_data());
        }
    }
    all
}

/// Events of every fate.
fn mixed(number: i64) -> Vec<Event> {
    let fates = [Fate::Accepted, Fate::Accepted, Fate::Filtered, Fate::Dead, Fate::Duplicate, Fate::Absent];
    events(number).into_iter().zip(fates.into_iter().cycle()).map(|(event, fate)| Event { fate, ..event }).collect()
}

/// Many small epochs in both partitions, half of them in the manifest only.
async fn small_epochs() -> World {
    let world = World::new(DEFINITIONS);
    fill(&world).await;
    world
}

async fn fill(world: &World) {
    for epoch in 0..24 {
        for partition in 0..PARTITIONS {
            world.seal(partition, &mixed(7 + epoch)).await;
        }
        if epoch == 12 {
            world.run(Wanted::Cover).await.unwrap();
            world.trim().await;
        }
    }
}

#[tokio::test]
async fn small_files_become_few_and_every_answer_stays() {
    let world = small_epochs().await;
    let before = segments(&world).await;
    let result = scheduled(&world).await.unwrap();
    assert!(result["archive"]["edits"]["files_merged"].as_u64() > Some(40), "{result}");
    let after = segments(&world).await;
    assert!(after.len() <= 8, "{} files", after.len());
    let sum = |segments: &[Segment]| {
        let mut counts = lamina_core::Counts::default();
        segments.iter().for_each(|segment| counts.add(segment.counts()));
        (counts, segments.iter().filter_map(Segment::event_time).max_by_key(|(_, last)| *last).map(|times| times.1))
    };
    assert_eq!(sum(&after), sum(&before));
    world.check("compacted").await;

    let rebuilt = world.run(ALL).await.unwrap();
    let Outcome::Published { rows, files, .. } = rebuilt else { panic!("{rebuilt:?}") };
    assert_eq!((rows, files), (sum(&after).0.records(), after.len() as u64));
    world.check("rebuilt from what was compacted").await;
    let dry = world.run(Wanted::DryRun { from: None, to: None }).await.unwrap();
    assert!(matches!(dry, Outcome::DryRun { buckets: 0, .. }), "{dry:?}");

    for partition in 0..PARTITIONS {
        world.seal(partition, &mixed(40)).await;
    }
    world.run(Wanted::Cover).await.unwrap();
    world.check("covered further").await;

    assert!(paths(&world).await.1.len() > 50, "what was replaced is there for an hour");
    world.clock.set(START + 26 * HOUR);
    scheduled(&world).await.unwrap();
    let (named, there) = paths(&world).await;
    assert_eq!(named, there, "nothing else is left");
}

#[tokio::test]
async fn a_cut_within_a_file_of_many_epochs_is_where_it_was() {
    for definitions in [DEFINITIONS.to_owned(), DEFINITIONS.replace("max_series = 5", "max_series = 100")] {
        let world = World::new(&definitions);
        fill(&world).await;
        world.run(Wanted::Cover).await.unwrap();
        world.clock.set(START + 25 * HOUR);
        world.run(ALL).await.unwrap();
        fill(&world).await;
        scheduled(&world).await.unwrap();
        assert!(segments(&world).await.len() <= 8, "epochs of before the recompute and after it lie in one file");
        world.clock.set(START + 26 * HOUR);
        world.run(Wanted::Rollback { as_of: START + 25 * HOUR - 1 }).await.unwrap();
        world.check("what was covered before is not folded again").await;
    }
}

#[tokio::test]
async fn files_are_sorted_by_event_time_and_hold_every_record_once() {
    let world = small_epochs().await;
    let sealed: u64 = segments(&world).await.iter().map(|segment| segment.counts().records()).sum();
    scheduled(&world).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for path in paths(&world).await.0 {
        let file = world.files.get(&Path::from(path)).await.unwrap().bytes().await.unwrap();
        let mut last = i64::MIN;
        for rows in read(file).unwrap() {
            let rows = rows.unwrap();
            let times = rows.column_by_name("_time").unwrap();
            let times = times.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
            for time in times.iter().flatten() {
                assert!(last <= time);
                last = time;
            }
            let partitions = rows.column_by_name("_partition").unwrap();
            let partitions = partitions.as_primitive::<arrow::datatypes::UInt32Type>().values();
            let offsets = rows.column_by_name("_offset").unwrap();
            let offsets = offsets.as_primitive::<arrow::datatypes::UInt64Type>().values();
            for one in partitions.iter().zip(offsets) {
                assert!(seen.insert((*one.0, *one.1)), "{one:?} twice");
            }
        }
    }
    assert_eq!(seen.len() as u64, sealed);
}

#[tokio::test]
async fn care_that_dies_anywhere_does_no_harm_and_leaves_nothing_behind() {
    for calls in 0.. {
        let world = small_epochs().await;
        world.run(Wanted::Cover).await.unwrap();
        world.store.fail_after(Some(calls));
        let died = scheduled(&world).await.is_err();
        world.store.fail_after(None);
        world.run(ALL).await.unwrap();
        world.check("after the death").await;
        scheduled(&world).await.unwrap();
        world.clock.set(START + 26 * HOUR);
        scheduled(&world).await.unwrap();
        world.check("after the next run").await;
        let (named, there) = paths(&world).await;
        assert_eq!(named, there, "died at call {calls}");
        if !died {
            assert!(
                calls >= 4,
                "each partition's change is announced and made, so it is written more often than {calls} times"
            );
            break;
        }
    }
}

fn retained(days: u64, rollups: &str) -> World {
    let usual = Some(Duration::from_secs(days * 24 * 3_600));
    let retention = Retention { usual, by_source: BTreeMap::new() };
    let config = Config { memory_bytes: 64 << 20, parallelism: 2, retention, ..Config::default() };
    World::with(&format!("{DEFINITIONS}\n[metric.added.retention]\n{rollups}\n"), &config)
}

const ROLLUPS: &str = "\"10s\" = \"1d\"\n\"1m\" = \"2d\"\n\"1h\" = \"3d\"";

#[tokio::test]
async fn raw_events_go_once_no_view_serves_what_they_gave() {
    let world = retained(1, ROLLUPS);
    fill(&world).await;
    scheduled(&world).await.unwrap();
    for (day, gone) in [(2, false), (3, false), (5, true)] {
        world.clock.set(START + day * 24 * HOUR);
        let result = scheduled(&world).await.unwrap();
        let let_go = segments(&world).await.iter().all(|segment| segment.archive.is_none());
        // The horizon of the hours lies 3 days back, in steps of 60 hours, one of which begins 24 hours after the start.
        assert_eq!(let_go, gone, "after {day} days: {result}");
        world.check("after a while").await;
        world.run(ALL).await.unwrap();
        world.check("rebuilt").await;
    }
    world.clock.set(START + 5 * 24 * HOUR + 2 * HOUR);
    scheduled(&world).await.unwrap();
    assert_eq!(paths(&world).await, (vec![], vec![]));
    for event in [5 * 24 * 3_600, 5 * 24 * 3_600 + 60] {
        world.seal(0, &[Event { at: event, ..events(1)[0].clone() }]).await;
    }
    world.run(Wanted::Cover).await.unwrap();
    world.check("it goes on").await;
}

#[tokio::test]
async fn raw_events_stay_while_something_is_kept_for_ever_or_not_covered() {
    let world = retained(1, "\"10s\" = \"1d\"");
    fill(&world).await;
    world.clock.set(START + 900 * 24 * HOUR);
    scheduled(&world).await.unwrap();
    assert!(segments(&world).await.iter().all(|segment| segment.archive.is_some()), "hours are kept for ever");

    let world = retained(1, ROLLUPS);
    fill(&world).await;
    world.clock.set(START + 900 * 24 * HOUR);
    let meter = Arc::new(Meter::default());
    world.store.fail_after(Some(0));
    let job = Job::new(JobKind::Scheduled, JobRequest::default(), 1);
    assert!(world.batch.attempt_job(&job, &meter, &CancellationToken::new()).await.is_err());
    world.store.fail_after(None);
    assert!(segments(&world).await.iter().all(|segment| segment.archive.is_some()));
}

#[tokio::test]
async fn what_is_erased_is_gone_from_files_and_answers_and_cannot_come_back() {
    let world = small_epochs().await;
    scheduled(&world).await.unwrap();
    world.run(ALL).await.unwrap();
    world.seal(1, &mixed(30)).await;
    let of_u1 = |event: &Event| event.user == 1 && !matches!(event.fate, Fate::Dead | Fate::Absent);
    let report = erase(&world, "job_1", "user = 'u1'").await.unwrap();
    world.forget(of_u1);
    world.check("erased").await;
    assert!(report["records"].as_u64() > Some(100), "{report}");
    assert_eq!(report["files_rewritten"], report["files_rewritten"].as_u64().unwrap());
    assert!(report["metrics"]["added@1"]["outcome"] == "published", "{report}");
    assert!(!report.to_string().contains("u1"), "the report does not say about whom it was: {report}");

    let (named, there) = paths(&world).await;
    assert_eq!(named, there, "what held it is removed at once");
    let text = contents(&world, &there).await;
    for kept in ["| u2 ", "\"u2\""] {
        assert!(text.contains(kept) && !text.contains(&kept.replace("u2", "u1")), "{kept}");
    }
    assert!(!text.contains("u1"));
    let back = world.run(Wanted::Rollback { as_of: START + 24 * HOUR - 1 }).await;
    assert!(matches!(back, Err(BatchError::NothingKept)), "{back:?}");
    world.run(ALL).await.unwrap();
    world.check("rebuilt").await;

    let again = erase(&world, "job_2", "user = 'u1'").await.unwrap();
    assert_eq!((again["records"].as_u64(), again["files_rewritten"].as_u64()), (Some(0), Some(0)));
    world.clock.set(START + 26 * HOUR);
    world.run(Wanted::Cover).await.unwrap();
    let bases: std::collections::BTreeSet<u32> = world.store.rows().iter().map(|row| row.key.base).collect();
    assert_eq!(bases.len(), 2, "an hour later the chunks that held it are gone: {bases:?}");
}

#[tokio::test]
async fn a_search_says_what_would_be_erased_and_a_bad_filter_what_is_wrong() {
    let world = small_epochs().await;
    let request = JobRequest {
        source: Some("edits".to_owned()),
        erase: Some("user = 'u1'".to_owned()),
        dry_run: true,
        ..JobRequest::default()
    };
    let report = attempt(&world, "job_1", JobKind::Erase, request).await.unwrap();
    assert!(report["records"].as_u64() > Some(100) && report["dry_run"] == true, "{report}");
    let there = paths(&world).await.1;
    assert!(contents(&world, &there).await.contains("u1"));
    world.check("as it was").await;
    for (filter, part) in [("usr = 'u1'", "usr"), ("", "filter"), ("true", "no field"), ("now() > user", "now")] {
        let error = erase(&world, "job_1", filter).await.unwrap_err();
        assert!(matches!(&error, BatchError::Filter(why) if why.contains(part)), "{filter:?}: {error}");
    }
}

#[tokio::test]
async fn an_erasure_that_dies_anywhere_is_finished_by_the_next_attempt() {
    let mut totals = std::collections::BTreeSet::new();
    for calls in (0..).step_by(7) {
        let world = small_epochs().await;
        scheduled(&world).await.unwrap();
        world.store.fail_after(Some(calls));
        let died = erase(&world, "job_1", "user IN ('u1', 'u3') AND page <> 'p0'").await.is_err();
        world.store.fail_after(None);
        let report = erase(&world, "job_1", "user IN ('u1', 'u3') AND page <> 'p0'").await.unwrap();
        let gone = |event: &Event| {
            [1, 3].contains(&event.user) && event.page != 0 && !matches!(event.fate, Fate::Dead | Fate::Absent)
        };
        world.forget(gone);
        world.check("erased").await;
        if !died {
            assert!(calls > 20, "the store is asked more often than {calls} times");
            break;
        }
        totals.insert(report["records"].as_u64());
    }
    assert_eq!(totals.len(), 1, "every report names all that was erased: {totals:?}");
}
