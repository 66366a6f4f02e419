//! `/v1/metrics` and `/v1/sources`: definitions, versions and status.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use lamina_core::{
    Micros, envelope,
    generation::{VIEW_DOCUMENTS, ViewState},
    store::StoreError,
};
use lamina_metric::{Expiry, Length, Metric, Source, View};
use serde_json::{Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::{Defined, MetricDetail, Metrics, SourceDetail, Sources};
use crate::{
    app::App,
    auth::Principal,
    body,
    http::derived,
    instant,
    problem::Problem,
    registry::{
        DefinitionBody, DefinitionKind, Origin, Put, RegistryError, etag_of_derived, etag_of_metric, etag_of_source,
    },
};

/// Largest definition.
const MAX_DEFINITION: usize = 256 << 10;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_metrics))
        .routes(routes!(get_metric, put_metric, delete_metric))
        .routes(routes!(list_sources))
        .routes(routes!(get_source, put_source, delete_source))
}

/// Lists metrics by name, then derived ones (`"derived": true`); to whoever may see some rows only, those that can be asked by rows.
#[utoipa::path(get, path = "/v1/metrics", tag = "definitions",
    responses((status = 200, description = "All metrics", body = Metrics)))]
async fn list_metrics(State(app): State<App>, principal: Principal) -> Result<Json<Value>, Problem> {
    let catalog = app.definitions()?;
    let seen = catalog.metrics.values().filter(|metric| principal.sees(metric));
    let metrics = seen.map(|metric| summary_of_metric(&app, metric, &principal));
    let metrics: Vec<Value> = metrics.chain(derived::summaries(&app, &catalog, &principal)).collect();
    Ok(Json(json!({"metrics": metrics})))
}

/// Lists sources by name.
#[utoipa::path(get, path = "/v1/sources", tag = "definitions",
    responses((status = 200, description = "All sources", body = Sources)))]
async fn list_sources(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let catalog = app.definitions()?;
    let sources: Vec<Value> = catalog.sources.values().map(|source| summary_of_source(&app, source)).collect();
    Ok(Json(json!({"sources": sources})))
}

/// A metric's definition, its versions and the status of its views: of each, from when on it keeps buckets by width
/// (`retained_from`), and those of the series that a rule of expiry takes (`expired`). While a changed definition is being built, `building`
/// has it, and the ETag is its own. Whoever may see some rows only gets no definition and no views: those name values of others.
#[utoipa::path(get, path = "/v1/metrics/{metric}", tag = "definitions",
    params(("metric" = String, Path, description = "Name of the metric")),
    responses((status = 200, description = "The metric; its ETag is for If-Match", body = MetricDetail),
        (status = 404, description = "Unknown metric")))]
async fn get_metric(
    State(app): State<App>,
    principal: Principal,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    if let Some(derived) = app.definitions()?.derived.get(&name) {
        return derived::described(&app, derived, &principal);
    }
    let metric = app.metric(&name)?;
    principal.check_sees(&metric)?;
    let mut body = summary_of_metric(&app, &metric, &principal);
    if principal.is_restricted() {
        return Ok(([(header::ETAG, etag_of_metric(&metric))], Json(body)).into_response());
    }
    body["definition"] = serde_json::to_value(&metric.definition).map_err(|error| Problem::internal(&error))?;
    let states = view_states(&app, &name).await?;
    let building = app.catalog().building.get(&name).cloned();
    body["versions"] = versions(&metric, building.as_deref(), &states);
    body["views"] = views(&metric, &states);
    if let Some(building) = &building {
        let definition = serde_json::to_value(&building.definition).map_err(|error| Problem::internal(&error))?;
        body["building"] =
            json!({"version": building.version, "definition": definition, "views": views(building, &states)});
    }
    let etag = etag_of_metric(building.as_ref().unwrap_or(&metric));
    body["etag"] = etag.clone().into();
    Ok(([(header::ETAG, etag)], Json(body)).into_response())
}

/// A source's definition.
#[utoipa::path(get, path = "/v1/sources/{source}", tag = "definitions",
    params(("source" = String, Path, description = "Name of the source")),
    responses((status = 200, description = "The source; its ETag is for If-Match", body = SourceDetail),
        (status = 404, description = "Unknown source")))]
async fn get_source(State(app): State<App>, Path(name): Path<String>) -> Result<Response, Problem> {
    let source = app.source(&name)?;
    let mut body = summary_of_source(&app, &source);
    body["definition"] = serde_json::to_value(&source.definition).map_err(|error| Problem::internal(&error))?;
    if source.table.is_none() {
        body["topic_exists"] = app.topics.find(&source.topic).await?.is_some().into();
    }
    Ok(([(header::ETAG, etag_of_source(&source))], Json(body)).into_response())
}

/// Defines or changes a metric. A change makes a new version, which answers once batch has built it from the archive.
#[utoipa::path(put, path = "/v1/metrics/{metric}", tag = "definitions",
    params(("metric" = String, Path, description = "Name of the metric"),
        ("if-match" = Option<String>, Header, description = "Change only this ETag")),
    request_body(description = "The table below [metric.NAME], as TOML or JSON",
        content(("application/toml"), ("application/json"))),
    responses((status = 200, description = "Changed, or equal already", body = Defined), (status = 201, description = "Created", body = Defined),
        (status = 400, description = "The definition does not compile; `errors` lists every reason"),
        (status = 409, description = "Defined in a file"), (status = 412, description = "Changed since")))]
async fn put_metric(app: State<App>, name: Path<String>, request: Request) -> Result<Response, Problem> {
    put(app, DefinitionKind::Metric, name, request).await
}

/// Defines or changes a source.
#[utoipa::path(put, path = "/v1/sources/{source}", tag = "definitions",
    params(("source" = String, Path, description = "Name of the source"),
        ("if-match" = Option<String>, Header, description = "Change only this ETag")),
    request_body(description = "The table below [source.NAME], as TOML or JSON",
        content(("application/toml"), ("application/json"))),
    responses((status = 200, description = "Changed, or equal already", body = Defined), (status = 201, description = "Created", body = Defined),
        (status = 400, description = "The definition does not compile; `errors` lists every reason"),
        (status = 409, description = "Defined in a file"), (status = 412, description = "Changed since")))]
async fn put_source(app: State<App>, name: Path<String>, request: Request) -> Result<Response, Problem> {
    put(app, DefinitionKind::Source, name, request).await
}

/// Removes a metric that was defined here.
#[utoipa::path(delete, path = "/v1/metrics/{metric}", tag = "definitions",
    params(("metric" = String, Path, description = "Name of the metric"),
        ("if-match" = Option<String>, Header, description = "Remove only this ETag")),
    responses((status = 204, description = "Removed"), (status = 404, description = "Unknown metric"),
        (status = 409, description = "Defined in a file"), (status = 412, description = "Changed since")))]
async fn delete_metric(app: State<App>, name: Path<String>, headers: HeaderMap) -> Result<StatusCode, Problem> {
    delete(app, DefinitionKind::Metric, name, &headers).await
}

/// Removes a source that was defined here and that no metric reads.
#[utoipa::path(delete, path = "/v1/sources/{source}", tag = "definitions",
    params(("source" = String, Path, description = "Name of the source"),
        ("if-match" = Option<String>, Header, description = "Remove only this ETag")),
    responses((status = 204, description = "Removed"), (status = 404, description = "Unknown source"),
        (status = 409, description = "Defined in a file, or in use"), (status = 412, description = "Changed since")))]
async fn delete_source(app: State<App>, name: Path<String>, headers: HeaderMap) -> Result<StatusCode, Problem> {
    delete(app, DefinitionKind::Source, name, &headers).await
}

pub(super) async fn put(
    State(app): State<App>,
    kind: DefinitionKind,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    check_name(kind, &name)?;
    let (parts, body) = request.into_parts();
    let if_match = if_match(&parts.headers)?;
    let body = body::read(body, MAX_DEFINITION, app.config.body_timeout).await?;
    let body = definition_body(&parts.headers, &body)?;
    let put = app.deps.registry.put(kind, &name, body, if_match).await;
    let put = put.map_err(|error| refused(kind, &name, error))?;
    let status = if put == Put::Created { StatusCode::CREATED } else { StatusCode::OK };
    let outcome = match put {
        Put::Created => "created",
        Put::Changed => "changed",
        Put::Unchanged => "unchanged",
    };
    let location = format!("{}/{name}", kind.path());
    let mut response =
        (status, [(header::LOCATION, location)], Json(json!({"name": name, "outcome": outcome}))).into_response();
    let catalog = app.catalog();
    let etag = match kind {
        DefinitionKind::Metric => catalog.latest(&name).map(|metric| etag_of_metric(metric)),
        DefinitionKind::Source => catalog.sources.get(&name).map(|source| etag_of_source(source)),
        DefinitionKind::Derived => catalog.derived.get(&name).map(|derived| etag_of_derived(derived)),
    };
    if let Some(etag) = etag.and_then(|etag| etag.parse().ok()) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}

pub(super) async fn delete(
    State(app): State<App>,
    kind: DefinitionKind,
    Path(name): Path<String>,
    headers: &HeaderMap,
) -> Result<StatusCode, Problem> {
    let if_match = if_match(headers)?;
    let deleted = app.deps.registry.delete(kind, &name, if_match).await;
    deleted.map(|()| StatusCode::NO_CONTENT).map_err(|error| refused(kind, &name, error))
}

/// Names become parts of paths and keys.
fn check_name(kind: DefinitionKind, name: &str) -> Result<(), Problem> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if first && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return Ok(());
    }
    Err(Problem::parameter(kind.as_str(), "a name is a letter, then up to 127 letters, digits, `_` or `-`"))
}

fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().map(str::trim).unwrap_or_default();
    let quoted = text.len() >= 2 && text.starts_with('"') && text.ends_with('"') && !text.contains(',');
    if text == "*" || quoted {
        return Ok(Some(text.to_owned()));
    }
    Err(Problem::parameter("if-match", "one strong ETag as it was answered, quotes included, or *"))
}

fn definition_body(headers: &HeaderMap, body: &[u8]) -> Result<DefinitionBody, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_body", detail);
    match body::media_type(headers).as_str() {
        "application/json" => serde_json::from_slice(body)
            .map(DefinitionBody::Json)
            .map_err(|error| bad(format!("the body is not JSON: {error}"))),
        "application/toml" | "text/plain" | "" => String::from_utf8(body.to_vec())
            .map(DefinitionBody::Toml)
            .map_err(|_| bad("the body is not UTF-8 text".to_owned())),
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("content-type {other:?} is not taken: send application/toml or application/json"),
        )),
    }
}

fn refused(kind: DefinitionKind, name: &str, error: RegistryError) -> Problem {
    let detail = format!("{} {name}: {error}", kind.as_str());
    match error {
        RegistryError::NotFound => Problem::not_found(
            match kind {
                DefinitionKind::Metric | DefinitionKind::Derived => "unknown_metric",
                DefinitionKind::Source => "unknown_source",
            },
            detail,
        ),
        RegistryError::ReadOnly { .. } => Problem::new(StatusCode::CONFLICT, "read_only", detail),
        RegistryError::InUse(_) => Problem::new(StatusCode::CONFLICT, "in_use", detail),
        RegistryError::Changed { .. } => Problem::new(StatusCode::PRECONDITION_FAILED, "changed_since", detail),
        RegistryError::Invalid(diagnostics) => {
            let one = |diagnostic: &lamina_metric::Diagnostic| {
                json!({"line": diagnostic.line, "column": diagnostic.column, "message": diagnostic.message,
                    "help": diagnostic.help})
            };
            let errors: Vec<Value> = diagnostics.iter().map(one).collect();
            Problem::new(StatusCode::BAD_REQUEST, "invalid_definition", detail).with("errors", errors)
        }
        RegistryError::Store(error) => error.into(),
    }
}

/// A metric without its definition. Rules of expiry name values of dimensions, which are not everybody's.
fn summary_of_metric(app: &App, metric: &Metric, principal: &Principal) -> Value {
    let dimensions = metric
        .dimensions
        .iter()
        .map(|dimension| json!({"name": dimension.name, "type": dimension.data_type.to_string().to_lowercase()}));
    let lengths = |widths: &[i64]| widths.iter().map(|&width| Length(width).to_string()).collect::<Vec<_>>();
    let expire: Vec<Value> = metric
        .expire
        .iter()
        .filter(|_| !principal.is_restricted())
        .map(|rule| json!({"where": rule.sql, "retention": by_width(&rule.kept, length)}))
        .collect();
    json!({
        "name": metric.name,
        "version": metric.version,
        "description": metric.description,
        "source": metric.source.name,
        "dimensions": dimensions.collect::<Vec<_>>(),
        "aggregates": metric.all_asks(),
        "grain": Length(metric.grain).to_string(),
        "rollups": lengths(&metric.rollups),
        "retention": by_width(&metric.retention, length),
        "expire": expire,
        "read_only": read_only(app, DefinitionKind::Metric, &metric.name),
        "etag": etag_of_metric(metric),
    })
}

fn length(length: Micros) -> String {
    Length(length).to_string()
}

/// Named by their widths.
fn by_width(values: &BTreeMap<Micros, Micros>, named: impl Fn(Micros) -> String) -> BTreeMap<String, String> {
    values.iter().map(|(&width, &value)| (length(width), named(value))).collect()
}

fn summary_of_source(app: &App, source: &Source) -> Value {
    json!({
        "name": source.name,
        "description": source.definition.description,
        "kind": source.definition.kind,
        "table": source.table.as_ref().map(|table| table.name.to_string()),
        "topic": source.table.is_none().then_some(&source.topic),
        "format": source.table.is_none().then_some(source.definition.format),
        "read_only": read_only(app, DefinitionKind::Source, &source.name),
        "etag": etag_of_source(source),
    })
}

pub(super) fn read_only(app: &App, kind: DefinitionKind, name: &str) -> bool {
    matches!(app.deps.registry.origin(kind, name), Some(Origin::File(_)))
}

/// States of all views of all versions of a metric, by view id.
async fn view_states(app: &App, metric: &str) -> Result<BTreeMap<String, ViewState>, Problem> {
    let mut states = BTreeMap::new();
    for (key, document) in app.deps.store.list(VIEW_DOCUMENTS).await? {
        if split_id(&key).is_some_and(|(name, _)| name == metric) {
            let corrupt = |error: envelope::EnvelopeError| StoreError::Corrupt {
                what: format!("state of view {key}"),
                why: error.to_string(),
            };
            let state = envelope::unpack(&document.value).map_err(corrupt)?;
            states.insert(key, state);
        }
    }
    Ok(states)
}

/// Metric and version of a view's id, `metric.version.grouping`.
fn split_id(id: &str) -> Option<(&str, u32)> {
    let (rest, _) = id.rsplit_once('.')?;
    let (metric, version) = rest.rsplit_once('.')?;
    Some((metric, version.parse().ok()?))
}

fn versions(metric: &Metric, building: Option<&Metric>, states: &BTreeMap<String, ViewState>) -> Value {
    let known = std::iter::once(metric).chain(building).map(|metric| (metric.version, 0));
    let mut versions: BTreeMap<u32, u64> = known.collect();
    for (id, state) in states {
        if let Some((_, version)) = split_id(id) {
            let generation = versions.entry(version).or_default();
            *generation = (*generation).max(state.published.generation);
        }
    }
    let one = |(&version, generation): (&u32, &u64)| {
        let building = building.is_some_and(|metric| metric.version == version);
        json!({"version": version, "active": version == metric.version, "building": building, "generation": generation})
    };
    versions.iter().map(one).collect()
}

fn views(metric: &Metric, states: &BTreeMap<String, ViewState>) -> Value {
    metric.views.iter().map(|view| view_status(metric, view, states.get(view.id.as_str()))).collect()
}

fn view_status(metric: &Metric, view: &View, state: Option<&ViewState>) -> Value {
    let names: Vec<&str> =
        view.dimensions.iter().filter_map(|&at| metric.dimensions.get(at)).map(|one| one.name.as_str()).collect();
    let published = state.map(|state| &state.published).filter(|published| published.generation > 0);
    json!({
        "id": view.id.as_str(),
        "dimensions": names,
        "generation": published.map_or(0, |published| published.generation),
        "published_at": published.map(|published| instant::format(published.at)),
        "through": published.and_then(|published| published.through).map(instant::format),
        "retained_from": state.map(|state| by_width(&state.horizons, instant::format)).unwrap_or_default(),
        "expired": expired(metric, view, state),
        "kept": state.map(super::rollback::kept).unwrap_or_default(),
    })
}

/// The rules that concern a view, and from when on it keeps the series that match them.
fn expired(metric: &Metric, view: &View, state: Option<&ViewState>) -> Vec<Value> {
    let rules = metric.expire.iter().enumerate().filter(|(_, rule)| rule.concerns(view));
    let one = |(at, rule): (usize, &Expiry)| {
        let horizons = state.into_iter().flat_map(|state| &state.rule_horizons);
        let own = horizons.filter_map(|(&width, rules)| Some((width, *rules.get(&at)?))).collect();
        json!({"where": rule.sql, "retained_from": by_width(&own, instant::format)})
    };
    rules.map(one).collect()
}
