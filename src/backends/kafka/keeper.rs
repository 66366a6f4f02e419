//! Gives clients their brokers back.
//!
//! A broker that has just started may name no broker in its metadata, itself included. librdkafka since 2.10 then forgets
//! every broker that it knew, those it was configured with too, and never connects again
//! (confluentinc/librdkafka#5301). So whenever requests fail, a thread asks each client of the log for the brokers that it
//! knows, and names the configured ones again to a client that gets no answer. Members look after their own clients.

use std::{
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use lamina_core::log::LogError;
use rdkafka::{ClientContext, client::Client, producer::Producer as _};
use tracing::debug;

use super::{Shared, client::Profile, native};

/// A topic that every cluster with consumer groups has; asking for it is cheap whether or not it exists.
const PROBE: &str = "__consumer_offsets";
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked whether requests failed.
const LOOK: Duration = Duration::from_secs(2);

/// Watches until the log is dropped.
pub(super) fn watch(shared: &Arc<Shared>) -> Result<(), LogError> {
    let shared = Arc::downgrade(shared);
    let thread = thread::Builder::new().name("kafka-keeper".into()).spawn(move || keep(&shared));
    thread.map(drop).map_err(|error| LogError::Unavailable(format!("no thread for looking after clients: {error}")))
}

fn keep(shared: &Weak<Shared>) {
    loop {
        thread::sleep(LOOK);
        let Some(shared) = shared.upgrade() else { return };
        if shared.profile.doubts() {
            let all = [
                look_after(&shared.profile, shared.admin.inner()),
                look_after(&shared.profile, shared.offsets.client()),
                look_after(&shared.profile, shared.producer.current().client()),
            ];
            if all.iter().any(Result::is_err) {
                shared.profile.doubt();
            }
        }
    }
}

/// Whether a broker answers the client within `wait`, and knows of brokers.
pub(super) fn ping<C: ClientContext>(profile: &Profile, client: &Client<C>, wait: Duration) -> Result<(), LogError> {
    let doing = "asking for metadata";
    match client.fetch_metadata(Some(PROBE), wait) {
        Ok(metadata) if metadata.brokers().is_empty() => {
            Err(LogError::Unavailable(format!("{doing} ({}): no broker is up yet", profile.brokers)))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(profile.error(doing, "", &error)),
    }
}

/// Asks the client for brokers, and names them to it if it reaches none though they can be reached. Blocks for a second
/// or two at most.
pub(super) fn look_after<C: ClientContext>(profile: &Profile, client: &Client<C>) -> Result<(), LogError> {
    let found = ping(profile, client, PROBE_TIMEOUT);
    if found.is_err() && reachable(&profile.brokers) {
        debug!(brokers = &*profile.brokers, "naming the brokers to a client that reaches none");
        native::add_brokers(client, &profile.brokers);
    }
    found
}

/// Whether something listens at one of the addresses.
fn reachable(brokers: &str) -> bool {
    let listens = |broker: &str| {
        // librdkafka takes `protocol://host:port`, and 9092 where no port is given.
        let address = broker.trim().rsplit("//").next().unwrap_or_default();
        let resolved = match address.to_socket_addrs() {
            Ok(resolved) => resolved.collect(),
            Err(_) => (address, 9092).to_socket_addrs().map_or_else(|_| Vec::new(), Iterator::collect),
        };
        resolved.iter().any(|at| TcpStream::connect_timeout(at, PROBE_TIMEOUT).is_ok())
    };
    brokers.split(',').any(listens)
}
