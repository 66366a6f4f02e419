//! The definitions in force: files, and documents that came through the API, compiled into one catalogue.
//!
//! Every change makes a new revision; a metric whose definition changed gets a new version, which counts epochs from that
//! revision on and answers once batch has built it from the archive (see `known`). Versions are kept in one document and
//! change by compare-and-set, so that all processes agree.
//!
//! Files are each process's own. While they differ, the process whose definitions changed last decides, and the others keep what
//! they have, without a say, until theirs change or they start again: else two of them would put each other's out of force for ever.

mod derived;
mod known;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use lamina_core::{
    Clock, Commit, Document, Documents, Ledgers, StoreError,
    clock::SystemClock,
    envelope,
    generation::load_view,
    log::{Log, LogError},
    store::Consistency,
};
use lamina_metric::{Catalog, Diagnostic, Metric, Versions};
use lamina_serving::registry::{
    DefinitionBody, DefinitionKind, Origin, Put, Registry, RegistryError, etag_of_derived, etag_of_metric,
    etag_of_source,
};
use tokio::sync::watch;

use self::{
    derived::{derived, users},
    known::Known,
};

const VERSIONS: (&str, &str) = ("catalog", "versions");
const DEFINITIONS: &str = "definition";
/// In front of a definition's place, for those that came through the API.
const API: &str = "api:";
/// Rounds of a compare-and-set before it gives up; each lost round means that somebody else won.
const ROUNDS: u32 = 20;

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
    log: Arc<dyn Log>,
    current: watch::Sender<Arc<Catalog>>,
    draft: Mutex<Option<Draft>>,
    changing: tokio::sync::Mutex<()>,
}

/// Definitions compiled without their versions: kept, so that what did not change is not compiled again and again.
#[derive(Clone)]
struct Draft {
    texts: Arc<[(String, String)]>,
    catalog: Arc<Catalog>,
    /// Whether they were in force once: from then on they have no say against what others put in force after them.
    had_its_say: bool,
}

impl<S: Documents + Ledgers + ?Sized> Definitions<S> {
    pub fn new(paths: Vec<PathBuf>, built_in: Vec<(String, String)>, store: Arc<S>, log: Arc<dyn Log>) -> Self {
        let current = watch::Sender::new(Arc::new(Catalog::empty()));
        Self { paths, built_in, store, log, current, draft: Mutex::default(), changing: tokio::sync::Mutex::default() }
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
        let mut texts = self.read_only().map_err(CatalogError::Invalid)?;
        for (key, document) in self.store.list(DEFINITIONS).await? {
            texts.push((format!("{API}{key}"), String::from_utf8_lossy(&document.value).into_owned()));
        }
        Ok(texts)
    }

    async fn put_in_force(&self, texts: &[(String, String)]) -> Result<(), CatalogError> {
        for _ in 0..ROUNDS {
            let (version, known) = self.known().await?;
            let draft = self.draft(texts)?;
            if draft.had_its_say && !known.is_of(&draft.catalog) {
                tracing::debug!(
                    revision = known.revision,
                    "definitions that others put in force differ from those here"
                );
                return Ok(());
            }
            let (topics, built) = (self.topics(&draft.catalog).await, self.built().await?);
            let next = known.with(&draft.catalog, &topics, &built, SystemClock.now());
            if next != known {
                let value = envelope::pack(&next).map_err(|error| corrupt(&error))?;
                match self.store.put(VERSIONS.0, VERSIONS.1, version, value.into()).await {
                    Ok(Commit::Applied) => {}
                    Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            // What is derived has no versions: each process computes it as it has it defined.
            let same_derived = derived(&self.current.borrow()) == derived(&draft.catalog);
            if self.current.borrow().revision != next.revision || !same_derived {
                let catalog = Catalog::compile(texts, &next.versions());
                let catalog = catalog.and_then(|catalog| next.place(catalog)).map_err(CatalogError::Invalid)?;
                let (metrics, building) = (catalog.metrics.len(), catalog.building.len());
                tracing::info!(revision = next.revision, metrics, building, "definitions are in force");
                self.current.send_replace(Arc::new(catalog));
            }
            self.has_had_its_say(texts);
            return Ok(());
        }
        Err(CatalogError::Contended)
    }

    fn draft(&self, texts: &[(String, String)]) -> Result<Draft, CatalogError> {
        let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = draft.as_ref().filter(|last| *last.texts == *texts) {
            return Ok(last.clone());
        }
        let catalog = Arc::new(Catalog::compile(texts, &Versions::default()).map_err(CatalogError::Invalid)?);
        Ok(draft.insert(Draft { texts: texts.into(), catalog, had_its_say: false }).clone())
    }

    fn has_had_its_say(&self, texts: &[(String, String)]) {
        let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(draft) = draft.as_mut().filter(|draft| *draft.texts == *texts) {
            draft.had_its_say = true;
        }
    }

    /// Source → id of its topic, of those that exist. While the log does not answer nothing is known to have changed.
    async fn topics(&self, draft: &Catalog) -> BTreeMap<String, String> {
        let mut topics = BTreeMap::new();
        for (name, source) in draft.sources.iter().filter(|(_, source)| source.table.is_none()) {
            if let Ok(topic) = self.log.topic(&source.topic).await {
                topics.insert(name.clone(), topic.id);
            }
        }
        topics
    }

    /// By metric, the version beside the one that answers, if it lacks nothing any more: nothing but what it has folded
    /// itself lies above what batch has published of it.
    async fn built(&self) -> Result<BTreeMap<String, u32>, StoreError> {
        let catalog = Arc::clone(&self.current.borrow());
        let mut built = BTreeMap::new();
        for (name, metric) in &catalog.building {
            if self.is_built(metric).await? {
                built.insert(name.clone(), metric.version);
            }
        }
        Ok(built)
    }

    async fn is_built(&self, metric: &Metric) -> Result<bool, StoreError> {
        if metric.source.table.is_some() {
            return self.is_scanned(metric).await;
        }
        let topic = match self.log.topic(&metric.source.topic).await {
            Ok(topic) => topic,
            Err(LogError::NoTopic(_)) => return Ok(true),
            Err(error) => {
                tracing::debug!(%error, metric = metric.name, "a new version waits for the log");
                return Ok(false);
            }
        };
        let log = topic.log_id(&metric.source.name);
        let mut views = Vec::with_capacity(metric.views.len());
        for view in &metric.views {
            views.push(load_view(&*self.store, &view.id).await?.1.published);
        }
        for partition in 0..topic.partitions {
            let ledger = self.store.load(&log, partition, Consistency::Quorum).await?;
            if !views
                .iter()
                .all(|published| published.is_of(&log) && published.builds(metric.since, partition, &ledger))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the table that the metric is over was scanned for it.
    async fn is_scanned(&self, metric: &Metric) -> Result<bool, StoreError> {
        for view in &metric.views {
            if load_view(&*self.store, &view.id).await?.1.published.generation == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn known(&self) -> Result<(u64, Known), StoreError> {
        match self.store.get(VERSIONS.0, VERSIONS.1).await? {
            None => Ok((0, Known::default())),
            Some(Document { version, value }) => {
                Ok((version, envelope::unpack(&value).map_err(|error| corrupt(&error))?))
            }
        }
    }

    /// Texts of the program and of files, with where they come from.
    fn read_only(&self) -> Result<Vec<(String, String)>, Vec<Diagnostic>> {
        let mut texts = self.built_in.clone();
        texts.extend(lamina_metric::catalog::read_files(&self.paths)?);
        Ok(texts)
    }

    /// The ETag that a definition has now.
    fn etag(&self, kind: DefinitionKind, name: &str) -> Option<String> {
        let catalog = self.current.borrow();
        match kind {
            DefinitionKind::Metric => catalog.latest(name).map(|metric| etag_of_metric(metric)),
            DefinitionKind::Source => catalog.sources.get(name).map(|source| etag_of_source(source)),
            DefinitionKind::Derived => catalog.derived.get(name).map(|derived| etag_of_derived(derived)),
        }
    }

    fn check(&self, kind: DefinitionKind, name: &str, if_match: Option<&str>) -> Result<Option<String>, RegistryError> {
        if let Some(Origin::File(file)) = self.origin_of(kind, name) {
            return Err(RegistryError::ReadOnly { file });
        }
        let current = self.etag(kind, name);
        match (if_match, &current) {
            (Some("*"), Some(_)) | (None, _) => Ok(current),
            (Some(wanted), Some(have)) if wanted == have => Ok(current),
            (Some(_), have) => {
                Err(RegistryError::Changed { current: have.clone().unwrap_or_else(|| "none".to_owned()) })
            }
        }
    }

    fn origin_of(&self, kind: DefinitionKind, name: &str) -> Option<Origin> {
        let texts = self.read_only().unwrap_or_default();
        let mentions = |text: &str| {
            let table: Option<toml::Table> = text.parse().ok();
            let named = table.as_ref().and_then(|table| table.get(kind.as_str())).and_then(toml::Value::as_table);
            named.is_some_and(|named| named.contains_key(name))
        };
        let file = texts.into_iter().find(|(_, text)| mentions(text)).map(|(file, _)| Origin::File(file));
        file.or_else(|| self.etag(kind, name).map(|_| Origin::Api))
    }
}

/// The text of a definition's document.
fn document(kind: DefinitionKind, name: &str, body: DefinitionBody) -> Result<String, String> {
    let table = match body {
        DefinitionBody::Toml(text) => text.parse::<toml::Table>().map_err(|error| error.to_string())?,
        DefinitionBody::Json(value) => toml::Table::try_from(value).map_err(|error| error.to_string())?,
    };
    let named = toml::Table::from_iter([(name.to_owned(), toml::Value::Table(table))]);
    let whole = toml::Table::from_iter([(kind.as_str().to_owned(), toml::Value::Table(named))]);
    toml::to_string(&whole).map_err(|error| error.to_string())
}

fn key(kind: DefinitionKind, name: &str) -> String {
    format!("{}/{name}", kind.as_str())
}

fn unreadable(name: &str, message: String) -> RegistryError {
    let file = format!("{API}{name}");
    RegistryError::Invalid(vec![Diagnostic { file, line: 1, column: 1, message, help: None, span: 0..0 }])
}

impl From<CatalogError> for RegistryError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Store(error) => Self::Store(error),
            CatalogError::Invalid(diagnostics) => Self::Invalid(diagnostics),
            CatalogError::Contended => Self::Store(StoreError::Unavailable(error.to_string())),
        }
    }
}

#[async_trait]
impl<S: Documents + Ledgers + ?Sized + 'static> Registry for Definitions<S> {
    async fn put(
        &self,
        kind: DefinitionKind,
        name: &str,
        body: DefinitionBody,
        if_match: Option<String>,
    ) -> Result<Put, RegistryError> {
        let _one_at_a_time = self.changing.lock().await;
        let before = self.check(kind, name, if_match.as_deref())?;
        let text = document(kind, name, body).map_err(|why| unreadable(name, why))?;
        let key = key(kind, name);
        let place = format!("{API}{key}");
        let mut texts = self.texts().await?;
        texts.retain(|(from, _)| *from != place);
        texts.push((place, text.clone()));
        // nothing is stored that does not compile together with all the rest
        self.draft(&texts)?;
        let version = self.store.get(DEFINITIONS, &key).await?.map_or(0, |document| document.version);
        if self.store.put(DEFINITIONS, &key, version, text.into()).await? == Commit::Refused {
            return Err(RegistryError::Changed { current: before.unwrap_or_else(|| "none".to_owned()) });
        }
        self.put_in_force(&texts).await?;
        Ok(match (before, self.etag(kind, name)) {
            (None, _) => Put::Created,
            (Some(before), Some(after)) if before == after => Put::Unchanged,
            _ => Put::Changed,
        })
    }

    async fn delete(&self, kind: DefinitionKind, name: &str, if_match: Option<String>) -> Result<(), RegistryError> {
        let _one_at_a_time = self.changing.lock().await;
        self.check(kind, name, if_match.as_deref())?.ok_or(RegistryError::NotFound)?;
        if let Some(users) = users(&self.current.borrow(), kind, name) {
            return Err(RegistryError::InUse(users));
        }
        let key = key(kind, name);
        let document = self.store.get(DEFINITIONS, &key).await?.ok_or(RegistryError::NotFound)?;
        if self.store.remove(DEFINITIONS, &key, document.version).await? == Commit::Refused {
            return Err(RegistryError::Changed { current: "another".to_owned() });
        }
        Ok(self.refresh().await?)
    }

    fn origin(&self, kind: DefinitionKind, name: &str) -> Option<Origin> {
        self.origin_of(kind, name)
    }
}

fn corrupt(error: &envelope::EnvelopeError) -> StoreError {
    StoreError::Corrupt { what: "versions of definitions".into(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::embedded;

    const SOURCE: &str =
        "[source.s]\nformat = \"json\"\ntime = \"t\"\n[source.s.fields]\nt = \"timestamp\"\nv = \"int64\"\n";

    fn metric(name: &str, grain: &str) -> String {
        format!("[metric.{name}]\nsource = \"s\"\nvalue = \"v\"\naggregates = [\"sum\"]\ngrain = \"{grain}\"\n")
    }

    #[tokio::test]
    async fn processes_whose_files_differ_do_not_put_each_other_out_of_force() {
        let folder = tempfile::tempdir().unwrap();
        let backends = embedded::open(folder.path()).unwrap();
        let with_grain = |grain| {
            let text = format!("{SOURCE}{}", metric("a", grain));
            let built_in = vec![("m.toml".to_owned(), text)];
            Definitions::new(Vec::new(), built_in, Arc::clone(&backends.store), Arc::clone(&backends.log) as _)
        };
        let state = |process: &Definitions<_>| {
            let catalog = Arc::clone(&process.watch().borrow());
            (catalog.revision, catalog.metrics["a"].version, catalog.metrics["a"].grain)
        };
        let (old, new) = (with_grain("1m"), with_grain("1h"));
        old.refresh().await.unwrap();
        for _ in 0..3 {
            new.refresh().await.unwrap();
            old.refresh().await.unwrap();
        }
        // There is no topic yet, and so nothing to build: the new version answers as soon as that is seen.
        assert_eq!((state(&old), state(&new)), ((1, 1, 60_000_000), (3, 2, 3_600_000_000)));
        let restarted = with_grain("1m");
        restarted.refresh().await.unwrap();
        new.refresh().await.unwrap();
        assert_eq!((state(&restarted).0, state(&new)), (4, (3, 2, 3_600_000_000)));
        restarted.refresh().await.unwrap();
        old.refresh().await.unwrap();
        assert_eq!(
            (state(&restarted), state(&old)),
            ((5, 3, 60_000_000), (5, 3, 60_000_000)),
            "its own is in force again"
        );
    }
}
