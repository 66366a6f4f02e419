//! What an operator may set.

use std::{net::SocketAddr, time::Duration};

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
    /// Requests that are answered at once; further ones get 503.
    pub max_concurrent: usize,
    /// Open connections; further ones wait to be accepted.
    pub max_connections: usize,
    /// Streams of job events that are open at once.
    pub max_streams: usize,
    /// Memory for decoded chunks.
    pub cache_bytes: u64,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Duration,
    /// How long requests under way may take after a stop.
    pub grace: Duration,
    pub freshness: FreshnessLimits,
}

/// Where `/v1/freshness` draws its lines.
#[derive(Clone, Copy, Debug)]
pub struct FreshnessLimits {
    /// Age of the oldest unread record.
    pub lag_warn: Duration,
    pub lag_breach: Duration,
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
            max_connections: 4096,
            max_streams: 64,
            cache_bytes: 256 << 20,
            header_timeout: Duration::from_secs(5),
            grace: Duration::from_secs(10),
            freshness: FreshnessLimits::default(),
        }
    }
}

impl Default for FreshnessLimits {
    fn default() -> Self {
        Self {
            lag_warn: Duration::from_secs(10),
            lag_breach: Duration::from_secs(60),
            stalled: Duration::from_secs(30),
            retention_warn: 0.25,
            ttl: Duration::from_secs(3 * 86_400),
        }
    }
}
