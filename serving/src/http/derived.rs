//! `/v1/derived`: metrics that are made of others. They are queried like metrics.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use lamina_metric::{Catalog, Derived, Length, Metric, derived::VALUE};
use serde_json::{Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::{Defined, DerivedMetrics, MetricDetail};
use crate::{
    app::App,
    auth::Principal,
    http::definitions,
    problem::Problem,
    registry::{DefinitionKind, etag_of_derived},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_derived)).routes(routes!(get_derived, put_derived, delete_derived))
}

/// Lists derived metrics by name.
#[utoipa::path(get, path = "/v1/derived", tag = "definitions",
    responses((status = 200, description = "All derived metrics", body = DerivedMetrics)))]
async fn list_derived(State(app): State<App>, principal: Principal) -> Result<Json<Value>, Problem> {
    let catalog = app.definitions()?;
    Ok(Json(json!({"derived": summaries(&app, &catalog, &principal).collect::<Vec<_>>()})))
}

/// A derived metric's definition.
#[utoipa::path(get, path = "/v1/derived/{metric}", tag = "definitions",
    params(("metric" = String, Path, description = "Name of the derived metric")),
    responses((status = 200, description = "The derived metric; its ETag is for If-Match", body = MetricDetail),
        (status = 404, description = "Unknown metric")))]
async fn get_derived(
    State(app): State<App>,
    principal: Principal,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let catalog = app.definitions()?;
    let derived = catalog.derived.get(&name).ok_or_else(|| {
        Problem::not_found("unknown_metric", format!("there is no derived metric {name:?}; GET /v1/derived lists them"))
    })?;
    described(&app, derived, &principal)
}

/// Defines or changes a derived metric, at once.
#[utoipa::path(put, path = "/v1/derived/{metric}", tag = "definitions",
    params(("metric" = String, Path, description = "Name of the derived metric"),
        ("if-match" = Option<String>, Header, description = "Change only this ETag")),
    request_body(description = "The table below [derived.NAME], as TOML or JSON",
        content(("application/toml"), ("application/json"))),
    responses((status = 200, description = "Changed, or equal already", body = Defined), (status = 201, description = "Created", body = Defined),
        (status = 400, description = "The definition does not compile; `errors` lists every reason"),
        (status = 409, description = "Defined in a file"), (status = 412, description = "Changed since")))]
async fn put_derived(app: State<App>, name: Path<String>, request: Request) -> Result<Response, Problem> {
    definitions::put(app, DefinitionKind::Derived, name, request).await
}

/// Removes a derived metric that was defined here.
#[utoipa::path(delete, path = "/v1/derived/{metric}", tag = "definitions",
    params(("metric" = String, Path, description = "Name of the derived metric"),
        ("if-match" = Option<String>, Header, description = "Remove only this ETag")),
    responses((status = 204, description = "Removed"), (status = 404, description = "Unknown metric"),
        (status = 409, description = "Defined in a file"), (status = 412, description = "Changed since")))]
async fn delete_derived(app: State<App>, name: Path<String>, headers: HeaderMap) -> Result<StatusCode, Problem> {
    definitions::delete(app, DefinitionKind::Derived, name, &headers).await
}

/// Of all derived metrics; to whoever may see some rows only, those whose metrics can all be asked by rows.
pub(super) fn summaries<'a>(
    app: &'a App,
    catalog: &'a Catalog,
    principal: &'a Principal,
) -> impl Iterator<Item = Value> + 'a {
    let seen = |derived: &&Arc<Derived>| parts(catalog, derived).all(|metric| principal.sees(metric));
    catalog.derived.values().filter(seen).map(|derived| summary(app, derived))
}

fn parts<'a>(catalog: &'a Catalog, derived: &'a Derived) -> impl Iterator<Item = &'a Arc<Metric>> {
    derived.metrics().filter_map(|name| catalog.metrics.get(name))
}

/// One of them, with its definition.
///
/// # Errors
/// 403 if a rule over rows cannot be applied to one of its metrics.
pub(super) fn described(app: &App, derived: &Arc<Derived>, principal: &Principal) -> Result<Response, Problem> {
    parts(&app.catalog(), derived).try_for_each(|metric| principal.check_sees(metric))?;
    let mut body = summary(app, derived);
    body["definition"] =
        json!({"description": derived.definition.description, "expression": derived.definition.expression});
    Ok(([(header::ETAG, etag_of_derived(derived))], Json(body)).into_response())
}

fn summary(app: &App, derived: &Arc<Derived>) -> Value {
    let catalog = app.catalog();
    let mut metrics: Vec<&str> = derived.metrics().collect();
    metrics.dedup();
    // While a new version of a metric is being built, the old one may lack what is asked of it.
    let resolved = derived.over(|name| catalog.metrics.get(name)).ok();
    let dimensions = resolved.iter().flat_map(|resolved| &resolved.dimensions);
    let dimensions = dimensions
        .map(|dimension| json!({"name": dimension.name, "type": dimension.data_type.to_string().to_lowercase()}));
    json!({
        "name": derived.name,
        "derived": true,
        "description": derived.definition.description,
        "expression": derived.definition.expression,
        "metrics": metrics,
        "dimensions": dimensions.collect::<Vec<_>>(),
        "aggregates": [VALUE],
        "grain": resolved.as_ref().map(|resolved| Length(resolved.grain).to_string()),
        "read_only": definitions::read_only(app, DefinitionKind::Derived, &derived.name),
        "etag": etag_of_derived(derived),
    })
}
