//! Documents: rows of one partition per kind, changed by conditional statements.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{Commit, Document, Documents, StoreError};
use scylla::statement::prepared::PreparedStatement;

use super::{
    CassandraStore, Opened,
    cell::{signed, unsigned},
    session::Connection,
};

pub(super) struct DocumentStatements {
    get: PreparedStatement,
    get_serial: PreparedStatement,
    list: PreparedStatement,
    create: PreparedStatement,
    replace: PreparedStatement,
    remove: PreparedStatement,
    in_doubt: Doubts,
}

impl DocumentStatements {
    pub(super) async fn prepare(connection: &Connection) -> Result<Self, StoreError> {
        let get = "SELECT version, value FROM {}.documents WHERE kind = ? AND key = ?";
        let list = "SELECT key, version, value FROM {}.documents WHERE kind = ?";
        let create = "INSERT INTO {}.documents (kind, key, version, value) VALUES (?, ?, 1, ?) IF NOT EXISTS";
        let replace = "UPDATE {}.documents SET version = ?, value = ? WHERE kind = ? AND key = ? IF version = ?";
        let remove = "DELETE FROM {}.documents WHERE kind = ? AND key = ? IF version = ?";
        Ok(Self {
            get: connection.prepare(get).await?,
            get_serial: connection.prepare_serial(get).await?,
            list: connection.prepare(list).await?,
            create: connection.prepare_conditional(create).await?,
            replace: connection.prepare_conditional(replace).await?,
            remove: connection.prepare_conditional(remove).await?,
            in_doubt: Doubts::default(),
        })
    }
}

fn document(kind: &str, key: &str, version: Option<i64>, value: Option<Vec<u8>>) -> Result<Document, StoreError> {
    let what = || format!("table documents, kind {kind} key {key}");
    match (version, value) {
        (Some(version), Some(value)) => Ok(Document { version: unsigned(version, what)?, value: Bytes::from(value) }),
        _ => Err(StoreError::Corrupt { what: what(), why: "version or value is missing".to_owned() }),
    }
}

#[async_trait]
impl Documents for CassandraStore {
    async fn get(&self, kind: &str, key: &str) -> Result<Option<Document>, StoreError> {
        let open = self.opened().await?;
        let doubt = open.documents.in_doubt.of(kind, key);
        let statement = if doubt.is_some() { &open.documents.get_serial } else { &open.documents.get };
        let rows: Vec<(Option<i64>, Option<Vec<u8>>)> = open.connection.rows(statement, (kind, key)).await?;
        if let Some(doubt) = doubt {
            open.documents.in_doubt.settle(kind, key, doubt);
        }
        rows.into_iter().next().map(|(version, value)| document(kind, key, version, value)).transpose()
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        let open = self.opened().await?;
        let expected = signed(expected)?;
        let answer = if expected == 0 {
            open.connection.change(&open.documents.create, (kind, key, value)).await
        } else {
            let row = (expected.saturating_add(1), value, kind, key, expected);
            open.connection.change(&open.documents.replace, row).await
        };
        open.note(kind, key, answer)
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        let open = self.opened().await?;
        let rows: Vec<(String, Option<i64>, Option<Vec<u8>>)> =
            open.connection.rows(&open.documents.list, (kind,)).await?;
        let documents = rows.into_iter().map(|(key, version, value)| {
            let found = document(kind, &key, version, value)?;
            Ok((key, found))
        });
        documents.collect()
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        let open = self.opened().await?;
        let answer = open.connection.change(&open.documents.remove, (kind, key, signed(expected)?)).await;
        open.note(kind, key, answer)
    }
}

impl Opened {
    /// Remembers that a document's next reading has to settle an open outcome.
    fn note(&self, kind: &str, key: &str, answer: Result<Commit, StoreError>) -> Result<Commit, StoreError> {
        if matches!(answer, Err(StoreError::Unknown(_))) {
            self.documents.in_doubt.raise(kind, key);
        }
        answer
    }
}

/// Documents whose last conditional write here had an open outcome, each with the number of that doubt.
///
/// Readings at SERIAL disturb writers and each other, so only those that settle a doubt are. Whoever reads without having
/// written may see the value from before: its compare-and-set would find out.
#[derive(Default)]
struct Doubts(Mutex<DoubtList>);

#[derive(Default)]
struct DoubtList {
    last: u64,
    by_document: HashMap<(String, String), u64>,
}

impl Doubts {
    fn lock(&self) -> MutexGuard<'_, DoubtList> {
        // Nothing panics while it is held, so it is whole in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, kind: &str, key: &str) -> Option<u64> {
        let doubts = &self.lock().by_document;
        if doubts.is_empty() { None } else { doubts.get(&(kind.to_owned(), key.to_owned())).copied() }
    }

    fn raise(&self, kind: &str, key: &str) {
        let DoubtList { last, by_document } = &mut *self.lock();
        *last += 1;
        by_document.insert((kind.to_owned(), key.to_owned()), *last);
    }

    /// Ends a doubt, unless another was raised meanwhile.
    fn settle(&self, kind: &str, key: &str, doubt: u64) {
        let place = (kind.to_owned(), key.to_owned());
        let doubts = &mut self.lock().by_document;
        if doubts.get(&place) == Some(&doubt) {
            doubts.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_settled_by_a_reading_that_began_after_it_only() {
        let doubts = Doubts::default();
        assert_eq!(doubts.of("k", "a"), None);
        doubts.raise("k", "a");
        let seen = doubts.of("k", "a").expect("raised");
        doubts.raise("k", "a");
        doubts.settle("k", "a", seen);
        let again = doubts.of("k", "a").expect("raised again after the reading began");
        doubts.settle("k", "a", again);
        assert_eq!(doubts.of("k", "a"), None);
    }
}
