//! A folder with definitions over a topic of its own, and a keyspace on the real node if there is one.

use std::{fs, path::Path};

use lamina::backends::cassandra::{CassandraConfig, CassandraStore};
use scylla::client::session_builder::SessionBuilder;
use tokio::runtime::Runtime;

use super::process::{Addresses, Backend, Settings};

const DEFINITIONS: &str = r#"
[source.hits]
topic = "TOPIC"
format = "json"
time = "time"
id = "id"

[source.hits.fields]
time = "timestamp"
id = "string"
site = "string"
size = "int64"

[metric.bytes]
source = "hits"
where = "site <> 'hidden'"
value = "size"
dimensions = ["site"]
aggregates = ["count", "sum", "min", "max", "distinct(id)", "quantiles"]
grain = "1m"
rollups = ["1h"]
"#;

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    /// Of topic, group and keyspace.
    pub(crate) name: String,
    pub(crate) backend: Backend,
    pub(crate) runtime: Runtime,
}

impl Place {
    pub(crate) fn new(backend: Backend) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("p{}", uuid::Uuid::new_v4().simple());
        fs::write(folder.path().join("metrics.toml"), DEFINITIONS.replace("TOPIC", &name)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { folder, name, backend, runtime }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            definitions: self.path().join("metrics.toml"),
            backend: self.backend,
            addresses: Addresses::default(),
            partitions: 2,
            epoch: "1s",
            schedule: "off",
        }
    }

    pub(crate) fn cassandra(&self) -> CassandraStore {
        CassandraStore::new(CassandraConfig {
            contact_points: vec![Addresses::default().cassandra],
            keyspace: self.name.clone(),
            ..CassandraConfig::default()
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.backend == Backend::Real {
            let drop_keyspace = format!("DROP KEYSPACE IF EXISTS {}", self.name);
            let dropped = self.runtime.block_on(async {
                let session = SessionBuilder::new().known_node(Addresses::default().cassandra).build().await.ok()?;
                session.query_unpaged(drop_keyspace, ()).await.ok()
            });
            if dropped.is_none() {
                eprintln!("keyspace {} is left behind", self.name);
            }
        }
    }
}

/// Event `number`: in one of three sites (one is left out by the metric), spread over five minutes.
pub(crate) fn event(number: usize) -> String {
    let site = ["a", "b", "hidden"][number % 3];
    let time = format!("2020-01-01T00:0{}:{:02}Z", number % 5, number % 60);
    format!(r#"{{"time": "{time}", "id": "e{number}", "site": "{site}", "size": {number}}}"#)
}

/// Count and sum of the events below `n` that the metric takes.
pub(crate) fn count_and_sum(n: usize) -> (u64, u64) {
    (0..n).filter(|number| number % 3 != 2).fold((0, 0), |(count, sum), number| (count + 1, sum + number as u64))
}
