//! Metrics that are made of others, against the same arithmetic over what each of them answers, and over the events themselves.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestCaseError};
use serde_json::{Value, json};

use crate::{
    property::{BASE, CHANNELS, actions, perform, runtime},
    world::{DAY, DEFINITIONS, HOUR, World, keys},
};

const DERIVED: &str = r#"
[metric.french]
source = "edits"
where = "country = 'FR'"
dimensions = ["channel"]
aggregates = ["count"]
grain = "10s"

[derived.french_share]
description = "How much of it is French"
expression = "french / count(added)"
[derived.per_french]
expression = "(sum(added) + 0.5 * french) / french"
[derived.exact]
expression = "sum(added) * 3 - french"
[derived.elsewhere]
expression = "sum(n) + count(added)"
[derived.speed]
expression = "rate(count(added)) * 60"
"#;

const RANGE: [(&str, &str); 2] = [("from", "2015-09-12T00:00:00Z"), ("to", "2015-09-13T00:00:00Z")];

async fn world() -> World {
    World::over(&format!("{DEFINITIONS}{DERIVED}"), lamina_serving::Config::default()).await
}

async fn small() -> World {
    let mut world = world().await;
    for (partition, time, channel, country, added) in [
        (0, "00:10:00", "a", "FR", 3),
        (0, "00:20:00", "a", "DE", 4),
        (1, "00:30:00", "b", "DE", 5),
        (1, "01:00:00", "a", "FR", 6),
    ] {
        let time = format!("2015-09-12T{time}Z");
        world.append(partition, &json!({"time": time, "channel": channel, "country": country, "added": added}));
    }
    world.seal(0).await;
    world.batch(true).await;
    world.flush(1).await;
    world
}

#[tokio::test]
async fn it_is_asked_like_a_metric_and_joined_on_bucket_and_dimensions() {
    let world = small().await;
    let by = [RANGE[0], RANGE[1], ("step", "1h"), ("group_by", "channel")];
    let body = world.query_of("french_share", &by).await.ok();
    assert_eq!(keys(&body), ["metric", "version", "from", "to", "step", "series", "meta"]);
    assert_eq!((&body["metric"], &body["version"]), (&json!("french_share"), &Value::Null));
    let expected = json!([
        {"dimensions": {"channel": "a"}, "points": [
            {"start": "2015-09-12T00:00:00Z", "value": 0.5}, {"start": "2015-09-12T01:00:00Z", "value": 1.0}]},
        {"dimensions": {"channel": "b"}, "points": [{"start": "2015-09-12T00:00:00Z", "value": 0.0}]},
    ]);
    assert_eq!(body["series"], expected, "what is not there counts as none");
    let body = world.query_of("per_french", &by).await.ok();
    assert_eq!(body["series"][0]["points"][0]["value"], 7.5);
    assert_eq!(body["series"][1]["points"][0]["value"], Value::Null, "a division by zero is null");
    let body = world.query_of("exact", &[RANGE[0], RANGE[1]]).await;
    assert!(body.text().contains(r#""value":52}"#), "{}", body.text());
    let body = world.query_of("speed", &by).await.ok();
    assert_eq!(body["series"][0]["points"][0]["value"], 2.0 / 60.0);
    let ordered = [("order_by", "value desc"), ("limit", "1"), ("where", "channel IN ('a', 'b')")];
    let body = world.query_of("french_share", &[&by[..], &ordered].concat()).await.ok();
    assert_eq!((&body["series"][0]["dimensions"]["channel"], &body["meta"]["truncated"]), (&json!("a"), &json!(true)));
    let body = world.query_of("french_share", &[&by[..], &[("fill", "zero"), ("compare", "1h")]].concat()).await.ok();
    let points = body["series"][0]["points"].as_array().unwrap();
    assert_eq!((points.len(), &points[1]["value@1h"], &points[5]["value"]), (24, &json!(0.5), &json!(0.0)));
}

#[tokio::test]
async fn meta_proves_each_metric_and_says_whether_the_prefix_is_one() {
    let mut world = small().await;
    let loads = world.store.loads();
    let body = world.query_of("french_share", &RANGE).await.ok();
    assert_eq!(world.store.loads() - loads, 2, "each ledger was taken once");
    let meta = &body["meta"];
    assert_eq!(keys(meta), ["complete", "missing", "approximate", "one_prefix", "metrics"]);
    assert_eq!((&meta["complete"], &meta["one_prefix"]), (&json!(true), &json!(true)));
    let positions = json!({"0": 2, "1": 2});
    for name in ["french", "added"] {
        assert_eq!(meta["metrics"][name]["speed"]["positions"], positions);
        assert_eq!(meta["metrics"][name]["batch"]["generation"], 1);
    }
    let meta = world.query_of("elsewhere", &RANGE).await.ok()["meta"].clone();
    assert_eq!((&meta["one_prefix"], keys(&meta["metrics"]).len()), (&json!(false), 2), "of two sources");
    // Of what batch has come to alone, too.
    let batch = world.query_of("french_share", &[RANGE[0], RANGE[1], ("layer", "batch")]).await.ok()["meta"].clone();
    assert_eq!(
        (&batch["one_prefix"], &batch["metrics"]["added"]["speed"]["positions"]["1"]),
        (&json!(true), &json!(0))
    );
    world.set_now(2_000 * DAY);
    let meta = world.query_of("french_share", &RANGE).await.ok()["meta"].clone();
    assert_eq!((&meta["complete"], &meta["missing"][0]["why"]), (&json!(false), &json!("expired")));
    assert!(meta["missing"][0]["metric"].is_string());
}

#[tokio::test]
async fn what_its_metrics_do_not_share_cannot_be_asked() {
    let world = small().await;
    for (metric, name, value, part) in [
        (
            "french_share",
            "group_by",
            "country",
            "derived metric french_share has no dimension \"country\"; it has channel",
        ),
        ("elsewhere", "group_by", "channel", "has no dimensions that all its metrics have"),
        ("french_share", "aggregate", "sum", "only `value`"),
        ("french_share", "order_by", "sum", "only `value`"),
        ("french_share", "step", "30s", "grain 1m"),
        ("french_share", "where", "country = 'FR'", "country"),
    ] {
        let (code, detail) = world.query_of(metric, &[RANGE[0], RANGE[1], (name, value)]).await.problem(400);
        assert!(code == "bad_parameter" && detail.starts_with(&format!("`{name}`")), "{detail}");
        assert!(detail.contains(part), "{detail}");
    }
}

#[tokio::test]
async fn it_is_listed_with_what_it_is_made_of() {
    let world = small().await;
    let all = world.get("/v1/metrics").await.ok();
    let found = all["metrics"].as_array().unwrap().iter().find(|one| one["name"] == "french_share").unwrap().clone();
    assert_eq!(
        (&found["derived"], &found["grain"], &found["aggregates"]),
        (&json!(true), &json!("1m"), &json!(["value"]))
    );
    assert_eq!(found["dimensions"], json!([{"name": "channel", "type": "utf8"}]));
    assert_eq!(found["metrics"], json!(["french", "added"]));
    assert_eq!(world.get("/v1/derived").await.ok()["derived"].as_array().unwrap().len(), 5);
    for path in ["/v1/derived/french_share", "/v1/metrics/french_share"] {
        let one = world.get(path).await;
        assert_eq!(one.ok()["definition"]["expression"], "french / count(added)");
        assert_eq!(one.headers["etag"].to_str().unwrap(), one.ok()["etag"]);
    }
    assert_eq!(world.get("/v1/derived/added").await.problem(404).0, "unknown_metric");
    let put = world.send(hyper::Method::PUT, "/v1/derived/more", &[], "expression = \"french\"").await;
    assert_eq!((put.status.as_u16(), put.headers["location"].to_str().unwrap()), (201, "/v1/derived/more"));
    assert_eq!(world.registry.puts.lock().unwrap()[0].0, "derived/more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn it_is_the_arithmetic_of_what_one_prefix_folds(actions in actions(), step in 1..30_i64) {
        let checked: Result<(), TestCaseError> = runtime().block_on(async {
            let (mut world, mut appended) = (world().await, Vec::new());
            for action in actions {
                perform(&mut world, action, &mut appended, &mut [[0; 3]; 2]).await;
            }
            let (from, to, length) = (BASE - DAY, BASE + 3 * DAY, step * HOUR);
            let (from_text, to_text, step) = ((from / 1000).to_string(), (to / 1000).to_string(), format!("{step}h"));
            let params = [("from", from_text.as_str()), ("to", &to_text), ("step", &step), ("group_by", "channel")];
            let body = world.query_of("exact", &params).await.ok();
            let shares = world.query_of("french_share", &params).await.ok();
            prop_assert_eq!(&body["meta"]["one_prefix"], &json!(true));
            let mut sums: BTreeMap<(String, i64), (i64, i64, i64)> = BTreeMap::new();
            let mut offsets = [0_u64; 2];
            for edit in &appended {
                let offset = offsets[edit.partition as usize];
                offsets[edit.partition as usize] += 1;
                let positions = &body["meta"]["metrics"]["added"]["speed"]["positions"];
                prop_assert_eq!(positions, &body["meta"]["metrics"]["french"]["speed"]["positions"]);
                if offset < positions[edit.partition.to_string()].as_u64().unwrap_or(0) {
                    let start = (edit.at.div_euclid(length) * length).max(from);
                    let all = sums.entry((CHANNELS[edit.channel].to_owned(), start)).or_default();
                    *all = (all.0 + edit.added, all.1 + i64::from(edit.country == 1), all.2 + 1);
                }
            }
            let values = |body: &Value| -> BTreeMap<(String, String), Value> {
                let series = body["series"].as_array().unwrap().iter();
                let named = series.flat_map(|one| {
                    let name = one["dimensions"]["channel"].as_str().unwrap().to_owned();
                    one["points"].as_array().unwrap().iter().map(move |point| {
                        ((name.clone(), point["start"].as_str().unwrap().to_owned()), point["value"].clone())
                    })
                });
                named.collect()
            };
            let expected = |value: &dyn Fn(i64, i64, i64) -> Value| -> BTreeMap<(String, String), Value> {
                let text = |at: i64| {
                    chrono::DateTime::from_timestamp_micros(at).unwrap().to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
                };
                let all = sums.iter().map(|((name, start), (sum, french, count))| {
                    ((name.clone(), text(*start)), value(*sum, *french, *count))
                });
                all.collect()
            };
            prop_assert_eq!(values(&body), expected(&|sum, french, _| json!(sum * 3 - french)));
            prop_assert_eq!(values(&shares), expected(&|_, french, count| json!(french as f64 / count as f64)));
            Ok(())
        });
        checked?;
    }
}
