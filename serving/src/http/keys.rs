//! `/v1/keys`: API keys.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use lamina_core::Micros;
use lamina_metric::Length;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    jobs::{MAX_BODY, check_json, parse},
    recompute::instant as instant_of,
    schema::{Key, KeyWithSecret, Keys},
};
use crate::{
    app::App,
    auth::{
        Principal,
        keys::{self, KeyError, NewKey},
        scope::{Scope, Scopes},
    },
    body,
    problem::Problem,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(get_key, revoke_key))
        .routes(routes!(rotate_key))
}

/// What a new key shall be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = NewKey)]
struct New {
    name: String,
    /// `metrics:read`, `sql:run`, `recompute:run`, `events:write`, `admin` (which is all of them).
    scopes: Vec<String>,
    /// Rules over rows: dimension → the only values of it that the key may see.
    #[schema(value_type = Option<Object>)]
    rows: BTreeMap<String, Value>,
    /// When it ends by itself: RFC 3339 or Unix milliseconds; never if left out.
    #[schema(value_type = Option<String>)]
    expires_at: Option<Value>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = KeyRotation)]
struct Rotation {
    /// How long the old secret is still taken, such as `1h`; `0` if left out, at most `30d`.
    overlap: Option<String>,
}

/// Lists keys, the oldest first, revoked ones included. No secret is shown.
#[utoipa::path(get, path = "/v1/keys", tag = "access",
    responses((status = 200, description = "Keys", body = Keys)))]
async fn list_keys(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let (keys, now) = (keys::list(&*app.deps.store).await?, app.deps.clock.now());
    Ok(Json(json!({"keys": keys.iter().map(|key| key.to_json(now)).collect::<Vec<_>>()})))
}

/// One key, without its secret.
#[utoipa::path(get, path = "/v1/keys/{id}", tag = "access",
    params(("id" = String, Path, description = "The key's id")),
    responses((status = 200, description = "The key", body = Key), (status = 404, description = "Unknown key")))]
async fn get_key(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let key = keys::load(&*app.deps.store, &id).await?.ok_or_else(|| unknown(&id))?;
    Ok(Json(key.to_json(app.deps.clock.now())))
}

/// Makes a key. `secret` is shown this once and never again.
#[utoipa::path(post, path = "/v1/keys", tag = "access", request_body = New,
    responses((status = 201, description = "The key, with its `secret`", body = KeyWithSecret),
        (status = 400, description = "The body cannot be used")))]
async fn create_key(State(app): State<App>, principal: Principal, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let bytes = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let new = checked(parse(&bytes, "name, scopes, rows, expires_at")?)?;
    let now = app.deps.clock.now();
    let (key, secret) = keys::create(&*app.deps.store, new, &principal.id, now).await?;
    app.access.forget(&key.id).await;
    let mut body = key.to_json(now);
    body["secret"] = secret.reveal().into();
    let location = [(header::LOCATION, format!("/v1/keys/{}", key.id))];
    Ok((StatusCode::CREATED, location, Json(body)).into_response())
}

/// Gives a key a new secret, which is shown this once. The old one is taken for `overlap` more.
#[utoipa::path(post, path = "/v1/keys/{id}/rotate", tag = "access",
    params(("id" = String, Path, description = "The key's id")), request_body = Rotation,
    responses((status = 200, description = "The key, with its new `secret`", body = KeyWithSecret),
        (status = 400, description = "The body cannot be used"), (status = 404, description = "Unknown key"),
        (status = 409, description = "It has expired or is revoked")))]
async fn rotate_key(State(app): State<App>, Path(id): Path<String>, request: Request) -> Result<Json<Value>, Problem> {
    let (parts, body) = request.into_parts();
    check_json(&parts.headers)?;
    let bytes = body::read(body, MAX_BODY, app.config.body_timeout).await?;
    let Rotation { overlap } = parse(&bytes, "overlap")?;
    let overlap = overlap.map_or(Ok(0), |text| self::overlap(&text))?;
    let now = app.deps.clock.now();
    let (key, secret) = keys::rotate(&*app.deps.store, &id, overlap, now).await?.ok_or_else(|| unknown(&id))?;
    app.access.forget(&id).await;
    let mut body = key.to_json(now);
    body["secret"] = secret.reveal().into();
    Ok(Json(body))
}

/// Revokes a key for good: here at once, in other processes within five seconds.
#[utoipa::path(delete, path = "/v1/keys/{id}", tag = "access",
    params(("id" = String, Path, description = "The key's id")),
    responses((status = 200, description = "The key, revoked", body = Key),
        (status = 404, description = "Unknown key")))]
async fn revoke_key(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let now = app.deps.clock.now();
    let key = keys::revoke(&*app.deps.store, &id, now).await?.ok_or_else(|| unknown(&id))?;
    app.access.forget(&id).await;
    Ok(Json(key.to_json(now)))
}

fn checked(new: New) -> Result<NewKey, Problem> {
    let scope = |text: &String| text.parse::<Scope>().map_err(|why| Problem::parameter("scopes", why));
    let scopes = new.scopes.iter().map(scope).collect::<Result<Scopes, _>>()?;
    let rule = |(dimension, values): (String, Value)| Ok((dimension, texts(values)?));
    let rows = new.rows.into_iter().map(rule).collect::<Result<_, Problem>>()?;
    Ok(NewKey { name: new.name, scopes, rows, expires_at: instant_of("expires_at", new.expires_at)? })
}

/// The values of a rule: one, or a list of them.
fn texts(values: Value) -> Result<Vec<String>, Problem> {
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => Err(Problem::parameter("rows", "values are texts, numbers or booleans: {\"tenant\": [\"acme\"]}")),
    };
    match values {
        Value::Array(values) => values.into_iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

fn overlap(text: &str) -> Result<Micros, Problem> {
    if text == "0" {
        return Ok(0);
    }
    let length =
        Length::parse(text).map(|length| length.0).ok().filter(|length| (0..=keys::MAX_OVERLAP).contains(length));
    length.ok_or_else(|| Problem::parameter("overlap", "a length of time from 0 to 30d, such as 1h"))
}

fn unknown(id: &str) -> Problem {
    Problem::not_found("unknown_key", format!("there is no key {id:?}; GET /v1/keys lists them"))
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Invalid(member, why) => Self::parameter(member, why),
            KeyError::Full => Self::new(StatusCode::CONFLICT, "too_many_keys", error.to_string()),
            KeyError::Gone(..) => Self::new(StatusCode::CONFLICT, "key_ended", error.to_string()),
            KeyError::Chance(why) => Self::internal(&why),
            KeyError::Store(error) => error.into(),
        }
    }
}
