//! Ledgers: one Cassandra partition each, changed by a conditional batch on its static version.

use std::{collections::HashSet, ops::Range};

use async_trait::async_trait;
use lamina_core::{Change, Commit, Consistency, Epoch, Ledger, Ledgers, LogId, Offset, Partition, StoreError};
use scylla::{
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::CqlValue::{self, BigInt, Blob, Text},
};

use super::{
    CassandraStore,
    cell::{pack, signed, unpack, unsigned},
    session::Connection,
};

/// The protocol counts the statements of a batch in two bytes.
const MAX_STATEMENTS: usize = 65_000;
/// How often a reading whose pages are of different versions is repeated.
const READINGS: usize = 5;

pub(super) struct LedgerStatements {
    load: PreparedStatement,
    load_serial: PreparedStatement,
    first: PreparedStatement,
    next: PreparedStatement,
    put: PreparedStatement,
    remove: PreparedStatement,
}

impl LedgerStatements {
    pub(super) async fn prepare(connection: &Connection) -> Result<Self, StoreError> {
        let load = "SELECT version, start, epoch FROM {}.ledgers WHERE log = ? AND partition_id = ?";
        let set = "UPDATE {}.ledgers SET version = ? WHERE log = ? AND partition_id = ? IF version =";
        let put = "INSERT INTO {}.ledgers (log, partition_id, start, epoch) VALUES (?, ?, ?, ?)";
        let remove = "DELETE FROM {}.ledgers WHERE log = ? AND partition_id = ? AND start = ?";
        Ok(Self {
            load: connection.prepare(load).await?,
            load_serial: connection.prepare_serial(load).await?,
            first: connection.prepare_conditional(&format!("{set} null")).await?,
            next: connection.prepare_conditional(&format!("{set} ?")).await?,
            put: connection.prepare_conditional(put).await?,
            remove: connection.prepare_conditional(remove).await?,
        })
    }
}

/// A row: the static version comes with each; a ledger without epochs has one row that is nothing but the version.
type LedgerRow = (Option<i64>, Option<i64>, Option<Vec<u8>>);

#[async_trait]
impl Ledgers for CassandraStore {
    async fn load(&self, log: &LogId, partition: Partition, consistency: Consistency) -> Result<Ledger, StoreError> {
        let open = self.opened().await?;
        let mut statement = match consistency {
            Consistency::Quorum => &open.ledgers.load,
            Consistency::Serial => &open.ledgers.load_serial,
        };
        for _ in 0..READINGS {
            let rows = open.connection.rows(statement, (log.as_str(), i64::from(partition))).await?;
            if let Some(ledger) = assemble(rows, log, partition)? {
                return Ok(ledger);
            }
            statement = &open.ledgers.load_serial;
        }
        Err(StoreError::Unavailable(format!("ledger {log} partition {partition} changes faster than it can be read")))
    }

    async fn commit(&self, log: &LogId, partition: Partition, change: &Change) -> Result<Commit, StoreError> {
        let open = self.opened().await?;
        let (batch, values) = open.ledgers.change(log, partition, change)?;
        open.connection.change_together(batch, values).await
    }

    async fn archive(&self, log: &LogId, partition: Partition, epochs: &[Epoch]) -> Result<(), StoreError> {
        let open = self.opened().await?;
        open.manifest.archive(&open.connection, log, partition, epochs).await
    }

    async fn archived(
        &self,
        log: &LogId,
        partition: Partition,
        range: Range<Offset>,
    ) -> Result<Vec<Epoch>, StoreError> {
        let open = self.opened().await?;
        open.manifest.archived(&open.connection, log, partition, range).await
    }
}

impl LedgerStatements {
    /// The conditional batch of a change, and the values of its statements.
    fn change(
        &self,
        log: &LogId,
        partition: Partition,
        change: &Change,
    ) -> Result<(Batch, Vec<Vec<CqlValue>>), StoreError> {
        let expected = signed(change.expected)?;
        let (log, partition) = (Text(log.as_str().to_owned()), BigInt(i64::from(partition)));
        let mut batch = Batch::new(BatchType::Unlogged);
        let mut values = vec![vec![BigInt(expected.saturating_add(1)), log.clone(), partition.clone()]];
        if expected == 0 {
            batch.append_statement(self.first.clone());
        } else {
            batch.append_statement(self.next.clone());
            values[0].push(BigInt(expected));
        }
        for epoch in &change.put {
            batch.append_statement(self.put.clone());
            values.push(vec![log.clone(), partition.clone(), BigInt(signed(epoch.start)?), Blob(pack(epoch)?)]);
        }
        // Within a batch all timestamps are equal, and then a deletion would win over the row that is put.
        let put: HashSet<Offset> = change.put.iter().map(|epoch| epoch.start).collect();
        for &start in change.remove.iter().filter(|start| !put.contains(start)) {
            batch.append_statement(self.remove.clone());
            values.push(vec![log.clone(), partition.clone(), BigInt(signed(start)?)]);
        }
        if values.len() > MAX_STATEMENTS {
            let count = values.len();
            return Err(StoreError::Refused(format!("a change of {count} rows is over the limit of {MAX_STATEMENTS}")));
        }
        Ok((batch, values))
    }
}

/// The ledger of the rows, or `None` if they are of different versions.
fn assemble(rows: Vec<LedgerRow>, log: &LogId, partition: Partition) -> Result<Option<Ledger>, StoreError> {
    let Some(&(version, ..)) = rows.first() else { return Ok(Some(Ledger::default())) };
    let what = || format!("table ledgers, log {log} partition {partition}");
    let mut ledger = Ledger { version: unsigned(version.unwrap_or(0), what)?, epochs: Vec::with_capacity(rows.len()) };
    for (other, start, cell) in rows {
        if other != version {
            return Ok(None);
        }
        if let (Some(start), Some(cell)) = (start, cell) {
            ledger.epochs.push(unpack(&cell, || format!("{} start {start}", what()))?);
        }
    }
    Ok(Some(ledger))
}
