//! One metric's fold of a table's rows in DataFusion, while they are scanned, and its chunks.
//!
//! A scan has no epochs: all its rows count as one, so that the cap on series holds for the table as a whole.

use std::{
    iter,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use lamina_core::{Micros, Store, store::period};
use lamina_metric::Metric;
use tokio::{sync::mpsc::Receiver, task::JoinSet};

use crate::{
    BatchError, cap,
    compare::{Changes, compare},
    compute::Mode,
    context::stopped,
    fold::{Fates, Groups, aggregation, groups, own, schema, with_names},
    open::Target,
    plan,
    rollup::Rollup,
};

/// Bytes that a group of the fold is assumed to hold, and one of a rollup.
const GROUP_COST: usize = 256;
const STATE_COST: usize = 64;

/// Folds the events that the inputs bring, one per scan; ends when they do.
pub(super) async fn fold(
    context: Arc<TaskContext>,
    metric: Arc<Metric>,
    inputs: Vec<Receiver<RecordBatch>>,
    memory_bytes: usize,
) -> Result<(Groups, Fates), BatchError> {
    let most = memory_bytes / GROUP_COST;
    let (fates, schema, count) = (Arc::new(Mutex::new(Fates::default())), schema(&metric), inputs.len());
    let partitions = inputs.into_iter().map(|input| {
        let (metric, schema, fates) = (Arc::clone(&metric), SchemaRef::clone(&schema), Arc::clone(&fates));
        Arc::new(Scanned { metric, schema, input: Mutex::new(Some(input)), fates }) as Arc<dyn PartitionStream>
    });
    let input = StreamingTableExec::try_new(SchemaRef::clone(&schema), partitions.collect(), None, [], false, None)?;
    let plan = Arc::new(aggregation(&metric, &schema, Arc::new(input))?);
    let mut tasks = JoinSet::new();
    for partition in 0..count {
        let (plan, context, metric) = (Arc::clone(&plan), Arc::clone(&context), Arc::clone(&metric));
        tasks.spawn(async move {
            let mut output = plan.execute(partition, context)?;
            let (mut batches, mut rows) = (Vec::new(), 0);
            while let Some(batch) = output.try_next().await.map_err(own)? {
                rows += batch.num_rows();
                if rows > most {
                    return Err(BatchError::TooManyStates { metric: metric.name.clone(), most });
                }
                batches.push(batch);
            }
            Ok(batches)
        });
    }
    let mut output = Vec::new();
    while let Some(done) = tasks.join_next().await {
        output.extend(done.map_err(stopped)??);
    }
    let groups = groups(&metric, &output)?;
    let fates = *fates.lock().unwrap_or_else(PoisonError::into_inner);
    let found = (0..groups.len()).map(|row| groups.states.count(row)).sum();
    if fates.folded != found {
        return Err(BatchError::NotFolded { expected: fates.folded, found });
    }
    Ok((groups, fates))
}

/// What one share of the scans brings, as one of DataFusion's partitions. It can be executed once.
struct Scanned {
    metric: Arc<Metric>,
    schema: SchemaRef,
    input: Mutex<Option<Receiver<RecordBatch>>>,
    fates: Arc<Mutex<Fates>>,
}

impl std::fmt::Debug for Scanned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanned").finish_non_exhaustive()
    }
}

impl PartitionStream for Scanned {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (metric, schema, fates) =
            (Arc::clone(&self.metric), SchemaRef::clone(&self.schema), Arc::clone(&self.fates));
        let events = stream::unfold(input, |mut input| async move {
            let events = input.as_mut()?.recv().await?;
            Some((events, input))
        });
        let rows = events.map(move |events| prepared(&metric, &schema, &fates, &events));
        let rows = rows.map_err(|error| DataFusionError::External(Box::new(error)));
        Box::pin(RecordBatchStreamAdapter::new(SchemaRef::clone(&self.schema), rows))
    }
}

fn prepared(
    metric: &Metric,
    schema: &SchemaRef,
    fates: &Mutex<Fates>,
    events: &RecordBatch,
) -> Result<RecordBatch, BatchError> {
    let prepared = metric.prepare(events)?;
    {
        let mut fates = fates.lock().unwrap_or_else(PoisonError::into_inner);
        fates.folded += prepared.rows.num_rows() as u64;
        fates.filtered += prepared.filtered;
        fates.rejected += prepared.rejected.len() as u64;
    }
    let names = iter::repeat_n((0, 0), prepared.rows.num_rows());
    Ok(with_names(schema, &prepared.rows, names).map_err(DataFusionError::from)?)
}

/// What became of a metric's groups.
#[derive(Default)]
pub(super) struct Chunks {
    pub(super) chunks: u64,
    pub(super) expired: u64,
    pub(super) expired_events: u64,
    pub(super) changes: Changes,
}

/// Writes the chunks of all views and widths, or compares them with what stands there; pass by pass over event time, so
/// that rollups stay within memory.
pub(super) async fn chunks(
    store: &dyn Store,
    metric: &Metric,
    targets: &[Arc<Target>],
    groups: &Groups,
    mode: Mode,
    memory_bytes: usize,
) -> Result<Chunks, BatchError> {
    let rollups = targets.len() * metric.widths().len();
    let budget = memory_bytes / 2 / (STATE_COST * rollups.max(1));
    let passes = passes(&groups.buckets, period(metric.grain), budget.max(1));
    let mut done = Chunks::default();
    for target in targets {
        let named = cap::series_of(groups, &target.view)?;
        for width in metric.widths() {
            let mut rollup = Rollup::new(metric, Arc::clone(target), width);
            for pass in &passes {
                rollup.take(store, groups, &named, pass).await?;
                let chunks = rollup.finished(pass.end);
                done.chunks += chunks.len() as u64;
                match mode {
                    Mode::Write => rollup.write(store, &chunks).await?,
                    Mode::Compare => {
                        let periods = plan::ended_within(pass, period(width));
                        done.changes.add(compare(store, metric, &rollup, &periods, chunks).await?);
                    }
                }
                tokio::task::yield_now().await;
            }
            done.expired += rollup.expired;
            if metric.views.first() == Some(&target.view) && width == metric.grain {
                done.expired_events = rollup.expired;
            }
        }
    }
    Ok(done)
}

/// Passes over event time, in order and without gap, each with about `budget` buckets; bounds are multiples of `step`.
fn passes(buckets: &[Micros], step: Micros, budget: usize) -> Vec<Range<Micros>> {
    let mut bounds = Vec::new();
    if buckets.len() > budget {
        let mut sorted = buckets.to_vec();
        sorted.sort_unstable();
        bounds = sorted.chunks(budget).skip(1).map(|chunk| chunk[0].div_euclid(step).saturating_mul(step)).collect();
        bounds.dedup();
    }
    plan::between(&bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_follow_each_other_without_gap() {
        let buckets: Vec<Micros> = (0..1_000).rev().collect();
        let several = passes(&buckets, 60, 250);
        assert_eq!((several[0].start, several[several.len() - 1].end), (Micros::MIN, Micros::MAX));
        assert!(several.len() >= 4 && several.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(passes(&buckets, 60, 1_000), vec![Micros::MIN..Micros::MAX]);
    }

    #[test]
    fn every_period_ends_within_one_pass() {
        let passes = passes(&(0..1_000).collect::<Vec<_>>(), 60, 100);
        for start in (-600..1_200).step_by(300) {
            let within = passes.iter().filter(|pass| plan::ended_within(pass, 300).contains(&start));
            assert_eq!(within.count(), 1, "{start} of {passes:?}");
        }
    }
}
