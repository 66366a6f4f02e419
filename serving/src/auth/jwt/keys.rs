//! The issuer's public keys: kept, and asked for again when a token names one that is not among them.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{JwkSet, PublicKeyUse},
};
use lamina_core::Micros;
use tokio::{io::AsyncReadExt, sync::Mutex};

use super::{KeySource, Refused, provider};

/// Not asked for more often, whatever tokens name: else whoever makes up names could keep the issuer busy.
pub(super) const RETRY: Micros = 10_000_000;
/// Asked for again after this time, so that keys which the issuer has withdrawn go.
pub(super) const FRESH: Micros = 3_600_000_000;
/// While the issuer does not answer, what is known is believed for this long.
const STALE: Micros = 86_400_000_000;
const WITHIN: Duration = Duration::from_secs(5);
/// Largest set, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// A key that tokens may name.
pub(super) struct Known {
    pub(super) key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl Known {
    /// Whether the key is of the algorithm's kind, and of that very algorithm if it names one.
    pub(super) fn takes(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

pub(super) struct Keys {
    source: KeySource,
    state: RwLock<State>,
    /// One asks at a time; the others wait for what it learns.
    asking: Mutex<()>,
}

#[derive(Default)]
struct State {
    by_kid: HashMap<String, Arc<Known>>,
    learnt_at: Option<Micros>,
    tried_at: Option<Micros>,
}

impl Keys {
    pub(super) fn new(source: KeySource) -> Self {
        Self { source, state: RwLock::default(), asking: Mutex::default() }
    }

    /// The key of this name, if the issuer has one.
    pub(super) async fn find(&self, kid: &str, now: Micros) -> Result<Option<Arc<Known>>, Refused> {
        if let Some(known) = self.known(kid, now) {
            return Ok(Some(known));
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = self.known(kid, now) {
            return Ok(Some(known));
        }
        let failure = if self.may_ask(now) { self.learn(now).await.err() } else { None };
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match state.learnt_at {
            Some(at) if now < at.saturating_add(STALE) => Ok(state.by_kid.get(kid).cloned()),
            _ => Err(Refused::Unavailable(format!(
                "the issuer's keys are not known: {}",
                failure.unwrap_or_else(|| "asking for them has just failed".to_owned())
            ))),
        }
    }

    /// A key that need not be asked for.
    fn known(&self, kid: &str, now: Micros) -> Option<Arc<Known>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.learnt_at.is_some_and(|at| now < at.saturating_add(FRESH));
        state.by_kid.get(kid).filter(|_| fresh).cloned()
    }

    fn may_ask(&self, now: Micros) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let may = state.tried_at.is_none_or(|at| now >= at.saturating_add(RETRY) || now < at);
        if may {
            state.tried_at = Some(now);
        }
        may
    }

    async fn learn(&self, now: Micros) -> Result<(), String> {
        let read = async {
            match &self.source {
                KeySource::File(path) => from_file(path).await,
                KeySource::Url(url) => from_url(url.as_str()).await,
            }
        };
        let learnt = match tokio::time::timeout(WITHIN, read).await {
            Ok(text) => text.and_then(|text| parse(&text)),
            Err(_) => Err(format!("no answer within {} s", WITHIN.as_secs())),
        };
        match learnt {
            Ok(by_kid) => {
                tracing::info!(keys = by_kid.len(), "the issuer's keys were read");
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.by_kid = by_kid;
                state.learnt_at = Some(now);
                Ok(())
            }
            Err(why) => {
                tracing::warn!(why, "the issuer's keys cannot be read");
                Err(why)
            }
        }
    }
}

/// The keys of a set by name; those without a name, for encryption, or of an unknown kind are left out.
fn parse(text: &[u8]) -> Result<HashMap<String, Arc<Known>>, String> {
    // Key by key: an issuer may have one of a kind that is not known here.
    let set: serde_json::Value = serde_json::from_slice(text).map_err(|error| format!("no JWK set: {error}"))?;
    let keys = set.get("keys").and_then(serde_json::Value::as_array).ok_or("no JWK set: there is no `keys`")?;
    let known = keys.iter().filter_map(|key| {
        let one = serde_json::json!({"keys": [key]});
        let jwk = serde_json::from_value::<JwkSet>(one).ok()?.keys.pop()?;
        let kid = jwk.common.key_id.clone()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let algorithms = provider::algorithms_of(&jwk);
        let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| !algorithms.is_empty())?;
        Some((kid, Arc::new(Known { key, algorithms })))
    });
    Ok(known.collect())
}

async fn from_file(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut text = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text).await.map_err(failed)?;
    if text.len() > MAX_BYTES { Err(format!("{}: larger than {MAX_BYTES} bytes", path.display())) } else { Ok(text) }
}

/// Goes to this address and to no other: redirects are refused.
async fn from_url(url: &str) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| format!("{url}: {error}");
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(WITHIN).build();
    let mut answer = client.map_err(failed)?.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(format!("{url}: answers {}", answer.status()));
    }
    let mut text = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(failed)? {
        if text.len() + part.len() > MAX_BYTES {
            return Err(format!("{url}: larger than {MAX_BYTES} bytes"));
        }
        text.extend_from_slice(&part);
    }
    Ok(text)
}
