//! How far this machine's clock is from Cassandra's: coordinators set expiry by theirs, and workers judge it by ours.

use std::{sync::Arc, time::Duration};

use lamina_core::{Clock, Micros, StoreError, clock::SystemClock};
use metrics::{Unit, describe_gauge, gauge};
use tokio_util::sync::CancellationToken;

use super::CassandraStore;

/// From here on the skew is an alarm. The margin between `alive_until` and expiry is far larger.
const ALARM: Micros = 500_000;
const INTERVAL: Duration = Duration::from_secs(60);
const SKEW: &str = "lamina_clock_skew_seconds";

impl CassandraStore {
    /// How far a node's clock is ahead of ours at least; each call may ask another node.
    ///
    /// # Errors
    /// As every reading.
    pub async fn clock_skew(&self) -> Result<Micros, StoreError> {
        let open = self.opened().await?;
        let before = SystemClock.now();
        let rows: Vec<(Option<i64>,)> = open.connection.rows(&open.clock, ()).await?;
        let theirs = rows.into_iter().find_map(|(millis,)| millis).map(|millis| millis.saturating_mul(1_000));
        Ok(theirs.map_or(0, |theirs| apart(before, theirs, SystemClock.now())))
    }
}

/// How far `theirs`, of whole milliseconds and read some time between two moments of ours, lies outside of them.
fn apart(before: Micros, theirs: Micros, after: Micros) -> Micros {
    if theirs > after { theirs - after } else { (theirs.saturating_add(999) - before).min(0) }
}

/// Measures once a minute until `stop`, and says so where clocks differ too much.
pub async fn watch(store: Arc<CassandraStore>, stop: CancellationToken) {
    describe_gauge!(
        SKEW,
        Unit::Seconds,
        "How far a Cassandra node's clock is ahead of this process's; alarm beyond 0.5"
    );
    loop {
        if let Ok(skew) = store.clock_skew().await {
            gauge!(SKEW).set(skew as f64 / 1e6);
            if skew.abs() > ALARM {
                let skew_ms = skew / 1_000;
                tracing::error!(
                    skew_ms,
                    "clocks of this machine and of a Cassandra node differ: is NTP running on both?"
                );
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_outside_the_question_and_its_answer_is_skew() {
        assert_eq!(apart(1_000_000, 1_005_000, 1_010_000), 0);
        assert_eq!(apart(1_000_000, 1_600_000, 1_010_000), 590_000);
        assert_eq!(apart(1_000_000, 400_000, 1_010_000), -599_001);
        assert_eq!(apart(1_000_500, 1_000_000, 1_000_900), 0, "theirs is cut to whole milliseconds");
    }
}
