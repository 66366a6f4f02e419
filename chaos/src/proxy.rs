//! Toxiproxy: a real proxy in front of the backends, whose connections can be cut, delayed and reset.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::failure::{Doing, Failure, Outcome, until};

pub(crate) struct Toxiproxy {
    child: Child,
    url: String,
    client: reqwest::blocking::Client,
}

impl Toxiproxy {
    /// Starts the server; installs it the first time (with Go).
    pub(crate) fn start(root: &Path) -> Outcome<Self> {
        let doing = "install toxiproxy";
        let found =
            Command::new(root.join("deploy/local/toxiproxy.sh")).stderr(Stdio::inherit()).output().doing(doing)?;
        let binary = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        if !found.status.success() || binary.is_empty() {
            return Err(Failure::Cannot { doing: doing.to_owned(), why: "see above".to_owned() });
        }
        let port = crate::process::free_port()?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", &binary, "-host", "127.0.0.1", "-port", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.doing("start toxiproxy")?;
        let client = crate::readers::client();
        let proxy = Self { child, url: format!("http://127.0.0.1:{port}"), client };
        let answers = || {
            proxy.client.get(format!("{}/version", proxy.url)).send().is_ok_and(|answer| answer.status().is_success())
        };
        until("toxiproxy answers", Duration::from_secs(10), answers)?;
        Ok(proxy)
    }

    fn post(&self, path: &str, body: &Value) -> Outcome {
        let doing = format!("tell toxiproxy {path} {body}");
        let answer = self.client.post(format!("{}{path}", self.url)).json(body).send().doing(&*doing)?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(Failure::Cannot { doing, why: answer.text().unwrap_or_default() }),
        }
    }

    /// Forwards `listen` to `upstream`.
    pub(crate) fn forward(&self, name: &str, listen: &str, upstream: &str) -> Outcome {
        self.post("/proxies", &json!({"name": name, "listen": listen, "upstream": upstream, "enabled": true}))
    }

    /// Cuts all connections and takes no new ones, or takes them again.
    pub(crate) fn enable(&self, name: &str, enabled: bool) -> Outcome {
        self.post(&format!("/proxies/{name}"), &json!({"enabled": enabled}))
    }

    /// Disturbs what goes to clients, e.g. `latency` or `reset_peer`.
    pub(crate) fn poison(&self, name: &str, toxic: &str, attributes: &Value) -> Outcome {
        let body =
            json!({"name": toxic, "type": toxic, "stream": "downstream", "toxicity": 1.0, "attributes": attributes});
        self.post(&format!("/proxies/{name}/toxics"), &body)
    }

    pub(crate) fn cure(&self, name: &str, toxic: &str) -> Outcome {
        let url = format!("{}/proxies/{name}/toxics/{toxic}", self.url);
        self.client.delete(url).send().doing(format!("cure {name} of {toxic}")).map(drop)
    }
}

impl Drop for Toxiproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
