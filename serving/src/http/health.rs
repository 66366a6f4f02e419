//! `/livez`, `/readyz`, `/metrics`: for orchestrators and monitoring. Never shed, never behind a limit.

use std::{fmt::Display, time::Duration};

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::Health;
use crate::{
    app::App,
    http::freshness,
    problem::{self, Problem},
};

/// How long log and store may take to say that they are there.
const PING: Duration = Duration::from_secs(2);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// Whether the process lives.
#[utoipa::path(get, path = "/livez", tag = "operation",
    responses((status = 200, description = "It does", body = Health)))]
async fn livez() -> Json<serde_json::Value> {
    Json(json!({"status": "ok"}))
}

/// Whether requests can be answered: log and store are reachable, definitions are loaded. How fresh the data is does not
/// matter here.
#[utoipa::path(get, path = "/readyz", tag = "operation",
    responses((status = 200, description = "They can", body = Health),
        (status = 503, description = "`checks` says what failed")))]
async fn readyz(State(app): State<App>) -> Result<Json<serde_json::Value>, Problem> {
    let (log, store) = tokio::join!(check(app.deps.log.ping()), check(app.deps.store.get("readiness", "probe")));
    let definitions = app.definitions().map(drop).map_err(|problem| problem.detail);
    if log.is_err() || store.is_err() || definitions.is_err() {
        return Err(problem::not_ready(&[("log", log), ("store", store), ("definitions", definitions)]));
    }
    Ok(Json(json!({"status": "ok", "checks": {"log": "ok", "store": "ok", "definitions": "ok"}})))
}

async fn check<T, E: Display>(ping: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(PING, ping).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PING.as_secs())),
    }
}

/// Measurements of this process, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "Prometheus text format", content_type = "text/plain", body = String)))]
async fn metrics(State(app): State<App>) -> Response {
    // What log and store have to be asked for is left as it was if they do not answer.
    let _ = tokio::time::timeout(PING, freshness::measure(&app)).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.deps.metrics.render()).into_response()
}
