//! Reads a table: one query of lamina, its states as record batches.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::{DataFusionError, Result},
    execution::{TaskContext, memory_pool::MemoryConsumer},
    physical_plan::{SendableRecordBatchStream, stream::RecordBatchStreamAdapter, streaming::PartitionStream},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use lamina_core::Micros;
use lamina_metric::{Length, Metric};
use serde_json::Value;

use super::columns::{Column, Rows, batch};
use crate::{
    app::App,
    auth::Principal,
    instant,
    problem::Problem,
    query::{self, Merging, Params},
};

/// Rows of one batch: what is computed of them is not accounted for, so they are few.
pub(super) const BATCH_ROWS: usize = 1_024;

/// What proves the scans of a query, in the order they ended.
pub(super) type Proofs = Arc<Mutex<Vec<Value>>>;

/// A problem on its way through the engine.
#[derive(Debug)]
pub(super) struct Passed(pub(super) Problem);

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.detail)
    }
}

impl std::error::Error for Passed {}

pub(super) fn passed(problem: Problem) -> DataFusionError {
    DataFusionError::External(Box::new(Passed(problem)))
}

/// One scan, planned.
#[derive(Clone)]
pub(super) struct Scan {
    pub(super) app: App,
    pub(super) principal: Principal,
    pub(super) table: String,
    pub(super) metric: Arc<Metric>,
    pub(super) width: Micros,
    /// Of starts.
    pub(super) range: Range<Micros>,
    pub(super) condition: Option<String>,
    /// Those that are wanted, and their schema.
    pub(super) columns: Vec<Column>,
    pub(super) schema: SchemaRef,
    pub(super) proofs: Proofs,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("table", &self.table).field("range", &self.range).finish_non_exhaustive()
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (scan, schema) = (self.clone(), Arc::clone(&self.schema));
        let batches = stream::once(async move { scan.read(&context).await }).try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}

impl Scan {
    async fn read(self, context: &TaskContext) -> Result<impl Stream<Item = Result<RecordBatch>> + use<>> {
        let mut params = Params::over(&self.principal, self.range.clone(), Some(self.width), vec!["count".to_owned()]);
        params.group_by = self.metric.dimensions.iter().map(|dimension| dimension.name.clone()).collect();
        params.filter.clone_from(&self.condition);
        let merging = query::merged(&self.app, &self.metric, &params).await.map_err(passed)?;
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).push(self.proof(&merging).map_err(passed)?);
        let states = merging.merged.states;
        let mut series = Vec::with_capacity(merging.merged.series.len());
        let mut places = Vec::new();
        for one in merging.merged.series {
            let at = series.len();
            series.push(one.values);
            places.extend(one.rows.into_iter().map(|(start, row)| (at, start, row)));
        }
        let held = MemoryConsumer::new(format!("rows of {}", self.table)).register(context.memory_pool());
        held.try_grow(states.bytes() + size_of_val(&*places))?;
        let dimensions: Vec<usize> = (0..self.metric.dimensions.len()).collect();
        let starts = (0..places.len()).step_by(BATCH_ROWS);
        Ok(stream::iter(starts).map(move |from| {
            // Held until the last row has gone.
            let _ = &held;
            let until = (from + BATCH_ROWS).min(places.len());
            let rows = Rows { places: &places[from..until], series: &series, dimensions: &dimensions, states: &states };
            batch(&self.columns, &self.schema, &rows, &self.metric).map_err(passed)
        }))
    }

    fn proof(&self, merging: &Merging) -> Result<Value, Problem> {
        let mut proof = serde_json::to_value(&merging.meta).map_err(|error| Problem::internal(&error))?;
        proof["table"] = self.table.as_str().into();
        proof["metric"] = self.metric.name.as_str().into();
        proof["version"] = self.metric.version.into();
        proof["width"] = Length(self.width).to_string().into();
        proof["from"] = instant::format(self.range.start).into();
        proof["to"] = instant::format(self.range.end).into();
        Ok(proof)
    }
}
