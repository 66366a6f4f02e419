//! One membership of the consumer group: owns the consumer, and a task for each partition that is assigned.
//!
//! A single loop polls the consumer, so that it stays a member whatever its partitions do: they are drained, paused and
//! resumed by messages, never waited for.
//!
//! # Invariants
//! - A partition is released only when its task has ended: drained, or dropped at the deadline.
//! - No batch is dropped while its partition is held: a full feed pauses the partition instead.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lamina_core::log::{Consumer, Event, Log, LogError, TopicPartition};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    Config, Deps,
    consume::{Joined, topics_of},
    feed::{Command, Feed, Input, Order},
    instruments::Instruments,
    partition::{Place, own},
};

/// How long one poll waits: orders of partitions wait as long at most.
const POLL: Duration = Duration::from_millis(20);
/// How long a revoked partition may take to flush and seal.
const DRAIN: Duration = Duration::from_secs(8);
/// The same when the process stops: nobody waits for the partitions yet.
const DRAIN_AT_STOP: Duration = Duration::from_secs(20);
/// Pause before the task of a partition that broke off is started again.
const BROKEN_PAUSE: Duration = Duration::from_secs(1);
/// How long leaving the group may take.
const LEAVE: Duration = Duration::from_secs(10);
/// How often topics that did not exist are looked for.
const LOOK_FOR_TOPICS: Duration = Duration::from_secs(5);
/// How often topics are looked at for having been made again, or being refused.
const CHECK_TOPICS: Duration = Duration::from_secs(10);
/// How long looking for one may hold up the consumer.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Why a membership ended.
pub(crate) enum Left {
    Stopped,
    TopicsChanged,
    Failed(LogError),
}

/// A partition that is assigned to this worker.
struct Part {
    task: u64,
    abort: AbortHandle,
    drain: CancellationToken,
    /// Where records go, once the task said from where on.
    feed: Option<Feed>,
    paused: bool,
    /// When a draining task is dropped.
    deadline: Option<Instant>,
}

pub(crate) struct Membership {
    deps: Arc<Deps>,
    config: Arc<Config>,
    lane: usize,
    consumer: Box<dyn Consumer>,
    joined: Joined,
    /// Looks whether topics are still what they were; gives those that are not.
    check: Option<JoinHandle<Vec<String>>>,
    check_topics: Instant,
    /// Revision of the definitions that were looked at last; 0 before the first look.
    revision: u64,
    look_for_topics: Instant,
    parts: HashMap<TopicPartition, Part>,
    /// Dropping it ends all tasks.
    tasks: JoinSet<()>,
    task_of: HashMap<Id, (TopicPartition, u64)>,
    next_task: u64,
    commands: (mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<Command>),
    /// Revoked partitions whose tasks still drain, as they were revoked together.
    releases: Vec<Vec<TopicPartition>>,
    leaving: Option<Left>,
}

impl Membership {
    pub(crate) fn new(
        deps: Arc<Deps>,
        config: Arc<Config>,
        lane: usize,
        consumer: Box<dyn Consumer>,
        joined: Joined,
    ) -> Self {
        Self {
            deps,
            config,
            lane,
            consumer,
            joined,
            check: None,
            check_topics: Instant::now() + CHECK_TOPICS,
            revision: 0,
            look_for_topics: Instant::now() + LOOK_FOR_TOPICS,
            parts: HashMap::new(),
            tasks: JoinSet::new(),
            task_of: HashMap::new(),
            next_task: 0,
            commands: mpsc::unbounded_channel(),
            releases: Vec::new(),
            leaving: None,
        }
    }

    /// Works until `stop`, until the topics change, or until the consumer fails.
    pub(crate) async fn run(mut self, stop: &CancellationToken) -> Left {
        loop {
            let ended = self.reap();
            // What a task asked for before it ended is done before it is forgotten.
            self.obey().await;
            self.forget(ended);
            self.release().await;
            self.resume().await;
            self.check_topics().await;
            self.decide_to_leave(stop).await;
            if self.parts.is_empty()
                && let Some(left) = self.leaving.take()
            {
                self.leave().await;
                return left;
            }
            match self.consumer.next(POLL).await {
                Ok(event) => self.handle(event).await,
                Err(LogError::Unavailable(error)) => {
                    warn!(%error, "log does not answer");
                    tokio::time::sleep(POLL * 10).await;
                }
                Err(error) => {
                    self.leave().await;
                    return Left::Failed(error);
                }
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Assigned(partitions) => partitions.into_iter().for_each(|one| self.begin(one, Duration::ZERO)),
            Event::Revoked(partitions) => {
                info!(?partitions, "partitions are revoked; sealing them");
                partitions.iter().for_each(|partition| self.drain(partition, DRAIN));
                self.releases.push(partitions);
            }
            Event::Lost(partitions) => {
                warn!(?partitions, "partitions are lost; everything of them is dropped");
                partitions.iter().for_each(|partition| self.drop_part(partition));
            }
            Event::Records { topic, partition, records, next } => {
                self.deliver((topic, partition), Input::Records { records, next }).await;
            }
            Event::Failed { topic, partition, error } => {
                self.deliver((topic, partition), Input::Failed(error)).await;
            }
            Event::Idle => {}
        }
    }

    /// Starts the task of an assigned partition, after a pause.
    fn begin(&mut self, partition: TopicPartition, pause: Duration) {
        let consumed = self.joined.topics.get(&partition.0).filter(|_| self.leaving.is_none());
        let Some(source) = consumed.map(|topic| topic.source.clone()) else { return };
        self.drop_part(&partition);
        self.next_task += 1;
        let task = self.next_task;
        let place = Arc::new(Place {
            deps: Arc::clone(&self.deps),
            config: Arc::clone(&self.config),
            instruments: Instruments::new(&source, partition.1),
            source,
            topic: partition.0.clone(),
            partition: partition.1,
            holes_below: self.joined.holes.get(&partition).copied().unwrap_or(0),
            task,
            commands: self.commands.0.clone(),
        });
        let drain = CancellationToken::new();
        let abort = self.tasks.spawn(own(place, drain.clone(), pause));
        self.task_of.insert(abort.id(), (partition.clone(), task));
        self.parts.insert(partition, Part { task, abort, drain, feed: None, paused: false, deadline: None });
    }

    fn drain(&mut self, partition: &TopicPartition, within: Duration) {
        if let Some(part) = self.parts.get_mut(partition) {
            part.drain.cancel();
            part.deadline.get_or_insert_with(|| Instant::now() + within);
        }
    }

    fn drop_part(&mut self, partition: &TopicPartition) {
        if let Some(part) = self.parts.remove(partition) {
            part.abort.abort();
        }
    }

    async fn deliver(&mut self, partition: TopicPartition, input: Input) {
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let Some(feed) = &part.feed else { return };
        let taken = feed.send(input);
        if (!taken || feed.is_full()) && !part.paused {
            part.paused = true;
            if let Err(error) = self.consumer.pause(partition.clone()).await {
                debug!(?partition, %error, "cannot pause a partition");
            }
        }
        if !taken {
            part.feed = None;
        }
    }

    /// Resumes partitions whose feed is worked down.
    async fn resume(&mut self) {
        for (partition, part) in &mut self.parts {
            if part.paused && part.feed.as_ref().is_some_and(Feed::is_low) {
                match self.consumer.resume(partition.clone()).await {
                    Ok(()) => part.paused = false,
                    Err(error) => warn!(?partition, %error, "cannot resume a partition yet"),
                }
            }
        }
    }

    /// Does what partitions' tasks asked for.
    async fn obey(&mut self) {
        while let Ok(Command { partition, task, order }) = self.commands.1.try_recv() {
            let Some(part) = self.parts.get_mut(&partition).filter(|part| part.task == task) else { continue };
            match order {
                Order::Start(offset, feed) => {
                    let mut started = self.consumer.start(partition.clone(), offset).await;
                    if part.paused && started.is_ok() {
                        started = self.consumer.resume(partition).await;
                    }
                    match started {
                        Ok(()) => part.paused = false,
                        Err(error) => drop(feed.send(Input::Failed(error))),
                    }
                    part.feed = Some(feed);
                }
                Order::Sealed(offset) => {
                    if let Err(error) = self.consumer.commit(vec![(partition, offset)]).await {
                        debug!(%error, "position is not committed; lamina does not need it");
                    }
                }
            }
        }
    }

    /// Tasks that have ended, with the reason if they broke off; those that are late to drain are dropped.
    fn reap(&mut self) -> Vec<(Id, String)> {
        let now = Instant::now();
        let late = |part: &Part| part.deadline.is_some_and(|deadline| now >= deadline);
        let late: Vec<TopicPartition> =
            self.parts.iter().filter(|(_, part)| late(part)).map(|(partition, _)| partition.clone()).collect();
        for partition in late {
            warn!(?partition, "partition did not drain in time; its open epoch is left to whoever takes over");
            self.drop_part(&partition);
        }
        let mut ended = Vec::new();
        while let Some(task) = self.tasks.try_join_next_with_id() {
            ended.push(match task {
                Ok((id, ())) => (id, String::new()),
                Err(error) => (error.id(), error.to_string()),
            });
        }
        ended
    }

    /// Forgets tasks that have ended; one that broke off is started again.
    fn forget(&mut self, ended: Vec<(Id, String)>) {
        for (id, error) in ended {
            let Some((partition, task)) = self.task_of.remove(&id) else { continue };
            let Some(part) = self.parts.get(&partition).filter(|part| part.task == task) else { continue };
            let draining = part.drain.is_cancelled();
            self.parts.remove(&partition);
            if !draining {
                error!(?partition, error, "task of a partition broke off; starting it again");
                self.begin(partition, BROKEN_PAUSE);
            }
        }
    }

    /// Lets go of revoked partitions whose tasks have ended.
    async fn release(&mut self) {
        let parts = &self.parts;
        let ended = |partitions: &mut Vec<TopicPartition>| !partitions.iter().any(|one| parts.contains_key(one));
        let ready: Vec<Vec<TopicPartition>> = self.releases.extract_if(.., ended).collect();
        for partitions in ready {
            if let Err(error) = self.consumer.release(partitions).await {
                warn!(%error, "revoked partitions are not released; the group takes them at its deadline");
            }
        }
    }

    /// Drops everything of topics that are no longer what was joined for, and leaves to join anew.
    async fn check_topics(&mut self) {
        if self.check.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(check) = self.check.take()
        {
            let changed = check.await.unwrap_or_default();
            if changed.is_empty() {
                return;
            }
            let gone: Vec<_> = self.parts.keys().filter(|(topic, _)| changed.contains(topic)).cloned().collect();
            gone.iter().for_each(|partition| self.drop_part(partition));
            self.drain_all(Left::TopicsChanged);
        } else if self.check.is_none() && Instant::now() >= self.check_topics {
            self.check_topics = Instant::now() + CHECK_TOPICS;
            let ids = self.joined.topics.iter().map(|(topic, consumed)| (topic.clone(), consumed.id.clone()));
            self.check = Some(tokio::spawn(changed(Arc::clone(&self.deps.log), ids.collect())));
        }
    }

    /// Begins to drain everything if the worker stops, or if there are other topics to consume.
    async fn decide_to_leave(&mut self, stop: &CancellationToken) {
        if self.leaving.is_some() {
            return;
        }
        let left = if stop.is_cancelled() {
            Left::Stopped
        } else if self.topics_changed().await {
            info!("topics changed; joining the group again");
            Left::TopicsChanged
        } else {
            return;
        };
        self.drain_all(left);
    }

    fn drain_all(&mut self, left: Left) {
        let all: Vec<TopicPartition> = self.parts.keys().cloned().collect();
        all.iter().for_each(|partition| self.drain(partition, DRAIN_AT_STOP));
        self.leaving.get_or_insert(left);
    }

    async fn topics_changed(&mut self) -> bool {
        let revision = self.deps.catalog.borrow().revision;
        if revision != self.revision {
            self.revision = revision;
            return topics_of(&self.deps.catalog.borrow(), self.lane) != self.joined.wanted;
        }
        if Instant::now() < self.look_for_topics {
            return false;
        }
        self.look_for_topics = Instant::now() + LOOK_FOR_TOPICS;
        let joined = &self.joined;
        let missing = joined.wanted.keys().filter(|topic| !joined.topics.contains_key(*topic));
        any_exists(&*self.deps.log, missing.cloned().collect()).await
    }

    async fn leave(&mut self) {
        self.tasks.abort_all();
        match timeout(LEAVE, self.consumer.leave()).await {
            Ok(Ok(())) => debug!("left the consumer group"),
            Ok(Err(error)) => warn!(%error, "could not leave the consumer group"),
            Err(_) => warn!("leaving the consumer group took too long"),
        }
    }
}

async fn any_exists(log: &dyn Log, topics: Vec<String>) -> bool {
    for topic in topics {
        if let Ok(Ok(_)) = timeout(LOOK_UP, log.topic(&topic)).await {
            return true;
        }
    }
    false
}

/// Topics that were made again, deleted, or are refused now. While the log does not answer nothing is known to have changed.
async fn changed(log: Arc<dyn Log>, ids: Vec<(String, String)>) -> Vec<String> {
    let mut changed = Vec::new();
    for (topic, id) in ids {
        match log.topic(&topic).await {
            Ok(found) if found.id == id => continue,
            Ok(found) => error!(topic, before = id, now = found.id, "topic was made again: it begins anew"),
            Err(error @ (LogError::NoTopic(_) | LogError::Refused(_))) => error!(topic, %error, "topic is dropped"),
            Err(_) => continue,
        }
        changed.push(topic);
    }
    changed
}
