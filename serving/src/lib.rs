//! The serving layer: plans queries, merges batch and speed views, and speaks HTTP.
//!
//! Flow of a query: parameters → question → plan → read (ledgers, speed, batch) → merge → table → a format.
//!
//! # Invariants
//! - Every answer is the fold of one prefix of the log per partition, and says which.
//! - An answer that cannot be proven complete says so; what cannot be read is a 503, never a low value.
//! - Every error is a problem of RFC 9457 with the request's id.
//! - Nothing here knows Kafka, Cassandra, or the layers that write.

mod app;
pub mod auth;
mod body;
mod chunks;
mod config;
mod http;
mod instant;
mod instruments;
mod limits;
mod live;
mod problem;
mod prometheus;
mod query;
pub mod registry;
mod server;
mod slo;
mod sql;
mod token;
mod topics;
mod trace;

pub use app::Deps;
pub use config::{Config, FreshnessLimits, SqlLimits};
pub use http::{Sampler, health_router, openapi, router, service};
pub use limits::Rate;
pub use registry::{DefinitionBody, DefinitionKind, Put, Registry, RegistryError};
pub use server::{run, tls};
pub use token::Token;
