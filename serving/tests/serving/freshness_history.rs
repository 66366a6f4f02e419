//! The history of freshness and its burn rates, by a clock that is set.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::{
    access::READ,
    world::{DAY, MINUTE, SECOND, World, keys},
};

const START: i64 = 1_000 * DAY;

fn event() -> Value {
    json!({"time": "2015-09-12T00:10:05Z", "channel": "a", "country": "DE", "user": "u", "added": 1})
}

/// Three minutes in which nothing is unread, and one in which an event waits.
async fn four_minutes() -> World {
    let mut world = World::new().await;
    for number in 0..16 {
        world.set_now(START + number * 15 * SECOND);
        if number == 12 {
            world.append(0, &event());
        }
        world.sampler.sample().await;
    }
    world
}

#[tokio::test]
async fn the_history_tells_when_a_metric_was_late() {
    let world = four_minutes().await;
    let history = world.get("/v1/freshness/added/history").await.ok();
    let names = ["metric", "from", "to", "step_ms", "sampled_every_ms", "target_ms", "objective", "points"];
    assert_eq!(keys(&history), names);
    assert_eq!((&history["sampled_every_ms"], &history["step_ms"]), (&json!(15_000), &json!(60_000)));
    let points = history["points"].as_array().unwrap();
    let brief: Vec<Value> =
        points.iter().map(|point| json!([point["samples"], point["late"], point["lag_ms"], point["status"]])).collect();
    // Three samples of the last minute lie 15, 30 and 45 s after the append; the target is 10 s.
    let fresh = json!([4, 0, 0, "ok"]);
    assert_eq!(brief, [fresh.clone(), fresh.clone(), fresh, json!([4, 3, 45_000, "breach"])]);
    assert_eq!(points[0]["start"], "1972-09-27T00:00:00Z");
    let slo = world.get("/v1/freshness/added").await.ok()["metrics"][0]["slo"].clone();
    assert_eq!(keys(&slo), ["target_ms", "objective", "ok", "burn_rate_1h", "burn_rate_6h"]);
    assert_eq!((&slo["ok"], &slo["target_ms"]), (&json!(false), &json!(10_000)));
    // 3 of 16, of one in a hundred that may be late.
    let burn = slo["burn_rate_1h"].as_f64().unwrap();
    assert!((burn - 18.75).abs() < 1e-6, "{slo}");
    let other = world.get("/v1/freshness/n/history?step=1h").await.ok();
    assert_eq!(other["points"].as_array().map(Vec::len), Some(1));
    assert_eq!(other["points"][0]["late"], 0, "another source");
}

#[tokio::test]
async fn a_burn_rate_forgets_after_its_window_and_the_promise_is_kept_again() {
    let mut world = four_minutes().await;
    world.flush(0).await;
    world.set_now(START + 120 * MINUTE);
    world.sampler.sample().await;
    let slo = world.get("/v1/freshness/added").await.ok()["metrics"][0]["slo"].clone();
    assert_eq!((&slo["ok"], &slo["burn_rate_1h"]), (&json!(true), &json!(0.0)));
    assert!(slo["burn_rate_6h"].as_f64().unwrap() > 17.0, "{slo}");
}

#[tokio::test]
async fn what_could_not_be_told_counts_as_late() {
    let mut world = World::new().await;
    world.append(0, &event());
    world.flush(0).await;
    world.sampler.sample().await;
    world.log.down.store(true, Ordering::SeqCst);
    world.set_now(START + 15 * SECOND);
    world.sampler.sample().await;
    let point = world.get("/v1/freshness/added/history").await.ok()["points"][0].clone();
    assert_eq!((&point["samples"], &point["late"], &point["unknown"]), (&json!(2), &json!(1), &json!(1)), "{point}");
}

#[tokio::test]
async fn a_history_is_asked_for_by_range_and_step() {
    let world = four_minutes().await;
    let path = "/v1/freshness/added/history";
    let range = format!("{path}?from={}&to={}&step=30s", START / 1_000 + 60_000, START / 1_000 + 120_000);
    let points = world.get(&range).await.ok()["points"].clone();
    assert_eq!(points.as_array().map(Vec::len), Some(2));
    assert_eq!(points[0]["start"], "1972-09-27T00:01:00Z");
    for (query, part) in [
        ("step=5s", "step"),
        ("step=1mo", "step"),
        ("step=2d", "step"),
        ("from=soon", "from"),
        ("from=5&to=5", "from"),
        ("until=5", "until"),
    ] {
        let (code, detail) = world.get(&format!("{path}?{query}")).await.problem(400);
        assert!(code == "bad_parameter" && detail.contains(part), "{query}: {detail}");
    }
    assert_eq!(world.get("/v1/freshness/nope/history").await.problem(404).0, "unknown_metric");
}

#[tokio::test]
async fn the_history_of_a_metric_that_one_may_not_see_is_not_shown() {
    let world = four_minutes().await;
    let (_, bound) = world.key(READ, &[("channel", &["en"])], None).await;
    assert_eq!(world.by(Some(&bound), "GET", "/v1/freshness/added/history", "").await.status, 200);
    let refused = world.by(Some(&bound), "GET", "/v1/freshness/price/history", "").await;
    assert_eq!(refused.problem(403).0, "row_rules");
}
