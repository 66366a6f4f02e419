//! The folds of all views of a source's metrics.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use lamina_core::{Offset, Shard, ViewId};
use lamina_metric::{Catalog, ChunkError, Metric, MetricError, SpeedChunk, StateError, ViewFold};

/// Why events cannot be folded: a fault of lamina, never of an event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoldError {
    #[error("metric {metric} cannot prepare decoded events")]
    Prepare {
        metric: String,
        #[source]
        cause: MetricError,
    },
    #[error("view {view} cannot fold prepared events")]
    Fold {
        view: ViewId,
        #[source]
        cause: StateError,
    },
    #[error("states of view {view} do not encode")]
    Encode {
        view: ViewId,
        #[source]
        cause: ChunkError,
    },
    #[error("events do not go into columns")]
    Columns(#[from] arrow::error::ArrowError),
    #[error("archive file cannot be written or read")]
    File(#[from] parquet::errors::ParquetError),
    #[error("the fold was broken off: {0}")]
    Broken(String),
}

/// An event that a metric's expressions rejected.
pub(crate) struct Rejected {
    pub(crate) metric: String,
    pub(crate) offset: Offset,
    pub(crate) reason: String,
}

/// States of one shard of one view, encoded.
pub(crate) type Encoded = ((ViewId, Shard), Bytes);

struct MetricFold {
    metric: Arc<Metric>,
    views: Vec<(ViewId, ViewFold)>,
}

/// The folds of all views of a source's metrics over one epoch.
pub(crate) struct Views(Vec<MetricFold>);

impl Views {
    /// Views that count epochs of `revision`, with nothing folded.
    pub(crate) fn new(catalog: &Catalog, source: &str, revision: u64) -> Self {
        let active = catalog.metrics_of(source).filter(|metric| metric.since <= revision);
        let fold = |metric: &Arc<Metric>| MetricFold {
            views: metric.views.iter().map(|view| (view.id.clone(), ViewFold::new(metric, view))).collect(),
            metric: Arc::clone(metric),
        };
        Self(active.map(fold).collect())
    }

    /// Folds decoded events, in offset order; gives back those that an expression rejected, by metric.
    pub(crate) fn fold(&mut self, events: &RecordBatch) -> Result<Vec<Rejected>, FoldError> {
        let mut all_rejected = Vec::new();
        for MetricFold { metric, views } in &mut self.0 {
            let failed = |cause| FoldError::Prepare { metric: metric.name.clone(), cause };
            let mut prepared = metric.prepare(events).map_err(failed)?;
            for (view, fold) in views {
                fold.fold(&prepared).map_err(|cause| FoldError::Fold { view: view.clone(), cause })?;
            }
            let rejected = std::mem::take(&mut prepared.rejected).into_iter();
            all_rejected.extend(rejected.map(|(offset, reason)| Rejected {
                metric: metric.name.clone(),
                offset,
                reason,
            }));
        }
        Ok(all_rejected)
    }

    /// What was folded since the last call, where anything was.
    pub(crate) fn take_delta(&mut self) -> Result<Vec<Encoded>, FoldError> {
        self.folds().map(|(view, fold)| encode(view, fold.take_delta())).collect::<Result<Vec<_>, _>>().map(flat)
    }

    /// Everything folded, for every shard, empty ones included.
    pub(crate) fn whole(&mut self) -> Result<Vec<Encoded>, FoldError> {
        self.folds().map(|(view, fold)| encode(view, fold.whole())).collect::<Result<Vec<_>, _>>().map(flat)
    }

    /// Estimate of the memory held.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().flat_map(|metric| &metric.views).map(|(_, fold)| fold.bytes()).sum()
    }

    fn folds(&mut self) -> impl Iterator<Item = (&ViewId, &mut ViewFold)> {
        self.0.iter_mut().flat_map(|metric| &mut metric.views).map(|(view, fold)| (&*view, fold))
    }
}

fn encode(view: &ViewId, chunks: Vec<(Shard, SpeedChunk)>) -> Result<Vec<Encoded>, FoldError> {
    let encoded = |(shard, chunk): (Shard, SpeedChunk)| match chunk.encode() {
        Ok(bytes) => Ok(((view.clone(), shard), bytes)),
        Err(cause) => Err(FoldError::Encode { view: view.clone(), cause }),
    };
    chunks.into_iter().map(encoded).collect()
}

fn flat(encoded: Vec<Vec<Encoded>>) -> Vec<Encoded> {
    encoded.into_iter().flatten().collect()
}

/// All shards of all views of `source` that count epochs of `revision`.
pub(crate) fn shards_of(catalog: &Catalog, source: &str, revision: u64) -> Vec<(ViewId, Shard)> {
    let metrics = catalog.metrics_of(source).filter(|metric| metric.since <= revision);
    let views = metrics.flat_map(|metric| &metric.views);
    views.flat_map(|view| (0..view.shards.max(1)).map(|shard| (view.id.clone(), shard))).collect()
}
