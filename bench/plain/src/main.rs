//! Minutes and hours of hosts in two tables of Cassandra, and an HTTP server that reads them: the physical reference of
//! `load.py`. The tables are what one would make for these two questions and no others.

use std::{error::Error, sync::Arc, time::Duration};

use axum::{Json, Router, extract::Query, extract::State, http::StatusCode, routing::get};
use clap::{Parser, Subcommand};
use futures::{StreamExt, TryStreamExt, stream};
use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    statement::{
        Consistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Rows of one partition that go in one request.
const TOGETHER: usize = 120;
const AT_ONCE: usize = 64;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    cassandra: String,
    #[arg(long)]
    keyspace: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the tables and their rows
    Fill {
        #[arg(long)]
        hosts: i64,
        /// Unix milliseconds, a whole hour
        #[arg(long)]
        from: i64,
        #[arg(long)]
        hours: i64,
    },
    /// Answer `/point` and `/hosts`
    Serve {
        #[arg(long)]
        port: u16,
    },
}

/// What a host reports in a minute. `load.py` has the same formula.
fn reading(host: i64, minute: i64) -> i64 {
    (host * 31 + minute * 17) % 1_000
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let Options { cassandra, keyspace, command } = Options::parse();
    let profile = ExecutionProfile::builder().consistency(Consistency::LocalQuorum);
    let profile = profile.request_timeout(Some(Duration::from_secs(10))).build().into_handle();
    let session = SessionBuilder::new().known_node(cassandra).default_execution_profile_handle(profile).build().await?;
    match command {
        Command::Fill { hosts, from, hours } => fill(&session, &keyspace, hosts, from, hours).await,
        Command::Serve { port } => serve(session, &keyspace, port).await,
    }
}

async fn fill(session: &Session, keyspace: &str, hosts: i64, from: i64, hours: i64) -> Result<(), Failure> {
    let values = "count bigint, sum bigint, min bigint, max bigint";
    for definition in [
        format!("CREATE KEYSPACE {keyspace} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"),
        format!(
            "CREATE TABLE {keyspace}.minutes (host text, day bigint, at bigint, {values}, PRIMARY KEY ((host, day), at))"
        ),
        format!("CREATE TABLE {keyspace}.hours (hour bigint, host text, {values}, PRIMARY KEY (hour, host))"),
    ] {
        session.query_unpaged(definition, ()).await?;
    }
    let insert = |table: &str, key: &str| {
        let marks = vec!["?"; key.split(',').count() + 4].join(", ");
        session.prepare(format!("INSERT INTO {keyspace}.{table} ({key}, count, sum, min, max) VALUES ({marks})"))
    };
    let (minutes, hourly) = (insert("minutes", "host, day, at").await?, insert("hours", "hour, host").await?);
    let per_host = stream::iter(0..hosts).map(|host| {
        let (minutes, hourly) = (&minutes, &hourly);
        async move {
            let name = format!("h{host:04}");
            let mut rows = Vec::new();
            let mut sums = Vec::new();
            for hour in 0..hours {
                let start = from + hour * HOUR;
                let readings: Vec<i64> = (0..60).map(|minute| reading(host, (start / MINUTE) + minute)).collect();
                let (least, most) = (readings.iter().min().copied(), readings.iter().max().copied());
                sums.push((start, name.clone(), 60_i64, readings.iter().sum::<i64>(), least, most));
                let times = (0..60).map(|minute| start + minute * MINUTE);
                rows.extend(
                    times.zip(readings).map(|(at, value)| (name.clone(), at / DAY, at, 1_i64, value, value, value)),
                );
            }
            for day in rows.chunk_by(|a, b| a.1 == b.1) {
                for some in day.chunks(TOGETHER) {
                    let mut batch = Batch::new(BatchType::Unlogged);
                    some.iter().for_each(|_| batch.append_statement(minutes.clone()));
                    session.batch(&batch, some).await?;
                }
            }
            for sum in sums {
                session.execute_unpaged(hourly, sum).await?;
            }
            Ok::<_, Failure>(())
        }
    });
    per_host.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await.map(drop)
}

struct Reader {
    session: Session,
    minutes: PreparedStatement,
    hours: PreparedStatement,
}

#[derive(Deserialize)]
struct Range {
    host: Option<String>,
    from: i64,
    to: i64,
}

#[derive(Serialize)]
struct Series {
    host: String,
    points: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    start: i64,
    count: i64,
    sum: i64,
    min: i64,
    max: i64,
}

type Answer = Result<Json<Vec<Series>>, (StatusCode, String)>;

async fn serve(session: Session, keyspace: &str, port: u16) -> Result<(), Failure> {
    let values = "count, sum, min, max";
    let minutes =
        format!("SELECT at, {values} FROM {keyspace}.minutes WHERE host = ? AND day = ? AND at >= ? AND at < ?");
    let hours = format!("SELECT host, {values} FROM {keyspace}.hours WHERE hour = ?");
    let (minutes, hours) = (session.prepare(minutes).await?, session.prepare(hours).await?);
    let reader = Arc::new(Reader { session, minutes, hours });
    let app = Router::new().route("/point", get(point)).route("/hosts", get(hosts)).with_state(reader);
    axum::serve(TcpListener::bind(("127.0.0.1", port)).await?, app).await?;
    Ok(())
}

/// One host by minutes.
async fn point(State(reader): State<Arc<Reader>>, Query(Range { host, from, to }): Query<Range>) -> Answer {
    let host = host.ok_or_else(|| (StatusCode::BAD_REQUEST, "host is missing".to_owned()))?;
    let days = from.div_euclid(DAY)..=(to - 1).div_euclid(DAY);
    let read = stream::iter(days)
        .map(|day| rows::<(i64, i64, i64, i64, i64)>(&reader, &reader.minutes, (&host, day, from, to)));
    let found: Vec<_> = read.buffered(4).try_concat().await.map_err(failed)?;
    let point = |(start, count, sum, min, max)| Point { start, count, sum, min, max };
    Ok(Json(vec![Series { host, points: found.into_iter().map(point).collect() }]))
}

/// Each host as a whole, from hours.
async fn hosts(State(reader): State<Arc<Reader>>, Query(Range { from, to, .. }): Query<Range>) -> Answer {
    let hours = stream::iter((from..to).step_by(HOUR as usize));
    let read = hours.map(|hour| rows::<(String, i64, i64, i64, i64)>(&reader, &reader.hours, (hour,)));
    let found: Vec<_> = read.buffered(24).try_concat().await.map_err(failed)?;
    let mut all = std::collections::BTreeMap::<String, Point>::new();
    for (host, count, sum, min, max) in found {
        let point = all.entry(host).or_insert(Point { start: from, count: 0, sum: 0, min, max });
        point.count += count;
        point.sum += sum;
        point.min = point.min.min(min);
        point.max = point.max.max(max);
    }
    Ok(Json(all.into_iter().map(|(host, point)| Series { host, points: vec![point] }).collect()))
}

async fn rows<R>(
    reader: &Reader,
    statement: &PreparedStatement,
    values: impl scylla::serialize::row::SerializeRow,
) -> Result<Vec<R>, Failure>
where
    R: for<'r> scylla::deserialize::row::DeserializeRow<'r, 'r>,
{
    let found = reader.session.execute_unpaged(statement, values).await?.into_rows_result()?;
    Ok(found.rows::<R>()?.collect::<Result<_, _>>()?)
}

fn failed(error: Failure) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
