//! A source's raw archive as a table: a row for each record that was sealed, whatever became of it.
//!
//! Files are those that ledger and manifest name, each record once. One is fetched whole, checked against what was noted of
//! it, and then read column by column.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Arc, PoisonError},
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::Result,
    execution::{
        TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{
        ExecutionPlan, SendableRecordBatchStream,
        stream::RecordBatchStreamAdapter,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use lamina_core::{Archive, Consistency, Ledgers, Micros, Offset, Partition, archive as segments};
use lamina_metric::{Source, archive, archive_schema};
use object_store::{ObjectStoreExt, path::Path};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::json;

use super::{
    filters::Bounds,
    scan::{BATCH_ROWS, Proofs, passed},
};
use crate::{app::App, problem::Problem, query::partitions_of};

/// The schema that archives are in: `SELECT ... FROM archive.edits`.
pub(super) const SCHEMA: &str = "archive";
/// Event time; NULL of a record that could not be decoded.
const TIME: &str = "_time";
/// Payloads may be large: rows of a batch are so many that they take about this.
const BATCH_BYTES: usize = 1 << 20;
const FEWEST_ROWS: usize = 16;

/// The archive of one source.
pub(super) struct ArchiveTable {
    app: App,
    source: Arc<Source>,
    schema: SchemaRef,
    proofs: Proofs,
}

impl fmt::Debug for ArchiveTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveTable").field("source", &self.source.name).finish_non_exhaustive()
    }
}

impl ArchiveTable {
    pub(super) fn new(app: &App, source: &Arc<Source>, proofs: &Proofs) -> Self {
        let fields = archive_schema(source);
        let fields = fields.fields().iter().map(|field| in_utc(field)).collect::<Vec<_>>();
        let (app, source, proofs) = (app.clone(), Arc::clone(source), Arc::clone(proofs));
        Self { app, source, schema: Arc::new(Schema::new(fields)), proofs }
    }

    /// The files whose events may lie within the bounds. What was sealed and is not there any more is in the proof.
    async fn files(&self, bounds: &Bounds) -> Result<Vec<Archive>, Problem> {
        let store = &*self.app.deps.store;
        let partitions = partitions_of(&self.app, &self.source).await?;
        let (mut files, mut positions, mut missing) = (Vec::new(), BTreeMap::new(), Vec::new());
        for &partition in &partitions.all {
            let ledger = Ledgers::load(store, &partitions.log, partition, Consistency::Serial).await?;
            let end = ledger.sealed_end();
            let held = segments::segments(store, &partitions.log, partition, &ledger, 0..end).await?;
            positions.insert(partition.to_string(), end);
            // Before the first one the log began, or was never read.
            let mut next = held.first().map_or(end, |first| first.start);
            for segment in held {
                missing.extend(gap(partition, next..segment.start));
                missing.extend(segment.lost.iter().filter_map(|&(from, to)| gap(partition, from..to)));
                next = segment.end;
                match segment.archive {
                    Some(file) => files.push(file),
                    None => missing.extend(gap(partition, segment.start..segment.end)),
                }
            }
            missing.extend(gap(partition, next..end));
        }
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).push(json!({
            "table": format!("{SCHEMA}.{}", self.source.name),
            "source": self.source.name,
            "positions": positions,
            "missing": missing,
            "complete": missing.is_empty(),
        }));
        let is_bound = bounds.from.is_some() || bounds.to.is_some();
        let within = Range { start: bounds.from.unwrap_or(Micros::MIN), end: bounds.to.unwrap_or(Micros::MAX) };
        let touches =
            |file: &Archive| file.event_time.is_some_and(|(first, last)| first < within.end && last >= within.start);
        files.retain(|file| !is_bound || touches(file));
        Ok(files)
    }
}

/// Offsets of which no record is there, as a proof names them.
fn gap(partition: Partition, offsets: Range<Offset>) -> Option<serde_json::Value> {
    (!offsets.is_empty()).then(|| json!({"partition": partition, "from": offsets.start, "to": offsets.end}))
}

/// Times of the archive are UTC, and say so here.
fn in_utc(field: &Field) -> Field {
    match field.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            field.clone().with_data_type(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
        }
        _ => field.clone(),
    }
}

#[async_trait]
impl TableProvider for ArchiveTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Bounds of event time leave files out; all of it is tested again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        let files = self.files(&Bounds::of_time(filters, TIME)).await.map_err(passed)?;
        let streams = session.config().target_partitions().clamp(1, files.len().max(1));
        let mut shares: Vec<Vec<Archive>> = vec![Vec::new(); streams];
        for (at, file) in files.into_iter().enumerate() {
            shares[at % streams].push(file);
        }
        let of_share = |files| {
            let (app, source, schema) = (self.app.clone(), Arc::clone(&self.source), Arc::clone(&schema));
            Arc::new(Files { app, source, schema, files }) as Arc<dyn PartitionStream>
        };
        let streams = shares.into_iter().map(of_share).collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema, streams, None, [], false, None)?))
    }
}

/// Files that are read one after the other, with the columns that are wanted.
#[derive(Clone)]
struct Files {
    app: App,
    source: Arc<Source>,
    schema: SchemaRef,
    files: Vec<Archive>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("source", &self.source.name).field("files", &self.files.len()).finish()
    }
}

impl PartitionStream for Files {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let reading = self.clone();
        let batches = stream::iter(self.files.clone()).then(move |file| {
            let (reading, context) = (reading.clone(), Arc::clone(&context));
            async move { reading.open(&file, &context).await.map(stream::iter) }
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches.try_flatten()))
    }
}

impl Files {
    /// The rows of a file. Its bytes are held, and accounted for, until the last of them has gone.
    async fn open(
        &self,
        file: &Archive,
        context: &TaskContext,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
        let held =
            MemoryConsumer::new(format!("a file of {SCHEMA}.{}", self.source.name)).register(context.memory_pool());
        held.try_grow(usize::try_from(file.bytes).unwrap_or(usize::MAX))?;
        let unreadable = |why: String| {
            tracing::warn!(path = file.path, why, "a file of the archive cannot be read");
            passed(Problem::unavailable("archive_unavailable", "a file of the archive cannot be read: ask again later"))
        };
        let path = Path::parse(&file.path).map_err(|error| unreadable(error.to_string()))?;
        let fetched = async { self.app.deps.archive.get(&path).await?.bytes().await };
        let bytes = fetched.await.map_err(|error| unreadable(error.to_string()))?;
        if !file.describes(&bytes) {
            return Err(unreadable("its size or checksum is not what was noted".to_owned()));
        }
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
        let (source, schema) = (Arc::clone(&self.source), Arc::clone(&self.schema));
        let current = archive::is_current(&source, builder.schema());
        let wanted =
            |name: &str| if current { schema.field_with_name(name).is_ok() } else { archive::SYSTEM.contains(&name) };
        // By root: a column's name may hold dots.
        let fields = builder.schema().fields().iter().enumerate();
        let roots = fields.filter(|(_, field)| wanted(field.name())).map(|(at, _)| at);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let groups = builder.metadata().row_groups().iter();
        let largest = groups.map(|group| group.total_byte_size() / group.num_rows().max(1)).max().unwrap_or(1);
        let rows = BATCH_BYTES / usize::try_from(largest).unwrap_or(1).max(1);
        let reader = builder.with_projection(mask).with_batch_size(rows.clamp(FEWEST_ROWS, BATCH_ROWS)).build()?;
        Ok(reader.map(move |rows| {
            // Held until the last row has gone.
            let _: &MemoryReservation = &held;
            let rows = rows?;
            let rows = if current { rows } else { archive::decoded_again(&source, &rows)? };
            columns(&rows, &schema)
        }))
    }
}

/// The wanted columns of some rows.
fn columns(rows: &RecordBatch, wanted: &SchemaRef) -> Result<RecordBatch> {
    let column = |field: &Arc<Field>| {
        let missing = || ArrowError::SchemaError(format!("column {} is missing", field.name()));
        cast(rows.column_by_name(field.name()).ok_or_else(missing)?, field.data_type())
    };
    let columns = wanted.fields().iter().map(column).collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options)?)
}
