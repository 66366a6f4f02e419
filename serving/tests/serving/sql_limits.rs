//! What SQL may not do, how much of it is too much, and how it ends.

use std::time::Duration;

use axum::body::Body;
use hyper::{Method, Request};
use lamina_serving::{Config, SqlLimits};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    sql::{SINCE, send, small, small_with, sql},
    world::{Reply, World},
};

#[tokio::test]
async fn nothing_but_metrics_can_be_read_and_nothing_written() {
    let world = small().await;
    let file = std::env::temp_dir().join(format!("lamina-sql-{}.csv", std::process::id()));
    std::fs::write(&file, "secret\n1\n").unwrap();
    let path = file.display();
    for query in [
        format!("SELECT * FROM '{path}'"),
        format!("SELECT * FROM \"{path}\""),
        format!("SELECT * FROM \"file://{path}\""),
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "SELECT * FROM 'http://127.0.0.1:1/x.parquet'".to_owned(),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'"),
        format!("COPY (SELECT 1) TO '{path}'"),
        format!("COPY added TO '{path}' STORED AS CSV"),
        format!("SELECT * FROM read_csv('{path}')"),
        format!("SELECT * FROM parquet_metadata('{path}')"),
        "SELECT * FROM generate_series(1, 10)".to_owned(),
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "CREATE VIEW v AS SELECT 1".to_owned(),
        "CREATE FUNCTION f() RETURNS INT RETURN 1".to_owned(),
        "DROP TABLE added".to_owned(),
        "INSERT INTO added VALUES (1)".to_owned(),
        "DELETE FROM added".to_owned(),
        "UPDATE added SET added_sum = 1".to_owned(),
        "TRUNCATE TABLE added".to_owned(),
        "SET datafusion.catalog.information_schema = false".to_owned(),
        "RESET datafusion.execution.batch_size".to_owned(),
        "PREPARE p AS SELECT 1".to_owned(),
        "EXECUTE p".to_owned(),
        "BEGIN".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "SELECT repeat('x', 1000000000)".to_owned(),
        "SELECT range(0, 100000000000)".to_owned(),
        "SELECT input_file_name()".to_owned(),
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT * FROM r".to_owned(),
        String::new(),
    ] {
        let reply = sql(&world, &query).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.text());
        assert!(!reply.text().contains("secret"), "{query}: {}", reply.text());
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "secret\n1\n");
    std::fs::remove_file(&file).unwrap();
    let twice = "concat(x, x, x, x, x, x, x, x)";
    let grown = format!("SELECT {twice} FROM (SELECT {twice} AS x FROM (SELECT {twice} AS x FROM (SELECT 'a' AS x)))");
    let (code, detail) = sql(&world, &grown).await.problem(400);
    assert!(code == "bad_sql" && detail.contains("times as long"), "{detail}");
}

/// Again and again while the query before it lets go of its place.
async fn patiently(world: &World, body: &Value) -> Reply {
    for _ in 0..250 {
        let reply = send(world, body, &[]).await;
        if reply.status != 503 {
            return reply;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the query before still runs");
}

#[tokio::test]
async fn a_query_has_limits_of_rows_bytes_memory_and_time() {
    let limits = SqlLimits {
        max_rows: 100,
        memory_bytes: 1 << 20,
        max_concurrent: 1,
        max_bytes: 4_000,
        timeout: Duration::from_secs(2),
        ..SqlLimits::default()
    };
    let world = small_with(Config { sql: limits, ..Config::default() }).await;
    let all = format!("(SELECT * FROM added WHERE {SINCE})");
    let times = |n: usize| (0..n).map(|n| format!("{all} t{n}")).collect::<Vec<_>>().join(", ");
    for (query, expected) in [
        (format!("SELECT t0.time FROM {}", times(3)), "too_many_rows"),
        (format!("SELECT * FROM {}", times(2)), "result_too_large"),
        (
            format!("SELECT t0.added_quantiles FROM {} ORDER BY t1.added_quantiles, t0.added_distinct_user", times(7)),
            "out_of_memory",
        ),
    ] {
        assert_eq!(patiently(&world, &json!({"query": query})).await.problem(422).0, expected);
    }
    let too_long = json!({"query": "SELECT 1", "timeout_ms": 5000});
    assert_eq!(patiently(&world, &too_long).await.problem(400).0, "bad_parameter");
    assert_eq!(patiently(&world, &json!({"query": "SELECT 1 AS one"})).await.ok()["rows"], json!([{"one": 1}]));
}

#[tokio::test]
async fn a_query_ends_when_its_time_is_over() {
    let world = small().await;
    let begun = std::time::Instant::now();
    let reply = send(&world, &json!({"query": endless(), "timeout_ms": 300}), &[]).await;
    assert_eq!(reply.problem(422).0, "timeout");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn sql_can_be_switched_off() {
    let off = SqlLimits { max_concurrent: 0, ..SqlLimits::default() };
    let world = small_with(Config { sql: off, ..Config::default() }).await;
    assert_eq!(sql(&world, "SELECT 1").await.problem(403).0, "sql_off");
}

#[tokio::test]
async fn a_statement_is_short_and_flat() {
    let world = small().await;
    for query in [
        "(".repeat(20_000),
        format!("SELECT {}1", "(".repeat(40)),
        format!("SELECT 1{}", " + 1".repeat(2_000)),
        "SELECT 'x".to_owned(),
    ] {
        assert_eq!(sql(&world, &query).await.status, 400);
    }
    let chain = format!("SELECT 1{} AS n", " + 1".repeat(900));
    assert_eq!(sql(&world, &chain).await.ok()["rows"], json!([{"n": 901}]));
    let deep = format!("SELECT {}1{} AS n", "(".repeat(10), ")".repeat(10));
    let begun = std::time::Instant::now();
    assert_eq!(sql(&world, &deep).await.ok()["rows"], json!([{"n": 1}]));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// A join without end, in practice, that holds next to nothing: of each join only the left side is held.
fn endless() -> String {
    let three = |n: usize| format!("added t{} CROSS JOIN added t{} CROSS JOIN added t{}", 3 * n, 3 * n + 1, 3 * n + 2);
    let joined = (0..4).rev().fold(three(4), |right, n| format!("{} CROSS JOIN ({right})", three(n)));
    let since = (0..15).map(|n| format!("t{n}.time >= '2024-10-26T00:00:00Z'")).collect::<Vec<_>>().join(" AND ");
    format!("SELECT count(*) FROM {joined} WHERE {since} AND t0.added_sum + t14.added_sum > 1000")
}

#[tokio::test]
async fn a_query_ends_when_it_is_cancelled_or_its_client_leaves() {
    let world =
        small_with(Config { sql: SqlLimits { max_concurrent: 1, ..SqlLimits::default() }, ..Config::default() }).await;
    let named = [("x-lamina-query-id", "mine")];
    let begun = std::time::Instant::now();
    let cancel = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let reply = world.send(Method::DELETE, "/v1/sql/mine", &[], Body::empty()).await;
            if reply.status == 204 || begun.elapsed() > Duration::from_secs(10) {
                break;
            }
            assert_eq!(reply.problem(404).0, "unknown_query");
        }
    };
    let body = json!({"query": endless()});
    let (reply, ()) = tokio::join!(send(&world, &body, &named), cancel);
    assert_eq!(reply.problem(409).0, "cancelled");
    assert_eq!(reply.headers["x-lamina-query-id"], "mine");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(world.send(Method::DELETE, "/v1/sql/mine", &[], Body::empty()).await.status, 404);
    let small = json!({"query": "SELECT 1"});
    patiently(&world, &small).await.ok();
    let request = Request::post("/v1/sql").body(Body::from(body.to_string())).unwrap();
    let left = tokio::time::timeout(Duration::from_millis(300), world.router.clone().oneshot(request)).await;
    assert!(left.is_err(), "it was answered");
    patiently(&world, &small).await.ok();
}

/// Parts that hostile statements are made of.
const PARTS: &[&str] = &[
    "SELECT",
    "FROM",
    "added",
    "added_1h",
    "WHERE",
    "time",
    ">=",
    "'2024-10-26T00:00:00Z'",
    "now()",
    "INTERVAL '1 day'",
    "-",
    "+",
    "*",
    "/",
    "%",
    "||",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    "channel",
    "added_sum",
    "added_count",
    "added_quantiles",
    "lamina_distinct(",
    "lamina_quantile(",
    "sum(",
    "count(*)",
    "GROUP BY",
    "ORDER BY",
    "LIMIT",
    "1",
    "0",
    "-1",
    "9223372036854775807",
    "1e400",
    "NULL",
    "'",
    "\"",
    "`",
    "$1",
    "$x",
    "?",
    "UNION ALL",
    "JOIN",
    "CROSS JOIN",
    "ON",
    "WITH",
    "AS",
    "x",
    "RECURSIVE",
    "OVER (PARTITION BY channel ORDER BY time)",
    "EXPLAIN",
    "EXPLAIN ANALYZE",
    "SHOW TABLES",
    "SHOW ALL",
    "DESCRIBE added",
    "COPY",
    "TO",
    "'/tmp/lamina-hostile'",
    "CREATE EXTERNAL TABLE",
    "INSERT INTO",
    "DROP TABLE",
    "information_schema.tables",
    "information_schema.df_settings",
    "UNNEST(",
    "[1,2]",
    "CASE WHEN",
    "THEN",
    "END",
    "CAST(",
    "AS BIGINT)",
    "::decimal(38,10)",
    "X'00'",
    "/*",
    "*/",
    "--",
    "\u{1F600}",
    "\u{0}",
    "LATERAL",
    "EXISTS (",
    "IN (",
    "LIKE '%'",
    "SIMILAR TO",
    "regexp_match(",
    "'('",
    "date_bin(",
    "to_timestamp(",
    "VALUES (1)",
    "ROLLUP(",
    "GROUPING SETS ((",
    "FILTER (WHERE",
    "array_agg(",
    "make_array(",
    "struct(",
    "~",
    "IS NOT NULL",
    "BETWEEN",
    "AND",
    "OR",
    "NOT",
];

fn hostile() -> impl Strategy<Value = String> {
    let parts = prop::collection::vec(prop::sample::select(PARTS), 1..16).prop_map(|parts| parts.join(" "));
    let within = prop::collection::vec(prop::sample::select(PARTS), 1..6)
        .prop_map(|parts| format!("SELECT {} FROM added WHERE {SINCE}", parts.join(" ")));
    let after = prop::collection::vec(prop::sample::select(PARTS), 1..6)
        .prop_map(|parts| format!("SELECT channel, added_sum FROM added WHERE {SINCE} {}", parts.join(" ")));
    let repeated = (prop::sample::select(PARTS), 1..2_000_usize)
        .prop_map(|(part, times)| format!("SELECT {}", part.repeat(times)));
    let nested = (prop::sample::select(PARTS), 1..12_usize)
        .prop_map(|(part, depth)| format!("SELECT {}{part}{}", "(SELECT ".repeat(depth), ")".repeat(depth)));
    prop_oneof![4 => parts, 4 => within, 3 => after, 1 => repeated, 1 => nested, 1 => "\\PC{0,60}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn no_statement_makes_the_server_fail(statements in prop::collection::vec(hostile(), 40), params in prop::sample::select(vec![json!(null), json!([1]), json!({"x": "y"})])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = small().await;
            for statement in &statements {
                for accept in ["application/json", "application/x-ndjson"] {
                    let body = json!({"query": statement, "params": params, "timeout_ms": 3000});
                    let begun = std::time::Instant::now();
                    let reply = send(&world, &body, &[("accept", accept)]).await;
                    prop_assert!(reply.status.as_u16() < 500, "{}: {}", statement, reply.text());
                    prop_assert!(begun.elapsed() < Duration::from_secs(10), "{}: {:?}", statement, begun.elapsed());
                }
            }
            prop_assert!(!std::path::Path::new("/tmp/lamina-hostile").exists());
            Ok(())
        })?;
    }
}
