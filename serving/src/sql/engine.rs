//! Runs queries: their own runtime, their own memory, and an end to each.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use bytes::Bytes;
use datafusion::{
    catalog::MemorySchemaProvider,
    common::{DataFusionError, TableReference},
    dataframe::DataFrame,
    execution::{
        SessionState, SessionStateBuilder, SessionStateDefaults,
        context::SQLOptions,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use lamina_core::ids::new_id;
use lamina_metric::{Length, summary};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    archive::{self, ArchiveTable},
    encode::Encoder,
    growth, guard,
    request::Body,
    scan::{BATCH_ROWS, Passed, Proofs},
    table::MetricTable,
};
use crate::{
    app::App,
    auth::{Principal, Scope},
    config::SqlLimits,
    problem::Problem,
    query::format::Format,
};

/// What holds all tables: metrics without a schema, archives in theirs.
const CATALOG: &str = "lamina";
/// Stack of the threads that plan: deep, as plans are walked recursively.
const STACK_BYTES: usize = 32 << 20;
/// Pieces of a result that wait for a slow client.
const PIECES: usize = 4;

/// A part of a result.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Bytes),
    /// The last one, with what proves the result.
    Done(Value),
    Failed(Problem),
}

/// Runs queries, and knows those under way.
pub(crate) struct Sql {
    limits: SqlLimits,
    /// Begun with the first query.
    runtime: OnceLock<Option<Runtime>>,
    permits: Arc<Semaphore>,
    running: Running,
}

/// By who asked, and under which name: nobody ends the queries of others.
type Running = Arc<Mutex<HashMap<(String, String), CancellationToken>>>;

/// Takes a query off the list of those under way.
struct Listed {
    key: (String, String),
    running: Running,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// A query under way; it ends when this is dropped.
pub(crate) struct Started {
    pieces: mpsc::Receiver<Piece>,
    task: AbortOnDropHandle<()>,
    cancelled: CancellationToken,
    deadline: Instant,
    timeout: Duration,
    ended: bool,
    _listed: Listed,
}

impl Started {
    /// The next piece; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        let piece = tokio::select! {
            biased;
            () = self.cancelled.cancelled() => {
                Piece::Failed(Problem::new(StatusCode::CONFLICT, "cancelled", "the query was cancelled"))
            }
            () = tokio::time::sleep_until(self.deadline) => {
                let detail = format!("the query took longer than {} ms: ask for less, or allow more with `timeout_ms`", self.timeout.as_millis());
                Piece::Failed(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "timeout", detail))
            }
            piece = self.pieces.recv() => piece.unwrap_or_else(|| Piece::Failed(broken())),
        };
        if !matches!(piece, Piece::Bytes(_)) {
            self.ended = true;
            self.task.abort();
        }
        Some(piece)
    }
}

/// The engine panicked: what it was asked is nothing it can do.
fn broken() -> Problem {
    let detail = "the engine gave up on the query; lamina's log says why. Write it in another way";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "sql_failed", detail)
}

impl Sql {
    pub(crate) fn new(limits: &SqlLimits) -> Self {
        Self {
            limits: limits.clone(),
            runtime: OnceLock::new(),
            permits: Arc::new(Semaphore::new(limits.max_concurrent)),
            running: Running::default(),
        }
    }

    /// Largest result that is handed over in one piece.
    pub(crate) fn max_bytes(&self) -> usize {
        self.limits.max_bytes
    }

    /// Begins a query under a name of the client's, or one of its own.
    pub(crate) fn start(
        &self,
        app: &App,
        principal: &Principal,
        body: Body,
        format: Format,
        id: Option<String>,
    ) -> Result<(String, Started), Problem> {
        if self.limits.max_concurrent == 0 {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "sql_off",
                "SQL is switched off here: serving.sql_queries is 0",
            ));
        }
        let timeout = body.timeout(self.limits.timeout)?;
        guard::check(&body.query)?;
        body.params()?;
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let detail = format!(
                "{} queries in SQL are under way, the most at once: send it again later",
                self.limits.max_concurrent
            );
            return Err(Problem::unavailable("overloaded", detail));
        };
        let runtime = self.runtime.get_or_init(|| own_runtime(self.limits.threads)).as_ref();
        let runtime =
            runtime.ok_or_else(|| Problem::unavailable("sql_unavailable", "no threads can be started for SQL"))?;
        let id = id.unwrap_or_else(|| new_id().to_string());
        let (key, cancelled) = ((principal.id.clone(), id.clone()), CancellationToken::new());
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if running.contains_key(&key) {
                return Err(Problem::new(
                    StatusCode::CONFLICT,
                    "query_id_in_use",
                    format!("a query {id} is under way"),
                ));
            }
            running.insert(key.clone(), cancelled.clone());
        }
        let listed = Listed { key, running: Arc::clone(&self.running) };
        let (sender, pieces) = mpsc::channel(PIECES);
        let (app, principal) = (app.clone(), principal.clone());
        let (limits, own) = (self.limits.clone(), id.clone());
        let task = runtime.spawn(async move {
            let ended = match run(&app, &principal, &limits, &body, format, &own, &sender).await {
                Ok(meta) => Piece::Done(meta),
                Err(problem) => Piece::Failed(problem),
            };
            // A query that does not stop when it is told to still counts; one that is answered does not.
            drop(permit);
            let _ = sender.send(ended).await;
        });
        let deadline = Instant::now() + timeout;
        let task = AbortOnDropHandle::new(task);
        Ok((id, Started { pieces, task, cancelled, deadline, timeout, ended: false, _listed: listed }))
    }

    /// Ends a query of this principal; whether there was one.
    pub(crate) fn cancel(&self, principal: &Principal, id: &str) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&(principal.id.clone(), id.to_owned())).inspect(|token| token.cancel()).is_some()
    }
}

impl Drop for Sql {
    /// A runtime may not be waited for where asynchronous code runs.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take().flatten() {
            runtime.shutdown_background();
        }
    }
}

fn own_runtime(threads: usize) -> Option<Runtime> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("lamina-sql")
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build();
    runtime.inspect_err(|error| tracing::error!(%error, "no runtime for SQL")).ok()
}

/// Plans a query, executes it and hands its pieces over; gives what proves the result.
async fn run(
    app: &App,
    principal: &Principal,
    limits: &SqlLimits,
    body: &Body,
    format: Format,
    id: &str,
    pieces: &mpsc::Sender<Piece>,
) -> Result<Value, Problem> {
    let proofs = Proofs::default();
    let state = session(app, principal, limits, &proofs)?;
    let plan = state.create_logical_plan(&body.query).await.map_err(explained)?;
    let only_queries = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_queries.verify_plan(&plan).map_err(explained)?;
    let plan = match body.params()? {
        Some(params) => plan.with_param_values(params).map_err(explained)?,
        None => plan,
    };
    growth::check(&plan)?;
    let mut stream = DataFrame::new(state, plan).execute_stream().await.map_err(explained)?;
    let gone = || Problem::new(StatusCode::CONFLICT, "cancelled", "the client left");
    let (mut encoder, head) = Encoder::begin(format, id, &stream.schema())?;
    pieces.send(Piece::Bytes(head)).await.map_err(|_| gone())?;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(explained)?;
        if encoder.rows() + batch.num_rows() > limits.max_rows {
            let detail = format!("the result has more than {} rows: aggregate, filter, or LIMIT", limits.max_rows);
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "too_many_rows", detail));
        }
        pieces.send(Piece::Bytes(encoder.batch(&batch)?)).await.map_err(|_| gone())?;
    }
    let tables = std::mem::take(&mut *proofs.lock().unwrap_or_else(PoisonError::into_inner));
    let complete = tables.iter().all(|table| table["complete"] == json!(true));
    let meta = json!({"complete": complete, "tables": tables});
    pieces.send(Piece::Bytes(encoder.end(&meta)?)).await.map_err(|_| gone())?;
    Ok(meta)
}

/// A session that knows metrics, archives and functions over values, and no way to anything else.
fn session(app: &App, principal: &Principal, limits: &SqlLimits, proofs: &Proofs) -> Result<SessionState, Problem> {
    let mut config = SessionConfig::new()
        .with_target_partitions(limits.threads.max(1))
        .with_batch_size(BATCH_ROWS)
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, "metrics");
    let options = config.options_mut();
    // Names of metrics and dimensions are what their definitions say.
    options.sql_parser.enable_ident_normalization = false;
    options.execution.enable_recursive_ctes = false;
    options.execution.time_zone = Some("UTC".to_owned());
    let memory = limits.memory_bytes / limits.max_concurrent.max(1);
    let environment = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .build_arc()
        .map_err(explained)?;
    let scalar = SessionStateDefaults::default_scalar_functions().into_iter();
    let mut aggregates = SessionStateDefaults::default_aggregate_functions();
    aggregates.extend(summary::functions().into_iter().map(Arc::new));
    // No formats of files, no factories of tables and no functions that are tables.
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(environment)
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(scalar.filter(|function| growth::is_allowed(function.name())).collect())
        .with_higher_order_functions(SessionStateDefaults::default_higher_order_functions())
        .with_aggregate_functions(aggregates)
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .build();
    let context = SessionContext::new_with_state(state);
    for (name, table) in tables(app, principal, proofs)? {
        context.register_table(TableReference::bare(name), Arc::new(table)).map_err(explained)?;
    }
    if let (Some(catalog), true) = (context.catalog(CATALOG), sees_archives(principal)) {
        catalog.register_schema(archive::SCHEMA, Arc::new(MemorySchemaProvider::new())).map_err(explained)?;
        for source in app.definitions()?.sources.values().filter(|source| source.table.is_none()) {
            let name = TableReference::partial(archive::SCHEMA, source.name.as_str());
            context.register_table(name, Arc::new(ArchiveTable::new(app, source, proofs))).map_err(explained)?;
        }
    }
    Ok(context.state())
}

/// Raw events are for whoever may recompute from them: all of them, as rules over rows know dimensions of metrics only.
fn sees_archives(principal: &Principal) -> bool {
    principal.scopes.allow(Scope::RecomputeRun) && principal.rows.is_empty()
}

/// Every metric at its grain under its own name, and at each rollup as `NAME_1h`, but for metrics that cannot be told by rows
/// to whoever may see some only. This and [`sees_archives`] decide what a query can see.
fn tables(app: &App, principal: &Principal, proofs: &Proofs) -> Result<BTreeMap<String, MetricTable>, Problem> {
    let catalog = app.definitions()?;
    let mut tables = BTreeMap::new();
    for metric in catalog.metrics.values().filter(|metric| principal.sees(metric)) {
        let rollups = metric.rollups.iter().map(|&width| (format!("{}_{}", metric.name, Length(width)), width));
        for (name, width) in std::iter::once((metric.name.clone(), metric.grain)).chain(rollups) {
            // A metric has its own name.
            if width != metric.grain && catalog.metrics.contains_key(&name) {
                continue;
            }
            let table = MetricTable::new(app, principal, name.clone(), metric, width, proofs)
                .map_err(|why| Problem::internal(&why))?;
            tables.insert(name, table);
        }
    }
    Ok(tables)
}

/// An error of the engine as a client may see it: what was asked cannot be done, unless a problem of ours says otherwise.
fn explained(error: DataFusionError) -> Problem {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Passed(problem)) = inner.downcast_ref::<Passed>() {
            return problem.clone();
        }
        cause = inner.source();
    }
    let text = error.strip_backtrace();
    let unprocessable = |code, detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
    match error.find_root() {
        DataFusionError::ResourcesExhausted(why) => {
            let detail = format!("the query needs more memory than one may have: aggregate or filter more ({why})");
            unprocessable("out_of_memory", detail)
        }
        DataFusionError::Execution(why) => unprocessable("sql_failed", why.clone()),
        DataFusionError::ArrowError(why, _) => unprocessable("sql_failed", why.to_string()),
        DataFusionError::Internal(_) => {
            tracing::warn!(error = text, "engine failed a query");
            unprocessable("sql_failed", "the engine cannot run this query: write it in another way".to_owned())
        }
        _ => guard::refused(text),
    }
}
