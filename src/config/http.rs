//! What stands in `lamina.toml` about the HTTP interface: `[http]`, and below it who may do what, limits and TLS.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, path::PathBuf, time::Duration};

use lamina_serving::{
    Config, Rate,
    auth::{self, Mode, jwt},
    tls,
};
use serde::Deserialize;

use super::{duration, executors::address};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    listen: String,
    auth: RawAuth,
    limits: RawLimits,
    tls: Option<RawTls>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAuth {
    /// Also on loopback, and before the first key is made.
    required: bool,
    open_metrics: bool,
    jwt: Option<RawJwt>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJwt {
    issuer: String,
    audience: OneOrMore,
    jwks_url: Option<String>,
    jwks_file: Option<PathBuf>,
    algorithms: Vec<String>,
    #[serde(default = "scope")]
    scope_claim: String,
    /// Dimension → the claim whose values are the only ones that are shown.
    #[serde(default)]
    rows: BTreeMap<String, String>,
    #[serde(default = "leeway")]
    leeway: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    requests_per_second: u32,
    burst: u32,
    max_concurrent: usize,
    max_queued: usize,
    queue_wait: String,
    max_connections: usize,
    max_streams: usize,
    request_timeout: String,
    header_timeout: String,
    body_timeout: String,
    write_stall: String,
    max_body_mib: usize,
    max_event_kib: usize,
    max_events: usize,
    max_ratio: usize,
    max_json_depth: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert: PathBuf,
    key: PathBuf,
}

fn scope() -> String {
    "scope".to_owned()
}

fn leeway() -> String {
    "30s".to_owned()
}

impl Default for RawHttp {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".into(), auth: RawAuth::default(), limits: RawLimits::default(), tls: None }
    }
}

impl Default for RawLimits {
    /// What the serving layer takes by itself.
    fn default() -> Self {
        let of = Config::default();
        let text = |time: Duration| format!("{}ms", time.as_millis());
        Self {
            requests_per_second: of.rate.per_second,
            burst: of.rate.burst,
            max_concurrent: of.max_concurrent,
            max_queued: of.max_queued,
            queue_wait: text(of.queue_wait),
            max_connections: of.max_connections,
            max_streams: of.max_streams,
            request_timeout: text(of.request_timeout),
            header_timeout: text(of.header_timeout),
            body_timeout: text(of.body_timeout),
            write_stall: text(of.write_stall),
            max_body_mib: of.max_body_bytes >> 20,
            max_event_kib: of.max_event_bytes >> 10,
            max_events: of.max_events,
            max_ratio: of.max_ratio,
            max_json_depth: of.max_json_depth,
        }
    }
}

/// Where HTTP listens, and how.
pub(super) fn check(raw: RawHttp, folder: &Path, problems: &mut Vec<String>) -> (SocketAddr, Config) {
    let listen = address("http.listen", &raw.listen, "127.0.0.1:8080", problems);
    let jwt = raw.auth.jwt.and_then(|jwt| jwt.check(folder, problems));
    // Elsewhere than on loopback everybody could come.
    let required = raw.auth.required || jwt.is_some() || !listen.ip().is_loopback();
    let mode = if required { Mode::Required } else { Mode::UntilFirstKey };
    let files = raw.tls.map(|tls| tls::Files { cert: folder.join(tls.cert), key: folder.join(tls.key) });
    if let Some(Err(error)) = files.as_ref().map(tls::Files::check) {
        problems.push(format!("http.tls: {error}"));
    }
    let auth = auth::Config { mode, jwt, open_metrics: raw.auth.open_metrics };
    let config = Config { listen, auth, tls: files, ..raw.limits.check(problems) };
    (listen, config)
}

impl RawLimits {
    fn check(self, problems: &mut Vec<String>) -> Config {
        for (key, value, most) in [
            ("requests_per_second", self.requests_per_second as usize, 1_000_000),
            ("burst", self.burst as usize, 10_000_000),
            ("max_concurrent", self.max_concurrent, 65_536),
            ("max_connections", self.max_connections, 1 << 20),
            ("max_streams", self.max_streams, 65_536),
            ("max_body_mib", self.max_body_mib, 1_024),
            ("max_event_kib", self.max_event_kib, 8 << 10),
            ("max_events", self.max_events, 100_000_000),
            ("max_ratio", self.max_ratio, 1_000_000),
            ("max_json_depth", self.max_json_depth, 128),
        ] {
            if !(1..=most).contains(&value) {
                problems.push(format!("http.limits.{key} = {value} must lie within 1 and {most}"));
            }
        }
        if self.max_queued > 1 << 20 {
            problems.push(format!("http.limits.max_queued = {} must lie within 0 and {}", self.max_queued, 1 << 20));
        }
        let mut time = |key: &str, text: &str| duration(&format!("http.limits.{key}"), text, problems);
        Config {
            rate: Rate { per_second: self.requests_per_second, burst: self.burst },
            max_concurrent: self.max_concurrent,
            max_queued: self.max_queued,
            queue_wait: time("queue_wait", &self.queue_wait),
            max_connections: self.max_connections,
            max_streams: self.max_streams,
            request_timeout: time("request_timeout", &self.request_timeout),
            header_timeout: time("header_timeout", &self.header_timeout),
            body_timeout: time("body_timeout", &self.body_timeout),
            write_stall: time("write_stall", &self.write_stall),
            max_body_bytes: self.max_body_mib << 20,
            max_event_bytes: self.max_event_kib << 10,
            max_events: self.max_events,
            max_ratio: self.max_ratio,
            max_json_depth: self.max_json_depth,
            ..Config::default()
        }
    }
}

impl RawJwt {
    fn check(self, folder: &Path, problems: &mut Vec<String>) -> Option<jwt::Config> {
        let keys = match (self.jwks_url, self.jwks_file) {
            (Some(url), None) => jwt::KeySource::url(&url),
            (None, Some(file)) => Ok(jwt::KeySource::File(folder.join(file))),
            _ => Err("give either jwks_url or jwks_file: where the issuer's public keys are".to_owned()),
        };
        let algorithms = jwt::algorithms(&self.algorithms);
        let audience = match self.audience {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        };
        let leeway = duration("http.auth.jwt.leeway", &self.leeway, problems);
        if self.issuer.is_empty() || audience.is_empty() || audience.iter().any(String::is_empty) {
            problems.push("http.auth.jwt: issuer and audience must be given, and not be empty".to_owned());
        }
        if leeway > Duration::from_secs(300) {
            problems.push("http.auth.jwt.leeway is more than 5m: clocks do not differ so much".to_owned());
        }
        let mut noted = |result: Result<(), String>| {
            if let Err(why) = result {
                problems.push(format!("http.auth.jwt: {why}"));
            }
        };
        let (keys, algorithms) = match (keys, algorithms) {
            (Ok(keys), Ok(algorithms)) => (keys, algorithms),
            (keys, algorithms) => {
                noted(keys.map(drop));
                noted(algorithms.map(drop));
                return None;
            }
        };
        Some(jwt::Config {
            issuer: self.issuer,
            audience,
            keys,
            algorithms,
            scope_claim: self.scope_claim,
            rows: self.rows,
            leeway,
        })
    }
}
