//! `lamina demo`: everything embedded, on simulated servers.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use lamina_core::{Clock, Micros, clock::SystemClock};

use super::{Done, Failure, serve::stop_on_signals};
use crate::{
    config::Config,
    demo::{DEFINITIONS, Servers, TOPIC},
    run::{Node, Roles},
    telemetry,
};

/// Hours of history that a fresh demonstration begins with, and events in them.
const HISTORY_HOURS: Micros = 3;
const HISTORY_EVENTS: usize = 60_000;
const SLICE: usize = 500;
/// Live events are sent in slices of this length.
const TICK: Duration = Duration::from_millis(100);

/// Run everything embedded on simulated server metrics.
#[derive(clap::Args)]
pub(super) struct Demo {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Events per second
    #[arg(long, default_value_t = 1_000)]
    rate: usize,
    /// The same seed gives the same servers and readings
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder to keep data in; left out, a temporary one that goes with the demonstration
    #[arg(long)]
    data: Option<PathBuf>,
}

impl Demo {
    pub(super) async fn run(self) -> Done {
        let _exporting = telemetry::init("warn");
        let temporary =
            tempfile::tempdir().map_err(|error| Failure::failed(format!("no temporary folder: {error}")))?;
        let data = self.data.clone().unwrap_or_else(|| temporary.path().to_owned());
        let mut config = Config::embedded(&data).map_err(Failure::usage)?;
        if !self.listen.ip().is_loopback() {
            return Err(Failure::usage(format!(
                "--listen {}: the demonstration has no keys, so it listens on loopback only",
                self.listen
            )));
        }
        config.listen = self.listen;
        config.speed.epoch = Duration::from_secs(5);
        config.batch.schedule =
            "*/15 * * * * *".parse().map_err(|error: lamina_batch::BatchError| Failure::failed(error))?;
        let built_in = vec![(DEFINITIONS.0.to_owned(), DEFINITIONS.1.to_owned())];
        let node = Node::open(&config, built_in).await.map_err(|error| Failure::from_error(2, &error))?;
        stop_on_signals(node.stop());
        let topic = node
            .backends
            .log
            .ensure_topic(TOPIC, config.partitions)
            .await
            .map_err(|error| Failure::from_error(1, &error))?;
        let address = node.start(&config, Roles::ALL).await.map_err(|error| Failure::from_error(1, &error))?;
        announce(address, &topic.id);
        let sender = tokio::spawn(send(
            std::sync::Arc::clone(&node.backends.log),
            Servers::new(self.seed),
            self.rate,
            node.stop(),
        ));
        let ended = node.finished().await;
        sender.abort();
        Ok(if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// History first, then live events until the stop.
async fn send(
    log: std::sync::Arc<dyn lamina_core::log::Log>,
    mut servers: Servers,
    rate: usize,
    stop: tokio_util::sync::CancellationToken,
) {
    let now = SystemClock.now();
    let slices = HISTORY_EVENTS / SLICE;
    let step = HISTORY_HOURS * 3_600_000_000 / slices as Micros;
    for slice in (0..slices).rev() {
        let events = servers.events(now - step * slice as Micros, SLICE);
        if let Err(error) = log.append(TOPIC, events).await {
            tracing::warn!(%error, "simulated events were not taken");
        }
    }
    let mut ticks = tokio::time::interval(TICK);
    let a_tick = (rate as f64 * TICK.as_secs_f64()).max(1.0) as usize;
    while !stop.is_cancelled() {
        ticks.tick().await;
        let events = servers.events(SystemClock.now(), a_tick);
        if let Err(error) = log.append(TOPIC, events).await {
            tracing::warn!(%error, "simulated events were not taken");
        }
    }
}

fn announce(address: SocketAddr, topic: &str) {
    let base = format!("http://{address}");
    tracing::debug!(topic, "demonstration topic");
    println!("lamina demo: 1,500 simulated servers, 20 readings each, in 8 regions (Ctrl-C stops)");
    println!();
    let hour = 3_600_000;
    let now = SystemClock.now() / 1_000;
    let range = format!("from={}&to={}", (now / hour - 1) * hour, (now / hour + 2) * hour);
    println!("  load by region         {base}/v1/metrics/load/query?{range}&group_by=region&aggregate=count,avg");
    println!(
        "  latency by minute      {base}/v1/metrics/latency/query?{range}&step=1m&aggregate=p50,p99,distinct(host)"
    );
    println!("  how fresh              {base}/v1/freshness");
    println!("  the API                {base}/docs");
    println!();
    println!("Answers are live within a second; in `meta`, watch `batch.cut` catch up with `speed.positions`");
    println!("every 15 seconds while the values stay right.");
}
