//! The integration tests, one binary.

mod backends;
mod kafka;
