//! How a member takes records in: where librdkafka is put, what is collected, and how fullness holds it back.
//!
//! Each message is collected at or after its flow's own position, and every pause ends with a seek to that position. So
//! nothing rests on what librdkafka keeps or purges when a partition is paused, sought or attached again.

use std::time::{Duration, Instant};

use lamina_core::ids::{Offset, Partition};
use rdkafka::{
    Offset as Place, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
};
use tracing::debug;

use super::{client::poll_now, member::Member, rebalance::Rebalances};

/// How long a full line may keep the thread from polling; afterwards it polls with every partition paused.
pub(super) const STALL: Duration = Duration::from_secs(1);
/// How long the thread waits at most for what librdkafka has to say.
pub(super) const POLL: Duration = Duration::from_millis(20);
/// How long a seek may take: it is answered locally.
const SEEK: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);
/// How often positions are looked at, for offsets that hold no record.
const POSITIONS: Duration = Duration::from_millis(100);
/// What one turn may take in before it tells it.
const TURN_BYTES: usize = 2 << 20;
const TURN_MESSAGES: usize = 10_000;

impl Member {
    /// Whether to poll: not while the line is full, unless that lasts.
    pub(super) fn has_room(&mut self) -> bool {
        if !self.line.is_full() {
            (self.full_since, self.held) = (None, false);
            return true;
        }
        if self.full_since.get_or_insert_with(Instant::now).elapsed() < STALL {
            self.line.wait(POLL);
            return false;
        }
        if !self.held {
            self.held = true;
            self.pause_all();
        }
        true
    }

    fn pause_all(&mut self) {
        let mut attached = Vec::new();
        for (topic, partition, part) in self.parts.iter_mut() {
            if part.attached {
                attached.push((topic.to_owned(), partition));
            }
            if let Some(flow) = &mut part.flow {
                (flow.running, flow.tried) = (false, None);
            }
        }
        let names = attached.iter().map(|(topic, partition)| (topic.as_str(), *partition, None));
        note("pausing", list(names).and_then(|names| self.consumer.pause(&names)));
    }

    /// Puts librdkafka where each flow that does not run yet wants to go on.
    pub(super) fn begin_flows(&mut self) {
        if self.held {
            return;
        }
        let revoking = self.revoking.is_some();
        for (topic, partition, part) in self.parts.iter_mut() {
            let Some(flow) = part.flow.as_mut().filter(|flow| !flow.running) else { continue };
            if flow.tried.is_some_and(|at| at.elapsed() < RETRY) {
                continue;
            }
            flow.tried = Some(Instant::now());
            match place(&self.consumer, topic, partition, flow.next, part.attached, revoking) {
                Ok(settled) => {
                    flow.running = true;
                    (part.attached, part.settled) = (true, settled);
                }
                Err(error) => debug!(topic, partition, at = flow.next, %error, "not yet begun"),
            }
        }
    }

    /// Takes messages in until none is waiting, or until there is enough to tell.
    pub(super) fn collect(&mut self) -> KafkaResult<()> {
        let mut bytes = 0;
        for _ in 0..TURN_MESSAGES {
            let problem = match poll_now(&self.consumer) {
                None => return Ok(()),
                Some(Ok(message)) => {
                    bytes += self.parts.collect(&message, &self.line);
                    None
                }
                Some(Err(error)) => Some(error),
            };
            if let Some(error) = problem {
                self.problem(error)?;
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        self.line.wake();
        Ok(())
    }

    /// Goes past offsets that hold no record, such as the markers that end a transaction.
    pub(super) fn follow_positions(&mut self) {
        if self.held || self.positions_at.elapsed() < POSITIONS {
            return;
        }
        self.positions_at = Instant::now();
        let Ok(positions) = self.consumer.position() else { return };
        for element in positions.elements() {
            let Ok(partition) = Partition::try_from(element.partition()) else { continue };
            let Some(part) = self.parts.get_mut(element.topic(), partition) else { continue };
            let Some(flow) = part.flow.as_mut().filter(|flow| flow.running) else { continue };
            if !part.settled {
                // Nothing came yet, so a seek to the same place repeats nothing; after it the position is to be trusted.
                if flow.tried.is_some_and(|at| at.elapsed() >= RETRY) {
                    part.settled =
                        self.consumer.seek(element.topic(), element.partition(), at(flow.next), SEEK).is_ok();
                }
                continue;
            }
            if let Place::Offset(position) = element.offset() {
                flow.pass(Offset::try_from(position).unwrap_or(0));
            }
        }
    }
}

/// Makes librdkafka fetch the partition from `from`, and says whether its position is already that of this place.
fn place(
    consumer: &BaseConsumer<Rebalances>,
    topic: &str,
    partition: Partition,
    from: Offset,
    attached: bool,
    revoking: bool,
) -> KafkaResult<bool> {
    let (name, there) = (list([(topic, partition, None)])?, list([(topic, partition, Some(from))])?);
    if attached {
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        match consumer.seek(topic, number, at(from), SEEK) {
            Ok(()) => {
                consumer.resume(&name)?;
                return Ok(true);
            }
            // An unassign would be taken for the answer to the revocation.
            Err(error) if revoking => return Err(error),
            // After an error of the partition, such as an offset that is gone, librdkafka does not seek any more.
            Err(_) => consumer.incremental_unassign(&name)?,
        }
    }
    consumer.incremental_assign(&there)?;
    consumer.resume(&name)?;
    Ok(false)
}

pub(super) fn list<'a>(
    places: impl IntoIterator<Item = (&'a str, Partition, Option<Offset>)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in places {
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        list.add_partition_offset(topic, partition, offset.map_or(Place::Invalid, at))?;
    }
    Ok(list)
}

fn at(offset: Offset) -> Place {
    Place::Offset(i64::try_from(offset).unwrap_or(i64::MAX))
}

/// For calls whose failure shows elsewhere: in an event, or in what is tried again.
pub(super) fn note(doing: &str, result: KafkaResult<()>) {
    if let Err(error) = result {
        debug!(%error, "kafka member: {doing} failed");
    }
}
