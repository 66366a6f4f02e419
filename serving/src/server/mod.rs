//! Serves a router on a listener until told to stop.
//!
//! An own loop over hyper: `axum::serve` sets no time limit for the head of a request, so a client that sends it byte
//! by byte would hold a connection for ever; nor for one that takes no byte of its answer.

mod stall;
pub mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::{stall::Stall, tls::Tls};
use crate::{Config, limits::Peer};

/// Longest head of a request: request line and headers together.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
/// After a failed accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Ends streams that would otherwise go on for ever.
#[derive(Clone, Debug)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// Serves until `stop`, then lets requests under way finish within the grace period.
///
/// # Errors
/// If the listener has no address, that is, cannot be served at all; or if the certificate or key cannot be used.
pub async fn run(listener: TcpListener, app: Router, config: Config, stop: CancellationToken) -> io::Result<()> {
    let address = listener.local_addr()?;
    let tls = config.tls.clone().map(Tls::open).transpose()?;
    tracing::info!(%address, tls = tls.is_some(), "serving http");
    let reloading = tls.clone().map(|tls| tokio::spawn(tls.watch(stop.clone())));
    let open = Arc::new(Semaphore::new(config.max_connections));
    let graceful = GracefulShutdown::new();
    let app = app.layer(Extension(Stopping(stop.clone())));
    let server = Server { app, tls, header_timeout: config.header_timeout, write_stall: config.write_stall };
    loop {
        let Some(accepted) = stop.run_until_cancelled(accept(&listener, &open)).await else { break };
        match accepted {
            Ok((stream, peer, permit)) => {
                tokio::spawn(server.clone().serve(stream, peer, permit, graceful.watcher()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drop(reloading);
    if tokio::time::timeout(config.grace, graceful.shutdown()).await.is_err() {
        tracing::warn!(grace_ms = config.grace.as_millis(), "requests were still under way after the grace period");
    }
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    open: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(open).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, permit))
}

/// What every connection needs.
#[derive(Clone)]
struct Server {
    app: Router,
    tls: Option<Tls>,
    header_timeout: Duration,
    write_stall: Duration,
}

impl Server {
    async fn serve(self, stream: TcpStream, peer: SocketAddr, _permit: OwnedSemaphorePermit, watcher: Watcher) {
        let stream = Stall::new(stream, self.write_stall);
        let Some(tls) = &self.tls else { return self.speak(stream, peer, watcher).await };
        // Within the time for a head: whoever only opens connections may not hold them.
        match tokio::time::timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.speak(stream, peer, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, %peer, "no TLS"),
            Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
        }
    }

    async fn speak<S>(&self, stream: S, peer: SocketAddr, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let app = self.app.clone();
        let answer = move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            app.clone().oneshot(request.map(Body::new))
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "connection ended early");
        }
    }
}
