//! The log in the embedded database.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use lamina_core::{
    Micros, Offset, Partition,
    log::{Append, Consumer, Log, LogError, MAX_RECORD, Record, Span, Topic},
};
use tokio::sync::watch;

use super::{
    consumer::EmbeddedConsumer,
    engine::{Engine, Failure},
    groups::Groups,
    topics::{self, Stored},
};

/// Topics of records in the embedded database. Its consumer groups live in this process.
pub struct EmbeddedLog {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    engine: Arc<Engine>,
    /// Topics do not change once made.
    topics: RwLock<HashMap<String, Arc<Stored>>>,
    spread: AtomicU32,
    /// Counts appends, so that consumers wake at once.
    pub(super) appended: watch::Sender<u64>,
    pub(super) groups: Groups,
}

impl EmbeddedLog {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        let (topics, spread, appended) = Default::default();
        let inner = Inner { engine, topics, spread, appended, groups: Groups::default() };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    pub(super) fn stored(&self, name: &str) -> Result<Arc<Stored>, LogError> {
        let known = self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(stored) = known {
            return Ok(stored);
        }
        let found = self.engine.db().and_then(|db| topics::find(&db, name)).map_err(Failure::log)?;
        let stored = Arc::new(found.ok_or_else(|| LogError::NoTopic(name.to_owned()))?);
        self.topics.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::clone(&stored));
        Ok(stored)
    }

    fn partition(&self, topic: &str, partition: Partition) -> Result<Arc<Stored>, LogError> {
        let stored = self.stored(topic)?;
        if partition < stored.partitions {
            return Ok(stored);
        }
        Err(LogError::Refused(format!("topic {topic} has {} partitions, there is no {partition}", stored.partitions)))
    }

    pub(super) fn span(&self, topic: &str, partition: Partition) -> Result<Span, LogError> {
        let stored = self.partition(topic, partition)?;
        self.engine.db().and_then(|db| topics::span(&db, stored.number, partition)).map_err(Failure::log)
    }

    pub(super) async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        let stored = self.partition(topic, partition)?;
        topics::within(topic, partition, from, self.span(topic, partition)?)?;
        let read = self.engine.read(move |db| topics::read(db, stored.number, partition, from, max_bytes));
        read.await.map_err(Failure::log)
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError> {
        match self.inner.stored(name) {
            Err(LogError::NoTopic(_)) => {}
            found => return Ok(found?.topic(name)),
        }
        if name.is_empty() || partitions == 0 {
            return Err(LogError::Refused(format!(
                "a topic needs a name and partitions, not {name:?} and {partitions}"
            )));
        }
        let wanted = name.to_owned();
        let made = self.inner.engine.write(move |tx| topics::ensure(tx, &wanted, partitions));
        Ok(made.await.map_err(Failure::log)?.topic(name))
    }

    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        Ok(self.inner.stored(name)?.topic(name))
    }

    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        let stored = self.inner.stored(topic)?;
        let size = |record: &Append| record.key.as_ref().map_or(0, |key| key.len()) + record.payload.len();
        if let Some(bytes) = records.iter().map(size).find(|bytes| *bytes > MAX_RECORD) {
            return Err(LogError::TooLarge { bytes, limit: MAX_RECORD });
        }
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let spread = || self.inner.spread.fetch_add(1, Ordering::Relaxed);
        let laid = topics::lay_out(records, stored.partitions, spread);
        let appended = self.inner.appended.clone();
        let write = self.inner.engine.write(move |tx| {
            let placed = topics::append(tx, stored.number, laid)?;
            tx.then(move || appended.send_modify(|count| *count += 1));
            Ok(placed)
        });
        write.await.map_err(Failure::log)
    }

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        let stored = self.inner.stored(topic)?;
        (0..stored.partitions).map(|partition| Ok((partition, self.inner.span(topic, partition)?))).collect()
    }

    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        self.inner.read(topic, partition, from, max_bytes).await
    }

    async fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        let stored = self.inner.partition(topic, partition)?;
        let find = self.inner.engine.read(move |db| topics::offset_at(db, stored.number, partition, at));
        find.await.map_err(Failure::log)
    }

    async fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        let mut partitions = Vec::new();
        for topic in topics {
            let stored = self.inner.stored(topic)?;
            partitions.extend((0..stored.partitions).map(|partition| (topic.clone(), partition)));
        }
        Ok(Box::new(EmbeddedConsumer::join(Arc::clone(&self.inner), group, partitions)))
    }

    async fn ping(&self) -> Result<(), LogError> {
        // writes nothing, but waits for the writer, which looks for space again if it failed for want of it
        self.inner.engine.write(|_| Ok(())).await.map_err(Failure::log)
    }
}
