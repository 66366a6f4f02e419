//! Which options of librdkafka may be given.
//!
//! A list of what is allowed: among the others are some that load code (`plugin.library.paths`), run commands
//! (`sasl.kerberos.kinit.cmd`), write secrets into logs (`debug`), or are secrets, which belong in a file.

use std::collections::BTreeMap;

use lamina_core::log::LogError;

/// Options that lamina fixes itself, since its guarantees rest on them.
pub(super) const FIXED: [&str; 18] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "request.required.acks",
    "topic.blacklist",
    "transactional.id",
];

/// Options that are secrets.
const SECRET: [&str; 6] = [
    "sasl.oauthbearer.client.secret",
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "ssl_key",
];

/// Security, then connections, then sizes and times.
const ALLOWED: [&str; 57] = [
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "security.protocol",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.sigalgs.list",
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "log.connection.close",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "topic.metadata.refresh.interval.ms",
    "topic.metadata.refresh.sparse",
    "batch.num.messages",
    "batch.size",
    "check.crcs",
    "compression.codec",
    "compression.level",
    "compression.type",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.wait.max.ms",
    "heartbeat.interval.ms",
    "linger.ms",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.max.bytes",
    "message.timeout.ms",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "session.timeout.ms",
];

/// # Errors
/// If an option is lamina's own, a secret, or none that is passed on; names it and what is allowed.
pub(super) fn check(options: &BTreeMap<String, String>) -> Result<(), LogError> {
    for name in options.keys().map(String::as_str) {
        if FIXED.contains(&name) {
            return Err(LogError::Refused(format!("the Kafka option {name} is set by lamina itself; leave it out")));
        }
        if SECRET.contains(&name) {
            return Err(LogError::Refused(format!(
                "the Kafka option {name} is a secret: a password comes from log.password_file or LAMINA_LOG_PASSWORD, a key \
                 without a password from the file ssl.key.location"
            )));
        }
        if !ALLOWED.contains(&name) {
            let allowed = ALLOWED.join(", ");
            return Err(LogError::Refused(format!("the Kafka option {name} is not passed on; there are {allowed}")));
        }
    }
    Ok(())
}
