//! Serves a router on a listener until told to stop.
//!
//! An own loop over hyper: `axum::serve` sets no time limit for the head of a request, so a client that sends it byte
//! by byte would hold a connection for ever.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use crate::Config;

/// Longest head of a request: request line and headers together.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
/// After a failed accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then lets requests under way finish within the grace period.
///
/// # Errors
/// If the listener has no address, that is, cannot be served at all.
pub async fn run(listener: TcpListener, app: Router, config: Config, stop: CancellationToken) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving http");
    let open = Arc::new(Semaphore::new(config.max_connections));
    let graceful = GracefulShutdown::new();
    loop {
        let Some(accepted) = stop.run_until_cancelled(accept(&listener, &open)).await else { break };
        match accepted {
            Ok((stream, permit)) => serve(stream, permit, app.clone(), config.header_timeout, &graceful),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(config.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_ms = config.grace.as_millis(), "requests were still under way after the grace period");
    }
    Ok(())
}

async fn accept(listener: &TcpListener, open: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(open).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

fn serve(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    app: Router,
    header_timeout: Duration,
    graceful: &GracefulShutdown,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        let _permit = permit;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended early");
        }
    });
}
