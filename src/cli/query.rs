//! `lamina query`.

use std::{io::Write, process::ExitCode};

use reqwest::{Method, RequestBuilder};
use serde_json::json;

use super::{
    Done, Failure, Server,
    client::{send, succeeded},
    output::{self, Output},
};

/// Query a metric.
#[derive(clap::Args)]
pub(super) struct Query {
    metric: String,
    /// RFC 3339 or epoch milliseconds
    #[arg(long)]
    from: String,
    #[arg(long)]
    to: String,
    /// Width of buckets, e.g. 1m; left out, one bucket for the whole range
    #[arg(long)]
    step: Option<String>,
    /// e.g. sum,p99
    #[arg(long)]
    aggregate: Option<String>,
    /// Dimensions, e.g. region,host
    #[arg(long)]
    group_by: Option<String>,
    /// SQL over dimensions, e.g. "region = 'eu-west'"
    #[arg(long = "where")]
    filter: Option<String>,
    /// merged, batch or speed
    #[arg(long)]
    layer: Option<String>,
    /// e.g. "sum desc"
    #[arg(long)]
    order_by: Option<String>,
    #[arg(long)]
    limit: Option<u64>,
    #[arg(long)]
    tz: Option<String>,
    /// null, zero, previous or linear
    #[arg(long)]
    fill: Option<String>,
    /// Values of an earlier period beside, e.g. 1w
    #[arg(long)]
    compare: Option<String>,
    /// Position token that an ingest gave
    #[arg(long)]
    at_least: Option<String>,
    #[arg(long, value_enum, default_value = "table")]
    output: QueryOutput,
    #[command(flatten)]
    server: Server,
}

/// As `Output`; and as the server writes it, unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum QueryOutput {
    Table,
    Json,
    Csv,
    /// A line of JSON for each point, then one with the proof
    Ndjson,
    /// Arrow IPC stream
    Arrow,
}

impl Query {
    pub(super) async fn run(self) -> Done {
        let given = [
            ("from", Some(self.from)),
            ("to", Some(self.to)),
            ("step", self.step),
            ("aggregate", self.aggregate),
            ("group_by", self.group_by),
            ("where", self.filter),
            ("layer", self.layer),
            ("order_by", self.order_by),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("tz", self.tz),
            ("fill", self.fill),
            ("compare", self.compare),
            ("at_least", self.at_least),
        ];
        let parameters: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let request = self.server.request(Method::GET, &["v1", "metrics", &self.metric, "query"])?.query(&parameters);
        let output = match self.output {
            QueryOutput::Table => Output::Table,
            QueryOutput::Json => Output::Json,
            QueryOutput::Csv => Output::Csv,
            QueryOutput::Ndjson => return copy(request.header("accept", "application/x-ndjson")).await,
            QueryOutput::Arrow => return copy(request.header("accept", "application/vnd.apache.arrow.stream")).await,
        };
        let answer = send(request).await?;
        output::print(output, &answer, output::query_table);
        if answer["meta"]["complete"] == json!(false) {
            eprintln!("lamina: the answer is not complete: {}", answer["meta"]["missing"]);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Sends a request and copies the answer to stdout as it is.
async fn copy(request: RequestBuilder) -> Done {
    let mut answer = succeeded(request).await?;
    let complete = answer.headers().get("x-lamina-complete").is_none_or(|complete| complete == "true");
    let mut out = std::io::stdout().lock();
    while let Some(bytes) = answer.chunk().await.map_err(|error| Failure::from_error(1, &error))? {
        out.write_all(&bytes).map_err(|error| Failure::from_error(1, &error))?;
    }
    out.flush().map_err(|error| Failure::from_error(1, &error))?;
    if !complete {
        eprintln!("lamina: the answer is not complete: its `meta` says what is missing");
    }
    Ok(ExitCode::SUCCESS)
}
