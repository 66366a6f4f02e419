//! `/prometheus/api/v1`: the part of Prometheus' interface that Grafana and other clients use to query.

use axum::{
    extract::{Path, RawQuery, Request, State},
    response::{Redirect, Response},
    routing::get,
};
use lamina_core::Micros;
use promql_parser::label::Matcher;
use serde_json::json;
use url::form_urlencoded;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::PrometheusAnswer;
use crate::{
    app::App,
    auth::Principal,
    body,
    prometheus::{self, Failure, FailureKind, Grid, answer},
    query::calendar::{EARLIEST, LATEST},
};

/// Largest form.
const MAX_FORM: usize = 256 << 10;
/// Most selectors of one listing.
const MAX_SELECTORS: usize = 32;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(query, query_form))
        .routes(routes!(query_range, query_range_form))
        .routes(routes!(labels, labels_form))
        .routes(routes!(label_values))
        .routes(routes!(series, series_form))
        .routes(routes!(metadata))
        .routes(routes!(rules))
        .routes(routes!(query_exemplars, query_exemplars_form))
        .routes(routes!(buildinfo))
        // Clients that look whether somebody is there ask for the root.
        .route("/prometheus/", get(async || Redirect::temporary("/docs")))
}

/// Parameters of the query string, and of a form.
struct Form(Vec<(String, String)>);

impl Form {
    fn of_query(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    async fn of(app: &App, request: Request) -> Result<Self, Failure> {
        let mut form = Self::of_query(request.uri().query());
        let media = body::media_type(request.headers());
        if !media.is_empty() && media != "application/x-www-form-urlencoded" {
            return Err(Failure::bad_data(format!(
                "content-type {media:?} is not taken: send application/x-www-form-urlencoded"
            )));
        }
        let bytes = body::read(request.into_body(), MAX_FORM, app.config.body_timeout).await?;
        form.0.extend(form_urlencoded::parse(&bytes).into_owned());
        Ok(form)
    }

    /// The first value of that name that is not empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, value)| own == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    fn required(&self, name: &'static str, allowed: &str) -> Result<&str, Failure> {
        self.get(name).ok_or_else(|| Failure::parameter(name, &format!("is required: {allowed}")))
    }

    fn limit(&self) -> Result<Option<usize>, Failure> {
        let Some(text) = self.get("limit") else { return Ok(None) };
        let limit: usize = text.parse().map_err(|_| Failure::parameter("limit", "a whole number; 0 is no limit"))?;
        Ok((limit > 0).then_some(limit))
    }

    fn matchers(&self) -> Result<Vec<Vec<Matcher>>, Failure> {
        let selectors: Vec<&str> =
            self.0.iter().filter(|(name, _)| name == "match[]").map(|(_, value)| value.as_str()).collect();
        if selectors.len() > MAX_SELECTORS {
            return Err(Failure::parameter("match[]", &format!("at most {MAX_SELECTORS} selectors")));
        }
        selectors.into_iter().map(prometheus::matchers).collect()
    }

    /// Of a listing: from the beginning until now, where nothing is said.
    fn range(&self, app: &App) -> Result<std::ops::Range<Micros>, Failure> {
        let at = |name: &str| self.get(name).map(|text| prometheus::instant(name, text)).transpose();
        let (start, end) = (at("start")?.unwrap_or(EARLIEST), at("end")?.unwrap_or_else(|| app.deps.clock.now()));
        if end < start {
            return Err(Failure::parameter("end", "must not lie before `start`"));
        }
        Ok(start..end.min(LATEST - 400 * crate::query::calendar::DAY))
    }
}

async fn instant_query(app: &App, principal: &Principal, form: &Form) -> Result<Response, Failure> {
    let query = form.required("query", "a PromQL expression")?;
    let at = form.get("time").map(|text| prometheus::instant("time", text)).transpose()?;
    computed(app, principal, form, query, Grid::instant(at.unwrap_or_else(|| app.deps.clock.now()))).await
}

async fn range_query(app: &App, principal: &Principal, form: &Form) -> Result<Response, Failure> {
    let query = form.required("query", "a PromQL expression")?;
    let time = |name: &'static str| {
        form.required(name, "Unix seconds or RFC 3339").and_then(|text| prometheus::instant(name, text))
    };
    let step = form
        .required("step", "seconds or a duration such as 15s")
        .and_then(|text| prometheus::duration("step", text))?;
    computed(app, principal, form, query, Grid::range(time("start")?, time("end")?, step)?).await
}

async fn computed(app: &App, principal: &Principal, form: &Form, query: &str, grid: Grid) -> Result<Response, Failure> {
    let own = form.get("timeout").map(|text| prometheus::duration("timeout", text)).transpose()?;
    let own = own.map(|micros| std::time::Duration::from_micros(micros.unsigned_abs()));
    let within = own.map_or(app.config.request_timeout, |own| own.min(app.config.request_timeout));
    let computed =
        tokio::time::timeout(within, prometheus::compute(app, principal, query, grid)).await.map_err(|_| Failure {
            kind: FailureKind::Timeout,
            message: format!("the query took longer than {} s", within.as_secs_f64()),
        })?;
    Ok(answer::value(computed?))
}

/// Evaluates PromQL at one instant.
///
/// `warnings` says what is missing; `lamina`, a member that Prometheus does not have, proves each read as `meta` does.
#[utoipa::path(get, path = "/prometheus/api/v1/query", tag = "prometheus",
    params(("query" = String, Query, description = "PromQL; docs/prometheus.md says which"),
        ("time" = Option<String>, Query, description = "Unix seconds or RFC 3339; now if left out"),
        ("timeout" = Option<String>, Query, description = "Such as 10s")),
    responses((status = 200, description = "Prometheus' shape", body = PrometheusAnswer),
        (status = 400, description = "`bad_data`"), (status = 422, description = "`execution`: not supported, or too much"),
        (status = 503, description = "`timeout` or `unavailable`")))]
async fn query(State(app): State<App>, principal: Principal, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    instant_query(&app, &principal, &Form::of_query(query.as_deref())).await
}

/// Evaluates PromQL at one instant, its parameters as a form.
#[utoipa::path(post, path = "/prometheus/api/v1/query", tag = "prometheus",
    request_body(description = "As the parameters of GET", content_type = "application/x-www-form-urlencoded", content = String),
    responses((status = 200, description = "Prometheus' shape", body = PrometheusAnswer)))]
async fn query_form(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Failure> {
    instant_query(&app, &principal, &Form::of(&app, request).await?).await
}

/// Evaluates PromQL at the instants of a range.
#[utoipa::path(get, path = "/prometheus/api/v1/query_range", tag = "prometheus",
    params(("query" = String, Query, description = "PromQL"),
        ("start" = String, Query, description = "Unix seconds or RFC 3339"),
        ("end" = String, Query, description = "The last instant is at or before it"),
        ("step" = String, Query, description = "Seconds, or a duration such as 15s; at most 11,000 steps"),
        ("timeout" = Option<String>, Query, description = "Such as 10s")),
    responses((status = 200, description = "Prometheus' shape", body = PrometheusAnswer),
        (status = 400, description = "`bad_data`"), (status = 422, description = "`execution`: not supported, or too much"),
        (status = 503, description = "`timeout` or `unavailable`")))]
async fn query_range(
    State(app): State<App>,
    principal: Principal,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    range_query(&app, &principal, &Form::of_query(query.as_deref())).await
}

/// Evaluates PromQL at the instants of a range, its parameters as a form.
#[utoipa::path(post, path = "/prometheus/api/v1/query_range", tag = "prometheus",
    request_body(description = "As the parameters of GET", content_type = "application/x-www-form-urlencoded", content = String),
    responses((status = 200, description = "Prometheus' shape", body = PrometheusAnswer)))]
async fn query_range_form(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Failure> {
    range_query(&app, &principal, &Form::of(&app, request).await?).await
}

fn list_labels(app: &App, principal: &Principal, form: &Form) -> Result<Response, Failure> {
    form.range(app)?;
    let mut names = prometheus::label_names(app, principal, &form.matchers()?)?;
    names.truncate(form.limit()?.unwrap_or(usize::MAX));
    Ok(answer::success(&json!(names), &[]))
}

/// Names of labels.
#[utoipa::path(get, path = "/prometheus/api/v1/labels", tag = "prometheus",
    params(("match[]" = Option<Vec<String>>, Query, description = "Selectors; all metrics if left out"),
        ("limit" = Option<usize>, Query, description = "Most names")),
    responses((status = 200, description = "Names", body = PrometheusAnswer)))]
async fn labels(State(app): State<App>, principal: Principal, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    list_labels(&app, &principal, &Form::of_query(query.as_deref()))
}

/// Names of labels, its parameters as a form.
#[utoipa::path(post, path = "/prometheus/api/v1/labels", tag = "prometheus",
    request_body(description = "As the parameters of GET", content_type = "application/x-www-form-urlencoded", content = String),
    responses((status = 200, description = "Names", body = PrometheusAnswer)))]
async fn labels_form(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Failure> {
    list_labels(&app, &principal, &Form::of(&app, request).await?)
}

/// Values of a label, of the series with events on the days of the range.
#[utoipa::path(get, path = "/prometheus/api/v1/label/{name}/values", tag = "prometheus",
    params(("name" = String, Path, description = "Name of the label; __name__ lists the names of metrics"),
        ("match[]" = Option<Vec<String>>, Query, description = "Selectors; all metrics if left out"),
        ("start" = Option<String>, Query, description = "Unix seconds or RFC 3339; the beginning if left out"),
        ("end" = Option<String>, Query, description = "Now if left out"),
        ("limit" = Option<usize>, Query, description = "Most values, up to 10,000")),
    responses((status = 200, description = "Values", body = PrometheusAnswer)))]
async fn label_values(
    State(app): State<App>,
    principal: Principal,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let form = Form::of_query(query.as_deref());
    let listed =
        prometheus::label_values(&app, &principal, &name, &form.matchers()?, form.range(&app)?, form.limit()?).await?;
    Ok(answer::success(&json!(listed.found), &listed.warnings))
}

async fn list_series(app: &App, principal: &Principal, form: &Form) -> Result<Response, Failure> {
    let matchers = form.matchers()?;
    if matchers.is_empty() {
        return Err(Failure::parameter("match[]", "at least one selector is required"));
    }
    let listed = prometheus::series(app, principal, &matchers, form.range(app)?, form.limit()?).await?;
    Ok(answer::success(&json!(listed.found), &listed.warnings))
}

/// The series that selectors select, of those with events on the days of the range.
#[utoipa::path(get, path = "/prometheus/api/v1/series", tag = "prometheus",
    params(("match[]" = Vec<String>, Query, description = "Selectors"),
        ("start" = Option<String>, Query, description = "Unix seconds or RFC 3339; the beginning if left out"),
        ("end" = Option<String>, Query, description = "Now if left out"),
        ("limit" = Option<usize>, Query, description = "Most series, up to 10,000")),
    responses((status = 200, description = "Label sets", body = PrometheusAnswer)))]
async fn series(State(app): State<App>, principal: Principal, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    list_series(&app, &principal, &Form::of_query(query.as_deref())).await
}

/// The series that selectors select, its parameters as a form.
#[utoipa::path(post, path = "/prometheus/api/v1/series", tag = "prometheus",
    request_body(description = "As the parameters of GET", content_type = "application/x-www-form-urlencoded", content = String),
    responses((status = 200, description = "Label sets", body = PrometheusAnswer)))]
async fn series_form(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Failure> {
    list_series(&app, &principal, &Form::of(&app, request).await?).await
}

/// Types and descriptions of metric names.
#[utoipa::path(get, path = "/prometheus/api/v1/metadata", tag = "prometheus",
    params(("metric" = Option<String>, Query, description = "One name"),
        ("limit" = Option<usize>, Query, description = "Most names")),
    responses((status = 200, description = "By name", body = PrometheusAnswer)))]
async fn metadata(
    State(app): State<App>,
    principal: Principal,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let form = Form::of_query(query.as_deref());
    Ok(answer::success(&prometheus::metadata(&app, &principal, form.get("metric"), form.limit()?)?, &[]))
}

/// Recording and alerting rules: there are none here.
#[utoipa::path(get, path = "/prometheus/api/v1/rules", tag = "prometheus",
    responses((status = 200, description = "None", body = PrometheusAnswer)))]
async fn rules() -> Response {
    answer::success(&json!({"groups": []}), &[])
}

/// Exemplars: there are none here.
#[utoipa::path(get, path = "/prometheus/api/v1/query_exemplars", tag = "prometheus",
    responses((status = 200, description = "None", body = PrometheusAnswer)))]
async fn query_exemplars() -> Response {
    answer::success(&json!([]), &[])
}

/// Exemplars, the parameters as a form: there are none here.
#[utoipa::path(post, path = "/prometheus/api/v1/query_exemplars", tag = "prometheus",
    responses((status = 200, description = "None", body = PrometheusAnswer)))]
async fn query_exemplars_form() -> Response {
    answer::success(&json!([]), &[])
}

/// Which Prometheus' interface this is like. No `features`: Grafana would take it for Mimir.
#[utoipa::path(get, path = "/prometheus/api/v1/status/buildinfo", tag = "prometheus",
    responses((status = 200, description = "A version", body = PrometheusAnswer)))]
async fn buildinfo() -> Response {
    let revision = concat!("lamina-", env!("CARGO_PKG_VERSION"));
    let data = json!({"version": "2.55.0", "revision": revision, "branch": "", "buildUser": "", "buildDate": "", "goVersion": ""});
    answer::success(&data, &[])
}
