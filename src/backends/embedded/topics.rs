//! Topics, their partitions' ends, and records, as they lie in the database.
//!
//! ```text
//! meta     "topic" name                → number, id, partitions
//!          "topics"                    → how many numbers are taken
//!          "tail" number partition     → where the partition ends, and its last append time
//! records  number partition offset     → append time (8 bytes, little-endian), length of the key + 1 or 0 if there is
//!                                        none (4 bytes, little-endian), key, payload
//! ```

use bytes::Bytes;
use fjall::Slice;
use lamina_core::{
    Micros, Offset, Partition,
    ids::new_id,
    log::{Append, LogError, Record, Span, Topic},
};
use serde::{Deserialize, Serialize};

use super::engine::{Db, Failure, Key, Parts, Space, Tx, now, pack};

const RECORD_HEAD: usize = 12;

/// A topic as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) number: u32,
    id: String,
    pub(super) partitions: u32,
}

impl Stored {
    pub(super) fn topic(&self, name: &str) -> Topic {
        Topic { name: name.to_owned(), id: self.id.clone(), partitions: self.partitions }
    }
}

/// Where a partition ends.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Tail {
    end: Offset,
    appended_at: Micros,
}

fn topic_key(name: &str) -> Vec<u8> {
    Key::default().text("topic").text(name).done()
}

fn tail_key(number: u32, partition: Partition) -> Vec<u8> {
    Key::default().text("tail").u32(number).u32(partition).done()
}

fn record_key(number: u32, partition: Partition, offset: Offset) -> Vec<u8> {
    Key::default().u32(number).u32(partition).u64(offset).done()
}

fn packed(what: &str, head: &impl Serialize) -> Result<Vec<u8>, Failure> {
    pack(head, None, &[]).map_err(|why| Failure::Corrupt { what: what.to_owned(), why })
}

pub(super) fn find(db: &Db, name: &str) -> Result<Option<Stored>, Failure> {
    Ok(db.value(Space::Meta, &topic_key(name))?.map(|value| value.head))
}

/// The topic of that name, made if there is none.
pub(super) fn ensure(tx: &mut Tx<'_>, name: &str, partitions: u32) -> Result<Stored, Failure> {
    let key = topic_key(name);
    if let Some(stored) = tx.value(Space::Meta, &key)? {
        return Ok(stored.head);
    }
    let counter = Key::default().text("topics").done();
    let number = tx.value::<u32>(Space::Meta, &counter)?.map_or(0, |value| value.head);
    let id = new_id().simple().to_string();
    let stored = Stored { number, id, partitions };
    tx.put(Space::Meta, key, packed("topic", &stored)?);
    tx.put(Space::Meta, counter, packed("number of topics", &(number + 1))?);
    Ok(stored)
}

/// Records on their way into the log, laid out but for their append time.
pub(super) struct Laid(Vec<(Partition, Vec<u8>)>);

/// Lays records out; `spread` numbers the keyless ones, so that they go to all partitions in turn.
pub(super) fn lay_out(records: Vec<Append>, partitions: u32, mut spread: impl FnMut() -> u32) -> Laid {
    let lay = |record: Append| {
        let partition = record.key.as_ref().map_or_else(&mut spread, |key| crc32fast::hash(key)) % partitions;
        let key = record.key.as_deref();
        let mut bytes = vec![0; 8];
        bytes.reserve_exact(4 + key.map_or(0, <[u8]>::len) + record.payload.len());
        // A record's size is bounded far below 4 GiB before it comes here.
        let length = key.map_or(0, |key| key.len() as u32 + 1);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(key.unwrap_or_default());
        bytes.extend_from_slice(&record.payload);
        (partition, bytes)
    };
    Laid(records.into_iter().map(lay).collect())
}

/// Puts records behind the ends of their partitions.
pub(super) fn append(tx: &mut Tx<'_>, number: u32, Laid(records): Laid) -> Result<Vec<(Partition, Offset)>, Failure> {
    let mut tails: std::collections::BTreeMap<Partition, Tail> = Default::default();
    let (mut placed, now) = (Vec::with_capacity(records.len()), now());
    for (partition, mut bytes) in records {
        let tail = match tails.entry(partition) {
            std::collections::btree_map::Entry::Occupied(tail) => tail.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let tail = tx.value::<Tail>(Space::Meta, &tail_key(number, partition))?;
                vacant.insert(tail.map_or_else(Tail::default, |value| value.head))
            }
        };
        tail.appended_at = tail.appended_at.max(now);
        bytes[..8].copy_from_slice(&tail.appended_at.to_le_bytes());
        tx.put(Space::Records, record_key(number, partition, tail.end), bytes);
        placed.push((partition, tail.end));
        tail.end += 1;
    }
    for (partition, tail) in tails {
        tx.put(Space::Meta, tail_key(number, partition), packed("end of a partition", &tail)?);
    }
    Ok(placed)
}

pub(super) fn span(db: &Db, number: u32, partition: Partition) -> Result<Span, Failure> {
    let tail = db.value::<Tail>(Space::Meta, &tail_key(number, partition))?;
    Ok(Span { start: 0, end: tail.map_or(0, |value| value.head.end) })
}

/// Up to about `max_bytes` of records, at least one if there is any, and the position after them.
pub(super) fn read(
    db: &Db,
    number: u32,
    partition: Partition,
    from: Offset,
    max_bytes: usize,
) -> Result<(Vec<Record>, Offset), Failure> {
    let (mut records, mut next, mut bytes) = (Vec::new(), from, 0);
    let (first, last) = (record_key(number, partition, from), record_key(number, partition, Offset::MAX));
    for entry in db.scan(Space::Records, first, last) {
        let (key, value) = entry?;
        let record = record(&key, &value)?;
        bytes += value.len();
        if bytes > max_bytes && !records.is_empty() {
            break;
        }
        next = record.offset + 1;
        records.push(record);
    }
    Ok((records, next))
}

/// The first offset appended at or after `at`, or the end: append times never go back within a partition.
pub(super) fn offset_at(db: &Db, number: u32, partition: Partition, at: Micros) -> Result<Offset, Failure> {
    let Span { start: mut low, end: mut high } = span(db, number, partition)?;
    while low < high {
        let middle = low + (high - low) / 2;
        let key = record_key(number, partition, middle);
        let value = db.get(Space::Records, &key)?.ok_or_else(|| corrupt(&key, "it is missing within its partition"))?;
        if record(&key, &value)?.appended_at < at {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn record(key: &[u8], value: &Slice) -> Result<Record, Failure> {
    decode(key, value).ok_or_else(|| corrupt(key, "it is cut off"))
}

fn decode(key: &[u8], value: &[u8]) -> Option<Record> {
    let offset = Parts(key.get(8..)?).u64()?;
    let (head, rest) = value.split_at_checked(RECORD_HEAD)?;
    let (at, length) = head.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let (key, payload) = rest.split_at_checked(length.saturating_sub(1))?;
    let key = (length > 0).then(|| Bytes::copy_from_slice(key));
    Some(Record { offset, appended_at: Micros::from_le_bytes(*at), key, payload: Bytes::copy_from_slice(payload) })
}

fn corrupt(key: &[u8], why: &str) -> Failure {
    Failure::Corrupt { what: format!("record {}", key.escape_ascii()), why: why.to_owned() }
}

/// [`LogError::OutOfRange`] unless `wanted` is in the log or at its end.
pub(super) fn within(topic: &str, partition: Partition, wanted: Offset, span: Span) -> Result<(), LogError> {
    let Span { start, end } = span;
    if (start..=end).contains(&wanted) {
        return Ok(());
    }
    Err(LogError::OutOfRange { topic: topic.to_owned(), partition, wanted, start, end })
}
