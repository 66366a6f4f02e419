//! `POST /v1/query`: several queries in one request.

use axum::{
    Extension,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    body,
    http::{jobs::check_json, layers::RequestId},
    problem::Problem,
    query::{self, Params, Subject, format::Format, schema::QueryResults},
};

const MAX_BODY: usize = 256 << 10;
const MAX_QUERIES: usize = 50;
/// Queries of one request that are answered at once.
const PARALLEL: usize = 4;
/// Most bytes of all answers together.
const MAX_ANSWERS: usize = 64 << 20;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(query_many))
}

/// One of the answers.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Answer { status: u16, answer: Box<RawValue> },
    Problem { status: u16, problem: Value },
}

#[derive(Serialize)]
struct Results {
    results: Vec<Outcome>,
}

/// Asks several queries at once: a dashboard in one request.
///
/// The body is a JSON list of up to 50 objects: `metric`, and what `GET /v1/metrics/{metric}/query` takes, but `page_size` and
/// `page_token`; a list of names may be a JSON list. The answer's `results` are in the same order, each with its own `status` and
/// either its `answer` or its `problem`. Each folds a prefix of its own, as its `meta` says. All answers together are at most
/// 64 MiB; a query whose answer does not fit any more is a problem of its own.
#[utoipa::path(post, path = "/v1/query", tag = "queries",
    request_body(content = Vec<serde_json::Value>, description = "Queries", content_type = "application/json"),
    responses((status = 200, description = "`results`: an answer or a problem each", body = QueryResults),
        (status = 400, description = "The body is no list of queries"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON")))]
async fn query_many(
    State(app): State<App>,
    principal: Principal,
    Extension(RequestId(id)): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let packed = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let body = body::Packing::of(&parts.headers)?.unpack(packed, MAX_BODY, app.config.max_ratio)?;
    body::check_depth(&body, app.config.max_json_depth)?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_body", detail);
    let queries: Vec<Value> = serde_json::from_slice(&body).map_err(|error| {
        bad(format!(
            "the body is no JSON list of queries, as in [{{\"metric\": \"NAME\", \"from\": \"...\"}}]: {error}"
        ))
    })?;
    if queries.len() > MAX_QUERIES {
        return Err(bad(format!("there are {} queries, more than {MAX_QUERIES}", queries.len())));
    }
    let answered = queries.into_iter().map(|query| {
        let (app, principal) = (app.clone(), principal.clone());
        async move { one(&app, &principal, &query).await }
    });
    let mut answered = stream::iter(answered).buffered(PARALLEL);
    let (mut results, mut room) = (Vec::new(), MAX_ANSWERS);
    while let Some(answer) = answered.next().await {
        let fitting = answer.and_then(|answer| match room.checked_sub(answer.get().len()) {
            Some(left) => {
                room = left;
                Ok(answer)
            }
            None => Err(too_much()),
        });
        results.push(match fitting {
            Ok(answer) => Outcome::Answer { status: 200, answer },
            Err(problem) => Outcome::Problem { status: problem.status.as_u16(), problem: problem.to_json(&id) },
        });
    }
    let body = serde_json::to_vec(&Results { results }).map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn too_much() -> Problem {
    let detail = format!("the answers before it and this one are over {} MiB: ask it by itself", MAX_ANSWERS >> 20);
    Problem::new(StatusCode::BAD_REQUEST, "answer_too_large", detail)
}

async fn one(app: &App, principal: &Principal, query: &Value) -> Result<Box<RawValue>, Problem> {
    let (metric, pairs) = pairs(query)?;
    let subject = Subject::find(app, metric)?;
    let params = Params::parse(&pairs, principal)?;
    if params.page.is_some() {
        return Err(Problem::parameter("page_size", "is for a query that is asked by itself"));
    }
    let question = query::question(app, subject, &params)?;
    let (written, _) = query::answer(app, question, Format::Json).await?;
    let text = String::from_utf8(written.bytes).map_err(|error| Problem::internal(&error))?;
    RawValue::from_string(text).map_err(|error| Problem::internal(&error))
}

/// Names and values, as in a query string.
type Pairs = Vec<(String, String)>;

/// The metric, and its parameters.
fn pairs(query: &Value) -> Result<(&str, Pairs), Problem> {
    let object = query.as_object().ok_or_else(|| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_body",
            "a query is an object: {\"metric\": \"NAME\", \"from\": \"...\"}",
        )
    })?;
    let metric = object.get("metric").and_then(Value::as_str);
    let metric = metric.ok_or_else(|| Problem::parameter("metric", "is required: the name of a metric"))?;
    let mut pairs = Vec::with_capacity(object.len());
    for (name, value) in object.iter().filter(|(name, value)| *name != "metric" && !value.is_null()) {
        pairs.push((name.clone(), text(name, value)?));
    }
    Ok((metric, pairs))
}

fn text(name: &str, value: &Value) -> Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(items) => {
            let items = items.iter().map(|item| item.as_str().map(str::to_owned));
            let items: Option<Vec<String>> = items.collect();
            items.map(|items| items.join(",")).ok_or_else(|| Problem::parameter(name, "a list of texts"))
        }
        _ => Err(Problem::parameter(name, "a text, a number or a list of texts")),
    }
}
