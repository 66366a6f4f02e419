//! The leaf of a fold's plan: archive files, fetched, checked and prepared. It names all that is needed to read them, so
//! that the same node runs here and on an executor.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{Result, internal_err, tree_node::TreeNodeRecursion},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lamina_core::Micros;
use lamina_metric::Metric;
use serde::{Deserialize, Serialize};

use crate::{
    context, files,
    fold::{self, FatesByFile},
    names::Names,
    plan::File,
};

/// Files that one partition fetches ahead.
const FETCHED_TOGETHER: usize = 2;

/// What is folded of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) file: File,
    /// Only events of this time; `None` is all.
    pub(crate) window: Option<Range<Micros>>,
    pub(crate) names: Arc<Names>,
}

/// Prepared rows of archive files; schema of [`fold::schema`]. Each partition can be executed once.
pub(crate) struct Scan {
    pub(crate) metric: Arc<Metric>,
    pub(crate) partitions: Vec<Vec<Piece>>,
    /// What became of the events, by partition: complete once its stream has ended.
    fates: Vec<Arc<Mutex<FatesByFile>>>,
    properties: Arc<PlanProperties>,
}

impl Scan {
    pub(crate) fn new(metric: Arc<Metric>, partitions: Vec<Vec<Piece>>) -> Self {
        let properties = properties(fold::schema(&metric), partitions.len());
        let fates = partitions.iter().map(|_| Arc::default()).collect();
        Self { metric, partitions, fates, properties }
    }

    /// What became of the events of a partition that was read to its end.
    pub(crate) fn fates(&self, partition: usize) -> FatesByFile {
        let fates = self.fates.get(partition).map(|fates| fates.lock().unwrap_or_else(PoisonError::into_inner));
        fates.map(|mut fates| std::mem::take(&mut *fates)).unwrap_or_default()
    }
}

/// Those of a node that gives all it has in the end, in no order.
pub(crate) fn properties(schema: SchemaRef, partitions: usize) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("metric", &self.metric.name).field("partitions", &self.partitions).finish()
    }
}

impl DisplayAs for Scan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: usize = self.partitions.iter().map(Vec::len).sum();
        write!(f, "Scan: metric={}, files={files}", self.metric.name)
    }
}

impl ExecutionPlan for Scan {
    fn name(&self) -> &'static str {
        "Scan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (Some(pieces), Some(fates)) = (self.partitions.get(partition), self.fates.get(partition)) else {
            return internal_err!("there is no partition {partition}");
        };
        let archive = context.runtime_env().object_store(context::archive_url()?)?;
        let together = context.session_config().batch_size();
        let (metric, fates) = (Arc::clone(&self.metric), Arc::clone(fates));
        let fetches = pieces.clone().into_iter().map(move |piece| {
            let archive = Arc::clone(&archive);
            async move { Ok((files::fetch(&archive, piece.file, piece.window).await?, piece.names)) }.boxed()
        });
        let rows = stream::iter(fetches).buffered(FETCHED_TOGETHER).and_then(move |(fetched, names)| {
            let (metric, fates) = (Arc::clone(&metric), Arc::clone(&fates));
            async move { fold::prepared(metric, fates, fetched, names, together) }
        });
        let rows = rows.try_flatten().map_err(|error| DataFusionError::External(Box::new(error)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
