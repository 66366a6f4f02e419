//! Spans to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Configured as every program that speaks OTLP is, by the environment: the specification's `OTEL_*` variables, which the
//! SDK reads itself. Without an endpoint nothing is recorded.

use std::env;

use opentelemetry::{global, trace::TracerProvider};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

const SERVICE: &str = "lamina";

/// Sends what was recorded when it is dropped, for a few seconds at most.
#[must_use = "spans that were not sent yet are, when this is dropped"]
#[derive(Debug, Default)]
pub struct Exporting(Option<SdkTracerProvider>);

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Callers' traces are recognised in any case; spans are recorded if the environment names where to send them.
///
/// # Errors
/// If what the environment says cannot be used.
pub(super) fn open() -> Result<Option<(SdkTracer, Exporting)>, ExporterBuildError> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    if !is_asked_for() {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_http().build()?;
    let mut resource = Resource::builder();
    if env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    Ok(Some((provider.tracer(SERVICE), Exporting(Some(provider)))))
}

fn is_asked_for() -> bool {
    let says = |name: &str, word: &str| env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case(word));
    let given = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    (given("OTEL_EXPORTER_OTLP_ENDPOINT") || given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        && !says("OTEL_SDK_DISABLED", "true")
        && !says("OTEL_TRACES_EXPORTER", "none")
}
