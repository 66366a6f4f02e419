//! What every handler works with.

use std::{ops::Deref, sync::Arc};

use lamina_core::{Clock, log::Log, store::Store};
use lamina_metric::{Catalog, Metric, Source};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Semaphore, watch};

use crate::{
    Config, chunks::CachedChunks, http::progress::Movements, problem::Problem, registry::Registry, topics::Topics,
};

pub(crate) const NOT_LOADED: &str = "definitions are not loaded yet: the view store has not answered since the start";

/// What the serving layer stands on.
#[derive(Clone)]
pub struct Deps {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
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
    pub(crate) topics: Topics,
    /// Requests that may still be begun.
    pub(crate) requests: Arc<Semaphore>,
    /// Event streams that may still be opened.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) movements: Movements,
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
            topics: Topics::new(Arc::clone(&deps.log)),
            requests: Arc::new(Semaphore::new(config.max_concurrent)),
            streams: Arc::new(Semaphore::new(config.max_streams)),
            movements: Movements::default(),
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
            Problem::not_found(
                "unknown_metric",
                format!("there is no metric {name:?}; {}", have(catalog.metrics.keys())),
            )
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
