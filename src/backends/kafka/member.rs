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
//! - A revoked partition is let go only when the consumer released it, or after [`RELEASE`].
//! - The thread never stops polling for longer than [`STALL`] (and a seek), however slow the consumer is.
//! - It waits by the monotonic clock, and never inside librdkafka (see [`super::client::poll_now`]).

use std::{
    collections::BTreeSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lamina_core::log::{LogError, TopicPartition};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{
    client::Profile,
    delivery::{POLL, STALL, list, note},
    health::Health,
    line::{Command, Inside, Told},
    offsets::Offsets,
    parts::{Current, Part, Parts},
    rebalance::{Change, Rebalances},
};

/// How long a revocation waits to be released.
const RELEASE: Duration = Duration::from_secs(10);

pub(super) struct Member {
    pub(super) profile: Profile,
    pub(super) offsets: Arc<Offsets>,
    pub(super) line: Inside,
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) consumer: BaseConsumer<Rebalances>,
    pub(super) parts: Parts,
    pub(super) health: Health,
    pub(super) revoking: Option<Revoking>,
    pub(super) full_since: Option<Instant>,
    /// Whether everything is paused since the line stays full.
    pub(super) held: bool,
    pub(super) positions_at: Instant,
}

pub(super) struct Revoking {
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
        let consumer = subscribe(profile, group, topics, &line)?;
        let member = Self {
            profile: profile.clone(),
            offsets: Arc::clone(offsets),
            line,
            group: group.to_owned(),
            topics: topics.to_vec(),
            consumer,
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
                    match subscribe(&self.profile, &self.group, &self.topics, &self.line) {
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
            self.line.rest(POLL);
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

fn subscribe(
    profile: &Profile,
    group: &str,
    topics: &[String],
    line: &Inside,
) -> Result<BaseConsumer<Rebalances>, LogError> {
    let mut consumer: BaseConsumer<Rebalances> =
        profile.make(&profile.member(group), Rebalances::new(profile.logged()))?;
    consumer.set_nonempty_callback(line.waker());
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    match consumer.subscribe(&topics) {
        Ok(()) => Ok(consumer),
        Err(error) => Err(LogError::Refused(format!("group {group} cannot subscribe to {topics:?}: {error}"))),
    }
}
