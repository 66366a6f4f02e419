//! How definitions are changed: implemented by whoever keeps them.

use async_trait::async_trait;
use lamina_metric::{Derived, Diagnostic, Metric, Source};

/// What is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefinitionKind {
    Source,
    Metric,
    /// A metric that is made of others.
    Derived,
}

impl DefinitionKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Metric => "metric",
            Self::Derived => "derived",
        }
    }

    /// Where definitions of this kind are found: `/v1/metrics`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Source => "/v1/sources",
            Self::Metric => "/v1/metrics",
            Self::Derived => "/v1/derived",
        }
    }
}

/// A definition as a client sent it: the table below `[metric.NAME]`, `[source.NAME]` or `[derived.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub enum DefinitionBody {
    Toml(String),
    Json(serde_json::Value),
}

/// Where a definition comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Read-only here.
    File(String),
    Api,
}

/// What a PUT did. An equal definition changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Created,
    Changed,
    Unchanged,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("there is no such definition")]
    NotFound,
    #[error("it is defined in {file}, which only its owner changes: edit the file, or take the name out of it")]
    ReadOnly { file: String },
    #[error("the definition does not compile: {}", first(.0))]
    Invalid(Vec<Diagnostic>),
    #[error("it was changed since: its ETag is {current}")]
    Changed { current: String },
    #[error("it is in use: {0}")]
    InUse(String),
    #[error(transparent)]
    Store(#[from] lamina_core::StoreError),
}

fn first(diagnostics: &[Diagnostic]) -> String {
    diagnostics.first().map_or_else(String::new, ToString::to_string)
}

/// Changes definitions; those of files are read-only.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Compiles the definition together with all others, stores it and publishes the new catalogue. `if_match` is the
    /// ETag ([`etag_of_metric`], [`etag_of_source`], [`etag_of_derived`]) that the definition must have now; `*` is any, `None` asks for no
    /// check.
    async fn put(
        &self,
        kind: DefinitionKind,
        name: &str,
        body: DefinitionBody,
        if_match: Option<String>,
    ) -> Result<Put, RegistryError>;

    async fn delete(&self, kind: DefinitionKind, name: &str, if_match: Option<String>) -> Result<(), RegistryError>;

    /// Where a definition of the present catalogue comes from.
    fn origin(&self, kind: DefinitionKind, name: &str) -> Option<Origin>;
}

/// The strong ETag of a metric's definition: equal definitions have equal ones.
pub fn etag_of_metric(metric: &Metric) -> String {
    format!("\"{}-{}\"", metric.version, metric.definition.fingerprint())
}

/// The strong ETag of a source's definition.
pub fn etag_of_source(source: &Source) -> String {
    format!("\"{}\"", source.definition.fingerprint())
}

/// The strong ETag of a derived metric's definition.
pub fn etag_of_derived(derived: &Derived) -> String {
    format!("\"{}\"", derived.definition.fingerprint())
}
