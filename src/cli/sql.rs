//! `lamina sql`: a SELECT over metrics.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use reqwest::{Method, header::ACCEPT};
use serde_json::{Value, json};

use super::{
    Done, Failure,
    client::{send, succeeded},
    output::{self, Output, Table, cell},
    server::Server,
};

/// Run a SELECT over metrics.
///
/// Each metric is a table with the columns time, its dimensions and what it keeps, such as added_sum; each rollup is one
/// more, such as added_1h. Ctrl-C ends the query on the server, too.
#[derive(clap::Args)]
pub(super) struct Sql {
    /// The statement, or - to read it from standard input
    query: String,
    /// The value of $1, then of $2 and so on: JSON, or else a text
    #[arg(long = "param", value_name = "VALUE")]
    params: Vec<String>,
    /// How long it may take
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: Server,
}

impl Sql {
    pub(super) async fn run(self) -> Done {
        let mut query = self.query;
        if query == "-" {
            query.clear();
            std::io::stdin()
                .read_to_string(&mut query)
                .map_err(|why| Failure::failed(format!("standard input: {why}")))?;
        }
        let value = |text: &String| match serde_json::from_str(text) {
            Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
            _ => Value::String(text.clone()),
        };
        let mut body = json!({"query": query, "params": self.params.iter().map(value).collect::<Vec<_>>()});
        if let Some(timeout) = self.timeout_ms {
            body["timeout_ms"] = timeout.into();
        }
        let request = self.server.request(Method::POST, &["v1", "sql"])?.json(&body);
        if let Output::Csv = self.output {
            let answer = succeeded(request.header(ACCEPT, "text/csv")).await?;
            let complete = answer.headers().get("x-lamina-complete").is_none_or(|value| value == "true");
            let text = answer.bytes().await.map_err(|error| Failure::from_error(1, &error))?;
            std::io::stdout().write_all(&text).map_err(Failure::failed)?;
            warn(complete);
            return Ok(ExitCode::SUCCESS);
        }
        let answer = send(request).await?;
        output::print(self.output, &answer, table);
        warn(answer["meta"]["complete"] == json!(true));
        Ok(ExitCode::SUCCESS)
    }
}

fn warn(complete: bool) {
    if !complete {
        eprintln!("lamina: the answer is not complete: --output json says in meta.tables what is missing");
    }
}

fn table(answer: &Value) -> Table {
    let columns = answer["columns"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = columns.iter().filter_map(|column| column["name"].as_str()).collect();
    let mut table = Table::new(&names);
    for row in answer["rows"].as_array().map_or(&[][..], Vec::as_slice) {
        table.rows.push(names.iter().map(|name| cell(&row[name])).collect());
    }
    table
}
