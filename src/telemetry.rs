//! Logs to stderr, metrics to whoever scrapes `/metrics`.

use std::{io::IsTerminal, sync::OnceLock};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Sends logs to stderr: for people on a terminal, as JSON lines otherwise. `RUST_LOG` filters.
pub fn init_logs(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // reporting that stderr cannot be written, to stderr, would panic: a full disk under the log file ends nothing
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let done = if std::io::stderr().is_terminal() { logs.with_ansi(colour).try_init() } else { logs.json().try_init() };
    if let Err(error) = done {
        eprintln!("logs are set up already: {error}");
    }
}

/// The one recorder of this process's metrics.
///
/// # Errors
/// If another recorder was installed.
pub fn recorder() -> Result<PrometheusHandle, String> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    RECORDER.get_or_init(|| PrometheusBuilder::new().install_recorder().map_err(|error| error.to_string())).clone()
}
