//! The archive again, from its payloads: each sampled bucket folded up to exactly the positions of its answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    compute::{concat_batches, filter_record_batch, partition, sort_to_indices, take_record_batch},
    datatypes::{UInt8Type, UInt64Type},
    error::ArrowError,
};
use bytes::Bytes;
use lamina_core::{Archive, Counts, Micros, Offset, Partition, Segment};
use lamina_metric::{
    Layout, Series, Source, States, ViewFold,
    archive::{self, ACCEPTED, DUPLICATE, ERASED},
};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Asked, Failure, Files};

/// Why an archive file cannot be used.
pub(super) enum Broken {
    /// It is not what the ledger says.
    Damaged(String),
    /// The archive does not answer: nothing is known of it.
    Unreachable(String),
}

/// States of one bucket by series.
pub(super) struct Sums {
    pub(super) states: States,
    pub(super) rows: BTreeMap<Series, usize>,
}

/// What was found for each answer.
pub(super) struct Recomputed {
    pub(super) sums: Vec<Sums>,
    pub(super) broken: Vec<Broken>,
    /// Answers that a broken file leaves without a comparison, and why.
    pub(super) unknown: BTreeMap<usize, String>,
    pub(super) files: u64,
    pub(super) rows: u64,
}

/// What a file adds to one answer.
type Part = (usize, Vec<Series>, States);

/// Folds every archive file that holds events of what was asked for.
pub(super) async fn recompute(
    archive: &dyn ObjectStore,
    source: &Arc<Source>,
    asked: &[Asked],
    files: &Files,
) -> Result<Recomputed, Failure> {
    let sums =
        asked.iter().map(|asked| Sums { states: States::new(&Layout::of(&asked.metric)), rows: BTreeMap::new() });
    let mut done = Recomputed { sums: sums.collect(), broken: Vec::new(), unknown: BTreeMap::new(), files: 0, rows: 0 };
    let folds: Vec<Fold> = asked.iter().map(Fold::of).collect();
    let needed: Vec<(Partition, &Segment, Vec<usize>)> = files
        .all()
        .filter_map(|(partition, file)| {
            let folds = |asked: &Asked| {
                asked.touches(file) && asked.positions.get(&partition).is_some_and(|end| file.start < *end)
            };
            let by: Vec<usize> = (0..asked.len()).filter(|&at| folds(&asked[at])).collect();
            (!by.is_empty()).then_some((partition, file, by))
        })
        .collect();
    let bar = indicatif::ProgressBar::new(needed.len() as u64).with_message("reading the archive");
    for (partition, file, by) in needed {
        bar.inc(1);
        let Some(named) = file.archive.clone() else { continue };
        done.files += 1;
        let file = match fetch(archive, &named).await {
            Ok(file) => file,
            Err(broken) => {
                let why = format!("archive file {} cannot be used", named.path);
                done.unknown.extend(by.iter().map(|&at| (at, why.clone())));
                done.broken.push(broken);
                continue;
            }
        };
        let folds = by.iter().map(|&at| (at, folds[at].clone())).collect();
        let source = Arc::clone(source);
        // A decoder that panics on a file fails this file, not the audit.
        let fold = tokio::task::spawn_blocking(move || fold_file(&source, partition, &named, file, folds));
        let folded = fold.await.map_err(|error| Failure::failed(format!("folding a file broke off: {error}")))?;
        match folded {
            Ok((rows, parts)) => {
                done.rows += rows;
                for (at, series, states) in parts {
                    done.sums[at].add(series, &states).map_err(Failure::failed)?;
                }
            }
            Err(broken) => {
                let why = "an archive file that holds its events is damaged".to_owned();
                done.unknown.extend(by.iter().map(|&at| (at, why.clone())));
                done.broken.push(broken);
            }
        }
    }
    bar.finish_and_clear();
    Ok(done)
}

impl Sums {
    fn add(&mut self, series: Vec<Series>, states: &States) -> Result<(), lamina_metric::StateError> {
        let into = series.into_iter().map(|series| {
            let next = self.rows.len();
            *self.rows.entry(series).or_insert(next)
        });
        let into: Vec<usize> = into.collect();
        self.states.resize(self.rows.len());
        self.states.merge(states, &into)
    }
}

/// Reads the file that a ledger names, and checks that it is the one.
pub(super) async fn fetch(archive: &dyn ObjectStore, named: &Archive) -> Result<Bytes, Broken> {
    let path = &named.path;
    let at = Path::parse(path).map_err(|error| Broken::Damaged(format!("ledger names {path:?}: {error}")))?;
    let failed = |error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => Broken::Damaged(format!("archive file {path} is missing")),
        other => Broken::Unreachable(format!("archive file {path}: {other}")),
    };
    let file = archive.get(&at).await.map_err(failed)?.bytes().await.map_err(failed)?;
    let (size, checksum) = (file.len() as u64, crc32fast::hash(&file));
    if (size, checksum) != (named.bytes, named.checksum) {
        return Err(Broken::Damaged(format!(
            "archive file {path} has {size} bytes and CRC-32 {checksum}, the ledger says {} and {}",
            named.bytes, named.checksum
        )));
    }
    Ok(file)
}

/// The rows of a file.
pub(super) fn read(path: &str, file: Bytes) -> Result<impl Iterator<Item = Result<RecordBatch, ArrowError>>, Broken> {
    let damaged = |error: parquet::errors::ParquetError| Broken::Damaged(format!("archive file {path}: {error}"));
    let file = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
    let schema = Arc::clone(file.schema());
    let rows = file.build().map_err(damaged)?;
    Ok(rows.map(move |rows| rows?.with_schema(Arc::clone(&schema))))
}

/// The rows of a file by epoch, each epoch's in offset order.
fn by_epoch(path: &str, file: Bytes) -> Result<Vec<RecordBatch>, Broken> {
    let damaged = |error: ArrowError| Broken::Damaged(format!("archive file {path}: {error}"));
    let rows = read(path, file)?.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    let split = || -> Result<Vec<RecordBatch>, ArrowError> {
        let all = concat_batches(first.schema_ref(), &rows)?;
        let column = |rows: &RecordBatch, name: &str| {
            let missing = || ArrowError::SchemaError(format!("column {name} is missing"));
            rows.column_by_name(name).cloned().ok_or_else(missing)
        };
        let sorted = take_record_batch(&all, &sort_to_indices(&column(&all, "_offset")?, None, None)?)?;
        let epochs = column(&sorted, "_epoch")?;
        let ranges = partition(&[epochs])?.ranges();
        Ok(ranges.into_iter().map(|range| sorted.slice(range.start, range.len())).collect())
    };
    split().map_err(damaged)
}

/// What an answer needs of a file.
#[derive(Clone)]
struct Fold {
    metric: Arc<lamina_metric::Metric>,
    view: usize,
    bucket: Micros,
    width: Micros,
    positions: BTreeMap<Partition, Offset>,
}

impl Fold {
    fn of(asked: &Asked) -> Self {
        let Asked { metric, view, bucket, width, positions, .. } = asked;
        Self { metric: Arc::clone(metric), view: *view, bucket: *bucket, width: *width, positions: positions.clone() }
    }
}

fn fold_file(
    source: &Source,
    partition: Partition,
    named: &Archive,
    file: Bytes,
    folds: Vec<(usize, Fold)>,
) -> Result<(u64, Vec<Part>), Broken> {
    let damaged = |what: String| Broken::Damaged(format!("archive file {}: {what}", named.path));
    let (mut events, mut counts) = (Vec::new(), Counts::default());
    for epoch in by_epoch(&named.path, file)? {
        events.push(decode(source, partition, &epoch, &mut counts).map_err(damaged)?);
    }
    if (Counts { absent: named.counts.absent, ..counts }) != named.counts {
        return Err(damaged(format!("its rows are {counts:?}, the ledger says {:?}", named.counts)));
    }
    // Answers that fold the same views up to the same offset share the work.
    let mut groups: BTreeMap<_, Vec<&(usize, Fold)>> = BTreeMap::new();
    for one in &folds {
        let upto = one.1.positions.get(&partition).copied().unwrap_or(0);
        groups.entry((one.1.metric.name.clone(), one.1.view, upto)).or_default().push(one);
    }
    let mut parts = Vec::new();
    for ((_, view, upto), folds) in groups {
        let Some((_, Fold { metric, .. })) = folds.first() else { continue };
        for events in &events {
            // Each epoch has its own cap on series.
            let mut fold = ViewFold::new(metric, &metric.views[view]);
            let events = below(events, upto).map_err(|error| damaged(error.to_string()))?;
            let prepared = metric.prepare(&events).map_err(|error| damaged(error.to_string()))?;
            fold.fold(&prepared).map_err(|error| damaged(error.to_string()))?;
            for (_, chunk) in fold.whole() {
                for (at, Fold { bucket, width, .. }) in &folds {
                    let within = |row: &usize| chunk.rows[*row].1.div_euclid(*width) * width == *bucket;
                    let rows: Vec<usize> = (0..chunk.rows.len()).filter(within).collect();
                    let series = rows.iter().map(|&row| chunk.series[chunk.rows[row].0 as usize].clone()).collect();
                    parts.push((*at, series, chunk.states.take(&rows)));
                }
            }
        }
    }
    Ok((counts.records(), parts))
}

/// The accepted events of rows, decoded from their payloads. What the rows' columns say must be the same.
fn decode(
    source: &Source,
    partition: Partition,
    rows: &RecordBatch,
    counts: &mut Counts,
) -> Result<RecordBatch, String> {
    let column = |name: &str| rows.column_by_name(name).ok_or_else(|| format!("column {name} is missing"));
    let of_type = |name: &str| format!("column {name} is of another type");
    let outcomes = column("_outcome")?.as_primitive_opt::<UInt8Type>().ok_or_else(|| of_type("_outcome"))?;
    let offsets = column("_offset")?.as_primitive_opt::<UInt64Type>().ok_or_else(|| of_type("_offset"))?;
    let payloads = column("_payload")?.as_binary_opt::<i32>().ok_or_else(|| of_type("_payload"))?;
    let mut records = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        match outcomes.value(row) {
            ACCEPTED => {
                counts.accepted += 1;
                records.push((offsets.value(row), payloads.value(row)));
            }
            DUPLICATE => counts.duplicates += 1,
            ERASED => counts.erased += 1,
            _ => counts.dead += 1,
        }
    }
    let events = source.decode(partition, &records).events;
    // Files of another definition have other columns.
    if archive::is_current(source, rows.schema_ref()) {
        let kept = archive::accepted_events(source, rows).map_err(|error| error.to_string())?;
        if let Some((name, offset)) = first_difference(&kept, &events) {
            return Err(format!("column {name} is not what the payload of offset {offset} decodes to"));
        }
    }
    Ok(events)
}

/// The first column in which two batches of events differ, and the offset of the first row that does.
fn first_difference(kept: &RecordBatch, decoded: &RecordBatch) -> Option<(String, Offset)> {
    let offsets = decoded.column_by_name("_offset")?.as_primitive_opt::<UInt64Type>()?;
    let differs = |(a, b): (&ArrayRef, &ArrayRef)| {
        let rows = a.len().min(b.len());
        (0..rows).find(|&row| a.slice(row, 1) != b.slice(row, 1)).or((a.len() != b.len()).then_some(rows))
    };
    let names: BTreeSet<usize> = (0..decoded.num_columns().min(kept.num_columns())).collect();
    names.into_iter().find_map(|at| {
        let (a, b) = (kept.column(at), decoded.column(at));
        // Comparing whole columns is quick; only where they differ is the row looked for.
        let row = if a == b { None } else { differs((a, b)) }?;
        let offset = if row < offsets.len() { offsets.value(row) } else { 0 };
        Some((decoded.schema_ref().field(at).name().clone(), offset))
    })
}

/// Events whose offsets lie below `upto`.
fn below(events: &RecordBatch, upto: Offset) -> Result<RecordBatch, ArrowError> {
    let offsets = events.column_by_name("_offset").and_then(|column| column.as_primitive_opt::<UInt64Type>());
    let offsets = offsets.ok_or_else(|| ArrowError::SchemaError("column _offset is missing".to_owned()))?;
    if offsets.values().iter().all(|offset| *offset < upto) {
        return Ok(events.clone());
    }
    let kept: BooleanArray = offsets.values().iter().map(|offset| Some(*offset < upto)).collect();
    filter_record_batch(events, &kept)
}
