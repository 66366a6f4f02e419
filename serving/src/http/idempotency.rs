//! `Idempotency-Key`: the same request within 24 hours has the same outcome.
//!
//! The document of a key is written before anything is done and fixes the id of what will be made, so a repetition after
//! a crash goes on where the first attempt ended instead of making a second one.

use axum::http::{HeaderMap, StatusCode};
use lamina_core::{
    Micros, envelope,
    store::{Commit, Documents, StoreError},
};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    auth::Principal,
    problem::Problem,
    query::calendar::{DAY, SECOND},
};

const DOCUMENTS: &str = "idempotency";
const MAX_KEY: usize = 200;
/// How long an outcome is kept.
const KEPT: Micros = DAY;
/// After this long an attempt that has not ended is taken to have died.
const ABANDONED: Micros = 60 * SECOND;

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Of the request's body.
    checksum: u32,
    length: u64,
    /// Id of what the request makes.
    id: String,
    begun_at: Micros,
    done: bool,
}

/// What is to be done for a key.
#[derive(Debug)]
pub(super) enum Begun {
    /// Make it, under this id.
    New(String),
    /// It was made under this id.
    Done(String),
}

/// The key of a request. Keys are per principal and endpoint.
pub(super) fn key(headers: &HeaderMap, endpoint: &str, principal: &Principal) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().map(|key| key.trim().trim_matches('"')).unwrap_or_default();
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Problem::parameter("idempotency-key", format!("1 to {MAX_KEY} printable characters, best a UUID")));
    }
    // A subject may hold a slash: two principals must not come to one key.
    let who = principal.id.replace('%', "%25").replace('/', "%2F");
    Ok(Some(format!("{endpoint}/{who}/{key}")))
}

/// Takes the key for this request, or tells what became of it.
pub(super) async fn begin(app: &App, key: &str, body: &[u8], id: &str) -> Result<Begun, Problem> {
    let (now, store) = (app.deps.clock.now(), &app.deps.store);
    let mut entry = Entry {
        checksum: crc32fast::hash(body),
        length: body.len() as u64,
        id: id.to_owned(),
        begun_at: now,
        done: false,
    };
    let document = store.get(DOCUMENTS, key).await?;
    let expected = document.as_ref().map_or(0, |document| document.version);
    if let Some(document) = document {
        let known: Entry = envelope::unpack(&document.value).map_err(|error| Problem::internal(&error))?;
        if now < known.begun_at + KEPT {
            if (known.checksum, known.length) != (entry.checksum, entry.length) {
                let detail = "this idempotency-key was used with another body within 24 hours: take a new one";
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail));
            }
            if known.done {
                return Ok(Begun::Done(known.id));
            }
            if now < known.begun_at + ABANDONED {
                return Err(in_flight());
            }
            entry.id = known.id;
        }
    }
    match put(app, key, expected, &entry).await? {
        Commit::Applied => Ok(Begun::New(entry.id)),
        Commit::Refused => Err(in_flight()),
    }
}

/// Notes that what [`begin`] gave out was made.
pub(super) async fn finish(app: &App, key: &str) -> Result<(), Problem> {
    let Some(document) = app.deps.store.get(DOCUMENTS, key).await? else { return Ok(()) };
    let entry: Entry = envelope::unpack(&document.value).map_err(|error| Problem::internal(&error))?;
    // If another attempt took over meanwhile, it notes the same.
    put(app, key, document.version, &Entry { done: true, ..entry }).await?;
    Ok(())
}

/// Removes outcomes that are no longer kept.
pub(super) async fn sweep(app: &App) -> Result<(), StoreError> {
    let now = app.deps.clock.now();
    for (key, document) in app.deps.store.list(DOCUMENTS).await? {
        let old = envelope::unpack::<Entry>(&document.value).is_ok_and(|entry| now >= entry.begun_at + KEPT);
        if old {
            app.deps.store.remove(DOCUMENTS, &key, document.version).await?;
        }
    }
    Ok(())
}

async fn put(app: &App, key: &str, expected: u64, entry: &Entry) -> Result<Commit, Problem> {
    let value = envelope::pack(entry).map_err(|error| Problem::internal(&error))?;
    Ok(Documents::put(&*app.deps.store, DOCUMENTS, key, expected, value.into()).await?)
}

fn in_flight() -> Problem {
    let detail = "a request with this idempotency-key is under way: send it again to see its outcome";
    Problem::new(StatusCode::CONFLICT, "in_flight", detail).retry_after(std::time::Duration::from_secs(1))
}
