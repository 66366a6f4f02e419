//! One session to the cluster: how statements are prepared, sent and read.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use lamina_core::{Commit, StoreError};
use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    deserialize::row::DeserializeRow,
    errors::ExecutionError,
    policies::{
        load_balancing::DefaultPolicy,
        retry::{DefaultRetryPolicy, FallthroughRetryPolicy},
    },
    response::{
        PagingState,
        query_result::{QueryResult, QueryRowsResult},
    },
    serialize::{batch::BatchValues, row::SerializeRow},
    statement::{Consistency, SerialConsistency, batch::Batch, prepared::PreparedStatement, unprepared::Statement},
    value::{CqlValue, Row},
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument;

use super::{CONCURRENCY, config::CassandraConfig, errors, trace};

/// How long opening a session may take as a whole.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a change of the schema may take.
const DDL_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent connection is asked this often, and dropped when it stays silent as long.
const KEEPALIVE: Duration = Duration::from_secs(5);
const PAGE_ROWS: i32 = 5000;

pub(super) struct Connection {
    session: Session,
    keyspace: String,
    /// What writes wait for.
    writes: Consistency,
    /// Abandoned requests keep their stream until the node answers, and too many of them cost the connection.
    permits: Semaphore,
}

impl Connection {
    /// A session that serves the configured keyspace.
    pub(super) async fn open(config: &CassandraConfig) -> Result<Self, StoreError> {
        Self::open_for(config, Some(&config.keyspace)).await
    }

    /// A session that knows where the rows of one keyspace lie, or of all.
    pub(super) async fn open_for(config: &CassandraConfig, keyspace: Option<&String>) -> Result<Self, StoreError> {
        config.check()?;
        let balancing = DefaultPolicy::builder().prefer_datacenter(config.local_dc.clone()).token_aware(true);
        let profile = ExecutionProfile::builder()
            .load_balancing_policy(balancing.permit_dc_failover(false).build())
            .retry_policy(Arc::new(DefaultRetryPolicy::new()))
            .consistency(Consistency::LocalQuorum)
            .serial_consistency(Some(SerialConsistency::Serial))
            .request_timeout(Some(config.request_timeout))
            .build();
        let mut builder = SessionBuilder::new()
            .known_nodes(&config.contact_points)
            .default_execution_profile_handle(profile.into_handle())
            .keyspaces_to_fetch(keyspace)
            .connection_timeout(KEEPALIVE)
            .keepalive_interval(KEEPALIVE)
            .keepalive_timeout(KEEPALIVE)
            .tcp_nodelay(true);
        if let (Some(username), Some(password)) = (&config.username, &config.password) {
            builder = builder.user(username, password);
        }
        if let Some(files) = &config.tls {
            let tls = files.open().map_err(|error| StoreError::Refused(format!("store.tls: {error}")))?;
            builder = builder.tls_context(Some(tls));
        }
        let points = config.contact_points.join(", ");
        let session = tokio::time::timeout(OPEN_TIMEOUT, builder.build())
            .await
            .map_err(|_| {
                StoreError::Unavailable(format!("no Cassandra node answered within {OPEN_TIMEOUT:?} at {points}"))
            })?
            .map_err(|error| StoreError::Unavailable(format!("no Cassandra session with {points}: {error}")))?;
        let (keyspace, writes) = (config.keyspace.clone(), config.write_consistency.level());
        let opened = Self { session, keyspace, writes, permits: Semaphore::new(config.in_flight) };
        opened.check_data_centre(&config.local_dc)?;
        Ok(opened)
    }

    /// A misspelt data centre would leave every statement without a node to go to.
    fn check_data_centre(&self, local_dc: &str) -> Result<(), StoreError> {
        let state = self.session.get_cluster_state();
        let mut known: Vec<_> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
        known.sort_unstable();
        known.dedup();
        if known.contains(&local_dc) {
            return Ok(());
        }
        let known = known.join(", ");
        Err(StoreError::Refused(format!("local_dc is {local_dc:?}, but the cluster's data centres are: {known}")))
    }

    /// The session itself, for what only one place needs.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Prepares a reading: `{}` stands for the keyspace. It may be repeated.
    pub(super) async fn prepare(&self, text: &str) -> Result<PreparedStatement, StoreError> {
        let mut statement = Statement::new(text.replace("{}", &self.keyspace));
        statement.set_is_idempotent(true);
        statement.set_page_size(PAGE_ROWS);
        statement.set_consistency(Consistency::LocalQuorum);
        self.session.prepare(statement).await.map_err(errors::preparing)
    }

    /// Prepares an upsert, which may be repeated.
    pub(super) async fn prepare_upsert(&self, text: &str) -> Result<PreparedStatement, StoreError> {
        let mut prepared = self.prepare(text).await?;
        prepared.set_consistency(self.writes);
        Ok(prepared)
    }

    /// Prepares a reading that is linearised with conditional writes.
    pub(super) async fn prepare_serial(&self, text: &str) -> Result<PreparedStatement, StoreError> {
        let mut prepared = self.prepare(text).await?;
        prepared.set_consistency(Consistency::Serial);
        Ok(prepared)
    }

    /// Prepares a conditional write, which is never repeated here. It is decided by all data centres (SERIAL), and
    /// acknowledged where it will be read.
    pub(super) async fn prepare_conditional(&self, text: &str) -> Result<PreparedStatement, StoreError> {
        let mut prepared = self.prepare(text).await?;
        prepared.set_is_idempotent(false);
        prepared.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
        prepared.set_consistency(self.writes);
        prepared.set_serial_consistency(Some(SerialConsistency::Serial));
        Ok(prepared)
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.permits.acquire().await.map_err(|_| StoreError::Unavailable("the session was closed".to_owned()))
    }

    pub(super) async fn upsert(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<(), StoreError> {
        let _permit = self.permit().await?;
        let sent = self.session.execute_unpaged(statement, values).instrument(trace::of(statement)).await;
        sent.map(drop).map_err(errors::repeatable)
    }

    /// Upserts into one Cassandra partition, in one request.
    pub(super) async fn upsert_together(&self, mut batch: Batch, values: impl BatchValues) -> Result<(), StoreError> {
        batch.set_is_idempotent(true);
        batch.set_consistency(self.writes);
        let _permit = self.permit().await?;
        let sent = self.session.batch(&batch, values).instrument(trace::of_batch(&batch)).await;
        sent.map(drop).map_err(errors::repeatable)
    }

    pub(super) async fn change(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Commit, StoreError> {
        let _permit = self.permit().await?;
        outcome(self.session.execute_unpaged(statement, values).instrument(trace::of(statement)).await)
    }

    /// A conditional batch within one Cassandra partition.
    pub(super) async fn change_together(
        &self,
        mut batch: Batch,
        values: impl BatchValues,
    ) -> Result<Commit, StoreError> {
        batch.set_is_idempotent(false);
        batch.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
        batch.set_consistency(self.writes);
        batch.set_serial_consistency(Some(SerialConsistency::Serial));
        let _permit = self.permit().await?;
        outcome(self.session.batch(&batch, values).instrument(trace::of_batch(&batch)).await)
    }

    /// One page of rows, and where the next begins.
    pub(super) async fn page(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        from: PagingState,
    ) -> Result<(QueryRowsResult, Option<PagingState>), StoreError> {
        let _permit = self.permit().await?;
        let page = self.session.execute_single_page(statement, &values, from).instrument(trace::of(statement)).await;
        let (page, next) = page.map_err(errors::repeatable)?;
        let next = match next.into_paging_control_flow() {
            ControlFlow::Continue(next) => Some(next),
            ControlFlow::Break(()) => None,
        };
        Ok((page.into_rows_result().map_err(errors::shape)?, next))
    }

    /// All rows of all pages.
    pub(super) async fn rows<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> DeserializeRow<'r, 'r>,
    {
        let (mut rows, mut from) = (Vec::new(), Some(PagingState::start()));
        while let Some(at) = from {
            let (page, next) = self.page(statement, &values, at).await?;
            for row in page.rows::<R>().map_err(errors::shape)? {
                rows.push(row.map_err(errors::shape)?);
            }
            from = next;
        }
        Ok(rows)
    }

    /// Rows of a statement that is used once.
    pub(super) async fn ask<R>(&self, text: &str, values: impl SerializeRow) -> Result<Vec<R>, StoreError>
    where
        R: for<'r> DeserializeRow<'r, 'r>,
    {
        self.rows(&self.prepare(text).await?, values).await
    }

    /// Runs DDL and waits until all nodes agree on the schema.
    pub(super) async fn define(&self, text: &str) -> Result<(), StoreError> {
        let mut statement = Statement::new(text);
        statement.set_is_idempotent(true);
        statement.set_request_timeout(Some(DDL_TIMEOUT));
        self.session.query_unpaged(statement, ()).await.map_err(errors::repeatable)?;
        let agreed = self.session.await_schema_agreement().await;
        agreed.map(drop).map_err(|error| StoreError::Unavailable(format!("nodes do not agree on the schema: {error}")))
    }
}

/// Does all, many at a time; the first error ends it.
pub(super) async fn all<F>(writes: impl Iterator<Item = F>) -> Result<(), StoreError>
where
    F: Future<Output = Result<(), StoreError>>,
{
    stream::iter(writes).buffer_unordered(CONCURRENCY).try_collect().await
}

/// Reads all, several at a time, and keeps the order.
pub(super) async fn gather<F, T>(reads: impl Iterator<Item = F>) -> Result<Vec<T>, StoreError>
where
    F: Future<Output = Result<Vec<T>, StoreError>>,
{
    stream::iter(reads).buffered(CONCURRENCY / 8).try_concat().await
}

/// The first column of a conditional statement's answer is `[applied]`; what follows depends on the outcome.
fn outcome(answer: Result<QueryResult, ExecutionError>) -> Result<Commit, StoreError> {
    let unclear = |error: String| StoreError::Unknown(format!("the answer cannot be read: {error}"));
    let rows = answer.map_err(errors::conditional)?.into_rows_result().map_err(|error| unclear(error.to_string()))?;
    let row: Row = rows.first_row().map_err(|error| unclear(error.to_string()))?;
    match row.columns.first() {
        Some(Some(CqlValue::Boolean(true))) => Ok(Commit::Applied),
        Some(Some(CqlValue::Boolean(false))) => Ok(Commit::Refused),
        other => Err(unclear(format!("{other:?} instead of [applied]"))),
    }
}
