//! Documents.
//!
//! ```text
//! documents  kind key → version; the value
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{Commit, Document, Documents, StoreError};

use super::{EmbeddedStore, corrupt, packed};
use crate::backends::embedded::engine::{Failure, Key, Parts, Space, Tx, live};

fn document_key(kind: &str, key: &str) -> Vec<u8> {
    Key::default().text(kind).text(key).done()
}

/// The version that is stored, 0 if there is none.
fn version(tx: &Tx<'_>, key: &[u8]) -> Result<u64, Failure> {
    Ok(tx.value::<u64>(Space::Documents, key)?.map_or(0, |stored| stored.head))
}

#[async_trait]
impl Documents for EmbeddedStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        let key = document_key(kind, key);
        let found = self.engine.read(move |db| db.value(Space::Documents, &key)).await.map_err(Failure::store)?;
        Ok(found.map(|value| Document { version: value.head, value: value.body }))
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        let key = document_key(kind, key);
        let row = packed("document", &(expected.saturating_add(1)), None, &value).map_err(Failure::store)?;
        let put = self.engine.write(move |tx| {
            if version(tx, &key)? != expected {
                return Ok(Commit::Refused);
            }
            tx.put(Space::Documents, key, row);
            Ok(Commit::Applied)
        });
        put.await.map_err(Failure::conditional)
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        let prefix = Key::default().text(kind);
        let list = self.engine.read(move |db| {
            let (from, to) = (prefix.clone().done(), prefix.after());
            let length = from.len();
            let mut documents = Vec::new();
            for entry in db.scan(Space::Documents, from, to) {
                let (key, value) = entry?;
                let name = key.get(length..).and_then(|rest| String::from_utf8(Parts(rest).bytes()?).ok());
                let name = name.ok_or_else(|| corrupt("document", &key))?;
                let found = live(Space::Documents, &key, Some(value))?;
                documents.extend(found.map(|value| (name, Document { version: value.head, value: value.body })));
            }
            Ok(documents)
        });
        list.await.map_err(Failure::store)
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        let key = document_key(kind, key);
        let remove = self.engine.write(move |tx| {
            if expected == 0 || version(tx, &key)? != expected {
                return Ok(Commit::Refused);
            }
            tx.remove(Space::Documents, key);
            Ok(Commit::Applied)
        });
        remove.await.map_err(Failure::conditional)
    }
}
