//! A metric as a table: a row for each bucket of each series.

use std::{fmt, ops::Range, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{ExecutionPlan, empty::EmptyExec, streaming::StreamingTableExec},
};
use lamina_core::Micros;
use lamina_metric::Metric;

use super::{
    columns::{Column, columns, schema},
    filters::Bounds,
    scan::{Proofs, Scan},
};
use crate::{
    app::App,
    auth::Principal,
    query::calendar::{EARLIEST, LATEST},
};

/// A metric at one of its widths.
pub(super) struct MetricTable {
    app: App,
    principal: Principal,
    name: String,
    metric: Arc<Metric>,
    width: Micros,
    columns: Vec<Column>,
    schema: SchemaRef,
    proofs: Proofs,
}

impl fmt::Debug for MetricTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricTable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl MetricTable {
    pub(super) fn new(
        app: &App,
        principal: &Principal,
        name: String,
        metric: &Arc<Metric>,
        width: Micros,
        proofs: &Proofs,
    ) -> Result<Self, String> {
        let columns = columns(metric)?;
        let schema = schema(&columns, metric);
        let (app, metric, proofs) = (app.clone(), Arc::clone(metric), Arc::clone(proofs));
        Ok(Self { app, principal: principal.clone(), name, metric, width, columns, schema, proofs })
    }

    /// Starts of buckets that can pass, as multiples of the width. Without an upper bound it ends now.
    fn range(&self, bounds: &Bounds) -> Result<Range<Micros>> {
        let width = self.width;
        let up = |at: Micros| {
            at.div_euclid(width).saturating_add(Micros::from(at.rem_euclid(width) != 0)).saturating_mul(width)
        };
        let lowest = up(EARLIEST);
        let highest = LATEST.div_euclid(width) * width;
        let Some(from) = bounds.from else {
            return Err(DataFusionError::Plan(format!(
                "table {0} needs a lower bound of its time: add a condition such as {0}.time >= now() - INTERVAL '1 day'",
                self.name
            )));
        };
        let now = lamina_core::Clock::now(&*self.app.deps.clock);
        let to = bounds.to.unwrap_or_else(|| now.saturating_add(1));
        Ok(up(from.clamp(lowest, highest)).clamp(lowest, highest)..up(to.clamp(lowest, highest)).clamp(lowest, highest))
    }
}

#[async_trait]
impl TableProvider for MetricTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // What is understood narrows what is read; all of it is tested again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let kept = projection.unwrap_or(&all);
        let columns: Vec<Column> = kept.iter().filter_map(|&at| self.columns.get(at).cloned()).collect();
        let schema = schema(&columns, &self.metric);
        let bounds = Bounds::of(filters, &self.metric);
        let range = self.range(&bounds)?;
        if range.is_empty() {
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let scan = Scan {
            app: self.app.clone(),
            principal: self.principal.clone(),
            table: self.name.clone(),
            metric: Arc::clone(&self.metric),
            width: self.width,
            range,
            condition: bounds.condition,
            columns,
            schema: Arc::clone(&schema),
            proofs: Arc::clone(&self.proofs),
        };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, [], false, None)?))
    }
}
