//! `GET /v1/metrics/{metric}/query`.

use axum::{
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    problem::Problem,
    query::{self, Params},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(query_metric))
}

/// Asks for values of a metric.
///
/// Each answer says in `meta` which positions of the log it folds, and whether anything is missing. `meta.retained_from` says
/// where retention begins within the range, `meta.expired` which rules of expiry reach into it: for each its `where`, and
/// where the series that match begin (`retained_from`).
#[utoipa::path(
    get,
    path = "/v1/metrics/{metric}/query",
    tag = "queries",
    params(
        ("metric" = String, Path, description = "Name of the metric"),
        ("from" = String, Query, description = "Begin: RFC 3339 or Unix milliseconds; widened to the grain"),
        ("to" = Option<String>, Query, description = "End, exclusive; now if left out"),
        ("step" = Option<String>, Query, description = "Length of a bucket: 10s, 1m, 6h, 1d, 1w, 1mo; one bucket if left out"),
        ("aggregate" = Option<String>, Query, description = "Comma list such as count,sum,p95,distinct(user); all if left out"),
        ("group_by" = Option<String>, Query, description = "Comma list of dimensions"),
        ("where" = Option<String>, Query, description = "SQL condition over dimensions"),
        ("layer" = Option<String>, Query, description = "merged (default), batch or speed"),
        ("order_by" = Option<String>, Query, description = "Aggregate or dimension, asc or desc, over the whole range"),
        ("limit" = Option<u32>, Query, description = "Most series; sets meta.truncated"),
        ("fill" = Option<String>, Query, description = "Empty buckets: null, zero, previous or linear; left out otherwise"),
        ("tz" = Option<String>, Query, description = "IANA zone whose midnights begin days"),
        ("at_least" = Option<String>, Query, description = "Positions (of ingests) that the answer must fold"),
        ("wait" = Option<String>, Query, description = "How long to wait for at_least; 5s if left out, up to 60s"),
        ("align" = Option<String>, Query, description = "widen (default) or strict: refuse what is not a multiple of the grain"),
        ("numbers" = Option<String>, Query, description = "number (default) or string: large integers and decimals as text")
    ),
    responses(
        (status = 200, description = "Series of points", content_type = "application/json", body = serde_json::Value),
        (status = 400, description = "A parameter cannot be used; the detail names it and what is allowed"),
        (status = 404, description = "Unknown metric"),
        (status = 422, description = "`unaligned`: stored buckets do not add up to those asked for; or `overflow`"),
        (status = 503, description = "The store or the log does not answer"),
        (status = 504, description = "The events of at_least were not visible in time")
    )
)]
async fn query_metric(
    State(app): State<App>,
    Path(metric): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<impl IntoResponse, Problem> {
    // A metric that does not exist is worth saying before a parameter that is wrong.
    app.metric(&metric)?;
    let params = Params::parse(&pairs)?;
    let body = query::answer(&app, &metric, params).await?;
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body))
}
