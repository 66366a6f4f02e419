//! A process that folds archive files for whoever leads batch. It opens the archive and nothing else.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use serde_json::json;

use crate::{
    config::Config,
    run::{StartError, Tasks, open_archive},
    telemetry,
};

/// How long the archive may take to say that it is there.
const PING: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Health {
    archive: Arc<dyn ObjectStore>,
    metrics: PrometheusHandle,
}

/// Starts an executor; it runs until `tasks` stop. Returns the address that it takes plans on.
///
/// # Errors
/// If the archive cannot be opened, or an address cannot be listened on.
pub async fn start(config: &Config, tasks: &Tasks) -> Result<SocketAddr, StartError> {
    let metrics = telemetry::recorder().map_err(StartError::Metrics)?;
    let archive = open_archive(config)?;
    let failed = |address| move |cause| StartError::Listen { address, cause };
    let http = tokio::net::TcpListener::bind(config.listen).await.map_err(failed(config.listen))?;
    let plans = TcpListener::bind(config.executor_listen).map_err(failed(config.executor_listen))?;
    let address = plans.local_addr().map_err(failed(config.executor_listen))?;
    let health = health(Health { archive: Arc::clone(&archive), metrics });
    tasks.spawn("executor", lamina_batch::execute(archive, config.batch.clone(), plans, tasks.stop()));
    tasks.spawn("health", lamina_serving::run(http, health, config.http.clone(), tasks.stop()));
    Ok(address)
}

fn health(state: Health) -> Router {
    let live = || async { Json(json!({"status": "ok"})) };
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(measurements))
        .with_state(state)
}

/// Whether the archive can be reached; what is asked for need not be there.
async fn ready(State(health): State<Health>) -> Response {
    let checked = match tokio::time::timeout(PING, health.archive.head(&Path::from("readiness"))).await {
        Ok(Ok(_) | Err(object_store::Error::NotFound { .. })) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PING.as_secs())),
    };
    match checked {
        Ok(()) => Json(json!({"status": "ok", "checks": {"archive": "ok"}})).into_response(),
        Err(why) => {
            let body = json!({"status": "not ready", "checks": {"archive": why}});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn measurements(State(health): State<Health>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], health.metrics.render()).into_response()
}
