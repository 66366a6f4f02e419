//! SQL over metrics: rows, formats, parameters and bounds of time.

use arrow::{array::AsArray, datatypes::Decimal128Type, ipc::reader::StreamReader};
use hyper::Method;
use lamina_serving::Config;
use serde_json::{Value, json};

use crate::world::{PARTITIONS, Reply, World, keys};

/// 2024-10-26T00:00:00Z
pub(crate) const BASE: i64 = 1_729_900_800;
const SINCE2: &str = "time >= '2024-10-26T00:00:00Z'";
pub(crate) const SINCE: &str = "time >= '2024-10-26T00:00:00Z' AND time < '2024-10-27T00:00:00Z'";

pub(crate) async fn send(world: &World, body: &Value, headers: &[(&str, &str)]) -> Reply {
    world.send(Method::POST, "/v1/sql", headers, body.to_string()).await
}

pub(crate) async fn sql(world: &World, query: &str) -> Reply {
    send(world, &json!({"query": query}), &[]).await
}

/// The rows of a result, as lists of their values.
pub(crate) async fn rows(world: &World, query: &str) -> Vec<Value> {
    let body = sql(world, query).await.ok();
    let rows = body["rows"].as_array().unwrap().iter();
    rows.map(|row| row.as_object().unwrap().values().cloned().collect::<Vec<_>>().into()).collect()
}

pub(crate) fn edit(second: i64, channel: Option<&str>, country: &str, user: &str, added: i64) -> Value {
    let time = chrono::DateTime::from_timestamp(BASE + second, 0).unwrap().to_rfc3339();
    json!({"time": time, "channel": channel, "country": country, "user": user, "added": added, "price": "10.25"})
}

/// Six events of two hours: some under batch, some in a sealed epoch, some in the open one.
pub(crate) async fn small_with(config: Config) -> World {
    let mut world = World::with(config).await;
    world.set_now((BASE + 86_400) * 1_000_000);
    world.append(0, &edit(5, Some("#en"), "DE", "a", 10));
    world.append(0, &edit(3_665, Some("#en"), "FR", "b", 20));
    world.append(1, &edit(30, Some("#de"), "DE", "a", 5));
    for partition in 0..PARTITIONS {
        world.seal(partition).await;
    }
    world.batch(true).await;
    world.append(0, &edit(59, Some("#en"), "DE", "c", 1));
    world.seal(0).await;
    world.append(0, &edit(7_000, None, "DE", "c", 7));
    world.append(1, &edit(61, Some("#de"), "DE", "a", 2));
    world.flush(0).await;
    world.flush(1).await;
    world
}

pub(crate) async fn small() -> World {
    small_with(Config::default()).await
}

#[tokio::test]
async fn a_sum_by_channel_is_what_an_analyst_expects() {
    let world = small().await;
    let query = format!(
        "SELECT channel, sum(added_sum) AS total, sum(added_count) AS n FROM added WHERE {SINCE} GROUP BY channel ORDER BY channel"
    );
    let body = sql(&world, &query).await.ok();
    assert_eq!(keys(&body), ["id", "columns", "rows", "row_count", "meta"]);
    assert_eq!(body["columns"][0], json!({"name": "channel", "type": "Utf8"}));
    let expected = json!([{"channel": "#de", "total": 7, "n": 2}, {"channel": "#en", "total": 31, "n": 3}, {"channel": null, "total": 7, "n": 1}]);
    assert_eq!(body["rows"], expected);
    assert_eq!((&body["row_count"], &body["meta"]["complete"]), (&json!(3), &json!(true)));
    let table = &body["meta"]["tables"][0];
    assert_eq!((&table["table"], &table["metric"], &table["width"]), (&json!("added"), &json!("added"), &json!("1m")));
    assert_eq!((&table["batch"]["generation"], &table["speed"]["positions"]), (&json!(1), &json!({"0": 4, "1": 2})));
    assert_eq!((&table["from"], &table["to"]), (&json!("2024-10-26T00:00:00Z"), &json!("2024-10-27T00:00:00Z")));
}

#[tokio::test]
async fn a_rollup_is_a_table_of_its_own_and_decimals_keep_their_digits() {
    let world = small().await;
    let hours = format!("SELECT time, sum(added_sum) FROM added_1h WHERE {SINCE} GROUP BY time ORDER BY time");
    let found = rows(&world, &hours).await;
    assert_eq!(found, [json!(["2024-10-26T00:00:00Z", 18]), json!(["2024-10-26T01:00:00Z", 27])]);
    assert_eq!(
        rows(&world, &format!("SELECT sum(price_sum) FROM price WHERE {SINCE}")).await,
        [serde_json::from_str::<Value>("[61.50]").unwrap()]
    );
    let text = sql(&world, &format!("SELECT sum(price_sum) AS p FROM price WHERE {SINCE}")).await.text();
    assert!(text.contains("\"p\":61.50"), "{text}");
    let described = rows(&world, "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'added' ORDER BY ordinal_position").await;
    assert_eq!((&described[0][0], &described[1][0]), (&json!("time"), &json!("channel")));
    let tables = rows(
        &world,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'metrics' ORDER BY table_name",
    )
    .await;
    assert!(tables.contains(&json!(["added_1d"])) && tables.contains(&json!(["capped"])), "{tables:?}");
}

#[tokio::test]
async fn what_does_not_add_up_is_merged_by_laminas_functions_or_refused() {
    let world = small().await;
    let query = format!(
        "SELECT lamina_distinct(added_distinct_user), lamina_quantile(added_quantiles, 1.0), lamina_avg(added_avg), \
         lamina_top(added_top_user, 1) FROM added WHERE {SINCE}"
    );
    let top = json!([{"value": "a", "count": 3, "error": 0}]).to_string();
    assert_eq!(
        rows(&world, &query).await,
        [json!([3, 20.0, 7.5, top])],
        "three users in all, though more in all minutes"
    );
    let by = format!(
        "SELECT channel, lamina_distinct(added_distinct_user) FROM added WHERE {SINCE} GROUP BY channel ORDER BY 1"
    );
    assert_eq!(rows(&world, &by).await, [json!(["#de", 1]), json!(["#en", 3]), json!([null, 1])]);
    let none = format!(
        "SELECT lamina_distinct(added_distinct_user), lamina_avg(added_avg) FROM added WHERE {SINCE} AND channel = 'x'"
    );
    assert_eq!(rows(&world, &none).await, [json!([null, null])]);
    for wrong in [
        "sum(added_distinct_user)",
        "avg(added_avg)",
        "lamina_distinct(added_sum)",
        "lamina_avg(added_quantiles)",
        "lamina_quantile(added_quantiles, 2)",
        "lamina_quantile(added_quantiles, added_count)",
        "lamina_top(added_top_user, 0)",
        "lamina_distinct(X'0102')",
    ] {
        let reply = sql(&world, &format!("SELECT {wrong} FROM added WHERE {SINCE}")).await;
        assert!(matches!(reply.status.as_u16(), 400 | 422), "{wrong}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_table_needs_a_lower_bound_of_time_and_ends_now() {
    let world = small().await;
    for query in [
        "SELECT * FROM added",
        "SELECT sum(added_sum) FROM added WHERE channel = '#en'",
        "SELECT 1 FROM added WHERE time < now()",
    ] {
        let (code, detail) = sql(&world, query).await.problem(400);
        assert_eq!(code, "bad_sql");
        assert!(
            detail.contains("table added needs a lower bound of its time") && detail.contains("time >="),
            "{detail}"
        );
    }
    for (bound, n) in [
        ("time >= '2024-10-26T00:01:00Z'", 3),
        ("time > '2024-10-26T00:00:00Z'", 3),
        ("'2024-10-26T00:00:00Z' <= time", 6),
        ("time BETWEEN '2024-10-26T00:00:00Z' AND '2024-10-26T00:01:00Z'", 4),
        ("time >= TIMESTAMP '2024-10-26 00:00:00' AND time < TIMESTAMP '2024-10-26 00:00:30'", 3),
        ("time = '2024-10-26T00:01:00Z'", 1),
        ("time >= '2024-10-26T00:00:00.5Z'", 3),
        ("time >= '1700-01-01T00:00:00Z'", 6),
        ("time >= '2024-10-28T00:00:00Z'", 0),
        ("time >= '2024-10-26T00:00:00Z' AND time < '2024-10-25T00:00:00Z'", 0),
    ] {
        let found = rows(&world, &format!("SELECT coalesce(sum(added_count), 0) FROM added WHERE {bound}")).await;
        assert_eq!(found, [json!([n])], "{bound}");
    }
    let body = sql(&world, "SELECT count(*) FROM added WHERE time >= '2024-10-26T00:00:00Z'").await.ok();
    assert_eq!(body["meta"]["tables"][0]["to"], "2024-10-27T00:01:00Z", "the end of the minute that it is");
}

#[tokio::test]
async fn conditions_over_dimensions_are_right_whether_pushed_down_or_not() {
    let world = small().await;
    for (condition, n) in [
        ("channel = '#en'", 3),
        ("channel <> '#en'", 2),
        ("channel IS NULL", 1),
        ("channel IS NOT NULL AND country = 'DE'", 4),
        ("channel IN ('#en', 'x''y') OR country = 'FR'", 3),
        ("channel NOT IN ('#en')", 2),
        ("upper(channel) LIKE '#D%'", 2),
        ("'#de' = channel", 2),
        ("channel || country = '#enFR'", 1),
        ("added_sum > 5 AND country = 'DE'", 3),
    ] {
        let found = rows(&world, &format!("SELECT sum(added_count) FROM added WHERE {SINCE} AND ({condition})")).await;
        assert_eq!(found, [json!([n])], "{condition}");
    }
    let joined = format!(
        "WITH e AS (SELECT * FROM added WHERE {SINCE}) SELECT sum(a.added_sum), count(*) FROM e a JOIN e b ON a.time = b.time AND a.channel <> b.channel"
    );
    assert_eq!(rows(&world, &joined).await, [json!([16, 2])]);
}

#[tokio::test]
async fn parameters_are_bound_by_position_or_by_name() {
    let world = small().await;
    let positional = json!({"query": format!("SELECT sum(added_count) AS n FROM added WHERE {SINCE} AND channel = $1 AND added_sum >= $2"), "params": ["#en", 11]});
    assert_eq!(send(&world, &positional, &[]).await.ok()["rows"], json!([{"n": 3}]));
    let named = json!({"query": "SELECT sum(added_count) AS n FROM added WHERE time >= $since AND channel = $channel",
        "params": {"since": "2024-10-26T00:00:00Z", "channel": "' OR 1=1 --"}});
    assert_eq!(send(&world, &named, &[]).await.ok()["rows"], json!([{"n": null}]));
    let missing = json!({"query": "SELECT $1 + $2", "params": [1]});
    assert_eq!(send(&world, &missing, &[]).await.status, 400);
    for params in [json!("x"), json!([[1]]), serde_json::from_str("[1e400]").unwrap(), json!(vec![1; 201])] {
        let reply = send(&world, &json!({"query": "SELECT 1", "params": params}), &[]).await;
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
}

#[tokio::test]
async fn a_result_comes_as_it_is_accepted() {
    let world = small().await;
    let query = json!({"query": format!("SELECT channel, added_sum FROM added_1d WHERE {SINCE} AND country = 'DE' ORDER BY channel")});
    let csv = send(&world, &query, &[("accept", "text/csv")]).await;
    assert_eq!(
        (csv.status.as_u16(), csv.headers["content-type"].to_str().unwrap()),
        (200, "text/csv; charset=utf-8; header=present")
    );
    assert_eq!(csv.text(), "channel,added_sum\n#de,7\n#en,11\n,7\n");
    assert_eq!(csv.headers["x-lamina-complete"], "true");
    let meta: Value = serde_json::from_str(csv.headers["x-lamina-meta"].to_str().unwrap()).unwrap();
    assert_eq!(meta["tables"][0]["speed"]["positions"], json!({"0": 4, "1": 2}));
    assert!(!csv.headers["x-lamina-query-id"].is_empty());

    let lines = send(&world, &query, &[("accept", "application/x-ndjson")]).await.text();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({"channel": "#de", "added_sum": 7}));
    assert_eq!((lines.len(), &lines[3]["$end"]["rows"]), (4, &json!(3)));
    assert_eq!(lines[3]["$end"]["meta"]["complete"], true);

    let arrow = send(&world, &query, &[("accept", "application/vnd.apache.arrow.stream")]).await;
    let reader = StreamReader::try_new(std::io::Cursor::new(arrow.bytes.clone()), None).unwrap();
    let sums: i128 = reader
        .map(|batch| batch.unwrap().column(1).as_primitive::<Decimal128Type>().values().iter().sum::<i128>())
        .sum();
    assert_eq!(sums, 25);

    assert_eq!(send(&world, &query, &[("accept", "image/png")]).await.problem(406).0, "not_acceptable");
    let empty = json!({"query": format!("SELECT channel, added_sum FROM added WHERE {SINCE} AND channel = 'x'")});
    assert_eq!(send(&world, &empty, &[("accept", "text/csv")]).await.text(), "channel,added_sum\n");
    assert_eq!(send(&world, &empty, &[]).await.ok()["rows"], json!([]));
    let twice =
        json!({"query": format!("SELECT a.time, b.time FROM added_1d a, added_1d b WHERE a.{SINCE2} AND b.{SINCE2}")});
    assert_eq!(keys(&send(&world, &twice, &[]).await.ok()["rows"][0]), ["time", "time_2"]);
}
