//! The integration tests, one binary.

// Helpers unwrap as tests do; clippy.toml only knows functions that are tests.
#![allow(clippy::unwrap_used)]

mod archive;
mod arrows;
mod audit;
mod backends;
mod cassandra;
mod datasets;
mod distributed;
mod embedded;
mod expiry;
mod faults;
mod hostile;
mod isolation;
mod kafka;
mod place;
mod process;
mod proxy;
mod s3;
mod shop;
mod tables;
mod topic_events;
mod truth;
mod versions;
