//! From a bearer to a principal.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderMap, header};
use lamina_core::{Clock, Micros, StoreError, store::Store};
use moka::future::Cache;

use super::{
    Config, KEY_CACHE, Mode, WITHOUT_STORE,
    jwt::{self, Verifier},
    keys::{self, ApiKey, Refusal},
    principal::Principal,
    secret::{Presented, looks_like_key},
};
use crate::{limits::Meter, problem::Problem};

/// Keys remembered at a time.
const MAX_CACHED: u64 = 10_000;
/// Longest `authorization` that is looked at.
const MAX_BEARER: usize = 8 << 10;
/// Reads of the store for keys that are not remembered: guesses may not keep the store busy.
const UNKNOWN_PER_SECOND: u32 = 200;
/// How long the store may take to say again what it said before.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the store said, or did not take back.
#[derive(Clone)]
struct Said<T> {
    what: T,
    /// When it did.
    at: Micros,
    /// When it is asked again.
    again: Micros,
}

impl<T> Said<T> {
    /// Whether the store need not be asked yet. A clock that was put back says nothing about how long ago it was.
    fn holds(&self, now: Micros) -> bool {
        (self.at..self.again).contains(&now)
    }
}

/// Tells who asks.
pub(crate) struct Access {
    config: Config,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    keys: Cache<String, Said<Option<Arc<ApiKey>>>>,
    lookups: Meter,
    verifier: Option<Verifier>,
    /// Whether a key was ever made, as far as this process knows; never taken back.
    closed: AtomicBool,
    /// Whether one was, as the store said last: no, since it is not asked any more once one was.
    any: Mutex<Option<Said<bool>>>,
}

impl Access {
    pub(crate) fn new(config: Config, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self {
            keys: Cache::builder().max_capacity(MAX_CACHED).time_to_live(WITHOUT_STORE).build(),
            lookups: Meter::per_second(UNKNOWN_PER_SECOND, UNKNOWN_PER_SECOND * 5),
            verifier: config.jwt.clone().map(Verifier::new),
            closed: AtomicBool::new(false),
            any: Mutex::new(None),
            config,
            store,
            clock,
        }
    }

    pub(crate) fn open_metrics(&self) -> bool {
        self.config.open_metrics
    }

    /// # Errors
    /// 401 without credentials that are known, current and unrevoked; 503 if that cannot be told.
    pub(crate) async fn principal(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        if self.config.mode == Mode::Open {
            return Ok(Principal::open());
        }
        match bearer(headers)? {
            Some(bearer) if looks_like_key(bearer) => self.of_key(bearer).await,
            Some(bearer) => match &self.verifier {
                Some(verifier) => Ok(verifier.principal(bearer, self.clock.now()).await?),
                None => Err(unauthorized("the bearer is no API key of lamina, which begins with `lam_`")),
            },
            None if self.is_open().await? => Ok(Principal::open()),
            None => Err(unauthorized("credentials are asked for: `authorization: Bearer lam_...`")),
        }
    }

    /// What a key was is not to be believed any longer.
    pub(crate) async fn forget(&self, id: &str) {
        self.keys.invalidate(id).await;
        self.closed.store(true, Ordering::SeqCst);
    }

    async fn of_key(&self, bearer: &str) -> Result<Principal, Problem> {
        // One answer to all: which keys there are is nobody's business.
        let unknown = || unauthorized("the API key is unknown, has expired or was revoked");
        let presented = Presented::parse(bearer).ok_or_else(unknown)?;
        let key = self.key(presented.id()).await?.ok_or_else(unknown)?;
        match key.check(&presented, self.clock.now()) {
            Ok(()) => Ok(Principal::new(format!("key:{}", key.id), key.scopes, key.rows.clone())),
            Err(refusal) => {
                let why = match refusal {
                    Refusal::WrongSecret => "wrong secret",
                    Refusal::Expired => "expired",
                    Refusal::Revoked => "revoked",
                };
                tracing::warn!(key = key.id, why, "an API key was refused");
                Err(unknown())
            }
        }
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<ApiKey>>, Problem> {
        let known = self.keys.get(id).await;
        if let Some(said) = known.as_ref().filter(|said| said.holds(self.clock.now())) {
            return Ok(said.what.clone());
        }
        self.lookups.take().map_err(|wait| too_many_lookups(wait.after))?;
        let load = async { Ok(keys::load(&*self.store, id).await?.map(Arc::new)) };
        let said = self.ask(known, load).await?;
        self.keys.insert(id.to_owned(), said.clone()).await;
        Ok(said.what)
    }

    /// Asks the store. While it does not answer, what it said before goes on to hold, so that events come in all the same.
    async fn ask<T>(
        &self,
        known: Option<Said<T>>,
        load: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Said<T>, Problem> {
        let now = self.clock.now();
        let again = now.saturating_add(micros(KEY_CACHE));
        let Some(known) = known.filter(|said| now < said.at.saturating_add(micros(WITHOUT_STORE))) else {
            return Ok(Said { what: load.await?, at: now, again });
        };
        match tokio::time::timeout(PATIENCE, load).await {
            Ok(Ok(what)) => Ok(Said { what, at: now, again }),
            Ok(Err(_)) | Err(_) => Ok(Said { again, ..known }),
        }
    }

    /// Whether nobody has to say who they are. By the clock of the layer, so that a simulated run asks at the same moments.
    async fn is_open(&self) -> Result<bool, Problem> {
        if self.config.mode != Mode::UntilFirstKey || self.verifier.is_some() || self.closed.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let known = self.any.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.as_ref().is_some_and(|said| said.holds(self.clock.now())) {
            return Ok(true);
        }
        let said = self.ask(known, keys::any(&*self.store)).await?;
        let any = said.what;
        *self.any.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        self.closed.fetch_or(any, Ordering::SeqCst);
        Ok(!any)
    }
}

fn micros(length: Duration) -> Micros {
    Micros::try_from(length.as_micros()).unwrap_or(Micros::MAX)
}

/// The bearer of a request; `None` if it has no `authorization`.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(unauthorized("`authorization` is given twice"));
    }
    let text = value.to_str().ok().filter(|text| text.len() <= MAX_BEARER);
    let bearer = text.and_then(|text| text.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
    bearer.map(|(_, bearer)| Some(bearer.trim())).ok_or_else(|| unauthorized("`authorization` takes `Bearer lam_...`"))
}

/// 401, in the words of RFC 6750.
pub(super) fn unauthorized(detail: &str) -> Problem {
    Problem::unauthorized(detail)
}

fn too_many_lookups(after: Duration) -> Problem {
    Problem::too_many("keys that are not remembered are looked up too often: try again", after)
}

impl From<jwt::Refused> for Problem {
    fn from(refused: jwt::Refused) -> Self {
        match refused {
            jwt::Refused::Unavailable(why) => Self::unavailable("issuer_unavailable", why),
            jwt::Refused::Token(why) => unauthorized(&format!("the token is refused: {why}")),
        }
    }
}
