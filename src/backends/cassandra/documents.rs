//! Documents: rows of one partition per kind, changed by conditional statements.

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{Commit, Document, Documents, StoreError};
use scylla::statement::prepared::PreparedStatement;

use super::{
    CassandraStore,
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
        let doubted = self.doubts(kind, key, Doubt::Ask);
        let statement = if doubted { &self.documents.get_serial } else { &self.documents.get };
        let rows: Vec<(Option<i64>, Option<Vec<u8>>)> = self.connection.rows(statement, (kind, key)).await?;
        if doubted {
            self.doubts(kind, key, Doubt::Settle);
        }
        rows.into_iter().next().map(|(version, value)| document(kind, key, version, value)).transpose()
    }

    async fn put(&self, kind: &str, key: &str, expected: u64, value: Bytes) -> Result<Commit, StoreError> {
        let expected = signed(expected)?;
        let answer = if expected == 0 {
            self.connection.change(&self.documents.create, (kind, key, value)).await
        } else {
            let row = (expected.saturating_add(1), value, kind, key, expected);
            self.connection.change(&self.documents.replace, row).await
        };
        self.note(kind, key, answer)
    }

    async fn list(&self, kind: &str) -> Result<Vec<(String, Document)>, StoreError> {
        let rows: Vec<(String, Option<i64>, Option<Vec<u8>>)> =
            self.connection.rows(&self.documents.list, (kind,)).await?;
        let documents = rows.into_iter().map(|(key, version, value)| {
            let found = document(kind, &key, version, value)?;
            Ok((key, found))
        });
        documents.collect()
    }

    async fn remove(&self, kind: &str, key: &str, expected: u64) -> Result<Commit, StoreError> {
        let answer = self.connection.change(&self.documents.remove, (kind, key, signed(expected)?)).await;
        self.note(kind, key, answer)
    }
}

enum Doubt {
    Ask,
    Raise,
    Settle,
}

impl CassandraStore {
    /// Readings at SERIAL disturb writers and each other, so only the one that settles an open outcome is. Whoever reads
    /// without having written may see the value from before: its compare-and-set would find out.
    fn note(&self, kind: &str, key: &str, answer: Result<Commit, StoreError>) -> Result<Commit, StoreError> {
        if matches!(answer, Err(StoreError::Unknown(_))) {
            self.doubts(kind, key, Doubt::Raise);
        }
        answer
    }

    /// Whether the document was in doubt.
    fn doubts(&self, kind: &str, key: &str, doubt: Doubt) -> bool {
        // A panic cannot leave the set half changed, so it is good even then.
        let mut doubts = self.in_doubt.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match doubt {
            Doubt::Ask => !doubts.is_empty() && doubts.contains(&(kind.to_owned(), key.to_owned())),
            Doubt::Raise => !doubts.insert((kind.to_owned(), key.to_owned())),
            Doubt::Settle => doubts.remove(&(kind.to_owned(), key.to_owned())),
        }
    }
}
