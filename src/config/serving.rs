//! The section `[serving]`.

use lamina_serving::{FreshnessLimits, SqlLimits};
use serde::Deserialize;

use super::duration;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawServing {
    /// Memory for decoded chunks in front of the store.
    pub cache_mib: u32,
    /// Memory for long answers of which further pages may be asked for.
    pub page_mib: u32,
    /// Distinct queries that are followed at once.
    pub live_queries: usize,
    /// Clients that follow them.
    pub live_clients: u32,
    /// Queries in SQL at once; 0 switches SQL off.
    sql_queries: usize,
    /// What they may hold together.
    sql_memory_mib: usize,
    sql_threads: usize,
    sql_timeout: String,
    /// Of a result.
    sql_rows: usize,
    slo: RawSlo,
}

/// The section `[serving.slo]`: what is promised of freshness.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSlo {
    /// How old by append time the oldest unread event may be.
    target: String,
    /// How old it may be before that is a breach.
    breach: String,
    /// The part of the time for which the target is to hold.
    objective: f64,
}

impl Default for RawSlo {
    fn default() -> Self {
        let FreshnessLimits { target, breach, objective, .. } = FreshnessLimits::default();
        let text = |time: std::time::Duration| format!("{}ms", time.as_millis());
        Self { target: text(target), breach: text(breach), objective }
    }
}

impl Default for RawServing {
    fn default() -> Self {
        let sql = SqlLimits::default();
        Self {
            cache_mib: 256,
            page_mib: 64,
            live_queries: 64,
            live_clients: 2048,
            sql_queries: sql.max_concurrent,
            sql_memory_mib: sql.memory_bytes >> 20,
            sql_threads: sql.threads,
            sql_timeout: "60s".into(),
            sql_rows: sql.max_rows,
            slo: RawSlo::default(),
        }
    }
}

impl RawServing {
    pub(super) fn sql(&self, problems: &mut Vec<String>) -> SqlLimits {
        for (key, value) in
            [("sql_memory_mib", self.sql_memory_mib), ("sql_threads", self.sql_threads), ("sql_rows", self.sql_rows)]
        {
            if value == 0 {
                problems.push(format!("serving.{key} = 0 must be above 0; serving.sql_queries = 0 switches SQL off"));
            }
        }
        SqlLimits {
            threads: self.sql_threads,
            max_concurrent: self.sql_queries,
            memory_bytes: self.sql_memory_mib << 20,
            timeout: duration("serving.sql_timeout", &self.sql_timeout, problems),
            max_rows: self.sql_rows,
            ..SqlLimits::default()
        }
    }

    pub(super) fn freshness(&self, speed: &lamina_speed::Config, problems: &mut Vec<String>) -> FreshnessLimits {
        let RawSlo { target, breach, objective } = &self.slo;
        let target = duration("serving.slo.target", target, problems);
        let breach = duration("serving.slo.breach", breach, problems);
        if breach < target {
            problems.push(format!("serving.slo.breach = {breach:?} is below serving.slo.target = {target:?}"));
        }
        if target < speed.flush_interval {
            problems.push(format!(
                "serving.slo.target = {target:?} is below speed.flush_interval = {:?}, which events wait for",
                speed.flush_interval
            ));
        }
        if !(*objective > 0.0 && *objective < 1.0) {
            problems.push(format!(
                "serving.slo.objective = {objective} must lie between 0 and 1, such as 0.99: how fast the rest is used up is \
                 what burn rates tell"
            ));
        }
        FreshnessLimits { target, breach, objective: *objective, ttl: speed.ttl, ..FreshnessLimits::default() }
    }
}
