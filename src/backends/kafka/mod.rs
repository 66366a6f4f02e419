//! The log on a Kafka cluster, over librdkafka.
//!
//! Nothing here needs a broker at start: clients connect by themselves and again whenever they must, and until then calls
//! answer [`LogError::Unavailable`] with the brokers' names.
//!
//! # Invariants
//! - An append is acknowledged by all in-sync replicas, idempotently; keys are placed as Java clients place them.
//! - Readers see committed records only, and go past the markers of transactions.
//! - The group only assigns partitions: where to begin comes from the caller, never from a committed offset, and an offset
//!   that is not in the log is an error, never a silent jump.
//! - A topic is known by Kafka's own topic id, so one that was made again is another topic.

mod admin;
mod client;
mod consumer;
mod delivery;
mod health;
mod keeper;
mod line;
mod member;
mod native;
mod offsets;
mod options;
mod parts;
mod producer;
mod reader;
mod rebalance;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    ids::{Micros, Offset, Partition},
    log::{Append, Consumer, Log, LogError, Record, Span, Topic},
};
use rdkafka::{Message, message::BorrowedMessage};

pub use self::client::KafkaConfig;
use self::{
    admin::Admin,
    client::{Profile, REQUEST_TIMEOUT, blocking},
    consumer::GroupConsumer,
    offsets::Offsets,
    producer::Producer,
    reader::Readers,
};

/// A Kafka cluster as lamina's log.
#[derive(Clone)]
pub struct KafkaLog {
    shared: Arc<Shared>,
}

struct Shared {
    profile: Profile,
    replication_factor: i32,
    admin: Admin,
    offsets: Arc<Offsets>,
    producer: Producer,
    readers: Readers,
    /// Topics of whose settings was warned.
    warned: Mutex<HashSet<Topic>>,
}

impl Shared {
    /// Whether this is the first warning about the topic.
    fn warns_first(&self, topic: &Topic) -> bool {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.clone())
    }
}

impl KafkaLog {
    /// Makes the clients; this contacts nobody.
    ///
    /// # Errors
    /// [`LogError::Refused`] if the settings cannot be right.
    pub fn connect(config: KafkaConfig) -> Result<Self, LogError> {
        let profile = Profile::new(&config)?;
        let shared = Shared {
            replication_factor: config.replication_factor,
            admin: profile.make(&profile.query(), profile.logged())?,
            offsets: Arc::new(Offsets::new(&profile)?),
            producer: Producer::new(&profile)?,
            readers: Readers::new(&profile),
            warned: Mutex::default(),
            profile,
        };
        let shared = Arc::new(shared);
        keeper::watch(&shared)?;
        Ok(Self { shared })
    }

    /// Runs a blocking call.
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Shared) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || call(&shared)).await
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<Topic, LogError> {
        admin::ensure_topic(&self.shared, name, partitions).await
    }

    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        admin::topic(&self.shared, name).await
    }

    async fn topic_id(&self, name: &str) -> Result<String, LogError> {
        Ok(admin::describe(&self.shared, name).await?.id)
    }

    async fn append(&self, topic: &str, records: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        // Producing to an absent topic would make brokers create it, with their defaults.
        if !self.shared.offsets.knows(topic) {
            let name = topic.to_owned();
            self.ask(move |shared| shared.offsets.check_topic(&name)).await?;
        }
        let placed = self.shared.producer.append(topic, &records).await;
        match placed {
            Err(LogError::NoTopic(name)) => Err(self.shared.offsets.gone(&name)),
            placed => placed,
        }
    }

    async fn spans(&self, topic: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        let topic = topic.to_owned();
        self.ask(move |shared| shared.offsets.spans(&topic)).await
    }

    async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<(Vec<Record>, Offset), LogError> {
        let topic = topic.to_owned();
        self.ask(move |shared| shared.readers.read(&shared.offsets, &topic, partition, from, max_bytes)).await
    }

    async fn offset_at(&self, topic: &str, partition: Partition, at: Micros) -> Result<Offset, LogError> {
        let topic = topic.to_owned();
        self.ask(move |shared| shared.offsets.offset_at(&topic, partition, at)).await
    }

    async fn retention(&self, topic: &str) -> Result<Option<Duration>, LogError> {
        admin::retention(&self.shared, topic).await
    }

    async fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        for topic in topics {
            let topic = topic.clone();
            match self.ask(move |shared| shared.offsets.check_topic(&topic)).await {
                // A group can be joined before the cluster answers.
                Ok(_) | Err(LogError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let consumer = GroupConsumer::join(&self.shared.profile, &self.shared.offsets, group, topics)?;
        Ok(Box::new(consumer))
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.ask(|shared| shared.offsets.ping(REQUEST_TIMEOUT)).await
    }
}

/// A message as a record; Kafka's times are milliseconds.
fn record(message: &BorrowedMessage<'_>) -> Record {
    Record {
        offset: Offset::try_from(message.offset()).unwrap_or(0),
        appended_at: message.timestamp().to_millis().unwrap_or(0).saturating_mul(1000),
        key: message.key().map(Bytes::copy_from_slice),
        payload: message.payload().map(Bytes::copy_from_slice).unwrap_or_default(),
    }
}
