//! The serving layer: plans queries, merges batch and speed views, and speaks HTTP.
//!
//! Flow of a query: parameters → plan → read (ledgers, speed, batch) → merge → table → JSON.
//!
//! # Invariants
//! - Every answer is the fold of one prefix of the log per partition, and says which.
//! - An answer that cannot be proven complete says so; what cannot be read is a 503, never a low value.
//! - Every error is a problem of RFC 9457 with the request's id.
//! - Nothing here knows Kafka, Cassandra, or the layers that write.

mod app;
mod body;
mod chunks;
mod config;
mod http;
mod instant;
mod problem;
mod query;
pub mod registry;
mod run;
mod token;
mod topics;

pub use app::Deps;
pub use config::{Config, FreshnessLimits};
pub use http::{health_router, router};
pub use registry::{DefinitionBody, DefinitionKind, Put, Registry, RegistryError};
pub use run::run;
pub use token::Token;
