//! The package that puts lamina together: configuration, backends, the wiring of the layers, and the command line.
//!
//! # Invariants
//! - Only this package names rdkafka, scylla and fjall.
//! - The layers meet here and nowhere else.

pub mod backends;
pub mod cli;
pub mod config;
pub mod demo;
pub mod executor;
pub mod registry;
pub mod run;
pub mod telemetry;
