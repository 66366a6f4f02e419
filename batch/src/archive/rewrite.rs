//! Reading the files of segments, and putting a new file in their place.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array},
    compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch},
    datatypes::{SchemaRef, TimestampMicrosecondType, UInt8Type},
    error::ArrowError,
};
use bytes::Bytes;
use lamina_core::{Archive, Counts, Micros, Segment, archive::Erased, ids::new_id};
use lamina_metric::{Source, archive};
use object_store::{PutMode, PutOptions, path::Path};

use super::Place;
use crate::{
    BatchError, Meter,
    files::{self, Fetched},
    plan::File,
};

/// All rows of a file.
pub(super) struct Rows {
    pub(super) schema: SchemaRef,
    pub(super) batches: Vec<RecordBatch>,
}

/// The rows of a segment's file, which is what the ledger says.
pub(super) async fn read(place: &Place, segment: &Segment) -> Result<Rows, BatchError> {
    let Some(archive) = segment.archive.clone() else {
        return Err(BatchError::Hole { partition: place.partition, from: segment.start, to: segment.end });
    };
    let path = archive.path.clone();
    let file = File { partition: place.partition, offsets: segment.start..segment.end, archive };
    let Fetched { bytes, .. } = files::fetch(&place.archive, file, None).await?;
    // Parquet is decoded batch by batch, so that the run can be stopped in between.
    let undecodable = |cause| BatchError::undecodable(&path, cause);
    let rows = archive::read(bytes).map_err(|cause| BatchError::undecodable(&path, cause))?;
    let mut batches = Vec::new();
    for batch in rows {
        batches.push(batch.map_err(undecodable)?);
        tokio::task::yield_now().await;
    }
    let none =
        || BatchError::Mismatch { path: path.clone(), what: "rows", expected: segment.counts().records(), found: 0 };
    let schema = batches.first().map(RecordBatch::schema).ok_or_else(none)?;
    Ok(Rows { schema, batches })
}

/// The rows of the first segments that have one schema, and how many segments that are. Those without a record count.
pub(super) async fn read_alike(
    place: &Place,
    segments: &[Segment],
    meter: &Arc<Meter>,
) -> Result<(Vec<RecordBatch>, usize), BatchError> {
    let mut all: Vec<RecordBatch> = Vec::new();
    let mut alike = 0;
    for segment in segments {
        if segment.counts().records() > 0 {
            let Rows { schema, batches } = read(place, segment).await?;
            if all.first().is_some_and(|first| first.schema_ref() != &schema) {
                break;
            }
            all.extend(batches);
        }
        alike += 1;
        meter.advance(1, segment.counts().records());
    }
    let alike = if all.is_empty() { 0 } else { alike };
    Ok((all, alike))
}

/// The rows in the order of event time, records without one first, each kind in offset order.
pub(super) fn by_time(rows: &[RecordBatch]) -> Result<Vec<RecordBatch>, BatchError> {
    let sorted = || -> Result<Vec<RecordBatch>, ArrowError> {
        let Some(first) = rows.first() else { return Ok(Vec::new()) };
        let all = concat_batches(first.schema_ref(), rows)?;
        let column = |name: &str| -> Result<SortColumn, ArrowError> {
            let missing = || ArrowError::SchemaError(format!("column {name} is missing"));
            let values: ArrayRef = Arc::clone(all.column_by_name(name).ok_or_else(missing)?);
            Ok(SortColumn { values, options: Some(SortOptions { descending: false, nulls_first: true }) })
        };
        let order: UInt32Array = lexsort_to_indices(&[column("_time")?, column("_offset")?], None)?;
        Ok(vec![take_record_batch(&all, &order)?])
    };
    sorted().map_err(|cause| BatchError::undecodable("being rewritten", cause))
}

/// Writes rows, which hold those of `before`, as one file in their place; `erased` says what they do not hold any more.
pub(super) async fn replace(
    place: &Place,
    before: &[Segment],
    rows: Vec<RecordBatch>,
    erased: Option<Erased>,
    now: Micros,
) -> Result<Segment, BatchError> {
    let (file, archive) = draft(place, before, &rows)?;
    let after = Segment::joined(before, Some(archive.clone())).ok_or(BatchError::NothingToRewrite)?;
    place
        .change(|holdings| {
            holdings.announce(&archive.path, now);
            Ok(())
        })
        .await?;
    put(place, &archive.path, file).await?;
    place
        .change(|holdings| match &erased {
            None => holdings.replace(before, after.clone(), now),
            Some(erased) => holdings.replace_erased(before, after.clone(), erased, now),
        })
        .await?;
    Ok(after)
}

fn draft(place: &Place, before: &[Segment], rows: &[RecordBatch]) -> Result<(Bytes, Archive), BatchError> {
    let (start, end) = before.first().zip(before.last()).map_or((0, 0), |(first, last)| (first.start, last.end));
    let (source, topic, partition) = (place.log.source(), place.log.topic_id(), place.partition);
    let id = new_id();
    let path = Path::from(format!("{source}/{topic}/{partition:05}/{start:020}-{end:020}-{id}.parquet")).to_string();
    let undecodable = |cause: ArrowError| BatchError::undecodable(&path, cause);
    let file = encode(rows).map_err(|cause| BatchError::undecodable(&path, cause))?;
    let mut counts = Counts { absent: before.iter().map(|segment| segment.counts().absent).sum(), ..Counts::default() };
    let mut event_time: Option<(Micros, Micros)> = None;
    for rows in rows {
        let (own, times) = count(rows).map_err(undecodable)?;
        counts.add(own);
        event_time = event_time.into_iter().chain(times).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    }
    let (expected, found) = (end - start, counts.offsets());
    if expected != found {
        return Err(BatchError::Mismatch { path, what: "offsets", expected, found });
    }
    let last_record = before.last().and_then(|segment| segment.archive.as_ref()?.last_record);
    let (bytes, checksum) = (file.len() as u64, crc32fast::hash(&file));
    Ok((file, Archive { path, bytes, checksum, counts, event_time, last_record }))
}

fn encode(rows: &[RecordBatch]) -> Result<Bytes, parquet::errors::ParquetError> {
    let none = || parquet::errors::ParquetError::General("there are no rows to write".to_owned());
    let mut writer = archive::writer(rows.first().ok_or_else(none)?.schema_ref())?;
    for rows in rows {
        writer.write(rows)?;
    }
    writer.into_inner().map(Bytes::from)
}

/// What became of the rows, and the smallest and largest event time of the accepted ones.
type Counted = (Counts, Option<(Micros, Micros)>);

fn count(rows: &RecordBatch) -> Result<Counted, ArrowError> {
    let missing = || ArrowError::SchemaError("rows lack outcomes or times".to_owned());
    let outcomes = rows.column_by_name("_outcome").and_then(|column| column.as_primitive_opt::<UInt8Type>());
    let times = rows.column_by_name("_time").and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let (outcomes, times) = outcomes.zip(times).ok_or_else(missing)?;
    let of = |wanted: u8| outcomes.values().iter().filter(|outcome| **outcome == wanted).count() as u64;
    let counts = Counts {
        accepted: of(archive::ACCEPTED),
        dead: of(archive::DEAD),
        duplicates: of(archive::DUPLICATE),
        erased: of(archive::ERASED),
        absent: 0,
    };
    let accepted: BooleanArray = outcomes.values().iter().map(|outcome| Some(*outcome == archive::ACCEPTED)).collect();
    let times = arrow::compute::filter(times, &accepted)?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    Ok((counts, arrow::compute::min(times).zip(arrow::compute::max(times))))
}

/// Smallest and largest event time of the accepted rows that are marked.
pub(super) fn times(
    source: &Source,
    rows: &RecordBatch,
    marked: &BooleanArray,
) -> Result<Option<(Micros, Micros)>, ArrowError> {
    let events = archive::accepted_events(source, &arrow::compute::filter_record_batch(rows, marked)?)?;
    let times = events.column_by_name("_time").and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let times = times.ok_or_else(|| ArrowError::SchemaError("events lack their times".to_owned()))?;
    Ok(arrow::compute::min(times).zip(arrow::compute::max(times)))
}

async fn put(place: &Place, path: &str, file: Bytes) -> Result<(), BatchError> {
    let failed = |cause| BatchError::Unwritable { path: path.to_owned(), cause };
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let at = Path::parse(path).map_err(|cause| failed(cause.into()))?;
    match place.archive.put_opts(&at, file.into(), create).await {
        // Nobody else has this name: an earlier attempt of the client's own arrived.
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(cause) => Err(failed(cause)),
    }
}
