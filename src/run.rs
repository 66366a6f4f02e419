//! One process: backends opened, roles started, all of them stopped in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lamina_core::{Clock, Store, StoreError, Tables, clock::SystemClock, log::Log};
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backends::{
        archive,
        cassandra::{CassandraConfig, CassandraStore, skew, tables::CassandraTables},
        embedded,
        kafka::{KafkaConfig, KafkaLog},
    },
    config::{Config, LogConfig, RawStore, StoreConfig},
    registry::{CatalogError, Definitions},
};

/// How often definitions are looked at for changes that other processes made.
const REFRESH: Duration = Duration::from_secs(2);
/// How long a stop may take before the process gives up on what is still running.
const GRACE: Duration = Duration::from_secs(30);

/// The roles of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    pub speed: bool,
    pub batch: bool,
    pub serving: bool,
}

impl Roles {
    pub const ALL: Self = Self { speed: true, batch: true, serving: true };
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Embedded(#[from] embedded::OpenError),
    #[error("[{section}]: {cause}")]
    Credentials { section: &'static str, cause: std::io::Error },
    #[error("archive {place} cannot be opened")]
    Archive {
        place: String,
        #[source]
        cause: object_store::Error,
    },
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        cause: std::io::Error,
    },
    #[error("log: {0}")]
    Log(#[from] lamina_core::log::LogError),
    #[error(transparent)]
    Store(StoreError),
    #[error("definitions are wrong:\n{0}")]
    Definitions(CatalogError),
    #[error("metrics cannot be recorded: {0}")]
    Metrics(String),
    #[error(
        "http.listen = \"{0}\" is not a loopback address, and nobody could say who they are: make the first key \
         (`lamina keys create --scopes admin NAME`), or set [http.auth.jwt], or listen on 127.0.0.1"
    )]
    NobodyKnown(SocketAddr),
}

/// What the roles share.
pub struct Backends {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    /// The store as batch uses it: of Cassandra perhaps through another data centre.
    batch_store: Arc<dyn Store>,
    pub archive: Arc<dyn ObjectStore>,
    /// The store again if it is Cassandra, whose clocks are watched.
    cassandra: Option<Arc<CassandraStore>>,
    /// Users' own tables, in the data centre that batch uses.
    tables: Option<Arc<dyn Tables>>,
}

impl Backends {
    /// Opens what the configuration names. Kafka and Cassandra need not be there yet.
    ///
    /// # Errors
    /// If the data folder is in use or cannot be written, or a setting cannot be used.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let needs_folder = matches!(config.log, LogConfig::Embedded) || matches!(config.store, StoreConfig::Embedded);
        let opened = if needs_folder { Some(embedded::open(&config.data_dir)?) } else { None };
        let log: Arc<dyn Log> = match (&config.log, &opened) {
            (LogConfig::Kafka { brokers, replication_factor, options, login }, _) => {
                let credentials = login.read().map_err(|cause| StartError::Credentials { section: "log", cause })?;
                Arc::new(KafkaLog::connect(KafkaConfig {
                    credentials,
                    brokers: brokers.clone(),
                    replication_factor: *replication_factor,
                    options: options.clone(),
                })?)
            }
            (LogConfig::Embedded, Some(opened)) => Arc::clone(&opened.log) as _,
            (LogConfig::Embedded, None) => unreachable!("the folder is opened for an embedded log"),
        };
        let cassandra = match &config.store {
            StoreConfig::Cassandra(raw) => Some(Arc::new(CassandraStore::new(cassandra_config(raw)?))),
            StoreConfig::Embedded => None,
        };
        let store: Arc<dyn Store> = match (&cassandra, &opened) {
            (Some(cassandra), _) => Arc::clone(cassandra) as _,
            (None, Some(opened)) => Arc::clone(&opened.store) as _,
            (None, None) => unreachable!("the folder is opened for an embedded store"),
        };
        let (mut batch_store, mut tables) = (Arc::clone(&store), None);
        if let StoreConfig::Cassandra(raw) = &config.store {
            let local_dc = config.batch_dc.clone().unwrap_or_else(|| raw.local_dc.clone());
            let settings = CassandraConfig { local_dc, ..cassandra_config(raw)? };
            tables = Some(Arc::new(CassandraTables::new(settings.clone())) as _);
            if settings.local_dc != raw.local_dc {
                batch_store = Arc::new(CassandraStore::new(settings));
            }
        }
        Ok(Self { log, store, batch_store, archive: open_archive(config)?, cassandra, tables })
    }
}

/// The settings of the Cassandra backend; the password comes from its file.
///
/// # Errors
/// If there is no password for the user, or its file cannot be read.
pub fn cassandra_config(raw: &RawStore) -> Result<CassandraConfig, StartError> {
    let login = raw.login().read().map_err(|cause| StartError::Credentials { section: "store", cause })?;
    let (username, password) = login.unzip();
    Ok(CassandraConfig {
        contact_points: raw.contact_points.clone(),
        keyspace: raw.keyspace.clone(),
        local_dc: raw.local_dc.clone(),
        write_consistency: raw.write_consistency,
        replication_factor: raw.replication_factor,
        username,
        password,
        tls: raw.tls(),
        ..CassandraConfig::default()
    })
}

pub(crate) fn open_archive(config: &Config) -> Result<Arc<dyn ObjectStore>, StartError> {
    let (place, opened) = match &config.archive {
        Some(url) => (url.to_string(), archive::open(url)),
        None => {
            let folder = config.data_dir.join("archive");
            let opened = archive::DurableFolder::open(&folder).map(|folder| Arc::new(folder) as Arc<dyn ObjectStore>);
            (folder.display().to_string(), opened)
        }
    };
    opened.map_err(|cause| StartError::Archive { place, cause })
}

/// Where everybody could come, there must be somebody who can say who they are. A store that does not answer yet keeps nothing
/// from starting: without loopback, credentials are asked for in any case.
async fn check_access(config: &Config, store: &dyn Store) -> Result<(), StartError> {
    let Config { listen, http, .. } = config;
    if listen.ip().is_loopback() {
        return Ok(());
    }
    if http.tls.is_none() {
        tracing::warn!(%listen, "keys and answers travel in clear text: set [http.tls], or put a proxy with TLS in front");
    }
    match lamina_serving::auth::keys::any(store).await {
        Ok(false) if http.auth.jwt.is_none() => Err(StartError::NobodyKnown(*listen)),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "whether there are API keys is not known yet");
            Ok(())
        }
    }
}

/// What runs in a process until it is told to stop.
#[derive(Default)]
pub struct Tasks {
    stop: CancellationToken,
    running: TaskTracker,
}

/// A process with its backends and definitions, that runs until it is told to stop.
pub struct Node {
    pub backends: Backends,
    pub definitions: Arc<Definitions<dyn Store>>,
    tasks: Tasks,
}

impl Node {
    /// Opens backends and compiles definitions; nothing runs yet. `built_in` definitions belong to the program.
    ///
    /// # Errors
    /// If backends cannot be opened, or definitions in files are wrong.
    pub async fn open(config: &Config, built_in: Vec<(String, String)>) -> Result<Self, StartError> {
        let backends = Backends::open(config)?;
        check_access(config, &*backends.store).await?;
        let store = Arc::clone(&backends.store);
        let definitions =
            Arc::new(Definitions::new(config.definitions.clone(), built_in, store, Arc::clone(&backends.log)));
        match definitions.refresh().await {
            Ok(()) => {}
            Err(error @ CatalogError::Invalid(_)) => return Err(StartError::Definitions(error)),
            // What the store refuses will not pass by itself.
            Err(CatalogError::Store(error @ StoreError::Refused(_))) => return Err(StartError::Store(error)),
            Err(error) => tracing::warn!(%error, "definitions are not loaded yet, trying again"),
        }
        Ok(Self { backends, definitions, tasks: Tasks::default() })
    }

    /// Ends when the process is to stop; cancelling it stops the process.
    pub fn stop(&self) -> CancellationToken {
        self.tasks.stop()
    }

    /// Starts the roles. Returns the address that HTTP listens on.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(&self, config: &Config, roles: Roles) -> Result<SocketAddr, StartError> {
        let metrics = crate::telemetry::recorder().map_err(StartError::Metrics)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|cause| StartError::Listen { address: config.listen, cause })?;
        let address = listener.local_addr().map_err(|cause| StartError::Listen { address: config.listen, cause })?;
        let tasks = &self.tasks;
        self.keep_definitions_fresh();
        let Backends { log, store, batch_store, archive, cassandra, tables } = &self.backends;
        if let Some(cassandra) = cassandra {
            tasks.running.spawn(skew::watch(Arc::clone(cassandra), tasks.stop()));
        }
        if roles.speed {
            let deps = lamina_speed::Deps {
                log: Arc::clone(log),
                store: Arc::clone(store),
                archive: Arc::clone(archive),
                catalog: self.definitions.watch(),
                clock: Arc::clone(&clock),
            };
            tasks.spawn("speed", lamina_speed::run(deps, config.speed.clone(), tasks.stop()));
        }
        if roles.batch {
            let deps = lamina_batch::Deps {
                log: Arc::clone(log),
                store: Arc::clone(batch_store),
                archive: Arc::clone(archive),
                catalog: self.definitions.watch(),
                clock: Arc::clone(&clock),
                tables: tables.clone(),
            };
            tasks.spawn("batch", lamina_batch::run(deps, config.batch.clone(), tasks.stop()));
        }
        let deps = lamina_serving::Deps {
            log: Arc::clone(log),
            store: Arc::clone(store),
            archive: Arc::clone(archive),
            catalog: self.definitions.watch(),
            registry: Arc::clone(&self.definitions) as _,
            clock,
            metrics,
        };
        let serving = lamina_serving::Config {
            partitions: config.partitions,
            cache_bytes: u64::from(config.serving.cache_mib) << 20,
            page_bytes: u64::from(config.serving.page_mib) << 20,
            max_live_queries: config.serving.live_queries,
            max_live_clients: config.serving.live_clients as usize,
            sql: config.sql.clone(),
            freshness: config.freshness,
            ..config.http.clone()
        };
        // every role answers health and metrics; only serving answers queries
        let app = if roles.serving {
            let (app, sampler) = lamina_serving::service(deps, &serving);
            tasks.running.spawn(sampler.run(tasks.stop()));
            app
        } else {
            lamina_serving::health_router(deps, &serving)
        };
        tasks.spawn("serving", lamina_serving::run(listener, app, serving, tasks.stop()));
        Ok(address)
    }

    /// Waits for the stop, then for everything to end. False if something had to be given up.
    pub async fn finished(self) -> bool {
        self.tasks.finished().await
    }

    fn keep_definitions_fresh(&self) {
        let (definitions, stop) = (Arc::clone(&self.definitions), self.tasks.stop());
        self.tasks.running.spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(REFRESH)).await.is_some() {
                if let Err(error) = definitions.refresh().await {
                    tracing::warn!(%error, "definitions are not refreshed");
                }
            }
        });
    }
}

impl Tasks {
    /// Ends when the process is to stop; cancelling it stops the process.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits for the stop, then for everything to end. False if something had to be given up.
    pub async fn finished(self) -> bool {
        self.stop.cancelled().await;
        self.running.close();
        let ended = tokio::time::timeout(GRACE, self.running.wait()).await.is_ok();
        if !ended {
            tracing::warn!("grace period is over and tasks still run");
        }
        ended
    }

    /// A task that ends early, with or without an error, stops the process: half a process helps nobody.
    pub(crate) fn spawn<E: std::error::Error + Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.running.spawn(async move {
            let ended = task.await;
            if let Err(error) = &ended {
                tracing::error!(name, error = error as &dyn std::error::Error, "role failed");
            } else if !stop.is_cancelled() {
                tracing::error!(name, "role ended early");
            }
            stop.cancel();
        });
    }
}
