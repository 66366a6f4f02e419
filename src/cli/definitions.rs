//! `lamina validate` and `lamina infer`.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
};

use lamina_metric::{Catalog, Diagnostic, Versions};
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report};

use super::{Done, Failure};
use crate::config::{Config, StoreConfig};

/// Bytes of a file that `lamina infer` looks at.
const SAMPLE: u64 = 4 << 20;

/// Check a configuration and definitions. Exits 0 if all is well, 1 if something is wrong, 2 if it cannot be read.
#[derive(clap::Args)]
pub(super) struct Validate {
    /// Definition files or folders, or lamina.toml; left out, ./lamina.toml if there is one, else ./metrics
    paths: Vec<PathBuf>,
}

/// Propose a source definition from a sample of events.
#[derive(clap::Args)]
pub(super) struct Infer {
    /// A file of events, plain or gzip
    file: PathBuf,
    /// Name of the source; left out, the file's
    #[arg(long)]
    name: Option<String>,
}

impl Validate {
    pub(super) fn run(self) -> Done {
        let (configurations, mut paths): (Vec<_>, Vec<_>) =
            self.chosen()?.into_iter().partition(|path| path.ends_with("lamina.toml"));
        let (mut wrong, mut without_tables) = (0, false);
        for path in &configurations {
            match Config::load(path) {
                Ok(config) => {
                    without_tables |= matches!(config.store, StoreConfig::Embedded);
                    paths.extend(config.definitions);
                }
                Err(error) => {
                    eprintln!("{}: {error}", path.display());
                    wrong += 1;
                }
            }
        }
        if let Some(missing) = paths.iter().find(|path| !path.exists()) {
            return Err(Failure::usage(format!("{} does not exist", missing.display())));
        }
        let catalog = Catalog::load(&paths, &Versions::default());
        let tables =
            catalog.iter().flat_map(|catalog| catalog.sources.values()).filter(|source| source.table.is_some());
        for source in tables.filter(|_| without_tables) {
            eprintln!("source {}: kind = \"cassandra\" needs [store] kind = \"cassandra\"", source.name);
            wrong += 1;
        }
        match catalog {
            Ok(catalog) if wrong == 0 => {
                let derived = match catalog.derived.len() {
                    0 => String::new(),
                    derived => format!(", {derived} derived"),
                };
                println!("{} sources, {} metrics{derived}: all well", catalog.sources.len(), catalog.metrics.len());
                Ok(ExitCode::SUCCESS)
            }
            Ok(_) => Ok(ExitCode::FAILURE),
            Err(diagnostics) => {
                diagnostics.iter().for_each(show);
                eprintln!("{} errors", diagnostics.len() + wrong);
                Ok(ExitCode::FAILURE)
            }
        }
    }

    fn chosen(&self) -> Result<Vec<PathBuf>, Failure> {
        if !self.paths.is_empty() {
            return Ok(self.paths.clone());
        }
        let usual = [PathBuf::from("lamina.toml"), PathBuf::from("metrics")];
        let found = usual.into_iter().find(|path| path.exists());
        found
            .map(|path| vec![path])
            .ok_or_else(|| Failure::usage("there is no lamina.toml and no metrics/ here; name what to check"))
    }
}

/// The place, the line itself, and what would be right.
fn show(diagnostic: &Diagnostic) {
    let place = format!("{}:{}:{}", diagnostic.file, diagnostic.line, diagnostic.column);
    let label = LabeledSpan::new_with_span(None, diagnostic.span.clone());
    let mut report = MietteDiagnostic::new(format!("{place}: {}", diagnostic.message)).with_label(label);
    if let Some(help) = &diagnostic.help {
        report = report.with_help(help.clone());
    }
    let text = std::fs::read_to_string(&diagnostic.file).unwrap_or_default();
    let report = Report::new(report).with_source_code(NamedSource::new(&diagnostic.file, text));
    let theme = if std::env::var_os("NO_COLOR").is_some() {
        GraphicalTheme::unicode_nocolor()
    } else {
        GraphicalTheme::default()
    };
    let mut shown = String::new();
    match GraphicalReportHandler::new_themed(theme).render_report(&mut shown, report.as_ref()) {
        Ok(()) => eprintln!("{shown}"),
        Err(_) => eprintln!("{place}: {}", diagnostic.message),
    }
}

impl Infer {
    pub(super) fn run(self) -> Done {
        let sample =
            read_sample(&self.file).map_err(|error| Failure::usage(format!("{}: {error}", self.file.display())))?;
        let stem = self.file.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
        let name = self.name.as_deref().or(stem).unwrap_or("events");
        let proposal = lamina_metric::infer(&sample, name).map_err(Failure::failed)?;
        print!("{proposal}");
        Ok(ExitCode::SUCCESS)
    }
}

fn read_sample(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut sample = Vec::new();
    super::ingest::decompressed(File::open(path)?)?.take(SAMPLE).read_to_end(&mut sample)?;
    // a line that was cut would look like a broken event
    if sample.len() as u64 == SAMPLE {
        let end = sample.iter().rposition(|&byte| byte == b'\n').map_or(sample.len(), |at| at + 1);
        sample.truncate(end);
    }
    Ok(sample)
}
