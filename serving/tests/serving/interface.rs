//! What holds for every route: problems, request ids, limits, headers, the documents of the interface.

use std::time::Duration;

use hyper::Method;
use lamina_serving::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::world::{World, set};

#[tokio::test]
async fn every_error_is_a_problem_whoever_found_it() {
    let world = World::new().await;
    let long = format!("/v1/metrics/added/query?from=0&where={}", "x".repeat(20_000));
    for (method, uri, status, code) in [
        (Method::GET, "/nowhere", 404, "not_found"),
        (Method::DELETE, "/v1/metrics", 405, "method_not_allowed"),
        (Method::GET, "/v1/metrics/added/query?from=%ff", 400, "bad_parameter"),
        (Method::GET, "/v1/metrics/%ff/query?from=0", 400, "bad_request"),
        (Method::GET, "/v1/metrics/nope", 404, "unknown_metric"),
        (Method::GET, "/v1/sources/nope", 404, "unknown_source"),
        (Method::GET, "/v1/jobs/nope", 404, "unknown_job"),
        (Method::GET, long.as_str(), 414, "uri_too_long"),
    ] {
        let reply = world.send(method, uri, &[], "").await;
        assert_eq!(reply.problem(status).0, code, "{uri}");
        assert_eq!(status == 405, reply.headers.contains_key("allow"));
    }
}

#[tokio::test]
async fn the_request_id_is_the_clients_if_harmless() {
    let world = World::new().await;
    let id = async |own: &str| {
        let reply = world.send(Method::GET, "/livez", &[("x-request-id", own)], "").await;
        reply.headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id("abc-1.2_3").await, "abc-1.2_3");
    for own in ["", "two words", "<script>", &"x".repeat(200)] {
        let given = id(own).await;
        assert!(given != own && given.len() == 36, "{given}");
    }
}

#[tokio::test]
async fn answers_carry_security_headers_and_are_compressed_on_request() {
    let world = World::new().await;
    let reply = world.send(Method::GET, "/openapi.json", &[("accept-encoding", "gzip")], "").await;
    assert_eq!(reply.headers["content-encoding"], "gzip");
    for header in ["x-content-type-options", "x-frame-options", "content-security-policy", "referrer-policy"] {
        assert!(reply.headers.contains_key(header), "{header}");
    }
}

#[tokio::test]
async fn load_beyond_the_limit_is_shed_but_health_answers() {
    let world = World::with(Config { max_concurrent: 0, ..Config::default() }).await;
    let reply = world.get("/v1/metrics").await;
    assert_eq!(reply.problem(503).0, "overloaded");
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(world.get("/livez").await.status, 200);
}

#[tokio::test]
async fn the_openapi_document_names_every_route_and_every_query_parameter() {
    let world = World::new().await;
    let api = world.get("/openapi.json").await.ok();
    let routes = [
        "/v1/metrics",
        "/v1/metrics/{metric}",
        "/v1/metrics/{metric}/query",
        "/v1/metrics/{metric}/live",
        "/v1/metrics/{metric}/rollback",
        "/v1/query",
        "/v1/derived",
        "/v1/derived/{metric}",
        "/v1/sources",
        "/v1/sources/{source}",
        "/v1/sources/{source}/archive",
        "/v1/sources/{source}/epochs",
        "/v1/sources/{source}/erasures",
        "/v1/sources/{source}/events",
        "/v1/recomputes",
        "/v1/jobs",
        "/v1/jobs/{id}",
        "/v1/jobs/{id}/cancel",
        "/v1/jobs/{id}/events",
        "/v1/schedule",
        "/v1/schedule/pause",
        "/v1/schedule/resume",
        "/v1/schedule/run",
        "/v1/freshness",
        "/v1/freshness/{metric}",
        "/v1/freshness/{metric}/history",
        "/v1/audit",
        "/v1/keys",
        "/v1/keys/{id}",
        "/v1/keys/{id}/rotate",
        "/v1/sql",
        "/v1/sql/{id}",
        "/prometheus/api/v1/query",
        "/prometheus/api/v1/query_range",
        "/prometheus/api/v1/labels",
        "/prometheus/api/v1/label/{name}/values",
        "/prometheus/api/v1/series",
        "/prometheus/api/v1/metadata",
        "/prometheus/api/v1/rules",
        "/prometheus/api/v1/query_exemplars",
        "/prometheus/api/v1/status/buildinfo",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
    ];
    assert_eq!(set(&api["paths"]), routes.iter().map(|route| (*route).to_owned()).collect());
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let described = operation["tags"][0].is_string() && operation["summary"].is_string();
            assert!(described, "{method} {path} lacks a tag or a summary");
        }
    }
    let names = |path: &str| -> Vec<String> {
        let parameters = api["paths"][path]["get"]["parameters"].as_array().unwrap();
        parameters.iter().map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    };
    for name in names("/v1/metrics/{metric}/query").iter().skip(1) {
        if ["accept", "if-none-match"].contains(&name.as_str()) {
            continue;
        }
        let reply = world.get(&format!("/v1/metrics/added/query?from=0&{name}=1&{name}=%00")).await;
        assert!(!reply.text().contains("is not a parameter"), "{name}: {}", reply.text());
    }
}

#[tokio::test]
async fn the_docs_page_needs_nothing_but_this_server() {
    let world = World::new().await;
    let home = world.get("/").await;
    assert_eq!((home.status.as_u16(), home.headers["location"].to_str().unwrap()), (307, "/docs"));
    for (path, kind) in [("/docs", "text/html"), ("/docs/docs.js", "text/javascript"), ("/docs/docs.css", "text/css")] {
        let reply = world.get(path).await;
        assert_eq!(reply.status, 200);
        assert!(reply.headers["content-type"].to_str().unwrap().starts_with(kind));
        let policy = reply.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(!reply.text().contains("http://") && !reply.text().contains("https://"), "{path} names another server");
    }
}

/// A server on a real socket, stopped by the token.
async fn served(
    config: Config,
) -> (World, std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<std::io::Result<()>>) {
    let world = World::with(config.clone()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(lamina_serving::run(listener, world.router.clone(), config, stop.clone()));
    (world, address, stop, running)
}

#[tokio::test]
async fn a_client_that_sends_its_headers_slowly_loses_the_connection() {
    let (_world, address, _stop, _running) =
        served(Config { header_timeout: Duration::from_millis(100), ..Config::default() }).await;
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_loses_the_connection() {
    let (world, address, _stop, _running) =
        served(Config { write_stall: Duration::from_millis(200), ..Config::default() }).await;
    let token = "x".repeat(100);
    for minute in 0..60 {
        let time = format!("2015-09-12T00:{minute:02}:00Z");
        world.append(0, &serde_json::json!({"time": time, "channel": token, "country": "DE", "added": 1}));
    }
    let mut world = world;
    world.flush(0).await;
    let query =
        "/v1/metrics/added/query?from=2015-01-01T00:00:00Z&to=2015-12-31T00:00:00Z&step=1m&fill=zero&aggregate=sum";
    let whole = world.get(query).await.bytes.len();
    assert!(whole > 20 << 20, "{whole} bytes fit into buffers");
    let mut idle = tokio::net::TcpStream::connect(address).await.unwrap();
    idle.write_all(format!("GET {query} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), idle.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.len() < whole, "{} bytes came", rest.len());
}

#[tokio::test]
async fn a_stop_lets_the_request_under_way_finish_and_takes_no_other() {
    let (_world, address, stop, running) = served(Config::default()).await;
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let token = "AAVlZGl0cwRpZC0wAQAB";
    let head =
        format!("GET /v1/metrics/added/query?from=0&to=60000&wait=500ms&at_least={token} HTTP/1.1\r\nhost: x\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.cancel();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 "), "the answer was cut: {answer}");
    assert!(answer.contains("request_id"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn metrics_are_in_prometheus_format() {
    let world = World::new().await;
    let reply = world.get("/metrics").await;
    assert_eq!(reply.status, 200);
    assert!(reply.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
}
