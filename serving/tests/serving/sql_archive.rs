//! SQL over raw archives: every sealed record, for whoever may see it.

use lamina_core::{Consistency, Holdings, Ledgers, archive};
use lamina_serving::auth::Scope;
use object_store::{ObjectStoreExt, path::Path};
use serde_json::{Value, json};

use crate::{
    sql::{BASE, edit, rows, sql},
    world::World,
};

/// Two files of partition 0 and one of partition 1, and an event that is not sealed; one record is no event.
async fn archived() -> World {
    let mut world = World::new().await;
    world.set_now((BASE + 86_400) * 1_000_000);
    world.append(0, &edit(5, Some("#en"), "DE", "a", 10));
    world.append(0, &json!("no event"));
    world.append(1, &edit(30, Some("#de"), "DE", "b", 5));
    world.seal(0).await;
    world.seal(1).await;
    world.append(0, &edit(7_200, Some("#en"), "FR", "c", 20));
    world.seal(0).await;
    world.append(0, &edit(7_300, Some("#en"), "FR", "d", 40));
    world.flush(0).await;
    world
}

#[tokio::test]
async fn every_sealed_record_is_a_row() {
    let world = archived().await;
    let query = "SELECT _partition, _offset, _outcome, _time, channel, added, CAST(_payload AS VARCHAR) LIKE '%no event%' \
                 FROM archive.edits ORDER BY _partition, _offset";
    let expected = [
        json!([0, 0, 0, "2024-10-26T00:00:05Z", "#en", 10, false]),
        json!([0, 1, 1, null, null, null, true]),
        json!([0, 2, 0, "2024-10-26T02:00:00Z", "#en", 20, false]),
        json!([1, 0, 0, "2024-10-26T00:00:30Z", "#de", 5, false]),
    ];
    assert_eq!(rows(&world, query).await, expected);
    let body = sql(&world, "SELECT count(*) AS n FROM archive.edits").await.ok();
    assert_eq!(body["rows"], json!([{"n": 4}]));
    let proof = json!({"table": "archive.edits", "source": "edits", "positions": {"0": 3, "1": 1}, "missing": [], "complete": true});
    assert_eq!(body["meta"], json!({"complete": true, "tables": [proof]}));
    // It adds up to what the metric says of the same records.
    let raw = "SELECT sum(added) FROM archive.edits WHERE _outcome = 0 AND _time < '2024-10-26T02:01:00Z'";
    let merged = "SELECT sum(added_sum) FROM added WHERE time >= '2024-10-26' AND time < '2024-10-26T02:01:00Z'";
    assert_eq!(rows(&world, raw).await, [json!([35])]);
    assert_eq!(rows(&world, merged).await, [json!([35])]);
}

#[tokio::test]
async fn bounds_of_time_leave_files_unread() {
    let world = archived().await;
    for path in ["edits/0/0-2.parquet", "edits/1/0-1.parquet"] {
        world.files.delete(&Path::from(path)).await.unwrap();
    }
    let query = |bound: &str| format!("SELECT added FROM archive.edits WHERE {bound}");
    for bound in ["_time >= '2024-10-26T01:00:00Z'", "_time BETWEEN '2024-10-26T01:00:00Z' AND '2024-10-27T00:00:00Z'"]
    {
        assert_eq!(rows(&world, &query(bound)).await, [json!([20])], "{bound}");
    }
    let (code, _) = sql(&world, &query("_time < '2024-10-26T01:00:00Z'")).await.problem(503);
    assert_eq!(code, "archive_unavailable");
}

#[tokio::test]
async fn what_is_not_there_any_more_is_in_the_proof_and_damage_is_no_answer() {
    let world = archived().await;
    let ledger = Ledgers::load(&*world.store, &world.id, 0, Consistency::Serial).await.unwrap();
    let segments = archive::segments(&*world.store, &world.id, 0, &ledger, 0..3).await.unwrap();
    let let_go = |holdings: &mut Holdings| holdings.let_go(&segments[..1], 0);
    archive::update(&*world.store, &world.id, 0, let_go).await.unwrap();
    let body = sql(&world, "SELECT count(*) AS n FROM archive.edits").await.ok();
    assert_eq!((&body["rows"], &body["meta"]["complete"]), (&json!([{"n": 2}]), &json!(false)));
    assert_eq!(body["meta"]["tables"][0]["missing"], json!([{"partition": 0, "from": 0, "to": 2}]));
    world.files.put(&Path::from("edits/1/0-1.parquet"), "nonsense".into()).await.unwrap();
    assert_eq!(sql(&world, "SELECT * FROM archive.edits").await.problem(503).0, "archive_unavailable");
}

/// Dimensions, each with the values that a key is bound to.
type Bound = &'static [(&'static str, &'static [&'static str])];

#[tokio::test]
async fn raw_events_are_for_whoever_may_recompute_and_sees_all_rows() {
    let world = archived().await;
    let body = json!({"query": "SELECT count(*) AS n FROM archive.edits"}).to_string();
    let listed =
        json!({"query": "SELECT table_schema, table_name FROM information_schema.tables WHERE table_name = 'edits'"});
    let cases: [(&[Scope], Bound, bool); 5] = [
        (&[Scope::SqlRun, Scope::RecomputeRun], &[], true),
        (&[Scope::Admin], &[], true),
        (&[Scope::SqlRun], &[], false),
        (&[Scope::SqlRun, Scope::MetricsRead, Scope::EventsWrite], &[], false),
        (&[Scope::SqlRun], &[("channel", &["#en"])], false),
    ];
    for (scopes, rows, sees) in cases {
        let (_, key) = world.key(scopes, rows, None).await;
        let reply = world.by(Some(&key), "POST", "/v1/sql", &body).await;
        let shown: Value = world.by(Some(&key), "POST", "/v1/sql", &listed.to_string()).await.ok()["rows"].clone();
        match sees {
            true => {
                assert_eq!(reply.ok()["rows"], json!([{"n": 4}]), "{scopes:?}");
                assert_eq!(shown, json!([{"table_schema": "archive", "table_name": "edits"}]));
            }
            false => {
                assert!(reply.problem(400).1.contains("archive.edits"), "{scopes:?} {rows:?}: {}", reply.text());
                assert_eq!(shown, json!([]), "{scopes:?} {rows:?}");
            }
        }
    }
}

#[tokio::test]
async fn raw_values_may_not_be_blown_up() {
    let world = archived().await;
    let payload = "CAST(_payload AS VARCHAR)";
    let long = [payload; 6].join(" || ");
    let (code, _) = sql(&world, &format!("SELECT length({long}) FROM archive.edits")).await.problem(400);
    assert_eq!(code, "bad_sql");
    rows(&world, &format!("SELECT length({payload} || {payload}) FROM archive.edits")).await;
}
