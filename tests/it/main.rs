//! The integration tests, one binary.

mod arrows;
mod backends;
mod cassandra;
mod datasets;
mod embedded;
mod kafka;
mod process;
mod truth;
