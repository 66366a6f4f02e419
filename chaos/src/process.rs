//! Processes of lamina, and what is done to them.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::failure::{Doing, Failure, Outcome, until};

/// How long a process may take until it is ready.
pub(crate) const START: Duration = Duration::from_secs(90);

/// A `lamina serve` that can be started again. Killed when dropped.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) url: String,
    lamina: PathBuf,
    config: PathBuf,
    role: &'static str,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// A process that is not started yet; it logs into `folder`.
    pub(crate) fn new(lamina: &Path, config: &Path, folder: &Path, role: &'static str, number: usize) -> Outcome<Self> {
        let name = format!("{role}-{number}");
        let port = free_port()?;
        Ok(Self {
            log: folder.join(format!("{name}.log")),
            name,
            url: format!("http://127.0.0.1:{port}"),
            lamina: lamina.to_owned(),
            config: config.to_owned(),
            role,
            environment: vec![("LAMINA__HTTP__LISTEN".to_owned(), format!("127.0.0.1:{port}"))],
            child: None,
        })
    }

    /// Sets a variable of its environment from the next start on.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Starts it; may be called by the main thread only, with which it dies.
    pub(crate) fn start(&mut self) -> Outcome {
        let doing = format!("start {}", self.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).doing(&*doing)?;
        let mut command = Command::new("setpriv");
        // Dies with us, however we die; a file too large is an error for it, not a signal.
        command.args(["--pdeathsig", "KILL", "--", "env", "--ignore-signal=XFSZ"]).arg(&self.lamina);
        command.arg("serve").arg("--config").arg(&self.config);
        command.args(["--role", self.role]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let child = command.env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.doing(doing)?);
        Ok(())
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until a SIGTERM has ended it; false if it had to be killed.
    pub(crate) fn ended(&mut self, within: Duration) -> bool {
        let Some(child) = &mut self.child else { return true };
        let ended = until("it ends", within, || child.try_wait().is_ok_and(|status| status.is_some())).is_ok();
        self.kill();
        ended
    }

    /// SIGSTOP, SIGCONT and the like.
    pub(crate) fn signal(&self, signal: &str) -> Outcome {
        let Some(pid) = self.pid() else { return Ok(()) };
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
        match sent.doing(format!("send SIG{signal}"))?.success() {
            true => Ok(()),
            false => Err(Failure::Broken(format!("{} is gone: {}", self.name, self.log_tail()))),
        }
    }

    pub(crate) fn is_ready(&self, client: &reqwest::blocking::Client) -> bool {
        client.get(format!("{}/readyz", self.url)).send().is_ok_and(|answer| answer.status().is_success())
    }

    pub(crate) fn wait_until_ready(&self, client: &reqwest::blocking::Client) -> Outcome<Duration> {
        until(&format!("{} is ready", self.name), START, || self.is_ready(client))
            .map_err(|error| Failure::Broken(format!("{error}: {}", self.log_tail())))
    }

    /// A number that the process tells of itself; `series` is the begin of a line of `/metrics`.
    pub(crate) fn gauge(&self, client: &reqwest::blocking::Client, series: &str) -> Option<f64> {
        let text = client.get(format!("{}/metrics", self.url)).send().ok()?.text().ok()?;
        let line = text.lines().find(|line| line.starts_with(series))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// An end by itself is a failure.
    pub(crate) fn check(&mut self) -> Outcome {
        match self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            Some(status) => {
                Err(Failure::Broken(format!("{} ended by itself with {status}: {}", self.name, self.log_tail())))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(15).collect();
        format!("the end of {}:\n{}", self.log.display(), lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that is free now.
pub(crate) fn free_port() -> Outcome<u16> {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(bound.doing("find a free port")?.port())
}
