//! The integration tests, one binary.

mod arrows;
mod backends;
mod cassandra;
mod datasets;
mod kafka;
mod process;
mod truth;
