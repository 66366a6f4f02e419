//! API keys, as documents of the store: made, listed, rotated and revoked by compare-and-set.
//!
//! # Invariants
//! - A secret is never stored, only its hash; it is given out once, when it is made.
//! - A revoked key stays as a document, so that a lamina that was closed by its first key is never open again.

use lamina_core::{
    Micros, envelope,
    envelope::EnvelopeError,
    store::{Commit, Document, Documents, StoreError},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    principal::Rows,
    scope::{Scope, Scopes},
    secret::{Hash, Presented},
};
use crate::instant;

/// Kind of the documents that hold keys; their key is the API key's id.
pub(crate) const KEY_DOCUMENTS: &str = "api_key";
/// Most keys, revoked ones included: when there are as many, the ones revoked longest ago make room.
pub const MAX_KEYS: usize = 10_000;
/// Longest name of a key.
const MAX_NAME: usize = 100;
/// Most rules of one key, most values of one rule, and longest value or name of a dimension.
const MAX_RULES: usize = 8;
const MAX_VALUES: usize = 100;
const MAX_VALUE: usize = 512;
/// Longest time for which a rotated secret lives on.
pub const MAX_OVERLAP: Micros = 30 * 86_400_000_000;
/// How often a refused compare-and-set is made again on what was read back.
const ATTEMPTS: u32 = 16;

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: String,
    /// What people call it; several may have one name.
    pub name: String,
    pub scopes: Scopes,
    pub rows: Rows,
    pub created_at: Micros,
    /// Who made it, as the audit log names principals.
    pub created_by: String,
    /// When it ends by itself; `None` is never.
    pub expires_at: Option<Micros>,
    pub rotated_at: Option<Micros>,
    pub revoked_at: Option<Micros>,
    current: Hash,
    /// The secret before the last rotation, and until when it is still taken.
    previous: Option<(Hash, Micros)>,
}

/// What a new key shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewKey {
    pub name: String,
    pub scopes: Scopes,
    pub rows: Rows,
    pub expires_at: Option<Micros>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Which member cannot be used, and what is allowed.
    #[error("`{0}`: {1}")]
    Invalid(&'static str, String),
    #[error("there are {MAX_KEYS} keys and none is revoked: revoke what is not used")]
    Full,
    #[error("key {0} is {1}")]
    Gone(String, &'static str),
    #[error("{0}")]
    Chance(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a key that is known is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    WrongSecret,
    Expired,
    Revoked,
}

impl ApiKey {
    /// When the secret before the last rotation ends, if it has not yet.
    pub fn overlap_until(&self, now: Micros) -> Option<Micros> {
        self.previous.map(|(_, until)| until).filter(|until| *until > now)
    }

    /// As admins see it: everything but its secret.
    pub fn to_json(&self, now: Micros) -> Value {
        let time = |at: Option<Micros>| at.map(instant::format);
        json!({
            "id": self.id,
            "name": self.name,
            "state": self.state(now),
            "scopes": self.scopes.iter().map(Scope::as_str).collect::<Vec<_>>(),
            "rows": self.rows,
            "created_at": instant::format(self.created_at),
            "created_by": self.created_by,
            "expires_at": time(self.expires_at),
            "rotated_at": time(self.rotated_at),
            "overlap_until": time(self.overlap_until(now)),
            "revoked_at": time(self.revoked_at),
        })
    }

    /// `active`, `expired` or `revoked`.
    pub fn state(&self, now: Micros) -> &'static str {
        match (self.revoked_at, self.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(end)) if end <= now => "expired",
            _ => "active",
        }
    }

    /// Whether what was presented is this key, now.
    pub(crate) fn check(&self, presented: &Presented, now: Micros) -> Result<(), Refusal> {
        let hash = presented.hash();
        let previous = self.previous.is_some_and(|(previous, until)| previous.is(&hash) && now < until);
        if !(self.current.is(&hash) || previous) {
            return Err(Refusal::WrongSecret);
        }
        match self.state(now) {
            "active" => Ok(()),
            "revoked" => Err(Refusal::Revoked),
            _ => Err(Refusal::Expired),
        }
    }
}

impl NewKey {
    fn check(&self, now: Micros) -> Result<(), KeyError> {
        let invalid = |member, why: String| Err(KeyError::Invalid(member, why));
        if self.name.trim().is_empty() || self.name.len() > MAX_NAME || self.name.chars().any(char::is_control) {
            return invalid("name", format!("1 to {MAX_NAME} bytes without control characters"));
        }
        if self.scopes.is_empty() {
            return invalid("scopes", "at least one scope".to_owned());
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return invalid("expires_at", "lies in the past".to_owned());
        }
        check_rows(&self.rows, self.scopes).map_err(|why| KeyError::Invalid("rows", why))
    }
}

/// Rules hold back what is read; they could not hold back what the other scopes do.
fn check_rows(rows: &Rows, scopes: Scopes) -> Result<(), String> {
    if rows.len() > MAX_RULES {
        return Err(format!("at most {MAX_RULES} dimensions"));
    }
    for (dimension, values) in rows {
        let short = |text: &String| (1..=MAX_VALUE).contains(&text.len());
        if !short(dimension) || values.is_empty() || values.len() > MAX_VALUES || !values.iter().all(short) {
            return Err(format!("of each dimension 1 to {MAX_VALUES} values of 1 to {MAX_VALUE} bytes"));
        }
        if values.iter().any(|value| value == lamina_metric::OVERFLOW) {
            return Err(format!("{} is no value: it stands for many", lamina_metric::OVERFLOW));
        }
    }
    match scopes.iter().find(|scope| !scope.only_reads()) {
        Some(scope) if !rows.is_empty() => {
            Err(format!("rules go with metrics:read and sql:run only, and the scope {scope} does not go by rows"))
        }
        _ => Ok(()),
    }
}

/// Makes a key; gives it with its secret, which nobody can be told again.
///
/// # Errors
/// [`KeyError::Invalid`] if the key cannot be as asked, [`KeyError::Full`], or as the store.
pub async fn create<D: Documents + ?Sized>(
    store: &D,
    new: NewKey,
    by: &str,
    now: Micros,
) -> Result<(ApiKey, Presented), KeyError> {
    new.check(now)?;
    make_room(store).await?;
    let presented = Presented::new().map_err(KeyError::Chance)?;
    let NewKey { name, scopes, rows, expires_at } = new;
    let key = ApiKey {
        id: presented.id().to_owned(),
        name,
        scopes,
        rows,
        created_at: now,
        created_by: by.to_owned(),
        expires_at,
        rotated_at: None,
        revoked_at: None,
        current: presented.hash(),
        previous: None,
    };
    let value = envelope::pack(&key).map_err(|error| corrupt(&key.id, &error))?;
    match store.put(KEY_DOCUMENTS, &key.id, 0, value.into()).await {
        Ok(Commit::Applied) => Ok((key, presented)),
        Ok(Commit::Refused) => Err(KeyError::Chance("the new key's id is taken: try again".to_owned())),
        // The id is new: if a key stands under it, it is this one.
        Err(StoreError::Unknown(why)) => match load(store, &key.id).await? {
            Some(_) => Ok((key, presented)),
            None => Err(StoreError::Unknown(why).into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// The key of this id, revoked or not.
///
/// # Errors
/// As the store, and [`StoreError::Corrupt`] if it does not decode.
pub async fn load<D: Documents + ?Sized>(store: &D, id: &str) -> Result<Option<ApiKey>, StoreError> {
    let document = store.get(KEY_DOCUMENTS, id).await?;
    document.map(|document| decode(id, &document)).transpose()
}

/// All keys, the oldest first, revoked ones included.
///
/// # Errors
/// As [`load`].
pub async fn list<D: Documents + ?Sized>(store: &D) -> Result<Vec<ApiKey>, StoreError> {
    let documents = store.list(KEY_DOCUMENTS).await?;
    let mut keys: Vec<ApiKey> =
        documents.iter().map(|(id, document)| decode(id, document)).collect::<Result<_, _>>()?;
    keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(keys)
}

/// Whether a key was ever made.
///
/// # Errors
/// As the store.
pub async fn any<D: Documents + ?Sized>(store: &D) -> Result<bool, StoreError> {
    Ok(!store.list(KEY_DOCUMENTS).await?.is_empty())
}

/// Ends a key for good; `None` if there is no such key. Other processes notice within [`super::KEY_CACHE`].
///
/// # Errors
/// As the store.
pub async fn revoke<D: Documents + ?Sized>(store: &D, id: &str, now: Micros) -> Result<Option<ApiKey>, KeyError> {
    update(store, id, |key| {
        let changes = key.revoked_at.is_none();
        key.revoked_at.get_or_insert(now);
        Ok(changes)
    })
    .await
}

/// Gives a key a new secret; the old one is taken until `overlap` from now. `None` if there is no such key.
///
/// # Errors
/// [`KeyError::Gone`] if it has expired or is revoked, [`KeyError::Invalid`] if the overlap is too long; as the store.
pub async fn rotate<D: Documents + ?Sized>(
    store: &D,
    id: &str,
    overlap: Micros,
    now: Micros,
) -> Result<Option<(ApiKey, Presented)>, KeyError> {
    if !(0..=MAX_OVERLAP).contains(&overlap) {
        return Err(KeyError::Invalid("overlap", "a length of time from 0 to 30d".to_owned()));
    }
    let presented = Presented::for_key(id.to_owned()).map_err(KeyError::Chance)?;
    let hash = presented.hash();
    let changed = update(store, id, |key| {
        match key.state(now) {
            "active" => {}
            state => return Err(KeyError::Gone(key.id.clone(), state)),
        }
        if key.current == hash {
            return Ok(false);
        }
        key.previous = (overlap > 0).then_some((key.current, now + overlap));
        key.current = hash;
        key.rotated_at = Some(now);
        Ok(true)
    });
    Ok(changed.await?.map(|key| (key, presented)))
}

/// Changes a key by compare-and-set; `change` does nothing on a key that it has already changed.
async fn update<D, F>(store: &D, id: &str, mut change: F) -> Result<Option<ApiKey>, KeyError>
where
    D: Documents + ?Sized,
    F: FnMut(&mut ApiKey) -> Result<bool, KeyError> + Send,
{
    for _ in 0..ATTEMPTS {
        let Some(document) = store.get(KEY_DOCUMENTS, id).await? else { return Ok(None) };
        let mut key = decode(id, &document)?;
        if !change(&mut key)? {
            return Ok(Some(key));
        }
        let value = envelope::pack(&key).map_err(|error| corrupt(id, &error))?;
        match store.put(KEY_DOCUMENTS, id, document.version, value.into()).await {
            Ok(Commit::Applied) => return Ok(Some(key)),
            // Both are decided by reading back.
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Unavailable(format!("key {id} kept changing")).into())
}

/// Removes the keys revoked longest ago while there are too many.
async fn make_room<D: Documents + ?Sized>(store: &D) -> Result<(), KeyError> {
    let documents = store.list(KEY_DOCUMENTS).await?;
    if documents.len() < MAX_KEYS {
        return Ok(());
    }
    let mut revoked = Vec::new();
    for (id, document) in &documents {
        if let Some(at) = decode(id, document)?.revoked_at {
            revoked.push((at, id, document.version));
        }
    }
    let Some((_, id, version)) = revoked.into_iter().min() else { return Err(KeyError::Full) };
    store.remove(KEY_DOCUMENTS, id, version).await?;
    Ok(())
}

fn decode(id: &str, document: &Document) -> Result<ApiKey, StoreError> {
    envelope::unpack(&document.value).map_err(|error| corrupt(id, &error))
}

fn corrupt(id: &str, error: &EnvelopeError) -> StoreError {
    StoreError::Corrupt { what: format!("key {id}"), why: error.to_string() }
}
