//! What a request does, as spans of OpenTelemetry, and whose trace it belongs to.
//!
//! Spans are those of `tracing`, at level DEBUG; names and attributes are OpenTelemetry's semantic conventions for HTTP.
//! OpenTelemetry itself is used here and where spans are exported, and nowhere else: its interface for traces still changes.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response},
};
use lamina_core::SPANS;
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
    trace::TraceContextExt,
};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace that a request belongs to, if its caller or lamina records one.
pub(crate) struct Trace {
    /// Around all that is done for the request; disabled if nothing is recorded.
    pub(crate) span: Span,
    caller: Option<Context>,
}

impl Trace {
    pub(crate) fn of(request: &Request, route: &str) -> Self {
        let method = known(request.method());
        let span = tracing::debug_span!(
            target: SPANS,
            "request",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            otel.status_code = Empty,
            http.request.method = method,
            http.route = route,
            http.response.status_code = Empty,
            url.scheme = "http",
            url.path = request.uri().path(),
            request_id = Empty,
        );
        let headers = request.headers();
        let caller = headers.contains_key(TRACEPARENT).then(|| {
            global::get_text_map_propagator(|propagator| {
                propagator.extract_with_context(&Context::new(), &Headers(headers))
            })
        });
        let caller = caller.filter(|caller| caller.span().span_context().is_valid());
        if let Some(caller) = caller.clone().filter(|_| !span.is_disabled()) {
            // Only a span that has begun cannot be given a parent any more.
            let _ = span.set_parent(caller);
        }
        Self { span, caller }
    }

    /// The id of the trace, in hexadecimal digits.
    pub(crate) fn id(&self) -> Option<String> {
        self.context().map(|context| context.span().span_context().trace_id().to_string())
    }

    /// Notes the outcome, and tells the caller which trace it is in.
    pub(crate) fn end(&self, request_id: &str, response: &mut Response<Body>) {
        let status = response.status();
        self.span.record("http.response.status_code", status.as_u16());
        self.span.record("request_id", request_id);
        if status.is_server_error() {
            self.span.record("otel.status_code", "ERROR");
        }
        if let Some(context) = self.context() {
            let mut told = Told(response.headers_mut());
            global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut told));
        }
    }

    /// lamina's own span, or else what the caller sent.
    fn context(&self) -> Option<Context> {
        let own = (!self.span.is_disabled()).then(|| self.span.context());
        own.filter(|context| context.span().span_context().is_valid()).or_else(|| self.caller.clone())
    }
}

/// As the conventions have it: whatever is no known method must not make a name of its own.
fn known(method: &Method) -> &str {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE | Method::OPTIONS | Method::PATCH => {
            method.as_str()
        }
        _ => "_OTHER",
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Only which trace and span: what the caller sent as `tracestate` it has already.
struct Told<'a>(&'a mut HeaderMap);

impl Injector for Told<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let Ok(value) = HeaderValue::from_str(&value)
            && key == TRACEPARENT.as_str()
        {
            self.0.insert(TRACEPARENT, value);
        }
    }
}
