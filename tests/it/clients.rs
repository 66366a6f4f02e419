//! Clients that people use, against a running lamina: promtool, a published Python client of Prometheus, Grafana's own
//! requests, and `lamina sql`.

use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    place::{Place, count_and_sum, event},
    process::{Backend, Lamina, in_ci, run},
};

const EVENTS: usize = 480;
/// The end of the five minutes of the events, in Unix seconds: 2020-01-01T00:05:00Z.
const END: &str = "1577837100";
const START: &str = "1577836800";

/// What a Python client says: whether it connects, totals by site, points of a range, names.
const PYTHON: &str = "import sys, json, datetime
from prometheus_api_client import PrometheusConnect
client = PrometheusConnect(url=sys.argv[1])
end = datetime.datetime.fromtimestamp(1577837100, datetime.timezone.utc)
start = datetime.datetime.fromtimestamp(1577836800, datetime.timezone.utc)
totals = client.custom_query('sum by (site) (increase(bytes_sum[5m]))', params={'time': '1577837100'})
points = client.custom_query_range('sum(increase(bytes_count[1m]))', start_time=start, end_time=end, step='60')
largest = client.get_current_metric_value('bytes_max', label_config={'site': 'a'}, params={'time': '1577837100'})
print(json.dumps({
    'connected': client.check_prometheus_connection(),
    'totals': {one['metric']['site']: one['value'][1] for one in totals},
    'points': [value for _, value in points[0]['values']],
    'largest': [one['metric'] for one in largest],
    'names': client.all_metrics(),
    'sites': client.get_label_values('site'),
}))";

struct Running {
    place: Place,
    lamina: Lamina,
}

fn running(backend: Backend) -> Running {
    let place = Place::new(backend);
    let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
    let file = place.path().join("events.ndjson");
    let events: String = (0..EVENTS).map(|number| event(number) + "\n").collect();
    std::fs::write(&file, events).unwrap();
    let token = lamina.ingest("hits", &file);
    let range = [("from", "2020-01-01T00:00:00Z"), ("at_least", &token), ("wait", "30s")];
    lamina.query("bytes", &range.map(|(name, value)| (name.to_owned(), value.to_owned())));
    Running { place, lamina }
}

/// Count and sum of a site's events.
fn of_site(site: usize) -> (usize, usize) {
    (0..EVENTS).filter(|number| number % 3 == site).fold((0, 0), |(count, sum), number| (count + 1, sum + number))
}

/// Where promtool and a Python with prometheus-api-client are.
pub(crate) fn clients() -> Option<String> {
    let Ok(place) = std::env::var("LAMINA_TEST_PROMETHEUS") else {
        assert!(!in_ci(), "LAMINA_TEST_PROMETHEUS must name a folder with clients in continuous integration");
        eprintln!("left out: LAMINA_TEST_PROMETHEUS is not set; `make test` sets it");
        return None;
    };
    Some(place)
}

fn stdout(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).env("NO_PROXY", "127.0.0.1").output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {arguments:?}: {out}{error}");
    out.into_owned()
}

fn promtool_agrees(place: &str, url: &str) {
    let tool = format!("{place}/promtool");
    let (count, _) = count_and_sum(EVENTS);
    let ask = |arguments: &[&str]| stdout(&tool, &[&["query"][..], arguments].concat());
    let health = ask(&["instant", url, "1+1"]);
    assert!(health.starts_with("scalar: 2 @["), "{health}");
    let time = format!("--time={END}");
    let total = ask(&["instant", &time, url, "sum(increase(bytes_count[5m]))"]);
    assert_eq!(total.trim(), format!("{{}} => {count} @[{END}]"));
    let (start, end) = (format!("--start={START}"), format!("--end={END}"));
    let range = ask(&["range", &start, &end, "--step=5m", url, "sum by (site) (increase(bytes_sum[5m]))"]);
    for (site, name) in ["a", "b"].into_iter().enumerate() {
        let expected = format!("{{site=\"{name}\"}} =>\n{} @[{END}]", of_site(site).1);
        assert!(range.contains(&expected), "{range}");
    }
    assert_eq!(ask(&["labels", &start, &end, url, "site"]), "a\nb\n");
    let series = ask(&["series", &start, &end, "--match=bytes_sum{site=\"a\"}", url]);
    assert_eq!(series.trim(), "{__name__=\"bytes_sum\", site=\"a\"}");
    let refused = Command::new(&tool).args(["query", "instant", url, "deriv(bytes_max[5m])"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("deriv() is not supported"), "{said}");
}

fn python_agrees(place: &str, url: &str) {
    let found: Value = serde_json::from_str(&stdout(&format!("{place}/python"), &["-c", PYTHON, url])).unwrap();
    assert_eq!(found["connected"], true, "{found}");
    let (a, b) = (of_site(0).1.to_string(), of_site(1).1.to_string());
    assert_eq!(found["totals"], json!({"a": a, "b": b}));
    // A fifth of the events in each minute, and none before the first.
    let each = (0..5).map(|minute| (0..EVENTS).filter(|n| n % 5 == minute && n % 3 != 2).count().to_string());
    assert_eq!(found["points"], json!(each.collect::<Vec<_>>()));
    assert_eq!(found["largest"], json!([{"__name__": "bytes_max", "site": "a"}]));
    let names = found["names"].as_array().unwrap();
    assert!(
        ["bytes", "bytes_bucket", "bytes_count", "bytes_distinct_id"].iter().all(|name| names.contains(&json!(name))),
        "{names:?}"
    );
    assert_eq!(found["sites"], json!(["a", "b"]));
}

/// What Grafana's data source sends: save and test, the query builder's lists, a panel of a dashboard.
fn grafana_is_content(lamina: &Lamina) {
    let post = |path: &str, form: &[(&str, &str)]| -> Value {
        let form: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = lamina.request(Method::POST, &format!("/prometheus/api/v1/{path}"));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().unwrap();
        let (status, text) = (answer.status(), answer.text().unwrap());
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    };
    let get = |path: &str, pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        lamina.get(&format!("/prometheus/api/v1/{path}"), &pairs)["data"].clone()
    };
    let tested = post("query", &[("query", "1+1"), ("time", "1577837100.123")]);
    assert_eq!(tested["data"], json!({"resultType": "scalar", "result": [1_577_837_100.123, "2"]}));
    assert!(get("status/buildinfo", &[]).get("features").is_none());
    let range = [("start", START), ("end", END)];
    let names = post("labels", &[range[0], range[1], ("match[]", "bytes_count")]);
    assert_eq!(names["data"], json!(["__name__", "site"]));
    let values =
        get("label/site/values", &[range[0], range[1], ("match[]", "{__name__=\"bytes_count\"}"), ("limit", "40000")]);
    assert_eq!(values, json!(["a", "b"]));
    assert_eq!(get("metadata", &[("limit", "40000")])["bytes_sum"][0]["type"], "counter");
    assert_eq!(get("rules", &[]), json!({"groups": []}));
    assert_eq!(post("query_exemplars", &[("query", "bytes_count"), range[0], range[1]])["data"], json!([]));
    let panel = [
        ("query", "sum by(site) (rate(bytes_count{site=~\"a|b\"}[1m0s]))"),
        ("start", "1577836800"),
        ("end", "1577837100"),
        ("step", "60"),
    ];
    let drawn = post("query_range", &panel);
    assert_eq!(drawn["data"]["resultType"], "matrix");
    let series = drawn["data"]["result"].as_array().unwrap();
    assert_eq!(series.len(), 2, "{drawn}");
    let first = (0..EVENTS).filter(|n| n % 5 == 0 && n % 3 == 0).count() as f64 / 60.0;
    assert_eq!(series[0]["values"][0], json!([1_577_836_860, first.to_string()]));
}

fn sql_agrees(lamina: &Lamina) {
    let query = "SELECT site, sum(bytes_count) AS n, sum(bytes_sum) AS total, lamina_distinct(bytes_distinct_id) AS ids FROM bytes \
                 WHERE time >= $1 AND time < '2020-01-02T00:00:00Z' GROUP BY site ORDER BY site";
    let ask = |output: &str| {
        run(&["sql", query, "--param", "2020-01-01T00:00:00Z", "--server", &lamina.url, "--output", output])
    };
    let shown = |output: &str| {
        let done = ask(output);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let answer: Value = serde_json::from_str(&shown("json")).unwrap();
    let ((n, total), (m, other)) = (of_site(0), of_site(1));
    assert_eq!((&answer["rows"][0]["n"], &answer["rows"][0]["total"]), (&json!(n), &json!(total)), "{answer}");
    assert_eq!((&answer["rows"][1]["n"], &answer["rows"][1]["total"]), (&json!(m), &json!(other)), "{answer}");
    let ids = answer["rows"][0]["ids"].as_f64().unwrap();
    assert!((ids - n as f64).abs() <= 0.02 * n as f64, "{answer}");
    assert_eq!(answer["meta"]["complete"], true);
    let csv = shown("csv");
    assert!(csv.starts_with(&format!("site,n,total,ids\na,{n},{total},")), "{csv}");
    let table = shown("table");
    assert!(table.starts_with("site  n    total  ids\na     160  "), "{table}");
    let refused = run(&["sql", "SELECT * FROM bytes", "--server", &lamina.url]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("lower bound of its time"), "{said}");
}

fn clients_are_answered(backend: Backend) {
    if backend.skipped() {
        return;
    }
    let Running { place: _place, lamina } = running(backend);
    grafana_is_content(&lamina);
    sql_agrees(&lamina);
    if let Some(place) = clients() {
        let url = format!("{}/prometheus", lamina.url);
        promtool_agrees(&place, &url);
        python_agrees(&place, &url);
    }
}

#[test]
fn clients_are_answered_embedded() {
    clients_are_answered(Backend::Embedded);
}

#[test]
fn clients_are_answered_from_kafka_and_cassandra() {
    clients_are_answered(Backend::Real);
}
