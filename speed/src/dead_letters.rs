//! Dead letters: records that could not be decoded, or that a metric's expressions rejected, with the reason.
//!
//! They go to `{topic}.dead-letter` as JSON and are acknowledged before a mark passes them. After a takeover those of the
//! open epoch may be written again: at least once, by (source, topic, partition, offset, metric).

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use lamina_core::{
    Offset, Partition,
    log::{Append, Log, LogError},
};
use serde::Serialize;

use crate::dead_letter_topic;

/// Bytes of letters that are appended at once.
const BATCH_BYTES: usize = 512 << 10;

/// A record that is set aside.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    pub(crate) offset: Offset,
    /// The metric that rejected it; `None` if the record did not decode.
    pub(crate) metric: Option<String>,
    pub(crate) reason: String,
    pub(crate) payload: Bytes,
}

#[derive(Serialize)]
struct Letter<'a> {
    source: &'a str,
    topic: &'a str,
    partition: Partition,
    offset: Offset,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<&'a str>,
    reason: &'a str,
    /// Base64; left out if the log refuses so large a record. The archive has it in any case.
    payload: Option<String>,
    payload_bytes: usize,
}

/// Where one partition's dead letters go.
pub(crate) struct DeadLetters {
    source: String,
    topic: String,
    partition: Partition,
    /// Whether the topic of dead letters is known to exist.
    ensured: bool,
}

impl DeadLetters {
    pub(crate) fn new(source: &str, topic: &str, partition: Partition) -> Self {
        Self { source: source.to_owned(), topic: topic.to_owned(), partition, ensured: false }
    }

    /// Appends the letters of `pending` and removes what was acknowledged; to be repeated until it succeeds.
    pub(crate) async fn append(&mut self, log: &dyn Log, pending: &mut Vec<DeadLetter>) -> Result<(), LogError> {
        let to = dead_letter_topic(&self.topic);
        if !self.ensured && !pending.is_empty() {
            log.ensure_topic(&to, 1).await?;
            self.ensured = true;
        }
        while !pending.is_empty() {
            let mut bytes = 0;
            let fits = |letter: &&DeadLetter| {
                bytes += letter.payload.len() + letter.reason.len();
                bytes <= BATCH_BYTES
            };
            let count = pending.iter().take_while(fits).count().max(1);
            let whole = pending[..count].iter().map(|letter| self.encode(letter, true)).collect();
            match log.append(&to, whole).await {
                Err(LogError::TooLarge { .. }) => {
                    let short = pending[..count].iter().map(|letter| self.encode(letter, false)).collect();
                    log.append(&to, short).await?;
                }
                other => drop(other?),
            }
            pending.drain(..count);
        }
        Ok(())
    }

    fn encode(&self, letter: &DeadLetter, with_payload: bool) -> Append {
        let text = Letter {
            source: &self.source,
            topic: &self.topic,
            partition: self.partition,
            offset: letter.offset,
            metric: letter.metric.as_deref(),
            reason: &letter.reason,
            payload: with_payload.then(|| BASE64_STANDARD.encode(&letter.payload)),
            payload_bytes: letter.payload.len(),
        };
        // Plain data with text keys always serialises.
        Append { key: None, payload: serde_json::to_vec(&text).unwrap_or_default().into() }
    }
}
