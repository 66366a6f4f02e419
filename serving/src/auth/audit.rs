//! Who did what: one line of log each, and kept for `GET /v1/audit`.
//!
//! Changes are kept in the store, so every process shows those of all; sent events, which are many, in the memory of the
//! process that took them. Both are bounded. No entry holds a body, a query string or a header, so none holds a secret.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lamina_core::{
    Micros, envelope,
    ids::new_id,
    store::{Documents, Store, StoreError},
};
use serde::{Deserialize, Serialize};

use super::endpoints::Effect;

const AUDIT_DOCUMENTS: &str = "audit";
/// Most entries kept in the store, about; those beyond go after every [`SWEEP`] new ones.
pub(crate) const MAX_STORED: usize = 5_000;
const SWEEP: u64 = 100;
/// Most entries kept in memory.
pub(crate) const MAX_IN_MEMORY: usize = 5_000;

/// One thing that somebody did or tried to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// `aud_` and a UUIDv7: ids sort by time.
    pub(crate) id: String,
    pub(crate) at: Micros,
    /// See [`super::principal::Principal`].
    pub(crate) principal: String,
    pub(crate) request_id: String,
    /// Method and route, such as `PUT /v1/metrics/{metric}`.
    pub(crate) action: String,
    /// The path as it was called.
    pub(crate) path: String,
    pub(crate) status: u16,
    /// The problem's code, if it failed.
    pub(crate) problem: Option<String>,
    /// Where what was made is to be found, such as `/v1/jobs/job_...`.
    pub(crate) made: Option<String>,
}

impl Entry {
    /// Longest path kept.
    const MAX_PATH: usize = 500;

    pub(crate) fn new(at: Micros, principal: &str, request_id: &str, action: String, path: &str) -> Self {
        Self {
            id: format!("aud_{}", new_id().simple()),
            at,
            principal: principal.to_owned(),
            request_id: request_id.to_owned(),
            action,
            path: path.chars().take(Self::MAX_PATH).collect(),
            status: 0,
            problem: None,
            made: None,
        }
    }

    fn log(&self) {
        let Self { id, principal, request_id, action, path, status, problem, made, .. } = self;
        let (problem, made) = (problem.as_deref().unwrap_or_default(), made.as_deref().unwrap_or_default());
        tracing::info!(target: "lamina::audit", id, principal, request_id, action, path, status, problem, made, "audit");
    }
}

/// What this process remembers.
#[derive(Default)]
pub(crate) struct AuditLog {
    memory: Mutex<VecDeque<Entry>>,
    stored: AtomicU64,
}

impl AuditLog {
    /// Writes the line, and keeps the entry where it belongs. What cannot be stored is kept in memory.
    pub(crate) async fn note(&self, store: &dyn Store, effect: Effect, entry: Entry) {
        entry.log();
        if effect == Effect::Changes {
            match self.put(store, &entry).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, id = entry.id, "an audit entry is kept in memory only"),
            }
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() == MAX_IN_MEMORY {
            memory.pop_front();
        }
        memory.push_back(entry);
    }

    async fn put(&self, store: &dyn Store, entry: &Entry) -> Result<(), StoreError> {
        let value = envelope::pack(entry).map_err(|error| StoreError::Refused(error.to_string()))?;
        Documents::put(store, AUDIT_DOCUMENTS, &entry.id, 0, value.into()).await?;
        if self.stored.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP) {
            sweep(store).await?;
        }
        Ok(())
    }

    /// The latest entries older than `before`, the newest first.
    ///
    /// # Errors
    /// As the store.
    pub(crate) async fn latest(
        &self,
        store: &dyn Store,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let older = |id: &str| before.is_none_or(|before| id < before);
        let mut entries = Vec::new();
        for (id, document) in store.list(AUDIT_DOCUMENTS).await? {
            if older(&id) {
                let corrupt = |error: envelope::EnvelopeError| StoreError::Corrupt {
                    what: format!("audit entry {id}"),
                    why: error.to_string(),
                };
                entries.push(envelope::unpack::<Entry>(&document.value).map_err(corrupt)?);
            }
        }
        {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            entries.extend(memory.iter().filter(|entry| older(&entry.id)).cloned());
        }
        entries.sort_unstable_by(|a, b| b.id.cmp(&a.id));
        entries.truncate(limit);
        Ok(entries)
    }
}

/// Notes a change of a key that was made past the HTTP interface.
pub async fn note(store: &dyn Store, at: Micros, principal: &str, action: &str, key: &str) {
    let entry = Entry::new(at, principal, "", action.to_owned(), &format!("/v1/keys/{key}"));
    AuditLog::default().note(store, Effect::Changes, entry).await;
}

/// Removes the oldest entries beyond the bound.
async fn sweep(store: &dyn Store) -> Result<(), StoreError> {
    let mut all = store.list(AUDIT_DOCUMENTS).await?;
    let beyond = all.len().saturating_sub(MAX_STORED);
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (id, document) in all.into_iter().take(beyond) {
        store.remove(AUDIT_DOCUMENTS, &id, document.version).await?;
    }
    Ok(())
}
