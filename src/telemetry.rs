//! Logs to stderr, metrics to whoever scrapes `/metrics`, traces to a collector.

mod traces;

use std::{io::IsTerminal, sync::OnceLock};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, Layer, Registry, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

pub use self::traces::Exporting;

type Sink = Box<dyn Layer<Registry> + Send + Sync>;

/// Sends logs to stderr, for people on a terminal, as JSON lines otherwise: `RUST_LOG` filters; and traces where the
/// environment says, for as long as what is returned lives.
pub fn init(default: &str) -> Exporting {
    let (traces, exporting, failed) = match traces::open() {
        Ok(Some((tracer, exporting))) => (Some(tracer), exporting, None),
        Ok(None) => (None, Exporting::default(), None),
        Err(error) => (None, Exporting::default(), Some(error)),
    };
    let spans = Targets::new().with_target(lamina_core::SPANS, tracing::Level::DEBUG);
    let traces = traces.map(|tracer| {
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        layer.with_target(false).with_tracked_inactivity(false).with_filter(spans).boxed()
    });
    if let Err(error) =
        Registry::default().with(traces.into_iter().chain([logs(default)]).collect::<Vec<Sink>>()).try_init()
    {
        eprintln!("logs are set up already: {error}");
    }
    if let Some(error) = failed {
        tracing::error!(%error, "no traces are sent: see the OTEL_EXPORTER_OTLP_* variables of the environment");
    }
    exporting
}

fn logs(default: &str) -> Sink {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // reporting that stderr cannot be written, to stderr, would panic: a full disk under the log file ends nothing
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        return logs.with_ansi(std::env::var_os("NO_COLOR").is_none()).with_filter(filter).boxed();
    }
    logs.json().with_filter(filter).boxed()
}

/// Bounds of histograms, in seconds: of what users wait for, from a cached answer to minutes of lag,
const WAITS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 900.0];
/// and of batch runs, from a second to hours.
const RUNS: &[f64] = &[1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0];

/// The one recorder of this process's metrics.
///
/// Histograms have buckets, which can be added up over processes; quantiles cannot.
///
/// # Errors
/// If another recorder was installed.
pub fn recorder() -> Result<PrometheusHandle, String> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    RECORDER.get_or_init(|| install().map_err(|error| error.to_string())).clone()
}

fn install() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), WAITS)?
        .set_buckets_for_metric(Matcher::Full("lamina_batch_run_seconds".to_owned()), RUNS)?
        .install_recorder()
}
