//! Strings that are meant to break something, through every parameter: each is answered, and none with a 5xx.

use hyper::{Method, Request, StatusCode, header::HeaderValue};
use lamina_serving::{Config, Rate};
use serde_json::json;

use crate::world::{World, encoded};

/// SQL, paths, headers, unicode, control characters, huge numbers, templates, markup, tokens.
const PAYLOADS: &[&str] = &[
    "'",
    "''",
    "\"",
    "`",
    "' OR '1'='1",
    "' OR 1=1 --",
    "'; DROP TABLE documents; --",
    "1; SELECT pg_sleep(10)",
    "channel = 'a' UNION SELECT * FROM api_key",
    "channel IN (SELECT secret FROM api_key)",
    "channel = 'a') OR (TRUE",
    "((((((((((((((((((((((((((((((((((((((((((((((((((",
    "NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT NOT TRUE",
    "CASE WHEN TRUE THEN channel ELSE country END = 'a'",
    "/* */ TRUE -- ",
    "channel LIKE '%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%_' ESCAPE '%'",
    "now() > channel",
    "$1",
    ":name",
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "..\\..\\windows\\win.ini",
    "/",
    "//",
    "./.",
    "%00",
    "%",
    "%zz",
    "%ff%fe",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "a\r\nset-cookie: x=1",
    "a\r\n\r\nHTTP/1.1 200 OK",
    "a\nb",
    "\u{0}",
    "a\u{0}b",
    "\u{1}\u{2}\u{1b}[31m",
    "\u{7f}",
    "\u{feff}",
    "\u{202e}gnp.exe",
    "\u{200b}",
    "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "İıſK",
    "ﬀ",
    "Å\u{30a}\u{301}\u{301}\u{301}",
    "\u{10ffff}",
    "名前",
    "-1",
    "0",
    "-0",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "99999999999999999999999999999999999999999999",
    "1e309",
    "-1e-400",
    "NaN",
    "inf",
    "0x7fffffff",
    "1_000",
    "٣",
    "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "+292278994-08-17T07:12:55.807Z",
    "2015-02-30T00:00:00Z",
    "1970-01-01T00:00:00+99:99",
    "1000000000d",
    "-1s",
    "0s",
    "1mo1mo",
    "true",
    "null",
    "{}",
    "[]",
    "{\"$gt\": \"\"}",
    "[[[[[[[[[[[[[[[[[[[[",
    "{{7*7}}",
    "${jndi:ldap://127.0.0.1/a}",
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "*",
    "W/\"x\"",
    "\"a\", \"b\"",
    "Bearer lam_0000000000000000_",
    "lam_0000000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.",
    "AAVlZGl0cwRpZC0wAQAB",
    ",,,,",
    "count,count,count",
    "top(user, 99999999999)",
    "p0,p100,p-1,p1e9,p99.99999999999999999999",
    "distinct(\")\")",
    "UTC/../../etc",
    "Europe/Berlin\u{0}",
];

/// What a payload stands in.
const FRAMES: &[(&str, &str)] = &[
    ("", ""),
    ("'", "'"),
    ("\"", "\""),
    ("(", ")"),
    (" ", " "),
    ("channel = '", "'"),
    ("channel = ", ""),
    ("count,", ""),
    ("", ",count"),
    ("1970-01-01T", ""),
    ("1", ""),
    ("", "1"),
    ("-", ""),
    ("a", "b"),
    ("%", ""),
    ("", "\\"),
    ("[", "]"),
    ("{\"a\": \"", "\"}"),
    ("ä", "ö"),
    ("added/", ""),
    ("", "/../added"),
    ("\t", "\n"),
];

/// Doubled ones show what repetition does; long ones, what size does.
fn strings() -> Vec<String> {
    let mut strings = Vec::new();
    for payload in PAYLOADS {
        for (before, after) in FRAMES {
            strings.push(format!("{before}{payload}{after}"));
            strings.push(format!("{before}{payload}{payload}{after}"));
        }
        strings.push(payload.repeat(50));
        strings.push(payload.repeat(1 + 3_000 / payload.len()));
    }
    for n in 0..700_u32 {
        // Every character up to a bound, alone and within a word.
        let c = char::from_u32(n * 97 % 0xd7ff).unwrap_or('x');
        strings.extend([c.to_string(), format!("a{c}b")]);
    }
    strings
}

const QUERY: &[&str] = &[
    "from",
    "to",
    "step",
    "aggregate",
    "group_by",
    "where",
    "layer",
    "order_by",
    "limit",
    "fill",
    "tz",
    "at_least",
    "wait",
    "align",
    "numbers",
    "compare",
    "page_size",
    "page_token",
];
const HEADERS: &[(&str, &str, &str)] = &[
    ("GET", "/v1/metrics", "authorization"),
    ("GET", "/v1/metrics", "x-request-id"),
    ("GET", "/v1/metrics", "accept-encoding"),
    ("POST", "/v1/recomputes", "idempotency-key"),
    ("POST", "/v1/recomputes", "content-type"),
    ("PUT", "/v1/metrics/x", "if-match"),
    ("GET", "/v1/metrics/added/query?from=0&to=60000", "accept"),
    ("GET", "/v1/metrics/added/query?from=0&to=60000", "if-none-match"),
    ("POST", "/v1/sql", "x-lamina-query-id"),
    ("POST", "/v1/sources/edits/events", "content-encoding"),
    ("POST", "/v1/sources/edits/events", "content-type"),
];
const PATHS: &[(&str, &str)] = &[
    ("GET", "/v1/metrics/@"),
    ("PUT", "/v1/metrics/@"),
    ("DELETE", "/v1/metrics/@"),
    ("GET", "/v1/metrics/@/query?from=0"),
    ("POST", "/v1/metrics/@/rollback"),
    ("GET", "/v1/sources/@"),
    ("PUT", "/v1/sources/@"),
    ("DELETE", "/v1/sources/@"),
    ("GET", "/v1/sources/@/epochs"),
    ("GET", "/v1/sources/@/archive"),
    ("POST", "/v1/sources/@/events"),
    ("POST", "/v1/sources/@/erasures"),
    ("GET", "/v1/jobs/@"),
    ("GET", "/v1/jobs/@/events"),
    ("POST", "/v1/jobs/@/cancel"),
    ("GET", "/v1/freshness/@"),
    ("GET", "/v1/freshness/@/history"),
    ("GET", "/v1/freshness/added/history?from=@"),
    ("GET", "/v1/freshness/added/history?step=@"),
    ("GET", "/v1/keys/@"),
    ("DELETE", "/v1/keys/@"),
    ("POST", "/v1/keys/@/rotate"),
    ("GET", "/v1/jobs?state=@"),
    ("GET", "/v1/jobs?kind=@"),
    ("GET", "/v1/jobs?limit=@"),
    ("GET", "/v1/jobs?before=@"),
    ("GET", "/v1/jobs?@=1"),
    ("GET", "/v1/audit?limit=@"),
    ("GET", "/v1/audit?before=@"),
    ("GET", "/v1/freshness?fail_on=@"),
    ("GET", "/v1/sources/edits/epochs?from=@"),
    ("GET", "/v1/sources/edits/archive?to=@"),
    ("GET", "/v1/derived/@"),
    ("PUT", "/v1/derived/@"),
    ("GET", "/v1/metrics/@/live"),
    ("GET", "/v1/metrics/added/live?from=@"),
    ("GET", "/v1/metrics/added/live?from=0&every=@"),
    ("DELETE", "/v1/sql/@"),
    ("GET", "/prometheus/api/v1/query?query=@"),
    ("GET", "/prometheus/api/v1/query?query=added_sum%7Bchannel=~%22@%22%7D"),
    ("GET", "/prometheus/api/v1/query?query=1&time=@"),
    ("GET", "/prometheus/api/v1/query?query=1&timeout=@"),
    ("GET", "/prometheus/api/v1/query_range?query=added_sum&start=0&end=60&step=@"),
    ("GET", "/prometheus/api/v1/query_range?query=added_sum&start=0&end=@&step=60"),
    ("GET", "/prometheus/api/v1/series?match[]=@"),
    ("GET", "/prometheus/api/v1/label/@/values"),
    ("GET", "/prometheus/api/v1/metadata?metric=@"),
    ("GET", "/@"),
];
/// Bodies, by what stands for the string: a JSON text.
const BODIES: &[(&str, &str, &str)] = &[
    ("POST", "/v1/recomputes", r#"{"metrics": [@]}"#),
    ("POST", "/v1/recomputes", r#"{"metric": "added", "from": @}"#),
    ("POST", "/v1/recomputes", r#"{"metric": "added", "to": @}"#),
    ("POST", "/v1/recomputes", r#"{"dry_run": @}"#),
    ("POST", "/v1/recomputes", r#"{@: 1}"#),
    ("POST", "/v1/metrics/added/rollback", r#"{"as_of": @}"#),
    ("POST", "/v1/metrics/added/rollback", r#"{"generation": @}"#),
    ("POST", "/v1/sources/edits/erasures", r#"{"where": @, "dry_run": true, "x": 1}"#),
    ("POST", "/v1/keys", r#"{"name": "x", "scopes": [@]}"#),
    ("POST", "/v1/keys", r#"{"name": "x", "scopes": ["admin"], "expires_at": @, "x": 1}"#),
    ("POST", "/v1/keys", r#"{"name": "x", "scopes": ["admin"], "rows": {@: @}}"#),
    ("POST", "/v1/keys/none/rotate", r#"{"overlap": @}"#),
    ("PUT", "/v1/metrics/added", r#"{"source": @}"#),
    ("POST", "/v1/schedule/pause", r#"{"reason": [@]}"#),
    ("POST", "/v1/query", r#"[{"metric": "added", "from": 0, "to": 60000, "where": @}]"#),
    ("POST", "/v1/query", r#"[{"metric": @, "from": 0}]"#),
    ("POST", "/v1/sql", r#"{"query": @}"#),
    ("POST", "/v1/sql", r#"{"query": "SELECT count(*) FROM added WHERE time > $1", "params": [@]}"#),
    ("POST", "/v1/sql", r#"{"query": "SELECT $1", "params": [@]}"#),
    ("PUT", "/v1/derived/x", r#"{"expression": @}"#),
];

struct Outcome {
    sent: usize,
    answered: std::collections::BTreeMap<u16, usize>,
}

impl Outcome {
    async fn send(&mut self, world: &World, request: Request<axum::body::Body>, what: impl Fn() -> String) {
        let reply = world.call(request).await;
        self.sent += 1;
        *self.answered.entry(reply.status.as_u16()).or_default() += 1;
        assert!(reply.status < StatusCode::INTERNAL_SERVER_ERROR, "{}: {} {}", what(), reply.status, reply.text());
        let request_id = reply.headers["x-request-id"].to_str().unwrap();
        assert!(request_id.bytes().all(|b| b.is_ascii_graphic()), "{}: {request_id:?}", what());
    }
}

fn request(
    method: &str,
    uri: &str,
    headers: &[(&str, HeaderValue)],
    body: String,
) -> Option<Request<axum::body::Body>> {
    let mut request = Request::builder().method(method.parse::<Method>().unwrap()).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    request.body(body.into()).ok()
}

#[tokio::test]
async fn thousands_of_strings_break_no_parameter() {
    let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let world = World::with(Config { rate, ..Config::default() }).await;
    world.append(0, &json!({"time": "1970-01-01T00:00:00Z", "channel": "a", "added": 1}));
    let strings = strings();
    assert!(strings.len() >= 5_000, "{}", strings.len());
    let mut outcome = Outcome { sent: 0, answered: Default::default() };
    // Every string goes through every parameter of a query, and through every fourth of the other places; all of them through
    // all takes some ten minutes.
    let all = std::env::var_os("LAMINA_ALL_STRINGS").is_some();
    for (at, text) in strings.iter().enumerate() {
        let chosen = |place: usize| all || (at + place).is_multiple_of(4);
        for name in QUERY {
            let base = if *name == "from" { String::new() } else { "from=0&to=60000&wait=0&".to_owned() };
            let base = base.replace("to=60000&", if *name == "to" { "" } else { "to=60000&" });
            let base = base.replace("wait=0&", if *name == "wait" { "" } else { "wait=0&" });
            let uri = format!("/v1/metrics/added/query?{base}{name}={}", encoded(text));
            let Some(request) = request("GET", &uri, &[], String::new()) else { panic!("{uri}") };
            outcome.send(&world, request, || format!("{name}={text:?}")).await;
        }
        for (_, (method, path)) in PATHS.iter().enumerate().filter(|one| chosen(one.0)) {
            // Escaped, and as it is where that is an address at all.
            for part in [encoded(text), text.clone()].iter().take(if at % 8 < 4 { 2 } else { 1 }) {
                let Some(request) = request(method, &path.replace('@', part), &[], "{}".into()) else { continue };
                outcome.send(&world, request, || format!("{method} {path} {text:?}")).await;
            }
        }
        for (_, (method, path, name)) in HEADERS.iter().enumerate().filter(|one| chosen(one.0)) {
            let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { continue };
            let body = if path.ends_with("recomputes") { r#"{"metric": 1}"# } else { "{}" };
            let Some(request) = request(method, path, &[(name, value)], body.into()) else { continue };
            outcome.send(&world, request, || format!("{name}: {text:?}")).await;
        }
        for (_, (method, path, body)) in BODIES.iter().enumerate().filter(|one| chosen(one.0)) {
            for part in [json!(text).to_string(), text.clone()] {
                let json = ("content-type", HeaderValue::from_static("application/json"));
                let Some(request) = request(method, path, &[json], body.replace('@', &part)) else { continue };
                outcome.send(&world, request, || format!("{method} {path} {body} {text:?}")).await;
            }
        }
        let Some(request) = request("POST", "/v1/sources/edits/events", &[], text.clone()) else { continue };
        outcome.send(&world, request, || format!("an event {text:?}")).await;
    }
    eprintln!("{} strings, {} requests: {:?}", strings.len(), outcome.sent, outcome.answered);
}
