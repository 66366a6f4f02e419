//! What a worker holds in memory of one partition's open epoch: states, archive rows, counts, dead letters.
//!
//! Records go in, in offset order; chunks and a file come out. There is no I/O here, so the work runs off the runtime's
//! threads as a whole.
//!
//! # Invariants
//! - `counts.offsets()` is `position - start`: every offset is accounted for when it is passed.
//! - Every record at or above the start is in the file; records below it only feed the dedup memory.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::{
    array::{Array, AsArray, BooleanArray},
    compute::{filter_record_batch, max, min},
    datatypes::TimestampMicrosecondType,
    record_batch::RecordBatch,
};
use bytes::Bytes;
use lamina_core::{Counts, Epoch, Micros, Offset, Partition, log::Record, offload::offload, snapshot::no_later};
use lamina_metric::{Catalog, Decoded, Outcome, Source, archive, archive_schema};

use crate::{
    archive_file::{self, ArchiveFile},
    dead_letters::DeadLetter,
    dedup::Dedup,
    instruments,
    views::{Encoded, FoldError, Views, conserved},
};

/// The fold of one epoch of one partition.
pub(crate) struct EpochFold {
    partition: Partition,
    source: Arc<Source>,
    views: Views,
    dedup: Dedup,
    file: ArchiveFile,
    start: Offset,
    position: Offset,
    /// Running maximum of append time of all records before the start.
    dedup_clock: Micros,
    counts: Counts,
    event_time: Option<(Micros, Micros)>,
    appended_at: Option<Micros>,
    waiting_since: Option<Micros>,
    /// Offset and payload of the last record.
    last: Option<(Offset, Bytes)>,
    dead: Vec<DeadLetter>,
    dead_bytes: usize,
    gap: Option<(Offset, Offset)>,
    payload_bytes: u64,
    /// Memory of the states when they were last flushed: adding them up takes time.
    view_bytes: usize,
}

/// Where a fold stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    /// Position after the last folded record.
    pub(crate) position: Offset,
    pub(crate) counts: Counts,
    /// The larger of the records' bytes and the memory that the epoch takes.
    pub(crate) bytes: u64,
    /// Bytes of dead letters that wait for the next flush.
    pub(crate) dead_bytes: usize,
    /// Bytes of memory held, the memory of ids included.
    pub(crate) memory: usize,
}

/// What a flush writes.
pub(crate) struct Delta {
    pub(crate) chunks: Vec<Encoded>,
    pub(crate) dead: Vec<DeadLetter>,
    /// Largest event time of the epoch so far, or the largest append time if that is earlier.
    pub(crate) watermark: Option<Micros>,
    /// Append time of the last record.
    pub(crate) appended_at: Option<Micros>,
    /// Append time of the first record since the last delta.
    pub(crate) waiting_since: Option<Micros>,
    /// From the first to the last offset without a record since the last delta.
    pub(crate) gap: Option<(Offset, Offset)>,
}

/// What a seal writes.
pub(crate) struct Whole {
    pub(crate) chunks: Vec<Encoded>,
    pub(crate) file: Bytes,
    pub(crate) checksum: u32,
    pub(crate) counts: Counts,
    /// Smallest and largest event time of accepted records.
    pub(crate) event_time: Option<(Micros, Micros)>,
    /// Offset of the last record and the CRC-32 of its payload.
    pub(crate) last_record: Option<(Offset, u32)>,
    /// Running maximum of append time of all records before the position.
    pub(crate) dedup_clock: Micros,
}

impl EpochFold {
    /// An empty fold of `epoch`, with a memory of ids that begins empty.
    pub(crate) fn new(catalog: &Catalog, source: &Arc<Source>, partition: Partition, epoch: &Epoch) -> Self {
        let dedup = Dedup::new(source.dedup_window);
        Self::with_dedup(catalog, source, partition, epoch, dedup)
    }

    /// The fold of the epoch that follows; ids are remembered.
    fn next(self, catalog: &Catalog, source: &Arc<Source>, epoch: &Epoch) -> Self {
        Self::with_dedup(catalog, source, self.partition, epoch, self.dedup)
    }

    fn with_dedup(catalog: &Catalog, source: &Arc<Source>, partition: Partition, epoch: &Epoch, dedup: Dedup) -> Self {
        Self {
            partition,
            views: Views::new(catalog, &source.name, epoch.revision),
            dedup,
            file: ArchiveFile::new(archive_schema(source)),
            source: Arc::clone(source),
            start: epoch.start,
            position: epoch.start,
            dedup_clock: epoch.dedup_clock,
            counts: Counts::default(),
            event_time: None,
            appended_at: None,
            waiting_since: None,
            last: None,
            dead: Vec::new(),
            dead_bytes: 0,
            gap: None,
            payload_bytes: 0,
            view_bytes: 0,
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        let memory = self.file.bytes() + self.view_bytes + self.dead_bytes;
        Standing {
            position: self.position,
            counts: self.counts,
            bytes: self.payload_bytes.max(memory as u64),
            dead_bytes: self.dead_bytes,
            memory: memory + self.dedup.bytes(),
        }
    }

    /// Takes records in; everything below `next` is accounted for afterwards.
    ///
    /// # Errors
    /// If lamina is at fault; then this fold cannot be gone on with.
    pub(crate) fn absorb(&mut self, records: &[Record], next: Offset) -> Result<(), FoldError> {
        let (before, rest) = records.split_at(records.partition_point(|record| record.offset < self.start));
        if self.position == self.start {
            self.remember(before);
        }
        // Records that come a second time were folded already.
        let fresh = &rest[rest.partition_point(|record| record.offset < self.position)..];
        if !fresh.is_empty() {
            self.dedup.advance(self.dedup_clock);
            self.fold(fresh)?;
            for record in fresh {
                self.pass(record.offset);
                self.position = record.offset + 1;
            }
        }
        self.pass(next);
        Ok(())
    }

    /// Moves the position over offsets that the log is known to have lost.
    pub(crate) fn skip_lost(&mut self, to: Offset) {
        self.counts.absent += to.saturating_sub(self.position);
        self.position = self.position.max(to);
    }

    /// Moves the position to `to`, over offsets that hold no record.
    fn pass(&mut self, to: Offset) {
        if to > self.position {
            let from = self.gap.map_or(self.position, |(from, _)| from);
            self.gap = Some((from, to));
            self.skip_lost(to);
        }
    }

    /// Feeds the memory of ids with records from before the epoch.
    fn remember(&mut self, records: &[Record]) {
        if !records.is_empty() {
            let decoded = decode(&self.source, self.partition, records);
            self.judge(records, &decoded);
        }
    }

    fn fold(&mut self, records: &[Record]) -> Result<(), FoldError> {
        let decoded = decode(&self.source, self.partition, records);
        let duplicates = self.judge(records, &decoded);
        let rows = archive::archive_batch(&self.source, self.partition, self.start, records, &decoded, &duplicates)?;
        self.file.append(&rows)?;
        let events = self.count(records, &decoded, &duplicates)?;
        self.note_times(records, &events);
        for fates in self.views.fold(&events)? {
            instruments::fates(&fates);
            for (offset, reason) in fates.rejected {
                if let Ok(at) = records.binary_search_by_key(&offset, |record| record.offset) {
                    self.set_aside(&records[at], Some(fates.metric.clone()), reason);
                }
            }
        }
        Ok(())
    }

    /// Says of each record whether it is a duplicate, and remembers its id.
    fn judge(&mut self, records: &[Record], decoded: &Decoded) -> Vec<bool> {
        let ids = decoded.events.column_by_name("_id").and_then(|ids| ids.as_string_opt::<i32>());
        let mut event = 0;
        let mut duplicates = Vec::with_capacity(records.len());
        for (record, outcome) in records.iter().zip(&decoded.outcomes) {
            self.dedup.advance(record.appended_at);
            let mut duplicate = false;
            if *outcome == Outcome::Accepted {
                if let Some(ids) = ids.filter(|ids| event < ids.len() && ids.is_valid(event)) {
                    duplicate = self.dedup.saw(ids.value(event));
                }
                event += 1;
            }
            duplicates.push(duplicate);
        }
        duplicates
    }

    /// Counts what became of each record, sets dead ones aside and gives the events to fold.
    fn count(&mut self, records: &[Record], decoded: &Decoded, duplicates: &[bool]) -> Result<RecordBatch, FoldError> {
        let mut keep = Vec::with_capacity(records.len());
        for ((record, outcome), &duplicate) in records.iter().zip(&decoded.outcomes).zip(duplicates) {
            match outcome {
                Outcome::Dead(reason) => {
                    self.counts.dead += 1;
                    self.set_aside(record, None, reason.clone());
                }
                Outcome::Accepted if duplicate => self.counts.duplicates += 1,
                Outcome::Accepted => self.counts.accepted += 1,
            }
            if *outcome == Outcome::Accepted {
                keep.push(!duplicate);
            }
            self.payload_bytes += (record.payload.len() + record.key.as_ref().map_or(0, Bytes::len)) as u64;
        }
        if keep.iter().all(|keep| *keep) {
            return Ok(decoded.events.clone());
        }
        Ok(filter_record_batch(&decoded.events, &BooleanArray::from(keep))?)
    }

    fn note_times(&mut self, records: &[Record], events: &RecordBatch) {
        let times =
            events.column_by_name("_time").and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        if let Some((first, last)) = times.and_then(|times| min(times).zip(max(times))) {
            let known = self.event_time.unwrap_or((first, last));
            self.event_time = Some((known.0.min(first), known.1.max(last)));
        }
        self.appended_at = records.last().map(|record| record.appended_at).or(self.appended_at);
        self.last = records.last().map(|record| (record.offset, record.payload.clone())).or(self.last.take());
        self.waiting_since = self.waiting_since.or_else(|| records.first().map(|record| record.appended_at));
    }

    fn set_aside(&mut self, record: &Record, metric: Option<String>, reason: String) {
        self.dead_bytes += record.payload.len() + reason.len();
        self.dead.push(DeadLetter { offset: record.offset, metric, reason, payload: record.payload.clone() });
    }

    /// What was folded since the last call.
    pub(crate) fn take_delta(&mut self) -> Result<Delta, FoldError> {
        let chunks = self.views.take_delta()?;
        self.view_bytes = self.views.bytes();
        self.dead_bytes = 0;
        Ok(Delta {
            chunks,
            dead: std::mem::take(&mut self.dead),
            watermark: self.event_time.map(|(_, last)| no_later(last, self.dedup.clock())),
            appended_at: self.appended_at,
            waiting_since: self.waiting_since.take(),
            gap: self.gap.take(),
        })
    }

    /// All that was folded and every record, for the seal. More records may be folded afterwards.
    pub(crate) fn whole(&mut self) -> Result<Whole, FoldError> {
        let chunks = self.views.whole()?;
        let file = self.file.finish()?;
        conserved(|| "archive file".to_owned(), self.counts.records(), archive_file::rows(&file)?)?;
        Ok(Whole {
            chunks,
            checksum: crc32fast::hash(&file),
            file,
            counts: self.counts,
            event_time: self.event_time,
            last_record: self.last.as_ref().map(|(offset, payload)| (*offset, crc32fast::hash(payload))),
            dedup_clock: self.dedup.clock().max(self.dedup_clock),
        })
    }
}

/// A fold that is worked on off the runtime's threads, so that no step of it holds up other partitions.
///
/// The mutex is never locked: it only lets a task that holds the fold be shared between threads.
pub(crate) struct Workbench(Mutex<Option<EpochFold>>);

impl Workbench {
    pub(crate) fn new(fold: EpochFold) -> Self {
        Self(Mutex::new(Some(fold)))
    }

    /// # Errors
    /// If `work` failed, or broke off now or before: then the epoch must be taken over again.
    pub(crate) async fn run<T, F>(&mut self, work: F) -> Result<T, FoldError>
    where
        T: Send + 'static,
        F: FnOnce(&mut EpochFold) -> Result<T, FoldError> + Send + 'static,
    {
        let broken = |why: &str| FoldError::Broken(why.to_owned());
        let mut fold = self.held().take().ok_or_else(|| broken("an earlier step of it did not end"))?;
        let step = move || {
            let done = work(&mut fold);
            (fold, done)
        };
        let (fold, done) = offload(step).await.map_err(|error| broken(&error.to_string()))?;
        if done.is_ok() {
            *self.held() = Some(fold);
        }
        done
    }

    /// Replaces the fold by that of the next epoch.
    pub(crate) fn next(&mut self, catalog: &Catalog, source: &Arc<Source>, epoch: &Epoch) {
        let held = self.held();
        *held = held.take().map(|fold| fold.next(catalog, source, epoch));
    }

    fn held(&mut self) -> &mut Option<EpochFold> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(source: &Source, partition: Partition, records: &[Record]) -> Decoded {
    let payloads: Vec<(Offset, &[u8])> = records.iter().map(|record| (record.offset, &*record.payload)).collect();
    source.decode(partition, &payloads)
}
