//! Whether an answer still stands, told by what it was made of and not by its bytes.
//!
//! Late events may fall into any range, so that no answer is good for a length of time: it has to be asked. An answer whose range
//! lies below all that speed holds depends on what batch has published and on nothing else, whatever is folded elsewhere. Any
//! other depends on the positions, too. Tags are weak: `meta.speed` of an answer that still stands may have moved on.

use std::fmt::Write;

use xxhash_rust::xxh3::xxh3_128;

use crate::query::{format::Format, params::Layer, question::Question, read::PartRead};

/// What an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validator {
    /// Whether it depends on batch alone.
    closed: bool,
    hash: u128,
}

impl Validator {
    /// `None` for the batch layer, whose runs under way are answered before they are published.
    pub(crate) fn of(question: &Question, parts: &[PartRead]) -> Option<Self> {
        if question.params.layer == Layer::Batch {
            return None;
        }
        let closed = !parts.iter().any(holds_some);
        let mut text = format!("{:032x}", question.fingerprint());
        for PartRead { log, plan, read } in parts {
            let (published, missing) = (&read.snapshot.published, read.snapshot.missing());
            let horizons = (&plan.buckets.range, plan.retained_from, &plan.expired);
            // Writing to a text does not fail.
            let _ = write!(
                text,
                "|{log} {} {} {:?} {} {} {:?} {:?} {horizons:?} {missing:?}",
                plan.view.id,
                published.generation,
                published.cut,
                published.stamp,
                published.at,
                published.bases,
                published.through,
            );
            if !closed {
                let _ = write!(text, " {:?} {:?}", read.snapshot.positions(), read.snapshot.watermark());
            }
        }
        Some(Self { closed, hash: xxh3_128(text.as_bytes()) })
    }

    /// The ETag of the answer in a format.
    pub(crate) fn tag(&self, format: Format) -> String {
        let kind = if self.closed { 'c' } else { 'o' };
        format!("W/\"{kind}{:032x}-{}\"", self.hash, format.name())
    }

    /// Which answer it is, whatever its format.
    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.hash)
    }
}

/// Whether speed holds something of the range.
fn holds_some(PartRead { plan, read, .. }: &PartRead) -> bool {
    let range = &plan.buckets.range;
    read.speed.iter().any(|piece| piece.chunk.rows.iter().any(|(_, bucket)| range.contains(bucket)))
}

/// Of the prefix that an answer folds, and of what batch has published of it.
pub(crate) fn prefix(parts: &[PartRead]) -> u128 {
    let mut text = String::new();
    for PartRead { log, plan, read } in parts {
        let (published, positions) = (&read.snapshot.published, read.snapshot.positions());
        let _ = write!(text, "|{log} {} {} {positions:?}", plan.view.id, published.generation);
    }
    xxh3_128(text.as_bytes())
}
