//! `GET /v1/metrics/{metric}/query`.

use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use url::form_urlencoded;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    problem::Problem,
    query::{
        self, Params, Subject, Written,
        format::Format,
        params::{Fill, Layer},
        schema::{Align, NumbersAs, QueryAnswer},
    },
};

const COMPLETE: HeaderName = HeaderName::from_static("x-lamina-complete");
const META: HeaderName = HeaderName::from_static("x-lamina-meta");
/// Longest proof that goes into a header: proxies take about 8 KiB of headers.
const MAX_META: usize = 4 << 10;
/// Most ETags of `if-none-match` that are looked at.
const MAX_TAGS: usize = 16;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(query_metric))
}

/// Asks for values of a metric, or of a derived one.
///
/// Each answer says in `meta` which positions of the log it folds, and whether anything is missing. `meta.retained_from` says
/// where retention begins within the range, `meta.expired` which rules of expiry reach into it: for each its `where`, and
/// where the series that match begin (`retained_from`).
///
/// `accept` chooses the format: `application/json`, `application/x-ndjson` (a line for each point; the last one, `$end`, has all
/// else), `text/csv` (the proof is in the headers `x-lamina-complete` and, up to 4 KiB, `x-lamina-meta`) or
/// `application/vnd.apache.arrow.stream` (all else in the schema's metadata, as JSON under `lamina`).
///
/// Answers are to be revalidated: with `if-none-match` one that still stands is 304. What lies below all that speed holds depends on
/// what batch has published alone, and stands until that changes or a late event falls into the range.
#[utoipa::path(
    get,
    path = "/v1/metrics/{metric}/query",
    tag = "queries",
    params(
        ("metric" = String, Path, description = "Name of the metric"),
        ("from" = String, Query, description = "Begin: RFC 3339 or Unix milliseconds; widened to the grain"),
        ("to" = Option<String>, Query, description = "End, exclusive; now if left out"),
        ("step" = Option<String>, Query, description = "Length of a bucket: 10s, 1m, 6h, 1d, 1w, 1mo; one bucket if left out"),
        ("aggregate" = Option<String>, Query, description = "Comma list such as count,sum,p95,distinct(user),rate(sum); all if left out. rate(count) and rate(sum) are per second"),
        ("group_by" = Option<String>, Query, description = "Comma list of dimensions"),
        ("where" = Option<String>, Query, description = "SQL condition over dimensions"),
        ("layer" = Option<Layer>, Query, description = "merged (default), batch or speed"),
        ("order_by" = Option<String>, Query, description = "Aggregate or dimension, asc or desc, over the whole range"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10_000, description = "Most series; sets meta.truncated"),
        ("fill" = Option<Fill>, Query, description = "Empty buckets: null, zero, previous or linear; left out otherwise"),
        ("tz" = Option<String>, Query, description = "IANA zone whose midnights begin days"),
        ("at_least" = Option<String>, Query, description = "Positions (of ingests) that the answer must fold"),
        ("wait" = Option<String>, Query, description = "How long to wait for at_least; 5s if left out, up to 60s"),
        ("align" = Option<Align>, Query, description = "widen (default) or strict: refuse what is not a multiple of the grain"),
        ("numbers" = Option<NumbersAs>, Query, description = "number (default) or string: large integers and decimals as text"),
        ("compare" = Option<String>, Query, description = "A period such as 1d, 1w, 1mo: beside sum stands sum@1w, of so much earlier"),
        ("page_size" = Option<u32>, Query, minimum = 1, maximum = 100_000, description = "Most points of one answer, up to 100000; next_page_token and Link name the next page"),
        ("page_token" = Option<String>, Query, description = "next_page_token of the page before, with the same parameters"),
        ("accept" = Option<String>, Header, description = "Format of the answer"),
        ("if-none-match" = Option<String>, Header, description = "ETags of answers that the client has")
    ),
    responses(
        (status = 200, description = "Series of points", content(
            (QueryAnswer = "application/json"), (String = "application/x-ndjson"), (String = "text/csv"),
            (Vec<u8> = "application/vnd.apache.arrow.stream"))),
        (status = 304, description = "What if-none-match names still stands"),
        (status = 400, description = "A parameter cannot be used; the detail names it and what is allowed"),
        (status = 404, description = "Unknown metric"),
        (status = 406, description = "accept takes none of the formats; `available` lists them"),
        (status = 422, description = "`unaligned`: stored buckets do not add up to those asked for; or `overflow`"),
        (status = 503, description = "The store or the log does not answer"),
        (status = 504, description = "The events of at_least were not visible in time")
    )
)]
async fn query_metric(
    State(app): State<App>,
    principal: Principal,
    Path(metric): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // A metric that does not exist is worth saying before a parameter that is wrong.
    let subject = Subject::find(&app, &metric)?;
    let format = Format::of(&headers)?;
    let params = Params::parse(&pairs, &principal)?;
    let question = query::question(&app, subject, &params)?;
    let tags = tags(&headers);
    if let Some(tag) = query::still_stands(&app, &question, format, &tags).await? {
        return Ok(finish(StatusCode::NOT_MODIFIED.into_response(), Some(&tag)));
    }
    let (written, tag) = query::answer(&app, question, format).await?;
    if let Some(tag) = tag.as_ref().filter(|tag| tags.contains(tag)) {
        return Ok(finish(StatusCode::NOT_MODIFIED.into_response(), Some(tag)));
    }
    let next = written.next.as_deref().and_then(|token| link(&metric, &pairs, token));
    let mut response = finish(reply(format, written), tag.as_deref());
    if let Some(next) = next {
        response.headers_mut().insert(header::LINK, next);
    }
    Ok(response)
}

fn reply(format: Format, written: Written) -> Response {
    let mut response = Body::from(written.bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    let complete = if written.complete { "true" } else { "false" };
    headers.insert(COMPLETE, HeaderValue::from_static(complete));
    if format == Format::Csv
        && written.meta.len() <= MAX_META
        && let Ok(meta) = HeaderValue::from_str(&ascii(&written.meta))
    {
        headers.insert(META, meta);
    }
    response
}

/// What caches may do: keep an answer, and ask before each use whether it still stands.
fn finish(mut response: Response, tag: Option<&str>) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(tag).ok()) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// The weak ETags that a client has; all of ours are.
fn tags(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let tags = values.flat_map(|value| value.split(',')).map(str::trim).filter(|tag| !tag.is_empty());
    // Caches may have made a tag strong; it is compared weakly.
    let weak = |tag: &str| if tag.starts_with("W/") { tag.to_owned() } else { format!("W/{tag}") };
    tags.map(weak).take(MAX_TAGS).collect()
}

/// The next page, relative to this server.
fn link(metric: &str, pairs: &[(String, String)], token: &str) -> Option<HeaderValue> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.iter().filter(|(name, _)| name != "page_token"));
    query.append_pair("page_token", token);
    let metric: String = form_urlencoded::byte_serialize(metric.as_bytes()).collect();
    HeaderValue::from_str(&format!("</v1/metrics/{metric}/query?{}>; rel=\"next\"", query.finish())).ok()
}

/// JSON in ASCII alone, as headers need it.
fn ascii(json: &str) -> String {
    let mut units = [0_u16; 2];
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}
