//! How often a principal may ask.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response},
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};
use moka::future::Cache;

use crate::{auth::Principal, problem::Problem};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Principals and addresses remembered at a time, and for how long after they last asked.
const MAX_METERS: u64 = 100_000;
const IDLE: Duration = Duration::from_secs(600);
/// Refused credentials of one address before it is told no more.
const FAILURES_PER_SECOND: u32 = 5;
const FAILURES_AT_ONCE: u32 = 50;

/// The address that a connection comes from; an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Requests of one principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// On average.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: 200, burst: 1_000 }
    }
}

/// Counts requests of one principal.
pub(crate) struct Meter {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    rate: Rate,
}

/// What is left of a principal's rate after a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    rate: Rate,
    remaining: u32,
}

/// When there is something left again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    pub(crate) after: Duration,
}

impl Meter {
    pub(crate) fn per_second(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        let limiter = RateLimiter::direct(quota).with_middleware();
        Self { limiter, rate: Rate { per_second: per_second.max(1), burst: burst.max(1) } }
    }

    pub(crate) fn take(&self) -> Result<Left, Wait> {
        match self.limiter.check() {
            Ok(state) => Ok(Left { rate: self.rate, remaining: state.remaining_burst_capacity() }),
            Err(until) => Err(Wait { after: until.wait_time_from(DefaultClock::default().now()) }),
        }
    }
}

/// The meters of everybody.
pub(crate) struct Rates {
    rate: Rate,
    principals: Cache<String, Arc<Meter>>,
    failures: Cache<IpAddr, Arc<Meter>>,
}

impl Rates {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            principals: Cache::builder().max_capacity(MAX_METERS).time_to_idle(IDLE).build(),
            failures: Cache::builder().max_capacity(MAX_METERS).time_to_idle(IDLE).build(),
        }
    }

    /// Counts a request; `None` for the open principal, who is everybody: the limits of what is under way at once hold them.
    ///
    /// # Errors
    /// 429 if it is one too many.
    pub(crate) async fn take(&self, principal: &Principal) -> Result<Option<Left>, Problem> {
        if principal.is_open() {
            return Ok(None);
        }
        let Rate { per_second, burst } = self.rate;
        let new = async { Arc::new(Meter::per_second(per_second, burst)) };
        let meter = self.principals.get_with_by_ref(principal.id.as_str(), new).await;
        match meter.take() {
            Ok(left) => Ok(Some(left)),
            Err(wait) => {
                metrics::counter!(crate::instruments::RATE_LIMITED).increment(1);
                let detail = format!("{} may ask {per_second} times a second, {burst} times at once", principal.id);
                let none = Left { rate: self.rate, remaining: 0 };
                let problem = Problem::too_many(detail, wait.after);
                Err(none.headers().into_iter().fold(problem, |problem, (name, value)| problem.header(name, value)))
            }
        }
    }

    /// Counts refused credentials of an address.
    ///
    /// # Errors
    /// 429 if they are too many.
    pub(crate) async fn take_failure(&self, peer: IpAddr) -> Result<(), Problem> {
        let new = async { Arc::new(Meter::per_second(FAILURES_PER_SECOND, FAILURES_AT_ONCE)) };
        let meter = self.failures.get_with(peer, new).await;
        let taken = meter.take().map(drop);
        taken.map_err(|wait| Problem::too_many("too many refused credentials from this address", wait.after))
    }
}

/// Says in the response what is left, as draft-ietf-httpapi-ratelimit-headers has it.
pub(crate) fn describe(response: &mut Response<Body>, left: Option<Left>) {
    for (name, value) in left.iter().flat_map(Left::headers) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
}

impl Left {
    /// `q` requests per `w` seconds; `r` of them are left, and in `t` seconds all.
    fn headers(&self) -> [(HeaderName, String); 2] {
        let Rate { per_second, burst } = self.rate;
        let window = burst.div_ceil(per_second);
        let reset = burst.saturating_sub(self.remaining).div_ceil(per_second);
        let remaining = self.remaining;
        [
            (RATE_LIMIT_POLICY, format!("\"default\";q={burst};w={window}")),
            (RATE_LIMIT, format!("\"default\";r={remaining};t={reset}")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_the_wait_is_told() {
        let meter = Meter::per_second(2, 5);
        let left: Vec<u32> = (0..5).map(|_| meter.take().unwrap().remaining).collect();
        assert_eq!(left, [4, 3, 2, 1, 0]);
        let wait = meter.take().unwrap_err().after;
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
    }

    #[test]
    fn headers_read_as_the_draft_has_them() {
        let left = Left { rate: Rate { per_second: 10, burst: 100 }, remaining: 71 };
        let [policy, limit] = left.headers().map(|(_, value)| value);
        assert_eq!((policy.as_str(), limit.as_str()), ("\"default\";q=100;w=10", "\"default\";r=71;t=3"));
    }
}
