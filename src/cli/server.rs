//! The lamina that client commands talk to, and who they are to it.

use std::path::PathBuf;

use reqwest::{Client, Method, RequestBuilder};

use super::Failure;

/// The server that client commands talk to.
#[derive(clap::Args, Clone)]
pub(crate) struct Server {
    /// Where lamina listens
    #[arg(long, env = "LAMINA_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub(super) server: String,
    #[command(flatten)]
    pub(super) credentials: Credentials,
}

/// How a client says who it is, and whom it believes. A key in the environment variable LAMINA_KEY is taken, too; none is
/// taken from the command line, which other users of the machine can read.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Credentials {
    /// File that holds an API key or token; else LAMINA_KEY in the environment
    #[arg(long, env = "LAMINA_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Certificates (PEM) to trust besides the system's, for https
    #[arg(long, env = "LAMINA_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Server {
    /// A request to the path made of `segments`, each escaped.
    pub(super) fn request(&self, method: Method, segments: &[&str]) -> Result<RequestBuilder, Failure> {
        let mut url = url::Url::parse(&self.server)
            .map_err(|why| Failure::usage(format!("--server {:?}: {why}", self.server)))?;
        let cannot = |()| Failure::usage(format!("--server {:?} is not an http URL", self.server));
        url.path_segments_mut().map_err(cannot)?.pop_if_empty().extend(segments);
        let request = self.credentials.client()?.request(method, url);
        Ok(match self.credentials.key()? {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
    }
}

impl Credentials {
    /// A client that believes the system's certificates, and those of the file.
    fn client(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder();
        if let Some(path) = &self.ca_file {
            let unusable = |why: &dyn std::fmt::Display| Failure::usage(format!("--ca-file {}: {why}", path.display()));
            let text = std::fs::read(path).map_err(|error| unusable(&error))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| unusable(&error))?;
            builder = builder.tls_certs_merge(certificates);
        }
        builder.build().map_err(|error| Failure::from_error(1, &error))
    }

    /// The key or token, if one is given.
    fn key(&self) -> Result<Option<String>, Failure> {
        let given = match &self.key_file {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|error| Failure::usage(format!("--key-file {}: {error}", path.display())))?,
            ),
            None => std::env::var("LAMINA_KEY").ok(),
        };
        Ok(given.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty()))
    }
}
