//! Laws of consumer groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    DEADLINE,
    log::{keyed, record},
};
use crate::{
    ids::{Offset, Partition},
    log::{Consumer, Event, Log, LogError, TopicPartition},
};

const WAIT: Duration = Duration::from_millis(100);
/// How long nothing may come before it is taken that nothing will.
const QUIET: Duration = Duration::from_millis(1500);

pub(super) async fn laws(log: &dyn Log, fresh: &str) {
    a_lone_member_gets_every_partition_and_nothing_before_start(log, &format!("{fresh}-lone")).await;
    delivery_begins_wherever_start_says_again_and_again(log, &format!("{fresh}-start")).await;
    starting_outside_the_log_fails_that_partition_only(log, &format!("{fresh}-beyond")).await;
    a_pause_loses_and_repeats_nothing(log, &format!("{fresh}-pause")).await;
    groups_do_not_disturb_each_other(log, &format!("{fresh}-groups")).await;
    partitions_move_to_a_second_member_and_back(log, &format!("{fresh}-share")).await;
}

/// A consumer with what it was told, held against the protocol.
struct Member {
    consumer: Box<dyn Consumer>,
    /// Assigned and neither revoked nor lost.
    owned: BTreeSet<TopicPartition>,
    paused: BTreeSet<TopicPartition>,
    /// Where the next record of a started partition must be.
    next: BTreeMap<TopicPartition, Offset>,
    /// Every payload delivered, with its place.
    seen: Vec<(TopicPartition, Offset, String)>,
    /// Partitions of [`Event::Failed`].
    failed: Vec<(TopicPartition, LogError)>,
}

impl Member {
    async fn join(log: &dyn Log, group: &str, topic: &str) -> Self {
        let consumer = log.join(group, &[topic.to_owned()]).await.expect("join");
        let (owned, paused, next) = Default::default();
        Self { consumer, owned, paused, next, seen: Vec::new(), failed: Vec::new() }
    }

    /// Takes one event in, checks it and answers a revocation. Returns partitions newly assigned, `None` if idle.
    async fn step(&mut self) -> Option<Vec<TopicPartition>> {
        match self.consumer.next(WAIT).await {
            Ok(Event::Assigned(partitions)) => {
                for partition in &partitions {
                    assert!(self.owned.insert(partition.clone()), "{partition:?} was assigned twice");
                }
                return Some(partitions);
            }
            Ok(Event::Revoked(partitions)) => {
                self.forget(&partitions);
                self.consumer.release(partitions).await.expect("release");
            }
            Ok(Event::Lost(partitions)) => self.forget(&partitions),
            Ok(Event::Records { topic, partition, records, next }) => {
                let from = (topic, partition);
                assert!(self.owned.contains(&from), "records of {from:?}, which is not assigned");
                assert!(!self.paused.contains(&from), "records of {from:?}, which is paused");
                let expected = *self.next.get(&from).unwrap_or_else(|| panic!("records of {from:?} before its start"));
                for (record, offset) in records.iter().zip(expected..) {
                    assert_eq!(record.offset, offset, "records of {from:?} come in order, without gap or repetition");
                    let text = String::from_utf8_lossy(&record.payload).into_owned();
                    self.seen.push((from.clone(), offset, text));
                }
                assert_eq!(next, expected + records.len() as Offset, "next of {from:?} is past the last record");
                self.next.insert(from, next);
            }
            Ok(Event::Failed { topic, partition, error }) => self.failed.push(((topic, partition), error)),
            Ok(Event::Idle) => return None,
            Err(LogError::Unavailable(_)) => {}
            Err(error) => panic!("consumer: {error}"),
        }
        Some(Vec::new())
    }

    fn forget(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            assert!(self.owned.remove(partition), "{partition:?} was taken away but never assigned");
            self.paused.remove(partition);
            self.next.remove(partition);
        }
    }

    async fn start(&mut self, partition: TopicPartition, offset: Offset) {
        self.next.insert(partition.clone(), offset);
        self.consumer.start(partition, offset).await.expect("start");
    }

    /// Steps until `done`; newly assigned partitions are not started.
    async fn until(&mut self, law: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < DEADLINE, "not seen within {DEADLINE:?}: {law}");
            self.step().await;
        }
    }

    /// Steps until nothing came for a while.
    async fn until_quiet(&mut self) {
        let begun = Instant::now();
        let mut heard = begun;
        while heard.elapsed() < QUIET {
            assert!(begun.elapsed() < DEADLINE, "not seen within {DEADLINE:?}: Idle when nothing comes");
            if self.step().await.is_some() {
                heard = Instant::now();
            }
        }
    }

    fn payloads(&self) -> Vec<&str> {
        self.seen.iter().map(|(_, _, payload)| payload.as_str()).collect()
    }
}

/// A topic of one partition with records `0..count`, and a member that was given it.
async fn alone(log: &dyn Log, topic: &str, count: usize) -> (Member, TopicPartition) {
    log.ensure_topic(topic, 1).await.expect("ensure_topic");
    log.append(topic, (0..count).map(|i| record(i.to_string())).collect()).await.expect("append");
    let mut member = Member::join(log, topic, topic).await;
    member.until("a lone member is assigned the partition", |member| member.owned.len() == 1).await;
    (member, (topic.to_owned(), 0))
}

async fn a_lone_member_gets_every_partition_and_nothing_before_start(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 5).await.expect("ensure_topic");
    let records = (0..100).map(|i| keyed(&i.to_string(), i.to_string())).collect();
    log.append(topic, records).await.expect("append");
    let mut member = Member::join(log, topic, topic).await;
    member.until("a lone member is assigned all 5 partitions", |member| member.owned.len() == 5).await;
    member.until_quiet().await;
    assert!(member.seen.is_empty(), "nothing is delivered before start");
    for partition in member.owned.clone() {
        member.start(partition, 0).await;
    }
    member.until("all 100 records are delivered", |member| member.seen.len() == 100).await;
    member.until_quiet().await;
    assert_eq!(member.seen.len(), 100, "and nothing is delivered twice");
    let position = (*member.next.first_key_value().expect("a partition").0).clone();
    member.consumer.commit(vec![(position, 1)]).await.expect("commit");
    let fresh = log.append(topic, vec![record("fresh")]).await.expect("append");
    member.until("a record appended later is delivered", |member| member.seen.len() == 101).await;
    assert_eq!(member.seen[100].1, fresh[0].1, "at its offset");
    member.consumer.leave().await.expect("leave");
}

async fn delivery_begins_wherever_start_says_again_and_again(log: &dyn Log, topic: &str) {
    let (mut member, partition) = alone(log, topic, 300).await;
    for from in [250, 0, 17, 299, 300, 120] {
        member.seen.clear();
        member.start(partition.clone(), from).await;
        let count = 300 - from as usize;
        member.until("records up to the end are delivered", |member| member.seen.len() >= count).await;
        if from % 2 == 1 {
            member.until_quiet().await;
        }
        let expected: Vec<_> = (from..300).map(|i| i.to_string()).collect();
        assert_eq!(member.payloads(), expected, "from {from} on, once each");
    }
    member.consumer.leave().await.expect("leave");
}

async fn starting_outside_the_log_fails_that_partition_only(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 2).await.expect("ensure_topic");
    let mut member = Member::join(log, topic, topic).await;
    member.until("both partitions are assigned", |member| member.owned.len() == 2).await;
    member.start((topic.to_owned(), 0), 1000).await;
    member.start((topic.to_owned(), 1), 0).await;
    member.until("starting beyond the end is Failed", |member| !member.failed.is_empty()).await;
    let (partition, error) = &member.failed[0];
    assert_eq!(partition.1, 0, "the partition that cannot be read is named");
    assert!(matches!(error, LogError::OutOfRange { .. }), "starting beyond the end is OutOfRange, was {error}");
    let begun = Instant::now();
    while member.seen.is_empty() {
        assert!(begun.elapsed() < DEADLINE, "the other partition goes on");
        log.append(topic, (0..20).map(|i| keyed(&i.to_string(), "x".into())).collect()).await.expect("append");
        member.step().await;
    }
    member.start((topic.to_owned(), 0), 0).await;
    let first = |member: &Member| member.seen.iter().any(|(partition, _, _)| partition.1 == 0);
    member.until("a failed partition can be started again", first).await;
    member.consumer.leave().await.expect("leave");
}

async fn a_pause_loses_and_repeats_nothing(log: &dyn Log, topic: &str) {
    let (mut member, partition) = alone(log, topic, 2000).await;
    member.start(partition.clone(), 0).await;
    for round in 0..4 {
        let before = member.seen.len();
        let more = |member: &Member| member.seen.len() > before || member.seen.len() >= 2000;
        member.until("records are delivered between pauses", more).await;
        member.consumer.pause(partition.clone()).await.expect("pause");
        member.paused.insert(partition.clone());
        if round < 2 {
            log.append(topic, (0..10).map(|i| record(format!("{round}:{i}"))).collect()).await.expect("append");
            member.until_quiet().await;
        }
        member.paused.clear();
        member.consumer.resume(partition.clone()).await.expect("resume");
    }
    member.until("all records are delivered after the pauses", |member| member.seen.len() >= 2020).await;
    member.until_quiet().await;
    assert_eq!(member.seen.len(), 2020, "each once");
    member.consumer.leave().await.expect("leave");
}

async fn groups_do_not_disturb_each_other(log: &dyn Log, topic: &str) {
    let (mut first, partition) = alone(log, topic, 10).await;
    let mut second = Member::join(log, &format!("{topic}-second"), topic).await;
    second.until("another group is assigned the partition too", |member| member.owned.len() == 1).await;
    first.start(partition.clone(), 0).await;
    second.start(partition, 5).await;
    first.until("the first group reads all", |member| member.seen.len() == 10).await;
    second.until("the second group reads from where it began", |member| member.seen.len() == 5).await;
    first.consumer.leave().await.expect("leave");
    second.consumer.leave().await.expect("leave");
}

/// Two members as two workers would run: each goes on where the ledger, here `at`, says.
struct Pair {
    members: Vec<Member>,
    at: BTreeMap<TopicPartition, Offset>,
}

impl Pair {
    /// Steps both until `done`, starting what is assigned, and checks that no partition has two owners.
    async fn until(&mut self, law: &str, done: impl Fn(&[Member]) -> bool) {
        let begun = Instant::now();
        while !done(&self.members) {
            let owned: Vec<_> = self.members.iter().map(|member| member.owned.clone()).collect();
            assert!(begun.elapsed() < DEADLINE, "not seen within {DEADLINE:?}: {law}; owned {owned:?}");
            for member in &mut self.members {
                let assigned = member.step().await.unwrap_or_default();
                self.at.extend(member.next.iter().map(|(partition, next)| (partition.clone(), *next)));
                for partition in assigned {
                    let from = self.at.get(&partition).copied().unwrap_or(0);
                    member.start(partition, from).await;
                }
            }
            if let [first, second] = &self.members[..] {
                let both: Vec<_> = first.owned.intersection(&second.owned).collect();
                assert!(both.is_empty(), "{both:?} are assigned to two members at once");
            }
        }
    }
}

async fn partitions_move_to_a_second_member_and_back(log: &dyn Log, topic: &str) {
    log.ensure_topic(topic, 4).await.expect("ensure_topic");
    let batch = |round: usize| (0..200).map(|i| keyed(&i.to_string(), format!("{round}:{i}"))).collect::<Vec<_>>();
    let total = |members: &[Member]| members.iter().map(|member| member.seen.len()).sum::<usize>();
    let mut pair = Pair { members: vec![Member::join(log, topic, topic).await], at: BTreeMap::new() };
    log.append(topic, batch(0)).await.expect("append");
    pair.until("the first member has all partitions and reads", |members| total(members) == 200).await;

    pair.members.push(Member::join(log, topic, topic).await);
    log.append(topic, batch(1)).await.expect("append");
    let shared = |members: &[Member]| members.iter().all(|member| member.owned.len() == 2);
    pair.until("4 partitions are shared evenly by 2 members", shared).await;
    pair.until("both together read on", |members| total(members) >= 400).await;
    log.append(topic, batch(2)).await.expect("append");
    pair.until("each reads its own", |members| total(members) >= 600).await;
    assert!(pair.members.iter().all(|member| !member.seen.is_empty()), "both members got records");

    let mut first = pair.members.remove(0);
    first.consumer.leave().await.expect("leave");
    log.append(topic, batch(3)).await.expect("append");
    let alone = |members: &[Member]| members[0].owned.len() == 4;
    pair.until("the member that stays gets all partitions", alone).await;
    let done = |members: &[Member]| first.seen.len() + total(members) >= 800;
    pair.until("and reads what the other left", done).await;
    let places: BTreeSet<(Partition, Offset)> = first
        .seen
        .iter()
        .chain(&pair.members[0].seen)
        .map(|((_, partition), offset, _)| (*partition, *offset))
        .collect();
    assert_eq!(places.len(), 800, "every record was delivered to one member once");
    pair.members[0].consumer.leave().await.expect("leave");
}
