//! Patience with stores and logs that do not answer.

use std::{fmt::Display, time::Duration};

use tracing::warn;

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

/// Repeats `attempt` until it succeeds. Only for what may be repeated unchanged; whoever must not wait for ever drops
/// the future.
pub(crate) async fn until_done<T, E, F>(what: &str, place: &dyn Display, mut attempt: F) -> T
where
    E: Display,
    F: AsyncFnMut() -> Result<T, E>,
{
    let mut backoff = Backoff::new();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => {
                let pause = backoff.next();
                warn!(%place, %error, retry_in_ms = pause.as_millis() as u64, "cannot {what} yet");
                tokio::time::sleep(pause).await;
            }
        }
    }
}
