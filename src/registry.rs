//! The definitions in force: files, and documents that came through the API, compiled into one catalogue.
//!
//! Every change makes a new revision; a metric whose definition changed gets a new version, which counts epochs from that
//! revision on. So do the metrics of a source whose topic was deleted and made again: what was published of the old topic's
//! offsets must not cover the new one's. Versions are kept in one document and change by compare-and-set, so that all processes agree.
//!
//! Files are each process's own. While they differ, the process whose definitions changed last decides, and the others keep what
//! they have, without a say, until theirs change or they start again: else two of them would put each other's out of force for ever.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use lamina_core::{Commit, Document, Documents, StoreError, envelope, log::Log};
use lamina_metric::{Catalog, Diagnostic, Source, Versions};
use lamina_serving::registry::{
    DefinitionBody, DefinitionKind, Origin, Put, Registry, RegistryError, etag_of_metric, etag_of_source,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const VERSIONS: (&str, &str) = ("catalog", "versions");
const DEFINITIONS: &str = "definition";
/// In front of a definition's place, for those that came through the API.
const API: &str = "api:";
/// Rounds of a compare-and-set before it gives up; each lost round means that somebody else won.
const ROUNDS: u32 = 20;

/// What is remembered of each definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    revision: u64,
    /// Source → its definition and topic.
    sources: BTreeMap<String, KnownSource>,
    metrics: BTreeMap<String, KnownMetric>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownSource {
    fingerprint: String,
    /// Id of its topic, once it was seen.
    topic: Option<String>,
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

impl<S: Documents + ?Sized> Definitions<S> {
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
            let next = known.with(&draft.catalog, &self.topics(&draft.catalog).await);
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
        for (name, source) in &draft.sources {
            if let Ok(topic) = self.log.topic(&source.topic).await {
                topics.insert(name.clone(), topic.id);
            }
        }
        topics
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
            DefinitionKind::Metric => catalog.metrics.get(name).map(|metric| etag_of_metric(metric)),
            DefinitionKind::Source => catalog.sources.get(name).map(|source| etag_of_source(source)),
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
impl<S: Documents + ?Sized + 'static> Registry for Definitions<S> {
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
        if kind == DefinitionKind::Source {
            let catalog = Arc::clone(&self.current.borrow());
            let users: Vec<_> = catalog.metrics_of(name).map(|metric| metric.name.clone()).collect();
            if !users.is_empty() {
                return Err(RegistryError::InUse(format!("metrics {} read it", users.join(", "))));
            }
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

impl Known {
    /// What is known once `draft` is in force: an unchanged metric over an unchanged topic keeps its version.
    fn with(&self, draft: &Catalog, topics: &BTreeMap<String, String>) -> Self {
        let since = self.revision + 1;
        let inactive = |known: &KnownMetric| KnownMetric { active: false, ..known.clone() };
        let mut metrics: BTreeMap<_, _> =
            self.metrics.iter().map(|(name, known)| (name.clone(), inactive(known))).collect();
        for (name, metric) in &draft.metrics {
            let fingerprint = metric.fingerprint();
            let same_topic = !self.topic_changed(&metric.source.name, topics);
            let known = match self.metrics.get(name) {
                Some(known) if known.fingerprint == fingerprint && known.active && same_topic => known.clone(),
                known => {
                    let version = known.map_or(0, |known| known.version) + 1;
                    KnownMetric { version, since, fingerprint, active: true }
                }
            };
            metrics.insert(name.clone(), known);
        }
        let source = |(name, source): (&String, &Arc<Source>)| {
            let before = self.sources.get(name).and_then(|known| known.topic.clone());
            let topic = topics.get(name).cloned().or(before);
            (name.clone(), KnownSource { fingerprint: source.definition.fingerprint(), topic })
        };
        let sources = draft.sources.iter().map(source).collect();
        let next = Self { revision: self.revision, sources, metrics };
        // that a topic is seen for the first time changes no definition
        let forget = |known: &Self| known.sources.values().map(|source| source.fingerprint.clone()).collect::<Vec<_>>();
        let same = next.metrics == self.metrics && forget(&next) == forget(self) && self.revision > 0;
        if same { next } else { Self { revision: since, ..next } }
    }

    /// Whether these are the definitions of this catalogue, whatever their topics.
    fn is_of(&self, catalog: &Catalog) -> bool {
        let sources = self.sources.iter().map(|(name, known)| (name, known.fingerprint.clone()));
        let metrics = self.metrics.iter().filter(|(_, known)| known.active);
        let metrics = metrics.map(|(name, known)| (name, known.fingerprint.clone()));
        sources.eq(catalog.sources.iter().map(|(name, source)| (name, source.definition.fingerprint())))
            && metrics.eq(catalog.metrics.iter().map(|(name, metric)| (name, metric.fingerprint())))
    }

    fn topic_changed(&self, source: &str, topics: &BTreeMap<String, String>) -> bool {
        let before = self.sources.get(source).and_then(|known| known.topic.as_ref());
        matches!((before, topics.get(source)), (Some(before), Some(now)) if before != now)
    }

    fn versions(&self) -> Versions {
        let metrics = self.metrics.iter().map(|(name, known)| (name.clone(), (known.version, known.since))).collect();
        Versions { revision: self.revision, metrics }
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

    fn catalog(metrics: &str) -> Catalog {
        Catalog::compile(&[("m.toml".to_owned(), format!("{SOURCE}{metrics}"))], &Versions::default()).unwrap()
    }

    fn metric(name: &str, grain: &str) -> String {
        format!("[metric.{name}]\nsource = \"s\"\nvalue = \"v\"\naggregates = [\"sum\"]\ngrain = \"{grain}\"\n")
    }

    fn topic(id: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("s".to_owned(), id.to_owned())])
    }

    fn version(known: &Known, name: &str) -> (u32, u64) {
        known.versions().metrics[name]
    }

    #[test]
    fn only_what_changed_gets_a_new_version() {
        let first = Known::default().with(&catalog(&(metric("a", "1m") + &metric("b", "1m"))), &BTreeMap::new());
        assert_eq!((first.revision, version(&first, "a"), version(&first, "b")), (1, (1, 1), (1, 1)));
        let same = first.with(&catalog(&(metric("b", "1m") + &metric("a", "1m"))), &topic("x"));
        assert_eq!((same.revision, version(&same, "a")), (1, (1, 1)));
        let changed = same.with(&catalog(&(metric("a", "1h") + &metric("b", "1m"))), &topic("x"));
        assert_eq!((changed.revision, version(&changed, "a"), version(&changed, "b")), (2, (2, 2), (1, 1)));
    }

    #[test]
    fn a_metric_that_comes_back_counts_anew() {
        let both = Known::default().with(&catalog(&(metric("a", "1m") + &metric("b", "1m"))), &BTreeMap::new());
        let without = both.with(&catalog(&metric("a", "1m")), &BTreeMap::new());
        assert_eq!(without.revision, 2);
        let back = without.with(&catalog(&(metric("a", "1m") + &metric("b", "1m"))), &BTreeMap::new());
        assert_eq!((back.revision, version(&back, "a"), version(&back, "b")), (3, (1, 1), (2, 3)));
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
        assert_eq!((state(&old), state(&new)), ((1, 1, 60_000_000), (2, 2, 3_600_000_000)));
        let restarted = with_grain("1m");
        restarted.refresh().await.unwrap();
        new.refresh().await.unwrap();
        assert_eq!((state(&restarted), state(&new)), ((3, 3, 60_000_000), (2, 2, 3_600_000_000)));
        old.refresh().await.unwrap();
        assert_eq!(state(&old), (3, 3, 60_000_000), "what is in force is its own again");
    }

    #[test]
    fn a_topic_that_was_made_again_makes_new_versions() {
        let definitions = catalog(&metric("a", "1m"));
        let known = Known::default().with(&definitions, &topic("x")).with(&definitions, &topic("x"));
        assert_eq!(version(&known, "a"), (1, 1));
        let unseen = known.with(&definitions, &BTreeMap::new());
        assert_eq!(unseen, known, "a log that does not answer changes nothing");
        let again = known.with(&definitions, &topic("y"));
        assert_eq!((again.revision, version(&again, "a")), (2, (2, 2)));
    }
}
