//! The command line. Results go to stdout, everything else to stderr.
//!
//! Exit codes: 0 done; 1 failed, not valid, or an audit's difference; 2 wrong usage or configuration, or an audit that cannot
//! tell; 3 freshness breaches its target.

mod audit;
mod client;
mod definitions;
mod demo;
mod ingest;
mod inspect;
mod keys;
mod output;
mod query;
mod serve;
mod server;
mod sql;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

pub(crate) use self::server::{Credentials, Server};

/// Metrics that are fresh within seconds and right over years.
#[derive(Parser)]
#[command(name = "lamina", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything embedded on simulated server metrics
    Demo(demo::Demo),
    /// Run the roles of a configuration
    Serve(serve::Serve),
    /// Check a configuration and definitions: all errors at once
    Validate(definitions::Validate),
    /// Propose a source definition from a sample of events
    Infer(definitions::Infer),
    /// Send a file of events
    Ingest(ingest::Ingest),
    /// Create the keyspace and apply schema.cql
    Migrate(serve::Migrate),
    /// Decode what is stored, for people
    Inspect(inspect::Inspect),
    /// Recompute sampled buckets from the archive and compare
    Audit(audit::Audit),
    /// Query a metric
    Query(Box<query::Query>),
    /// Run a SELECT over metrics
    Sql(sql::Sql),
    /// How fresh metrics are; exits 3 on a breach
    Freshness(client::Freshness),
    /// Recompute from the archive
    Recompute(client::Recompute),
    /// Return to what a recompute replaced
    Rollback(client::Rollback),
    Erase(client::Erase),
    /// List jobs, or show, watch or cancel one
    Jobs(client::Jobs),
    /// When batch runs by itself; pause it, resume it, or run it now
    Schedule(client::Schedule),
    /// API keys: make, list, rotate and revoke them
    Keys(keys::Keys),
    /// Print the OpenAPI document of the HTTP interface
    Openapi,
}

/// Why a command did not succeed, with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn failed(message: impl ToString) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    fn usage(message: impl ToString) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// The whole chain of causes on one line each.
    fn from_error(code: u8, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message.push_str(&format!("\n  because: {inner}"));
            cause = inner.source();
        }
        Self { code, message }
    }
}

type Done = Result<ExitCode, Failure>;

/// Parses the command line and does it.
pub fn run() -> ExitCode {
    // Whoever speaks TLS in this process does it with this; a second call finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match Cli::parse().command {
        Command::Demo(command) => block_on(command.run()),
        Command::Serve(command) => block_on(command.run()),
        Command::Migrate(command) => block_on(command.run()),
        Command::Validate(command) => command.run(),
        Command::Infer(command) => command.run(),
        Command::Ingest(command) => block_on(command.run()),
        Command::Inspect(command) => block_on(command.run()),
        Command::Audit(command) => block_on(command.run()),
        Command::Query(command) => block_on(command.run()),
        Command::Sql(command) => block_on(command.run()),
        Command::Freshness(command) => block_on(command.run()),
        Command::Recompute(command) => block_on(command.run()),
        Command::Rollback(command) => block_on(command.run()),
        Command::Erase(command) => block_on(command.run()),
        Command::Jobs(command) => block_on(command.run()),
        Command::Schedule(command) => block_on(command.run()),
        Command::Keys(command) => block_on(command.run()),
        Command::Openapi => openapi(),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("lamina: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

fn openapi() -> Done {
    let document = lamina_serving::openapi().map_err(Failure::failed)?;
    println!("{document}");
    Ok(ExitCode::SUCCESS)
}

fn block_on(command: impl Future<Output = Done>) -> Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let done = runtime.block_on(command);
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    done
}

/// The configuration that server commands use.
#[derive(clap::Args, Clone)]
pub(crate) struct ConfigFile {
    /// Configuration file
    #[arg(long, env = "LAMINA_CONFIG", default_value = "lamina.toml", value_name = "FILE")]
    config: PathBuf,
}
