//! A member of a consumer group in this process.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use lamina_core::{
    Offset,
    log::{Consumer, Event, LogError, TopicPartition},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    groups::{MemberId, RELEASE_WITHIN},
    log::Inner,
    topics,
};

/// Records handed out at a time, in bytes.
const BATCH_BYTES: usize = 1 << 20;

pub(super) struct EmbeddedConsumer {
    log: Arc<Inner>,
    group: String,
    id: MemberId,
    /// Assigned partitions.
    partitions: BTreeMap<TopicPartition, State>,
    /// The partition that was served last: the others come first.
    served: Option<TopicPartition>,
    appended: watch::Receiver<u64>,
    changed: watch::Receiver<u64>,
}

#[derive(Default)]
struct State {
    /// Where to read on; `None` until started, and after it failed.
    next: Option<Offset>,
    paused: bool,
}

impl EmbeddedConsumer {
    pub(super) fn join(log: Arc<Inner>, group: &str, partitions: Vec<TopicPartition>) -> Self {
        let (appended, changed) = (log.appended.subscribe(), log.groups.changed.subscribe());
        let id = log.groups.join(group, partitions);
        let (partitions, served) = Default::default();
        Self { log, group: group.to_owned(), id, partitions, served, appended, changed }
    }

    /// What the group has to say, noted here.
    fn group_event(&mut self) -> Option<Event> {
        let event = self.log.groups.next_event(&self.group, self.id)?;
        match &event {
            Event::Assigned(new) => self.partitions.extend(new.iter().map(|new| (new.clone(), State::default()))),
            Event::Revoked(old) => self.partitions.retain(|partition, _| !old.contains(partition)),
            _ => {}
        }
        Some(event)
    }

    /// A started partition that has records, those after the one served last first.
    fn readable(&self) -> Result<Option<(TopicPartition, Offset)>, (TopicPartition, LogError)> {
        let started = |(partition, state): (&TopicPartition, &State)| {
            let next = state.next.filter(|_| !state.paused)?;
            Some((partition.clone(), next))
        };
        let after =
            |(partition, _): &(TopicPartition, Offset)| self.served.as_ref().is_none_or(|last| partition > last);
        let (first, second): (Vec<_>, Vec<_>) = self.partitions.iter().filter_map(started).partition(after);
        for (partition, next) in first.into_iter().chain(second) {
            let span = self.log.span(&partition.0, partition.1);
            let checked = span.and_then(|span| topics::within(&partition.0, partition.1, next, span).map(|()| span));
            match checked {
                Ok(span) if next < span.end => return Ok(Some((partition, next))),
                Ok(_) => {}
                Err(error) => return Err((partition, error)),
            }
        }
        Ok(None)
    }

    /// Gives a partition up after an error that will not pass, so that the others go on.
    fn failed(&mut self, (partition, error): (TopicPartition, LogError)) -> Result<Event, LogError> {
        if matches!(error, LogError::Unavailable(_) | LogError::Full(_)) {
            return Err(error);
        }
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.next = None;
        }
        Ok(Event::Failed { topic: partition.0, partition: partition.1, error })
    }

    /// Records of a started partition, if any has some now.
    async fn records(&mut self) -> Result<Option<Event>, LogError> {
        let (partition, from) = match self.readable() {
            Ok(Some(readable)) => readable,
            Ok(None) => return Ok(None),
            Err(failed) => return self.failed(failed).map(Some),
        };
        match self.log.read(&partition.0, partition.1, from, BATCH_BYTES).await {
            Ok((records, next)) => {
                if let Some(state) = self.partitions.get_mut(&partition) {
                    state.next = Some(next);
                }
                self.served = Some(partition.clone());
                Ok(Some(Event::Records { topic: partition.0, partition: partition.1, records, next }))
            }
            Err(error) => self.failed((partition, error)).map(Some),
        }
    }

    fn assigned(&mut self, partition: &TopicPartition) -> Result<&mut State, LogError> {
        let (topic, number) = partition;
        let refused = || LogError::Refused(format!("partition {number} of {topic} is not assigned to this consumer"));
        self.partitions.get_mut(partition).ok_or_else(refused)
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn next(&mut self, wait: Duration) -> Result<Event, LogError> {
        let until = Instant::now() + wait;
        loop {
            // Seen before looking, so that what comes after the look wakes the wait below.
            self.appended.mark_unchanged();
            self.changed.mark_unchanged();
            if let Some(event) = self.group_event() {
                return Ok(event);
            }
            if let Some(event) = self.records().await? {
                return Ok(event);
            }
            // Another member's deadline to let go is only looked at when asking, so ask now and then.
            let look = until.min(Instant::now() + RELEASE_WITHIN / 10);
            let woken = timeout_at(look, async {
                tokio::select! {
                    changed = self.appended.changed() => drop(changed),
                    changed = self.changed.changed() => drop(changed),
                }
            });
            if woken.await.is_err() && Instant::now() >= until {
                return Ok(Event::Idle);
            }
        }
    }

    async fn start(&mut self, partition: TopicPartition, offset: Offset) -> Result<(), LogError> {
        self.assigned(&partition)?.next = Some(offset);
        Ok(())
    }

    async fn pause(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.assigned(&partition)?.paused = true;
        Ok(())
    }

    async fn resume(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.assigned(&partition)?.paused = false;
        Ok(())
    }

    async fn release(&mut self, partitions: Vec<TopicPartition>) -> Result<(), LogError> {
        self.log.groups.release(&self.group, self.id, &partitions);
        Ok(())
    }

    /// Nobody outside this process can look, so there is nothing to note.
    async fn commit(&mut self, _: Vec<(TopicPartition, Offset)>) -> Result<(), LogError> {
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), LogError> {
        self.partitions.clear();
        self.log.groups.leave(&self.group, self.id);
        Ok(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.log.groups.leave(&self.group, self.id);
    }
}
