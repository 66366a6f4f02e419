//! One process: the real code on a runtime of its own, whose time stands until it is run.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use bytes::Bytes;
use lamina_core::Micros;
use lamina_metric::Catalog;
use lamina_serving::{DefinitionBody, DefinitionKind, Put, Registry, RegistryError, auth, registry::Origin};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use object_store::ObjectStore;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::{advance, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    archive::SimArchive,
    log::SimLog,
    plan::Plan,
    port::{Port, SimClock},
    store::SimStore,
    world::{Role, Shared, Who},
};

/// What a request was answered.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    pub(crate) asked: T,
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

pub(crate) type Replies<T> = Arc<Mutex<Vec<Reply<T>>>>;

/// A process that runs.
pub(crate) struct Running {
    runtime: Runtime,
    /// How far its time has come.
    ran_to: Micros,
    stop: CancellationToken,
    /// Ends when the process does; a serving process runs until it is dropped.
    main: Option<JoinHandle<()>>,
    router: Option<Router>,
    catalogs: watch::Sender<Arc<Catalog>>,
}

pub(crate) struct Process {
    pub(crate) role: Role,
    pub(crate) number: usize,
    pub(crate) life: u64,
    pub(crate) running: Option<Running>,
    /// Until when it is paused, or down.
    pub(crate) away_until: Option<Micros>,
    /// Requests under way.
    pub(crate) under_way: usize,
}

/// Definitions do not change over HTTP here.
struct Files;

#[async_trait]
impl Registry for Files {
    async fn put(
        &self,
        _: DefinitionKind,
        _: &str,
        _: DefinitionBody,
        _: Option<String>,
    ) -> Result<Put, RegistryError> {
        Err(RegistryError::ReadOnly { file: "simulated.toml".to_owned() })
    }

    async fn delete(&self, _: DefinitionKind, _: &str, _: Option<String>) -> Result<(), RegistryError> {
        Err(RegistryError::ReadOnly { file: "simulated.toml".to_owned() })
    }

    fn origin(&self, _: DefinitionKind, _: &str) -> Option<Origin> {
        None
    }
}

/// Made before anything is simulated: it measures the machine's clock.
pub(crate) fn measurements() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().build_recorder().handle()).clone()
}

impl Process {
    pub(crate) fn new(role: Role, number: usize) -> Self {
        Self { role, number, life: 0, running: None, away_until: None, under_way: 0 }
    }

    pub(crate) fn who(&self) -> Who {
        Who { role: self.role, number: self.number, life: self.life }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.running.is_some() && self.away_until.is_some()
    }

    pub(crate) fn start(&mut self, world: &Shared, catalog: Arc<Catalog>) {
        self.life += 1;
        self.away_until = None;
        self.under_way = 0;
        let port = Port { world: world.clone(), who: self.who() };
        let (plan, now) = {
            let mut world = world.lock();
            let skew = world.random.within(-300_000, 300_000);
            world.life(self.who()).skew = skew;
            let who = self.who();
            world.note(format_args!("{who} starts at revision {}", catalog.revision));
            (world.plan.clone(), world.now)
        };
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.unwrap_or_else(|error| panic!("a runtime starts: {error}"));
        let (catalogs, receiver) = watch::channel(catalog);
        let stop = CancellationToken::new();
        let (mut main, mut router) = (None, None);
        match self.role {
            Role::Speed => main = Some(runtime.spawn(speed(port, receiver, &plan, stop.clone()))),
            Role::Batch => main = Some(runtime.spawn(batch(port, receiver, &plan, stop.clone()))),
            Role::Serving => router = Some(serving(port, receiver)),
        }
        self.running = Some(Running { runtime, ran_to: now, stop, main, router, catalogs });
    }

    /// Lets the process's time go on to `now`. False if it ended by itself.
    pub(crate) fn run_to(&mut self, now: Micros) -> bool {
        let Some(running) = &mut self.running else { return true };
        if self.role == Role::Serving && self.under_way == 0 {
            return true;
        }
        let lag = Duration::from_micros((now - running.ran_to).max(0).unsigned_abs());
        running.runtime.block_on(async { sleep(lag).await });
        running.ran_to = now;
        running.main.as_ref().is_none_or(|main| !main.is_finished())
    }

    /// Its clock goes on at once, as that of a process does that was stopped.
    pub(crate) fn resume(&mut self, now: Micros) {
        self.away_until = None;
        if let Some(running) = &mut self.running {
            let lag = Duration::from_micros((now - running.ran_to).max(0).unsigned_abs());
            running.runtime.block_on(async { advance(lag).await });
            running.ran_to = now;
        }
    }

    /// Everything in memory goes.
    pub(crate) fn crash(&mut self) {
        self.running = None;
        self.under_way = 0;
    }

    /// Asks it to end in order.
    pub(crate) fn stop(&self) {
        if let Some(running) = &self.running {
            running.stop.cancel();
        }
    }

    pub(crate) fn revision(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.catalogs.borrow().revision)
    }

    pub(crate) fn define(&self, catalog: Arc<Catalog>) {
        if let Some(running) = &self.running {
            running.catalogs.send_replace(catalog);
        }
    }

    /// Begins a request of a serving process; its reply comes while the process runs.
    pub(crate) fn request<T: Send + 'static>(&mut self, request: Request<Body>, asked: T, replies: &Replies<T>) {
        let Some(Running { runtime, router: Some(router), .. }) = &self.running else { return };
        self.under_way += 1;
        let (router, replies) = (router.clone(), Arc::clone(replies));
        runtime.spawn(async move {
            let Ok(response) = router.oneshot(request).await;
            let status = response.status().as_u16();
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
            replies.lock().unwrap_or_else(PoisonError::into_inner).push(Reply { asked, status, body });
        });
    }
}

fn speed(
    port: Port,
    catalog: watch::Receiver<Arc<Catalog>>,
    plan: &Plan,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let deps = lamina_speed::Deps {
        log: Arc::new(SimLog(port.clone())),
        store: Arc::new(SimStore(port.clone())),
        archive: Arc::new(SimArchive(port.clone())) as Arc<dyn ObjectStore>,
        catalog,
        clock: Arc::new(SimClock(port)),
    };
    let config = lamina_speed::Config {
        flush_interval: Duration::from_millis(plan.flush_ms),
        epoch: Duration::from_millis(plan.epoch_ms),
        epoch_max_records: plan.epoch_max_records,
        ttl: Duration::from_secs(plan.ttl_s),
        ..lamina_speed::Config::default()
    };
    async move { drop(lamina_speed::run(deps, config, stop).await) }
}

fn batch(
    port: Port,
    catalog: watch::Receiver<Arc<Catalog>>,
    plan: &Plan,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let deps = lamina_batch::Deps {
        store: Arc::new(SimStore(port.clone())),
        log: Arc::new(SimLog(port.clone())),
        archive: Arc::new(SimArchive(port.clone())),
        catalog,
        clock: Arc::new(SimClock(port)),
        tables: None,
    };
    let schedule = format!("*/{} * * * * *", plan.batch_every_s);
    let config = lamina_batch::Config {
        schedule: schedule.parse().unwrap_or(lamina_batch::Schedule::off()),
        memory_bytes: 64 << 20,
        parallelism: 1,
        nice: 0,
        lease: Duration::from_secs(6),
        retries: 3,
        keep: Duration::from_secs(3_600),
        retention: lamina_batch::Retention::default(),
        compaction: true,
        executors: Vec::new(),
    };
    async move { drop(lamina_batch::run(deps, config, stop).await) }
}

fn serving(port: Port, catalog: watch::Receiver<Arc<Catalog>>) -> Router {
    let deps = lamina_serving::Deps {
        log: Arc::new(SimLog(port.clone())),
        store: Arc::new(SimStore(port.clone())),
        archive: Arc::new(SimArchive(port.clone())),
        catalog,
        registry: Arc::new(Files),
        clock: Arc::new(SimClock(port)),
        metrics: measurements(),
    };
    let config = lamina_serving::Config {
        request_timeout: Duration::from_secs(20),
        cache_bytes: 4 << 20,
        auth: auth::Config { mode: auth::Mode::Open, ..auth::Config::default() },
        ..lamina_serving::Config::default()
    };
    lamina_serving::router(deps, &config)
}
