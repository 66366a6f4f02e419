//! An executor: takes plans from leaders, reads the archive, gives states.

use std::{net::TcpListener, sync::Arc};

use datafusion::{
    error::{DataFusionError, Result},
    execution::SessionState,
};
use datafusion_distributed::{
    DistributedExt, Worker, WorkerPlanRewriteEvent, WorkerPlanRewriteEventResponse, WorkerQueryContext,
};
use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use super::{Elsewhere, VERSION, codec::Codec};
use crate::{BatchError, Config, context::Engine, report::Report, telemetry};

/// Folds files of `archive` for whoever connects to `listener`, until `stop`.
///
/// # Errors
/// If the runtime does not start, or the listener cannot be used.
pub async fn execute(
    archive: Arc<dyn ObjectStore>,
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::result::Result<(), BatchError> {
    telemetry::describe_executor();
    let engine = Arc::new(Engine::new(&config, archive)?);
    let sessions = Arc::clone(&engine);
    let worker = Worker::from_session_builder(move |query| std::future::ready(session(&sessions, query)))
        .with_runtime_env(engine.environment())
        .with_version(VERSION);
    engine.run(serve(listener, worker, stop)).await
}

async fn serve(listener: TcpListener, worker: Worker, stop: CancellationToken) -> std::result::Result<(), BatchError> {
    listener.set_nonblocking(true).map_err(BatchError::Runtime)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(BatchError::Runtime)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().add_service(worker.into_worker_server());
    let served = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await;
    served.map_err(|error| BatchError::Runtime(std::io::Error::other(error)))
}

/// What one share runs with.
fn session(engine: &Engine, query: WorkerQueryContext) -> Result<SessionState> {
    let mut builder = query.builder;
    let config = builder.config().take().unwrap_or_default();
    let config = config
        .with_batch_size(engine.batch_size())
        .with_extension(Arc::new(Elsewhere))
        .with_distributed_user_codec(Codec)
        .with_distributed_worker_plan_rewrite_handler(only_folds);
    Ok(builder.with_config(config).build())
}

/// Whoever reaches the port may ask for states of archive files, and for nothing else that DataFusion could do.
pub(super) fn only_folds(event: WorkerPlanRewriteEvent<'_>) -> Result<WorkerPlanRewriteEventResponse> {
    let fold = event.plan.is::<Report>();
    telemetry::taken(fold);
    if !fold {
        let name = event.plan.name();
        return Err(DataFusionError::Plan(format!("an executor folds files of its archive and runs no {name}")));
    }
    Ok(WorkerPlanRewriteEventResponse::new(event.plan))
}
