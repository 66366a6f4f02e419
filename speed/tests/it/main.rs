//! The speed layer end to end, over a log and a store in memory that fail on demand.
//!
//! The law behind all of it: every answer is the fold of exactly the prefix of the log that it names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod duplicates;
mod laws;
mod memory_log;
mod memory_store;
mod outages;
mod topics;
mod upkeep;
mod world;
