//! Rules over rows: whoever is bound to values of dimensions sees these and nothing else, whatever they ask.

use lamina_serving::auth::Scope;
use serde_json::{Value, json};

use crate::{
    access::{READ, SHARE, unlimited},
    world::{DEFINITIONS, HOUR, World, encoded, set},
};

/// Events of two tenants, some of them covered by batch.
async fn two_tenants() -> World {
    let mut world = World::over(&format!("{DEFINITIONS}{SHARE}"), unlimited()).await;
    for n in 0..40 {
        let channel = ["en", "de", "fr", "en", "es"][n % 5];
        let time = format!("1970-01-01T00:{:02}:00Z", n);
        let event =
            json!({"time": time, "channel": channel, "country": "x", "user": format!("u{n}"), "added": n, "price": 1});
        world.append((n % 2) as u32, &event);
        if n == 20 {
            for partition in [0, 1] {
                world.flush(partition).await;
                world.seal(partition).await;
            }
            world.batch(true).await;
        }
    }
    for partition in [0, 1] {
        world.flush(partition).await;
    }
    world
}

#[tokio::test]
async fn a_bound_key_sees_its_rows_whatever_it_asks() {
    let world = two_tenants().await;
    let (_, all) = world.key(READ, &[], None).await;
    let (_, bound) = world.key(READ, &[("channel", &["en"])], None).await;
    let series = async |key: &str, params: &[(&str, &str)]| -> Value {
        let pairs: Vec<String> = params.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let path = format!("/v1/metrics/added/query?from=0&to={}&{}", HOUR / 1_000, pairs.join("&"));
        world.by(Some(key), "GET", &path, "").await.ok()["series"].clone()
    };
    for params in [
        &[][..],
        &[("step", "1m")],
        &[("group_by", "channel")],
        &[("group_by", "channel,country"), ("step", "10m"), ("fill", "zero")],
        &[("layer", "batch"), ("group_by", "channel")],
        &[("layer", "speed"), ("group_by", "channel")],
        &[("group_by", "country"), ("order_by", "sum desc"), ("limit", "5")],
        &[("aggregate", "top(user, 3),distinct(user),last")],
    ] {
        let mine = series(&bound, params).await;
        let filtered = [params, &[("where", "channel = 'en'")]].concat();
        assert_eq!(mine, series(&all, &filtered).await, "{params:?}");
        assert_ne!(mine, series(&all, params).await, "{params:?}: the rule holds nothing back");
        assert!(!mine.to_string().contains("\"de\"") && !mine.to_string().contains("\"fr\""), "{mine}");
    }
    let mine = series(&bound, &[]).await;
    for filter in [
        "TRUE",
        "channel = 'en' OR channel = 'de'",
        "channel IS NOT NULL OR TRUE",
        "NOT (channel = 'en') OR TRUE",
        "channel LIKE '%' OR country = 'x'",
        "(((TRUE)))",
    ] {
        assert_eq!(series(&bound, &[("where", filter)]).await, mine, "{filter}");
    }
    for filter in ["channel = 'de'", "channel <> 'en'", "NOT channel = 'en'"] {
        let none = series(&bound, &[("where", filter)]).await;
        assert_eq!(none[0]["points"], json!([]), "{filter}: {none}");
    }
    let injected = format!("/v1/metrics/added/query?from=0&to={}&where={}", HOUR / 1_000, encoded("TRUE) OR (TRUE"));
    world.by(Some(&bound), "GET", &injected, "").await.problem(400);
}

#[tokio::test]
async fn what_cannot_be_shown_by_rows_is_not_shown() {
    let world = two_tenants().await;
    let (_, bound) = world.key(READ, &[("channel", &["en"])], None).await;
    let (_, both) = world.key(READ, &[("channel", &["en"]), ("country", &["x", "y"])], None).await;
    let (_, other) = world.key(READ, &[("tenant", &["acme"])], None).await;
    let query = |metric: &str| format!("/v1/metrics/{metric}/query?from=0&to={}", HOUR / 1_000);
    for (key, metric, status) in [
        (&bound, "added", 200),
        (&both, "added", 200),
        (&bound, "capped", 200),
        (&both, "capped", 403),
        (&bound, "price", 403),
        (&other, "added", 403),
        (&other, "nope", 404),
    ] {
        let reply = world.by(Some(key), "GET", &query(metric), "").await;
        assert_eq!(reply.status, status, "{metric}: {}", reply.text());
        if status == 403 {
            assert_eq!(reply.problem(403).0, "row_rules");
        }
        let metric = format!("/v1/metrics/{metric}");
        assert_eq!(world.status(Some(key), "GET", &metric).await, status);
    }
    let names = async |key: &str, list: &str, name: &str| -> Vec<String> {
        let listed = world.by(Some(key), "GET", list, "").await.ok();
        listed["metrics"].as_array().unwrap().iter().map(|metric| metric[name].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&bound, "/v1/metrics", "name").await, ["added", "capped", "share"]);
    assert_eq!(names(&bound, "/v1/freshness", "metric").await, ["added", "capped"]);
    assert!(names(&other, "/v1/metrics", "name").await.is_empty());
    let shown = world.by(Some(&bound), "GET", "/v1/metrics/added", "").await.ok();
    for hidden in ["definition", "views", "versions", "building"] {
        assert!(!set(&shown).contains(hidden), "{hidden} is shown");
    }
    // The cap of `capped` is two series: the third is in the overflow, of which a bound key learns that it is, not how much.
    let overflowed = world.by(Some(&bound), "GET", &query("capped"), "").await.ok();
    assert_eq!((&overflowed["meta"]["complete"], &overflowed["meta"]["overflow"]), (&json!(false), &Value::Null));
}

#[tokio::test]
async fn no_other_way_to_ask_shows_more() {
    let world = two_tenants().await;
    let scopes = &[Scope::MetricsRead, Scope::SqlRun];
    let (_, all) = world.key(scopes, &[], None).await;
    let (_, bound) = world.key(scopes, &[("channel", &["en"])], None).await;
    let to = HOUR / 1_000;
    let derived = format!("/v1/metrics/share/query?from=0&to={to}&step=10m");
    let many = json!([{"metric": "added", "from": 0, "to": to, "group_by": ["channel"]}]).to_string();
    let sql = |query: &str| json!({"query": query}).to_string();
    let of = "SELECT time, channel, added_count, added_sum FROM added WHERE time >= '1970-01-01T00:00:00Z'";
    let promql = |query: &str| format!("/prometheus/api/v1/query?time=3600&query={}", encoded(query));
    let data = |path: &str| format!("/prometheus/api/v1/{path}start=0&end=3600");
    // Asked by the bound key, and what the free one asks for the same: with a filter, if that can be said there.
    let asked = [
        (
            "GET",
            derived.clone(),
            String::new(),
            format!("{derived}&where={}", encoded("channel = 'en'")),
            String::new(),
        ),
        (
            "POST",
            "/v1/query".into(),
            many.clone(),
            "/v1/query".into(),
            many.replace("}]", ", \"where\": \"channel = 'en'\"}]"),
        ),
        ("POST", "/v1/sql".into(), sql(of), "/v1/sql".into(), sql(&format!("{of} AND channel = 'en'"))),
        ("POST", "/v1/sql".into(), sql(&format!("{of} OR TRUE")), String::new(), String::new()),
        (
            "POST",
            "/v1/sql".into(),
            sql(&format!("{of} AND (channel = 'de' OR channel = 'en')")),
            "/v1/sql".into(),
            sql(&format!("{of} AND channel = 'en'")),
        ),
        (
            "POST",
            "/v1/sql".into(),
            sql(&format!("{of} AND channel = 'de' UNION ALL {of}")),
            "/v1/sql".into(),
            sql(&format!("{of} AND channel = 'en'")),
        ),
        (
            "GET",
            promql("sum_over_time(added_sum[1h])"),
            String::new(),
            promql("sum_over_time(added_sum{channel=\"en\"}[1h])"),
            String::new(),
        ),
        (
            "GET",
            promql("sum by (channel) (increase(added_sum[1h]))"),
            String::new(),
            promql("sum by (channel) (increase(added_sum{channel=\"en\"}[1h]))"),
            String::new(),
        ),
        (
            "GET",
            data("label/channel/values?"),
            String::new(),
            data("label/channel/values?match[]=added_sum%7Bchannel%3D%22en%22%7D&"),
            String::new(),
        ),
        (
            "GET",
            data("series?match[]=added_sum&"),
            String::new(),
            data("series?match[]=added_sum%7Bchannel%3D%22en%22%7D&"),
            String::new(),
        ),
    ];
    for (method, path, body, same, filtered) in &asked {
        let mine = world.by(Some(&bound), method, path, body).await;
        let text = mine.text();
        assert!(!text.contains("\"de\"") && !text.contains("\"fr\""), "{path} {body}: {text}");
        if !same.is_empty() {
            let values = |answer: Value| ["series", "rows", "data"].map(|member| answer[member].clone());
            let parts = |answer: Value| match answer["results"].as_array() {
                Some(results) => results.iter().map(|result| values(result["answer"].clone())).collect(),
                None => vec![values(answer)],
            };
            let (mine, same) = (parts(mine.ok()), parts(world.by(Some(&all), method, same, filtered).await.ok()));
            assert_eq!(mine, same, "{path} {body}");
            let free = world.by(Some(&all), method, path, body).await.ok();
            assert_ne!(mine, parts(free), "{path} {body}: the rule holds nothing back");
        }
    }
    // What cannot be told by rows does not exist here.
    let (code, detail) =
        world.by(Some(&bound), "POST", "/v1/sql", &sql("SELECT * FROM price WHERE time > now()")).await.problem(400);
    assert!(code == "bad_sql" && detail.contains("price"), "{code}: {detail}");
    let tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'metrics'";
    let tables = world.by(Some(&bound), "POST", "/v1/sql", &sql(tables)).await.ok();
    assert!(!tables.to_string().contains("price") && tables.to_string().contains("\"added\""), "{tables}");
    assert_eq!(world.by(Some(&bound), "GET", &promql("price_sum"), "").await.ok()["data"]["result"], json!([]));
    let names = world.by(Some(&bound), "GET", &data("label/__name__/values?"), "").await.text();
    assert!(names.contains("added_sum") && !names.contains("price"), "{names}");
    // Nor do validators, page tokens and ids of queries lead across.
    let query = format!("/v1/metrics/added/query?from=0&to={to}&step=1m&group_by=channel");
    let tag = world.by(Some(&all), "GET", &query, "").await.headers["etag"].to_str().unwrap().to_owned();
    let request = |key: &str| {
        let request = hyper::Request::builder().uri(&query).header("authorization", format!("Bearer {key}"));
        world.call(request.header("if-none-match", &tag).body("".into()).unwrap())
    };
    assert_eq!((request(&all).await.status.as_u16(), request(&bound).await.status.as_u16()), (304, 200));
    let first = world.by(Some(&all), "GET", &format!("{query}&page_size=3"), "").await.ok();
    let token = first["next_page_token"].as_str().unwrap();
    let next = format!("{query}&page_size=3&page_token={}", encoded(token));
    assert_eq!(world.status(Some(&all), "GET", &next).await, 200);
    assert!(world.by(Some(&bound), "GET", &next, "").await.problem(400).1.contains("another query"));
}
