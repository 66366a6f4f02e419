//! The seal: flush and mark, consolidated chunks, archive file, manifest; then the ledger.
//!
//! Until the ledger change is sent a seal can be put off: the epoch takes in more records, up to its limits, and the seal
//! begins again at the new end. Once it is sent, nothing happens until its outcome is known.

use std::sync::Arc;

use bytes::Bytes;
use lamina_core::{
    Archive, Epoch, EpochId, Ledger, Micros, Offset, Stamp, StoreError,
    generation::{load_view, trim_below},
    log::LogError,
    rules::{self, Rule},
    store::SpeedKey,
    writer::NextEpoch,
};
use lamina_metric::Catalog;
use object_store::path::Path;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::{
    archive_file::{self, FileError},
    feed::Order,
    fold::EpochFold,
    partition::{Hold, Interrupt},
    settle::Sent,
};

/// Epochs that leave the ledger with one seal at most: it bounds the conditional write.
const MAX_TRIM: usize = 200;

/// Why a seal has to wait.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealDelayed {
    #[error("log does not tell where it begins")]
    Log(#[from] LogError),
    #[error("view store does not take what the seal needs")]
    Store(#[from] StoreError),
    #[error("archive file is not durable")]
    File(#[from] FileError),
}

/// What a seal at one position writes; kept so that a repeated attempt writes the same bytes.
pub(crate) struct Draft {
    end: Offset,
    /// Consolidated chunks with their stamp.
    chunks: Vec<(SpeedKey, Bytes)>,
    stamp: Stamp,
    file: Bytes,
    path: Path,
    archive: Archive,
    dedup_clock: Micros,
}

impl Hold {
    /// Seals the open epoch at the present position and opens the next one.
    pub(crate) async fn seal(&mut self) -> Result<Result<(), SealDelayed>, Interrupt> {
        let began = Instant::now();
        if self.writer.marked() < self.standing.position {
            self.flush().await?;
        }
        if self.draft.as_ref().is_none_or(|draft| draft.end != self.standing.position) {
            self.draft = Some(self.draft().await?);
        }
        let Some(draft) = self.draft.take() else { return Ok(Ok(())) };
        let written_at = self.place.deps.clock.now();
        let trim = match self.make_durable(&draft).await {
            Ok(trim) => trim,
            Err(delayed) => {
                self.draft = Some(draft);
                return Ok(Err(delayed));
            }
        };
        self.writer.consolidated(draft.end);
        let catalog = Arc::clone(&self.catalog.borrow());
        let next = NextEpoch {
            id: EpochId::new(),
            now: self.place.deps.clock.now(),
            revision: catalog.revision,
            dedup_clock: draft.dedup_clock,
            alive_until: self.place.config.alive_until(written_at),
        };
        let (rows, counts) = (draft.archive.counts.records(), draft.archive.counts);
        let change = self.writer.seal(&self.ledger, draft.archive, next, trim)?;
        self.settle(change, Sent::Seal).await?;
        self.place.order(Order::Sealed(draft.end));
        self.place.instruments.sealed(began.elapsed());
        info!(place = %self.place, end = draft.end, rows, ?counts, "epoch sealed");
        self.open_next(catalog)?;
        Ok(Ok(()))
    }

    /// Encodes chunks and file for a seal at the present position.
    async fn draft(&mut self) -> Result<Draft, Interrupt> {
        let whole = self.bench.run(EpochFold::whole).await?;
        let (shards, bytes): (Vec<_>, Vec<_>) = whole.chunks.into_iter().unzip();
        let (keys, at) = self.writer.consolidation(&shards);
        let end = self.standing.position;
        let path = self.path(end);
        let archive = Archive {
            path: path.to_string(),
            bytes: whole.file.len() as u64,
            checksum: whole.checksum,
            counts: whole.counts,
            event_time: whole.event_time,
            last_record: whole.last_record,
        };
        Ok(Draft {
            end,
            chunks: keys.into_iter().zip(bytes).collect(),
            stamp: Stamp { at, ttl: self.place.config.ttl_seconds() },
            file: whole.file,
            path,
            archive,
            dedup_clock: whole.dedup_clock,
        })
    }

    /// `{source}/{topic id}/{partition}/{start}-{end}-{epoch}.parquet`: no two writers share a name.
    fn path(&self, end: Offset) -> Path {
        let Epoch { start, id, .. } = self.writer.epoch();
        let (source, topic, partition) = (self.log.source(), self.log.topic_id(), self.place.partition);
        Path::from(format!("{source}/{topic}/{partition:05}/{start:020}-{end:020}-{id}.parquet"))
    }

    /// Everything that must be acknowledged before the ledger may change; gives the offset to trim below.
    async fn make_durable(&mut self, draft: &Draft) -> Result<Offset, SealDelayed> {
        self.check_gap().await?;
        let Self { place, log, ledger, .. } = &*self;
        place.put_chunks(&draft.chunks, draft.stamp).await?;
        let durable = archive_file::put(&*place.deps.archive, &draft.path, &draft.file).await;
        if rules::on(Rule::FileBeforeSeal) {
            durable?;
        }
        let covered = self.covered_by_all(ledger).await?;
        let leaving: Vec<Epoch> = ledger.trimmable(covered).take(MAX_TRIM).cloned().collect();
        if !leaving.is_empty() {
            place.deps.store.archive(log, place.partition, &leaving).await?;
            debug!(place = %place, epochs = leaving.len(), "covered epochs move to the manifest");
        }
        Ok(leaving.last().and_then(|epoch| epoch.end).unwrap_or(0))
    }

    /// Below which offset epochs may leave the ledger: every view of the source covers them.
    async fn covered_by_all(&self, ledger: &Ledger) -> Result<Offset, StoreError> {
        let catalog = Arc::clone(&self.catalog.borrow());
        let mut states = Vec::new();
        for view in catalog.metrics_of(&self.place.source).flat_map(|metric| &metric.views) {
            states.push(load_view(&*self.place.deps.store, &view.id).await?.1);
        }
        Ok(trim_below(&states, self.place.partition, ledger.sealed_end()))
    }

    /// Goes on in the epoch that the seal opened. Under another definition of the source, ids are remembered otherwise: then
    /// the partition is taken over anew.
    fn open_next(&mut self, catalog: Arc<Catalog>) -> Result<(), Interrupt> {
        let name = &self.place.source;
        let fingerprint = |catalog: &Catalog| catalog.sources.get(name).map(|source| source.definition.fingerprint());
        if catalog.revision != self.folding.revision && fingerprint(&catalog) != fingerprint(&self.folding) {
            return Err(Interrupt::Again("definition of the source changed".to_owned()));
        }
        let Some(source) = catalog.sources.get(name) else {
            return Err(Interrupt::Again(format!("source {name} is no longer defined")));
        };
        self.bench.next(&catalog, source, self.writer.epoch());
        self.standing = crate::fold::Standing { position: self.writer.position(), ..Default::default() };
        self.folding = catalog;
        self.due.first_record = None;
        Ok(())
    }
}
