//! Appends records: idempotent, acknowledged by all in-sync replicas, batched.
//!
//! All records of a call are queued first and awaited afterwards, so that librdkafka sends them in few large batches.
//! A full queue makes the caller wait. After an error it is unknown which records of the call were written.

use std::{
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use lamina_core::{
    ids::{Offset, Partition},
    log::{Append, LogError, MAX_RECORD},
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{
        FutureProducer, FutureRecord, Producer as _,
        future_producer::{Delivery, DeliveryFuture},
    },
};
use tracing::warn;

use super::client::{Logged, Profile};

/// How long to wait for room in a full queue before looking again.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) struct Producer {
    profile: Profile,
    timeout: Duration,
    /// Replaced when librdkafka declares the old one unusable, which it does if the cluster lost acknowledged data.
    current: RwLock<FutureProducer<Logged>>,
}

impl Producer {
    pub(super) fn new(profile: &Profile) -> Result<Self, LogError> {
        let current = RwLock::new(profile.make(&profile.producer(), profile.logged())?);
        Ok(Self { profile: profile.clone(), timeout: profile.delivery_timeout(), current })
    }

    pub(super) async fn append(&self, topic: &str, records: &[Append]) -> Result<Vec<(Partition, Offset)>, LogError> {
        for record in records {
            let bytes = size(record);
            if bytes > MAX_RECORD {
                return Err(LogError::TooLarge { bytes, limit: MAX_RECORD });
            }
        }
        let producer = self.current();
        let deadline = Instant::now() + self.timeout;
        let mut waiting = Vec::with_capacity(records.len());
        for record in records {
            match queue(&producer, topic, record, deadline).await {
                Ok(delivery) => waiting.push(delivery),
                Err(error) => return Err(self.failure(&producer, topic, record, &error)),
            }
        }
        let mut placed = Vec::with_capacity(records.len());
        for (delivery, record) in waiting.into_iter().zip(records) {
            match delivery.await {
                Ok(Ok(delivery)) => placed.push(self.place(&delivery)?),
                Ok(Err((error, _))) => return Err(self.failure(&producer, topic, record, &error)),
                Err(_) => return Err(LogError::Unavailable("the Kafka producer was replaced".into())),
            }
        }
        Ok(placed)
    }

    pub(super) fn current(&self) -> FutureProducer<Logged> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn place(&self, delivery: &Delivery) -> Result<(Partition, Offset), LogError> {
        match (Partition::try_from(delivery.partition), Offset::try_from(delivery.offset)) {
            (Ok(partition), Ok(offset)) => Ok((partition, offset)),
            _ => Err(LogError::Unavailable(format!(
                "a record was written, but {} did not say where",
                self.profile.brokers
            ))),
        }
    }

    fn failure(&self, producer: &FutureProducer<Logged>, topic: &str, record: &Append, error: &KafkaError) -> LogError {
        if let Some((code, reason)) = producer.client().fatal_error() {
            warn!(%code, reason, "kafka producer cannot go on and is replaced");
            self.replace();
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                LogError::TooLarge { bytes: size(record), limit: MAX_RECORD }
            }
            _ => self.profile.error("appending", topic, error),
        }
    }

    fn replace(&self) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.client().fatal_error().is_none() {
            return;
        }
        match self.profile.make(&self.profile.producer(), self.profile.logged()) {
            Ok(fresh) => *current = fresh,
            Err(error) => warn!(%error, "kafka producer could not be replaced"),
        }
    }
}

fn size(record: &Append) -> usize {
    record.payload.len() + record.key.as_ref().map_or(0, |key| key.len())
}

/// Queues one record, waiting for room.
async fn queue(
    producer: &FutureProducer<Logged>,
    topic: &str,
    record: &Append,
    deadline: Instant,
) -> Result<DeliveryFuture, KafkaError> {
    loop {
        let mut wanted = FutureRecord::<[u8], [u8]>::to(topic).payload(&record.payload);
        if let Some(key) = &record.key {
            wanted = wanted.key(key);
        }
        match producer.send_result(wanted) {
            Ok(delivery) => return Ok(delivery),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err((error, _)) => return Err(error),
        }
    }
}
