//! The integration tests, one binary.

mod arrows;
mod backends;
mod cassandra;
mod kafka;
