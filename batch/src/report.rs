//! The root of a fold's plan: the states, then for each file what became of its events, so that whoever takes them in can
//! tell that nothing was lost or doubled on the way.

use std::{collections::HashSet, fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, UInt64Array, new_null_array},
    compute::{filter_record_batch, is_not_null, is_null},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type},
};
use datafusion::{
    common::{Result, plan_datafusion_err, tree_node::TreeNodeRecursion},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        aggregates::{AggregateExec, AggregateMode},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use lamina_metric::Metric;

use crate::{
    BatchError,
    distributed::told,
    fold::{self, Fates, FatesByFile, Groups},
    plan::FileKey,
    scan::{self, Piece, Scan},
};

/// Columns that only the rows have which say what became of a file's events. All others are null in them but the first two.
const FATES: [&str; 3] = ["folded", "filtered", "rejected"];

/// The aggregation of a [`Scan`], and what became of the events.
#[derive(Debug)]
pub(crate) struct Report {
    fold: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

/// What one partition of a plan gave.
pub(crate) struct Folded {
    pub(crate) groups: Groups,
    pub(crate) fates: FatesByFile,
}

impl Report {
    /// # Errors
    /// If `fold` is anything but the aggregation of a [`Scan`], each partition by itself.
    pub(crate) fn over(fold: Arc<dyn ExecutionPlan>) -> Result<Self> {
        let scan = scan_below(&fold).ok_or_else(|| {
            plan_datafusion_err!("only a fold of archive files can be reported on, and no {}", fold.name())
        })?;
        let properties = scan::properties(schema(&fold.schema()), scan.partitions.len());
        Ok(Self { fold, properties })
    }
}

fn scan_below(fold: &Arc<dyn ExecutionPlan>) -> Option<&Scan> {
    let aggregation = fold.downcast_ref::<AggregateExec>()?;
    let apart = *aggregation.mode() == AggregateMode::SinglePartitioned;
    aggregation.input().downcast_ref::<Scan>().filter(|_| apart)
}

fn schema(fold: &Schema) -> SchemaRef {
    let states = fold.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true)));
    let fates = FATES.iter().map(|name| Arc::new(Field::new(*name, DataType::UInt64, true)));
    Arc::new(Schema::new(states.chain(fates).collect::<Vec<_>>()))
}

impl DisplayAs for Report {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Report")
    }
}

impl ExecutionPlan for Report {
    fn name(&self) -> &'static str {
        "Report"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.fold]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let only = children.pop().ok_or_else(|| plan_datafusion_err!("a report is over one plan"))?;
        Ok(Arc::new(Self::over(only)?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (schema, fold) = (self.schema(), Arc::clone(&self.fold));
        let states = self.fold.execute(partition, Arc::clone(&context))?;
        let wide = SchemaRef::clone(&schema);
        let states = states.map(move |batch| with_states(&wide, &batch?));
        let wide = SchemaRef::clone(&schema);
        // Asked for only once the states have come to their end.
        let fates = stream::once(async move {
            let fates = scan_below(&fold).map(|scan| scan.fates(partition)).unwrap_or_default();
            with_fates(&wide, &fates)
        });
        let rows = states.chain(fates).map_err(move |error| told(error, &context));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

fn with_states(schema: &SchemaRef, states: &RecordBatch) -> Result<RecordBatch> {
    let none = FATES.iter().map(|_| new_null_array(&DataType::UInt64, states.num_rows()));
    let columns = states.columns().iter().cloned().chain(none).collect();
    Ok(RecordBatch::try_new(SchemaRef::clone(schema), columns)?)
}

fn with_fates(schema: &SchemaRef, fates: &FatesByFile) -> Result<RecordBatch> {
    let rows: Vec<_> = fates.iter().collect();
    let count =
        |of: fn(&Fates) -> u64| Arc::new(rows.iter().map(|(_, fates)| of(fates)).collect::<UInt64Array>()) as ArrayRef;
    let partitions = Arc::new(rows.iter().map(|((partition, _), _)| *partition).collect::<UInt32Array>());
    let epochs = Arc::new(rows.iter().map(|((_, epoch), _)| *epoch).collect::<UInt64Array>());
    let keys: [ArrayRef; 2] = [partitions, epochs];
    let others = &schema.fields()[keys.len()..schema.fields().len() - FATES.len()];
    let others = others.iter().map(|field| new_null_array(field.data_type(), rows.len()));
    let counts = [count(|fates| fates.folded), count(|fates| fates.filtered), count(|fates| fates.rejected)];
    let columns = keys.iter().cloned().chain(others).chain(counts).collect();
    Ok(RecordBatch::try_new(SchemaRef::clone(schema), columns)?)
}

/// What a partition of a [`Report`] gave, apart again.
pub(crate) fn read(metric: &Metric, output: &[RecordBatch]) -> Result<Folded, BatchError> {
    let (mut states, mut fates) = (Vec::new(), FatesByFile::new());
    for batch in output {
        let unexpected = || DataFusionError::Internal("a plan gave other columns than a report has".to_owned());
        let width = batch.num_columns().checked_sub(FATES.len()).ok_or_else(unexpected)?;
        let folded = batch.column(width);
        if folded.null_count() < batch.num_rows() {
            let rows = filter_record_batch(batch, &is_not_null(folded).map_err(DataFusionError::from)?);
            take_fates(&rows.map_err(DataFusionError::from)?, &mut fates).ok_or_else(unexpected)??;
        }
        let rows = filter_record_batch(batch, &is_null(folded).map_err(DataFusionError::from)?);
        let columns: Vec<usize> = (0..width).collect();
        states.push(rows.and_then(|rows| rows.project(&columns)).map_err(DataFusionError::from)?);
    }
    Ok(Folded { groups: fold::groups(metric, &states)?, fates })
}

/// `None` if the columns are not those of a report.
fn take_fates(rows: &RecordBatch, fates: &mut FatesByFile) -> Option<Result<(), BatchError>> {
    let count = |name: &str| rows.column_by_name(name)?.as_primitive_opt::<UInt64Type>();
    let partitions = rows.column(0).as_primitive_opt::<UInt32Type>()?;
    let epochs = rows.column(1).as_primitive_opt::<UInt64Type>()?;
    let [folded, filtered, rejected] = [count(FATES[0])?, count(FATES[1])?, count(FATES[2])?];
    for row in 0..rows.num_rows() {
        let key = (partitions.value(row), epochs.value(row));
        let own = Fates { folded: folded.value(row), filtered: filtered.value(row), rejected: rejected.value(row) };
        if fates.insert(key, own).is_some() {
            return Some(Err(unaccounted(key)));
        }
    }
    Some(Ok(()))
}

fn unaccounted((partition, start): FileKey) -> BatchError {
    BatchError::Unaccounted { partition, start }
}

/// Puts together what the partitions of plans gave for some files, and holds it against them: each file is accounted for
/// exactly once, and the states hold exactly what was folded.
///
/// # Errors
/// If not: something was lost or came twice.
pub(crate) fn together(pieces: &[Piece], parts: Vec<Folded>) -> Result<(Vec<Groups>, FatesByFile), BatchError> {
    let (mut all, mut fates) = (Vec::with_capacity(parts.len()), FatesByFile::new());
    for part in parts {
        for (key, own) in part.fates {
            if fates.insert(key, own).is_some() {
                return Err(unaccounted(key));
            }
        }
        all.push(part.groups);
    }
    let asked: HashSet<_> = pieces.iter().map(|piece| piece.file.key()).collect();
    if let Some(key) =
        asked.iter().find(|key| !fates.contains_key(key)).or_else(|| fates.keys().find(|key| !asked.contains(key)))
    {
        return Err(unaccounted(*key));
    }
    let expected = fates.values().map(|fates| fates.folded).sum();
    let found = all.iter().flat_map(|groups| (0..groups.len()).map(|row| groups.states.count(row))).sum();
    if expected != found {
        return Err(BatchError::NotFolded { expected, found });
    }
    Ok((all, fates))
}
