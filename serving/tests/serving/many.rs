//! Several queries in one request.

use hyper::Method;
use serde_json::{Value, json};

use crate::world::{Reply, World};

async fn send(world: &World, body: impl Into<axum::body::Body>) -> Reply {
    world.send(Method::POST, "/v1/query", &[("content-type", "application/json")], body).await
}

async fn filled() -> World {
    let mut world = World::new().await;
    for (channel, added) in [("a", 1), ("b", 2), ("a", 4)] {
        world.append(0, &json!({"time": "2015-09-12T00:00:00Z", "channel": channel, "country": "DE", "added": added}));
    }
    world.flush(0).await;
    world
}

#[tokio::test]
async fn each_query_has_an_answer_or_a_problem_of_its_own_in_order() {
    let world = filled().await;
    let (from, to) = ("2015-09-12T00:00:00Z", 1_442_102_400_000_i64);
    let queries = json!([
        {"metric": "added", "from": from, "to": to, "aggregate": ["count", "sum"], "group_by": "channel"},
        {"metric": "nope", "from": from},
        {"metric": "added", "from": from, "to": to, "limit": 1, "group_by": ["channel"], "order_by": "sum desc",
            "aggregate": "sum", "where": null},
        {"metric": "added", "from": from, "step": true},
        {"from": from},
        7,
        {"metric": "added", "from": from, "page_size": 5},
    ]);
    let body = send(&world, queries.to_string()).await.ok();
    let results = body["results"].as_array().unwrap();
    let statuses: Vec<u64> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 404, 200, 400, 400, 400, 400]);
    let single =
        "/v1/metrics/added/query?from=2015-09-12T00:00:00Z&to=1442102400000&aggregate=count,sum&group_by=channel";
    assert_eq!(results[0]["answer"], world.get(single).await.ok());
    assert_eq!(results[2]["answer"]["series"][0]["points"][0]["sum"], 5);
    assert_eq!(results[1]["problem"]["code"], "unknown_metric");
    assert!(results[3]["problem"]["detail"].as_str().unwrap().starts_with("`step`"));
    assert!(results[4]["problem"]["detail"].as_str().unwrap().starts_with("`metric`"));
    assert!(results.iter().all(|result| result["answer"].is_null() || result["problem"].is_null()));
    let id = results[1]["problem"]["request_id"].as_str().unwrap();
    assert_eq!(id.len(), 36);
}

#[tokio::test]
async fn what_is_no_list_of_queries_is_refused_as_a_whole() {
    let world = filled().await;
    for body in ["", "{}", "[", "\"x\""] {
        assert_eq!(send(&world, body).await.problem(400).0, "bad_body", "{body}");
    }
    let many = Value::from(vec![json!({"metric": "added", "from": 0}); 51]);
    let (_, detail) = send(&world, many.to_string()).await.problem(400);
    assert!(detail.contains("50"), "{detail}");
    assert_eq!(send(&world, vec![b' '; 300 << 10]).await.problem(413).0, "too_large");
    let reply = world.send(Method::POST, "/v1/query", &[("content-type", "text/plain")], "[]").await;
    assert_eq!(reply.problem(415).0, "unsupported_media_type");
    assert_eq!(send(&world, "[]").await.ok()["results"], json!([]));
}

#[tokio::test]
async fn answers_that_do_not_fit_any_more_are_problems_of_their_own() {
    let world = filled().await;
    let large = json!({"metric": "added", "from": "2015-01-01T00:00:00Z", "to": "2015-12-01T00:00:00Z", "step": "1m",
        "fill": "zero", "aggregate": "count,sum"});
    let small = json!({"metric": "added", "from": "2015-09-12T00:00:00Z", "to": "2015-09-13T00:00:00Z"});
    let body = send(&world, json!([large, large, large, large, small]).to_string()).await.ok();
    let statuses: Vec<u64> =
        body["results"].as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert!(statuses[0] == 200 && statuses[4] == 200, "{statuses:?}");
    let (code, detail) = (&body["results"][3]["problem"]["code"], &body["results"][3]["problem"]["detail"]);
    assert!(code == "answer_too_large" && detail.as_str().unwrap().contains("64 MiB"), "{statuses:?}");
}
