//! Ledgers and manifests: one row per epoch, and one with the version.
//!
//! ```text
//! ledgers  log partition 0        → version
//!          log partition 1 start  → epoch of the ledger
//!          log partition 2 start  → epoch of the manifest
//! ```

use std::ops::Range;

use async_trait::async_trait;
use lamina_core::{Change, Commit, Consistency, Epoch, Ledger, Ledgers, LogId, Offset, Partition, StoreError};

use super::{EmbeddedStore, packed};
use crate::backends::embedded::engine::{Db, Failure, Key, Space, live};

const VERSION: u8 = 0;
const EPOCH: u8 = 1;
const MANIFEST: u8 = 2;

fn key(log: &LogId, partition: Partition, tag: u8) -> Key {
    Key::default().text(log.as_str()).u32(partition).tag(tag)
}

/// Epochs between two keys as they were at `moment`.
fn epochs(db: &Db, moment: &fjall::Snapshot, from: Vec<u8>, to: Vec<u8>) -> Result<Vec<Epoch>, Failure> {
    let mut epochs = Vec::new();
    for entry in db.scan_at(moment, Space::Ledgers, from, to) {
        let (key, value) = entry?;
        epochs.extend(live(Space::Ledgers, &key, Some(value))?.map(|value| value.head));
    }
    Ok(epochs)
}

#[async_trait]
impl Ledgers for EmbeddedStore {
    /// Every read is linearised with commits here, whatever is asked for.
    async fn load(&self, log: &LogId, partition: Partition, _: Consistency) -> Result<Ledger, StoreError> {
        let log = log.clone();
        let load = self.engine.read(move |db| {
            let moment = db.moment();
            let version = key(&log, partition, VERSION).done();
            let stored = db.get_at(&moment, Space::Ledgers, &version)?;
            let version = live(Space::Ledgers, &version, stored)?.map_or(0, |value| value.head);
            let rows = key(&log, partition, EPOCH);
            let epochs = epochs(db, &moment, rows.clone().done(), rows.after())?;
            Ok(Ledger { version, epochs })
        });
        load.await.map_err(Failure::store)
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        let (log, change) = (log.clone(), change.clone());
        let commit = self.engine.write(move |tx| {
            let version = key(&log, partition, VERSION).done();
            let stored = tx.value::<u64>(Space::Ledgers, &version)?.map_or(0, |value| value.head);
            if stored != change.expected {
                return Ok(Commit::Refused);
            }
            for start in &change.remove {
                tx.remove(Space::Ledgers, key(&log, partition, EPOCH).u64(*start).done());
            }
            for epoch in &change.put {
                let row = key(&log, partition, EPOCH).u64(epoch.start).done();
                tx.put(Space::Ledgers, row, packed("epoch", epoch, None, &[])?);
            }
            tx.put(Space::Ledgers, version, packed("ledger version", &(stored + 1), None, &[])?);
            Ok(Commit::Applied)
        });
        commit.await.map_err(Failure::conditional)
    }

    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError> {
        let (log, epochs) = (log.clone(), epochs.to_vec());
        let archive = self.engine.write(move |tx| {
            for epoch in &epochs {
                let row = key(&log, partition, MANIFEST).u64(epoch.start).done();
                tx.put(Space::Ledgers, row, packed("epoch of the manifest", epoch, None, &[])?);
            }
            Ok(())
        });
        archive.await.map_err(Failure::store)
    }

    async fn archived(
        &self,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        let rows = key(log, partition, MANIFEST);
        let (from, to) = (rows.clone().u64(range.start).done(), rows.u64(range.end).done());
        let archived = self.engine.read(move |db| epochs(db, &db.moment(), from, to));
        archived.await.map_err(Failure::store)
    }
}
