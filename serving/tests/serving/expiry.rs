//! Rules of expiry: what an answer leaves out, how it says so, and how it gets around it.

use std::sync::atomic::Ordering;

use chrono::DateTime;
use lamina_core::Micros;
use lamina_serving::Config;
use serde_json::{Value, json};

use crate::world::{DAY, DEFINITIONS, HOUR, MINUTE, World};

const RULED: &str = r#"
[metric.ruled]
source = "edits"
value = "added"
dimensions = ["channel", "country", "user"]
groupings = [["channel", "country"], ["channel", "user"], ["channel"], ["country"]]
aggregates = ["count", "sum", "min", "max"]
grain = "1m"
rollups = ["1h", "1d"]
[[metric.ruled.expire]]
where = "channel = 'a'"
after = "30d"
[[metric.ruled.expire]]
where = "country <> 'DE' AND channel IN ('a', 'b')"
after = "20d"
"#;

const RULES: [&str; 2] = ["channel = 'a'", "country <> 'DE' AND channel IN ('a', 'b')"];

/// The same in other words.
pub(crate) fn takes(rule: usize, channel: &str, country: &str) -> bool {
    match rule {
        0 => channel == "a",
        _ => country != "DE" && channel != "c",
    }
}

pub(crate) async fn world() -> World {
    World::over(&format!("{DEFINITIONS}{RULED}"), Config::default()).await
}

/// As batch does, in the views that the rule concerns.
pub(crate) async fn raise(world: &World, rule: usize, width: Micros, to: Micros) {
    let metric = &world.catalog.metrics["ruled"];
    world
        .edit_views_of("ruled", |view, state| {
            if metric.expire[rule].concerns(view) {
                state.raise_rule_horizon(width, rule, to);
            }
        })
        .await;
}

/// The rules that an answer names, with where their series begin.
pub(crate) fn named(meta: &Value) -> Vec<(usize, Micros)> {
    let one = |named: &Value| {
        let rule = RULES.iter().position(|rule| named["where"] == *rule).unwrap();
        let from = DateTime::parse_from_rfc3339(named["retained_from"].as_str().unwrap()).unwrap();
        (rule, from.timestamp_micros())
    };
    meta["expired"].as_array().into_iter().flatten().map(one).collect()
}

/// 2015-09-12T00:00:00Z.
const MIDNIGHT: Micros = 16_690 * DAY;
const FROM: (&str, &str) = ("from", "2015-09-12T00:00:00Z");
const TO: (&str, &str) = ("to", "2015-09-12T03:00:00Z");

/// In each of three hours an event of each channel and country: the first under batch, the second sealed, the third open.
async fn small() -> World {
    let mut world = world().await;
    for hour in 0..3 {
        for (channel, country) in [("a", "DE"), ("a", "FR"), ("b", "DE"), ("b", "FR")] {
            let time = format!("2015-09-12T0{hour}:10:00Z");
            world.append(0, &json!({"time": time, "channel": channel, "country": country, "user": "u", "added": 1}));
        }
        match hour {
            0 => {
                world.seal(0).await;
                world.batch(true).await;
            }
            1 => world.seal(0).await,
            _ => world.flush(0).await,
        }
    }
    world
}

async fn counts(world: &World, more: &[(&str, &str)]) -> (Vec<(String, Vec<i64>)>, Value) {
    let body = world.query_of("ruled", &[&[FROM, TO, ("aggregate", "count")], more].concat()).await.ok();
    let series = |one: &Value| {
        let points = one["points"].as_array().unwrap().iter();
        (one["dimensions"].to_string(), points.map(|point| point["count"].as_i64().unwrap()).collect())
    };
    (body["series"].as_array().unwrap().iter().map(series).collect(), body["meta"].clone())
}

fn rows(rows: &[(&str, &[i64])]) -> Vec<(String, Vec<i64>)> {
    rows.iter().map(|(dimensions, counts)| ((*dimensions).to_owned(), counts.to_vec())).collect()
}

#[tokio::test]
async fn matching_series_are_left_out_of_every_layer_and_the_answer_says_from_when_on_they_are_not() {
    let world = small().await;
    for width in [MINUTE, HOUR] {
        raise(&world, 0, width, MIDNIGHT + 2 * HOUR).await;
        raise(&world, 1, width, MIDNIGHT + HOUR).await;
    }
    let both = json!([
        {"where": RULES[0], "retained_from": "2015-09-12T02:00:00Z"},
        {"where": RULES[1], "retained_from": "2015-09-12T01:00:00Z"},
    ]);
    let by = [("group_by", "channel,country"), ("step", "1h")];
    let (series, meta) = counts(&world, &by).await;
    let (a_de, a_fr) = (r#"{"channel":"a","country":"DE"}"#, r#"{"channel":"a","country":"FR"}"#);
    let (b_de, b_fr) = (r#"{"channel":"b","country":"DE"}"#, r#"{"channel":"b","country":"FR"}"#);
    assert_eq!(series, rows(&[(a_de, &[1]), (a_fr, &[1]), (b_de, &[1, 1, 1]), (b_fr, &[1, 1])]));
    assert_eq!((&meta["expired"], &meta["complete"]), (&both, &json!(true)));
    let (series, meta) = counts(&world, &[&by[..], &[("layer", "batch")]].concat()).await;
    assert_eq!((series, &meta["expired"]), (rows(&[(b_de, &[1])]), &both));
    let (series, meta) = counts(&world, &[&by[..], &[("layer", "speed")]].concat()).await;
    assert_eq!(
        (series, &meta["expired"]),
        (rows(&[(a_de, &[1]), (a_fr, &[1]), (b_de, &[1, 1]), (b_fr, &[1, 1])]), &both)
    );

    let (series, meta) = counts(&world, &[("group_by", "channel")]).await;
    assert_eq!(series, rows(&[(r#"{"channel":"a"}"#, &[2]), (r#"{"channel":"b"}"#, &[6])]), "the view has no country");
    assert_eq!(meta["expired"], json!([both[0]]));
    let (series, meta) = counts(&world, &[("group_by", "country")]).await;
    assert_eq!(series, rows(&[(r#"{"country":"DE"}"#, &[6]), (r#"{"country":"FR"}"#, &[6])]), "nor a channel");
    assert!(meta.get("expired").is_none());
    let (series, meta) = counts(&world, &[]).await;
    assert_eq!((series, meta.get("expired")), (rows(&[("{}", &[12])]), None), "the total is nobody's");
}

#[tokio::test]
async fn a_rule_is_named_unless_the_filter_shows_that_it_takes_nothing_of_the_answer() {
    let world = small().await;
    raise(&world, 0, MINUTE, MIDNIGHT + 2 * HOUR).await;
    raise(&world, 0, HOUR, MIDNIGHT + 2 * HOUR).await;
    for (filter, is_named) in [
        ("channel = 'a'", true),
        ("channel = 'b'", false),
        ("channel IN ('b', 'c') AND country = 'DE'", false),
        ("channel <> 'a'", true),
        ("country = 'DE'", false),
        ("country = 'DE' AND channel IS NOT NULL", true),
    ] {
        let (_, meta) = counts(&world, &[("where", filter)]).await;
        assert_eq!(meta.get("expired").is_some(), is_named, "{filter}");
    }
    let recent = [("from", "2015-09-12T02:00:00Z"), TO, ("group_by", "channel")];
    let body = world.query_of("ruled", &recent).await.ok();
    assert!(body["meta"].get("expired").is_none(), "the range begins at the horizon");
}

#[tokio::test]
async fn what_no_rule_cuts_is_preferred() {
    let world = small().await;
    raise(&world, 0, HOUR, MIDNIGHT + 2 * HOUR).await;
    let (series, meta) = counts(&world, &[("group_by", "channel")]).await;
    assert_eq!(series[0].1, [6], "a finer width is whole");
    assert!(meta.get("expired").is_none());
    raise(&world, 0, MINUTE, MIDNIGHT + HOUR).await;
    let (series, meta) = counts(&world, &[("group_by", "channel")]).await;
    assert_eq!(
        (&series[0].1, &meta["expired"][0]["retained_from"]),
        (&vec![4], &json!("2015-09-12T01:00:00Z")),
        "or less cut"
    );
    let (series, _) = counts(&world, &[("group_by", "country"), ("where", "channel = 'b'")]).await;
    assert_eq!(series[0].1, [3]);

    // Of two views that hold the channel, one lacks the country that the rule is about.
    let definitions = format!("{DEFINITIONS}{RULED}").replace(r#", ["channel"], ["country"]"#, "");
    let definitions = definitions.replace(RULES[0], "user = 'nobody'");
    let mut world = World::over(&definitions, Config::default()).await;
    for country in ["DE", "FR"] {
        let event =
            json!({"time": "2015-09-12T00:10:00Z", "channel": "a", "country": country, "user": "u", "added": 1});
        world.append(0, &event);
    }
    world.flush(0).await;
    for width in [MINUTE, HOUR, DAY] {
        raise(&world, 1, width, MIDNIGHT + DAY).await;
    }
    let (series, meta) = counts(&world, &[("group_by", "channel")]).await;
    assert_eq!((&series[0].1, meta.get("expired")), (&vec![2], None));
    let (series, meta) = counts(&world, &[("group_by", "country")]).await;
    assert_eq!((series.len(), meta["expired"].as_array().unwrap().len()), (1, 1), "no other view holds the country");
}

#[tokio::test]
async fn a_horizon_that_rises_while_chunks_are_read_is_seen() {
    let world = small().await;
    for width in [MINUTE, HOUR] {
        raise(&world, 0, width, MIDNIGHT + 2 * HOUR).await;
    }
    world.store.early.store(1, Ordering::SeqCst);
    let (series, meta) = counts(&world, &[("group_by", "channel")]).await;
    assert_eq!((&series[0].1, meta["expired"].as_array().map(Vec::len)), (&vec![2], Some(1)));
}

#[tokio::test]
async fn a_metric_shows_its_rules_and_how_far_each_has_come() {
    let world = small().await;
    raise(&world, 0, MINUTE, MIDNIGHT).await;
    let body = world.get("/v1/metrics/ruled").await.ok();
    let month = json!({"1m": "30d", "1h": "30d", "1d": "30d"});
    assert_eq!(body["expire"][0], json!({"where": RULES[0], "retention": month}));
    assert_eq!(body["definition"]["expire"][1], json!({"where": RULES[1], "after": "20d"}));
    let views = body["views"].as_array().unwrap();
    let shown = |names: &[&str]| &views.iter().find(|view| view["dimensions"] == json!(names)).unwrap()["expired"];
    assert_eq!(*shown(&["channel"]), json!([{"where": RULES[0], "retained_from": {"1m": "2015-09-12T00:00:00Z"}}]));
    assert_eq!(shown(&["channel", "country"])[1], json!({"where": RULES[1], "retained_from": {}}));
    assert_eq!((shown(&["country"]), shown(&[])), (&json!([]), &json!([])));
}
