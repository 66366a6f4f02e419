//! The Cassandra backend against a real node: `make up`, or `LAMINA_TEST_CASSANDRA=host:port`.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lamina::backends::cassandra::{CassandraConfig, CassandraStore, migrate};
use lamina_core::{
    BatchChunks, BatchKey, BatchRow, Change, Clock, Commit, Consistency, Cut, Documents, Epoch, EpochId, Ledgers,
    LogId, Micros, Part, SpeedChunks, SpeedKey, Stamp, StoreError, ViewId, clock::SystemClock, conformance,
};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use uuid::Uuid;

use super::proxy::{Line, proxy};

fn node() -> String {
    std::env::var("LAMINA_TEST_CASSANDRA").unwrap_or_else(|_| "127.0.0.1:19042".to_owned())
}

fn config() -> CassandraConfig {
    CassandraConfig {
        contact_points: vec![node()],
        keyspace: format!("lamina_test_{}", Uuid::now_v7().simple()),
        // A machine that runs everything else too is slow now and then.
        request_timeout: Duration::from_secs(10),
        ..CassandraConfig::default()
    }
}

/// The only way around these tests.
fn skipped() -> bool {
    std::env::var_os("LAMINA_SKIP_REAL").is_some_and(|value| !value.is_empty())
}

async fn session() -> Session {
    SessionBuilder::new().known_node(node()).build().await.expect("a Cassandra node; `make up` starts one")
}

/// Runs a test on a keyspace of its own, and drops that even if the test fails.
fn on_fresh_keyspace<F: Future<Output = ()> + Send + 'static>(
    test: impl FnOnce(CassandraStore, CassandraConfig) -> F + Send + 'static,
) {
    if skipped() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let config = config();
        let drop_keyspace = format!("DROP KEYSPACE IF EXISTS {}", config.keyspace);
        let ended = tokio::spawn(async move {
            migrate(&config).await.unwrap();
            let store = CassandraStore::connect(config.clone()).await.unwrap();
            test(store, config).await;
        });
        let ended = ended.await;
        session().await.query_unpaged(drop_keyspace, ()).await.unwrap();
        if let Err(failure) = ended {
            std::panic::resume_unwind(failure.into_panic());
        }
    });
}

fn now() -> Micros {
    SystemClock.now()
}

fn epoch(start: u64, opened_at: Micros) -> Epoch {
    let (id, revision, dedup_clock, alive_until) = (EpochId::new(), 1, 0, opened_at);
    Epoch { id, start, end: None, opened_at, revision, dedup_clock, alive_until, archive: None, lost: None }
}

#[test]
fn cassandra_is_a_view_store() {
    on_fresh_keyspace(|store, _| async move { conformance::store_suite(&store).await });
}

#[test]
fn migrating_again_changes_nothing_and_a_missing_schema_is_named() {
    on_fresh_keyspace(|store, config| async move {
        assert_eq!(Documents::put(&store, "kind", "key", 0, Bytes::from_static(b"v")).await.unwrap(), Commit::Applied);
        migrate(&config).await.unwrap();
        assert!(store.get("kind", "key").await.unwrap().is_some());
        let drop_table = format!("DROP TABLE {}.documents", config.keyspace);
        session().await.query_unpaged(drop_table, ()).await.unwrap();
        let refused = CassandraStore::connect(config.clone()).await.err().unwrap().to_string();
        assert!(refused.contains("has no table documents; run `lamina migrate`"), "{refused}");
        let other_dc = CassandraConfig { local_dc: "nowhere".to_owned(), ..config };
        let refused = CassandraStore::connect(other_dc).await.err().unwrap().to_string();
        assert!(refused.contains("local_dc is \"nowhere\", but the cluster's data centres are: dc1"), "{refused}");
    });
}

#[test]
fn a_keyspace_is_written_in_one_mode_which_only_a_command_changes() {
    use lamina::backends::cassandra::{WriteConsistency, change_write_consistency};

    on_fresh_keyspace(|_, config| async move {
        let each = CassandraConfig { write_consistency: WriteConsistency::EachQuorum, ..config.clone() };
        let refused = CassandraStore::connect(each.clone()).await.err().unwrap().to_string();
        assert!(refused.contains("is written at local_quorum") && refused.contains("each_quorum"), "{refused}");
        let refused = migrate(&each).await.unwrap_err().to_string();
        assert!(refused.contains("lamina migrate --change-write-consistency"), "{refused}");
        migrate(&config).await.unwrap();

        change_write_consistency(&each).await.unwrap();
        let refused = CassandraStore::connect(config.clone()).await.err().unwrap().to_string();
        assert!(refused.contains("is written at each_quorum"), "{refused}");
        conformance::store_suite(&CassandraStore::connect(each.clone()).await.unwrap()).await;
        migrate(&each).await.unwrap();
        change_write_consistency(&config).await.unwrap();
        CassandraStore::connect(config).await.map(drop).unwrap();
    });
}

#[test]
fn a_new_keyspace_takes_the_mode_that_is_configured_and_an_old_one_is_local() {
    use lamina::backends::cassandra::WriteConsistency;

    on_fresh_keyspace(|store, config| async move {
        let each = CassandraConfig { write_consistency: WriteConsistency::EachQuorum, ..config.clone() };
        let forget = format!(
            "DELETE FROM {}.documents WHERE kind = 'settings' AND key = 'write_consistency' IF EXISTS",
            config.keyspace
        );
        session().await.query_unpaged(forget.clone(), ()).await.unwrap();
        migrate(&each).await.unwrap();
        CassandraStore::connect(each.clone()).await.map(drop).unwrap();

        // Of a version without modes, with something in it.
        session().await.query_unpaged(forget, ()).await.unwrap();
        let open = Change { expected: 0, put: vec![epoch(0, now())], remove: Vec::new() };
        assert_eq!(store.commit(&LogId::new("source", "topic"), 0, &open).await.unwrap(), Commit::Applied);
        CassandraStore::connect(config.clone()).await.map(drop).unwrap();
        let refused = migrate(&each).await.unwrap_err().to_string();
        assert!(refused.contains("is written at local_quorum"), "{refused}");
    });
}

#[test]
fn a_table_whose_options_lose_rows_is_refused_by_name() {
    on_fresh_keyspace(|store, config| async move {
        let alter = format!("ALTER TABLE {}.speed_chunks WITH gc_grace_seconds = 0", config.keyspace);
        session().await.query_unpaged(alter, ()).await.unwrap();
        let refused = CassandraStore::connect(config.clone()).await.err().unwrap().to_string();
        let table = format!("table {}.speed_chunks has gc_grace_seconds = 0", config.keyspace);
        assert!(refused.contains(&table), "{refused}");
        let skew = store.clock_skew().await.unwrap();
        assert!(skew.abs() < 500_000, "the node of this machine is {skew} µs away");
    });
}

#[tokio::test]
async fn a_node_that_is_not_there_is_unavailable_and_named() {
    let config = CassandraConfig { contact_points: vec!["127.0.0.1:1".to_owned()], ..config() };
    let error = CassandraStore::connect(config).await.err().unwrap();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("127.0.0.1:1")), "{error}");
}

fn batch_row(stamp: Micros, body: &'static [u8], expires_at: Option<Micros>) -> BatchRow {
    let (view, series) = (ViewId::new("zombie", 1, 0), Bytes::from_static(b"s"));
    let key = BatchKey { view, width: 60_000_000, base: 0, shard: 0, period: 0, series };
    let cut: Cut = [(0, 10)].into_iter().collect();
    BatchRow { key, generation: 1, stamp, cut, body: Bytes::from_static(body), expires_at }
}

#[test]
fn a_belated_write_loses_and_never_blends() {
    on_fresh_keyspace(|store, _| async move {
        let at = now();
        let scan = || async {
            let found = store.scan(&ViewId::new("zombie", 1, 0), 60_000_000, 0, 0, 0..1, None).await.unwrap();
            found.into_iter().next().expect("a chunk stands")
        };
        BatchChunks::put(&store, &[batch_row(at + 2, b"second", None)]).await.unwrap();
        BatchChunks::put(&store, &[batch_row(at + 1, b"zombie with a longer body", None)]).await.unwrap();
        assert_eq!(scan().await, batch_row(at + 2, b"second", None), "the lower stamp loses");
        // At an equal stamp one of both stands whole, the same one in either order.
        BatchChunks::put(&store, &[batch_row(at + 2, b"other", None)]).await.unwrap();
        let stands = scan().await;
        assert!([&b"second"[..], b"other"].contains(&&stands.body[..]), "{stands:?}");
        BatchChunks::put(&store, &[batch_row(at + 2, b"second", None)]).await.unwrap();
        assert_eq!(scan().await, stands, "the order of equal stamps does not matter");
    });
}

#[test]
fn a_touch_renews_and_a_late_or_lower_one_does_not() {
    on_fresh_keyspace(|store, _| async move {
        let (view, epoch, at) = (ViewId::new("touch", 1, 0), EpochId::new(), now());
        let key = |number| SpeedKey { view: view.clone(), shard: 0, slot: 0, epoch, part: Part::Delta(number) };
        let chunk = |number: u64| [(key(number), Bytes::from_static(b"chunk"))];
        for number in 0..3 {
            SpeedChunks::put(&store, &chunk(number), Stamp { at, ttl: 2 }).await.unwrap();
        }
        SpeedChunks::put(&store, &chunk(0), Stamp { at, ttl: 600 }).await.unwrap();
        SpeedChunks::put(&store, &chunk(1), Stamp { at: at - 1, ttl: 600 }).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = store.deltas(&view, 0, 0, epoch, 0..3).await.unwrap();
            assert_eq!(left.first().map(|(number, _)| *number), Some(0), "the touched chunk lives on");
            if left.len() == 1 {
                break;
            }
            assert!(Instant::now() < deadline, "the chunks that were not touched still live: {left:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn a_repaired_epoch_stays_in_the_manifest_whoever_writes_last() {
    on_fresh_keyspace(|store, _| async move {
        let (log, at) = (LogId::new("source", "topic"), now());
        let (original, repaired) = (epoch(70_000, at), epoch(70_000, at + 1));
        for epochs in [[original.clone()], [repaired.clone()], [original]] {
            store.archive(&log, 0, &epochs).await.unwrap();
        }
        assert_eq!(store.archived(&log, 0, 0..u64::MAX).await.unwrap(), [repaired]);
    });
}

#[test]
fn a_ledger_without_epochs_keeps_its_version() {
    on_fresh_keyspace(|store, _| async move {
        let log = LogId::new("source", "topic");
        let open = Change { expected: 0, put: vec![epoch(0, now())], remove: Vec::new() };
        assert_eq!(store.commit(&log, 0, &open).await.unwrap(), Commit::Applied);
        let clear = Change { expected: 1, put: Vec::new(), remove: vec![0] };
        assert_eq!(store.commit(&log, 0, &clear).await.unwrap(), Commit::Applied);
        assert_eq!(store.commit(&log, 0, &open).await.unwrap(), Commit::Refused, "it is not as if never written");
        for consistency in [Consistency::Quorum, Consistency::Serial] {
            let ledger = store.load(&log, 0, consistency).await.unwrap();
            assert_eq!((ledger.version, ledger.epochs.len()), (2, 0), "at {consistency:?}");
        }
    });
}

#[test]
fn a_lost_answer_is_unknown_and_an_outage_passes_by_itself() {
    on_fresh_keyspace(|_, config| async move {
        let (address, line) = proxy(node()).await;
        let config =
            CassandraConfig { contact_points: vec![address], request_timeout: Duration::from_secs(2), ..config };
        let store = CassandraStore::new(config);
        let log = LogId::new("source", "topic");
        let change = |expected| Change { expected, put: vec![epoch(expected, now())], remove: Vec::new() };
        assert_eq!(store.commit(&log, 0, &change(0)).await.unwrap(), Commit::Applied);

        line.send(Line::Mute).unwrap();
        let (ledger, document) = tokio::join!(
            async { store.commit(&log, 0, &change(1)).await },
            Documents::put(&store, "kind", "key", 0, Bytes::from_static(b"value")),
        );
        assert!(matches!(ledger, Err(StoreError::Unknown(_))), "{ledger:?}");
        assert!(matches!(document, Err(StoreError::Unknown(_))), "{document:?}");
        line.send(Line::Whole).unwrap();
        assert_eq!(store.load(&log, 0, Consistency::Serial).await.unwrap().version, 2, "it was applied after all");
        assert_eq!(store.get("kind", "key").await.unwrap().map(|document| document.version), Some(1));

        line.send(Line::Cut).unwrap();
        let down = Instant::now();
        let read = store.load(&log, 0, Consistency::Quorum).await;
        assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
        let write = store.commit(&log, 0, &change(2)).await;
        assert!(matches!(write, Err(StoreError::Unavailable(_) | StoreError::Unknown(_))), "{write:?}");
        assert!(down.elapsed() < Duration::from_secs(10), "an outage is told soon, not after {:?}", down.elapsed());
        line.send(Line::Whole).unwrap();
        while store.load(&log, 0, Consistency::Serial).await.is_err() {
            assert!(down.elapsed() < Duration::from_secs(60), "the store does not come back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

/// Not a law: prints how fast the node is. `cargo test --test it cassandra_speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cassandra_speed() {
    on_fresh_keyspace(|store, _| async move {
        let at = now();
        let body: Bytes = (0..1500_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let view = ViewId::new("speed", 1, 0);
        let chunks: Vec<_> = (0..9334)
            .map(|i| {
                let key = SpeedKey {
                    view: view.clone(),
                    shard: i % 16,
                    slot: 0,
                    epoch: EpochId::new(),
                    part: Part::Delta(0),
                };
                (key, body.clone())
            })
            .collect();
        for round in 0..3 {
            let begun = Instant::now();
            SpeedChunks::put(&store, &chunks, Stamp { at, ttl: 86_400 }).await.unwrap();
            println!("speed puts, round {round}: {:.0}/s", chunks.len() as f64 / begun.elapsed().as_secs_f64());
        }
        let rows: Vec<_> = (0..10_000_u32)
            .map(|i| {
                let series = Bytes::from(format!("series-{}", i / 4));
                let key = BatchKey {
                    view: view.clone(),
                    width: 60_000_000,
                    base: 0,
                    shard: i % 8,
                    period: i64::from(i % 4) * 3_600_000_000,
                    series,
                };
                BatchRow {
                    key,
                    generation: 1,
                    stamp: at,
                    cut: (0..8).map(|p| (p, 12_345)).collect(),
                    body: body.clone(),
                    expires_at: None,
                }
            })
            .collect();
        for round in 0..3 {
            let begun = Instant::now();
            BatchChunks::put(&store, &rows).await.unwrap();
            println!("batch puts, round {round}: {:.0}/s", rows.len() as f64 / begun.elapsed().as_secs_f64());
        }
        let begun = Instant::now();
        let mut found = 0;
        for shard in 0..8 {
            found += store.scan(&view, 60_000_000, 0, shard, 0..14_400_000_000, None).await.unwrap().len();
        }
        println!("batch scan: {:.0} chunks/s", found as f64 / begun.elapsed().as_secs_f64());
        let log = LogId::new("source", "speed");
        let mut latencies = Vec::new();
        for version in 0..200 {
            let change = Change { expected: version, put: vec![epoch(version, at)], remove: Vec::new() };
            let begun = Instant::now();
            assert_eq!(store.commit(&log, 0, &change).await.unwrap(), Commit::Applied);
            latencies.push(begun.elapsed());
        }
        latencies.sort_unstable();
        println!("ledger commit: median {:?}, p99 {:?}", latencies[100], latencies[198]);
        for consistency in [Consistency::Quorum, Consistency::Serial] {
            let begun = Instant::now();
            for _ in 0..100 {
                store.load(&log, 0, consistency).await.unwrap();
            }
            println!("ledger load of 200 epochs at {consistency:?}: {:?}", begun.elapsed() / 100);
        }
    });
}
