//! Definitions, jobs, freshness and health.

use std::sync::atomic::Ordering;

use hyper::Method;
use lamina_core::jobs::{self, JobState};
use serde_json::{Value, json};

use crate::world::{DAY, HOUR, Reply, SECOND, World, keys};

fn event() -> Value {
    json!({"time": "2015-09-12T00:10:05Z", "channel": "a", "country": "DE", "user": "u", "added": 1})
}

#[tokio::test]
async fn a_metric_is_shown_with_its_definition_versions_and_views() {
    let mut world = World::new().await;
    world.append(0, &event());
    world.seal(0).await;
    world.batch(true).await;
    let list = world.get("/v1/metrics").await.ok();
    let names: Vec<&Value> = list["metrics"].as_array().unwrap().iter().map(|metric| &metric["name"]).collect();
    assert_eq!(names, ["added", "big", "capped", "n", "price"]);
    let reply = world.get("/v1/metrics/added").await;
    let metric = reply.ok();
    assert_eq!(metric["etag"], reply.headers["etag"].to_str().unwrap());
    assert_eq!((&metric["grain"], &metric["rollups"]), (&json!("1m"), &json!(["1h", "1d"])));
    assert_eq!(metric["dimensions"][0], json!({"name": "channel", "type": "utf8"}));
    assert_eq!(metric["definition"]["value"], "added");
    assert_eq!(metric["versions"], json!([{"version": 1, "active": true, "building": false, "generation": 1}]));
    assert_eq!(metric["views"][1]["dimensions"], json!(["channel"]));
    assert_eq!(metric["views"][1]["generation"], 1);
    assert_eq!(world.get("/v1/sources/edits").await.ok()["topic_exists"], true);
}

#[tokio::test]
async fn definitions_of_files_are_read_only_and_others_change_under_their_etag() {
    let world = World::new().await;
    let put = async |name: &str, headers: &[(&str, &str)], body: &'static str| {
        world.send(Method::PUT, &format!("/v1/metrics/{name}"), headers, body).await
    };
    let json = ("content-type", "application/json");
    assert_eq!(put("added", &[], "").await.problem(409).0, "read_only");
    assert_eq!(put("new", &[("if-match", "\"old\"")], "x = 1").await.problem(412).0, "changed_since");
    assert_eq!(put("new", &[("if-match", "old")], "").await.problem(400).0, "bad_parameter");
    assert_eq!(put("9x", &[], "").await.problem(400).0, "bad_parameter");
    assert_eq!(put("new", &[json], "{").await.problem(400).0, "bad_body");
    assert_eq!(put("new", &[("content-type", "text/csv")], "").await.problem(415).0, "unsupported_media_type");
    let created = put("new", &[json, ("if-match", "\"7\"")], r#"{"source": "edits"}"#).await;
    assert_eq!((created.status.as_u16(), created.headers["location"].to_str().unwrap()), (201, "/v1/metrics/new"));
    let (name, _, if_match) = world.registry.puts.lock().unwrap()[0].clone();
    assert_eq!((name.as_str(), if_match.as_deref()), ("metric/new", Some("\"7\"")));
    for (uri, status, code) in [
        ("/v1/metrics/added", 409, "read_only"),
        ("/v1/sources/edits", 409, "in_use"),
        ("/v1/metrics/nope", 404, "unknown_metric"),
    ] {
        assert_eq!(world.send(Method::DELETE, uri, &[], "").await.problem(status).0, code);
    }
}

async fn recompute(world: &World, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers = [headers, &[("content-type", "application/json")]].concat();
    world.send(Method::POST, "/v1/recomputes", &headers, body.to_owned()).await
}

#[tokio::test]
async fn a_recompute_is_a_job_that_can_be_followed_listed_and_cancelled() {
    let world = World::new().await;
    let body = r#"{"metric": "added", "from": "2015-09-12T00:00:00Z", "to": 1442102400000, "reason": "late file"}"#;
    let reply = recompute(&world, &[], body).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let job = reply.json();
    let id = job["id"].as_str().unwrap().to_owned();
    assert_eq!(reply.headers["location"], format!("/v1/jobs/{id}"));
    let contract = ["id", "kind", "state", "progress", "created_at", "started_at", "finished_at", "error", "result"];
    assert_eq!(keys(&job)[..9], contract);
    assert_eq!(keys(&job["progress"]), ["stage", "done", "total", "unit", "rows", "eta_ms"]);
    assert_eq!((&job["kind"], &job["state"]), (&json!("recompute"), &json!("queued")));
    assert_eq!(job["request"]["to"], "2015-09-13T00:00:00Z");
    assert_eq!(world.get(&format!("/v1/jobs/{id}")).await.ok(), job);
    assert_eq!(world.get("/v1/jobs?state=queued&kind=recompute").await.ok()["jobs"], json!([job]));
    assert_eq!(world.get("/v1/jobs?state=failed").await.ok()["jobs"], json!([]));
    world.get("/v1/jobs?state=lost").await.problem(400);
    let cancelled = world.send(Method::POST, &format!("/v1/jobs/{id}/cancel"), &[], "").await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.json()["state"]), (202, &json!("cancelled")));
    let events = world.get(&format!("/v1/jobs/{id}/events")).await;
    assert!(events.text().starts_with("event: cancelled\ndata: {"), "{}", events.text());
    jobs::update(&*world.store, &id, |job| {
        job.state = JobState::Succeeded;
        true
    })
    .await
    .unwrap();
    let again = world.send(Method::POST, &format!("/v1/jobs/{id}/cancel"), &[], "").await;
    assert_eq!(again.problem(409).0, "finished");
}

#[tokio::test]
async fn the_schedule_is_told_paused_resumed_and_run_now() {
    let world = World::new().await;
    let post = async |name: &str, body: &'static str| {
        world.send(Method::POST, &format!("/v1/schedule/{name}"), &[("content-type", "application/json")], body).await
    };
    let nobody_led = world.get("/v1/schedule").await.ok();
    assert_eq!((&nobody_led["cron"], &nobody_led["paused"]), (&Value::Null, &json!(false)));
    jobs::update_schedule(&*world.store, |state| {
        (state.cron, state.time_zone) = ("0 3 * * *".to_owned(), "Europe/Berlin".to_owned());
        state.next_run = Some(1_442_109_600 * SECOND);
    })
    .await
    .unwrap();
    let told = world.get("/v1/schedule").await.ok();
    assert_eq!((&told["cron"], &told["time_zone"]), (&json!("0 3 * * *"), &json!("Europe/Berlin")));
    assert_eq!(told["next_run"], "2015-09-13T02:00:00Z");

    assert_eq!(post("pause", r#"{"why": "?"}"#).await.problem(400).0, "bad_body");
    assert_eq!(post("pause", "[]").await.problem(400).0, "bad_body");
    let paused = post("pause", r#"{"reason": "maintenance"}"#).await.ok();
    assert_eq!((&paused["paused"], &paused["paused_because"]), (&json!(true), &json!("maintenance")));
    assert_eq!((&paused["next_run"], paused["paused_since"].is_string()), (&Value::Null, true));
    let freshness = world.get("/v1/freshness/added").await.ok();
    assert_eq!(freshness["metrics"][0]["batch"]["next_run"], Value::Null, "{freshness}");
    let again = post("pause", "").await.ok();
    assert_eq!((&again["paused_since"], &again["paused_because"]), (&paused["paused_since"], &Value::Null));

    let run = post("run", "").await;
    let job = run.json();
    assert_eq!((run.status.as_u16(), &job["kind"], &job["state"]), (202, &json!("scheduled"), &json!("queued")));
    assert_eq!(run.headers["location"], format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
    assert_eq!(post("run", "").await.json()["id"], job["id"], "one at a time");
    let resumed = post("resume", "").await.ok();
    assert_eq!((&resumed["paused"], &resumed["last_job"]), (&json!(false), &job["id"]));
    assert_eq!(resumed["next_run"], "2015-09-13T02:00:00Z");
}

#[tokio::test]
async fn a_recompute_that_cannot_be_done_is_refused() {
    let world = World::new().await;
    for (body, status, code) in [
        (r#"{"metrics": ["nope"]}"#, 404, "unknown_metric"),
        (r#"{"metrics": "added"}"#, 400, "bad_body"),
        (r#"{"metrix": []}"#, 400, "bad_body"),
        (r#"[["added"]]"#, 400, "bad_body"),
        (r#"{"from": 5, "to": 5}"#, 400, "bad_parameter"),
        (r#"{"from": "soon"}"#, 400, "bad_parameter"),
    ] {
        assert_eq!(recompute(&world, &[], body).await.problem(status).0, code, "{body}");
    }
    assert_eq!(recompute(&world, &[], "").await.status, 202, "none named means all");
}

#[tokio::test]
async fn the_same_idempotency_key_gives_the_same_job_for_a_day() {
    let mut world = World::new().await;
    let key = [("idempotency-key", "7f3d")];
    let id = |reply: &Reply| {
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()["id"].as_str().unwrap().to_owned()
    };
    let first = id(&recompute(&world, &key, "{}").await);
    assert_eq!(id(&recompute(&world, &key, "{}").await), first);
    assert_ne!(id(&recompute(&world, &[("idempotency-key", "other")], "{}").await), first);
    assert_eq!(recompute(&world, &key, r#"{"dry_run": true}"#).await.problem(422).0, "idempotency_key_reused");
    world.set_now(1_001 * DAY);
    assert_ne!(id(&recompute(&world, &key, "{}").await), first, "after 24 hours a key is new");
}

#[tokio::test]
async fn freshness_tells_how_far_speed_and_batch_have_come() {
    let mut world = World::new().await;
    world.append(0, &event());
    world.seal(0).await;
    world.batch(true).await;
    let fresh = world.get("/v1/freshness/added").await.ok();
    assert_eq!(keys(&fresh), ["status", "metrics"]);
    assert_eq!(fresh["status"], "ok");
    let metric = &fresh["metrics"][0];
    let names = ["metric", "status", "reason", "speed", "batch", "coverage_gap_ms", "ttl_headroom_ms", "slo"];
    assert_eq!(keys(metric), names);
    assert_eq!(keys(&metric["speed"]), ["watermark", "lag_ms", "partitions"]);
    let partition = json!({"partition": 0, "position": 1, "end": 1, "lag_records": 0, "retention_left": null,
        "state": "idle"});
    assert_eq!(metric["speed"]["partitions"][0], partition);
    assert_eq!(keys(&metric["batch"]), ["generation", "through", "age_ms", "next_run"]);
    assert_eq!((&metric["batch"]["generation"], &metric["ttl_headroom_ms"]), (&json!(1), &Value::Null));
    world.append(0, &event());
    world.append(0, &event());
    world.set_now(1_000 * DAY + 15 * SECOND);
    let lagging = world.get("/v1/freshness/added").await.ok();
    let speed = &lagging["metrics"][0]["speed"];
    assert_eq!((&lagging["status"], &speed["lag_ms"]), (&json!("warn"), &json!(15_000)));
    assert_eq!(
        (&speed["partitions"][0]["lag_records"], &speed["partitions"][0]["state"]),
        (&json!(2), &json!("lagging"))
    );
    world.set_now(1_000 * DAY + 50 * SECOND);
    let stalled = world.get("/v1/freshness/added?fail_on=breach").await;
    assert_eq!(stalled.status, 503);
    assert_eq!(stalled.headers["content-type"], "application/json", "it is the report that was asked for");
    let stalled = stalled.json();
    assert_eq!(stalled["metrics"][0]["speed"]["partitions"][0]["state"], "stalled");
    let reason = stalled["metrics"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("partition 0 is stalled: 2 records from 1 on are unread"), "{reason}");
    assert_eq!(world.get("/readyz").await.status, 200, "stale data takes no process out of service");
    assert_eq!(world.get("/v1/freshness").await.status, 200, "without fail_on the status is only told");
    world.get("/v1/freshness?fail_on=warn").await.problem(400);
}

#[tokio::test]
async fn freshness_alarms_before_uncovered_chunks_expire() {
    let mut world = World::new().await;
    world.append(0, &event());
    world.seal(0).await;
    let now = 1_000 * DAY;
    let seen = async |world: &World, sealed_days_ago: i64, left_days: i64| {
        world.store.edit_epochs(|epoch| {
            epoch.alive_until = now + left_days * DAY;
            // The open epoch is taken over anew while nothing comes: its age says nothing of the one before.
            epoch.opened_at = if epoch.end.is_some() { now - sealed_days_ago * DAY } else { now };
            epoch.dedup_clock = now - sealed_days_ago * DAY;
        });
        world.get("/v1/freshness/added").await.ok()["metrics"][0].clone()
    };
    let early = seen(&world, 1, 2).await;
    assert_eq!((&early["status"], &early["ttl_headroom_ms"]), (&json!("ok"), &json!(2 * 86_400_000_i64)));
    let late = seen(&world, 2, 1).await;
    assert_eq!((&late["status"], &late["ttl_headroom_ms"]), (&json!("warn"), &json!(86_400_000)));
    let reason = late["reason"].as_str().unwrap();
    assert!(reason.contains("batch has not covered partition 0 from 0"), "{reason}");
    let touched = seen(&world, 2, 3).await;
    assert_eq!(touched["status"], "warn", "a touch buys time, batch is as late as before");
    let over = seen(&world, 4, -1).await;
    assert_eq!((&over["status"], &over["coverage_gap_ms"]), (&json!("breach"), &json!(86_400_000)));
    assert_eq!(over["ttl_headroom_ms"], 0);
    let reason = over["reason"].as_str().unwrap();
    assert!(reason.contains("partition 0 lacks 0..1: expired") && reason.contains("rebuilds"), "{reason}");
    assert_eq!(world.get("/v1/freshness?fail_on=breach").await.status, 503);
    world.batch(true).await;
    let covered = seen(&world, 4, -1).await;
    assert_eq!((&covered["status"], &covered["ttl_headroom_ms"]), (&json!("ok"), &Value::Null), "{covered}");
}

#[tokio::test]
async fn an_epoch_that_stays_open_for_most_of_the_time_to_live_is_a_warning() {
    let mut world = World::new().await;
    world.append(0, &event());
    world.flush(0).await;
    let now = 1_000 * DAY;
    for (hours, status) in [(48, "ok"), (55, "warn")] {
        world.store.edit_epochs(|epoch| {
            epoch.alive_until = now + DAY;
            epoch.opened_at = now - hours * HOUR;
        });
        let fresh = world.get("/v1/freshness/added").await.ok()["metrics"][0].clone();
        assert_eq!(fresh["status"], status, "opened {hours} hours ago: {fresh}");
    }
}

#[tokio::test]
async fn readiness_depends_on_log_and_store_and_says_which_failed() {
    let world = World::new().await;
    assert_eq!(world.get("/readyz").await.ok()["status"], "ok");
    world.log.down.store(true, Ordering::SeqCst);
    let reply = world.get("/readyz").await;
    let (code, detail) = reply.problem(503);
    assert!(code == "not_ready" && detail.contains("log") && !detail.contains("store"), "{detail}");
    assert_eq!(reply.json()["checks"]["store"], "ok");
    assert_eq!(world.get("/livez").await.status, 200);
}
