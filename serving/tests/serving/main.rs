//! The serving layer as its clients see it: the router as a value, over a store and a log in memory.

#![allow(clippy::unwrap_used)]

mod access;
mod compare;
mod derived;
mod expiry;
mod formats;
mod freshness_history;
mod ingest;
mod injection;
mod interface;
mod live;
mod load;
mod many;
mod memory;
mod operation;
mod prometheus;
mod prometheus_oracle;
mod property;
mod queries;
mod rows;
mod sql;
mod sql_archive;
mod sql_limits;
mod sql_oracle;
mod world;
