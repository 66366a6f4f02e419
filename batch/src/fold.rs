//! The fold of archive files in DataFusion: accepted events → the metric's prepared rows → states by
//! (name of the epoch, dimensions, bucket).
//!
//! The plan is `Report(AggregateExec(Scan))`, the same here and on executors. A file holds whole epochs and lies whole in one
//! of DataFusion's partitions, so each partition's aggregation is final by itself and nothing is shuffled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array},
    compute::concat,
    datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType, UInt32Type, UInt64Type},
    error::ArrowError,
};
use datafusion::{
    error::DataFusionError,
    functions_aggregate::min_max::min_udaf,
    logical_expr::AggregateUDF,
    physical_expr::{PhysicalExpr, aggregate::AggregateExprBuilder, expressions::col},
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy},
    },
};
use futures::{TryStreamExt, stream};
use lamina_core::{Micros, Offset};
use lamina_metric::{Layout, Metric, States, states_udaf};
use tokio::task::JoinSet;

use crate::{
    BatchError,
    context::{Engine, stopped},
    distributed::Fleet,
    files::{Events, Fetched},
    names::{EpochKey, Names},
    plan::FileKey,
    report::{self, Folded, Report},
    scan::{Piece, Scan},
};

/// Partition and start of the epoch by whose name a row's own goes.
const NAME: [&str; 2] = ["_named_partition", "_named_epoch"];

/// States by (name of the epoch, dimensions, bucket), a row each; the rows of one epoch are all in one value.
pub(crate) struct Groups {
    pub(crate) epochs: Vec<EpochKey>,
    /// A column per dimension of the metric.
    pub(crate) dimensions: Vec<ArrayRef>,
    pub(crate) buckets: Vec<Micros>,
    /// Offset of the row's first event.
    pub(crate) first: Vec<Offset>,
    pub(crate) states: States,
}

impl Groups {
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }
}

/// What became of the accepted events of files.
pub(crate) type FatesByFile = HashMap<FileKey, Fates>;

/// What became of accepted events in a metric: each has one of three fates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fates {
    /// Went into states.
    pub(crate) folded: u64,
    /// Were left out by `where`.
    pub(crate) filtered: u64,
    /// Do not decode under the source's present definition, or an expression of the metric fails on them.
    pub(crate) rejected: u64,
}

/// Folds files, on a fleet if there is one, and says what became of their accepted events. Fails if a file does not hold
/// what the ledger says, or if the states do not hold what was folded.
pub(crate) async fn fold(
    engine: &Engine,
    fleet: Option<&mut Fleet>,
    metric: &Arc<Metric>,
    pieces: Vec<Piece>,
) -> Result<(Vec<Groups>, FatesByFile), BatchError> {
    let parts = match fleet {
        Some(fleet) => fleet.fold(engine, metric, pieces.clone()).await?,
        None => here(engine, metric, pieces.clone()).await?,
    };
    report::together(&pieces, parts)
}

/// Folds in this process.
async fn here(engine: &Engine, metric: &Arc<Metric>, pieces: Vec<Piece>) -> Result<Vec<Folded>, BatchError> {
    let plan = plan(metric, share_out(pieces, engine.parallelism))?;
    let context = engine.query();
    let mut tasks = JoinSet::new();
    for partition in 0..plan.properties().partitioning.partition_count() {
        let (plan, context, metric) = (Arc::clone(&plan), Arc::clone(&context), Arc::clone(metric));
        tasks.spawn(async move {
            let output: Vec<RecordBatch> = plan.execute(partition, context)?.try_collect().await.map_err(own)?;
            report::read(&metric, &output)
        });
    }
    let mut all = Vec::with_capacity(tasks.len());
    while let Some(done) = tasks.join_next().await {
        all.push(done.map_err(stopped)??);
    }
    Ok(all)
}

/// The plan that folds these files, a partition each.
pub(crate) fn plan(
    metric: &Arc<Metric>,
    partitions: Vec<Vec<Piece>>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let scan = Arc::new(Scan::new(Arc::clone(metric), partitions));
    let fold = aggregation(metric, &scan.schema(), scan)?;
    Ok(Arc::new(Report::over(Arc::new(fold))?))
}

/// Our own error back out of DataFusion's.
pub(crate) fn own(error: DataFusionError) -> BatchError {
    match error {
        DataFusionError::External(cause) => match cause.downcast::<BatchError>() {
            Ok(own) => *own,
            Err(cause) => DataFusionError::External(cause).into(),
        },
        other => other.into(),
    }
}

/// Spreads files over `ways`, the largest first, each to where least is.
pub(crate) fn share_out(mut pieces: Vec<Piece>, ways: usize) -> Vec<Vec<Piece>> {
    let rows = |piece: &Piece| piece.file.archive.counts.records();
    pieces.sort_by_key(|piece| std::cmp::Reverse(rows(piece)));
    let mut shares: Vec<(u64, Vec<Piece>)> = (0..ways.clamp(1, pieces.len().max(1))).map(|_| (0, Vec::new())).collect();
    for piece in pieces {
        if let Some(least) = shares.iter_mut().min_by_key(|(sum, _)| *sum) {
            least.0 += rows(&piece);
            least.1.push(piece);
        }
    }
    shares.into_iter().map(|(_, pieces)| pieces).collect()
}

/// Columns of prepared rows, and the name of their epoch.
pub(crate) fn schema(metric: &Metric) -> SchemaRef {
    let prepared = metric.prepared_schema();
    let name = NAME.into_iter().zip([DataType::UInt32, DataType::UInt64]);
    let name = name.map(|(column, data_type)| Arc::new(Field::new(column, data_type, false)));
    Arc::new(Schema::new(prepared.fields().iter().cloned().chain(name).collect::<Vec<_>>()))
}

/// Prepared rows with the names of their epochs; `schema` is [`schema`].
pub(crate) fn with_names(
    schema: &SchemaRef,
    rows: &RecordBatch,
    names: impl Iterator<Item = EpochKey>,
) -> Result<RecordBatch, ArrowError> {
    let (partitions, starts): (Vec<_>, Vec<_>) = names.unzip();
    let names: [ArrayRef; 2] = [Arc::new(UInt32Array::from(partitions)), Arc::new(UInt64Array::from(starts))];
    RecordBatch::try_new(SchemaRef::clone(schema), rows.columns().iter().cloned().chain(names).collect())
}

pub(crate) fn aggregation(
    metric: &Metric,
    schema: &SchemaRef,
    input: Arc<dyn ExecutionPlan>,
) -> Result<AggregateExec, DataFusionError> {
    let dimensions = (0..metric.dimensions.len()).map(|at| format!("d{at}"));
    let keys = NAME.map(str::to_owned).into_iter().chain(dimensions).chain(["_bucket".to_owned()]);
    let keys = keys.map(|name| Ok((col(&name, schema)?, name))).collect::<Result<Vec<_>, DataFusionError>>()?;
    let inputs = schema.fields().iter().map(|field| field.name().as_str()).filter(|name| is_input(name));
    let arguments = ["_partition", "_offset", "_time", "_order"].into_iter().chain(inputs);
    let arguments = arguments.map(|name| col(name, schema)).collect::<Result<Vec<_>, _>>()?;
    let aggregates = vec![
        aggregate(Arc::new(states_udaf(metric)), arguments, schema, "states")?,
        aggregate(min_udaf(), vec![col("_offset", schema)?], schema, "first")?,
    ];
    let by = PhysicalGroupBy::new_single(keys);
    AggregateExec::try_new(
        AggregateMode::SinglePartitioned,
        by,
        aggregates,
        vec![None, None],
        input,
        SchemaRef::clone(schema),
    )
}

/// The value `v` and the texts `x0..`, in the schema's order.
fn is_input(name: &str) -> bool {
    name == "v" || name.strip_prefix('x').is_some_and(|rest| rest.parse::<usize>().is_ok())
}

fn aggregate(
    function: Arc<AggregateUDF>,
    arguments: Vec<Arc<dyn PhysicalExpr>>,
    schema: &SchemaRef,
    name: &str,
) -> Result<Arc<datafusion::physical_expr::aggregate::AggregateFunctionExpr>, DataFusionError> {
    AggregateExprBuilder::new(function, arguments).schema(SchemaRef::clone(schema)).alias(name).build().map(Arc::new)
}

/// DataFusion's output as columns that are cheap to walk.
pub(crate) fn groups(metric: &Metric, output: &[RecordBatch]) -> Result<Groups, BatchError> {
    let width = metric.dimensions.len();
    let mut groups = Groups {
        epochs: Vec::new(),
        dimensions: Vec::new(),
        buckets: Vec::new(),
        first: Vec::new(),
        states: States::new(&Layout::of(metric)),
    };
    let unexpected = || DataFusionError::Internal("aggregation gave columns of unexpected types".to_owned());
    for batch in output {
        let columns = batch.columns();
        let partitions = columns[0].as_primitive_opt::<UInt32Type>().ok_or_else(unexpected)?;
        let epochs = columns[1].as_primitive_opt::<UInt64Type>().ok_or_else(unexpected)?;
        let buckets = columns[2 + width].as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(unexpected)?;
        let states = columns[3 + width].as_binary_opt::<i32>().ok_or_else(unexpected)?;
        let first = columns[4 + width].as_primitive_opt::<UInt64Type>().ok_or_else(unexpected)?;
        groups.epochs.extend(partitions.values().iter().copied().zip(epochs.values().iter().copied()));
        groups.buckets.extend_from_slice(buckets.values());
        groups.first.extend_from_slice(first.values());
        for row in 0..states.len() {
            let row = groups.states.decode_row(states.value(row));
            row.map_err(|cause| BatchError::chunk("aggregation's result", cause))?;
        }
    }
    for at in 0..width {
        let parts: Vec<&dyn Array> = output.iter().map(|batch| batch.column(2 + at).as_ref()).collect();
        let column = if parts.is_empty() {
            arrow::array::new_empty_array(&metric.dimensions[at].data_type)
        } else {
            concat(&parts).map_err(DataFusionError::from)?
        };
        groups.dimensions.push(column);
    }
    Ok(groups)
}

/// The prepared rows of one file, each with the name of its epoch.
pub(crate) fn prepared(
    metric: Arc<Metric>,
    fates: Arc<Mutex<FatesByFile>>,
    fetched: Fetched,
    names: Arc<Names>,
    together: usize,
) -> Result<impl futures::Stream<Item = Result<RecordBatch, BatchError>>, BatchError> {
    let (key, accepted) = (fetched.file.key(), fetched.file.archive.counts.accepted);
    let partition = fetched.file.partition;
    let schema = schema(&metric);
    let events = Events::open(&metric, fetched, together)?;
    Ok(stream::try_unfold((events, Fates::default()), move |(mut events, mut sum)| {
        let (metric, schema, fates) = (Arc::clone(&metric), SchemaRef::clone(&schema), Arc::clone(&fates));
        let names = Arc::clone(&names);
        async move {
            // Between batches the run can be stopped, and others get their turn.
            tokio::task::yield_now().await;
            let Some((batch, starts)) = events.next()? else {
                // The file holds what the ledger says; of a file that is folded whole, what is neither folded nor filtered was
                // rejected.
                sum.rejected = accepted.saturating_sub(sum.folded + sum.filtered);
                fates.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sum);
                return Ok(None);
            };
            let prepared = metric.prepare(&batch)?;
            sum.folded += prepared.rows.num_rows() as u64;
            sum.filtered += prepared.filtered;
            let offsets = prepared.rows.column_by_name("_offset").and_then(|column| column.as_primitive_opt());
            let offsets: &UInt64Array = offsets.ok_or_else(|| {
                let missing = "prepared rows lack their offsets".to_owned();
                BatchError::from(DataFusionError::Internal(missing))
            })?;
            let named = starts.of_offsets(offsets.values()).map(|start| names.of(partition, start));
            let rows = with_names(&schema, &prepared.rows, named);
            Ok(Some((rows.map_err(|cause| BatchError::undecodable(events.path(), cause))?, (events, sum))))
        }
    }))
}
