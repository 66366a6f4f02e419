//! What an operator may set.

use std::{net::SocketAddr, time::Duration};

use crate::{auth, limits::Rate, tls};

/// Settings of the serving layer. Every limit is per process.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Of topics that an ingest makes because nobody has yet.
    pub partitions: u32,
    /// How long one request may compute; waiting for `at_least` is not counted.
    pub request_timeout: Duration,
    /// Largest request body, compressed and decompressed.
    pub max_body_bytes: usize,
    /// Largest event, as a log record.
    pub max_event_bytes: usize,
    /// Most events in one request body.
    pub max_events: usize,
    /// Requests that are under way at once.
    pub max_concurrent: usize,
    /// Requests that wait for others to end, and for how long; further ones get 503 at once.
    pub max_queued: usize,
    pub queue_wait: Duration,
    /// Of each principal, but the open one.
    pub rate: Rate,
    /// TLS, if that is spoken.
    pub tls: Option<tls::Files>,
    pub auth: auth::Config,
    /// Open connections; further ones wait to be accepted.
    pub max_connections: usize,
    /// Streams of job events that are open at once.
    pub max_streams: usize,
    /// Distinct queries that are followed at once.
    pub max_live_queries: usize,
    /// Clients that follow them.
    pub max_live_clients: usize,
    /// Memory for answers of which further pages may be asked for.
    pub page_bytes: u64,
    /// Memory for decoded chunks.
    pub cache_bytes: u64,
    /// How long a client may take to send the head of a request, a TLS handshake included.
    pub header_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// How long a client may take no byte of an answer.
    pub write_stall: Duration,
    /// How many times as long as it was sent a body may become when it is unpacked; the first MiB is free.
    pub max_ratio: usize,
    /// How deep JSON may be nested.
    pub max_json_depth: usize,
    /// How long requests under way may take after a stop.
    pub grace: Duration,
    pub freshness: FreshnessLimits,
    pub sql: SqlLimits,
}

/// What queries in SQL may take.
#[derive(Clone, Debug)]
pub struct SqlLimits {
    /// Threads that plan and execute, apart from those that serve.
    pub threads: usize,
    /// Queries under way at once; further ones get 503.
    pub max_concurrent: usize,
    /// Memory of all queries together; each has its share.
    pub memory_bytes: usize,
    /// Longest time of a query.
    pub timeout: Duration,
    /// Most rows of a result.
    pub max_rows: usize,
    /// Largest result that is held back until it is whole; only NDJSON is not.
    pub max_bytes: usize,
}

/// Where `/v1/freshness` draws its lines.
#[derive(Clone, Copy, Debug)]
pub struct FreshnessLimits {
    /// How old by append time the oldest unread record may be: the promise. Beyond it is a warning.
    pub target: Duration,
    /// Beyond this age it is a breach.
    pub breach: Duration,
    /// The part of the time for which the target is to hold, below 1.
    pub objective: f64,
    /// A partition with unread records that has not moved for this long is stalled.
    pub stalled: Duration,
    /// How much of the log's retention must be left before the oldest unread record goes, from 0 to 1.
    pub retention_warn: f64,
    /// How long speed chunks live: what batch has not covered for half of it is a warning.
    pub ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            partitions: 8,
            request_timeout: Duration::from_secs(30),
            max_body_bytes: 32 << 20,
            max_event_bytes: 1 << 20,
            max_events: 1_000_000,
            max_concurrent: 256,
            max_queued: 256,
            queue_wait: Duration::from_millis(50),
            rate: Rate::default(),
            tls: None,
            auth: auth::Config::default(),
            max_connections: 4096,
            max_streams: 64,
            max_live_queries: 64,
            max_live_clients: 2048,
            page_bytes: 64 << 20,
            cache_bytes: 256 << 20,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(30),
            write_stall: Duration::from_secs(30),
            max_ratio: 200,
            max_json_depth: 64,
            grace: Duration::from_secs(10),
            freshness: FreshnessLimits::default(),
            sql: SqlLimits::default(),
        }
    }
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            threads: 2,
            max_concurrent: 4,
            memory_bytes: 512 << 20,
            timeout: Duration::from_secs(60),
            max_rows: 1_000_000,
            max_bytes: 64 << 20,
        }
    }
}

impl Default for FreshnessLimits {
    fn default() -> Self {
        Self {
            target: Duration::from_secs(10),
            breach: Duration::from_secs(60),
            objective: 0.99,
            stalled: Duration::from_secs(30),
            retention_warn: 0.25,
            ttl: Duration::from_secs(3 * 86_400),
        }
    }
}
