//! The batch layer against a store in memory and real archive files.

#![allow(clippy::unwrap_used)]

mod archive;

mod distributed;
mod expiry;
mod jobs;
mod laws;
mod memory;
mod rollback;
mod runs;
mod speed;
mod tables;
mod versions;
mod world;
