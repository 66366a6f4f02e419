//! What every handler works with.

use std::{ops::Deref, sync::Arc};

use lamina_core::{Clock, log::Log, store::Store};
use lamina_metric::{Catalog, Metric, Source};
use metrics_exporter_prometheus::PrometheusHandle;
use object_store::ObjectStore;
use tokio::sync::{Semaphore, watch};

use crate::{
    Config,
    auth::{Access, audit::AuditLog},
    chunks::CachedChunks,
    http::movements::Movements,
    limits::Rates,
    live::Live,
    problem::Problem,
    query::page::Pages,
    registry::Registry,
    slo::History,
    sql::Sql,
    topics::Topics,
};

pub(crate) const NOT_LOADED: &str = "definitions are not loaded yet: the view store has not answered since the start";

/// What the serving layer stands on.
#[derive(Clone)]
pub struct Deps {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    /// Where sealed records lie.
    pub archive: Arc<dyn ObjectStore>,
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub registry: Arc<dyn Registry>,
    pub clock: Arc<dyn Clock>,
    pub metrics: PrometheusHandle,
}

/// The state of the router: cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Parts>);

pub(crate) struct Parts {
    pub(crate) deps: Deps,
    pub(crate) config: Config,
    pub(crate) chunks: CachedChunks,
    /// Answers of which pages are still to be asked for.
    pub(crate) pages: Pages,
    /// Queries that are followed.
    pub(crate) live: Live,
    pub(crate) topics: Topics,
    pub(crate) access: Access,
    pub(crate) audit: AuditLog,
    pub(crate) rates: Rates,
    /// Requests that may still be begun.
    pub(crate) requests: Arc<Semaphore>,
    /// Requests that may still wait to be begun.
    pub(crate) queue: Arc<Semaphore>,
    /// Event streams that may still be opened.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) movements: Movements,
    /// How fresh metrics were.
    pub(crate) history: History,
    pub(crate) sql: Sql,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    pub(crate) fn new(deps: Deps, config: &Config) -> Self {
        Self(Arc::new(Parts {
            chunks: CachedChunks::new(Arc::clone(&deps.store), config.cache_bytes),
            pages: Pages::new(config.page_bytes),
            live: Live::new(config.max_live_queries, config.max_live_clients),
            topics: Topics::new(Arc::clone(&deps.log)),
            access: Access::new(config.auth.clone(), Arc::clone(&deps.store), Arc::clone(&deps.clock)),
            audit: AuditLog::default(),
            rates: Rates::new(config.rate),
            requests: Arc::new(Semaphore::new(config.max_concurrent)),
            queue: Arc::new(Semaphore::new(config.max_queued)),
            streams: Arc::new(Semaphore::new(config.max_streams)),
            movements: Movements::default(),
            history: History::default(),
            sql: Sql::new(&config.sql),
            config: config.clone(),
            deps,
        }))
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.deps.catalog.borrow())
    }

    /// Before definitions are loaded, which needs the store once, nothing can be said about any name.
    pub(crate) fn definitions(&self) -> Result<Arc<Catalog>, Problem> {
        let catalog = self.catalog();
        if catalog.revision == 0 {
            return Err(Problem::unavailable("not_loaded", NOT_LOADED));
        }
        Ok(catalog)
    }

    pub(crate) fn metric(&self, name: &str) -> Result<Arc<Metric>, Problem> {
        let catalog = self.definitions()?;
        catalog.metrics.get(name).cloned().ok_or_else(|| {
            let detail = match catalog.derived.contains_key(name) {
                true => format!("{name} is derived from other metrics, and holds nothing itself"),
                // Not which there are: that is for those to know who see them.
                false => format!("there is no metric {name:?}; GET /v1/metrics lists those that there are"),
            };
            Problem::not_found("unknown_metric", detail)
        })
    }

    pub(crate) fn source(&self, name: &str) -> Result<Arc<Source>, Problem> {
        let catalog = self.definitions()?;
        catalog.sources.get(name).cloned().ok_or_else(|| {
            Problem::not_found(
                "unknown_source",
                format!("there is no source {name:?}; {}", have(catalog.sources.keys())),
            )
        })
    }
}

/// The first names that there are.
fn have<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let count = names.len();
    let first: Vec<&str> = names.take(20).map(String::as_str).collect();
    match count {
        0 => "none is defined".to_owned(),
        1..=20 => format!("there are {}", first.join(", ")),
        _ => format!("there are {count}, such as {}", first.join(", ")),
    }
}
