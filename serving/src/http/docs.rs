//! `/openapi.json` and `/docs`, a page that needs nothing but this server.

use axum::{
    Router,
    http::{HeaderName, header},
    response::{Html, IntoResponse, Redirect},
    routing::get,
};
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::App;

const PAGE: &str = include_str!("docs.html");
const SCRIPT: &str = include_str!("docs.js");
const STYLE: &str = include_str!("docs.css");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(docs))
        .route("/docs/docs.js", get(script))
        .route("/docs/docs.css", get(style))
        .route("/", get(async || Redirect::temporary("/docs")))
}

/// What the document says of itself.
pub(super) fn document_of_itself() -> OpenApi {
    OpenApiRouter::<App>::new().routes(routes!(document)).into_openapi()
}

/// Serves the document of all routes.
pub(super) fn serve(document: serde_json::Result<String>) -> Router<App> {
    // Plain data always serialises.
    let text = document.unwrap_or_default();
    Router::new().route("/openapi.json", get(async move || ([(header::CONTENT_TYPE, "application/json")], text)))
}

/// This interface as OpenAPI 3.1.
#[utoipa::path(get, path = "/openapi.json", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)))]
async fn document() {}

/// This interface as a page with forms to try it.
#[utoipa::path(get, path = "/docs", tag = "operation",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
async fn docs() -> impl IntoResponse {
    ([policy()], Html(PAGE))
}

async fn script() -> impl IntoResponse {
    ([policy(), (header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)
}

async fn style() -> impl IntoResponse {
    ([policy(), (header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

fn policy() -> (HeaderName, &'static str) {
    (header::CONTENT_SECURITY_POLICY, POLICY)
}
