//! All definitions together, compiled.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    Diagnostic, Metric, Source,
    compile_metric::{Over, compile_metric},
    compile_source::compile_source,
    definition::{MetricDefinition, SourceDefinition},
    derived::{Derived, DerivedDefinition, compile_derived, read_derived},
    diagnostic::{Problem, Problems, nearest},
    expression::Planner,
    reading::{Draft, read_metric, read_source},
    toml_table::{At, Table},
};

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
    /// The version of each metric that answers.
    pub metrics: BTreeMap<String, Arc<Metric>>,
    /// Versions that will answer once batch has built them from the archive.
    pub building: BTreeMap<String, Arc<Metric>>,
    /// Versions that answered a moment ago: they are still folded, as some process may not know yet.
    pub retiring: Vec<Arc<Metric>>,
    /// Metrics that are made of others.
    pub derived: BTreeMap<String, Arc<Derived>>,
}

/// A draft with its file's index and whether reading it went well.
struct Read<D> {
    draft: Draft<D>,
    file: usize,
    sound: bool,
}

/// What files hold.
#[derive(Default)]
struct Drafts {
    sources: Vec<Read<SourceDefinition>>,
    metrics: Vec<Read<MetricDefinition>>,
    derived: Vec<Read<DerivedDefinition>>,
}

impl Catalog {
    /// Nothing is defined, at revision 0: definitions are not loaded yet.
    pub fn empty() -> Self {
        Self::of_revision(0)
    }

    fn of_revision(revision: u64) -> Self {
        let (sources, metrics, building, derived) = Default::default();
        Self { revision, sources, metrics, building, retiring: Vec::new(), derived }
    }

    /// Compiles TOML texts `(file name, text)`.
    ///
    /// # Errors
    /// Every error of every file at once.
    pub fn compile(files: &[(String, String)], versions: &Versions) -> Result<Self, Vec<Diagnostic>> {
        let mut problems: Vec<Problems<'_>> = files.iter().map(|(file, text)| Problems::new(file, text)).collect();
        let mut drafts = Drafts::default();
        for (file, (_, text)) in files.iter().enumerate() {
            read_file(file, text, &mut problems, &mut drafts);
        }
        let Drafts { sources, metrics, derived } = drafts;
        let named: Vec<(At<String>, usize)> = metrics.iter().map(|read| (read.draft.name.clone(), read.file)).collect();
        let planner = Planner::new();
        let names: Vec<String> = sources.iter().map(|read| read.draft.name.value.clone()).collect();
        let mut catalog = Self::of_revision(versions.revision);
        for Read { draft, file, sound } in sources {
            let before = problems[file].count() - usize::from(!sound);
            if let Some(source) = compile_source(draft, &planner, &mut problems[file], before) {
                catalog.sources.insert(source.name.clone(), Arc::new(source));
            }
        }
        for Read { draft, file, sound } in metrics {
            let before = problems[file].count() - usize::from(!sound);
            let over = catalog.over(&draft.definition.source, &names);
            let version = versions.metrics.get(&draft.name.value).copied().unwrap_or((1, 1));
            if let Some(metric) = compile_metric(draft, over, version, &planner, &mut problems[file], before) {
                catalog.metrics.insert(metric.name.clone(), Arc::new(metric));
            }
        }
        for read in derived {
            catalog.add_derived(read, &named, &mut problems);
        }
        let found: Vec<Diagnostic> = problems.into_iter().flat_map(Problems::into_found).collect();
        if found.is_empty() { Ok(catalog) } else { Err(found) }
    }

    /// Over the metrics of these names, each with its file.
    fn add_derived(
        &mut self,
        Read { draft, file, .. }: Read<DerivedDefinition>,
        metrics: &[(At<String>, usize)],
        problems: &mut [Problems<'_>],
    ) {
        if let Some((same, at)) = metrics.iter().find(|(name, _)| name.value == draft.name.value) {
            let place = problems[*at].place(&same.span);
            let problem = Problem::new(
                format!("{} is a metric already, at {place}", draft.name.value),
                "metrics and derived metrics share their names; rename one of them",
            );
            problems[file].add(draft.name.span, problem);
            return;
        }
        let names: Vec<&str> = metrics.iter().map(|(name, _)| name.value.as_str()).collect();
        let known = |name: &str| names.contains(&name).then(|| self.metrics.get(name));
        if let Some(derived) = compile_derived(draft, &known, &names, &mut problems[file]) {
            self.derived.insert(derived.name.clone(), Arc::new(derived));
        }
    }

    /// Compiles one more version, `(version, since)`, of a metric over the sources of this catalogue; `text` holds its
    /// definition alone.
    ///
    /// # Errors
    /// Every error of it, as if it stood in the file `place`.
    pub fn version(&self, place: &str, text: &str, version: (u32, u64)) -> Result<Metric, Vec<Diagnostic>> {
        let mut problems = [Problems::new(place, text)];
        let mut drafts = Drafts::default();
        read_file(0, text, &mut problems, &mut drafts);
        let names: Vec<String> = self.sources.keys().cloned().collect();
        let compiled = drafts.metrics.pop().and_then(|Read { draft, sound, .. }| {
            let before = problems[0].count() - usize::from(!sound);
            let over = self.over(&draft.definition.source, &names);
            compile_metric(draft, over, version, &Planner::new(), &mut problems[0], before)
        });
        let [problems] = problems;
        compiled.ok_or_else(|| problems.into_found())
    }

    fn over<'a>(&'a self, source: &str, defined: &'a [String]) -> Over<'a> {
        match self.sources.get(source) {
            Some(source) => Over::Compiled(source),
            None if defined.iter().any(|name| name == source) => Over::Broken,
            None => Over::Unknown(defined.iter().map(String::as_str).collect()),
        }
    }

    /// Reads `*.toml` below the paths (files or folders, sorted), then compiles.
    ///
    /// # Errors
    /// Every error of every file at once, those of reading included.
    pub fn load(paths: &[PathBuf], versions: &Versions) -> Result<Self, Vec<Diagnostic>> {
        let (files, mut failed) = gather(paths);
        match Self::compile(&files, versions) {
            Ok(catalog) if failed.is_empty() => Ok(catalog),
            Ok(_) => Err(failed),
            Err(found) => {
                failed.extend(found);
                Err(failed)
            }
        }
    }

    /// The version of a metric that was defined last, whether it answers already or is being built.
    pub fn latest(&self, name: &str) -> Option<&Arc<Metric>> {
        self.building.get(name).or_else(|| self.metrics.get(name))
    }

    /// The metrics over one source that are folded, in all their versions.
    pub fn metrics_of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Arc<Metric>> {
        let all = self.metrics.values().chain(self.building.values()).chain(&self.retiring);
        all.filter(move |metric| metric.source.name == source)
    }
}

/// Reads `*.toml` below the paths: (file, text).
///
/// # Errors
/// All that cannot be read.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Vec<Diagnostic>> {
    let (files, failed) = gather(paths);
    if failed.is_empty() { Ok(files) } else { Err(failed) }
}

/// What could be read, and what could not.
fn gather(paths: &[PathBuf]) -> (Vec<(String, String)>, Vec<Diagnostic>) {
    let (mut files, mut failed) = (Vec::new(), Vec::new());
    paths.iter().for_each(|path| collect(path, true, &mut files, &mut failed));
    (files, failed)
}

/// Reads a file, or all `*.toml` files below a folder. A file that was named is read whatever its name ends in.
fn collect(path: &Path, named: bool, files: &mut Vec<(String, String)>, failed: &mut Vec<Diagnostic>) {
    let file = path.display().to_string();
    let mut fail = |error: std::io::Error| {
        let message = format!("cannot be read: {error}");
        failed.push(Diagnostic { file: file.clone(), line: 1, column: 1, message, help: None, span: 0..0 });
    };
    if path.is_dir() {
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match entries {
            Ok(entries) => {
                let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                paths.sort();
                paths.iter().for_each(|path| collect(path, false, files, failed));
            }
            Err(error) => fail(error),
        }
    } else if named || path.extension().is_some_and(|extension| extension == "toml") {
        match std::fs::read_to_string(path) {
            Ok(text) if !files.iter().any(|(known, _)| *known == file) => files.push((file, text)),
            Ok(_) => {}
            Err(error) => fail(error),
        }
    }
}

fn read_file(file: usize, text: &str, problems: &mut [Problems<'_>], drafts: &mut Drafts) {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            problems[file]
                .add(error.span().unwrap_or(0..0), Problem::plain(format!("is not TOML: {}", error.message())));
        }
        return;
    }
    for (key, value) in document.get_ref() {
        match key.get_ref().as_ref() {
            "source" => read_tables(value, "source", file, problems, &mut drafts.sources, read_source),
            "metric" => read_tables(value, "metric", file, problems, &mut drafts.metrics, read_metric),
            "derived" => read_tables(value, "derived", file, problems, &mut drafts.derived, read_derived),
            other => {
                let help = match nearest(other, ["source", "metric", "derived"]) {
                    Some(near) => format!("did you mean [{near}.NAME]?"),
                    None => "a file holds [source.NAME], [metric.NAME] and [derived.NAME]".to_owned(),
                };
                problems[file].add(key.span(), Problem::new(format!("unknown key `{other}`"), help));
            }
        }
    }
}

fn read_tables<D>(
    value: &Spanned<DeValue<'_>>,
    kind: &str,
    file: usize,
    problems: &mut [Problems<'_>],
    read: &mut Vec<Read<D>>,
    reader: impl for<'p> Fn(At<String>, Table<'_, '_>, &mut Problems<'p>) -> Draft<D>,
) {
    let DeValue::Table(tables) = value.get_ref() else {
        let help = format!("write [{kind}.NAME]");
        problems[file].add(value.span(), Problem::new(format!("`{kind}` is not a table"), help));
        return;
    };
    for (name, value) in tables {
        let at = At::new(name.get_ref().to_string(), name.span());
        let DeValue::Table(entries) = value.get_ref() else {
            let problem = Problem::new(format!("`{kind}.{}` is not a table", at.value), format!("write [{kind}.NAME]"));
            problems[file].add(value.span(), problem);
            continue;
        };
        if let Some(place) = place_of(&at.value, read, problems) {
            let help = "each name stands once; rename or remove one of them";
            problems[file]
                .add(at.span, Problem::new(format!("{kind} {} is defined already, at {place}", at.value), help));
            continue;
        }
        let table = Table::new(format!("{kind}.{}", at.value), at.span.clone(), entries);
        let before = problems[file].count();
        let draft = reader(at, table, &mut problems[file]);
        read.push(Read { draft, file, sound: problems[file].count() == before });
    }
}

fn place_of<D>(name: &str, read: &[Read<D>], problems: &[Problems<'_>]) -> Option<String> {
    let earlier = read.iter().find(|earlier| earlier.draft.name.value == name)?;
    let span: &Range<usize> = &earlier.draft.name.span;
    Some(problems[earlier.file].place(span))
}
