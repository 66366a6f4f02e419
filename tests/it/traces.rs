//! A request's trace: from its caller through lamina to the statements that the view store was sent; and its line of log.
//!
//! The collector is a stand-in that takes what the exporter sends and decodes it by OpenTelemetry's own protocol.

use std::{
    collections::HashMap,
    fs,
    net::TcpListener,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as Any, trace::v1::Span,
};
use prost::Message;
use reqwest::Method;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{
    place::{Place, event},
    process::{Backend, Lamina, Launch, configure, free_port, run},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

impl Collector {
    /// Listens; gives itself and its address.
    fn listen(runtime: &Runtime) -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let taking = collector.clone();
        let take = move |body: Bytes| {
            let taking = taking.clone();
            async move { taking.take(&body) }
        };
        let app = Router::new().route("/v1/traces", post(take));
        runtime.spawn(async move {
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
        });
        (collector, address)
    }

    fn take(&self, body: &[u8]) {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let mut taken = self.0.lock().unwrap();
        for resource in request.resource_spans {
            let service = resource.resource.unwrap().attributes;
            let service = service.into_iter().find(|attribute| attribute.key == "service.name").unwrap();
            let Some(Any::StringValue(service)) = service.value.unwrap().value else { panic!("no name") };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            taken.extend(spans.map(|span| (service.clone(), span)));
        }
    }

    /// The spans of a trace, once one of them has this name.
    fn trace(&self, id: &str, name: &str) -> Vec<Span> {
        let from = Instant::now();
        loop {
            let taken = self.0.lock().unwrap();
            let spans = taken.iter().filter(|(service, span)| service == "lamina" && hex(&span.trace_id) == id);
            let spans: Vec<Span> = spans.map(|(_, span)| span.clone()).collect();
            if spans.iter().any(|span| span.name == name) {
                return spans;
            }
            let all: Vec<&str> = taken.iter().map(|(_, span)| span.name.as_str()).collect();
            assert!(from.elapsed() < Duration::from_secs(20), "no {name:?} in trace {id}; there are {all:?}");
            drop(taken);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => panic!("{key} of {} is {other:?}", span.name),
    }
}

fn start(place: &Place, collector: &str) -> Lamina {
    let (config, _) = configure(place.path(), &place.settings(), &place.name);
    if place.backend == Backend::Real {
        let migrated = run(&["migrate", "--config", &config.to_string_lossy()]);
        assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
    }
    let environment =
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT", collector.to_owned()), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())];
    let launch = Launch { environment, ..Launch::default() };
    Lamina::start_as("traced", launch, place.path(), &place.settings(), &place.name, |text| text)
}

/// The line of log about a request.
fn line_of(lamina: &Lamina, request_id: &str) -> Value {
    let log = fs::read_to_string(lamina.folder.join("lamina.log")).unwrap();
    let lines =
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}")));
    let mut of_request =
        lines.filter(|line| line["fields"]["message"] == "request" && line["fields"]["id"] == request_id);
    let line = of_request.next().unwrap_or_else(|| panic!("no line for {request_id} in {log}"));
    assert!(of_request.next().is_none(), "two lines for {request_id}");
    line["fields"].clone()
}

/// Ingests and asks, each in a trace; gives the spans of the two and the header `traceparent` of the second answer.
fn traced(place: &Place) -> (Vec<Span>, Vec<Span>, String) {
    let (collector, address) = Collector::listen(&place.runtime);
    let lamina = start(place, &address);
    let file = place.path().join("events.ndjson");
    fs::write(&file, (0..100).map(|number| event(number) + "\n").collect::<String>()).unwrap();

    let sent = lamina.request(Method::POST, "/v1/sources/hits/events").body(fs::read(&file).unwrap());
    let sent = sent.header("traceparent", format!("00-{CALLER}{CALLER}-{CALLER}-01")).send().unwrap();
    assert_eq!(sent.status().as_u16(), 202);
    let token: Value = serde_json::from_str(&sent.text().unwrap()).unwrap();
    let token = token["position"].as_str().unwrap();

    let path = format!("/v1/metrics/bytes/query?{RANGE}&at_least={token}&wait=30s");
    let asked = lamina.request(Method::GET, &path).header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let answer = asked.header("x-request-id", "asked-once").send().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let told = answer.headers()["traceparent"].to_str().unwrap().to_owned();
    let length = answer.bytes().unwrap().len() as u64;

    let line = line_of(&lamina, "asked-once");
    for (key, value) in [("method", "GET"), ("route", "/v1/metrics/{metric}/query"), ("trace", TRACE)] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((line["status"].as_u64(), line["bytes"].as_u64()), (Some(200), Some(length)), "{line}");
    assert!(line["ms"].is_u64() && !line.to_string().contains("at_least"), "{line}");

    // What fails names its request.
    let failed = lamina.request(Method::GET, "/v1/metrics/none/query").header("x-request-id", "fails").send().unwrap();
    let problem: Value = serde_json::from_str(&failed.text().unwrap()).unwrap();
    assert_eq!((problem["status"].as_u64(), problem["request_id"].as_str()), (Some(404), Some("fails")));
    assert_eq!(line_of(&lamina, "fails")["status"], 404);

    let query = collector.trace(TRACE, "GET /v1/metrics/{metric}/query");
    (collector.trace(&CALLER.repeat(2), "POST /v1/sources/{source}/events"), query, told)
}

/// The spans above this one, up to the caller's.
fn path(spans: &[Span], of: &Span) -> Vec<String> {
    let by_id: HashMap<&[u8], &Span> = spans.iter().map(|span| (&*span.span_id, span)).collect();
    let (mut names, mut at) = (vec![of.name.clone()], of);
    while let Some(parent) = by_id.get(&*at.parent_span_id) {
        names.push(parent.name.clone());
        at = parent;
    }
    assert_eq!(hex(&at.parent_span_id), CALLER, "{names:?} begins somewhere else");
    names
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let all: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} among {all:?}"))
}

fn check(place: &Place) -> Vec<Span> {
    let (ingest, query, told) = traced(place);
    let server = named(&query, "GET /v1/metrics/{metric}/query");
    assert_eq!(told, format!("00-{TRACE}-{}-01", hex(&server.span_id)));
    assert_eq!(attribute(server, "http.route"), "/v1/metrics/{metric}/query");
    assert_eq!(attribute(server, "http.response.status_code"), "200");
    assert_eq!(attribute(server, "url.path"), "/v1/metrics/bytes/query");
    assert_eq!(attribute(server, "request_id"), "asked-once");
    for name in ["read", "merge"] {
        assert_eq!(path(&query, named(&query, name)).len(), 2, "{name} is the request's");
    }
    let send = named(&ingest, &format!("send {}", place.name));
    assert_eq!(path(&ingest, send).last().unwrap(), "POST /v1/sources/{source}/events");
    assert_eq!(attribute(send, "messaging.batch.message_count"), "100");
    query
}

#[test]
fn a_request_is_traced_to_the_log_on_the_embedded_backends() {
    check(&Place::new(Backend::Embedded));
}

#[test]
fn a_request_is_traced_to_its_statements_on_cassandra() {
    if Backend::Real.skipped() {
        return;
    }
    let place = Place::new(Backend::Real);
    let spans = check(&place);
    let select = named(&spans, "SELECT ledgers");
    assert_eq!(path(&spans, select)[1..], ["read", "GET /v1/metrics/{metric}/query"]);
    assert_eq!(attribute(select, "db.system.name"), "cassandra");
    assert_eq!(attribute(select, "db.namespace"), place.name);
    assert!(attribute(select, "db.query.text").starts_with("SELECT "));
}

#[test]
fn without_a_collector_requests_are_answered_and_traces_passed_on() {
    let place = Place::new(Backend::Embedded);
    let mut lamina = start(&place, &format!("http://127.0.0.1:{}", free_port()));
    let parent = format!("00-{TRACE}-{CALLER}-00");
    for _ in 0..200 {
        let answer = lamina.request(Method::GET, "/v1/metrics").header("traceparent", &parent).send().unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        // The caller does not record this trace, so neither does lamina.
        let told = answer.headers()["traceparent"].to_str().unwrap();
        assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"), "{told}");
    }
    let garbage = lamina.request(Method::GET, "/v1/metrics").header("traceparent", "00-zz-zz-01").send().unwrap();
    assert_eq!(garbage.status().as_u16(), 200);
    assert!(lamina.stop(Duration::from_secs(20)).success());
}
