//! Takes librdkafka's rebalance events in, without acting on them in the callback.
//!
//! # Why
//! With librdkafka's event interface a rebalance waits for the application's assign or unassign call, whenever that comes.
//! So the callback only notes what is asked, and the polling thread answers in its own time: while a revocation waits for
//! the consumer's release it goes on polling and obeying commands, and nothing can deadlock.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use lamina_core::{ids::Partition, log::TopicPartition};
use rdkafka::{
    ClientContext, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use tracing::debug;

use super::client::{Logged, forward};

pub(super) enum Change {
    Assign(Vec<TopicPartition>),
    Revoke(Vec<TopicPartition>),
}

pub(super) struct Rebalances {
    logged: Logged,
    waiting: Mutex<VecDeque<Change>>,
    /// Whether the member is leaving: then nobody takes changes any more, and everything is let go at once.
    leaving: AtomicBool,
}

impl Rebalances {
    pub(super) fn new(logged: Logged) -> Self {
        Self { logged, waiting: Mutex::default(), leaving: AtomicBool::default() }
    }

    pub(super) fn take(&self) -> Option<Change> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        forward(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.logged.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.logged.generate_oauth_token(config)
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, asked: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.leaving.load(Ordering::Acquire) {
            if let Err(error) = consumer.assignment().and_then(|all| consumer.incremental_unassign(&all)) {
                debug!(%error, "kafka member could not let go of its partitions while leaving");
            }
            return;
        }
        let change = match asked {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assign(names(list)),
            _ => Change::Revoke(names(list)),
        };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(%error, "group position was not noted; nothing depends on it");
        }
    }
}

fn names(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let elements = list.elements();
    let named = elements.iter().filter_map(|element| {
        Partition::try_from(element.partition()).ok().map(|partition| (element.topic().to_owned(), partition))
    });
    named.collect()
}
