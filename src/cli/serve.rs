//! `lamina serve` and `lamina migrate`.

use std::process::ExitCode;

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{ConfigFile, Done, Failure};
use crate::{
    backends::cassandra,
    config::{Config, StoreConfig},
    executor,
    run::{Node, Roles, Tasks, cassandra_config},
    telemetry,
};

/// Run the roles of a configuration until SIGTERM or Ctrl-C; then drain and seal.
#[derive(clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    config: ConfigFile,
    /// Which roles to run
    #[arg(long, value_enum, default_value = "all")]
    role: Vec<Role>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    All,
    Speed,
    Batch,
    Serving,
    /// Fold archive files for whoever leads batch; by itself, since it needs the archive only
    Executor,
}

/// Create the keyspace and its tables where they are missing.
#[derive(clap::Args)]
pub(super) struct Migrate {
    #[command(flatten)]
    config: ConfigFile,
    /// Change what writes of the keyspace wait for to what is configured; first stop every process and repair the keyspace
    #[arg(long)]
    change_write_consistency: bool,
}

impl Serve {
    pub(super) async fn run(self) -> Done {
        let _exporting = telemetry::init("info");
        let mut config = load(&self.config)?;
        if self.role.contains(&Role::Executor) {
            return self.execute(&config).await;
        }
        let has = |role| self.role.contains(&Role::All) || self.role.contains(&role);
        let roles = Roles { speed: has(Role::Speed), batch: has(Role::Batch), serving: has(Role::Serving) };
        if let (StoreConfig::Cassandra(store), Some(dc), false) =
            (&mut config.store, &config.batch_dc, roles.speed || roles.serving)
        {
            // A process that is all batch's leaves the online data centre alone altogether.
            store.local_dc.clone_from(dc);
        }
        let node = Node::open(&config, Vec::new()).await.map_err(|error| Failure::from_error(2, &error))?;
        stop_on_signals(node.stop());
        let address = node.start(&config, roles).await.map_err(|error| Failure::from_error(1, &error))?;
        tracing::info!(%address, ?roles, "lamina serves");
        let ended = node.finished().await;
        Ok(if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Serve {
    async fn execute(&self, config: &Config) -> Done {
        if self.role.iter().any(|role| *role != Role::Executor) {
            return Err(Failure::usage("the role executor runs by itself: start another process for the other roles"));
        }
        if !config.listen.ip().is_loopback() {
            let listen = config.listen;
            return Err(Failure::usage(format!(
                "http.listen = \"{listen}\": an executor opens no store, so it knows no keys and listens on loopback only"
            )));
        }
        let tasks = Tasks::default();
        stop_on_signals(tasks.stop());
        let started = executor::start(config, &tasks).await;
        let address = started.map_err(|error| Failure::from_error(1, &error))?;
        tracing::info!(%address, "lamina executes");
        Ok(if tasks.finished().await { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Migrate {
    pub(super) async fn run(self) -> Done {
        let _exporting = telemetry::init("info");
        let config = load(&self.config)?;
        let StoreConfig::Cassandra(raw) = &config.store else {
            eprintln!("the embedded store needs no migration");
            return Ok(ExitCode::SUCCESS);
        };
        let settings = cassandra_config(raw).map_err(|error| Failure::from_error(2, &error))?;
        let migrated = if self.change_write_consistency {
            cassandra::change_write_consistency(&settings).await
        } else {
            cassandra::migrate(&settings).await
        };
        migrated.map_err(|error| Failure::from_error(1, &error))?;
        eprintln!("keyspace {} is up to date", settings.keyspace);
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn load(file: &ConfigFile) -> Result<Config, Failure> {
    Config::load(&file.config).map_err(Failure::usage)
}

/// SIGTERM or Ctrl-C stops the process in order; a second one at once.
pub(super) fn stop_on_signals(stop: CancellationToken) {
    tokio::spawn(async move {
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            if !first {
                std::process::exit(130);
            }
            tracing::info!("stopping: draining and sealing");
            stop.cancel();
        }
    });
}
