//! The Prometheus-compatible interface: what Grafana sends, the shapes of answers, refusals.

use std::collections::BTreeSet;

use hyper::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::world::{DAY, PARTITIONS, Reply, World, encoded};

/// 2024-10-26T00:00:00Z
pub(crate) const BASE: i64 = 1_729_900_800;

async fn get(world: &World, path: &str, params: &[(&str, &str)]) -> Reply {
    let pairs: Vec<String> =
        params.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    world.get(&format!("/prometheus/api/v1/{path}?{}", pairs.join("&"))).await
}

async fn post(world: &World, path: &str, params: &[(&str, &str)]) -> Reply {
    let pairs: Vec<String> =
        params.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    world.send(Method::POST, &format!("/prometheus/api/v1/{path}"), &form, pairs.join("&")).await
}

/// `data` of a success.
pub(crate) async fn data(world: &World, path: &str, params: &[(&str, &str)]) -> Value {
    let body = get(world, path, params).await.ok();
    assert_eq!(body["status"], "success", "{body}");
    body["data"].clone()
}

/// `errorType` and `error` of a failure with this status.
async fn failure(world: &World, query: &str, status: u16) -> (String, String) {
    let reply = get(world, "query", &[("query", query), ("time", "1729900800")]).await;
    assert_eq!(reply.status, status, "{query}: {}", reply.text());
    let body = reply.json();
    assert_eq!(body["status"], "error", "{body}");
    (body["errorType"].as_str().unwrap().to_owned(), body["error"].as_str().unwrap().to_owned())
}

pub(crate) fn edit(second: i64, channel: Option<&str>, country: &str, user: &str, added: i64) -> Value {
    let time = chrono::DateTime::from_timestamp(BASE + second, 0).unwrap().to_rfc3339();
    json!({"time": time, "channel": channel, "country": country, "user": user, "added": added})
}

/// Minutes 0 to 9 of two channels, partly under batch; the last event has no channel.
async fn small() -> World {
    let mut world = World::new().await;
    for minute in 0..10 {
        world.append(0, &edit(minute * 60 + 5, Some("#en"), "DE", "u", minute));
        if minute % 2 == 0 {
            world.append(1, &edit(minute * 60 + 50, Some("#de"), "FR", "v", 100));
        }
    }
    for partition in 0..PARTITIONS {
        world.seal(partition).await;
    }
    world.batch(true).await;
    world.append(0, &edit(9 * 60 + 1, None, "DE", "w", 7));
    world.flush(0).await;
    world
}

#[tokio::test]
async fn grafana_saves_and_tests_by_one_plus_one() {
    let world = World::new().await;
    for reply in [
        get(&world, "query", &[("query", "1+1"), ("time", "1729900800.5")]).await,
        post(&world, "query", &[("query", "1+1"), ("time", "1729900800.5")]).await,
    ] {
        let body = reply.ok();
        assert_eq!(body["status"], "success");
        assert_eq!(body["data"], json!({"resultType": "scalar", "result": [1_729_900_800.5, "2"]}));
    }
    let build = data(&world, "status/buildinfo", &[]).await;
    assert!(build["version"].is_string() && build.get("features").is_none(), "{build}");
    assert_eq!(data(&world, "rules", &[]).await, json!({"groups": []}));
    assert_eq!(data(&world, "query_exemplars", &[("query", "x")]).await, json!([]));
    let metadata = data(&world, "metadata", &[]).await;
    assert_eq!(metadata["added_sum"][0]["type"], "counter");
    assert_eq!(metadata["added"][0]["type"], "gauge");
}

#[tokio::test]
async fn names_labels_and_values_are_listed_as_dashboards_ask_for_them() {
    let world = small().await;
    let names = data(&world, "label/__name__/values", &[]).await;
    let names: BTreeSet<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for name in
        ["added_count", "added_sum", "added_distinct_user", "added", "added_bucket", "price_sum", "capped_count"]
    {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    assert!(!names.contains("added_top_user"), "a list is no number");
    let labels = data(&world, "labels", &[("match[]", "added_sum")]).await;
    assert_eq!(labels, json!(["__name__", "channel", "country"]));
    assert_eq!(
        data(&world, "labels", &[("match[]", "added")]).await,
        json!(["__name__", "channel", "country", "quantile"])
    );
    let range = [("start", "1729900800"), ("end", "1729904400")];
    let values = data(&world, "label/channel/values", &range).await;
    assert_eq!(values, json!(["#de", "#en"]));
    let french = [range[0], range[1], ("match[]", "added_sum{country=\"FR\"}")];
    assert_eq!(data(&world, "label/channel/values", &french).await, json!(["#de"]));
    let elsewhere = [("start", "1629900800"), ("end", "1629904400")];
    assert_eq!(data(&world, "label/channel/values", &elsewhere).await, json!([]));
    assert_eq!(data(&world, "label/nothing/values", &range).await, json!([]));
    let series =
        data(&world, "series", &[range[0], range[1], ("match[]", "{__name__=~\"added_(sum|max)\",channel=~\"#d.*\"}")])
            .await;
    let of = |name: &str| json!({"__name__": name, "channel": "#de", "country": "FR"});
    assert_eq!(series, json!([of("added_max"), of("added_sum")]));
    let limited = get(&world, "label/channel/values", &[range[0], range[1], ("limit", "1")]).await.ok();
    assert_eq!((&limited["data"], limited["warnings"].as_array().unwrap().len()), (&json!(["#de"]), 1));
    assert_eq!(get(&world, "series", &[]).await.status, 400);
    let posted = post(&world, "series", &[range[0], range[1], ("match[]", "added_sum{channel=\"#de\"}")]).await.ok();
    assert_eq!(posted["data"], json!([of("added_sum")]));
    assert_eq!(
        post(&world, "labels", &[("match[]", "capped_count")]).await.ok()["data"],
        json!(["__name__", "channel"])
    );
}

#[tokio::test]
async fn a_sample_is_a_bucket_at_its_end_and_a_window_holds_whole_buckets() {
    let world = small().await;
    let at = |second: i64| (BASE + second).to_string();
    let value = async |query: &str, second: i64| {
        let data = data(&world, "query", &[("query", query), ("time", &at(second))]).await;
        data["result"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["value"][1].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let latest = "added_sum{channel=\"#en\"}";
    assert_eq!(value(latest, 59).await, Vec::<String>::new(), "the first bucket has not ended");
    assert_eq!(value(latest, 60).await, ["0"]);
    assert_eq!(value(latest, 600).await, ["9"]);
    assert_eq!(value(latest, 600 + 299).await, ["9"], "within the look back");
    assert_eq!(value(latest, 600 + 300).await, Vec::<String>::new());
    assert_eq!(value("increase(added_sum{channel=\"#en\"}[5m])", 600).await, ["35"], "5 + 6 + 7 + 8 + 9");
    assert_eq!(value("increase(added_sum{channel=\"#en\"}[5m])", 630).await, ["35"]);
    assert_eq!(value("increase(added_sum{channel=\"#en\"}[5m] offset 1m)", 600).await, ["30"]);
    assert_eq!(value("rate(added_count{channel=\"#en\"}[5m])", 600).await, ["0.016666666666666666"]);
    assert_eq!(value("sum(increase(added_count[10m]))", 600).await, ["16"]);
    assert_eq!(value("sum by (channel) (increase(added_count[10m]))", 600).await, ["1", "5", "10"], "no channel first");
    assert_eq!(value("increase(added_count{channel=\"\"}[10m])", 600).await, ["1"]);
    assert_eq!(value("count(added_count{channel!=\"\"})", 600).await, ["2"]);
    assert_eq!(value("added{quantile=\"0.9\",channel=\"#de\"}", 600).await, ["100"]);
    assert_eq!(value("added{channel=\"#de\"}", 600).await.len(), 3, "the usual ranks");
    assert_eq!(value("histogram_quantile(0.99, sum by (le) (rate(added_bucket[10m])))", 600).await, ["100"]);
    assert_eq!(value("topk(1, increase(added_sum[10m]))", 600).await, ["500"]);
    assert_eq!(value("sum(increase(added_sum[10m])) / sum(increase(added_count[10m])) > 2", 600).await, ["34.5"]);
    assert_eq!(value("absent(added_sum{channel=\"none\"})", 600).await, ["1"]);
    assert_eq!(value("increase(added_sum[10m]) and on (channel) added_max{country=\"FR\"}", 600).await, ["500"]);
    assert_eq!(value("nothing_of_the_kind", 600).await, Vec::<String>::new());
    assert_eq!(
        value("count({__name__=~\"added.*\",country=\"FR\"})", 600).await,
        ["10"],
        "three ranks, and no buckets"
    );
}

#[tokio::test]
async fn results_have_prometheus_shapes_and_prove_themselves() {
    let world = small().await;
    let range = [("start", "1729900800"), ("end", "1729901400"), ("step", "2m")];
    let params = |query| [("query", query), range[0], range[1], range[2]];
    let body =
        get(&world, "query_range", &params("sum by (channel) (increase(added_count{channel=\"#en\"}[2m]))")).await.ok();
    assert_eq!(body["data"]["resultType"], "matrix");
    let points: Vec<Value> = (1..=5).map(|n| json!([BASE + n * 120, "2"])).collect();
    assert_eq!(body["data"]["result"], json!([{"metric": {"channel": "#en"}, "values": points}]));
    let proof = &body["lamina"][0];
    assert_eq!((&proof["metric"], &proof["complete"]), (&json!("added"), &json!(true)));
    assert_eq!(proof["speed"]["positions"], json!({"0": 11, "1": 5}));
    assert!(body.get("warnings").is_none());
    let scalars = post(&world, "query_range", &params("time() * 2")).await.ok();
    assert_eq!(scalars["data"]["result"][0]["metric"], json!({}));
    assert_eq!(scalars["data"]["result"][0]["values"][0], json!([BASE, (BASE * 2).to_string()]));
    let named = data(&world, "query", &[("query", "added_max{country=\"FR\"}"), ("time", "1729901400")]).await;
    assert_eq!(named["result"][0]["metric"], json!({"__name__": "added_max", "channel": "#de", "country": "FR"}));
    let text = data(&world, "query", &[("query", "\"a\\\"b\""), ("time", "0")]).await;
    assert_eq!(text, json!({"resultType": "string", "result": [0, "a\"b"]}));
    for (query, expected) in [("1/0", "+Inf"), ("-1/0", "-Inf"), ("0/0", "NaN"), ("1e21", "1000000000000000000000")] {
        assert_eq!(data(&world, "query", &[("query", query), ("time", "0")]).await["result"][1], expected);
    }
}

#[tokio::test]
async fn what_cannot_be_computed_is_refused_by_name() {
    let world = small().await;
    for (query, named) in [
        ("rate(added_max[5m])", "added_max"),
        ("added_bucket", "histogram_quantile"),
        ("histogram_quantile(0.5, rate(added_count[5m]))", "added_count"),
        ("deriv(added_max[5m])", "deriv"),
        ("max_over_time(added_max[5m:1m])", "subquery"),
        ("added_sum * on(channel) group_left added_count", "group_left"),
        ("increase({__name__=~\"added_(sum|count)\"}[5m])", "same labels"),
    ] {
        let reply = get(&world, "query", &[("query", query), ("time", "1729901400")]).await;
        assert_eq!(reply.status, 422, "{query}: {}", reply.text());
        let body = reply.json();
        assert_eq!(body["errorType"], "execution", "{query}");
        assert!(body["error"].as_str().unwrap().contains(named), "{query}: {body}");
    }
    for query in ["added_sum[5m]", "1 +", "sum(", "{}", "rate(added_sum)", "1 == 1", "added_sum{a=~\"(\"}", ""] {
        let (kind, _) = failure(&world, query, 400).await;
        assert_eq!(kind, "bad_data", "{query}");
    }
    let range = |start: &'static str, end: &'static str, step: &'static str| {
        [("query", "1"), ("start", start), ("end", end), ("step", step)]
    };
    for params in
        [range("1", "0", "1"), range("0", "1e9", "1"), range("0", "1", "0"), range("x", "1", "1"), range("0", "1", "")]
    {
        let reply = get(&world, "query_range", &params).await;
        assert_eq!((reply.status.as_u16(), reply.json()["errorType"].clone()), (400, json!("bad_data")), "{params:?}");
    }
    let reply =
        world.send(Method::POST, "/prometheus/api/v1/query", &[("content-type", "application/json")], "{}").await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn an_answer_that_is_not_complete_says_so() {
    let mut world = small().await;
    world.append(0, &edit(9 * 60 + 2, Some("#en"), "DE", "w", 7));
    world.flush(0).await;
    world.set_now(1_100 * DAY);
    let body = get(&world, "query", &[("query", "sum(increase(added_count[10m]))"), ("time", "1729901400")]).await.ok();
    assert_eq!(body["lamina"][0]["complete"], false, "{body}");
    assert!(body["warnings"][0].as_str().unwrap().contains("complete"), "{body}");
}

/// Parts that hostile queries are made of.
const PARTS: &[&str] = &[
    "added_sum",
    "added_count",
    "added_bucket",
    "added",
    "capped_count",
    "{",
    "}",
    "(",
    ")",
    "[5m]",
    "[1y]",
    "[1s:1s]",
    "[",
    "]",
    "channel",
    "=",
    "!=",
    "=~",
    "!~",
    "\"a\"",
    "\".*\"",
    "\"(\"",
    "\"\\\\\"",
    "'",
    "\"",
    "`x`",
    ",",
    "sum",
    "max",
    "topk",
    "(5,",
    "by",
    "without",
    "(channel)",
    "rate(",
    "increase(",
    "histogram_quantile(",
    "0.9,",
    "quantile_over_time(",
    "offset",
    "5m",
    "-1h",
    "@",
    "start()",
    "end()",
    "1e308",
    "NaN",
    "Inf",
    "-",
    "+",
    "*",
    "/",
    "%",
    "^",
    "==",
    "bool",
    "and",
    "or",
    "unless",
    "on",
    "ignoring",
    "group_left",
    "atan2",
    "time()",
    "vector(1)",
    "scalar(",
    "absent(",
    "label_replace(",
    "\u{1F600}",
    "\u{0}",
    "#x\n",
    "0x1F",
    "1_000",
    "le",
    "__name__",
    "quantile",
    "=\"0.5\"",
    "sort(",
    "round(",
    ", 0)",
    "clamp(",
    "9999999999999999999",
    "[9999999999y]",
    "[1ms]",
    "offset 9999999y",
    "count_values",
    "(\"x\",",
    "limitk",
    "stddev_over_time(",
];

fn hostile() -> impl Strategy<Value = String> {
    let parts = prop::collection::vec(prop::sample::select(PARTS), 1..14).prop_map(|parts| parts.join(" "));
    let wrapped = (prop::sample::select(PARTS), prop::sample::select(PARTS))
        .prop_map(|(a, b)| format!("sum by (channel) (increase(added_sum{{channel=~\"{a}\"}}[5m])) {b}"));
    let repeated = (prop::sample::select(PARTS), 1..3_000_usize).prop_map(|(part, times)| part.repeat(times));
    prop_oneof![6 => parts, 2 => wrapped, 1 => repeated, 1 => "\\PC{0,60}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn no_query_makes_the_server_fail(queries in prop::collection::vec(hostile(), 40), step in prop::sample::select(vec!["1", "60", "1h", "0.001", "1e9"])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = small().await;
            for query in &queries {
                let params = [("query", query.as_str()), ("start", "1729900800"), ("end", "1729901400"), ("step", step)];
                let listed = [("match[]", query.as_str()), ("limit", "5")];
                for reply in [
                    post(&world, "query_range", &params).await,
                    post(&world, "query", &params).await,
                    post(&world, "series", &listed).await,
                    get(&world, "query", &params[..1].iter().copied().chain([("time", "1e10")]).collect::<Vec<_>>()).await,
                ] {
                    prop_assert!(reply.status.as_u16() < 500, "{}: {}", query, reply.text());
                    // A query string that is too long is refused before anything else.
                    if reply.status != 414 {
                        let body = reply.json();
                        let expected = if reply.status == 200 { "success" } else { "error" };
                        prop_assert_eq!(&body["status"], expected, "{}: {}", query, reply.text());
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn windows_and_grids_are_bounded() {
    let world = small().await;
    let times = [("start", "1729900800"), ("end", "1729911799"), ("step", "1")];
    let long = get(&world, "query_range", &[("query", "increase(added_sum[1y])"), times[0], times[1], times[2]]).await;
    assert_eq!(long.status, 200, "{}", long.text());
    let wide: String = (0..20).map(|n| format!("vector({n}) + ")).collect::<String>() + "vector(0)";
    let reply = get(&world, "query_range", &[("query", &wide), times[0], times[1], times[2]]).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let wide: String = (0..80).map(|n| format!("vector({n}) + ")).collect::<String>() + "vector(0)";
    let reply = get(&world, "query_range", &[("query", &wide), times[0], times[1], times[2]]).await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["errorType"].clone()),
        (422, json!("execution")),
        "{}",
        reply.text()
    );
}
