//! The HTTP interface, a file per resource. Handlers check what came in, call the code that does the work, and answer.

mod archive;
mod definitions;
mod docs;
mod epochs;
mod erasure;
mod freshness;
mod health;
mod idempotency;
mod ingest;
mod jobs;
mod layers;
pub(crate) mod progress;
mod query;
mod recompute;
mod rollback;
mod schedule;

use axum::{Router, middleware};
use tower_http::{catch_panic::CatchPanicLayer, compression::CompressionLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    Config,
    app::{App, Deps},
};

/// What the OpenAPI document says besides the paths.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "lamina",
        description = "Metrics that are fresh within seconds and right over years. Times are RFC 3339 or Unix \
                       milliseconds, ranges half-open, errors `application/problem+json`.",
        license(name = "Apache-2.0")
    ),
    tags(
        (name = "queries", description = "Values of metrics, with the proof of what they fold"),
        (name = "events", description = "Sending events"),
        (name = "definitions", description = "Metrics and sources"),
        (name = "jobs", description = "Recomputing, and what batch is at"),
        (name = "operation", description = "Health and freshness")
    )
)]
struct Api;

/// The whole interface as a value.
pub fn router(deps: Deps, config: &Config) -> Router {
    let app = App::new(deps, config);
    let (limited, mut api) = OpenApiRouter::with_openapi(Api::openapi())
        .merge(query::routes())
        .merge(ingest::routes())
        .merge(definitions::routes())
        .merge(archive::routes())
        .merge(epochs::routes())
        .merge(erasure::routes())
        .merge(recompute::routes())
        .merge(rollback::routes())
        .merge(jobs::routes())
        .merge(schedule::routes())
        .merge(freshness::routes())
        .split_for_parts();
    let (free, free_api) = OpenApiRouter::new().merge(health::routes()).merge(docs::routes()).split_for_parts();
    api.merge(free_api);
    let limited = limited.layer(middleware::from_fn_with_state(app.clone(), layers::limit));
    finish(limited.merge(free).merge(docs::openapi(&api)), app)
}

/// Health and measurements only, for processes that do not serve.
pub fn health_router(deps: Deps, config: &Config) -> Router {
    let (health, _) = health::routes().split_for_parts();
    finish(health, App::new(deps, config))
}

fn finish(routes: Router<App>, app: App) -> Router {
    freshness::describe();
    routes
        .fallback(layers::unknown_path)
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), layers::envelope))
        .layer(CompressionLayer::new())
        .with_state(app)
}
