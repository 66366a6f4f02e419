//! Who may do what: every endpoint asked by every kind of caller, keys and their ends, the audit log, rates.

use std::{collections::BTreeSet, time::Duration};

use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use hyper::{Method, Request};
use lamina_core::{Clock, Micros};
use lamina_serving::{
    Config, Rate,
    auth::{self, Mode, Rows, Scope, Scopes, keys::NewKey},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::world::{DAY, DEFINITIONS, HOUR, MINUTE, Reply, SECOND, World};

pub(crate) const READ: &[Scope] = &[Scope::MetricsRead];
const BATCH: &[Scope] = &[Scope::RecomputeRun];
const ADMIN: &[Scope] = &[];
const SQL: &[Scope] = &[Scope::SqlRun];
const SEND: &[Scope] = &[Scope::EventsWrite];
const READ_OR_SEND: &[Scope] = &[Scope::MetricsRead, Scope::EventsWrite];

/// What is specified, written down a second time: method, route, path to call, scopes of which one is needed besides `admin`
/// (which always suffices), and whether whoever has rules over rows comes in.
const SPECIFIED: &[(&str, &str, &str, &[Scope], bool)] = &[
    ("GET", "/metrics", "/metrics", READ, false),
    ("GET", "/prometheus/api/v1/label/{name}/values", "/prometheus/api/v1/label/channel/values", READ, true),
    ("GET", "/prometheus/api/v1/labels", "/prometheus/api/v1/labels", READ, true),
    ("POST", "/prometheus/api/v1/labels", "/prometheus/api/v1/labels", READ, true),
    ("GET", "/prometheus/api/v1/metadata", "/prometheus/api/v1/metadata", READ, true),
    ("GET", "/prometheus/api/v1/query", "/prometheus/api/v1/query?query=1", READ, true),
    ("POST", "/prometheus/api/v1/query", "/prometheus/api/v1/query?query=1", READ, true),
    ("GET", "/prometheus/api/v1/query_exemplars", "/prometheus/api/v1/query_exemplars", READ, true),
    ("POST", "/prometheus/api/v1/query_exemplars", "/prometheus/api/v1/query_exemplars", READ, true),
    (
        "GET",
        "/prometheus/api/v1/query_range",
        "/prometheus/api/v1/query_range?query=1&start=0&end=9&step=3",
        READ,
        true,
    ),
    (
        "POST",
        "/prometheus/api/v1/query_range",
        "/prometheus/api/v1/query_range?query=1&start=0&end=9&step=3",
        READ,
        true,
    ),
    ("GET", "/prometheus/api/v1/rules", "/prometheus/api/v1/rules", READ, true),
    ("GET", "/prometheus/api/v1/series", "/prometheus/api/v1/series?match[]=added_sum", READ, true),
    ("POST", "/prometheus/api/v1/series", "/prometheus/api/v1/series?match[]=added_sum", READ, true),
    ("GET", "/prometheus/api/v1/status/buildinfo", "/prometheus/api/v1/status/buildinfo", READ, true),
    ("GET", "/v1/audit", "/v1/audit", ADMIN, false),
    ("GET", "/v1/derived", "/v1/derived", READ, true),
    ("GET", "/v1/derived/{metric}", "/v1/derived/share", READ, true),
    ("PUT", "/v1/derived/{metric}", "/v1/derived/share", ADMIN, false),
    ("DELETE", "/v1/derived/{metric}", "/v1/derived/share", ADMIN, false),
    ("GET", "/v1/freshness", "/v1/freshness", READ, true),
    ("GET", "/v1/freshness/{metric}", "/v1/freshness/added", READ, true),
    ("GET", "/v1/freshness/{metric}/history", "/v1/freshness/added/history", READ, true),
    ("GET", "/v1/jobs", "/v1/jobs", BATCH, false),
    ("GET", "/v1/jobs/{id}", "/v1/jobs/none", BATCH, false),
    ("POST", "/v1/jobs/{id}/cancel", "/v1/jobs/none/cancel", BATCH, false),
    ("GET", "/v1/jobs/{id}/events", "/v1/jobs/none/events", BATCH, false),
    ("GET", "/v1/keys", "/v1/keys", ADMIN, false),
    ("POST", "/v1/keys", "/v1/keys", ADMIN, false),
    ("GET", "/v1/keys/{id}", "/v1/keys/none", ADMIN, false),
    ("DELETE", "/v1/keys/{id}", "/v1/keys/none", ADMIN, false),
    ("POST", "/v1/keys/{id}/rotate", "/v1/keys/none/rotate", ADMIN, false),
    ("GET", "/v1/metrics", "/v1/metrics", READ, true),
    ("GET", "/v1/metrics/{metric}", "/v1/metrics/added", READ, true),
    ("PUT", "/v1/metrics/{metric}", "/v1/metrics/added", ADMIN, false),
    ("DELETE", "/v1/metrics/{metric}", "/v1/metrics/added", ADMIN, false),
    ("GET", "/v1/metrics/{metric}/live", "/v1/metrics/added/live?from=0", READ, true),
    ("GET", "/v1/metrics/{metric}/query", "/v1/metrics/added/query?from=0&to=60000", READ, true),
    ("POST", "/v1/metrics/{metric}/rollback", "/v1/metrics/added/rollback", BATCH, false),
    ("POST", "/v1/query", "/v1/query", READ, true),
    ("POST", "/v1/recomputes", "/v1/recomputes", BATCH, false),
    ("GET", "/v1/schedule", "/v1/schedule", &[Scope::MetricsRead, Scope::RecomputeRun], false),
    ("POST", "/v1/schedule/pause", "/v1/schedule/pause", BATCH, false),
    ("POST", "/v1/schedule/resume", "/v1/schedule/resume", BATCH, false),
    ("POST", "/v1/schedule/run", "/v1/schedule/run", BATCH, false),
    ("GET", "/v1/sources", "/v1/sources", READ_OR_SEND, false),
    ("GET", "/v1/sources/{source}", "/v1/sources/edits", READ_OR_SEND, false),
    ("PUT", "/v1/sources/{source}", "/v1/sources/edits", ADMIN, false),
    ("DELETE", "/v1/sources/{source}", "/v1/sources/edits", ADMIN, false),
    ("GET", "/v1/sources/{source}/archive", "/v1/sources/edits/archive", BATCH, false),
    ("GET", "/v1/sources/{source}/epochs", "/v1/sources/edits/epochs", BATCH, false),
    ("POST", "/v1/sources/{source}/erasures", "/v1/sources/edits/erasures", ADMIN, false),
    ("POST", "/v1/sources/{source}/events", "/v1/sources/edits/events", SEND, false),
    ("POST", "/v1/sql", "/v1/sql", SQL, true),
    ("DELETE", "/v1/sql/{id}", "/v1/sql/none", SQL, true),
];
pub(crate) const SHARE: &str = "[derived.share]\nexpression = \"sum(added) / count(added)\"\n";

/// What is sent to a path.
fn body(path: &str) -> &'static str {
    match path {
        "/v1/query" => r#"[{"metric": "added", "from": 0}]"#,
        "/v1/sql" => r#"{"query": "SELECT 1"}"#,
        _ => "",
    }
}

const OPEN: &[&str] = &["/livez", "/readyz", "/openapi.json", "/docs", "/docs/docs.js", "/docs/docs.css", "/"];

impl World {
    /// A key with these scopes and rules; gives its id and secret.
    pub(crate) async fn key(
        &self,
        scopes: &[Scope],
        rows: &[(&str, &[&str])],
        expires_in: Option<Micros>,
    ) -> (String, String) {
        let texts = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let rows: Rows = rows.iter().map(|(name, values)| ((*name).to_owned(), texts(values))).collect();
        let scopes: Scopes = scopes.iter().copied().collect();
        let now = self.clock.now();
        let new = NewKey { name: "test".into(), scopes, rows, expires_at: expires_in.map(|time| now + time) };
        let (key, secret) = auth::keys::create(&*self.store, new, "test", now).await.unwrap();
        (key.id, secret.reveal())
    }

    pub(crate) async fn by(&self, key: Option<&str>, method: &str, path: &str, body: &str) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        self.call(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    pub(crate) async fn status(&self, key: Option<&str>, method: &str, path: &str) -> u16 {
        self.by(key, method, path, "").await.status.as_u16()
    }
}

pub(crate) fn unlimited() -> Config {
    Config { rate: Rate { per_second: 100_000, burst: 100_000 }, ..Config::default() }
}

#[tokio::test]
async fn every_endpoint_answers_every_kind_of_caller_as_specified() {
    let mut world = World::over(&format!("{DEFINITIONS}{SHARE}"), unlimited()).await;
    let (expired, revoked) =
        (world.key(&[Scope::Admin], &[], Some(HOUR)).await, world.key(&[Scope::Admin], &[], None).await);
    auth::keys::revoke(&*world.store, &revoked.0, 0).await.unwrap();
    let mut keys = Vec::new();
    for scope in Scope::ALL {
        keys.push((scope, world.key(&[scope], &[], None).await.1));
    }
    let tenant = world.key(&[Scope::MetricsRead, Scope::SqlRun], &[("channel", &["en"])], None).await.1;
    world.set_now(1_000 * DAY + 2 * HOUR);
    let last = if keys[4].1.ends_with('A') { "B" } else { "A" };
    let garbage = format!("{}{last}", &keys[4].1[..63]);
    let mut checked = 0;
    for &(method, _, path, needs, by_rows) in SPECIFIED {
        for nobody in [None, Some("lam_"), Some("nothing"), Some(&*garbage), Some(&*expired.1), Some(&*revoked.1)] {
            let reply = world.by(nobody, method, path, body(path)).await;
            assert_eq!(reply.problem(401).0, "unauthorized", "{method} {path} {nobody:?}");
            assert_eq!(reply.headers["www-authenticate"], "Bearer realm=\"lamina\"");
            checked += 1;
        }
        for (scope, key) in &keys {
            let reply = world.by(Some(key), method, path, body(path)).await;
            let allowed = *scope == Scope::Admin || needs.contains(scope);
            if allowed {
                assert!(
                    !matches!(reply.status.as_u16(), 401 | 403 | 500..),
                    "{method} {path} {scope}: {}",
                    reply.text()
                );
            } else {
                let (code, detail) = reply.problem(403);
                assert_eq!(code, "missing_scope", "{method} {path} {scope}");
                let missing = needs.first().map_or("admin", |scope| scope.as_str());
                assert!(detail.contains(missing), "{detail} does not name {missing}");
            }
            checked += 1;
        }
        let reply = world.by(Some(&tenant), method, path, body(path)).await;
        match by_rows {
            true if method == "DELETE" => drop(reply.problem(404)),
            true => assert_eq!(reply.status, 200, "{method} {path}: {}", reply.text()),
            false => drop(reply.problem(403)),
        }
        checked += 1;
    }
    for path in OPEN {
        for key in [None, Some("nothing"), Some(&*revoked.1), Some(&*tenant)] {
            assert!(matches!(world.status(key, "GET", path).await, 200 | 307), "{path}");
            checked += 1;
        }
    }
    assert_eq!(checked, SPECIFIED.len() * 12 + OPEN.len() * 4);
    eprintln!("{checked} answers as specified");
}

#[tokio::test]
async fn every_endpoint_of_the_document_is_specified() {
    let world = World::new().await;
    let api = world.get("/openapi.json").await.ok();
    let mut documented = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let open = OPEN.contains(&path.as_str());
            let security = operation["security"].as_array();
            assert_eq!(security.is_none(), open, "{method} {path}");
            assert_eq!(operation["responses"].get("401").is_none(), open, "{method} {path}");
            if let Some(security) = security {
                let scopes = security.iter().map(|one| one["bearer"][0].as_str().unwrap().to_owned());
                documented.insert((method.to_uppercase(), path.clone(), scopes.collect::<BTreeSet<_>>()));
            }
        }
    }
    let scopes = |needs: &[Scope]| match needs {
        [] => ["admin".to_owned()].into(),
        _ => needs.iter().map(|scope| scope.as_str().to_owned()).collect::<BTreeSet<_>>(),
    };
    let specified: BTreeSet<_> = SPECIFIED
        .iter()
        .map(|(method, route, _, needs, _)| ((*method).to_owned(), (*route).to_owned(), scopes(needs)))
        .collect();
    assert_eq!(
        documented, specified,
        "serving/src/auth/endpoints.rs, docs/access.md and this table name every endpoint"
    );
    assert_eq!(api["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
}

#[tokio::test]
async fn lamina_is_open_until_the_first_key_and_never_again() {
    let world = World::new().await;
    assert_eq!(world.status(None, "GET", "/v1/metrics").await, 200);
    assert_eq!(world.status(None, "DELETE", "/v1/metrics").await, 405, "and methods are what they are");
    let made = world.by(None, "POST", "/v1/keys", r#"{"name": "root", "scopes": ["admin"]}"#).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let (id, secret) =
        (made.json()["id"].as_str().unwrap().to_owned(), made.json()["secret"].as_str().unwrap().to_owned());
    assert_eq!(made.headers["location"], format!("/v1/keys/{id}"));
    assert_eq!(world.status(None, "GET", "/v1/metrics").await, 401);
    assert_eq!(world.status(Some(&secret), "GET", "/v1/metrics").await, 200);
    assert_eq!(world.by(Some(&secret), "DELETE", &format!("/v1/keys/{id}"), "").await.ok()["state"], "revoked");
    assert_eq!(world.status(Some(&secret), "GET", "/v1/metrics").await, 401, "at once where it was revoked");
    assert_eq!(world.status(None, "GET", "/v1/metrics").await, 401);
}

#[tokio::test]
async fn where_credentials_are_required_there_is_no_open_moment() {
    let required = auth::Config { mode: Mode::Required, ..auth::Config::default() };
    let world = World::with(Config { auth: required, ..Config::default() }).await;
    assert_eq!(world.status(None, "GET", "/v1/metrics").await, 401);
    assert_eq!(world.status(None, "GET", "/livez").await, 200);
    let (_, key) = world.key(READ, &[], None).await;
    for (header, status) in [
        (format!("Bearer {key}"), 200),
        (format!("bearer  {key} "), 200),
        (format!("Basic {key}"), 401),
        (key.clone(), 401),
        (format!("Bearer {key}x"), 401),
        ("Bearer".to_owned(), 401),
        (format!("Bearer {}", "x".repeat(20_000)), 401),
    ] {
        let reply = world.send(Method::GET, "/v1/metrics", &[("authorization", &header)], "").await;
        assert_eq!(reply.status, status, "{header}");
    }
    let twice = format!("Bearer {key}");
    let reply =
        world.send(Method::GET, "/v1/metrics", &[("authorization", &twice), ("authorization", &twice)], "").await;
    assert_eq!(reply.status, 401);
    let metrics = auth::Config { mode: Mode::Required, open_metrics: true, ..auth::Config::default() };
    let world = World::with(Config { auth: metrics, ..Config::default() }).await;
    assert_eq!(
        (world.status(None, "GET", "/metrics").await, world.status(None, "GET", "/v1/metrics").await),
        (200, 401)
    );
    world.store.down.store(true, std::sync::atomic::Ordering::SeqCst);
    let reply = world.by(Some(&key), "GET", "/v1/metrics", "").await;
    assert_eq!(reply.problem(503).0, "store_unavailable", "who asks cannot be told");
}

/// Whether an event stream ends within this time.
async fn ends_within(events: &mut BodyDataStream, time: Duration) -> bool {
    tokio::time::timeout(time, async { while events.next().await.is_some() {} }).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_ends_with_the_key_that_began_it() {
    let world = World::with(unlimited()).await;
    let (_, admin) = world.key(&[Scope::Admin], &[], None).await;
    let (id, key) = world.key(READ, &[], None).await;
    let request = Request::builder().uri("/v1/metrics/added/live?window=1h&aggregate=count");
    let request = request.header("authorization", format!("Bearer {key}")).body(Body::empty()).unwrap();
    let response = world.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut events = response.into_body().into_data_stream();
    assert!(!ends_within(&mut events, Duration::from_secs(120)).await, "it ends by itself");
    assert_eq!(world.status(Some(&admin), "DELETE", &format!("/v1/keys/{id}")).await, 200);
    assert!(ends_within(&mut events, Duration::from_secs(10)).await, "it outlives its key");
}

#[tokio::test]
async fn a_rotated_secret_lives_for_its_overlap_and_a_revoked_key_ends_everywhere_within_five_seconds() {
    let mut world = World::with(unlimited()).await;
    let (_, admin) = world.key(&[Scope::Admin], &[], None).await;
    let (id, old) = world.key(READ, &[], None).await;
    let metrics = async |world: &World, key: &str| world.status(Some(key), "GET", "/v1/metrics").await;
    assert_eq!(metrics(&world, &old).await, 200);
    let rotate = format!("/v1/keys/{id}/rotate");
    let rotated = world.by(Some(&admin), "POST", &rotate, r#"{"overlap": "1h"}"#).await.ok();
    let new = rotated["secret"].as_str().unwrap().to_owned();
    assert_eq!((metrics(&world, &old).await, metrics(&world, &new).await), (200, 200));
    world.set_now(1_000 * DAY + HOUR - SECOND);
    assert_eq!(metrics(&world, &old).await, 200);
    world.set_now(1_000 * DAY + HOUR);
    assert_eq!((metrics(&world, &old).await, metrics(&world, &new).await), (401, 200));
    let at_once = world.by(Some(&admin), "POST", &rotate, "").await.ok()["secret"].as_str().unwrap().to_owned();
    assert_eq!((metrics(&world, &new).await, metrics(&world, &at_once).await), (401, 200));
    for overlap in ["31d", "-1h", "soon", ""] {
        let body = json!({"overlap": overlap}).to_string();
        assert_eq!(world.by(Some(&admin), "POST", &rotate, &body).await.problem(400).0, "bad_parameter");
    }
    // Another process revokes it.
    auth::keys::revoke(&*world.store, &id, world.clock.now()).await.unwrap();
    world.set_now(1_000 * DAY + HOUR + 5 * SECOND);
    assert_eq!(metrics(&world, &at_once).await, 401);
    assert_eq!(world.by(Some(&admin), "POST", &rotate, "").await.problem(409).0, "key_ended");
    let listed = world.by(Some(&admin), "GET", "/v1/keys", "").await;
    let listed_keys = listed.json()["keys"].as_array().unwrap().clone();
    assert_eq!(listed_keys.iter().find(|key| key["id"] == id.as_str()).unwrap()["state"], "revoked");
    for secret in [&admin, &old, &new, &at_once] {
        let part = &secret[21..];
        assert!(!listed.text().contains(part), "a list shows a secret");
    }
}

#[tokio::test]
async fn who_was_known_still_is_while_the_store_is_away() {
    let mut world = World::with(unlimited()).await;
    let away = |world: &World, is: bool| world.store.down.store(is, std::sync::atomic::Ordering::SeqCst);
    // `/v1/audit` asks the store, `/v1/metrics` does not.
    let metrics = async |world: &World, key: Option<&str>| world.status(key, "GET", "/v1/metrics").await;
    assert_eq!(metrics(&world, None).await, 200);
    away(&world, true);
    world.set_now(1_000 * DAY + 5 * SECOND);
    assert_eq!(metrics(&world, None).await, 200, "as open as it was");
    away(&world, false);
    let (id, key) = world.key(READ, &[], Some(HOUR)).await;
    let (_, unseen) = world.key(READ, &[], None).await;
    assert_eq!(metrics(&world, Some(&key)).await, 200);
    world.set_now(1_000 * DAY + 10 * SECOND);
    assert_eq!(metrics(&world, None).await, 401);
    away(&world, true);
    for (now, status) in [(20 * SECOND, 200), (14 * MINUTE, 200), (15 * MINUTE + 10 * SECOND, 503)] {
        world.set_now(1_000 * DAY + now);
        assert_eq!(metrics(&world, Some(&key)).await, status, "after {now} µs");
        assert_eq!(metrics(&world, Some(&unseen)).await, 503, "nothing is known of it");
        assert_eq!(metrics(&world, None).await, 401, "once closed it stays so");
    }
    // Revoked meanwhile elsewhere: it ends as soon as the store answers.
    away(&world, false);
    auth::keys::revoke(&*world.store, &id, 0).await.unwrap();
    assert_eq!(metrics(&world, Some(&key)).await, 401);
}

#[tokio::test]
async fn a_key_that_cannot_be_is_refused_by_name() {
    let world = World::new().await;
    for (body, named) in [
        ("{}", "`name`"),
        (r#"{"name": "", "scopes": ["admin"]}"#, "`name`"),
        (r#"{"name": "a\nb", "scopes": ["admin"]}"#, "`name`"),
        (r#"{"name": "a"}"#, "`scopes`"),
        (r#"{"name": "a", "scopes": ["root"]}"#, "metrics:read, sql:run, recompute:run, events:write, admin"),
        (r#"{"name": "a", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z", "x": 1}"#, "expires_at"),
        (r#"{"name": "a", "scopes": ["admin"], "expires_at": 0}"#, "`expires_at`"),
        (r#"{"name": "a", "scopes": ["admin"], "rows": {"tenant": ["acme"]}}"#, "`rows`"),
        (r#"{"name": "a", "scopes": ["metrics:read", "events:write"], "rows": {"tenant": "acme"}}"#, "events:write"),
        (r#"{"name": "a", "scopes": ["metrics:read"], "rows": {"tenant": []}}"#, "`rows`"),
        (r#"{"name": "a", "scopes": ["metrics:read"], "rows": {"tenant": [null]}}"#, "`rows`"),
        (r#"{"name": "a", "scopes": ["metrics:read"], "rows": {"tenant": ["$overflow"]}}"#, "$overflow"),
    ] {
        let (_, detail) = world.by(None, "POST", "/v1/keys", body).await.problem(400);
        assert!(detail.contains(named), "{body}: {detail}");
    }
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
    assert_eq!(world.by(None, "POST", "/v1/keys", &deep).await.problem(400).0, "too_deep");
}

#[tokio::test]
async fn what_was_done_is_noted_with_who_and_how_it_ended() {
    let world = World::with(unlimited()).await;
    let (admin_id, admin) = world.key(&[Scope::Admin], &[], None).await;
    let (reader_id, reader) = world.key(READ, &[], None).await;
    let bearer = format!("Bearer {admin}");
    let call = async |method: &str, path: &str, id: &str, body: &str| {
        let headers = [("authorization", bearer.as_str()), ("x-request-id", id)];
        world.send(method.parse().unwrap(), path, &headers, body.to_owned()).await
    };
    call("PUT", "/v1/metrics/new", "r1", r#"{"source": "edits"}"#).await;
    call("PUT", "/v1/metrics/added", "r2", r#"{"source": "edits"}"#).await;
    let job = call("POST", "/v1/recomputes", "r3", "{}").await.json()["id"].as_str().unwrap().to_owned();
    let made = call("POST", "/v1/keys", "r4", r#"{"name": "a", "scopes": ["admin"]}"#).await.json();
    call("POST", "/v1/sources/edits/events", "r5", r#"{"time": "1970-01-01T00:00:00Z"}"#).await;
    call("GET", "/v1/metrics", "r6", "").await;
    world.by(Some(&reader), "POST", "/v1/recomputes", "{}").await.problem(403);
    let audit = call("GET", "/v1/audit?limit=10", "r7", "").await;
    let entries = audit.json()["entries"].as_array().unwrap().clone();
    let admin_name = format!("key:{admin_id}");
    let seen: Vec<_> = entries
        .iter()
        .rev()
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            (text("principal"), text("action"), one["status"].as_u64().unwrap(), text("code"))
        })
        .collect();
    let row =
        |who: &str, action: &str, status, code: &str| (who.to_owned(), action.to_owned(), status, code.to_owned());
    assert_eq!(
        seen,
        [
            row(&admin_name, "PUT /v1/metrics/{metric}", 201, ""),
            row(&admin_name, "PUT /v1/metrics/{metric}", 409, "read_only"),
            row(&admin_name, "POST /v1/recomputes", 202, ""),
            row(&admin_name, "POST /v1/keys", 201, ""),
            row(&admin_name, "POST /v1/sources/{source}/events", 202, ""),
            row(&format!("key:{reader_id}"), "POST /v1/recomputes", 403, "missing_scope"),
        ]
    );
    assert_eq!((&entries[5]["request_id"], &entries[5]["path"]), (&json!("r1"), &json!("/v1/metrics/new")));
    assert_eq!(entries[3]["made"], format!("/v1/jobs/{job}"));
    assert_eq!(entries[2]["made"], format!("/v1/keys/{}", made["id"].as_str().unwrap()));
    for secret in [&admin, &reader, made["secret"].as_str().unwrap()] {
        assert!(!audit.text().contains(&secret[21..]));
    }
    let first = call("GET", "/v1/audit?limit=2", "r8", "").await.json();
    let rest = call("GET", &format!("/v1/audit?before={}", first["next"].as_str().unwrap()), "r9", "").await.json();
    assert_eq!((first["entries"].as_array().unwrap().len(), rest["entries"].as_array().unwrap().len()), (2, 4));
    assert_eq!(rest["next"], Value::Null);
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_go_on_and_others_are_not_held_up() {
    let config = Config { rate: Rate { per_second: 1, burst: 3 }, ..Config::default() };
    let world = World::with(config).await;
    let ((_, hasty), (_, calm)) = (world.key(READ, &[], None).await, world.key(READ, &[], None).await);
    for left in [2, 1, 0] {
        let reply = world.by(Some(&hasty), "GET", "/v1/metrics", "").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.headers["ratelimit-policy"], "\"default\";q=3;w=3");
        assert_eq!(reply.headers["ratelimit"], format!("\"default\";r={left};t={}", 3 - left));
    }
    let refused = world.by(Some(&hasty), "GET", "/v1/metrics", "").await;
    assert_eq!(refused.problem(429).0, "rate_limited");
    assert_eq!(
        (&refused.headers["retry-after"], &refused.headers["ratelimit"]),
        (&"1".parse().unwrap(), &"\"default\";r=0;t=3".parse().unwrap())
    );
    assert_eq!(world.status(Some(&calm), "GET", "/v1/metrics").await, 200);
    assert_eq!(world.status(None, "GET", "/livez").await, 200);
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(world.status(Some(&hasty), "GET", "/v1/metrics").await, 200);
}
