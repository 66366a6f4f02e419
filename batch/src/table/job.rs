//! Which tables a job scans, for which metrics.

use std::{collections::BTreeMap, sync::Arc};

use lamina_core::{Job, JobKind};
use lamina_metric::{Catalog, Metric, Source};

use super::Effect;

/// One scan of a table.
pub(crate) struct TableRun {
    pub(crate) source: Arc<Source>,
    /// Metrics over it by the names that the job's result gives them.
    pub(crate) metrics: Vec<(String, Arc<Metric>)>,
    pub(crate) effect: Effect,
}

/// One scan per table that one of these metrics, which are over tables, reads; of a job over everything also those that no
/// metric reads.
pub(crate) fn runs(catalog: &Catalog, job: &Job, metrics: Vec<(String, Arc<Metric>)>) -> Vec<TableRun> {
    let effect = match job.kind {
        JobKind::Build | JobKind::Rollback | JobKind::Erase => Effect::Summary,
        JobKind::Recompute if job.request.dry_run => Effect::Nothing,
        JobKind::Scheduled | JobKind::Recompute => Effect::Everything,
    };
    let mut runs: BTreeMap<String, TableRun> = BTreeMap::new();
    let new = |source: &Arc<Source>| TableRun { source: Arc::clone(source), metrics: Vec::new(), effect };
    if job.request.metrics.is_empty() {
        let writing =
            catalog.sources.values().filter(|source| source.table.as_ref().is_some_and(|table| table.writes()));
        runs.extend(writing.map(|source| (source.name.clone(), new(source))));
    }
    for (label, metric) in metrics {
        let run = runs.entry(metric.source.name.clone()).or_insert_with(|| new(&metric.source));
        run.metrics.push((label, metric));
    }
    runs.into_values().collect()
}
