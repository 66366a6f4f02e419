//! Topics as the log knows them, remembered for a moment.

use std::{sync::Arc, time::Duration};

use lamina_core::log::{Log, LogError, Topic};
use moka::future::Cache;

/// How long a topic is believed to be as it was.
const FRESH: Duration = Duration::from_secs(2);
const MAX_TOPICS: u64 = 10_000;

/// Topics by name. One that does not exist is asked for again each time.
pub(crate) struct Topics {
    log: Arc<dyn Log>,
    known: Cache<String, Arc<Topic>>,
}

impl Topics {
    pub(crate) fn new(log: Arc<dyn Log>) -> Self {
        Self { log, known: Cache::builder().max_capacity(MAX_TOPICS).time_to_live(FRESH).build() }
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
                Ok(Some(topic))
            }
            Err(LogError::NoTopic(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next [`Topics::find`] asks the log.
    pub(crate) async fn forget(&self, name: &str) {
        self.known.invalidate(name).await;
    }
}
