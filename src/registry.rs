//! The definitions in force: files, and documents that came through the API, compiled into one catalogue.
//!
//! Every change makes a new revision; a metric whose definition changed gets a new version, which counts epochs from that
//! revision on. Versions are kept in one document and change by compare-and-set, so that all processes agree.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use lamina_core::{Commit, Document, Documents, StoreError, envelope};
use lamina_metric::{Catalog, Diagnostic, Versions};
use lamina_serving::registry::{DefinitionBody, DefinitionKind, Put, Registry, RegistryError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const VERSIONS: (&str, &str) = ("catalog", "versions");
const DEFINITIONS: &str = "definition";
/// Rounds of a compare-and-set before it gives up; each lost round means that somebody else won.
const ROUNDS: u32 = 20;

/// What is remembered of each definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    revision: u64,
    /// Source → fingerprint of its definition.
    sources: BTreeMap<String, String>,
    metrics: BTreeMap<String, KnownMetric>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownMetric {
    version: u32,
    since: u64,
    fingerprint: String,
    /// False once removed; it is remembered so that the name never gets an old version again.
    active: bool,
}

/// Why definitions cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Diagnostic>),
    #[error("definitions keep being changed by other processes")]
    Contended,
}

/// Compiles definitions and keeps their versions.
pub struct Definitions<S: ?Sized> {
    paths: Vec<PathBuf>,
    /// Definitions that belong to the program, e.g. the demonstration's: (name, text).
    built_in: Vec<(String, String)>,
    store: Arc<S>,
    current: watch::Sender<Arc<Catalog>>,
    changing: tokio::sync::Mutex<()>,
}

impl<S: Documents + ?Sized> Definitions<S> {
    pub fn new(paths: Vec<PathBuf>, built_in: Vec<(String, String)>, store: Arc<S>) -> Self {
        let current = watch::Sender::new(Arc::new(Catalog::default()));
        Self { paths, built_in, store, current, changing: tokio::sync::Mutex::new(()) }
    }

    /// The catalogue in force; revision 0 until the first [`Definitions::refresh`] succeeded.
    pub fn watch(&self) -> watch::Receiver<Arc<Catalog>> {
        self.current.subscribe()
    }

    /// Compiles files and documents anew and puts what changed in force.
    ///
    /// # Errors
    /// If the store does not answer or a definition is wrong; what was in force stays.
    pub async fn refresh(&self) -> Result<(), CatalogError> {
        let texts = self.texts().await?;
        self.put_in_force(&texts).await
    }

    async fn texts(&self) -> Result<Vec<(String, String)>, CatalogError> {
        let mut texts = self.built_in.clone();
        texts.extend(lamina_metric::catalog::read_files(&self.paths).map_err(CatalogError::Invalid)?);
        for (key, document) in self.store.list(DEFINITIONS).await? {
            texts.push((format!("api:{key}"), String::from_utf8_lossy(&document.value).into_owned()));
        }
        Ok(texts)
    }

    async fn put_in_force(&self, texts: &[(String, String)]) -> Result<(), CatalogError> {
        for _ in 0..ROUNDS {
            let (version, known) = self.known().await?;
            let draft = Catalog::compile(texts, &Versions::default()).map_err(CatalogError::Invalid)?;
            let next = known.with(&draft);
            if next != known {
                let value = envelope::pack(&next).map_err(|error| corrupt(&error))?;
                match self.store.put(VERSIONS.0, VERSIONS.1, version, value.into()).await {
                    Ok(Commit::Applied) => {}
                    Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            if self.current.borrow().revision != next.revision {
                let catalog = Catalog::compile(texts, &next.versions()).map_err(CatalogError::Invalid)?;
                tracing::info!(revision = next.revision, metrics = catalog.metrics.len(), "definitions are in force");
                self.current.send_replace(Arc::new(catalog));
            }
            return Ok(());
        }
        Err(CatalogError::Contended)
    }

    async fn known(&self) -> Result<(u64, Known), StoreError> {
        match self.store.get(VERSIONS.0, VERSIONS.1).await? {
            None => Ok((0, Known::default())),
            Some(Document { version, value }) => Ok((version, envelope::unpack(&value).map_err(|error| corrupt(&error))?)),
        }
    }

    fn in_files(&self, kind: DefinitionKind, name: &str) -> Result<bool, RegistryError> {
        let mut texts = self.built_in.clone();
        texts.extend(lamina_metric::catalog::read_files(&self.paths).map_err(RegistryError::Invalid)?);
        let mentions = |text: &str| {
            let table: Option<toml::Table> = text.parse().ok();
            let kinds = table.as_ref().and_then(|table| table.get(kind.as_str())).and_then(toml::Value::as_table);
            kinds.is_some_and(|kinds| kinds.contains_key(name))
        };
        Ok(texts.iter().any(|(_, text)| mentions(text)))
    }
}

impl Known {
    /// What is known once `draft` is in force: an unchanged metric keeps its version.
    fn with(&self, draft: &Catalog) -> Self {
        let since = self.revision + 1;
        let inactive = |known: &KnownMetric| KnownMetric { active: false, ..known.clone() };
        let mut metrics: BTreeMap<_, _> = self.metrics.iter().map(|(name, known)| (name.clone(), inactive(known))).collect();
        for (name, metric) in &draft.metrics {
            let fingerprint = format!("{}/{}", metric.source.definition.fingerprint(), metric.definition.fingerprint());
            let known = match self.metrics.get(name) {
                Some(known) if known.fingerprint == fingerprint && known.active => known.clone(),
                known => {
                    let version = known.map_or(0, |known| known.version) + 1;
                    KnownMetric { version, since, fingerprint, active: true }
                }
            };
            metrics.insert(name.clone(), known);
        }
        let sources = draft.sources.iter().map(|(name, source)| (name.clone(), source.definition.fingerprint())).collect();
        let next = Self { revision: self.revision, sources, metrics };
        if next == *self && self.revision > 0 { next } else { Self { revision: since, ..next } }
    }

    fn versions(&self) -> Versions {
        let metrics = self.metrics.iter().map(|(name, known)| (name.clone(), (known.version, known.since))).collect();
        Versions { revision: self.revision, metrics }
    }
}

fn corrupt(error: &envelope::EnvelopeError) -> StoreError {
    StoreError::Corrupt { what: "versions of definitions".into(), why: error.to_string() }
}
