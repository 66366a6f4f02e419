//! `lamina.toml`: read as it stands, then checked as a whole.
//!
//! Every key can also be given as `LAMINA__SECTION__KEY`. Relative paths are relative to the file's folder.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use lamina_batch::Schedule;
use lamina_core::Micros;
use lamina_metric::Length;
use lamina_serving::{FreshnessLimits, SqlLimits};
use serde::Deserialize;

use self::{
    executors::{Engine, RawExecutor},
    http::RawHttp,
    serving::RawServing,
};
pub use self::{
    login::Login,
    store::{RawStore, StoreKind},
};
use crate::backends::cassandra::WriteConsistency;

mod executors;
mod http;
mod login;
mod serving;
mod store;

/// What is wrong with a configuration; each line stands for itself.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {0} does not exist")]
    NoFile(PathBuf),
    #[error("{0}")]
    Unreadable(Box<figment::Error>),
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

/// The configuration of one process, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub definitions: Vec<PathBuf>,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Access, limits and TLS of the HTTP interface.
    pub http: lamina_serving::Config,
    pub log: LogConfig,
    pub store: StoreConfig,
    /// Where the archive lies; `None` = `archive/` in the data folder.
    pub archive: Option<url::Url>,
    pub speed: lamina_speed::Config,
    pub batch: lamina_batch::Config,
    /// The Cassandra data centre that batch works in, if not the store's.
    pub batch_dc: Option<String>,
    /// Where an executor takes plans.
    pub executor_listen: SocketAddr,
    /// Partitions of topics that lamina makes.
    pub partitions: u32,
    pub serving: RawServing,
    /// What queries in SQL may take.
    pub sql: SqlLimits,
    /// What is promised of freshness.
    pub freshness: FreshnessLimits,
}

#[derive(Clone, Debug)]
pub enum LogConfig {
    Embedded,
    Kafka { brokers: String, replication_factor: i32, options: BTreeMap<String, String>, login: Login },
}

#[derive(Clone, Debug)]
pub enum StoreConfig {
    Embedded,
    Cassandra(RawStore),
}

/// The file as it stands.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    definitions: Vec<PathBuf>,
    data_dir: PathBuf,
    http: RawHttp,
    log: RawLog,
    store: RawStore,
    archive: RawArchive,
    speed: RawSpeed,
    batch: RawBatch,
    executor: RawExecutor,
    serving: RawServing,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    kind: LogKind,
    brokers: String,
    partitions: u32,
    replication_factor: i32,
    /// Handed to librdkafka as they are, e.g. `security.protocol`.
    options: BTreeMap<String, String>,
    /// For SASL.
    username: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogKind {
    Embedded,
    Kafka,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawArchive {
    url: Option<String>,
    /// How long raw events stay; for ever if left out.
    retention: Option<String>,
    /// The same for single sources.
    retention_by_source: BTreeMap<String, String>,
    /// Whether batch puts small files together.
    compaction: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSpeed {
    flush_interval: String,
    epoch: String,
    ttl: String,
    epoch_max_records: u64,
    epoch_max_mib: u64,
    group: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBatch {
    schedule: String,
    time_zone: String,
    memory_mib: usize,
    threads: usize,
    nice: u8,
    local_dc: Option<String>,
    retries: u32,
    lease: String,
    keep: String,
    engine: Engine,
    executors: Vec<String>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            definitions: vec!["metrics/".into()],
            data_dir: "data".into(),
            http: RawHttp::default(),
            log: RawLog::default(),
            store: RawStore::default(),
            archive: RawArchive::default(),
            speed: RawSpeed::default(),
            batch: RawBatch::default(),
            executor: RawExecutor::default(),
            serving: RawServing::default(),
        }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            brokers: "127.0.0.1:9092".into(),
            partitions: 8,
            replication_factor: 1,
            options: BTreeMap::new(),
            username: None,
            password_file: None,
        }
    }
}

impl Default for RawArchive {
    fn default() -> Self {
        Self { url: None, retention: None, retention_by_source: BTreeMap::new(), compaction: true }
    }
}

impl Default for RawSpeed {
    fn default() -> Self {
        Self {
            flush_interval: "1s".into(),
            epoch: "60s".into(),
            ttl: "3d".into(),
            epoch_max_records: 2_000_000,
            epoch_max_mib: 256,
            group: "lamina".into(),
        }
    }
}

impl Default for RawBatch {
    fn default() -> Self {
        Self {
            schedule: "*/10 * * * *".into(),
            time_zone: "UTC".into(),
            memory_mib: 512,
            threads: 2,
            nice: 10,
            local_dc: None,
            retries: 3,
            lease: "15s".into(),
            keep: "7d".into(),
            engine: Engine::Local,
            executors: Vec::new(),
        }
    }
}

/// A duration given as `500ms`, `1s`, `10m`, ...
fn duration(key: &str, text: &str, problems: &mut Vec<String>) -> Duration {
    let millis = text.strip_suffix("ms").and_then(|n| n.trim().parse().ok()).map(Duration::from_millis);
    let found =
        millis.or_else(|| Length::parse(text).ok().map(|length| Duration::from_micros(length.0.unsigned_abs())));
    match found {
        Some(found) if !found.is_zero() => found,
        _ => {
            problems.push(format!(
                "{key} = {text:?} is not a duration; write for example \"500ms\", \"1s\", \"10m\", \"3d\""
            ));
            Duration::from_secs(1)
        }
    }
}

impl Config {
    /// Reads a file and the environment.
    ///
    /// # Errors
    /// If the file is missing or unreadable, a key is unknown, or values do not go together: all problems at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        if !path.is_file() {
            return Err(ConfigError::NoFile(path.to_owned()));
        }
        let figment = Figment::from(Toml::file_exact(path)).merge(Env::prefixed("LAMINA__").split("__"));
        let raw: Raw = figment.extract().map_err(|error| ConfigError::Unreadable(Box::new(error)))?;
        let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        Self::check(raw, &folder)
    }

    /// Everything embedded below `data`, with the defaults, for `lamina demo`.
    ///
    /// # Errors
    /// Never with the defaults.
    pub fn embedded(data: &Path) -> Result<Self, ConfigError> {
        Self::check(Raw { data_dir: data.to_owned(), definitions: Vec::new(), ..Raw::default() }, Path::new(""))
    }

    fn check(raw: Raw, folder: &Path) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let speed = speed(&raw.speed, &mut problems);
        let batch = batch(&raw.batch, &raw.archive, &speed, &mut problems);
        let (listen, http) = http::check(raw.http, folder, &mut problems);
        let executor_listen = executors::listen(&raw.executor.listen, &mut problems);
        if !(1..=1_024).contains(&raw.log.partitions) {
            problems.push(format!("log.partitions = {} must lie within 1 and 1024", raw.log.partitions));
        }
        let archive = raw.archive.url.as_deref().and_then(|url| {
            url::Url::parse(url).map_err(|why| problems.push(format!("archive.url = {url:?} is not a URL: {why}"))).ok()
        });
        let log = match raw.log.kind {
            LogKind::Embedded => LogConfig::Embedded,
            LogKind::Kafka => LogConfig::Kafka {
                brokers: raw.log.brokers,
                replication_factor: raw.log.replication_factor,
                options: raw.log.options,
                login: Login {
                    username: raw.log.username,
                    password_file: raw.log.password_file.map(|file| folder.join(file)),
                    environment: "LAMINA_LOG_PASSWORD",
                },
            },
        };
        if let Some(dc) = &raw.batch.local_dc {
            let store = &raw.store;
            if store.kind == StoreKind::Embedded {
                problems.push(format!("batch.local_dc = {dc:?}: only store.kind = \"cassandra\" has data centres"));
            } else if *dc != store.local_dc && store.write_consistency != WriteConsistency::EachQuorum {
                problems.push(format!(
                    "batch.local_dc = {dc:?} is not store.local_dc = {:?}: what the one writes the other reads, so \
                     store.write_consistency must be \"each_quorum\"",
                    store.local_dc
                ));
            }
        }
        let store = match raw.store.kind {
            StoreKind::Embedded => StoreConfig::Embedded,
            StoreKind::Cassandra => StoreConfig::Cassandra(raw.store.check(folder, &mut problems)),
        };
        let sql = raw.serving.sql(&mut problems);
        let freshness = raw.serving.freshness(&speed, &mut problems);
        if !problems.is_empty() {
            return Err(ConfigError::Invalid(problems));
        }
        Ok(Self {
            definitions: raw.definitions.iter().map(|path| folder.join(path)).collect(),
            data_dir: folder.join(raw.data_dir),
            listen,
            http,
            log,
            store,
            archive,
            speed,
            batch,
            batch_dc: raw.batch.local_dc,
            executor_listen,
            partitions: raw.log.partitions,
            serving: raw.serving,
            sql,
            freshness,
        })
    }
}

/// The longest time between two runs, among the next thousand.
fn longest_pause(schedule: &Schedule) -> Option<Duration> {
    let runs: Vec<Micros> = std::iter::successors(schedule.after(0), |&at| schedule.after(at)).take(1_000).collect();
    runs.windows(2).map(|pair| Duration::from_micros(pair[1].abs_diff(pair[0]))).max()
}

fn speed(raw: &RawSpeed, problems: &mut Vec<String>) -> lamina_speed::Config {
    lamina_speed::Config {
        flush_interval: duration("speed.flush_interval", &raw.flush_interval, problems),
        epoch: duration("speed.epoch", &raw.epoch, problems),
        epoch_max_records: raw.epoch_max_records,
        epoch_max_bytes: raw.epoch_max_mib << 20,
        ttl: duration("speed.ttl", &raw.ttl, problems),
        group: raw.group.clone(),
    }
}

fn batch(
    raw: &RawBatch,
    archive: &RawArchive,
    speed: &lamina_speed::Config,
    problems: &mut Vec<String>,
) -> lamina_batch::Config {
    let schedule = raw.schedule.parse().unwrap_or_else(|why| {
        problems.push(format!("batch.schedule: {why}"));
        Schedule::off()
    });
    let zone = raw.time_zone.parse().unwrap_or_else(|_| {
        let zone = &raw.time_zone;
        problems.push(format!("batch.time_zone: {zone:?} is no IANA name of a time zone, such as Europe/Berlin"));
        chrono_tz::UTC
    });
    let schedule = Schedule::in_zone(schedule, zone);
    if raw.nice > 19 {
        problems.push(format!(
            "batch.nice = {} is out of range: 0 to 19, and the larger, the more batch stands back",
            raw.nice
        ));
    }
    if let Some(interval) = longest_pause(&schedule).filter(|pause| speed.ttl < *pause * 4) {
        problems.push(format!(
            "speed.ttl = {:?} is shorter than four times the longest pause of batch.schedule ({interval:?}): \
             aggregates could expire before batch covers them; raise the one or shorten the other",
            speed.ttl
        ));
    }
    lamina_batch::Config {
        schedule,
        memory_bytes: raw.memory_mib << 20,
        parallelism: raw.threads.max(1),
        nice: raw.nice,
        lease: duration("batch.lease", &raw.lease, problems),
        retries: raw.retries,
        keep: duration("batch.keep", &raw.keep, problems),
        retention: retention(archive, problems),
        compaction: archive.compaction,
        executors: executors::executors(raw.engine, &raw.executors, problems),
    }
}

fn retention(raw: &RawArchive, problems: &mut Vec<String>) -> lamina_batch::Retention {
    let usual = raw.retention.as_deref().map(|text| duration("archive.retention", text, problems));
    let by_source = raw.retention_by_source.iter().map(|(source, text)| {
        (source.clone(), duration(&format!("archive.retention_by_source.{source}"), text, problems))
    });
    lamina_batch::Retention { usual, by_source: by_source.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lamina.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default_and_embedded() {
        let config = load("").unwrap();
        assert!(matches!(config.log, LogConfig::Embedded));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.speed.ttl, Duration::from_secs(3 * 86_400));
        assert!(config.data_dir.ends_with("data") && config.data_dir.is_absolute());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let errors = load(
            "[http]\nlisten = \"everywhere\"\n[log]\npartitions = 0\n[speed]\nttl = \"1h\"\nepoch = \"soon\"\n\
             [batch]\nschedule = \"0 0 * * *\"\n[archive]\nurl = \"nowhere\"\n",
        );
        let errors = errors.unwrap_err();
        for part in ["http.listen", "log.partitions", "speed.ttl", "speed.epoch", "archive.url"] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
    }

    #[test]
    fn batch_in_a_data_centre_of_its_own_needs_writes_that_wait_for_both() {
        let with =
            |more: &str| load(&format!("[store]\nkind = \"cassandra\"\n{more}\n[batch]\nlocal_dc = \"analytics\"\n"));
        assert!(with("").unwrap_err().contains("each_quorum"));
        assert!(with("local_dc = \"analytics\"").is_ok());
        let config = with("write_consistency = \"each_quorum\"").unwrap();
        assert_eq!(config.batch_dc.as_deref(), Some("analytics"));
        let error = load("[batch]\nlocal_dc = \"analytics\"\n").unwrap_err();
        assert!(error.contains("store.kind"), "{error}");
    }

    #[test]
    fn a_time_to_live_below_four_pauses_of_batch_is_refused() {
        let with = |ttl: &str| load(&format!("[speed]\nttl = \"{ttl}\"\n[batch]\nschedule = \"*/10 * * * *\"\n"));
        let error = with("39m").unwrap_err();
        assert!(error.contains("speed.ttl") && error.contains("four times") && error.contains("raise"), "{error}");
        assert!(with("40m").is_ok());
        assert!(load("[speed]\nttl = \"1m\"\n[batch]\nschedule = \"off\"\n").is_ok(), "no pause is known");
    }

    #[test]
    fn executors_are_on_loopback_and_named_where_they_are_used() {
        let errors = load(
            "[batch]\nengine = \"distributed\"\nexecutors = [\"127.0.0.1:1\", \"https://a\"]\n\
             [executor]\nlisten = \"0.0.0.0:9301\"\n",
        );
        let errors = errors.unwrap_err();
        for part in ["executor.listen", "loopback", "\"127.0.0.1:1\"", "\"https://a\""] {
            assert!(errors.contains(part), "{part} is not in: {errors}");
        }
        let error = load("[batch]\nengine = \"distributed\"\n").unwrap_err();
        assert!(error.contains("needs batch.executors"), "{error}");
        let twice = "executors = [\"http://127.0.0.1:1\", \"http://127.0.0.1:1/\"]\n";
        assert!(load(&format!("[batch]\n{twice}")).unwrap_err().contains("twice"));
        let config = load("[batch]\nengine = \"distributed\"\nexecutors = [\"http://127.0.0.1:9301\"]\n").unwrap();
        assert_eq!(config.batch.executors.len(), 1);
        let unused = load("[batch]\nexecutors = [\"http://127.0.0.1:9301\"]\n").unwrap();
        assert!(unused.batch.executors.is_empty() && unused.executor_listen.port() == 9301);
    }

    #[test]
    fn what_writes_wait_for_is_one_of_two() {
        let StoreConfig::Cassandra(store) =
            load("[store]\nkind = \"cassandra\"\nwrite_consistency = \"each_quorum\"\n").unwrap().store
        else {
            panic!("not on Cassandra")
        };
        assert_eq!(store.write_consistency, WriteConsistency::EachQuorum);
        let error = load("[store]\nwrite_consistency = \"one\"\n").unwrap_err();
        assert!(error.contains("local_quorum") && error.contains("each_quorum"), "{error}");
    }

    #[test]
    fn an_objective_that_nothing_could_meet_is_refused() {
        let with = |slo: &str| load(&format!("[serving.slo]\n{slo}\n"));
        let promised = with("target = \"5s\"\nbreach = \"20s\"\nobjective = 0.999").unwrap().freshness;
        assert_eq!((promised.target, promised.breach), (Duration::from_secs(5), Duration::from_secs(20)));
        for (slo, key) in [
            ("target = \"2m\"", "serving.slo.breach"),
            ("target = \"500ms\"", "speed.flush_interval"),
            ("objective = 1.0", "serving.slo.objective"),
            ("objective = 0", "serving.slo.objective"),
        ] {
            let error = with(slo).unwrap_err();
            assert!(error.contains(key), "{slo}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = load("[store]\nkeyspaces = \"x\"\n").unwrap_err();
        assert!(error.contains("keyspaces") && error.contains("keyspace"), "{error}");
    }
}
