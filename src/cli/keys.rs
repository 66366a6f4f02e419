//! `lamina keys`: API keys, over HTTP or straight in the configured store.
//!
//! Straight in the store needs no key, but the rights of whoever may read `lamina.toml` and reach the store: so the first key
//! is made before anything listens. An embedded store belongs to one process, so while that runs it is asked over HTTP.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use lamina_core::{Clock, Micros, Store, clock::SystemClock};
use lamina_metric::Length;
use lamina_serving::auth::{
    Presented, Rows, Scope, Scopes, audit,
    keys::{self, ApiKey, NewKey},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConfigFile, Credentials, Done, Failure, Server,
    client::send,
    output::{self, Output, Table, cell},
    serve::load,
};
use crate::run::Backends;

/// Who made a change, as the audit log names it.
const COMMAND_LINE: &str = "command line";

/// Make, list, rotate and revoke API keys. Without --server in the store that the configuration names; with it over HTTP,
/// which takes a key with the scope admin.
#[derive(clap::Args)]
pub(super) struct Keys {
    #[command(subcommand)]
    command: KeysCommand,
}

/// Where the keys are.
#[derive(clap::Args)]
struct At {
    #[command(flatten)]
    config: ConfigFile,
    /// Ask this lamina instead of the configured store
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(clap::Subcommand)]
enum KeysCommand {
    /// Make a key; its secret goes to stdout, once
    Create {
        /// What people call it
        name: String,
        /// metrics:read, sql:run, recompute:run, events:write, admin; several with commas
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        /// Only rows with this value: dimension=value; repeat it for more values or dimensions
        #[arg(long = "row", value_name = "DIMENSION=VALUE")]
        rows: Vec<String>,
        /// How long it lives, e.g. 90d; for ever if left out
        #[arg(long, value_name = "TIME")]
        expires_in: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// All keys, revoked ones included
    List {
        #[command(flatten)]
        at: At,
    },
    /// End a key for good; every process notices within five seconds
    Revoke {
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Give a key a new secret, which goes to stdout
    Rotate {
        id: String,
        /// How long the old secret is still taken, e.g. 1h; 0 ends it at once
        #[arg(long, default_value = "1h", value_name = "TIME")]
        overlap: String,
        #[command(flatten)]
        at: At,
    },
}

impl KeysCommand {
    fn at(&self) -> &At {
        match self {
            Self::Create { at, .. } | Self::List { at } | Self::Revoke { at, .. } | Self::Rotate { at, .. } => at,
        }
    }
}

impl Keys {
    pub(super) async fn run(self) -> Done {
        let at = self.command.at();
        match &at.server {
            Some(url) => {
                let server = Server { server: url.clone(), credentials: at.credentials.clone() };
                self.over_http(&server).await
            }
            None => {
                let config = load(&at.config)?;
                let opened = Backends::open(&config).map_err(|error| {
                    let mut failure = Failure::from_error(2, &error);
                    failure.message.push_str("\n  if lamina runs on it, ask that: --server URL");
                    failure
                })?;
                self.in_store(opened.store).await
            }
        }
    }

    async fn in_store(&self, store: Arc<dyn Store>) -> Done {
        let (store, now) = (&*store, SystemClock.now());
        let failed = |error: keys::KeyError| match error {
            keys::KeyError::Store(_) => Failure::failed(error),
            _ => Failure::usage(error),
        };
        match &self.command {
            KeysCommand::Create { name, scopes, rows, expires_in, .. } => {
                let expires_at = expires_in.as_deref().map(length).transpose()?.map(|length| now + length);
                let scopes: Scopes = scopes.iter().copied().collect();
                let new = NewKey { name: name.clone(), scopes, rows: rules(rows)?, expires_at };
                let (key, secret) = keys::create(store, new, COMMAND_LINE, now).await.map_err(failed)?;
                audit::note(store, now, COMMAND_LINE, "lamina keys create", &key.id).await;
                self.give(&key, &secret);
            }
            KeysCommand::List { .. } => {
                let all = keys::list(store).await.map_err(Failure::failed)?;
                self.print(&json!({"keys": all.iter().map(|key| key.to_json(now)).collect::<Vec<_>>()}));
            }
            KeysCommand::Revoke { id, .. } => {
                keys::revoke(store, id, now).await.map_err(failed)?.ok_or_else(|| unknown(id))?;
                audit::note(store, now, COMMAND_LINE, "lamina keys revoke", id).await;
                eprintln!("key {id} is revoked");
            }
            KeysCommand::Rotate { id, overlap, .. } => {
                let overlap = length(overlap)?;
                let rotated = keys::rotate(store, id, overlap, now).await.map_err(failed)?;
                let (key, secret) = rotated.ok_or_else(|| unknown(id))?;
                audit::note(store, now, COMMAND_LINE, "lamina keys rotate", id).await;
                self.give(&key, &secret);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn over_http(&self, server: &Server) -> Done {
        let request = |method, rest: &[&str]| server.request(method, &[&["v1", "keys"], rest].concat());
        match &self.command {
            KeysCommand::Create { name, scopes, rows, expires_in, .. } => {
                let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
                let mut body = json!({"name": name, "scopes": scopes, "rows": rules(rows)?});
                if let Some(text) = expires_in {
                    body["expires_at"] = ((SystemClock.now() + length(text)?) / 1_000).into();
                }
                self.give_answered(&send(request(Method::POST, &[])?.json(&body)).await?);
            }
            KeysCommand::List { .. } => self.print(&send(request(Method::GET, &[])?).await?),
            KeysCommand::Revoke { id, .. } => {
                send(request(Method::DELETE, &[id])?).await?;
                eprintln!("key {id} is revoked");
            }
            KeysCommand::Rotate { id, overlap, .. } => {
                let body = json!({"overlap": overlap});
                self.give_answered(&send(request(Method::POST, &[id, "rotate"])?.json(&body)).await?);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn give(&self, key: &ApiKey, secret: &Presented) {
        let mut key = key.to_json(SystemClock.now());
        key["secret"] = secret.reveal().into();
        self.give_answered(&key);
    }

    /// The secret by itself on stdout, so that it can go into a file.
    fn give_answered(&self, key: &Value) {
        if self.command.at().output == Output::Json {
            println!("{key:#}");
            return;
        }
        eprintln!("key {} ({}); its secret is shown this once:", cell(&key["id"]), cell(&key["name"]));
        println!("{}", cell(&key["secret"]));
    }

    fn print(&self, keys: &Value) {
        output::print(self.command.at().output, keys, |keys| {
            let names = ["id", "name", "state", "scopes", "rows", "created_at", "expires_at", "rotated_at"];
            let mut table = Table::new(&["ID", "NAME", "STATE", "SCOPES", "ROWS", "CREATED", "EXPIRES", "ROTATED"]);
            for key in keys["keys"].as_array().into_iter().flatten() {
                table.rows.push(names.iter().map(|name| cell(&key[*name])).collect());
            }
            table
        });
    }
}

fn rules(rows: &[String]) -> Result<Rows, Failure> {
    let mut rules: Rows = BTreeMap::new();
    for row in rows {
        let (dimension, value) = row
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--row {row:?}: write dimension=value, e.g. tenant=acme")))?;
        rules.entry(dimension.to_owned()).or_default().push(value.to_owned());
    }
    Ok(rules)
}

fn length(text: &str) -> Result<Micros, Failure> {
    if text == "0" {
        return Ok(0);
    }
    let length = Length::parse(text).map_err(|why| Failure::usage(format!("{text:?} is no length of time: {why}")))?;
    Ok(length.0)
}

fn unknown(id: &str) -> Failure {
    Failure::failed(format!("there is no key {id:?}; lamina keys list shows them"))
}
