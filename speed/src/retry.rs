//! Patience with stores and logs that do not answer.

use std::{fmt::Display, time::Duration};

use tracing::warn;

use crate::partition::Place;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(10);

/// Growing pauses between attempts.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST)
    }

    /// The pause before the next attempt; doubles with every call up to 10 s.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
        pause
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    pub(crate) fn reset(&mut self) {
        self.0 = FIRST;
    }
}

/// Says what is being tried, and pauses between the attempts.
pub(crate) struct Patience<'a> {
    what: &'static str,
    place: &'a Place,
    backoff: Backoff,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(what: &'static str, place: &'a Place) -> Self {
        Self { what, place, backoff: Backoff::new() }
    }

    pub(crate) async fn wait<E: Display>(&mut self, error: E) {
        let pause = self.backoff.next();
        warn!(place = %self.place, %error, retry_in_ms = pause.as_millis() as u64, "cannot {} yet", self.what);
        tokio::time::sleep(pause).await;
    }
}

/// Repeats an attempt until it succeeds. Only for what may be repeated unchanged; whoever must not wait for ever drops
/// the future. (A macro, as a future made by a closure that borrows cannot be shown to be `Send`.)
macro_rules! until_done {
    ($what:literal, $place:expr, $attempt:expr) => {{
        let mut patience = $crate::retry::Patience::new($what, $place);
        loop {
            match $attempt.await {
                Ok(done) => break done,
                Err(error) => patience.wait(error).await,
            }
        }
    }};
}

pub(crate) use until_done;
