//! Users' own tables: scanned by ranges of the token ring, each asked of a replica of its own, and written by primary key.
//!
//! # Invariants
//! - The ranges of a table tile the ring: every token lies in exactly one of them.
//! - Every write names its timestamp and depends on nothing, so all of it may be repeated.
//! - lamina's own keyspace is never touched from here, whatever a definition says.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    StoreError, TableName, Tables,
    tables::{CellChange, Column, Page, Reading, Role, RowKey, Table, TableRow, TokenRange, Value},
};
use scylla::{
    cluster::{ClusterState, NodeRef},
    deserialize::row::{ColumnIterator, RawColumn},
    policies::load_balancing::{FallbackPlan, LoadBalancingPolicy, RoutingInfo},
    response::PagingState,
    routing::{Shard, Token},
    statement::prepared::PreparedStatement,
};
use tokio::sync::OnceCell;

use super::{
    config::CassandraConfig,
    errors,
    session::{Connection, all},
    table_value::{Bound, column_type, read},
};

/// The ring is cut into so many ranges at least.
const RANGES: u64 = 256;
/// Rows of one page. A page is what a scan of a range holds at a time.
const PAGE_ROWS: i32 = 2_000;

/// The tables of the cluster, through a session of their own, which knows where the rows of all keyspaces lie.
pub struct CassandraTables {
    config: CassandraConfig,
    connection: OnceCell<Arc<Connection>>,
}

impl CassandraTables {
    /// Connects when it is first asked.
    pub fn new(config: CassandraConfig) -> Self {
        Self { config, connection: OnceCell::new() }
    }

    /// The session, for a table that is not lamina's own.
    async fn connection(&self, table: &TableName) -> Result<&Arc<Connection>, StoreError> {
        if table.keyspace == self.config.keyspace {
            return Err(StoreError::Refused(format!(
                "{table} lies in lamina's own keyspace, which nobody else works on"
            )));
        }
        let open = || async { Connection::open_for(&self.config, None).await.map(Arc::new) };
        self.connection.get_or_try_init(open).await
    }
}

#[async_trait]
impl Tables for CassandraTables {
    async fn describe(&self, table: &TableName) -> Result<Vec<Column>, StoreError> {
        let columns = columns(self.connection(table).await?, table).await?;
        Ok(columns.into_iter().map(|(_, column)| column).collect())
    }

    async fn open(&self, reading: Reading) -> Result<Arc<dyn Table>, StoreError> {
        let connection = self.connection(&reading.table).await?;
        if connection.session().get_cluster_state().get_keyspace(&reading.table.keyspace).is_none() {
            // It is younger than what the session knows.
            let refreshed = connection.session().refresh_metadata().await;
            refreshed.map_err(|error| StoreError::Unavailable(format!("the cluster's metadata: {error}")))?;
        }
        let mut described = columns(connection, &reading.table).await?;
        described.retain(|(_, column)| matches!(column.role, Role::PartitionKey | Role::ClusteringKey));
        described.sort_by_key(|(position, column)| (column.role == Role::ClusteringKey, *position));
        let key: Vec<Column> = described.into_iter().map(|(_, column)| column).collect();
        let statements = Statements::prepare(connection, &reading, &key).await?;
        let (connection, local_dc) = (Arc::clone(connection), self.config.local_dc.clone());
        let has_clustering = key.iter().any(|column| column.role == Role::ClusteringKey);
        Ok(Arc::new(OpenTable {
            connection,
            reading,
            keys: key.len(),
            has_clustering,
            statements,
            local_dc: local_dc.into(),
        }))
    }
}

/// Columns with their positions within the key.
async fn columns(connection: &Connection, table: &TableName) -> Result<Vec<(i32, Column)>, StoreError> {
    let text = "SELECT column_name, kind, position, type FROM system_schema.columns \
                WHERE keyspace_name = ? AND table_name = ?";
    let rows: Vec<(String, String, i32, String)> = connection.ask(text, (&table.keyspace, &table.table)).await?;
    if rows.is_empty() {
        return Err(StoreError::Refused(format!("there is no table {table} in the cluster")));
    }
    let column = |(name, role, position, declared): (String, String, i32, String)| {
        let role = match role.as_str() {
            "partition_key" => Role::PartitionKey,
            "clustering" => Role::ClusteringKey,
            "static" => Role::Static,
            _ => Role::Regular,
        };
        let (kind, writable) = column_type(&declared);
        (position, Column { name, role, kind, declared, writable })
    };
    Ok(rows.into_iter().map(column).collect())
}

struct Statements {
    scan: PreparedStatement,
    /// One per column that may be written, in the reading's order.
    update: Vec<PreparedStatement>,
    delete: Option<PreparedStatement>,
}

/// An identifier as CQL takes any name.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Statements {
    async fn prepare(connection: &Connection, reading: &Reading, key: &[Column]) -> Result<Self, StoreError> {
        let Reading { table, columns, written, living, deletes } = reading;
        let place = format!("{}.{}", quoted(&table.keyspace), quoted(&table.table));
        let names: Vec<String> = key.iter().map(|column| quoted(&column.name)).collect();
        let partition = key.iter().filter(|column| column.role == Role::PartitionKey);
        let partition = partition.map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ");
        let row = names.iter().map(|name| format!("{name} = ?")).collect::<Vec<_>>().join(" AND ");
        let of = |function: &str, at: &usize| format!("{function}({})", quoted(&columns[*at]));
        let selected = names.iter().cloned().chain(columns.iter().map(|name| quoted(name)));
        let selected = selected.chain(written.iter().map(|at| of("WRITETIME", at)));
        let selected = selected.chain(living.iter().map(|at| of("TTL", at))).collect::<Vec<_>>().join(", ");
        let range = format!("token({partition}) > ? AND token({partition}) <= ?");
        let mut scan = connection.prepare(&format!("SELECT {selected} FROM {place} WHERE {range}")).await?;
        scan.set_page_size(PAGE_ROWS);
        let mut update = Vec::with_capacity(written.len());
        for &at in written {
            let set = format!("UPDATE {place} USING TIMESTAMP ? AND TTL ? SET {} = ?", quoted(&columns[at]));
            update.push(connection.prepare_upsert(&format!("{set} WHERE {row}")).await?);
        }
        let delete = match deletes {
            true => {
                let text = format!("DELETE FROM {place} USING TIMESTAMP ? WHERE {row}");
                Some(connection.prepare_upsert(&text).await?)
            }
            false => None,
        };
        Ok(Self { scan, update, delete })
    }
}

struct OpenTable {
    connection: Arc<Connection>,
    reading: Reading,
    /// Columns of the primary key, which are read first.
    keys: usize,
    has_clustering: bool,
    statements: Statements,
    local_dc: Arc<str>,
}

#[async_trait]
impl Table for OpenTable {
    fn ranges(&self) -> Vec<TokenRange> {
        let state = self.connection.session().get_cluster_state();
        tile(state.replica_locator().ring().iter().map(|(token, _)| token.value()).collect())
    }

    async fn page(&self, range: TokenRange, from: Option<Bytes>) -> Result<Page, StoreError> {
        let mut scan = self.statements.scan.clone();
        let near =
            Near { token: Token::new(range.upto), table: self.reading.table.clone(), dc: Arc::clone(&self.local_dc) };
        scan.set_load_balancing_policy(Some(Arc::new(near)));
        let from = from.map_or_else(PagingState::start, |from| PagingState::new_from_raw_bytes(from.to_vec()));
        let (page, next) = self.connection.page(&scan, (range.after, range.upto), from).await?;
        let mut rows = Vec::with_capacity(page.rows_num());
        for row in page.rows::<ColumnIterator<'_, '_>>().map_err(errors::shape)? {
            rows.extend(self.row(row.map_err(errors::shape)?)?);
        }
        let next = next.and_then(|next| next.as_bytes_slice().map(|bytes| Bytes::copy_from_slice(bytes)));
        Ok(Page { rows, next })
    }

    async fn update(&self, cells: &[CellChange]) -> Result<(), StoreError> {
        let write = |cell: &CellChange| {
            let statement = self.reading.written.iter().position(|at| *at == cell.column);
            let statement = statement.and_then(|at| self.statements.update.get(at));
            let ttl = cell.ttl.map_or(0, |ttl| i32::try_from(ttl).unwrap_or(i32::MAX));
            let values = [Bound::Long(cell.at), Bound::Int(ttl), Bound::Value(cell.value.clone())];
            let values: Vec<Bound> = values.into_iter().chain(raw(&cell.key)).collect();
            async move {
                let statement = statement.ok_or_else(|| StoreError::Refused("the column is not written".to_owned()))?;
                self.connection.upsert(statement, values).await
            }
        };
        let writes: Vec<_> = cells.iter().map(write).collect();
        all(writes.into_iter()).await
    }

    async fn delete(&self, keys: &[RowKey], at: i64) -> Result<(), StoreError> {
        let Some(statement) = &self.statements.delete else {
            return Err(StoreError::Refused("the table was opened to be read".to_owned()));
        };
        let remove = |key: &RowKey| {
            let values: Vec<Bound> = std::iter::once(Bound::Long(at)).chain(raw(key)).collect();
            self.connection.upsert(statement, values)
        };
        let removals: Vec<_> = keys.iter().map(remove).collect();
        all(removals.into_iter()).await
    }
}

fn raw(key: &RowKey) -> impl Iterator<Item = Bound> {
    key.0.iter().cloned().map(Bound::Raw)
}

impl OpenTable {
    /// `None` for a partition that has static columns and no row.
    fn row(&self, cells: ColumnIterator<'_, '_>) -> Result<Option<TableRow>, StoreError> {
        let Reading { columns, written, .. } = &self.reading;
        let (values_end, written_end) = (self.keys + columns.len(), self.keys + columns.len() + written.len());
        let mut key = Vec::with_capacity(self.keys);
        let mut values = Vec::with_capacity(columns.len());
        let mut written_at = Vec::with_capacity(written.len());
        let mut ttls = Vec::new();
        for cell in cells {
            let RawColumn { index, spec, slice, .. } = cell.map_err(errors::shape)?;
            if index < self.keys {
                match slice {
                    Some(slice) => key.push(slice.to_bytes()),
                    None if self.has_clustering => return Ok(None),
                    None => return Err(StoreError::Refused(format!("key column {} is null", spec.name()))),
                }
                continue;
            }
            let value = read(spec.typ(), slice)?;
            match value {
                value if index < values_end => values.push(value),
                Value::Int(at) if index < written_end => written_at.push(Some(at)),
                _ if index < written_end => written_at.push(None),
                Value::Int(left) => ttls.push(Some(left)),
                _ => ttls.push(None),
            }
        }
        Ok(Some(TableRow { ttl: self.ttl(&values, &ttls), key: RowKey(key), values, written_at }))
    }

    /// How long the longest-lived of the values lives. A value that is not there has none, and says nothing.
    fn ttl(&self, values: &[Value], ttls: &[Option<i64>]) -> Option<u32> {
        let mut longest = 0;
        for (at, ttl) in self.reading.living.iter().zip(ttls) {
            if values.get(*at).is_some_and(|value| *value != Value::Null) {
                longest = longest.max((*ttl)?);
            }
        }
        u32::try_from(longest).ok().filter(|left| *left > 0)
    }
}

/// The ring between these tokens, each piece cut into equal parts, none longer than a [`RANGES`]th of the ring. First parts
/// come first, so that neighbours in the list lie on different nodes.
fn tile(mut tokens: Vec<i64>) -> Vec<TokenRange> {
    tokens.extend([i64::MIN, i64::MAX]);
    tokens.sort_unstable();
    tokens.dedup();
    let longest = u64::MAX / RANGES + 1;
    let mut ranges: Vec<(u64, TokenRange)> = Vec::new();
    for pair in tokens.windows(2) {
        let (after, upto) = (i128::from(pair[0]), i128::from(pair[1]));
        let parts = pair[0].abs_diff(pair[1]).div_ceil(longest).max(1);
        let edge = |part: u64| {
            let at = after + (upto - after) * i128::from(part) / i128::from(parts);
            i64::try_from(at).unwrap_or(pair[1])
        };
        ranges.extend((0..parts).map(|part| (part, TokenRange { after: edge(part), upto: edge(part + 1) })));
    }
    ranges.sort_by_key(|(part, _)| *part);
    ranges.into_iter().map(|(_, range)| range).collect()
}

/// Asks the replicas of a token in one data centre, then its other nodes.
#[derive(Debug)]
struct Near {
    token: Token,
    table: TableName,
    dc: Arc<str>,
}

impl Near {
    /// Replicas in turns: neighbouring ranges begin with different ones.
    fn replicas<'a>(&self, cluster: &'a ClusterState) -> Vec<(NodeRef<'a>, Shard)> {
        let Some(keyspace) = cluster.get_keyspace(&self.table.keyspace) else { return Vec::new() };
        let table = scylla::frame::response::result::TableSpec::borrowed(&self.table.keyspace, &self.table.table);
        let locator = cluster.replica_locator();
        let found = locator.replicas_for_token(self.token, &keyspace.strategy, None, &table);
        let local = |(node, _): &(NodeRef<'a>, Shard)| node.datacenter.as_deref() == Some(&*self.dc);
        let mut replicas: Vec<_> = found.into_iter().filter(local).collect();
        let turn = self.token.value().unsigned_abs() >> 40;
        let first = usize::try_from(turn).unwrap_or(0) % replicas.len().max(1);
        replicas.rotate_left(first);
        replicas
    }
}

impl LoadBalancingPolicy for Near {
    fn pick<'a>(&'a self, _: &'a RoutingInfo<'_>, cluster: &'a ClusterState) -> Option<(NodeRef<'a>, Option<Shard>)> {
        self.replicas(cluster).first().map(|(node, shard)| (*node, Some(*shard)))
    }

    fn fallback<'a>(&'a self, _: &'a RoutingInfo<'_>, cluster: &'a ClusterState) -> FallbackPlan<'a> {
        let replicas: Vec<NodeRef<'a>> = self.replicas(cluster).into_iter().map(|(node, _)| node).collect();
        let nodes = cluster.get_nodes_info().iter().filter(|node| node.datacenter.as_deref() == Some(&*self.dc));
        let others: Vec<NodeRef<'a>> =
            nodes.filter(|node| !replicas.iter().any(|one| one.host_id == node.host_id)).collect();
        Box::new(replicas.into_iter().chain(others).map(|node| (node, None)))
    }

    fn name(&self) -> String {
        "lamina: replicas of a token range".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_tile_the_ring_and_none_is_long() {
        let owned: Vec<i64> = (0..48_i64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed())).collect();
        for tokens in [vec![], vec![0], vec![i64::MIN, 5, i64::MAX], owned] {
            let count = tokens.len();
            let mut ranges = tile(tokens);
            assert!((256..=256 + count + 2).contains(&ranges.len()), "{} of {count}", ranges.len());
            ranges.sort_by_key(|range| range.after);
            assert_eq!((ranges[0].after, ranges[ranges.len() - 1].upto), (i64::MIN, i64::MAX));
            assert!(ranges.windows(2).all(|pair| pair[0].upto == pair[1].after));
            assert!(ranges.iter().all(|range| range.after.abs_diff(range.upto) <= (1 << 56) + 1));
        }
    }
}
