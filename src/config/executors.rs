//! What stands in `lamina.toml` about executors: `[executor]`, and two keys of `[batch]`.

use std::net::SocketAddr;

use serde::Deserialize;
use url::Url;

/// What folds the archive's files for batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Engine {
    /// The process that leads batch.
    Local,
    /// The executors that `batch.executors` names.
    Distributed,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawExecutor {
    pub(super) listen: String,
}

impl Default for RawExecutor {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9301".into() }
    }
}

/// An address to listen on.
pub(super) fn address(key: &str, text: &str, default: &str, problems: &mut Vec<String>) -> SocketAddr {
    text.parse().unwrap_or_else(|_| {
        problems.push(format!("{key} = {text:?} is not an address; write for example {default:?}"));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

/// An address to take plans on, which must be on loopback: nobody has to say who they are there.
pub(super) fn listen(text: &str, problems: &mut Vec<String>) -> SocketAddr {
    let address = address("executor.listen", text, "127.0.0.1:9301", problems);
    if !address.ip().is_loopback() {
        problems.push(format!(
            "executor.listen = \"{address}\" is not a loopback address: executors ask for no keys; put a proxy in front"
        ));
    }
    address
}

/// Where executors are; none if this engine needs none.
pub(super) fn executors(engine: Engine, addresses: &[String], problems: &mut Vec<String>) -> Vec<Url> {
    let checked = addresses.iter().filter_map(|text| {
        let url = Url::parse(text).ok().filter(|url| url.scheme() == "http" && url.has_host() && url.path() == "/");
        if url.is_none() {
            problems.push(format!(
                "batch.executors: {text:?} is not an executor's address; write for example \"http://127.0.0.1:9301\""
            ));
        }
        url
    });
    let mut checked: Vec<Url> = checked.collect();
    checked.sort();
    if checked.windows(2).any(|pair| pair[0] == pair[1]) {
        problems.push("batch.executors names an executor twice".to_owned());
    }
    match engine {
        Engine::Local => Vec::new(),
        Engine::Distributed => {
            if addresses.is_empty() {
                problems.push(
                    "batch.engine = \"distributed\" needs batch.executors: where `lamina serve --role executor` listens, \
                     for example [\"http://127.0.0.1:9301\"]"
                        .to_owned(),
                );
            }
            checked
        }
    }
}
