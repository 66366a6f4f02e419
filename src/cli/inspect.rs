//! `lamina inspect`: what is stored, decoded for people; one JSON object a line.

use std::{process::ExitCode, sync::Arc};

use clap::Subcommand;
use lamina_core::{
    Cut, Ledger, LogId, Micros, Partition, Segment, ViewId, archive, generation,
    ledger::Archive,
    read,
    store::{Consistency, Part},
};
use lamina_metric::{Ask, BatchChunk, Catalog, Metric, Numbers, Series, SpeedChunk, States, View, time::format_time};
use serde_json::{Map, Value, json};

use super::{ConfigFile, Done, Failure, serve::load};
use crate::run::Node;

/// Decode what is stored. An embedded store is opened by one process only: stop the server first.
#[derive(clap::Args)]
pub(super) struct Inspect {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Subcommand)]
enum What {
    /// The epochs that count, per partition of a source
    Ledger { source: String },
    /// What batch has published of each view of a metric
    Views { metric: String },
    /// Speed chunks that count, uncovered epochs only, those included that may have expired
    Speed { metric: String },
    /// Batch chunks
    Batch { metric: String },
}

impl Inspect {
    pub(super) async fn run(self) -> Done {
        let config = load(&self.config)?;
        let node = Node::open(&config, Vec::new()).await.map_err(|error| Failure::from_error(2, &error))?;
        let catalog = node.definitions.watch().borrow().clone();
        if catalog.revision == 0 {
            return Err(Failure::failed("the view store does not answer"));
        }
        let looking = Looking { node, catalog };
        match &self.what {
            What::Ledger { source } => looking.ledger(source).await?,
            What::Views { metric } => looking.views(metric).await?,
            What::Speed { metric } => looking.speed(metric).await?,
            What::Batch { metric } => looking.batch(metric).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

struct Looking {
    node: Node,
    catalog: Arc<Catalog>,
}

fn failed(error: impl std::error::Error) -> Failure {
    Failure::from_error(1, &error)
}

impl Looking {
    fn metric(&self, name: &str) -> Result<&Arc<Metric>, Failure> {
        let known = || self.catalog.metrics.keys().cloned().collect::<Vec<_>>().join(", ");
        self.catalog
            .metrics
            .get(name)
            .ok_or_else(|| Failure::usage(format!("no metric {name:?}; there are: {}", known())))
    }

    async fn log(&self, source: &str) -> Result<(LogId, Vec<Partition>), Failure> {
        let known = self.catalog.sources.get(source).ok_or_else(|| Failure::usage(format!("no source {source:?}")))?;
        let topic = self.node.backends.log.topic(&known.topic).await.map_err(failed)?;
        Ok((topic.log_id(source), (0..topic.partitions).collect()))
    }

    async fn ledger(&self, source: &str) -> Result<(), Failure> {
        let (log, partitions) = self.log(source).await?;
        for partition in partitions {
            let ledger = self.node.backends.store.load(&log, partition, Consistency::Serial).await.map_err(failed)?;
            let mark = read::open_mark(&*self.node.backends.store, &log, partition, &ledger).await.map_err(failed)?;
            print_ledger(partition, &ledger);
            if let Some(mark) = mark {
                println!(
                    "{}",
                    json!({"partition": partition, "mark": {"end": mark.end, "number": mark.number, "watermark": mark.watermark.map(format_time)}})
                );
            }
        }
        Ok(())
    }

    async fn views(&self, metric: &str) -> Result<(), Failure> {
        let metric = self.metric(metric)?;
        for view in &metric.views {
            let (version, state) = generation::load_view(&*self.node.backends.store, &view.id).await.map_err(failed)?;
            let names = names(metric, view);
            let published = json!({"generation": state.published.generation, "cut": cut(&state.published.cut),
                "bases": state.published.bases.iter().map(|(range, base)| json!([format_time(range.start), format_time(range.end), base])).collect::<Vec<_>>()});
            let open =
                state.open.map(|open| json!({"generation": open.generation, "cut": cut(&open.cut), "base": open.base}));
            println!(
                "{}",
                json!({"view": view.id.as_str(), "dimensions": names, "version": version, "published": published, "open": open})
            );
        }
        Ok(())
    }

    async fn speed(&self, metric: &str) -> Result<(), Failure> {
        let metric = self.metric(metric)?;
        let (log, partitions) = self.log(&metric.source.name).await?;
        let store = &self.node.backends.store;
        for view in &metric.views {
            let shards: Vec<_> = (0..view.shards).collect();
            let request = request(&log, &partitions, view, metric, &shards);
            let snapshot = read::take(&**store, &request, true).await.map_err(failed)?;
            for wanted in snapshot.wanted() {
                for &shard in &shards {
                    let chunks = match &wanted.part {
                        lamina_core::snapshot::WantedPart::Whole(end) => {
                            let found =
                                store.whole(&view.id, shard, wanted.slot, wanted.epoch, *end).await.map_err(failed)?;
                            found.into_iter().map(|bytes| (Part::Whole(*end), bytes)).collect::<Vec<_>>()
                        }
                        lamina_core::snapshot::WantedPart::Deltas(mark) => {
                            let upto = mark.sequences.get(&(view.id.clone(), shard)).copied().unwrap_or(0);
                            let found = store
                                .deltas(&view.id, shard, wanted.slot, wanted.epoch, 0..upto)
                                .await
                                .map_err(failed)?;
                            found.into_iter().map(|(n, bytes)| (Part::Delta(n), bytes)).collect()
                        }
                    };
                    for (part, bytes) in chunks {
                        let chunk = SpeedChunk::decode(&bytes).map_err(failed)?;
                        let place = json!({"view": view.id.as_str(), "shard": shard, "partition": wanted.partition,
                            "epoch": wanted.epoch.to_string(), "start": wanted.start, "part": format!("{part:?}"), "bytes": bytes.len()});
                        for (row, (series, bucket)) in chunk.rows.iter().enumerate() {
                            print_state(
                                metric,
                                view,
                                &place,
                                chunk.series.get(*series as usize),
                                *bucket,
                                &chunk.states,
                                row,
                            )?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn batch(&self, metric: &str) -> Result<(), Failure> {
        let metric = self.metric(metric)?;
        for view in &metric.views {
            let (_, state) = generation::load_view(&*self.node.backends.store, &view.id).await.map_err(failed)?;
            let bases: std::collections::BTreeSet<u32> =
                state.published.bases.iter().map(|(_, base)| *base).chain([0]).collect();
            for width in metric.widths() {
                for (shard, &base) in (0..view.shards).flat_map(|shard| bases.iter().map(move |base| (shard, base))) {
                    self.batch_shard(metric, view, width, base, shard).await?;
                }
            }
        }
        Ok(())
    }

    async fn batch_shard(
        &self,
        metric: &Metric,
        view: &View,
        width: Micros,
        base: u32,
        shard: u32,
    ) -> Result<(), Failure> {
        let Some((first, last)) = self.event_time(metric).await? else { return Ok(()) };
        let period = lamina_core::store::period(width);
        let periods = first.div_euclid(period) * period..last + 1;
        let rows = self.node.backends.store.scan(&view.id, width, base, shard, periods, None).await.map_err(failed)?;
        for row in rows {
            let chunk = BatchChunk::decode(&row.body).map_err(failed)?;
            let series = Series::from_bytes(row.key.series.clone());
            let place = json!({"view": view.id.as_str(), "width": width, "base": base, "shard": shard,
                "period": format_time(row.key.period), "generation": row.generation, "cut": cut(&row.cut), "bytes": row.body.len()});
            for (at, bucket) in chunk.buckets.iter().enumerate() {
                print_state(metric, view, &place, Some(&series), *bucket, &chunk.states, at)?;
            }
        }
        Ok(())
    }

    /// The range of event time that archive files name.
    async fn event_time(&self, metric: &Metric) -> Result<Option<(Micros, Micros)>, Failure> {
        let (log, partitions) = self.log(&metric.source.name).await?;
        let mut range: Option<(Micros, Micros)> = None;
        for partition in partitions {
            let store = &self.node.backends.store;
            let ledger = store.load(&log, partition, Consistency::Serial).await.map_err(failed)?;
            let files = archive::segments(&**store, &log, partition, &ledger, 0..u64::MAX).await.map_err(failed)?;
            let times = files.iter().filter_map(Segment::event_time);
            range = times.chain(range).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        }
        Ok(range)
    }
}

fn request<'a>(
    log: &'a LogId,
    partitions: &'a [Partition],
    view: &'a View,
    metric: &Metric,
    shards: &'a [u32],
) -> read::Request<'a> {
    let id: &ViewId = &view.id;
    read::Request {
        log,
        partitions,
        view: id,
        since: metric.since,
        shards,
        width: metric.grain,
        periods: 0..0,
        series: None,
        now: Micros::MIN,
    }
}

fn names(metric: &Metric, view: &View) -> Vec<String> {
    view.dimensions.iter().map(|&at| metric.dimensions[at].name.clone()).collect()
}

fn cut(cut: &Cut) -> Value {
    cut.iter().map(|(partition, offset)| (partition.to_string(), json!(offset))).collect::<Map<_, _>>().into()
}

fn print_ledger(partition: Partition, ledger: &Ledger) {
    for epoch in &ledger.epochs {
        let file = |archive: &Archive| {
            json!({"path": archive.path, "bytes": archive.bytes, "accepted": archive.counts.accepted,
            "dead": archive.counts.dead, "duplicates": archive.counts.duplicates, "absent": archive.counts.absent})
        };
        let line = json!({"partition": partition, "version": ledger.version, "epoch": epoch.id.to_string(), "start": epoch.start,
            "end": epoch.end, "opened_at": format_time(epoch.opened_at), "alive_until": format_time(epoch.alive_until),
            "revision": epoch.revision, "lost": epoch.lost, "archive": epoch.archive.as_ref().map(file)});
        println!("{line}");
    }
}

fn print_state(
    metric: &Metric,
    view: &View,
    place: &Value,
    series: Option<&Series>,
    bucket: Micros,
    states: &States,
    row: usize,
) -> Result<(), Failure> {
    let mut line = place.clone();
    let values = series.map(Series::values).transpose().map_err(failed)?.unwrap_or_default();
    let named = names(metric, view).into_iter().zip(values.iter().map(|value| json!(format!("{value:?}"))));
    line["dimensions"] = named.collect::<Map<_, _>>().into();
    line["bucket"] = json!(format_time(bucket));
    for ask in asks(metric) {
        let answer = states
            .answer(row, &ask)
            .map_or_else(|error| json!(error.to_string()), |answer| answer.to_json(Numbers::Number));
        line[ask.name()] = answer;
    }
    println!("{line}");
    Ok(())
}

/// Everything that a metric keeps.
fn asks(metric: &Metric) -> Vec<Ask> {
    let texts = metric.definition.aggregates.iter().flat_map(|text| match text.as_str() {
        "quantiles" => vec!["p50", "p95", "p99"],
        other => vec![other],
    });
    texts.filter_map(|text| Ask::parse(text, metric).ok()).collect()
}
