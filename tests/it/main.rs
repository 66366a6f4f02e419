//! The integration tests, one binary.

// Helpers unwrap as tests do; clippy.toml only knows functions that are tests.
#![allow(clippy::unwrap_used)]

mod access;
mod archive;
mod arrows;
mod audit;
mod backends;
mod cassandra;
mod clients;
mod contract;
mod datasets;
mod distributed;
mod embedded;
mod expiry;
mod faults;
mod hostile;
mod isolation;
mod kafka;
mod measurements;
mod place;
mod process;
mod proxy;
mod s3;
mod secured;
mod shop;
mod tables;
mod topic_events;
mod traces;
mod truth;
mod versions;
