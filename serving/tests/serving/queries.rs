//! The rules of queries, one by one.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::world::{DAY, HOUR, MINUTE, World, keys};

const FROM: (&str, &str) = ("from", "2015-09-12T00:00:00Z");
const TO: (&str, &str) = ("to", "2015-09-13T00:00:00Z");

fn edit(time: &str, channel: Option<&str>, country: &str, user: &str, added: i64) -> Value {
    json!({"time": format!("2015-09-12T{time}Z"), "channel": channel, "country": country, "user": user, "added": added,
        "price": "10.10"})
}

/// Six events: some under batch, some in a sealed epoch, some in the open one; one without a channel.
async fn small() -> World {
    let mut world = World::new().await;
    world.append(0, &edit("00:10:05", Some("#en"), "DE", "a", 10));
    world.append(0, &edit("01:20:00", Some("#en"), "FR", "b", 20));
    world.append(1, &edit("00:10:30", Some("#de"), "DE", "a", 5));
    world.seal(0).await;
    world.seal(1).await;
    world.batch(true).await;
    world.append(0, &edit("00:10:59", Some("#en"), "DE", "c", 1));
    world.seal(0).await;
    world.append(0, &edit("03:00:00", None, "DE", "c", 7));
    world.append(1, &edit("00:11:00", Some("#de"), "DE", "a", 2));
    world.flush(0).await;
    world.flush(1).await;
    world
}

fn points(body: &Value, series: usize) -> &Vec<Value> {
    body["series"][series]["points"].as_array().unwrap()
}

#[tokio::test]
async fn an_answer_has_the_shape_and_the_order_of_keys_that_the_contract_shows() {
    let world = small().await;
    let params = [FROM, TO, ("step", "1h"), ("aggregate", "count,sum,p95"), ("group_by", "channel")];
    let body = world.query(&params).await.ok();
    assert_eq!(keys(&body), ["metric", "version", "from", "to", "step", "series", "meta"]);
    assert_eq!((&body["metric"], &body["version"], &body["step"]), (&json!("added"), &json!(1), &json!("1h")));
    assert_eq!((&body["from"], &body["to"]), (&json!(FROM.1), &json!(TO.1)));
    assert_eq!(body["series"].as_array().unwrap().len(), 3);
    assert_eq!(keys(&body["series"][0]), ["dimensions", "points"]);
    assert_eq!(body["series"][0]["dimensions"], json!({"channel": "#de"}), "series are in the order of their values");
    assert_eq!(body["series"][2]["dimensions"], json!({"channel": null}), "a missing dimension is null, and last");
    assert_eq!(keys(&points(&body, 0)[0]), ["start", "count", "sum", "p95"]);
    assert_eq!(points(&body, 1)[0]["start"], "2015-09-12T00:00:00Z");
    assert_eq!((&points(&body, 1)[0]["count"], &points(&body, 1)[0]["sum"]), (&json!(2), &json!(11)));
    let meta = &body["meta"];
    assert_eq!(keys(meta), ["complete", "missing", "batch", "speed", "approximate"]);
    assert_eq!((&meta["complete"], &meta["missing"]), (&json!(true), &json!([])));
    assert_eq!(keys(&meta["batch"]), ["generation", "through", "cut"]);
    assert_eq!((&meta["batch"]["generation"], &meta["batch"]["cut"]), (&json!(1), &json!({"0": 2, "1": 1})));
    assert_eq!(keys(&meta["speed"]), ["watermark", "positions"]);
    assert_eq!(meta["speed"]["positions"], json!({"0": 4, "1": 2}), "the next offset of each partition");
    assert_eq!(meta["approximate"], json!({"p95": {"relative_error": 0.01}}));
}

#[tokio::test]
async fn the_keys_of_a_point_are_the_aggregates_as_they_were_asked() {
    let world = small().await;
    let asked = "p99.9,distinct(user),top(user, 2),avg,min,max,last";
    let body = world.query(&[FROM, TO, ("aggregate", asked)]).await.ok();
    let point = &points(&body, 0)[0];
    assert_eq!(keys(point), ["start", "p99.9", "distinct(user)", "top(user, 2)", "avg", "min", "max", "last"]);
    assert_eq!(point["distinct(user)"], 3);
    assert_eq!(keys(&point["top(user, 2)"][0]), ["value", "count", "error"]);
    assert_eq!((&point["min"], &point["max"], &point["last"]), (&json!(1), &json!(20), &json!(7)));
    let all = world.query(&[FROM, TO]).await.ok();
    let declared =
        ["start", "count", "sum", "min", "max", "avg", "last", "distinct(user)", "p50", "p95", "p99", "top(user)"];
    assert_eq!(keys(&points(&all, 0)[0]), declared);
}

#[tokio::test]
async fn without_group_by_there_is_one_series_with_empty_dimensions_and_without_step_one_bucket() {
    let world = small().await;
    let body = world.query(&[FROM, TO, ("aggregate", "count,sum")]).await.ok();
    assert_eq!(body["step"], Value::Null);
    assert_eq!(body["series"], json!([{"dimensions": {}, "points": [{"start": FROM.1, "count": 6, "sum": 45}]}]));
}

#[tokio::test]
async fn a_known_metric_without_data_is_200_with_empty_points() {
    let world = small().await;
    let empty = json!([{"dimensions": {}, "points": []}]);
    assert_eq!(world.query(&[("from", "0"), ("to", "60000")]).await.ok()["series"], empty);
    let body = world.query_of("n", &[("from", "0"), ("to", "60000")]).await.ok();
    assert_eq!(body["series"], empty, "its topic does not exist yet");
    assert_eq!((&body["meta"]["complete"], &body["meta"]["speed"]["positions"]), (&json!(true), &json!({})));
    let grouped = world.query(&[("from", "0"), ("to", "60000"), ("group_by", "channel")]).await.ok();
    assert_eq!(grouped["series"], json!([]));
}

#[tokio::test]
async fn from_and_to_are_widened_to_the_grain_and_the_answer_says_to_which() {
    let world = small().await;
    let params = [("from", "2015-09-12T00:10:06Z"), ("to", "2015-09-12T00:10:07.5Z"), ("aggregate", "count")];
    let body = world.query(&params).await.ok();
    assert_eq!((&body["from"], &body["to"]), (&json!("2015-09-12T00:10:00Z"), &json!("2015-09-12T00:11:00Z")));
    assert_eq!(points(&body, 0)[0]["count"], 3);
    let (code, detail) = world.query(&[params[0], params[1], ("align", "strict")]).await.problem(400);
    assert_eq!(code, "bad_parameter");
    assert!(
        detail.starts_with("`from`") && detail.contains("2015-09-12T00:10:00Z and 2015-09-12T00:11:00Z"),
        "{detail}"
    );
    let (_, detail) = world.query(&[FROM, params[1], ("align", "strict")]).await.problem(400);
    assert!(detail.starts_with("`to`"), "{detail}");
    world.query(&[FROM, TO, ("align", "strict")]).await.ok();
}

#[tokio::test]
async fn a_step_must_be_a_multiple_of_the_grain() {
    let world = small().await;
    for (step, nearest) in [("90s", "1m or 2m"), ("10s", "1m"), ("61s", "1m or 2m")] {
        let (_, detail) = world.query(&[FROM, TO, ("step", step)]).await.problem(400);
        assert!(detail.starts_with("`step`") && detail.contains(nearest), "{detail}");
    }
}

#[tokio::test]
async fn buckets_lie_on_multiples_of_the_step_and_the_outer_two_are_clipped() {
    let world = small().await;
    let params = [("from", "2015-09-12T00:10:00Z"), ("to", "2015-09-12T01:30:00Z"), ("step", "1h"), ("fill", "zero")];
    let body = world.query(&[&params[..], &[("aggregate", "count")]].concat()).await.ok();
    let expected =
        json!([{"start": "2015-09-12T00:10:00Z", "count": 4}, {"start": "2015-09-12T01:00:00Z", "count": 1}]);
    assert_eq!(body["series"][0]["points"], expected);
}

#[tokio::test]
async fn days_of_a_zone_begin_at_its_midnight_and_what_rollups_cannot_hit_is_422() {
    let world = small().await;
    let range = [("from", "2015-09-11T22:00:00Z"), ("to", "2015-09-12T22:00:00Z"), ("step", "1d")];
    let body = world.query(&[&range[..], &[("tz", "Europe/Berlin"), ("aggregate", "count")]].concat()).await.ok();
    assert_eq!(body["tz"], "Europe/Berlin");
    assert_eq!(body["series"][0]["points"], json!([{"start": "2015-09-11T22:00:00Z", "count": 6}]));
    let kathmandu =
        world.query(&[FROM, TO, ("step", "1d"), ("tz", "Asia/Kathmandu"), ("aggregate", "count")]).await.ok();
    let starts: Vec<&Value> = points(&kathmandu, 0).iter().map(|point| &point["start"]).collect();
    assert_eq!(starts, ["2015-09-12T00:00:00Z"], "18:15 UTC the next local day begins, in which nothing happened");
    // Local mean time was 53 minutes and 28 seconds ahead: no minute in UTC begins there.
    let old =
        [("from", "1880-01-01T00:00:00Z"), ("to", "1881-01-01T00:00:00Z"), ("step", "1d"), ("tz", "Europe/Berlin")];
    let (code, detail) = world.query(&old).await.problem(422);
    assert!(code == "unaligned" && detail.contains("1m, 1h, 1d"), "{detail}");
}

#[tokio::test]
async fn a_filter_takes_conditions_over_dimensions_and_nothing_else() {
    let world = small().await;
    for (filter, count) in [
        ("channel = '#en'", 3),
        ("channel IN ('#en', '#de') AND NOT country = 'FR'", 4),
        ("channel LIKE '#d%' OR channel IS NULL", 3),
        ("country BETWEEN 'E' AND 'G'", 1),
        ("channel <> '#en'", 2),
    ] {
        let body = world.query(&[FROM, TO, ("where", filter), ("aggregate", "count")]).await.ok();
        assert_eq!(points(&body, 0)[0]["count"], count, "{filter}");
    }
    for filter in ["user = 'a'", "upper(channel) = 'X'", "channel", "", "channel = '#en' OR", "1; DROP TABLE x"] {
        let (code, detail) = world.query(&[FROM, TO, ("where", filter)]).await.problem(400);
        assert!(code == "bad_parameter" && detail.starts_with("`where`"), "{filter}: {detail}");
    }
}

#[tokio::test]
async fn unknown_names_are_refused_with_what_there_is() {
    let world = small().await;
    let (code, detail) = world.query_of("nope", &[FROM, TO]).await.problem(404);
    // Which metrics there are is for those to know who see them: it is asked for elsewhere.
    assert!(code == "unknown_metric" && detail.contains("GET /v1/metrics") && !detail.contains("added"), "{detail}");
    for (name, value, allowed) in [
        ("group_by", "channle", "channel, country"),
        ("aggregate", "median", "distinct(user)"),
        ("order_by", "nope desc", "distinct(user)"),
        ("order_by", "channel", "count"),
        ("unknown", "1", "group_by"),
    ] {
        let (_, detail) = world.query(&[FROM, TO, (name, value)]).await.problem(400);
        assert!(detail.starts_with(&format!("`{name}`")) && detail.contains(allowed), "{detail}");
    }
}

#[tokio::test]
async fn order_is_over_the_whole_range_and_limit_says_that_it_truncated() {
    let world = small().await;
    let by = [FROM, TO, ("step", "1h"), ("group_by", "channel"), ("aggregate", "count")];
    let names = |body: &Value| {
        let series = body["series"].as_array().unwrap();
        series.iter().map(|series| series["dimensions"]["channel"].clone()).collect::<Vec<_>>()
    };
    let body = world.query(&[&by[..], &[("order_by", "sum desc")]].concat()).await.ok();
    assert_eq!(names(&body), [json!("#en"), json!("#de"), Value::Null]);
    assert!(body["meta"].get("truncated").is_none());
    let body = world.query(&[&by[..], &[("order_by", "sum"), ("limit", "2")]].concat()).await.ok();
    // 7 of the channel without a name and 7 of #de: the tie is broken by value, null last.
    assert_eq!(names(&body), [json!("#de"), Value::Null]);
    assert_eq!(body["meta"]["truncated"], true);
    let body = world.query(&[&by[..], &[("order_by", "channel desc"), ("limit", "3")]].concat()).await.ok();
    assert_eq!(names(&body), [json!("#en"), json!("#de"), Value::Null]);
    assert_eq!(body["meta"]["truncated"], false);
}

#[tokio::test]
async fn empty_buckets_are_left_out_unless_fill_says_otherwise() {
    let world = small().await;
    let range = [FROM, ("to", "2015-09-12T05:00:00Z"), ("step", "1h"), ("aggregate", "sum,count")];
    let sums = |body: &Value| points(body, 0).iter().map(|point| point["sum"].clone()).collect::<Vec<_>>();
    assert_eq!(sums(&world.query(&range).await.ok()), [json!(18), json!(20), json!(7)]);
    for (fill, expected) in [
        ("null", [json!(18), json!(20), Value::Null, json!(7), Value::Null]),
        ("zero", [json!(18), json!(20), json!(0), json!(7), json!(0)]),
        ("previous", [json!(18), json!(20), json!(20), json!(7), json!(7)]),
        ("linear", [json!(18), json!(20), json!(13.5), json!(7), Value::Null]),
    ] {
        let body = world.query(&[&range[..], &[("fill", fill)]].concat()).await.ok();
        assert_eq!(sums(&body), expected, "{fill}");
    }
    let (code, _) = world.query(&[("from", "0"), TO, ("step", "1m"), ("fill", "null")]).await.problem(400);
    assert_eq!(code, "too_many_points");
}

#[tokio::test]
async fn decimals_keep_their_scale_and_numbers_may_be_strings() {
    let world = small().await;
    let params = [FROM, TO, ("aggregate", "sum,count")];
    let reply = world.query_of("price", &params).await;
    assert!(reply.text().contains(r#""sum":60.60,"count":6"#), "{}", reply.text());
    let reply = world.query_of("price", &[params[0], params[1], params[2], ("numbers", "string")]).await;
    assert!(reply.text().contains(r#""sum":"60.60","count":6"#), "{}", reply.text());
}

#[tokio::test]
async fn one_layer_answers_only_its_part() {
    let world = small().await;
    let count = async |layer| {
        let body = world.query(&[FROM, TO, ("aggregate", "count"), ("layer", layer)]).await.ok();
        (points(&body, 0)[0]["count"].clone(), body["meta"]["speed"]["positions"].clone())
    };
    assert_eq!(count("batch").await, (json!(3), json!({"0": 2, "1": 1})));
    assert_eq!(count("speed").await, (json!(3), json!({"0": 4, "1": 2})));
    assert_eq!(count("merged").await, (json!(6), json!({"0": 4, "1": 2})));
}

#[tokio::test]
async fn the_batch_layer_is_one_prefix_while_a_run_is_under_way() {
    let mut world = small().await;
    for partition in 0..2 {
        world.seal(partition).await;
    }
    // Half of the chunks reach further than what is published.
    world.batch(false).await;
    for group in ["", "channel"] {
        let body = world.query(&[FROM, TO, ("aggregate", "count"), ("group_by", group), ("layer", "batch")]).await.ok();
        let counts =
            (0..body["series"].as_array().unwrap().len()).map(|at| points(&body, at)[0]["count"].as_u64().unwrap());
        let positions = body["meta"]["speed"]["positions"].as_object().unwrap();
        let folded: u64 = positions.values().map(|position| position.as_u64().unwrap()).sum();
        assert_eq!(counts.sum::<u64>(), folded, "{body}");
    }
}

#[tokio::test]
async fn a_view_that_is_published_and_trimmed_between_two_reads_is_answered_whole() {
    let mut world = World::new().await;
    for partition in 0..2 {
        world.append(partition, &edit("00:10:05", Some("#en"), "DE", "a", 10));
        world.seal(partition).await;
    }
    let all = [FROM, TO, ("aggregate", "count")];
    // Remembers that batch had nothing yet.
    let before = world.query(&all).await.ok();
    world.batch(true).await;
    world.store.trim();
    // The query's own look at the view, and that of its first snapshot.
    world.store.early.store(2, Ordering::SeqCst);
    let after = world.query(&all).await.ok();
    assert_eq!(world.store.early.load(Ordering::SeqCst), 0);
    assert_eq!(after["series"], before["series"], "{after}");
    assert_eq!(after["meta"]["complete"], true, "{after}");
}

#[tokio::test]
async fn an_overflow_is_422_for_the_sum_alone() {
    let mut world = World::new().await;
    let big = "9".repeat(38);
    for _ in 0..2 {
        world.append(0, &json!({"time": "2015-09-12T00:00:00Z", "big": big}));
    }
    world.flush(0).await;
    let (code, _) = world.query_of("big", &[FROM, TO, ("aggregate", "sum")]).await.problem(422);
    assert_eq!(code, "overflow");
    let body = world.query_of("big", &[FROM, TO, ("aggregate", "count,max")]).await;
    assert!(body.text().contains(&format!(r#""count":2,"max":{big}"#)), "{}", body.text());
}

#[tokio::test]
async fn what_is_missing_is_said_and_what_cannot_be_read_is_503() {
    let mut world = small().await;
    let now = 2_000 * DAY;
    world.set_now(now);
    let body = world.query(&[FROM, TO, ("aggregate", "count")]).await.ok();
    assert_eq!(body["meta"]["complete"], false, "the chunks may have expired");
    assert_eq!(keys(&body["meta"]["missing"][0]), ["partition", "from", "to", "why"]);
    assert_eq!(body["meta"]["missing"][0]["why"], "expired");
    let left = body["series"].clone();
    world.store.lose_speed();
    let body = world.query(&[FROM, TO, ("aggregate", "count")]).await.ok();
    assert_eq!((&body["meta"]["complete"], &body["series"]), (&json!(false), &left), "whether chunks are left or not");
    let fresh = small().await;
    fresh.store.lose_speed();
    let reply = fresh.query(&[FROM, TO, ("aggregate", "count")]).await;
    let (code, _) = reply.problem(503);
    assert_eq!(code, "chunk_missing");
    assert!(reply.headers.contains_key("retry-after"));
    for (store, log) in [(true, false), (false, true)] {
        let world = small().await;
        world.store.down.store(store, std::sync::atomic::Ordering::SeqCst);
        world.log.down.store(log, std::sync::atomic::Ordering::SeqCst);
        let reply = world.query(&[FROM, TO]).await;
        let (code, _) = reply.problem(503);
        assert_eq!(code, if store { "store_unavailable" } else { "log_unavailable" });
        assert!(reply.headers.contains_key("retry-after"));
    }
}

#[tokio::test]
async fn below_the_horizon_nothing_is_answered_and_the_answer_says_where_it_begins() {
    let world = small().await;
    let horizon = 16_690 * DAY + HOUR;
    world.edit_views("added", |state| state.raise_horizon(MINUTE, horizon)).await;
    let fine = [FROM, ("to", "2015-09-12T02:30:00Z"), ("aggregate", "count")];
    let body = world.query(&fine).await.ok();
    assert_eq!(body["meta"]["retained_from"], "2015-09-12T01:00:00Z");
    assert_eq!(body["series"][0]["points"], json!([{"start": "2015-09-12T01:00:00Z", "count": 1}]));
    let coarse = world.query(&[FROM, TO, ("aggregate", "count")]).await.ok();
    assert!(coarse["meta"].get("retained_from").is_none(), "a coarser rollup is kept longer");
    assert_eq!(points(&coarse, 0)[0]["count"], 6);
}

#[tokio::test]
async fn a_view_that_the_open_epoch_does_not_fold_is_an_error_and_not_empty() {
    let mut world = World::new().await;
    world.append(0, &edit("00:00:00", Some("a"), "DE", "u", 1));
    world.flush(0).await;
    world.query(&[FROM, TO]).await.ok();
    world.fold_other_views(0).await;
    world.query(&[FROM, TO]).await.problem(503);
}

#[tokio::test]
async fn what_the_cap_left_without_a_series_is_said() {
    let mut world = World::new().await;
    for (channel, added) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        world.append(0, &edit("00:00:00", Some(channel), "DE", "u", added));
    }
    world.flush(0).await;
    let body = world.query_of("capped", &[FROM, TO, ("group_by", "channel")]).await.ok();
    assert_eq!(body["meta"]["overflow"], json!({"events": 2}));
    assert_eq!(body["series"][0]["dimensions"]["channel"], "$overflow");
    assert_eq!(body["meta"]["complete"], true, "every event is in some series");
    let body = world.query_of("capped", &[FROM, TO, ("where", "channel = 'a'")]).await.ok();
    assert_eq!(body["meta"]["complete"], false, "whether the filter takes them is not known");
}

#[tokio::test]
async fn too_many_series_are_refused_and_never_cut() {
    let mut world = World::new().await;
    for at in 0..10_001 {
        world.append(0, &edit("00:00:00", Some(&format!("c{at}")), "DE", "u", at));
    }
    world.flush(0).await;
    let by = [FROM, TO, ("group_by", "channel"), ("aggregate", "sum")];
    let (code, detail) = world.query(&by).await.problem(400);
    assert!(code == "too_many_series" && detail.contains("limit"), "{detail}");
    let body = world.query(&[&by[..], &[("order_by", "sum desc"), ("limit", "3")]].concat()).await.ok();
    assert_eq!(body["series"][0]["points"][0]["sum"], 10_000);
    assert_eq!((body["series"].as_array().unwrap().len(), &body["meta"]["truncated"]), (3, &json!(true)));
}
