//! Tables that belong to users, as batch reads and writes them: in ranges of the token ring, by primary key.
//!
//! # Invariants
//! - The ranges of a table are the whole ring, each token in one of them: a scan of all meets every row once.
//! - Every write says its own timestamp, so that what somebody wrote later stays.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    ids::{Micros, Offset},
    store::StoreError,
};

/// `keyspace.table`, as the cluster keeps the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    pub keyspace: String,
    pub table: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.keyspace, self.table)
    }
}

/// What a column is in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    PartitionKey,
    ClusteringKey,
    /// One value for a whole partition.
    Static,
    Regular,
}

/// What the values of a column are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    Text,
    Int,
    Float,
    Decimal,
    Bool,
    Time,
    Date,
    /// Collections and whatever else is not one plain value.
    Other,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub role: Role,
    pub kind: ColumnType,
    /// Its type as the table declares it.
    pub declared: String,
    /// Whether every value of `kind` that the column takes is read back as it was written.
    pub writable: bool,
}

/// One value of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// `unscaled` times 10 to the power of minus `scale`.
    Decimal {
        unscaled: i128,
        scale: i32,
    },
    Time(Micros),
    /// Days since 1970-01-01.
    Date(i32),
    Text(String),
    /// There is a value that none of these can hold, and why.
    Unreadable(String),
}

/// A row's primary key: each column's value as the table's own store writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowKey(pub Vec<Bytes>);

impl RowKey {
    /// A number that stands for the row, the same in every scan; two rows hardly ever have the same.
    pub fn number(&self) -> Offset {
        let mut hash = Xxh3::new();
        for part in &self.0 {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.digest()
    }
}

/// The tokens in `(after, upto]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRange {
    pub after: i64,
    pub upto: i64,
}

/// What is read of a table, and what may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub table: TableName,
    pub columns: Vec<String>,
    /// Indexes into `columns` of those that may be written: of them the write time is read, too.
    pub written: Vec<usize>,
    /// Indexes into `columns` of those whose time to live is read: regular ones.
    pub living: Vec<usize>,
    /// Whether rows may be deleted.
    pub deletes: bool,
}

/// A row as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRow {
    pub key: RowKey,
    /// One per column of the reading.
    pub values: Vec<Value>,
    /// When the columns that may be written were written last; `None` for one that holds nothing.
    pub written_at: Vec<Option<Micros>>,
    /// Seconds that are left until the last of the row's values expires; `None` if one of them does not.
    pub ttl: Option<u32>,
}

/// Some rows of a range, in order.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub rows: Vec<TableRow>,
    /// Where the range goes on; `None` at its end.
    pub next: Option<Bytes>,
}

/// A new value for one cell.
#[derive(Clone, Debug, PartialEq)]
pub struct CellChange {
    pub key: RowKey,
    /// Index into the reading's columns; one of those that may be written.
    pub column: usize,
    /// [`Value::Null`] removes what is there.
    pub value: Value,
    /// Write timestamp.
    pub at: Micros,
    /// Seconds to live; `None` is for ever.
    pub ttl: Option<u32>,
}

/// The tables of a cluster.
#[async_trait]
pub trait Tables: Send + Sync {
    /// The columns of a table, none left out.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if there is no such table.
    async fn describe(&self, table: &TableName) -> Result<Vec<Column>, StoreError>;

    /// Prepares to read a table, and to write it as far as the reading says.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the table does not have what the reading names, or it may not be read.
    async fn open(&self, reading: Reading) -> Result<Arc<dyn Table>, StoreError>;
}

/// A table that is being read.
#[async_trait]
pub trait Table: Send + Sync {
    /// The ring in ranges, such that those that follow each other lie on different nodes as far as there are some.
    fn ranges(&self) -> Vec<TokenRange>;

    /// The rows of a range, from its beginning or from where a page said that it goes on. Of a partition without rows,
    /// which has static columns only, there is none.
    async fn page(&self, range: TokenRange, from: Option<Bytes>) -> Result<Page, StoreError>;

    /// Writes cells; all are acknowledged when this returns. A value that was written later stays.
    async fn update(&self, cells: &[CellChange]) -> Result<(), StoreError>;

    /// Removes what was written of these rows up to `at`; all is acknowledged when this returns.
    async fn delete(&self, keys: &[RowKey], at: Micros) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_another_that_is_cut_elsewhere() {
        let key = |parts: &[&'static str]| RowKey(parts.iter().map(|part| Bytes::from(*part)).collect()).number();
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab", ""]), key(&["ab"]));
    }
}
