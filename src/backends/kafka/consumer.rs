//! The consumer that callers hold: it turns what the polling thread tells into events.
//!
//! It alone knows how far each partition was handed out. Every start, pause and resume begins a new flow of the
//! partition; what an older flow still brings is dropped, and a resume begins where the caller stands. So a pause neither
//! loses nor repeats a record, whatever was on its way.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use lamina_core::{
    ids::Offset,
    log::{Consumer, Event, LogError, TopicPartition},
};
use tokio::sync::oneshot;
use tracing::warn;

use super::{
    client::Profile,
    line::{Command, Flow, Outside, Told, line},
    member::Member,
    offsets::Offsets,
};

/// How long leaving may take; afterwards it goes on without the caller.
const LEAVE: Duration = Duration::from_secs(10);

pub(super) struct GroupConsumer {
    line: Outside,
    group: String,
    assigned: HashMap<TopicPartition, State>,
    flows: Flow,
}

/// Of an assigned partition.
#[derive(Default)]
struct State {
    /// What is being delivered, if anything.
    flow: Option<Flow>,
    /// Position after what was handed out, once started.
    next: Option<Offset>,
}

impl GroupConsumer {
    pub(super) fn join(
        profile: &Profile,
        offsets: &Arc<Offsets>,
        group: &str,
        topics: &[String],
    ) -> Result<Self, LogError> {
        let (outside, inside) = line();
        Member::spawn(profile, offsets, inside, group, topics)?;
        Ok(Self { line: outside, group: group.to_owned(), assigned: HashMap::new(), flows: 0 })
    }

    fn deliver(&mut self, partition: TopicPartition, from: Offset) {
        self.flows += 1;
        if let Some(state) = self.assigned.get_mut(&partition) {
            *state = State { flow: Some(self.flows), next: Some(from) };
            self.line.send(Command::Deliver(partition, from, self.flows));
        }
    }

    /// What the caller is to hear of it, if anything.
    fn event(&mut self, told: Told) -> Option<Result<Event, LogError>> {
        let event = match told {
            Told::Assigned(partitions) => {
                self.assigned.extend(partitions.iter().map(|partition| (partition.clone(), State::default())));
                Event::Assigned(partitions)
            }
            Told::Revoked(partitions) => {
                self.forget(&partitions);
                Event::Revoked(partitions)
            }
            Told::Lost(partitions) => {
                self.forget(&partitions);
                Event::Lost(partitions)
            }
            Told::Records { from, flow, records, next, .. } => {
                let state = self.assigned.get_mut(&from).filter(|state| state.flow == Some(flow))?;
                state.next = Some(next);
                Event::Records { topic: from.0, partition: from.1, records, next }
            }
            Told::Failed { from, flow, error } => {
                let state = self.assigned.get_mut(&from).filter(|state| state.flow == Some(flow))?;
                *state = State::default();
                Event::Failed { topic: from.0, partition: from.1, error }
            }
            Told::Trouble(error) => return Some(Err(error)),
        };
        Some(Ok(event))
    }

    fn forget(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.assigned.remove(partition);
        }
    }
}

#[async_trait]
impl Consumer for GroupConsumer {
    async fn next(&mut self, wait: Duration) -> Result<Event, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            let told = match tokio::time::timeout_at(deadline.into(), self.line.hear()).await {
                Ok(Some(told)) => told,
                Ok(None) => {
                    tokio::time::sleep_until(deadline.into()).await;
                    let why = format!("the member of group {} has left or ended; join again", self.group);
                    return Err(LogError::Unavailable(why));
                }
                Err(_) => return Ok(Event::Idle),
            };
            if let Some(event) = self.event(told) {
                return event;
            }
        }
    }

    async fn start(&mut self, partition: TopicPartition, offset: Offset) -> Result<(), LogError> {
        if !self.assigned.contains_key(&partition) {
            let (topic, number) = partition;
            return Err(LogError::Refused(format!("{topic} partition {number} is not assigned to this member")));
        }
        self.deliver(partition, offset);
        Ok(())
    }

    async fn pause(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        if let Some(state) = self.assigned.get_mut(&partition) {
            state.flow = None;
            self.line.send(Command::Hold(partition));
        }
        Ok(())
    }

    async fn resume(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        let stopped = self.assigned.get(&partition).filter(|state| state.flow.is_none());
        if let Some(next) = stopped.and_then(|state| state.next) {
            self.deliver(partition, next);
        }
        Ok(())
    }

    async fn release(&mut self, partitions: Vec<TopicPartition>) -> Result<(), LogError> {
        self.line.send(Command::Release(partitions));
        Ok(())
    }

    async fn commit(&mut self, positions: Vec<(TopicPartition, Offset)>) -> Result<(), LogError> {
        self.line.send(Command::Commit(positions));
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), LogError> {
        self.assigned.clear();
        let (sender, left) = oneshot::channel();
        self.line.send(Command::Leave(Some(sender)));
        // An error of the channel means that the thread has ended already.
        if tokio::time::timeout(LEAVE, left).await.is_err() {
            warn!(group = self.group, "leaving the group takes longer than {LEAVE:?} and goes on by itself");
        }
        Ok(())
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.line.send(Command::Leave(None));
    }
}
