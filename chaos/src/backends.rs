//! Real clusters on loopback, through `deploy/local/cluster.sh`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::failure::{Doing, Failure, Outcome};

/// Which backends a scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Embedded ones.
    Nothing,
    /// Those that `make up` starts.
    Pair,
    /// So many nodes of each.
    Clusters { kafka: usize, cassandra: usize },
}

/// Where they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) kafka: Vec<String>,
    pub(crate) cassandra: Vec<String>,
}

/// The clusters that were started; stopped, with their data, when dropped.
pub(crate) struct Clusters {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Whether they stay for the next run.
    keep: bool,
    used: bool,
}

impl Clusters {
    pub(crate) fn new(root: &Path, keep: bool) -> Self {
        Self { root: root.to_owned(), keep, used: false }
    }

    /// Starts what is needed and not there yet.
    pub(crate) fn provide(&mut self, needs: Needs) -> Outcome<Addresses> {
        let given = |name, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
        match needs {
            Needs::Nothing => Ok(Addresses::default()),
            Needs::Pair => Ok(Addresses {
                kafka: vec![given("LAMINA_TEST_KAFKA", "127.0.0.1:19092")],
                cassandra: vec![given("LAMINA_TEST_CASSANDRA", "127.0.0.1:19042")],
            }),
            Needs::Clusters { kafka, cassandra } => {
                self.used = true;
                self.size("kafka", kafka)?;
                self.size("cassandra", cassandra)?;
                let hosts = given("LAMINA_CLUSTER_HOSTS", "127.0.0.11 127.0.0.12 127.0.0.13");
                let at = |count, port: String| {
                    hosts.split_whitespace().take(count).map(|host| format!("{host}:{port}")).collect()
                };
                Ok(Addresses {
                    kafka: at(kafka, given("LAMINA_KAFKA_PORT", "19092")),
                    cassandra: at(cassandra, given("LAMINA_CASSANDRA_PORT", "19042")),
                })
            }
        }
    }

    /// Sees to it that a cluster of so many nodes runs; nodes that are down are started.
    fn size(&self, kind: &str, count: usize) -> Outcome {
        let status = self.run(&["status"])?;
        let found = status.lines().filter(|line| line.starts_with(kind)).count();
        if found != 0 && found != count {
            self.run(&["down", kind])?;
        }
        self.run(&["up", kind, &count.to_string()]).map(drop)
    }

    /// Stops all, with their data.
    pub(crate) fn reset(&self) -> Outcome {
        if self.used { self.run(&["down"]).map(drop) } else { Ok(()) }
    }

    /// A command of the script, e.g. `kill cassandra-2`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome<String> {
        let script = self.root.join("deploy/local/cluster.sh");
        let doing = format!("{} {}", script.display(), arguments.join(" "));
        let done = Command::new(script).args(arguments).stdin(Stdio::null()).output();
        let done = done.doing(&*doing)?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        Err(Failure::Cannot { doing, why: String::from_utf8_lossy(&done.stderr).into_owned() })
    }
}

impl Drop for Clusters {
    fn drop(&mut self) {
        if self.used
            && !self.keep
            && let Err(error) = self.run(&["down"])
        {
            eprintln!("{error}");
        }
    }
}
