//! What the embedded backend promises beyond the suites: durability, one process per folder, a full disk.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lamina::backends::embedded::{self, Embedded, OpenError};
use lamina_core::{
    Change, Commit, Consistency, Documents, Epoch, EpochId, Ledgers, LogId, Offset, Part, Partition, SpeedChunks,
    SpeedKey, Stamp, StoreError, ViewId,
    log::{Append, Event, Log, LogError, Record},
};

/// Names the folder for [`child_that_is_killed`].
const CHILD_FOLDER: &str = "LAMINA_CRASH_FOLDER";
/// Names a folder on a file system of its own, of about 120 MiB.
const SMALL_DISK: &str = "LAMINA_SMALL_DISK";
const TOPIC: &str = "events";
const PARTITIONS: u32 = 2;

fn keyed(key: String, payload: impl Into<Bytes>) -> Append {
    Append { key: Some(key.into()), payload: payload.into() }
}

/// All records of the topic.
async fn read_all(log: &dyn Log) -> BTreeMap<(Partition, Offset), Record> {
    let mut all = BTreeMap::new();
    for (partition, span) in log.spans(TOPIC).await.expect("spans") {
        let mut at = 0;
        while at < span.end {
            let (records, next) = log.read(TOPIC, partition, at, 1 << 20).await.expect("read");
            for (record, offset) in records.into_iter().zip(at..) {
                assert_eq!(record.offset, offset, "offsets are dense");
                all.insert((partition, offset), record);
            }
            at = next;
        }
    }
    all
}

#[tokio::test]
async fn a_second_opening_is_refused_and_names_the_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = embedded::open(folder.path()).expect("open");
    let second = embedded::open(folder.path()).map(drop);
    assert!(matches!(&second, Err(OpenError::Locked(at)) if at == folder.path()), "{second:?}");
    let text = second.expect_err("it is locked").to_string();
    assert!(text.contains(&*folder.path().to_string_lossy()), "{text}");
    drop(first);
    embedded::open(folder.path()).expect("a folder that was closed opens again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_records_and_append_times_outlive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut last = i64::MIN;
    let mut made = None;
    for round in 0..3 {
        let Embedded { log, .. } = embedded::open(folder.path()).expect("open");
        let topic = log.ensure_topic(TOPIC, 1).await.expect("ensure_topic");
        assert_eq!(*made.get_or_insert(topic.clone()), topic, "the topic is still the same");
        for i in 0..5 {
            log.append(TOPIC, vec![keyed(i.to_string(), round.to_string())]).await.expect("append");
        }
        let records = read_all(&*log).await;
        assert_eq!(records.len(), 5 * (round + 1));
        for record in records.values().skip(5 * round) {
            assert!(record.appended_at >= last, "append times never go back");
            last = record.appended_at;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_reaches_a_waiting_consumer_within_milliseconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let Embedded { log, .. } = embedded::open(folder.path()).expect("open");
    log.ensure_topic(TOPIC, 1).await.expect("ensure_topic");
    let mut consumer = log.join("group", &[TOPIC.to_owned()]).await.expect("join");
    let assigned = consumer.next(Duration::from_secs(5)).await.expect("next");
    assert!(matches!(assigned, Event::Assigned(_)), "{assigned:?}");
    consumer.start((TOPIC.to_owned(), 0), 0).await.expect("start");
    let mut waits = Vec::new();
    for i in 0..20 {
        let waiting = tokio::spawn(async move {
            let event = consumer.next(Duration::from_secs(5)).await.expect("next");
            (consumer, event, Instant::now())
        });
        log.append(TOPIC, vec![keyed(i.to_string(), "x")]).await.expect("append");
        let acknowledged = Instant::now();
        let (returned, event, woken) = waiting.await.expect("no panic");
        assert!(matches!(&event, Event::Records { records, .. } if records.len() == 1), "{event:?}");
        waits.push(woken.saturating_duration_since(acknowledged));
        consumer = returned;
    }
    waits.sort_unstable();
    assert!(waits[10] < Duration::from_millis(100), "median from acknowledgement to delivery: {:?}", waits[10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_member_and_a_deaf_one_give_their_partitions_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let Embedded { log, .. } = embedded::open(folder.path()).expect("open");
    log.ensure_topic(TOPIC, 2).await.expect("ensure_topic");
    let topics = [TOPIC.to_owned()];
    let mut deaf = log.join("group", &topics).await.expect("join");
    let all = deaf.next(Duration::ZERO).await.expect("next");
    assert!(matches!(&all, Event::Assigned(all) if all.len() == 2), "{all:?}");
    let mut second = log.join("group", &topics).await.expect("join");
    // The first one never releases: its partition goes over after ten seconds.
    let half = second.next(Duration::from_secs(20)).await.expect("next");
    assert!(matches!(&half, Event::Assigned(half) if half.len() == 1), "{half:?}");
    drop(deaf);
    let rest = second.next(Duration::from_secs(5)).await.expect("next");
    assert!(matches!(&rest, Event::Assigned(rest) if rest.len() == 1), "{rest:?}");
}

/// What the child says it was told is on disk.
#[derive(Default)]
struct Acknowledged {
    records: BTreeMap<(Partition, Offset), String>,
    ledger: u64,
    mark: u64,
}

fn ledger_log() -> LogId {
    LogId::new("source", "topic")
}

fn place(epoch: EpochId, sequence: u64) -> SpeedKey {
    SpeedKey { view: ViewId::new("m", 1, 0), shard: 0, slot: 100, epoch, part: Part::Delta(sequence) }
}

fn epoch() -> EpochId {
    EpochId(uuid::Uuid::from_u128(7))
}

/// Writes until it is killed and prints what was acknowledged. Does nothing unless the test below runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs within kill_9_loses_nothing_that_was_acknowledged"]
async fn child_that_is_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let Embedded { log, store } = embedded::open(Path::new(&folder)).expect("open");
    log.ensure_topic(TOPIC, PARTITIONS).await.expect("ensure_topic");
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).expect("a reader");
    for caller in 0..4 {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for round in 0_u64.. {
                let payloads: Vec<_> =
                    (0..20).map(|i| format!("{}-{caller}-{round}-{i}", std::process::id())).collect();
                let records = payloads.iter().map(|payload| keyed(payload.clone(), payload.clone())).collect();
                let placed = log.append(TOPIC, records).await.expect("append");
                let lines =
                    placed.iter().zip(&payloads).map(|((p, offset), payload)| format!("R {p} {offset} {payload}\n"));
                say(lines.collect());
            }
        });
    }
    let mut mark = store.mark(&ledger_log(), 0, epoch()).await.expect("mark").unwrap_or_default();
    loop {
        let ledger = store.load(&ledger_log(), 0, Consistency::Serial).await.expect("load");
        let change = Change { expected: ledger.version, put: vec![open_epoch(ledger.version)], remove: Vec::new() };
        assert_eq!(store.commit(&ledger_log(), 0, &change).await.expect("commit"), Commit::Applied);
        say(format!("L {}\n", ledger.version + 1));
        let chunk = (place(epoch(), mark.number), Bytes::from(mark.number.to_string()));
        let stamp = Stamp { at: 0, ttl: 3600 };
        SpeedChunks::put(&*store, &[chunk], stamp).await.expect("put");
        mark.number += 1;
        store.put_mark(&ledger_log(), 0, epoch(), &mark, stamp).await.expect("put_mark");
        say(format!("M {}\n", mark.number));
    }
}

fn open_epoch(version: u64) -> Epoch {
    let (start, end, archive, lost) = (0, None, None, None);
    Epoch {
        id: epoch(),
        start,
        end,
        opened_at: 0,
        revision: version + 1,
        dedup_clock: 0,
        alive_until: 0,
        archive,
        lost,
    }
}

/// Runs the child for a while, kills it, and returns what it said.
fn run_and_kill(folder: &Path, after: Duration, acknowledged: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "embedded::child_that_is_killed", "--ignored", "--nocapture"])
        .env(CHILD_FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let (begun, began) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        // The last line may be cut off, and is then not complete.
        for line in output.split(b'\n').map_while(Result::ok) {
            if line.starts_with(b"R ") {
                begun.send(()).ok();
            }
            lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        lines
    });
    began.recv_timeout(Duration::from_secs(60)).expect("the child acknowledges something");
    std::thread::sleep(after);
    child.kill().expect("kill -9");
    child.wait().expect("the child is gone");
    let lines = reader.join().expect("no panic");
    for line in &lines[..lines.len().saturating_sub(1)] {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["R", partition, offset, payload] => {
                let at = (partition.parse().expect("a number"), offset.parse().expect("a number"));
                let before = acknowledged.records.insert(at, payload.to_owned());
                assert!(before.is_none(), "{at:?} was given out twice");
            }
            ["L", version] => acknowledged.ledger = version.parse().expect("a number"),
            ["M", number] => acknowledged.mark = number.parse().expect("a number"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut acknowledged = Acknowledged::default();
    for millis in [30, 3, 200, 11, 77, 400] {
        run_and_kill(folder.path(), Duration::from_millis(millis), &mut acknowledged);
        let Embedded { log, store } = embedded::open(folder.path()).expect("open after kill -9");
        let records = read_all(&*log).await;
        for (at, payload) in &acknowledged.records {
            let found = records.get(at).map(|record| &record.payload[..]);
            assert_eq!(found, Some(payload.as_bytes()), "the record acknowledged at {at:?}");
        }
        let ledger = store.load(&ledger_log(), 0, Consistency::Quorum).await.expect("load");
        assert!(ledger.version >= acknowledged.ledger, "{} < {}", ledger.version, acknowledged.ledger);
        assert_eq!(ledger.epochs.first().map(|epoch| epoch.revision), Some(ledger.version), "version and rows are one");
        let mark = store.mark(&ledger_log(), 0, epoch()).await.expect("mark").unwrap_or_default();
        assert!(mark.number >= acknowledged.mark, "{} < {}", mark.number, acknowledged.mark);
        let place = place(epoch(), 0);
        let chunks = store.deltas(&place.view, 0, place.slot, epoch(), 0..mark.number).await.expect("deltas");
        assert_eq!(chunks.len() as u64, mark.number, "every chunk below the mark is there");
    }
    assert!(acknowledged.records.len() > 500 && acknowledged.ledger > 5, "the child got to write");
}

/// Appends until the disk is full; returns the payloads by place.
async fn fill(log: &dyn Log, acknowledged: &mut BTreeMap<(Partition, Offset), Bytes>) -> LogError {
    let mut seed = 1_u64;
    loop {
        let mut payload = || {
            let words = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 32) as u8
            });
            words.take(100_000).collect::<Bytes>()
        };
        let records: Vec<_> = (0..5).map(|i| keyed(i.to_string(), payload())).collect();
        match log.append(TOPIC, records.clone()).await {
            Ok(placed) => acknowledged.extend(placed.into_iter().zip(records.into_iter().map(|record| record.payload))),
            Err(error) => return error,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a file system of about 120 MiB: LAMINA_SMALL_DISK=folder"]
async fn a_full_disk_refuses_writes_keeps_reads_and_recovers_without_a_restart() {
    let small = std::env::var_os(SMALL_DISK).expect("LAMINA_SMALL_DISK names a folder");
    let folder = tempfile::tempdir_in(&small).expect("a folder");
    let ballast = folder.path().join("ballast");
    std::fs::write(&ballast, vec![7; 40 << 20]).expect("room for ballast");
    let Embedded { log, store } = embedded::open(folder.path()).expect("open");
    log.ensure_topic(TOPIC, PARTITIONS).await.expect("ensure_topic");
    let mut acknowledged = BTreeMap::new();
    let full = fill(&*log, &mut acknowledged).await;
    assert!(matches!(&full, LogError::Full(why) if why.contains(&*folder.path().to_string_lossy())), "{full:?}");
    for _ in 0..3 {
        let again = log.append(TOPIC, vec![keyed("a".into(), vec![1; 500_000])]).await;
        assert!(matches!(&again, Err(LogError::Full(_))), "{again:?}");
        let refused = Documents::put(&*store, "kind", "key", 0, Bytes::from(vec![1; 500_000])).await;
        assert!(matches!(&refused, Err(StoreError::Full(_) | StoreError::Unknown(_))), "{refused:?}");
    }
    let readable = read_all(&*log).await;
    assert!(acknowledged.keys().all(|at| readable.contains_key(at)), "what was acknowledged can be read meanwhile");
    std::fs::remove_file(&ballast).expect("room again");
    let placed = log.append(TOPIC, vec![keyed("b".into(), "after")]).await.expect("append once there is room");
    acknowledged.insert(placed[0], Bytes::from_static(b"after"));
    assert_eq!(Documents::put(&*store, "kind", "key", 0, Bytes::new()).await.expect("put"), Commit::Applied);
    drop((log, store));
    let Embedded { log, .. } = embedded::open(folder.path()).expect("open again");
    let records = read_all(&*log).await;
    for (at, payload) in &acknowledged {
        assert_eq!(records.get(at).map(|record| &record.payload), Some(payload), "the record acknowledged at {at:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn appends_per_second() {
    let folder = tempfile::tempdir().expect("a folder");
    let Embedded { log, .. } = embedded::open(folder.path()).expect("open");
    log.ensure_topic(TOPIC, 8).await.expect("ensure_topic");
    let begun = Instant::now();
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for round in 0..100 {
                    let records = (0..500).map(|i| keyed(format!("{caller}-{round}-{i}"), vec![b'x'; 200])).collect();
                    log.append(TOPIC, records).await.expect("append");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    let took = begun.elapsed();
    println!("400,000 records of 200 bytes in {took:?}: {:.0} records/s", 400_000.0 / took.as_secs_f64());
    let begun = Instant::now();
    let read = read_all(&*log).await.len();
    println!("{read} records read in {:?}", begun.elapsed());
    let begun = Instant::now();
    for i in 0..200 {
        log.append(TOPIC, vec![keyed(i.to_string(), "x")]).await.expect("append");
    }
    println!("one append, one record: {:?}", begun.elapsed() / 200);
}
