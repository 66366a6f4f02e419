//! Sending events, and asking for exactly those.

use std::{io::Write, sync::atomic::Ordering, time::Duration};

use hyper::Method;
use serde_json::{Value, json};

use crate::{
    memory::SOON,
    world::{Reply, World, encoded, keys},
};

const EVENTS: &str = "/v1/sources/edits/events";
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const GOOD: &str = r#"{"time": "2015-09-12T00:10:05Z", "channel": "a", "country": "DE", "user": "u", "added": 1}"#;

async fn post(world: &World, headers: &[(&str, &str)], body: impl Into<axum::body::Body>) -> Reply {
    world.send(Method::POST, EVENTS, headers, body).await
}

async fn count(world: &World, more: &str) -> Reply {
    let uri =
        format!("/v1/metrics/added/query?from=2015-09-12T00:00:00Z&to=2015-09-13T00:00:00Z&aggregate=count{more}");
    world.get(&uri).await
}

#[tokio::test]
async fn what_decodes_is_in_the_log_and_what_does_not_is_rejected_by_index() {
    let world = World::new().await;
    let body = format!("{GOOD}\n{{\"time\": \"never\"}}\n{GOOD}\n");
    let reply = post(&world, &[NDJSON], body).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let body = reply.json();
    assert_eq!(keys(&body), ["accepted", "rejected", "position"]);
    assert_eq!((&body["accepted"], &body["rejected"][0]["index"]), (&json!(2), &json!(1)));
    assert!(body["rejected"][0]["error"].as_str().unwrap().contains("time"), "{body}");
    assert_eq!(world.log.records("edits", 0).len() + world.log.records("edits", 1).len(), 2);
    let nothing = post(&world, &[NDJSON], "x").await;
    assert_eq!((nothing.status.as_u16(), &nothing.json()["accepted"]), (202, &json!(0)));
}

#[tokio::test]
async fn a_json_array_and_packed_bodies_are_taken_as_well() {
    let world = World::new().await;
    let array = format!("[{GOOD}, {GOOD}]");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(array.as_bytes()).unwrap();
    let zstd = zstd::bulk::compress(array.as_bytes(), 1).unwrap();
    let json = ("content-type", "application/json; charset=utf-8");
    let none: (&str, &str) = ("content-encoding", "identity");
    for (encoding, body) in [
        (none, array.clone().into_bytes()),
        (("content-encoding", "gzip"), gzip.finish().unwrap()),
        (("content-encoding", "zstd"), zstd),
    ] {
        let reply = post(&world, &[json, encoding], body).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["accepted"]), (202, &json!(2)), "{encoding:?}");
    }
}

#[tokio::test]
async fn csv_goes_to_a_source_of_csv_whose_topic_is_made_when_first_needed() {
    let world = World::new().await;
    let body = "n,time\n5,2015-09-12T00:00:00Z\nx,2015-09-12T00:00:00Z\n";
    let reply = world.send(Method::POST, "/v1/sources/other/events", &[("content-type", "text/csv")], body).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert_eq!((&reply.json()["accepted"], &reply.json()["rejected"][0]["index"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn a_body_that_cannot_be_taken_is_a_problem_that_says_why() {
    let mut config = lamina_serving::Config { max_body_bytes: 200, ..lamina_serving::Config::default() };
    config.max_events = 3;
    let world = World::with(config).await;
    let many = "1\n".repeat(50);
    let bomb = zstd::bulk::compress(&vec![b' '; 100_000], 3).unwrap();
    for (headers, body, status, code) in [
        (vec![("content-type", "text/csv")], GOOD.as_bytes().to_vec(), 415, "unsupported_media_type"),
        (vec![NDJSON, ("content-encoding", "br")], vec![], 415, "unsupported_encoding"),
        (vec![NDJSON, ("content-encoding", "gzip")], b"plain".to_vec(), 400, "bad_encoding"),
        (vec![NDJSON], vec![b'x'; 201], 413, "too_large"),
        (vec![NDJSON, ("content-encoding", "zstd")], bomb, 413, "too_large"),
        (vec![NDJSON], many.into_bytes(), 413, "too_many_events"),
        (vec![("content-type", "application/json")], b"[{".to_vec(), 400, "unreadable_body"),
    ] {
        let (found, _) = post(&world, &headers, body).await.problem(status);
        assert_eq!(found, code);
    }
    let reply = world.send(Method::POST, "/v1/sources/nope/events", &[NDJSON], "").await;
    assert_eq!(reply.problem(404).0, "unknown_source");
    world.log.down.store(true, Ordering::SeqCst);
    let reply = post(&world, &[NDJSON], GOOD).await;
    assert_eq!(reply.problem(503).0, "log_unavailable");
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_query_waits_until_the_events_of_its_token_are_visible() {
    let mut world = World::new().await;
    let token = post(&world, &[NDJSON], format!("{GOOD}\n{GOOD}\n{GOOD}")).await.json()["position"].clone();
    let token = encoded(token.as_str().unwrap());
    let reply = count(&world, &format!("&at_least={token}&wait=50ms")).await;
    assert_eq!(reply.problem(504).0, "not_visible_yet");
    let router = world.router.clone();
    let uri = format!(
        "/v1/metrics/added/query?from=2015-09-12T00:00:00Z&to=2015-09-13T00:00:00Z&aggregate=count&at_least={token}"
    );
    let waiting = tokio::spawn(async move {
        let request = hyper::Request::builder().uri(uri).body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes()
    });
    tokio::time::sleep(SOON).await;
    world.flush(0).await;
    tokio::time::sleep(SOON).await;
    assert!(!waiting.is_finished(), "one of two partitions is not there yet");
    world.flush(1).await;
    let bytes = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(body["series"][0]["points"][0]["count"], 3);
    // Several tokens, repeated or in a list.
    assert_eq!(count(&world, &format!("&at_least={token}&at_least={token},{token}")).await.status, 200);
}

#[tokio::test]
async fn a_token_of_an_unknown_source_or_an_earlier_topic_is_400() {
    let world = World::new().await;
    let token = post(&world, &[NDJSON], GOOD).await.json()["position"].as_str().unwrap().to_owned();
    world.log.delete("edits");
    post(&world, &[NDJSON], GOOD).await.problem(503);
    lamina_core::log::Log::ensure_topic(&*world.log, "edits", 2).await.unwrap();
    let (_, detail) = count(&world, &format!("&wait=50ms&at_least={}", encoded(&token))).await.problem(400);
    assert!(detail.contains("earlier topic"), "{detail}");
    let (_, detail) = count(&world, "&at_least=AARub3BlAmlkAA").await.problem(400);
    assert!(detail.starts_with("`at_least`"), "{detail}");
}
