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
    /// Conservation within a metric: nothing may get lost or counted twice between events and states.
    #[error("{what} accounts for {found} events of {expected}")]
    NotConserved { what: String, expected: u64, found: u64 },
}

/// What became of events in one metric: each has one of three fates.
pub(crate) struct Fates {
    pub(crate) metric: String,
    /// Are in the states of each view.
    pub(crate) folded: u64,
    /// Were left out by `where`.
    pub(crate) filtered: u64,
    /// Were rejected by an expression, with the reason.
    pub(crate) rejected: Vec<(Offset, String)>,
}

/// States of one shard of one view, encoded.
pub(crate) type Encoded = ((ViewId, Shard), Bytes);

struct MetricFold {
    metric: Arc<Metric>,
    views: Vec<(ViewId, ViewFold)>,
    /// Events that each view has in its states.
    folded: u64,
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
            folded: 0,
        };
        Self(active.map(fold).collect())
    }

    /// Folds decoded events, in offset order; says by metric what became of them.
    pub(crate) fn fold(&mut self, events: &RecordBatch) -> Result<Vec<Fates>, FoldError> {
        let mut all = Vec::with_capacity(self.0.len());
        for MetricFold { metric, views, folded } in &mut self.0 {
            let failed = |cause| FoldError::Prepare { metric: metric.name.clone(), cause };
            let mut prepared = metric.prepare(events).map_err(failed)?;
            for (view, fold) in views {
                fold.fold(&prepared).map_err(|cause| FoldError::Fold { view: view.clone(), cause })?;
            }
            let fates = Fates {
                metric: metric.name.clone(),
                folded: prepared.rows.num_rows() as u64,
                filtered: prepared.filtered,
                rejected: std::mem::take(&mut prepared.rejected),
            };
            let found = fates.folded + fates.filtered + fates.rejected.len() as u64;
            conserved(|| format!("metric {}", metric.name), events.num_rows() as u64, found)?;
            *folded += fates.folded;
            all.push(fates);
        }
        Ok(all)
    }

    /// What was folded since the last call, where anything was.
    pub(crate) fn take_delta(&mut self) -> Result<Vec<Encoded>, FoldError> {
        self.folds().map(|(view, fold)| encode(view, fold.take_delta())).collect::<Result<Vec<_>, _>>().map(flat)
    }

    /// Everything folded, for every shard, empty ones included; the states hold each event that was folded once.
    pub(crate) fn whole(&mut self) -> Result<Vec<Encoded>, FoldError> {
        let mut all = Vec::new();
        for MetricFold { views, folded, .. } in &self.0 {
            for (view, fold) in views {
                let chunks = fold.whole();
                let rows =
                    chunks.iter().flat_map(|(_, chunk)| (0..chunk.rows.len()).map(|row| chunk.states.count(row)));
                conserved(|| format!("view {view}"), *folded, rows.sum())?;
                all.push(encode(view, chunks)?);
            }
        }
        Ok(flat(all))
    }

    /// Estimate of the memory held.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().flat_map(|metric| &metric.views).map(|(_, fold)| fold.bytes()).sum()
    }

    fn folds(&mut self) -> impl Iterator<Item = (&ViewId, &mut ViewFold)> {
        self.0.iter_mut().flat_map(|metric| &mut metric.views).map(|(view, fold)| (&*view, fold))
    }
}

/// Holds what is found against what must be there.
pub(crate) fn conserved(what: impl FnOnce() -> String, expected: u64, found: u64) -> Result<(), FoldError> {
    if expected == found { Ok(()) } else { Err(FoldError::NotConserved { what: what(), expected, found }) }
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

#[cfg(test)]
mod tests {
    use lamina_metric::Versions;

    use super::*;

    const DEFINITIONS: &str = r#"
        [source.s]
        format = "json"
        time = "t"
        [source.s.fields]
        t = "timestamp"
        kind = "string"
        v = "int64"
        [metric.m]
        source = "s"
        where = "v >= 0"
        value = "100 / v"
        dimensions = ["kind"]
        aggregates = ["sum"]
        grain = "1m"
        max_series = 2
    "#;

    #[test]
    fn every_event_has_one_fate_and_states_that_lack_one_are_not_written() {
        let catalog = Catalog::compile(&[("t.toml".to_owned(), DEFINITIONS.to_owned())], &Versions::default()).unwrap();
        let event = |v: i64| format!(r#"{{"t": "2024-05-01T00:00:00Z", "kind": "k{v}", "v": {v}}}"#);
        let payloads: Vec<String> = [-1, 0, 1, 2, 3].map(event).to_vec();
        let records: Vec<(Offset, &[u8])> = (0..).zip(payloads.iter().map(String::as_bytes)).collect();
        let events = catalog.sources["s"].decode(0, &records).events;
        let mut views = Views::new(&catalog, "s", 1);
        let fates = &views.fold(&events).unwrap()[0];
        assert_eq!((fates.folded, fates.filtered, fates.rejected.len()), (3, 1, 1));
        assert!(views.whole().is_ok(), "the overflow series counts too");
        views.0[0].folded += 1;
        let lost = views.whole().unwrap_err();
        assert!(matches!(lost, FoldError::NotConserved { expected: 4, found: 3, .. }), "{lost}");
    }
}
