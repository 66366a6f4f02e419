//! The suites that every backend must pass.
//!
//! [`log_suite`] and [`store_suite`] are made of small functions, each of which states one law and panics with what it
//! saw if the law does not hold. They wait by asking again until a deadline, so that a slow backend passes and a broken
//! one is named. They leave their topics and rows behind: give them names, or a keyspace, of their own.

mod chunks;
mod consumer;
mod documents;
mod ledgers;
mod log;
pub mod memory;

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    ids::Micros,
    log::Log,
    store::{Store, StoreError},
};

/// How long a law may take to show; enough for a real cluster to hand partitions over.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The laws of a log. Topics that are made have names that begin with `fresh`.
pub async fn log_suite(log: &dyn Log, fresh: &str) {
    log::laws(log, fresh).await;
    consumer::laws(log, fresh).await;
}

/// The laws of a view store. Everything is stored under random names.
pub async fn store_suite(store: &dyn Store) {
    ledgers::laws(store).await;
    documents::laws(store).await;
    chunks::laws(store).await;
}

/// Asks until the answer is yes.
async fn until<F: Future<Output = bool>>(law: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "not seen within {DEADLINE:?}: {law}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    Micros::try_from(since.as_micros()).expect("the clock is before the year 294246")
}

/// A name that nobody used before.
fn random_name(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::now_v7().simple())
}

/// Whether a compare-and-set may have been applied although it was not answered.
fn unknown<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unknown(_)))
}

/// A small generator whose sequence depends on the seed only (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Bytes that do not compress.
    fn bytes(&mut self, length: usize) -> Bytes {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(length).collect::<Vec<u8>>().into()
    }
}
