//! Changes of the ledger: sent until their outcome is known.
//!
//! "Refused" and "unknown" prove nothing: the ledger is read back, and the writer decides whether the change was applied, is
//! to be repeated as it was, or whether another worker owns the partition.

use std::sync::Arc;

use lamina_core::{Change, Commit, Consistency, writer::Resolved};
use tracing::{info, warn};

use crate::{
    partition::{Hold, Interrupt},
    retry::{Backoff, until_done},
};

/// What a change of the ledger is for.
#[derive(Clone, Copy)]
pub(crate) enum Sent {
    Publish,
    Seal,
}

impl Hold {
    /// Makes this epoch count, once it is flushed past what readers saw before.
    pub(crate) async fn publish(&mut self) -> Result<(), Interrupt> {
        let Some(change) = self.writer.publish(&self.ledger)? else { return Ok(()) };
        self.settle(change, Sent::Publish).await?;
        self.place.instruments.taken_over();
        let epoch = self.writer.epoch();
        info!(place = %self.place, epoch = %epoch.id, start = epoch.start, position = self.standing.position, "partition taken over");
        Ok(())
    }

    /// Sends a change of the ledger until its outcome is known.
    pub(crate) async fn settle(&mut self, mut change: Change, sent: Sent) -> Result<(), Interrupt> {
        let place = Arc::clone(&self.place);
        let store = &place.deps.store;
        let mut backoff = Backoff::new();
        loop {
            match store.commit(&self.log, place.partition, &change).await {
                Ok(Commit::Applied) => {
                    if let Some(ledger) = self.ledger.apply(&change) {
                        self.ledger = ledger;
                        match sent {
                            Sent::Publish => self.writer.published(),
                            Sent::Seal => self.writer.sealed(),
                        }
                        return Ok(());
                    }
                }
                Ok(Commit::Refused) => {}
                Err(error) => {
                    warn!(%place, %error, "outcome of a ledger change is not known; reading back");
                    backoff.wait().await;
                }
            }
            self.reload().await;
            match self.writer.resolve(&self.ledger)? {
                Resolved::Applied => return Ok(()),
                Resolved::Repeat(again) => change = again,
                Resolved::Fenced => return Err(Interrupt::Fenced),
            }
        }
    }

    /// Reads the ledger as it is decided.
    pub(crate) async fn reload(&mut self) {
        let (place, store) = (&self.place, &self.place.deps.store);
        let load = || store.load(&self.log, place.partition, Consistency::Serial);
        self.ledger = until_done!("read the ledger", place, load());
    }
}
