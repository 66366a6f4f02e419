//! All definitions together, compiled.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Diagnostic, Metric, Source};

/// Which version of each metric is being compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The revision of the definitions as a whole; it never decreases.
    pub revision: u64,
    /// Metric → its version and the revision since which that version counts. A metric that is not named has version 1
    /// since revision 1.
    pub metrics: BTreeMap<String, (u32, u64)>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { revision: 1, metrics: BTreeMap::new() }
    }
}

/// All definitions, compiled. Immutable; a change makes a new one.
#[derive(Debug)]
pub struct Catalog {
    pub revision: u64,
    pub sources: BTreeMap<String, Arc<Source>>,
    pub metrics: BTreeMap<String, Arc<Metric>>,
}

impl Catalog {
    /// Compiles TOML texts `(file name, text)`.
    ///
    /// # Errors
    /// Every error of every file at once.
    pub fn compile(_files: &[(String, String)], _versions: &Versions) -> Result<Self, Vec<Diagnostic>> {
        unimplemented!()
    }

    /// Reads `*.toml` below the paths (files or folders, sorted), then compiles.
    ///
    /// # Errors
    /// Every error of every file at once, those of reading included.
    pub fn load(_paths: &[PathBuf], _versions: &Versions) -> Result<Self, Vec<Diagnostic>> {
        unimplemented!()
    }

    /// The metrics over one source.
    pub fn metrics_of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Arc<Metric>> {
        self.metrics.values().filter(move |metric| metric.source.name == source)
    }
}
