//! Commands that are clients of the HTTP interface.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::{
    Done, Failure, Server,
    output::{self, Output, Table, cell},
};

/// How fresh metrics are.
#[derive(clap::Args)]
pub(super) struct Freshness {
    metric: Option<String>,
    /// Ask again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3_600))]
    watch: Option<u64>,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Recompute from the archive.
#[derive(clap::Args)]
pub(super) struct Recompute {
    /// Metrics; none = all
    metrics: Vec<String>,
    #[arg(long)]
    from: Option<String>,
    #[arg(long)]
    to: Option<String>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[arg(long)]
    reason: Option<String>,
    /// Return at once; Ctrl-C detaches, too
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    server: Server,
}

/// Return to what a recompute replaced.
#[derive(clap::Args)]
pub(super) struct Rollback {
    metric: String,
    /// As answers name it; left out, what the latest recompute replaced
    #[arg(long, conflicts_with = "as_of")]
    generation: Option<u64>,
    /// What was served at this moment: RFC 3339 or epoch milliseconds
    #[arg(long)]
    as_of: Option<String>,
    #[arg(long)]
    reason: Option<String>,
    /// Return at once; Ctrl-C detaches, too
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    server: Server,
}

/// Erase events for good, from the archive and all views.
#[derive(clap::Args)]
pub(super) struct Erase {
    source: String,
    /// SQL over the source's fields, e.g. "user = 'alice'"
    #[arg(long = "where")]
    filter: String,
    /// Say what would be erased, and erase nothing
    #[arg(long)]
    dry_run: bool,
    /// Kept with the job, other than the condition
    #[arg(long)]
    reason: Option<String>,
    /// Return at once; Ctrl-C detaches, too
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    server: Server,
}

/// List jobs, or show or cancel one.
#[derive(clap::Args)]
pub(super) struct Jobs {
    id: Option<String>,
    /// queued, running, succeeded, failed or cancelled
    #[arg(long)]
    state: Option<String>,
    /// scheduled, recompute, build, rollback or erase
    #[arg(long)]
    kind: Option<String>,
    #[arg(long, requires = "id")]
    cancel: bool,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// When batch runs by itself.
#[derive(clap::Args)]
pub(super) struct Schedule {
    #[command(subcommand)]
    change: Option<ScheduleChange>,
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(clap::Subcommand)]
enum ScheduleChange {
    /// Queue nothing until it is resumed
    Pause {
        #[arg(long)]
        reason: Option<String>,
    },
    /// Go on; a run that fell due meanwhile is made at once
    Resume,
    /// Run now what the schedule runs
    Run,
}

impl Freshness {
    pub(super) async fn run(self) -> Done {
        let mut code = self.show().await?;
        let Some(seconds) = self.watch else { return Ok(code) };
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(code),
                () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            }
            // A server that does not answer for once is what whoever watches wants to see the end of.
            match self.show().await {
                Ok(now) => code = now,
                Err(failure) => eprintln!("{}", failure.message),
            }
        }
    }

    async fn show(&self) -> Done {
        let path = ["v1", "freshness"].into_iter().chain(self.metric.as_deref());
        let answer = send(self.server.request(Method::GET, &path.collect::<Vec<_>>())?).await?;
        if self.watch.is_some() && self.output == Output::Table && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        }
        output::print(self.output, &answer, |answer| {
            let mut table =
                Table::new(&["METRIC", "STATUS", "LAG MS", "BURN 1H", "BATCH AGE MS", "GENERATION", "REASON"]);
            let one = std::slice::from_ref(answer);
            for metric in answer["metrics"].as_array().map_or(one, Vec::as_slice) {
                let cells =
                    [&metric["metric"], &metric["status"], &metric["speed"]["lag_ms"], &metric["slo"]["burn_rate_1h"]];
                let rest = [&metric["batch"]["age_ms"], &metric["batch"]["generation"], &metric["reason"]];
                table.rows.push(cells.into_iter().chain(rest).map(cell).collect());
            }
            table
        });
        Ok(if answer["status"] == "breach" { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }
}

impl Recompute {
    pub(super) async fn run(self) -> Done {
        let body =
            recompute_body(&self.metrics, self.from.as_ref(), self.to.as_ref(), self.dry_run, self.reason.as_ref());
        let job = start_recompute(&self.server, &body).await?;
        follow(&self.server, &job, self.no_wait).await
    }
}

impl Rollback {
    pub(super) async fn run(self) -> Done {
        let mut body = json!({"reason": self.reason});
        if let Some(generation) = self.generation {
            body["generation"] = generation.into();
        }
        if let Some(as_of) = self.as_of {
            body["as_of"] = as_of.into();
        }
        let path = ["v1", "metrics", &self.metric, "rollback"];
        let job = queued(self.server.request(Method::POST, &path)?.json(&body)).await?;
        follow(&self.server, &job, self.no_wait).await
    }
}

impl Erase {
    pub(super) async fn run(self) -> Done {
        let body = json!({"where": self.filter, "dry_run": self.dry_run, "reason": self.reason});
        let path = ["v1", "sources", &self.source, "erasures"];
        let job = queued(self.server.request(Method::POST, &path)?.json(&body)).await?;
        follow(&self.server, &job, self.no_wait).await
    }
}

/// Names the job and waits for its end, unless told not to.
async fn follow(server: &Server, job: &str, no_wait: bool) -> Done {
    println!("{job}");
    if no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        done = wait_for(server, job) => {
            let done = done?;
            if !done["result"].is_null() {
                println!("{:#}", done["result"]);
            }
            Ok(ExitCode::SUCCESS)
        }
        _ = tokio::signal::ctrl_c() => {
            eprintln!("detached; job {job} goes on: lamina jobs {job}");
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Schedule {
    pub(super) async fn run(self) -> Done {
        let change = |name| self.server.request(Method::POST, &["v1", "schedule", name]);
        let request = match &self.change {
            None => self.server.request(Method::GET, &["v1", "schedule"])?,
            Some(ScheduleChange::Pause { reason }) => change("pause")?.json(&json!({"reason": reason})),
            Some(ScheduleChange::Resume) => change("resume")?,
            Some(ScheduleChange::Run) => {
                let job = send(change("run")?).await?;
                output::print(self.output, &job, |job| jobs_table(std::slice::from_ref(job)));
                return Ok(ExitCode::SUCCESS);
            }
        };
        output::print(self.output, &send(request).await?, |schedule| {
            let mut table = Table::new(&["CRON", "TIME ZONE", "PAUSED", "NEXT RUN", "LAST RUN", "LAST JOB"]);
            let names = ["cron", "time_zone", "paused", "next_run", "last_run", "last_job"];
            table.rows.push(names.iter().map(|name| cell(&schedule[name])).collect());
            table
        });
        Ok(ExitCode::SUCCESS)
    }
}

impl Jobs {
    pub(super) async fn run(self) -> Done {
        let Some(id) = &self.id else { return self.list().await };
        let mut path = vec!["v1", "jobs", id];
        let mut method = Method::GET;
        if self.cancel {
            path.push("cancel");
            method = Method::POST;
        }
        let job = send(self.server.request(method, &path)?).await?;
        output::print(self.output, &job, |job| jobs_table(std::slice::from_ref(job)));
        Ok(ExitCode::SUCCESS)
    }

    async fn list(self) -> Done {
        let given = [("state", &self.state), ("kind", &self.kind)];
        let parameters: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
        let answer = send(self.server.request(Method::GET, &["v1", "jobs"])?.query(&parameters)).await?;
        output::print(self.output, &answer, |answer| {
            jobs_table(answer["jobs"].as_array().map_or(&[][..], Vec::as_slice))
        });
        Ok(ExitCode::SUCCESS)
    }
}

fn recompute_body(
    metrics: &[String],
    from: Option<&String>,
    to: Option<&String>,
    dry_run: bool,
    reason: Option<&String>,
) -> Value {
    let mut body = json!({"metrics": metrics, "dry_run": dry_run});
    for (name, value) in [("from", from), ("to", to), ("reason", reason)] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    body
}

async fn start_recompute(server: &Server, body: &Value) -> Result<String, Failure> {
    queued(server.request(Method::POST, &["v1", "recomputes"])?.json(body)).await
}

/// The id of the job that a request queues.
async fn queued(request: RequestBuilder) -> Result<String, Failure> {
    let job = send(request).await?;
    job["id"].as_str().map(str::to_owned).ok_or_else(|| Failure::failed("the server's answer names no job"))
}

/// Waits until a job ends, with its progress on a terminal.
async fn wait_for(server: &Server, id: &str) -> Result<Value, Failure> {
    let bar = indicatif::ProgressBar::new(0);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    loop {
        let job = send(server.request(Method::GET, &["v1", "jobs", id])?).await?;
        let progress = &job["progress"];
        bar.set_length(progress["total"].as_u64().unwrap_or(0));
        bar.set_position(progress["done"].as_u64().unwrap_or(0));
        bar.set_message(cell(&progress["stage"]));
        match job["state"].as_str() {
            Some("succeeded") => {
                bar.finish_and_clear();
                return Ok(job);
            }
            Some(ended @ ("failed" | "cancelled")) => {
                bar.finish_and_clear();
                return Err(Failure::failed(format!("job {id} {ended}: {}", cell(&job["error"]))));
            }
            _ => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

fn jobs_table(jobs: &[Value]) -> Table {
    let mut table = Table::new(&["ID", "KIND", "STATE", "STAGE", "DONE", "TOTAL", "ROWS", "CREATED", "ERROR"]);
    for job in jobs {
        let progress = &job["progress"];
        let cells =
            [&job["id"], &job["kind"], &job["state"], &progress["stage"], &progress["done"], &progress["total"]];
        let rest = [&progress["rows"], &job["created_at"], &job["error"]];
        table.rows.push(cells.into_iter().chain(rest).map(cell).collect());
    }
    table
}

/// Sends a request and gives the JSON of a success; a problem becomes a failure with its detail.
pub(super) async fn send(request: RequestBuilder) -> Result<Value, Failure> {
    let answer = succeeded(request).await?;
    let status = answer.status();
    answer.json().await.map_err(|error| Failure::failed(format!("answer {status} is not JSON: {error}")))
}

/// A successful answer; a problem becomes a failure with its detail.
pub(super) async fn succeeded(request: RequestBuilder) -> Result<Response, Failure> {
    let answer = request.send().await.map_err(|error| {
        let hint = if error.is_connect() { "; is lamina running there? (--server URL)" } else { "" };
        Failure { message: format!("{}{hint}", Failure::from_error(1, &error).message), code: 1 }
    })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body: Value =
        answer.json().await.map_err(|error| Failure::failed(format!("answer {status} is not JSON: {error}")))?;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    Err(Failure::failed(format!("{status} {}: {} (request {})", text("code"), text("detail"), text("request_id"))))
}
