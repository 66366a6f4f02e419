//! Who leads batch: a document that its holder renews.
//!
//! Whoever sees it unchanged for as long as it lasts takes it over. So nothing rests on the wall clocks of machines, which
//! jump: each measures for itself how long nothing happened.
//!
//! For liveness only: two leaders at once waste work, but generations keep them from harm.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lamina_core::{Commit, Documents, Store, StoreError, envelope, ids::new_id};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

const KIND: &str = "lease";
const KEY: &str = "batch";

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    holder: String,
    /// How long it is to be left alone without being renewed, in ms.
    lasts_ms: u64,
}

pub(crate) struct Lease<'a> {
    store: &'a dyn Store,
    holder: String,
    length: Duration,
    /// The version that was seen last, and since when.
    seen: Mutex<Option<(u64, Instant)>>,
}

impl<'a> Lease<'a> {
    pub(crate) fn new(store: &'a dyn Store, length: Duration) -> Self {
        Self { store, holder: new_id().simple().to_string(), length, seen: Mutex::default() }
    }

    pub(crate) fn holder(&self) -> &str {
        &self.holder
    }

    /// How often a holder renews, and a standby asks.
    pub(crate) fn pace(&self) -> Duration {
        (self.length / 3).max(Duration::from_millis(10))
    }

    /// Takes or renews the lease; false if another holds it.
    pub(crate) async fn hold(&self) -> Result<bool, StoreError> {
        self.write(self.length).await
    }

    /// Lets the next one lead at once.
    pub(crate) async fn release(&self) -> Result<bool, StoreError> {
        self.write(Duration::ZERO).await
    }

    async fn write(&self, length: Duration) -> Result<bool, StoreError> {
        let (version, held) = match self.store.get(KIND, KEY).await? {
            Some(document) => (document.version, envelope::unpack::<Held>(&document.value).ok()),
            None => (0, None),
        };
        if held.is_some_and(|held| held.holder != self.holder && !self.has_run_out(version, &held)) {
            return Ok(false);
        }
        let next = Held { holder: self.holder.clone(), lasts_ms: length.as_millis() as u64 };
        let value = envelope::pack(&next)
            .map_err(|error| StoreError::Corrupt { what: "batch lease".to_owned(), why: error.to_string() })?;
        // An unknown outcome is an error: the caller asks again, and then reads what became of it.
        Ok(Documents::put(self.store, KIND, KEY, version, value.into()).await? == Commit::Applied)
    }

    /// Whether this process saw the lease unchanged for as long as it lasts.
    fn has_run_out(&self, version: u64, held: &Held) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *seen {
            Some((same, since)) if same == version => since,
            _ => seen.insert((version, Instant::now())).1,
        };
        since.elapsed() >= Duration::from_millis(held.lasts_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lamina_core::{clock::SystemClock, conformance::memory::MemoryStore};
    use tokio::time::advance;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn only_a_holder_that_was_seen_silent_for_the_whole_time_is_replaced() {
        let store = MemoryStore::new(Arc::new(SystemClock));
        let (one, other) = (Lease::new(&store, LENGTH), Lease::new(&store, LENGTH));
        for _ in 0..10 {
            assert!(one.hold().await.unwrap());
            assert!(!other.hold().await.unwrap());
            advance(one.pace()).await;
        }
        advance(LENGTH - one.pace() - Duration::from_millis(1)).await;
        assert!(!other.hold().await.unwrap());
        advance(Duration::from_millis(1)).await;
        assert!(other.hold().await.unwrap());
        assert!(!one.hold().await.unwrap());
        other.release().await.unwrap();
        assert!(one.hold().await.unwrap());
    }
}
