//! The serving layer as its clients see it: the router as a value, over a store and a log in memory.

#![allow(clippy::unwrap_used)]

mod expiry;
mod ingest;
mod interface;
mod memory;
mod operation;
mod property;
mod queries;
mod world;
