//! The thread of one group member: the only one that polls its consumer.
//!
//! # Group protocol
//! `cooperative-sticky` over the classic protocol: a rebalance takes away only what really moves, so `Revoked` and
//! `Assigned` name exactly that, and the other partitions are read on. (Eager strategies would revoke everything at every
//! rebalance, and each takeover rewinds.) A partition that was assigned is *attached* to librdkafka only once the consumer
//! said where to begin, so that nothing is fetched from a place that nobody asked for.
//!
//! # Invariants
//! - Nothing is told of a partition that has no flow: not before its start, nor after its revocation.
//! - Each message is collected at or after the flow's own position, which is where it begins again after every pause: nothing
//!   rests on what librdkafka keeps or purges meanwhile.
//! - A revoked partition is let go only when the consumer released it, or after [`RELEASE`].
//! - The thread never stops polling for longer than [`STALL`], however slow the consumer is.

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lamina_core::{
    ids::{Offset, Partition},
    log::{LogError, TopicPartition},
};
use rdkafka::{
    Offset as Place, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, KafkaResult},
};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{
    client::Profile,
    health::Health,
    line::{Command, Inside, Told},
    offsets::Offsets,
    parts::{Current, Part, Parts},
    rebalance::{Change, Rebalances},
};

/// How long a revocation waits to be released.
const RELEASE: Duration = Duration::from_secs(10);
/// How long a full line may keep the thread from polling; afterwards it polls with every partition paused.
const STALL: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// How long a seek may take: it is answered locally.
const SEEK: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);
/// How often positions are looked at, for offsets that hold no record.
const POSITIONS: Duration = Duration::from_millis(100);
/// What one turn may take in before it tells it.
const TURN_BYTES: usize = 2 << 20;
const TURN_MESSAGES: usize = 10_000;

pub(super) struct Member {
    pub(super) profile: Profile,
    pub(super) offsets: Arc<Offsets>,
    pub(super) line: Inside,
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) consumer: BaseConsumer<Rebalances>,
    pub(super) parts: Parts,
    pub(super) health: Health,
    revoking: Option<Revoking>,
    full_since: Option<Instant>,
    /// Whether everything is paused since the line stays full.
    held: bool,
    positions_at: Instant,
}

struct Revoking {
    all: Vec<TopicPartition>,
    unreleased: BTreeSet<TopicPartition>,
    until: Instant,
}

enum End {
    Left(Option<oneshot::Sender<()>>),
    /// librdkafka's consumer cannot go on.
    Fatal(KafkaError),
}

impl Member {
    pub(super) fn spawn(
        profile: &Profile,
        offsets: &Arc<Offsets>,
        line: Inside,
        group: &str,
        topics: &[String],
    ) -> Result<(), LogError> {
        let member = Self {
            profile: profile.clone(),
            offsets: Arc::clone(offsets),
            line,
            group: group.to_owned(),
            topics: topics.to_vec(),
            consumer: subscribe(profile, group, topics)?,
            parts: Parts::default(),
            health: Health::default(),
            revoking: None,
            full_since: None,
            held: false,
            positions_at: Instant::now(),
        };
        let thread = thread::Builder::new().name("kafka-member".into()).spawn(move || member.run());
        thread.map(drop).map_err(|error| LogError::Unavailable(format!("no thread for a consumer: {error}")))
    }

    fn run(mut self) {
        loop {
            match self.serve() {
                End::Left(reply) => {
                    self.consumer.context().leave();
                    // Dropping it leaves the group.
                    drop(self.consumer);
                    debug!(group = self.group, "left the group");
                    if let Some(reply) = reply {
                        // Nobody waits any more: it took too long.
                        let _ = reply.send(());
                    }
                    return;
                }
                End::Fatal(error) => {
                    warn!(group = self.group, %error, "kafka consumer cannot go on and joins afresh");
                    self.lose_everything();
                    self.line.tell(Told::Trouble(self.profile.error("consuming", "", &error)));
                    thread::sleep(STALL);
                    match subscribe(&self.profile, &self.group, &self.topics) {
                        Ok(consumer) => {
                            self.consumer.context().leave();
                            self.consumer = consumer;
                        }
                        Err(error) => return self.line.tell(Told::Trouble(error)),
                    }
                }
            }
        }
    }

    fn serve(&mut self) -> End {
        loop {
            for command in self.line.commands() {
                match command {
                    Command::Leave(reply) => return End::Left(reply),
                    command => self.obey(command),
                }
            }
            self.end_revocation();
            if !self.has_room() {
                continue;
            }
            self.begin_flows();
            if let Err(error) = self.collect() {
                return End::Fatal(error);
            }
            self.follow_positions();
            self.parts.flush(&self.line);
            self.rebalance();
            self.look_after();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Deliver((topic, partition), from, flow) => {
                if let Some(part) = self.deliverable(&(topic, partition)) {
                    part.flow = Some(Current::new(flow, from));
                }
            }
            Command::Hold((topic, partition)) => {
                if let Some(part) = self.parts.get_mut(&topic, partition) {
                    part.flow = None;
                    if part.attached {
                        note(
                            "pausing",
                            list([(topic.as_str(), partition, None)]).and_then(|it| self.consumer.pause(&it)),
                        );
                    }
                }
            }
            Command::Release(partitions) => {
                if let Some(revoking) = &mut self.revoking {
                    for partition in &partitions {
                        revoking.unreleased.remove(partition);
                    }
                }
            }
            Command::Commit(positions) => {
                let owned = positions.iter().filter(|(partition, _)| self.parts.contains(partition));
                let places = list(owned.map(|((topic, partition), at)| (topic.as_str(), *partition, Some(*at))));
                note(
                    "noting positions",
                    places.and_then(|places| match places.count() {
                        0 => Ok(()),
                        _ => self.consumer.commit(&places, CommitMode::Async),
                    }),
                );
            }
            Command::Leave(_) => {}
        }
    }

    /// The partition, unless it is not or no longer ours to deliver.
    fn deliverable(&mut self, partition: &TopicPartition) -> Option<&mut Part> {
        let leaving = self.revoking.as_ref().is_some_and(|revoking| revoking.all.contains(partition));
        if leaving { None } else { self.parts.get_mut(&partition.0, partition.1) }
    }

    /// Whether to poll: not while the line is full, unless that lasts.
    fn has_room(&mut self) -> bool {
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
    fn begin_flows(&mut self) {
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

    /// Takes messages in until none is waiting.
    fn collect(&mut self) -> KafkaResult<()> {
        let (mut wait, mut bytes) = (POLL, 0);
        for _ in 0..TURN_MESSAGES {
            let problem = match self.consumer.poll(wait) {
                None => break,
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
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Goes past offsets that hold no record, such as the markers that end a transaction.
    fn follow_positions(&mut self) {
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

    fn rebalance(&mut self) {
        while let Some(change) = self.consumer.context().take() {
            if let Some(before) = self.revoking.take() {
                self.let_go(&before.all);
            }
            match change {
                Change::Assign(partitions) => self.assigned(partitions),
                Change::Revoke(partitions) => self.revoked(partitions),
            }
        }
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        info!(group = self.group, ?partitions, "assigned");
        // Completes the rebalance; partitions are attached when they start.
        note("assigning", self.consumer.incremental_assign(&TopicPartitionList::new()));
        let fresh: Vec<_> = partitions.into_iter().filter(|partition| !self.parts.contains(partition)).collect();
        fresh.iter().for_each(|partition| self.parts.insert(partition));
        if !fresh.is_empty() {
            self.line.tell(Told::Assigned(fresh));
        }
    }

    fn revoked(&mut self, partitions: Vec<TopicPartition>) {
        let lost = self.consumer.assignment_lost();
        info!(group = self.group, ?partitions, lost, "revoked");
        let ours: Vec<_> = partitions.into_iter().filter(|partition| self.parts.contains(partition)).collect();
        for (topic, partition) in &ours {
            if let Some(part) = self.parts.get_mut(topic, *partition) {
                part.flow = None;
            }
        }
        if lost || ours.is_empty() {
            self.let_go(&ours);
            if !ours.is_empty() {
                self.line.tell(Told::Lost(ours));
                self.health.doubt();
            }
            return;
        }
        self.line.tell(Told::Revoked(ours.clone()));
        let unreleased = ours.iter().cloned().collect();
        self.revoking = Some(Revoking { all: ours, unreleased, until: Instant::now() + RELEASE });
    }

    /// Lets go of what was revoked once it is released, or lost meanwhile, or the deadline has passed.
    fn end_revocation(&mut self) {
        let Some(revoking) = &self.revoking else { return };
        let late = Instant::now() >= revoking.until;
        if late {
            warn!(group = self.group, partitions = ?revoking.unreleased, "not released within {RELEASE:?}, let go");
        }
        if (late || revoking.unreleased.is_empty() || self.consumer.assignment_lost())
            && let Some(revoking) = self.revoking.take()
        {
            self.let_go(&revoking.all);
        }
    }

    /// Ends the partitions' part in this member. The call is made even for none: the rebalance waits for it.
    fn let_go(&mut self, partitions: &[TopicPartition]) {
        let mut attached = Vec::new();
        for partition in partitions {
            if self.parts.remove(partition).is_some_and(|part| part.attached) {
                attached.push((partition.0.as_str(), partition.1, None));
            }
        }
        note("unassigning", list(attached).and_then(|attached| self.consumer.incremental_unassign(&attached)));
    }

    fn lose_everything(&mut self) {
        // What is being revoked was taken from the consumer already.
        if let Some(revoking) = self.revoking.take() {
            revoking.all.iter().for_each(|partition| drop(self.parts.remove(partition)));
        }
        let lost = self.parts.names();
        self.parts = Parts::default();
        if !lost.is_empty() {
            self.line.tell(Told::Lost(lost));
        }
    }
}

fn subscribe(profile: &Profile, group: &str, topics: &[String]) -> Result<BaseConsumer<Rebalances>, LogError> {
    let consumer: BaseConsumer<Rebalances> = profile.make(&profile.member(group), Rebalances::default())?;
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    match consumer.subscribe(&topics) {
        Ok(()) => Ok(consumer),
        Err(error) => Err(LogError::Refused(format!("group {group} cannot subscribe to {topics:?}: {error}"))),
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

fn list<'a>(places: impl IntoIterator<Item = (&'a str, Partition, Option<Offset>)>) -> KafkaResult<TopicPartitionList> {
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
fn note(doing: &str, result: KafkaResult<()>) {
    if let Err(error) = result {
        debug!(%error, "kafka member: {doing} failed");
    }
}
