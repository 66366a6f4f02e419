//! Erasure of events, for good: from the archive's files first, then from the views, by rebuilding what held them.
//!
//! The way: everything that the log held when it was asked for is sealed and covered → each file with such events is written
//! again without them → every view over the source is rebuilt where they were → what was replaced cannot be returned to, and the
//! old files are removed. What was erased is noted with the same change that takes it out of the archive, so a job that stops
//! anywhere and is run again knows what to rebuild.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::BooleanArray;
use lamina_core::{Holdings, Job, Micros, Offset, Partition, Segment, archive, archive::Erased};
use lamina_metric::{EventFilter, Metric, Source, archive as rows, time::format_time};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Place, covered_by_all, rewrite};
use crate::{Batch, BatchError, Meter, Wanted, job, open};

/// How long one attempt waits for the speed layer to seal what was in the log.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_secs(1);

/// What a job shall erase.
pub(crate) struct Erasure {
    source: Arc<Source>,
    filter: EventFilter,
    job: String,
    dry_run: bool,
}

/// What was found in the archive.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Events that pass the filter, and duplicates of them.
    records: u64,
    files: u64,
    event_time: Option<(Micros, Micros)>,
    /// Records that pass no filter, as they do not decode.
    undecodable: u64,
}

impl Erasure {
    pub(crate) fn of(batch: &Batch, job: &Job) -> Result<Self, BatchError> {
        let catalog = Arc::clone(&batch.deps.catalog.borrow());
        let name = job.request.source.clone().unwrap_or_default();
        let known =
            || BatchError::UnknownSource { name: name.clone(), known: catalog.sources.keys().cloned().collect() };
        let source = Arc::clone(catalog.sources.get(&name).ok_or_else(known)?);
        if source.table.is_some() {
            let why = "nothing of a table is archived: delete the rows".to_owned();
            return Err(BatchError::Table { source_name: name, why });
        }
        let text = job.request.erase.as_deref().unwrap_or_default();
        let filter = EventFilter::parse(text, &source).map_err(BatchError::Filter)?;
        Ok(Self { source, filter, job: job.id.clone(), dry_run: job.request.dry_run })
    }

    /// Does it, and reports what was removed, where, and what may still hold it.
    pub(crate) async fn run(
        self,
        batch: &Batch,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Value, BatchError> {
        let this = Arc::new(self);
        let places = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(BatchError::Cancelled),
            places = this.covered(batch, meter, cancel) => places?,
        };
        let mut found = Found::default();
        for (place, segments) in &places {
            let work =
                Arc::clone(&this).take_out(place.clone(), segments.clone(), batch.deps.clock.now(), Arc::clone(meter));
            let own = batch.on_engine(work, cancel).await?;
            found.add(&own);
        }
        if this.dry_run {
            return Ok(this.report(&found, 0, BTreeMap::new()));
        }
        let noted = noted(&places, &this.job).await?;
        let metrics = batch.metrics_of(&this.source);
        let mut outcomes = BTreeMap::new();
        if let Some((first, last)) = noted.event_time {
            let wanted = Wanted::Rebuild { from: Some(first), to: Some(last.saturating_add(1)) };
            for metric in &metrics {
                let outcome = batch.run_metric(metric, &wanted, meter, cancel).await?;
                outcomes.insert(job::label(metric), outcome.to_json());
            }
            this.bar(batch, &metrics).await?;
        }
        let mut removed = 0;
        for (place, _) in &places {
            removed += place.remove_unused(Micros::MAX).await?;
            let done = |holdings: &mut Holdings| {
                // Its own stays until the next one: an attempt that is repeated reports the same.
                holdings.erased.retain(|erased| erased.job == this.job);
                holdings.erased.iter_mut().for_each(|erased| erased.rebuilt = true);
                Ok(())
            };
            place.change(done).await?;
        }
        // A job that was begun again finds nothing more in the files, but what it noted.
        let Found { undecodable, .. } = found;
        Ok(this.report(&Found { undecodable, ..noted.own }, removed, outcomes))
    }

    /// The archive of each partition, once all that the log holds now is sealed and covered by every view.
    async fn covered(
        &self,
        batch: &Batch,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Vec<(Place, Vec<Segment>)>, BatchError> {
        let spans = match batch.deps.log.spans(&self.source.topic).await {
            Ok(spans) => spans,
            Err(lamina_core::log::LogError::NoTopic(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let ends: BTreeMap<Partition, Offset> = spans.iter().map(|(&partition, span)| (partition, span.end)).collect();
        let began = Instant::now();
        meter.stage(format!("waiting until {} is sealed", self.source.name), ends.len() as u64, "partitions");
        let sealed = loop {
            let Some(sealed) = batch.sealed(&self.source).await? else { return Ok(Vec::new()) };
            let cut = sealed.cut();
            let Some((&partition, &end)) = ends.iter().find(|(partition, end)| cut.at(**partition) < **end) else {
                break sealed;
            };
            if began.elapsed() > PATIENCE {
                return Err(BatchError::NotSealed { partition, upto: cut.at(partition), end });
            }
            tokio::time::sleep(POLL).await;
        };
        let metrics = batch.metrics_of(&self.source);
        for metric in &metrics {
            batch.run_metric(metric, &Wanted::Cover, meter, cancel).await?;
        }
        let covered = covered_by_all(&*batch.deps.store, &metrics, &sealed).await?;
        let covered = covered.ok_or_else(|| BatchError::NotCovered(self.source.name.clone()))?;
        let mut places = Vec::with_capacity(sealed.ledgers.len());
        for (&partition, ledger) in &sealed.ledgers {
            let upto = covered.get(&partition).copied().unwrap_or(0);
            if upto < ends.get(&partition).copied().unwrap_or(0) {
                return Err(BatchError::NotCovered(self.source.name.clone()));
            }
            let place = batch.place(&sealed.log, partition);
            let mut segments = archive::segments(&*place.store, &place.log, partition, ledger, 0..upto).await?;
            segments.retain(|segment| segment.end <= upto);
            places.push((place, segments));
        }
        Ok(places)
    }

    /// Takes the events out of the files of one partition, or counts them.
    async fn take_out(
        self: Arc<Self>,
        place: Place,
        segments: Vec<Segment>,
        now: Micros,
        meter: Arc<Meter>,
    ) -> Result<Found, BatchError> {
        let mut found = Found::default();
        let stage = if self.dry_run { "searching" } else { "erasing from" };
        meter.stage(format!("{stage} {}", self.source.name), segments.len() as u64, "files");
        for segment in &segments {
            if segment.counts().records() > 0 {
                let own = self.take_out_of(&place, segment, now).await?;
                found.add(&own);
            }
            meter.advance(1, segment.counts().records());
        }
        Ok(found)
    }

    async fn take_out_of(&self, place: &Place, segment: &Segment, now: Micros) -> Result<Found, BatchError> {
        let file = rewrite::read(place, segment).await?;
        let undecodable = |cause| BatchError::undecodable("of the archive", cause);
        let mut found = Found::default();
        let mut masks: Vec<BooleanArray> = Vec::with_capacity(file.batches.len());
        for batch in &file.batches {
            let mask = rows::passing(&self.source, &self.filter, batch).map_err(undecodable)?;
            found.undecodable += rows::undecodable(&self.source, batch).map_err(undecodable)?;
            found.records += mask.true_count() as u64;
            found.time(rewrite::times(&self.source, batch, &mask).map_err(undecodable)?);
            masks.push(mask);
            tokio::task::yield_now().await;
        }
        if found.records == 0 {
            return Ok(found);
        }
        found.files = 1;
        if !self.dry_run {
            let emptied = file.batches.iter().zip(&masks).map(|(batch, mask)| rows::erase(batch, mask));
            let emptied = emptied.collect::<Result<Vec<_>, _>>().map_err(undecodable)?;
            let Found { records, files, event_time, .. } = found;
            let erased = Erased { job: self.job.clone(), records, files, event_time, rebuilt: false };
            rewrite::replace(place, std::slice::from_ref(segment), emptied, Some(erased), now).await?;
        }
        Ok(found)
    }

    /// Nobody can return to what was served before.
    async fn bar(&self, batch: &Batch, metrics: &[Arc<Metric>]) -> Result<(), BatchError> {
        for metric in metrics {
            for view in &metric.views {
                open::bar(&*batch.deps.store, view).await?;
            }
        }
        Ok(())
    }

    fn report(&self, found: &Found, removed: u64, metrics: BTreeMap<String, Value>) -> Value {
        let Found { records, files, event_time, undecodable } = *found;
        let event_time =
            event_time.map(|(first, last)| json!({"from": format_time(first), "through": format_time(last)}));
        let topic = &self.source.topic;
        let remaining = [
            format!("topic {topic}, until its retention ends"),
            format!(
                "topic {topic}.dead-letter, and {undecodable} archived records that do not decode: no filter sees into them"
            ),
            "chunks that the rebuild replaced: the first batch run after an hour removes them".to_owned(),
            "copies and backups".to_owned(),
        ];
        json!({"source": self.source.name, "dry_run": self.dry_run, "records": records, "files_rewritten": files,
            "files_removed": removed, "event_time": event_time, "undecodable": undecodable, "metrics": metrics,
            "remaining": remaining})
    }
}

impl Found {
    fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.files += other.files;
        self.undecodable += other.undecodable;
        self.time(other.event_time);
    }

    fn time(&mut self, other: Option<(Micros, Micros)>) {
        self.event_time = widest(self.event_time, other);
    }
}

/// What is noted as erased: by this job, and the event time of all that views may still hold.
struct Noted {
    own: Found,
    event_time: Option<(Micros, Micros)>,
}

async fn noted(places: &[(Place, Vec<Segment>)], job: &str) -> Result<Noted, BatchError> {
    let mut noted = Noted { own: Found::default(), event_time: None };
    for (place, _) in places {
        let (_, holdings) = archive::load(&*place.store, &place.log, place.partition).await?;
        for Erased { job: by, records, files, event_time, rebuilt } in holdings.erased {
            if !rebuilt {
                noted.event_time = widest(noted.event_time, event_time);
            }
            if by == job {
                noted.own.add(&Found { records, files, event_time, undecodable: 0 });
            }
        }
    }
    Ok(noted)
}

fn widest(a: Option<(Micros, Micros)>, b: Option<(Micros, Micros)>) -> Option<(Micros, Micros)> {
    a.into_iter().chain(b).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}
