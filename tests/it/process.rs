//! A spawned `lamina serve`, as a user runs it, and what a user does with it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Method, blocking::RequestBuilder};
use serde_json::{Value, json};

pub(crate) const LAMINA: &str = env!("CARGO_BIN_EXE_lamina");
const START: Duration = Duration::from_secs(60);

/// Where a process keeps its log and its views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Embedded,
    /// Kafka and Cassandra.
    Real,
}

impl Backend {
    /// Whether the real backends may be left out: only when asked, and never in continuous integration.
    pub(crate) fn skipped(self) -> bool {
        let asked = std::env::var_os("LAMINA_SKIP_REAL").is_some();
        assert!(!(asked && in_ci()), "LAMINA_SKIP_REAL must not be set in continuous integration");
        if self == Self::Real && asked {
            eprintln!("skipped: LAMINA_SKIP_REAL is set");
            return true;
        }
        false
    }
}

pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}

/// Where the real backends are.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) kafka: String,
    pub(crate) cassandra: String,
}

impl Default for Addresses {
    fn default() -> Self {
        let given = |name, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
        Self {
            kafka: given("LAMINA_TEST_KAFKA", "127.0.0.1:19092"),
            cassandra: given("LAMINA_TEST_CASSANDRA", "127.0.0.1:19042"),
        }
    }
}

/// What differs between the processes of a test.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) definitions: PathBuf,
    pub(crate) backend: Backend,
    pub(crate) addresses: Addresses,
    pub(crate) partitions: u32,
    /// `[speed] epoch`
    pub(crate) epoch: &'static str,
    /// `[batch] schedule`
    pub(crate) schedule: &'static str,
}

/// How a process is started, besides its configuration: all roles and nothing in the environment, by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Launch {
    pub(crate) roles: Vec<&'static str>,
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A running process with a folder of its own. Killed when dropped.
pub(crate) struct Lamina {
    child: Child,
    pub(crate) folder: PathBuf,
    config: PathBuf,
    launch: Launch,
    pub(crate) url: String,
    client: reqwest::blocking::Client,
}

impl Lamina {
    /// Migrates, and starts `lamina serve` in `folder`; returns once it is ready.
    pub(crate) fn start(folder: &Path, settings: &Settings, keyspace: &str) -> Self {
        let (config, port) = configure(folder, settings, keyspace);
        if settings.backend == Backend::Real {
            let migrated = run(&["migrate", "--config", &config.to_string_lossy()]);
            assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        }
        let mut lamina = Self::spawned(folder, config, port, Launch::default());
        lamina.wait_until_ready();
        lamina
    }

    /// Starts one of several processes of a folder, whose configuration is made from the usual one by `change`; returns
    /// once it is ready. Migrates nothing.
    pub(crate) fn start_as(
        name: &str,
        launch: Launch,
        folder: &Path,
        settings: &Settings,
        keyspace: &str,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let port = free_port();
        let config = folder.join(format!("{name}.toml"));
        fs::write(&config, change(configuration(folder, settings, keyspace, port))).unwrap();
        let mut lamina = Self::spawned(folder, config, port, launch);
        lamina.wait_until_ready();
        lamina
    }

    /// Starts `lamina serve` in `folder`, and returns at once.
    pub(crate) fn launch(folder: &Path, settings: &Settings, keyspace: &str) -> Self {
        let (config, port) = configure(folder, settings, keyspace);
        Self::spawned(folder, config, port, Launch::default())
    }

    /// As [`Lamina::start_as`] with all roles, and returns at once.
    pub(crate) fn launch_as(
        name: &str,
        folder: &Path,
        settings: &Settings,
        keyspace: &str,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let port = free_port();
        let config = folder.join(format!("{name}.toml"));
        fs::write(&config, change(configuration(folder, settings, keyspace, port))).unwrap();
        Self::spawned(folder, config, port, Launch::default())
    }

    /// The status and body that `/readyz` last answered within this time.
    pub(crate) fn readiness_within(&self, time: Duration) -> String {
        let from = Instant::now();
        let mut last = "nothing".to_owned();
        while from.elapsed() < time {
            if let Ok(answer) = self.client.get(format!("{}/readyz", self.url)).send() {
                last = format!("{} {}", answer.status(), answer.text().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        last
    }

    fn spawned(folder: &Path, config: PathBuf, port: u16, launch: Launch) -> Self {
        let client = client();
        let url = format!("http://127.0.0.1:{port}");
        Self { child: spawn(&config, folder, &launch), folder: folder.to_owned(), config, launch, url, client }
    }

    /// SIGTERM; gives how the process ended.
    pub(crate) fn stop(&mut self, within: Duration) -> ExitStatus {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "no signal was sent");
        let from = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(from.elapsed() < within, "lamina still runs {within:?} after SIGTERM: {}", self.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The largest file that the process may write, as `prlimit` takes it.
    pub(crate) fn limit_files(&self, bytes: &str) {
        let (pid, limit) = (self.child.id().to_string(), format!("--fsize={bytes}:"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    }

    /// The most memory that the process has held, in KiB.
    pub(crate) fn peak_rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again over the same folder.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.config, &self.folder, &self.launch);
        self.wait_until_ready();
    }

    pub(crate) fn wait_until_ready(&mut self) {
        let from = Instant::now();
        loop {
            if self.client.get(format!("{}/readyz", self.url)).send().is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("lamina ended with {status}: {}", self.log_tail());
            }
            assert!(from.elapsed() < START, "lamina is not ready after {START:?}: {}", self.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.join("lamina.log")).unwrap_or_default();
        log.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Sends a file with `lamina ingest`; returns the position token.
    pub(crate) fn ingest(&self, source: &str, file: &Path) -> String {
        let sent = run(&["ingest", "--server", &self.url, "--source", source, &file.to_string_lossy()]);
        let errors = String::from_utf8_lossy(&sent.stderr).into_owned();
        assert!(sent.status.success(), "ingest of {}: {errors}\n{}", file.display(), self.log_tail());
        String::from_utf8(sent.stdout).unwrap().trim().to_owned()
    }

    /// A GET whose answer must be a success.
    pub(crate) fn get(&self, path: &str, parameters: &[(String, String)]) -> Value {
        let answer = self.client.get(format!("{}{path}", self.url)).query(parameters).send().unwrap();
        let (status, body) = (answer.status(), answer.text().unwrap());
        assert!(status.is_success(), "GET {path} {parameters:?}: {status} {body}\n{}", self.log_tail());
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("GET {path}: {error}: {body}"))
    }

    pub(crate) fn query(&self, metric: &str, parameters: &[(String, String)]) -> Value {
        self.get(&format!("/v1/metrics/{metric}/query"), parameters)
    }

    /// Recomputes everything and waits for the job's end.
    pub(crate) fn recompute_all(&self) {
        let url = format!("{}/v1/recomputes", self.url);
        let answer = self.client.post(url).json(&json!({"reason": "test"})).send().unwrap();
        let (status, body) = (answer.status(), answer.text().unwrap());
        assert_eq!(status.as_u16(), 202, "recompute: {body}");
        let job: Value = serde_json::from_str(&body).unwrap();
        let id = job["id"].as_str().unwrap().to_owned();
        self.until(&format!("job {id} succeeds"), || {
            let job = self.get(&format!("/v1/jobs/{id}"), &[]);
            assert!(!["failed", "cancelled"].contains(&job["state"].as_str().unwrap()), "{job}\n{}", self.log_tail());
            job["state"] == "succeeded"
        });
    }

    /// Polls until `condition` holds.
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let from = Instant::now();
        while !condition() {
            assert!(from.elapsed() < Duration::from_secs(120), "waited in vain until {what}: {}", self.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Lamina {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &Path, folder: &Path, launch: &Launch) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("lamina.log")).unwrap();
    // A limit of file sizes stands for a full disk; what exceeds it is to fail, and not to end the process.
    Command::new("env")
        .args(["--ignore-signal=XFSZ", LAMINA, "serve", "--config", &config.to_string_lossy()])
        .args(launch.roles.iter().flat_map(|role| ["--role", role]))
        .env("RUST_LOG", "info")
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A client of what is tested. Clients are made here only: reqwest makes none before somebody has said what speaks TLS.
pub(crate) fn client() -> reqwest::blocking::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::Client::builder().timeout(Duration::from_secs(90)).build().unwrap()
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(LAMINA).args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Writes `lamina.toml`; gives its path and the port that it names.
pub(crate) fn configure(folder: &Path, settings: &Settings, keyspace: &str) -> (PathBuf, u16) {
    let port = free_port();
    let config = folder.join("lamina.toml");
    fs::write(&config, configuration(folder, settings, keyspace, port)).unwrap();
    (config, port)
}

fn configuration(folder: &Path, settings: &Settings, keyspace: &str, port: u16) -> String {
    let Settings { definitions, backend, addresses, partitions, epoch, schedule } = settings;
    let Addresses { kafka, cassandra } = addresses;
    let (log, store) = match backend {
        Backend::Embedded => ("kind = \"embedded\"".to_owned(), "kind = \"embedded\"".to_owned()),
        Backend::Real => (
            format!("kind = \"kafka\"\nbrokers = \"{kafka}\""),
            format!("kind = \"cassandra\"\ncontact_points = [\"{cassandra}\"]\nkeyspace = \"{keyspace}\""),
        ),
    };
    format!(
        "definitions = [{definitions:?}]\ndata_dir = {:?}\n[http]\nlisten = \"127.0.0.1:{port}\"\n\
         [log]\n{log}\npartitions = {partitions}\n[store]\n{store}\n\
         [speed]\nflush_interval = \"200ms\"\nepoch = \"{epoch}\"\ngroup = \"{keyspace}\"\n[batch]\nschedule = \"{schedule}\"\n",
        folder.join("data"),
    )
}
