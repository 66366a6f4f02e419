//! The HTTP interface, a file per resource. Handlers check what came in, call the code that does the work, and answer.

mod archive;
mod audit;
mod definitions;
mod derived;
mod docs;
mod epochs;
mod erasure;
mod freshness;
mod health;
mod history;
mod idempotency;
mod ingest;
mod jobs;
mod keys;
pub(crate) mod layers;
mod live;
pub(crate) mod movements;
mod openapi;
mod progress;
mod prometheus;
mod queries;
mod query;
mod recompute;
mod rollback;
mod schedule;
mod schema;
mod sql;

use axum::{Router, middleware};
use tower_http::{catch_panic::CatchPanicLayer, compression::CompressionLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

pub use self::history::Sampler;
use crate::{
    Config,
    app::{App, Deps},
    auth::guard,
    instruments,
    query::{
        params::{Fill, Layer},
        schema::{Align, NumbersAs},
    },
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
    components(schemas(Layer, Fill, Align, NumbersAs)),
    tags(
        (name = "queries", description = "Values of metrics, with the proof of what they fold"),
        (name = "prometheus", description = "The same values for clients of Prometheus, such as Grafana"),
        (name = "events", description = "Sending events"),
        (name = "definitions", description = "Metrics and sources"),
        (name = "jobs", description = "Recomputing, and what batch is at"),
        (name = "operation", description = "Health and freshness"),
        (name = "access", description = "API keys, and who did what")
    )
)]
struct Api;

/// The whole interface as a value, without a history of freshness.
pub fn router(deps: Deps, config: &Config) -> Router {
    service(deps, config).0
}

/// The whole interface as a value, and what keeps its history of freshness while it runs.
pub fn service(deps: Deps, config: &Config) -> (Router, Sampler) {
    let app = App::new(deps, config);
    let Routes { limited, free, document } = routes();
    let limited = limited.layer(middleware::from_fn_with_state(app.clone(), layers::limit));
    let router = finish(limited.merge(free).merge(docs::serve(document.to_json())), app.clone());
    (router, Sampler::new(app))
}

/// The OpenAPI document of the whole interface, for people and generators of clients.
///
/// # Errors
/// None: it is plain data.
pub fn openapi() -> serde_json::Result<String> {
    routes().document.to_pretty_json()
}

struct Routes {
    limited: Router<App>,
    /// Never behind a limit.
    free: Router<App>,
    document: utoipa::openapi::OpenApi,
}

fn routes() -> Routes {
    let (limited, mut document) = OpenApiRouter::with_openapi(Api::openapi())
        .merge(query::routes())
        .merge(queries::routes())
        .merge(live::routes())
        .merge(ingest::routes())
        .merge(definitions::routes())
        .merge(derived::routes())
        .merge(archive::routes())
        .merge(epochs::routes())
        .merge(erasure::routes())
        .merge(recompute::routes())
        .merge(rollback::routes())
        .merge(jobs::routes())
        .merge(schedule::routes())
        .merge(freshness::routes())
        .merge(history::routes())
        .merge(keys::routes())
        .merge(audit::routes())
        .merge(sql::routes())
        .merge(prometheus::routes())
        .split_for_parts();
    let (free, described) = OpenApiRouter::new().merge(health::routes()).merge(docs::routes()).split_for_parts();
    document.merge(described);
    document.merge(docs::document_of_itself());
    openapi::complete(&mut document);
    Routes { limited, free, document }
}

/// Health and measurements only, for processes that do not serve.
pub fn health_router(deps: Deps, config: &Config) -> Router {
    let (health, _) = health::routes().split_for_parts();
    finish(health, App::new(deps, config))
}

fn finish(routes: Router<App>, app: App) -> Router {
    instruments::describe();
    routes
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .fallback(layers::unknown_path)
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), layers::envelope))
        .layer(CompressionLayer::new())
        .with_state(app)
}
