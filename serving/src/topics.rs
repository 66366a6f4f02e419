//! Topics as the log knows them, remembered for a moment.

use std::{sync::Arc, time::Duration};

use lamina_core::log::{Log, LogError, Topic};
use moka::future::Cache;

/// How long a topic is believed to be as it was.
const FRESH: Duration = Duration::from_secs(2);
const MAX_TOPICS: u64 = 10_000;

/// How long a query waits for a log that may be down before it takes the topic to be as it was.
const PATIENCE: Duration = Duration::from_secs(1);

/// Topics by name. One that does not exist is asked for again each time.
pub(crate) struct Topics {
    log: Arc<dyn Log>,
    known: Cache<String, Arc<Topic>>,
    /// What the log said last, however long ago.
    last: Cache<String, Arc<Topic>>,
    /// Holds something while the log is known not to answer, so that not every query waits for it.
    silent: Cache<(), ()>,
}

impl Topics {
    pub(crate) fn new(log: Arc<dyn Log>) -> Self {
        let known = Cache::builder().max_capacity(MAX_TOPICS).time_to_live(FRESH).build();
        let silent = Cache::builder().max_capacity(1).time_to_live(FRESH).build();
        Self { log, known, last: Cache::new(MAX_TOPICS), silent }
    }

    /// The topic, or `None` if there is none of that name.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Arc<Topic>>, LogError> {
        if let Some(topic) = self.known.get(name).await {
            return Ok(Some(topic));
        }
        match self.log.topic(name).await {
            Ok(topic) => {
                let topic = Arc::new(topic);
                self.known.insert(name.to_owned(), Arc::clone(&topic)).await;
                self.last.insert(name.to_owned(), Arc::clone(&topic)).await;
                Ok(Some(topic))
            }
            Err(LogError::NoTopic(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Topics::find`]; while the log does not answer, or refuses the topic, or lacks it, the topic as it was. What is
    /// stored of a topic can be answered without the log.
    pub(crate) async fn find_or_last(&self, name: &str) -> Result<Option<Arc<Topic>>, LogError> {
        let Some(last) = self.last.get(name).await else { return self.find(name).await };
        if self.silent.get(&()).await.is_some() {
            return Ok(Some(last));
        }
        match tokio::time::timeout(PATIENCE, self.find(name)).await {
            Ok(Err(LogError::Unavailable(_))) | Err(_) => {
                tracing::warn!(topic = name, "log does not answer; queries take the topic to be as it was");
                self.silent.insert((), ()).await;
                Ok(Some(last))
            }
            Ok(Err(LogError::Refused(_)) | Ok(None)) => Ok(Some(last)),
            Ok(found) => found,
        }
    }

    /// The next [`Topics::find`] asks the log.
    pub(crate) async fn forget(&self, name: &str) {
        self.known.invalidate(name).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, Ordering},
    };

    use async_trait::async_trait;
    use lamina_core::{
        Micros, Offset, Partition,
        log::{Append, Consumer, Record, Span},
    };

    use super::*;

    /// A log that may be down, and knows one topic.
    #[derive(Default)]
    struct Fragile(AtomicBool);

    fn none<T>() -> Result<T, LogError> {
        Err(LogError::Refused("not in this test".to_owned()))
    }

    #[async_trait]
    impl Log for Fragile {
        async fn topic(&self, name: &str) -> Result<Topic, LogError> {
            if self.0.load(Ordering::SeqCst) {
                return Err(LogError::Unavailable("down".to_owned()));
            }
            Ok(Topic { name: name.to_owned(), id: "id".to_owned(), partitions: 1 })
        }

        async fn ensure_topic(&self, _: &str, _: u32) -> Result<Topic, LogError> {
            none()
        }

        async fn append(&self, _: &str, _: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
            none()
        }

        async fn spans(&self, _: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
            none()
        }

        async fn read(&self, _: &str, _: Partition, _: Offset, _: usize) -> Result<(Vec<Record>, Offset), LogError> {
            none()
        }

        async fn offset_at(&self, _: &str, _: Partition, _: Micros) -> Result<Offset, LogError> {
            none()
        }

        async fn join(&self, _: &str, _: &[String]) -> Result<Box<dyn Consumer>, LogError> {
            none()
        }

        async fn ping(&self) -> Result<(), LogError> {
            none()
        }
    }

    #[tokio::test]
    async fn a_topic_that_was_known_outlives_the_log() {
        let log = Arc::new(Fragile::default());
        let topics = Topics::new(Arc::clone(&log) as _);
        log.0.store(true, Ordering::SeqCst);
        assert!(topics.find_or_last("a").await.is_err(), "nothing is known of it yet");
        log.0.store(false, Ordering::SeqCst);
        assert!(topics.find_or_last("a").await.unwrap().is_some());
        log.0.store(true, Ordering::SeqCst);
        topics.forget("a").await;
        assert!(topics.find("a").await.is_err());
        assert_eq!(topics.find_or_last("a").await.unwrap().unwrap().id, "id");
        assert_eq!(topics.find_or_last("a").await.unwrap().unwrap().id, "id", "without asking");
    }
}
