//! Care for the archive of a source: small files put together, what retention ended let go of, events erased, and files that
//! nothing refers to removed.
//!
//! # Invariants
//! - Only what every version of every metric covers is touched: what speed may rebuild from an epoch's own file stays.
//! - A file is noted before it is written and written before it is referred to (see [`lamina_core::archive`]), so a run that
//!   stops anywhere leaves nothing behind that is not found again.
//! - What was replaced stays for [`GRACE`], for runs and readers that were told of it before; only what was erased goes at once.

mod compact;
mod erase;
mod retire;
mod rewrite;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lamina_core::{
    ArchiveError, Holdings, Ledger, LogId, Micros, Offset, Partition, Segment, Store, archive, generation::load_view,
};
use lamina_metric::{Metric, Source};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{Batch, BatchError, Meter, plan::Sealed, telemetry};

pub(crate) use erase::Erasure;

/// How long a file that was replaced stays.
const GRACE: Micros = 3_600_000_000;

/// How long raw events stay, at least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Of sources that are not named; `None` is for ever.
    pub usual: Option<Duration>,
    pub by_source: BTreeMap<String, Duration>,
}

impl Retention {
    fn of(&self, source: &str) -> Option<Micros> {
        let kept = self.by_source.get(source).copied().or(self.usual)?;
        Some(Micros::try_from(kept.as_micros()).unwrap_or(Micros::MAX))
    }
}

/// What was done for a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cared {
    /// Files that were put together.
    pub(crate) merged: u64,
    /// Files that came of it.
    pub(crate) written: u64,
    /// Files whose retention has ended.
    pub(crate) let_go: u64,
    /// Files that were removed.
    pub(crate) removed: u64,
}

impl Cared {
    pub(crate) fn to_json(self) -> Value {
        let Self { merged, written, let_go, removed } = self;
        json!({"files_merged": merged, "files_written": written, "files_expired": let_go, "files_removed": removed})
    }
}

/// One partition of a source's archive, with what its work needs.
#[derive(Clone)]
struct Place {
    store: Arc<dyn Store>,
    archive: Arc<dyn ObjectStore>,
    log: LogId,
    partition: Partition,
}

impl Batch {
    /// Looks after the archive of a source.
    ///
    /// # Errors
    /// If it cannot be read or written, or is not as ledger and manifest say; [`BatchError::Cancelled`] once `cancel` is.
    pub(crate) async fn care(
        &self,
        source: &Arc<Source>,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> Result<Cared, BatchError> {
        let metrics = self.metrics_of(source);
        let Some(sealed) = self.sealed(source).await? else { return Ok(Cared::default()) };
        let Some(covered) = covered_by_all(&*self.deps.store, &metrics, &sealed).await? else {
            return Ok(Cared::default());
        };
        let mut cared = Cared::default();
        for (&partition, ledger) in &sealed.ledgers {
            let place = self.place(&sealed.log, partition);
            let upto = covered.get(&partition).copied().unwrap_or(0);
            let mut segments = place.segments(ledger, upto).await?;
            let now = self.deps.clock.now();
            if let Some(kept) = self.retention.of(&source.name) {
                let gone = retire::retire(&place, &metrics, &segments, now.saturating_sub(kept), now).await?;
                if gone > 0 {
                    segments = place.segments(ledger, upto).await?;
                }
                cared.let_go += gone;
            }
            if self.compaction {
                let work = compact::compact(place.clone(), segments, now, Arc::clone(meter));
                let (merged, written) = self.on_engine(work, cancel).await?;
                cared.merged += merged;
                cared.written += written;
            }
            cared.removed += place.remove_unused(now.saturating_sub(GRACE)).await?;
        }
        telemetry::cared(&source.name, cared);
        Ok(cared)
    }

    fn place(&self, log: &LogId, partition: Partition) -> Place {
        let (store, archive) = (Arc::clone(&self.deps.store), Arc::clone(&self.deps.archive));
        Place { store, archive, log: log.clone(), partition }
    }

    /// The metrics over a source in all their versions.
    fn metrics_of(&self, source: &Source) -> Vec<Arc<Metric>> {
        self.deps.catalog.borrow().metrics_of(&source.name).cloned().collect()
    }
}

impl Place {
    /// What of the archive ends at or below `upto`, in offset order.
    async fn segments(&self, ledger: &Ledger, upto: Offset) -> Result<Vec<Segment>, BatchError> {
        let mut segments = archive::segments(&*self.store, &self.log, self.partition, ledger, 0..upto).await?;
        segments.retain(|segment| segment.end <= upto);
        Ok(segments)
    }

    async fn change<F>(&self, change: F) -> Result<Holdings, BatchError>
    where
        F: FnMut(&mut Holdings) -> Result<(), ArchiveError> + Send,
    {
        Ok(archive::update(&*self.store, &self.log, self.partition, change).await?)
    }

    /// Removes the files that were unused at `before`.
    async fn remove_unused(&self, before: Micros) -> Result<u64, BatchError> {
        let (_, holdings) = archive::load(&*self.store, &self.log, self.partition).await?;
        if !holdings.unused.iter().any(|unused| unused.doomed || unused.since <= before) {
            return Ok(0);
        }
        let mut doomed = Vec::new();
        self.change(|holdings| {
            doomed = holdings.doom(before);
            Ok(())
        })
        .await?;
        for path in &doomed {
            self.remove(path).await?;
        }
        self.change(|holdings| {
            holdings.removed(&doomed);
            Ok(())
        })
        .await?;
        Ok(doomed.len() as u64)
    }

    async fn remove(&self, path: &str) -> Result<(), BatchError> {
        let failed = |cause| BatchError::Unremovable { path: path.to_owned(), cause };
        let at = Path::parse(path).map_err(|cause| failed(cause.into()))?;
        match self.archive.delete(&at).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(cause) => Err(failed(cause)),
        }
    }
}

/// Per partition, the offset below which every version of every metric has covered everything; `None` if one of them
/// counts another log.
async fn covered_by_all(
    store: &dyn Store,
    metrics: &[Arc<Metric>],
    sealed: &Sealed,
) -> Result<Option<BTreeMap<Partition, Offset>>, BatchError> {
    let cut = sealed.cut();
    let mut covered: BTreeMap<Partition, Offset> = cut.iter().collect();
    for view in metrics.iter().flat_map(|metric| &metric.views) {
        let (_, state) = load_view(store, &view.id).await?;
        if !state.published.is_of(&sealed.log) {
            return Ok(None);
        }
        for (partition, upto) in &mut covered {
            *upto = (*upto).min(state.published.cut.at(*partition));
        }
    }
    Ok(Some(covered))
}

/// The files of segments.
fn files(segments: &[Segment]) -> u64 {
    segments.iter().filter(|segment| segment.archive.is_some()).count() as u64
}
