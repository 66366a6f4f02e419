//! Who leads batch: a document that names a holder and a time.
//!
//! For liveness only: two leaders at once waste work, but generations keep them from harm.

use std::time::Duration;

use lamina_core::{Clock, Commit, Documents, Micros, Store, StoreError, envelope};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const KIND: &str = "lease";
const KEY: &str = "batch";

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    holder: String,
    until: Micros,
}

pub(crate) struct Lease<'a> {
    store: &'a dyn Store,
    clock: &'a dyn Clock,
    holder: String,
    length: Duration,
}

impl<'a> Lease<'a> {
    pub(crate) fn new(store: &'a dyn Store, clock: &'a dyn Clock, length: Duration) -> Self {
        Self { store, clock, holder: Uuid::now_v7().simple().to_string(), length }
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
        let length = Micros::try_from(self.length.as_micros()).unwrap_or(Micros::MAX);
        self.write(length).await
    }

    /// Lets the next one lead at once.
    pub(crate) async fn release(&self) -> Result<bool, StoreError> {
        self.write(0).await
    }

    async fn write(&self, length: Micros) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let (version, held) = match self.store.get(KIND, KEY).await? {
            Some(document) => (document.version, envelope::unpack::<Held>(&document.value).ok()),
            None => (0, None),
        };
        if held.is_some_and(|held| held.holder != self.holder && held.until > now) {
            return Ok(false);
        }
        let next = Held { holder: self.holder.clone(), until: now.saturating_add(length) };
        let value = envelope::pack(&next)
            .map_err(|error| StoreError::Corrupt { what: "batch lease".to_owned(), why: error.to_string() })?;
        // An unknown outcome is an error: the caller asks again, and then reads what became of it.
        Ok(Documents::put(self.store, KIND, KEY, version, value.into()).await? == Commit::Applied)
    }
}
