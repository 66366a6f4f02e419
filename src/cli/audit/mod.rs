//! `lamina audit`: recomputes sampled buckets from the archive and compares them with what users are answered.
//!
//! Flow: sample events (`sample`) → ask the server for their buckets → wait until what the answers fold is sealed → fold the
//! archive files that hold it (`recompute`) → compare (`compare`).
//!
//! Nothing of batch is used: payloads are decoded again, and folded in the way of the speed layer up to exactly the
//! positions that each answer names. What the archive holds besides is checked on the way: size and CRC-32 of each file that
//! is read, its rows by outcome, its columns against its payloads, and that epochs leave no hole.

mod asked;
mod compare;
mod recompute;
mod sample;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use lamina_core::{Micros, Offset, Partition, Segment};
use lamina_metric::{Catalog, Length, Metric, MetricDefinition, Source, SourceDefinition, Versions, time::format_time};
use object_store::ObjectStore;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use self::{
    asked::Asked,
    compare::{Difference, Report, compare},
    recompute::{Broken, Recomputed},
    sample::Random,
};
use super::{
    ConfigFile, Done, Failure, Server,
    client::send,
    output::{self, Output, Table, cell},
    serve::load,
};
use crate::run::open_archive;

/// Buckets of wider rollups are audited only when asked for: each would read hours of the archive.
const WIDEST: Micros = 3_600_000_000;
/// Series of one answer that are compared at most.
const SERIES: usize = 10_000;
const POLL: Duration = Duration::from_millis(500);

/// Recompute sampled buckets from the archive and compare them with what is served. Exits 0 if they are equal, 1 if
/// something differs or the archive is damaged, 2 if that cannot be told.
#[derive(clap::Args)]
pub(super) struct Audit {
    /// Metrics; none = all
    metrics: Vec<String>,
    /// Event time from which buckets are sampled: RFC 3339 or epoch milliseconds
    #[arg(long)]
    from: Option<String>,
    #[arg(long)]
    to: Option<String>,
    /// How many buckets to compare, over all metrics; each with all its series
    #[arg(long, default_value_t = 20)]
    sample: usize,
    /// What the sample depends on, besides the archive; left out, the time
    #[arg(long)]
    seed: Option<u64>,
    /// Width of the buckets, e.g. 1d; left out, those that the metrics keep up to 1h
    #[arg(long)]
    step: Option<String>,
    /// How long to wait until what the server answers is sealed, in seconds
    #[arg(long, default_value_t = 180)]
    wait: u64,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    server: Server,
}

/// The files of a source's archive, as the server tells them.
#[derive(Debug, Deserialize)]
struct Files {
    partitions: Vec<PartitionFiles>,
}

#[derive(Debug, Deserialize)]
struct PartitionFiles {
    partition: Partition,
    sealed_end: Offset,
    holes: Vec<(Offset, Offset)>,
    files: Vec<Segment>,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = (Partition, &Segment)> {
        self.partitions.iter().flat_map(|one| one.files.iter().map(|file| (one.partition, file)))
    }
}

impl Audit {
    pub(super) async fn run(self) -> Done {
        // 1 says that something differs, so whatever else goes wrong is 2.
        let report = self.attempt().await.map_err(|failure| Failure { code: 2, ..failure })?;
        output::print(self.output, &report.to_json(), |_| report.table());
        eprintln!("{}", report.summary());
        Ok(ExitCode::from(report.code()))
    }

    async fn attempt(&self) -> Result<Report, Failure> {
        let config = load(&self.config)?;
        let archive = open_archive(&config).map_err(|error| Failure::from_error(2, &error))?;
        let step = self.step.as_deref().map(Length::parse).transpose().map_err(Failure::usage)?;
        let seed = self.seed.unwrap_or_else(rand::random);
        eprintln!("seed {seed}");
        let (mut random, mut report) = (Random(seed), Report { seed, ..Report::default() });
        let catalog = self.catalog().await?;
        // A table has no archive to compare with.
        let archived = catalog.metrics.values().filter(|metric| metric.source.table.is_none());
        let sources: BTreeSet<&str> = archived.map(|metric| metric.source.name.as_str()).collect();
        for (at, name) in sources.iter().enumerate() {
            let metrics: Vec<&Arc<Metric>> = catalog.metrics_of(name).collect();
            // Each source gets its share, and the first ones what is left over.
            let share = self.sample / sources.len() + usize::from(at < self.sample % sources.len());
            self.audit_source(&*archive, &metrics, share, step, &mut random, &mut report).await?;
        }
        Ok(report)
    }

    async fn audit_source(
        &self,
        archive: &dyn ObjectStore,
        metrics: &[&Arc<Metric>],
        share: usize,
        step: Option<Length>,
        random: &mut Random,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let Some(source) = metrics.first().map(|metric| &metric.source) else { return Ok(()) };
        let files = self.files(source, self.from.clone(), self.to.clone()).await?;
        for one in &files.partitions {
            let hole = |&(from, to): &(Offset, Offset)| {
                let what =
                    format!("offsets {from}..{to} of partition {} are in neither ledger nor manifest", one.partition);
                Difference::archive(&source.name, what)
            };
            report.differences.extend(one.holes.iter().map(hole));
        }
        report.differences.extend(files.all().filter_map(|(partition, file)| not_conserved(source, partition, file)));
        let bar = indicatif::ProgressBar::new(share as u64).with_message(format!("asking for {}", source.name));
        let mut asked: Vec<Asked> = Vec::new();
        for at in 0..share {
            bar.inc(1);
            let metric = metrics[at % metrics.len()];
            let widths = metric.widths().into_iter();
            let widths: Vec<Micros> = match step {
                Some(step) => widths.filter(|width| *width == step.0).collect(),
                None => widths.filter(|width| *width <= WIDEST.max(metric.grain)).collect(),
            };
            let Some(&width) = random.pick(&widths) else {
                let kept: Vec<_> = metric.widths().into_iter().map(|width| Length(width).to_string()).collect();
                return Err(Failure::usage(format!("--step: {} keeps {}", metric.name, kept.join(", "))));
            };
            let time = match sample::event_time(archive, &files, random).await {
                Ok(Some(time)) => time,
                Ok(None) => break,
                Err(broken) => {
                    report.archive(&source.name, broken);
                    continue;
                }
            };
            let (view, bucket) = (random.below(metric.views.len()), time.div_euclid(width) * width);
            let known = |asked: &Asked| {
                (asked.metric.name.as_str(), asked.view, asked.width, asked.bucket)
                    == (&metric.name, view, width, bucket)
            };
            if !asked.iter().any(known) {
                asked.extend(self.ask(metric, view, width, bucket, report).await);
            }
        }
        bar.finish_and_clear();
        if asked.is_empty() {
            return Ok(());
        }
        let files = self.sealed(source, &asked).await?;
        let recomputed = recompute::recompute(archive, source, &asked, &files).await?;
        judge(source, asked, recomputed, report)
    }

    /// The definitions in force of the metrics to audit and of their sources.
    async fn catalog(&self) -> Result<Catalog, Failure> {
        let all = send(self.server.request(Method::GET, &["v1", "metrics"])?).await?;
        let known: Vec<&str> =
            all["metrics"].as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
        let wanted = if self.metrics.is_empty() { known } else { self.metrics.iter().map(String::as_str).collect() };
        let (mut metrics, mut sources, mut etags) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let undecodable = |error: serde_json::Error| Failure::failed(format!("a definition does not decode: {error}"));
        for name in wanted {
            let metric = send(self.server.request(Method::GET, &["v1", "metrics", name])?).await?;
            let definition: MetricDefinition =
                serde_json::from_value(metric["definition"].clone()).map_err(undecodable)?;
            let source = send(self.server.request(Method::GET, &["v1", "sources", &definition.source])?).await?;
            let over: SourceDefinition = serde_json::from_value(source["definition"].clone()).map_err(undecodable)?;
            etags.insert(name.to_owned(), metric["etag"].clone());
            sources.insert(definition.source.clone(), over);
            metrics.insert(name.to_owned(), definition);
        }
        let text = |table: Result<String, toml::ser::Error>| {
            table.map_err(|error| Failure::failed(format!("a definition cannot be written as TOML: {error}")))
        };
        let text = text(toml::to_string(&BTreeMap::from([("source", &sources)])))?
            + &text(toml::to_string(&BTreeMap::from([("metric", &metrics)])))?;
        let versions = etags.iter().filter_map(|(name, etag)| {
            let version = etag.as_str()?.trim_matches('"').split('-').next()?.parse().ok()?;
            Some((name.clone(), (version, 1)))
        });
        let versions = Versions { revision: 1, metrics: versions.collect() };
        let catalog = Catalog::compile(&[("the server's definitions".to_owned(), text)], &versions);
        let catalog = catalog
            .map_err(|errors| Failure::failed(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
        for (name, metric) in &catalog.metrics {
            if etags[name] != lamina_serving::registry::etag_of_metric(metric) {
                return Err(Failure::failed(format!(
                    "metric {name} compiles otherwise here than in the server: are both of one version?"
                )));
            }
        }
        Ok(catalog)
    }

    async fn files(&self, source: &Source, from: Option<String>, to: Option<String>) -> Result<Files, Failure> {
        let range = [("from", from), ("to", to)].into_iter().filter_map(|(name, at)| Some((name, at?)));
        let request = self.server.request(Method::GET, &["v1", "sources", &source.name, "archive"])?;
        let answer = send(request.query(&range.collect::<Vec<_>>())).await?;
        serde_json::from_value(answer)
            .map_err(|error| Failure::failed(format!("the server's list of files does not decode: {error}")))
    }

    /// Asks for one bucket of a view, as a user would. What cannot be compared is noted.
    async fn ask(
        &self,
        metric: &Arc<Metric>,
        view: usize,
        width: Micros,
        bucket: Micros,
        report: &mut Report,
    ) -> Option<Asked> {
        let (metric, answer) = (Arc::clone(metric), Value::Null);
        let (positions, expired) = Default::default();
        let mut asked = Asked { metric, view, width, bucket, answer, positions, expired };
        let step = Length(width).to_string();
        let parameters = [
            ("from", format_time(bucket)),
            ("to", format_time(bucket + width)),
            ("step", step),
            ("group_by", asked.dimensions().join(",")),
            ("limit", SERIES.to_string()),
        ];
        let request = self.server.request(Method::GET, &["v1", "metrics", &asked.metric.name, "query"]);
        let answer = match request {
            Ok(request) => send(request.query(&parameters.map(|(name, value)| (name, value)))).await,
            Err(failure) => Err(failure),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                report.unknown(asked.place(), failure.message);
                return None;
            }
        };
        if answer["meta"]["complete"] != json!(true) {
            report.unknown(asked.place(), format!("the answer is not complete: {}", answer["meta"]["missing"]));
            return None;
        }
        if answer["meta"].get("retained_from").is_some() {
            report.past_retention += 1;
            return None;
        }
        match asked.expired_in(&answer) {
            Ok(expired) if expired.values().all(|horizon| bucket + width <= *horizon) => asked.expired = expired,
            // Of some series a part of the bucket is past retention.
            Ok(_) => {
                report.past_retention += 1;
                return None;
            }
            Err(why) => {
                report.unknown(asked.place(), why);
                return None;
            }
        }
        let positions = answer["meta"]["speed"]["positions"].as_object().into_iter().flatten();
        asked.positions =
            positions.filter_map(|(partition, at)| Some((partition.parse().ok()?, at.as_u64()?))).collect();
        asked.answer = answer;
        Some(asked)
    }

    /// The files that touch what was asked for, once all that the answers fold is sealed.
    async fn sealed(&self, source: &Source, asked: &[Asked]) -> Result<Files, Failure> {
        let from = asked.iter().map(|asked| asked.bucket).min().unwrap_or_default();
        let to = asked.iter().map(|asked| asked.bucket + asked.width).max().unwrap_or_default();
        let mut needed: BTreeMap<Partition, Offset> = BTreeMap::new();
        for (&partition, &at) in asked.iter().flat_map(|asked| &asked.positions) {
            let most = needed.entry(partition).or_default();
            *most = (*most).max(at);
        }
        let began = Instant::now();
        loop {
            let files = self.files(source, Some(format_time(from)), Some(format_time(to))).await?;
            let behind =
                files.partitions.iter().find(|one| needed.get(&one.partition).is_some_and(|at| one.sealed_end < *at));
            let Some(behind) = behind else { return Ok(files) };
            if began.elapsed() > Duration::from_secs(self.wait) {
                return Err(Failure::failed(format!(
                    "partition {} of {} is sealed up to {} after {} s, the answers fold up to {}: is a speed worker running? (--wait)",
                    behind.partition, source.name, behind.sealed_end, self.wait, needed[&behind.partition]
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn not_conserved(source: &Source, partition: Partition, file: &Segment) -> Option<Difference> {
    let (start, end) = (file.start, file.end);
    let (length, found) = (end.saturating_sub(start), file.archive.as_ref()?.counts.offsets());
    (length != found).then(|| {
        let place = format!("file of {start}..{end} of partition {partition}");
        Difference::archive(&source.name, format!("{place} accounts for {found} of {length} offsets"))
    })
}

/// Compares each answer with what was recomputed for it, unless a file that it needs is broken.
fn judge(source: &Source, asked: Vec<Asked>, recomputed: Recomputed, report: &mut Report) -> Result<(), Failure> {
    let Recomputed { sums, broken, unknown, files, rows } = recomputed;
    report.files += files;
    report.rows += rows;
    for (at, (asked, sums)) in asked.iter().zip(sums).enumerate() {
        if let Some(why) = unknown.get(&at) {
            report.unknown(asked.place(), why.clone());
            continue;
        }
        compare(asked, sums, report).map_err(Failure::failed)?;
    }
    broken.into_iter().for_each(|broken| report.archive(&source.name, broken));
    Ok(())
}

impl Report {
    fn archive(&mut self, source: &str, broken: Broken) {
        match broken {
            Broken::Damaged(what) => {
                let difference = Difference::archive(source, what);
                if !self.differences.contains(&difference) {
                    self.differences.push(difference);
                }
            }
            Broken::Unreachable(why) => self.unknown(source.to_owned(), why),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["METRIC", "SERIES", "BUCKET", "STEP", "AGGREGATE", "SERVED", "RECOMPUTED"]);
        for one in self.differences.iter().map(Difference::to_json) {
            let cells = ["metric", "series", "bucket", "step", "aggregate", "served", "recomputed"];
            table.rows.push(cells.map(|name| cell(&one[name])).to_vec());
        }
        table
    }
}
