//! The log as a process sees it.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use lamina_core::{
    Micros, Offset, Partition,
    conformance::memory::Member,
    log::{Append, Consumer, Event, Log, LogError, Record, Span, Topic, TopicPartition},
};

use crate::{
    counts::Happening,
    plan::TOPIC,
    port::{Fault, Port, wait},
};

pub(crate) struct SimLog(pub(crate) Port);

/// How often a waiting member looks.
const LOOK: Duration = Duration::from_millis(20);

fn unavailable(_: Fault) -> LogError {
    LogError::Unavailable("simulated".to_owned())
}

#[async_trait]
impl Log for SimLog {
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError> {
        self.0.ask(|world| world.log.ensure_topic(name, partitions)).await.map_err(unavailable)
    }

    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.0.ask(|world| world.log.topic(name)).await.map_err(unavailable)?
    }

    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        let append = self.0.ask(|world| {
            if topic != TOPIC {
                world.counts.add_many(Happening::Dead, records.len() as u64);
            }
            world.log.append(topic, records, world.now)
        });
        append.await.map_err(unavailable)?
    }

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        self.0.ask(|world| world.log.spans(topic)).await.map_err(unavailable)?
    }

    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        let look = self.0.ask(|world| world.log.read(topic, partition, from, usize::MAX, max_bytes));
        look.await.map_err(unavailable)?
    }

    async fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        self.0.ask(|world| world.log.offset_at(topic, partition, at)).await.map_err(unavailable)?
    }

    async fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        let join = self.0.ask(|world| Member::join(&mut world.log, group, topics, world.now));
        let member = join.await.map_err(unavailable)??;
        Ok(Box::new(SimConsumer { port: self.0.clone(), member }))
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.0.ask(|_| ()).await.map_err(unavailable)
    }
}

/// A member of a group. When its process dies, the group hears nothing of it.
struct SimConsumer {
    port: Port,
    member: Member,
}

#[async_trait]
impl Consumer for SimConsumer {
    async fn next(&mut self, wait_for: Duration) -> Result<Event, LogError> {
        for attempt in 0..2 {
            {
                let mut world = self.port.world.lock();
                let world = &mut *world;
                let max = if world.calm { 100 } else { 1 + world.random.below(30) as usize };
                let before = world.log.groups.rebalances;
                let event = self.member.poll(&mut world.log, world.now, max);
                world.counts.add_many(Happening::Rebalance, world.log.groups.rebalances - before);
                if let Some(event) = event {
                    if !matches!(event, Event::Records { .. }) {
                        world.note(format_args!("{} hears {event:?}", self.port.who));
                    }
                    return Ok(event);
                }
            }
            if attempt == 0 {
                wait(wait_for.min(LOOK)).await;
            }
        }
        Ok(Event::Idle)
    }

    async fn start(&mut self, partition: TopicPartition, offset: Offset) -> Result<(), LogError> {
        self.member.start(&partition, offset)
    }

    async fn pause(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.member.pause(&partition, true)
    }

    async fn resume(&mut self, partition: TopicPartition) -> Result<(), LogError> {
        self.member.pause(&partition, false)
    }

    async fn release(&mut self, partitions: Vec<TopicPartition>) -> Result<(), LogError> {
        let mut world = self.port.world.lock();
        let now = world.now;
        self.member.release(&mut world.log, &partitions, now);
        Ok(())
    }

    async fn commit(&mut self, _: Vec<(TopicPartition, Offset)>) -> Result<(), LogError> {
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), LogError> {
        let mut world = self.port.world.lock();
        let now = world.now;
        self.member.leave(&mut world.log, now);
        Ok(())
    }
}
