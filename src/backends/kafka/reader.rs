//! Reads a partition from any offset, outside of every group.
//!
//! Readers are kept for a while after use: whoever reads on where one stopped gets what it has fetched ahead.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lamina_core::{
    ids::{Offset, Partition},
    log::{LogError, Record},
};
use rdkafka::{
    Offset as Place, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
};

use super::{
    client::{Logged, Profile, poll_now},
    offsets::{Offsets, is_out_of_range},
    record,
};

/// Readers kept for whoever goes on where they stopped.
const KEPT: usize = 4;
/// How long a read may go without getting anywhere.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing comes before it is looked whether offsets hold no record.
const QUIET: Duration = Duration::from_millis(20);
/// Between looks for what has arrived.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Readers {
    profile: Profile,
    idle: Mutex<Vec<Reader>>,
}

struct Reader {
    consumer: BaseConsumer<Logged>,
    topic: String,
    partition: Partition,
    /// Position after what was handed out.
    next: Offset,
    /// Where the log ended when that was last asked; before it there is something to read.
    end: Offset,
    /// Whether librdkafka's position is that of this assignment and not of one before.
    settled: bool,
}

impl Readers {
    pub(super) fn new(profile: &Profile) -> Self {
        Self { profile: profile.clone(), idle: Mutex::default() }
    }

    /// Blocking.
    pub(super) fn read(
        &self,
        offsets: &Offsets,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        let waiting = self.take(topic, partition, from);
        let mut reader = match waiting {
            Some(reader) if from < reader.end => reader,
            waiting => {
                let span = offsets.span(topic, partition)?;
                if !(span.start..=span.end).contains(&from) {
                    return Err(Offsets::out_of_range(topic, partition, from, span));
                }
                if from == span.end {
                    waiting.into_iter().for_each(|reader| self.keep(reader));
                    return Ok((Vec::new(), from));
                }
                let mut reader = match waiting {
                    Some(reader) => reader,
                    None => self.begin(topic, partition, from)?,
                };
                reader.end = span.end;
                reader
            }
        };
        let records = reader.read(&self.profile, offsets, max_bytes)?;
        let next = reader.next;
        self.keep(reader);
        Ok((records, next))
    }

    /// A reader that stands exactly there.
    fn take(&self, topic: &str, partition: Partition, from: Offset) -> Option<Reader> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle
            .iter()
            .position(|reader| reader.next == from && reader.partition == partition && reader.topic == topic)?;
        Some(idle.remove(found))
    }

    fn keep(&self, reader: Reader) {
        let oldest = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(reader);
            (idle.len() > KEPT).then(|| idle.remove(0))
        };
        drop(oldest);
    }

    /// Puts a reader at `from`.
    fn begin(&self, topic: &str, partition: Partition, from: Offset) -> Result<Reader, LogError> {
        let spare = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            (idle.len() >= KEPT).then(|| idle.remove(0))
        };
        let consumer = match spare {
            Some(spare) => spare.consumer,
            None => self.profile.make(&self.profile.reader(), self.profile.logged())?,
        };
        let mut place = TopicPartitionList::new();
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        let at = Place::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        place
            .add_partition_offset(topic, number, at)
            .and_then(|()| consumer.assign(&place))
            .map_err(|error| self.profile.error("reading", topic, &error))?;
        Ok(Reader { consumer, topic: topic.to_owned(), partition, next: from, end: from, settled: false })
    }
}

impl Reader {
    fn read(&mut self, profile: &Profile, offsets: &Offsets, max_bytes: usize) -> Result<Vec<Record>, LogError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut moved = Instant::now();
        let mut looked = moved;
        let mut trouble = None;
        while self.next < self.end && (records.is_empty() || bytes < max_bytes) {
            let polled = poll_now(&self.consumer).map(|message| message.map(|message| record(&message)));
            match polled {
                Some(Ok(read)) => {
                    if read.offset < self.next {
                        continue;
                    }
                    bytes += read.payload.len() + read.key.as_ref().map_or(0, |key| key.len());
                    self.next = read.offset + 1;
                    self.settled = true;
                    records.push(read);
                    moved = Instant::now();
                }
                Some(Err(error)) if is_out_of_range(&error) => {
                    let span = offsets.span(&self.topic, self.partition)?;
                    return Err(Offsets::out_of_range(&self.topic, self.partition, self.next, span));
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                        return Err(offsets.gone(&self.topic));
                    }
                    _ => trouble = Some(error),
                },
                None if looked.max(moved).elapsed() < QUIET => thread::sleep(PAUSE),
                None if self.pass_markers() => moved = Instant::now(),
                None if moved.elapsed() > PATIENCE && records.is_empty() => {
                    let why = trouble.map_or_else(|| "nothing came".to_owned(), |error| error.to_string());
                    let Self { topic, partition, next, .. } = self;
                    let place = format!("reading {topic} partition {partition} at {next}");
                    return Err(LogError::Unavailable(format!("{place} ({}): {why}", profile.brokers)));
                }
                None if moved.elapsed() > PATIENCE => break,
                None => looked = Instant::now(),
            }
        }
        Ok(records)
    }

    /// Goes past offsets that hold no record, such as the markers that end a transaction.
    fn pass_markers(&mut self) -> bool {
        if !self.settled {
            let (at, partition) = (i64::try_from(self.next), i32::try_from(self.partition));
            let place = (Place::Offset(at.unwrap_or(i64::MAX)), partition.unwrap_or(i32::MAX));
            self.settled = self.consumer.seek(&self.topic, place.1, place.0, PATIENCE).is_ok();
            return false;
        }
        let Ok(positions) = self.consumer.position() else { return false };
        let position = positions.elements().into_iter().find_map(|element| match element.offset() {
            Place::Offset(offset) => Offset::try_from(offset).ok(),
            _ => None,
        });
        match position {
            Some(position) if position > self.next => {
                self.next = position;
                true
            }
            _ => false,
        }
    }
}
