//! How lamina configures librdkafka, and what its errors mean here.
//!
//! # Invariants
//! - What exactness rests on (acknowledgements, isolation, where a group starts) cannot be overridden by options.
//! - Every error names the brokers or the topic it is about.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lamina_core::log::{LogError, MAX_RECORD};
use rdkafka::{
    ClientConfig, ClientContext,
    client::OAuthToken,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tracing::{debug, warn};

use super::options;

/// How long one request to the cluster may take before it counts as unanswered.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the cluster is and how to talk to it.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// Replicas of the topics that lamina creates.
    pub replication_factor: i32,
    /// Passed to librdkafka as they are, e.g. `security.protocol` or `session.timeout.ms`; which ones, [`super::options`] says.
    pub options: BTreeMap<String, String>,
    /// User and password, for SASL.
    pub credentials: Option<(String, String)>,
}

/// Leaves the password out.
impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.credentials.as_ref().map(|(user, _)| user);
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("replication_factor", &self.replication_factor)
            .field("options", &self.options)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

/// The settings of each kind of client.
#[derive(Clone)]
pub(super) struct Profile {
    pub(super) brokers: Arc<str>,
    options: Arc<BTreeMap<String, String>>,
    /// Whether a request went unanswered since that was last asked.
    doubt: Arc<AtomicBool>,
}

impl Profile {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        if config.brokers.trim().is_empty() {
            return Err(LogError::Refused("no Kafka brokers are given; name them as host:port".into()));
        }
        options::check(&config.options)?;
        let mut options = config.options.clone();
        if let Some((user, password)) = &config.credentials {
            options.insert("sasl.username".to_owned(), user.clone());
            options.insert("sasl.password".to_owned(), password.clone());
        }
        Ok(Self { brokers: config.brokers.as_str().into(), options: options.into(), doubt: Arc::default() })
    }

    /// Whether a request went unanswered since this was last asked.
    pub(super) fn doubts(&self) -> bool {
        self.doubt.swap(false, Ordering::AcqRel)
    }

    pub(super) fn doubt(&self) {
        self.doubt.store(true, Ordering::Release);
    }

    /// Defaults, then the user's options, then what must not differ.
    fn build(&self, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        let common = [
            ("client.id", "lamina"),
            ("reconnect.backoff.ms", "100"),
            ("reconnect.backoff.max.ms", "2000"),
            ("socket.keepalive.enable", "true"),
            ("socket.timeout.ms", "10000"),
            // New partitions and re-made topics are seen after this time at the latest.
            ("topic.metadata.refresh.interval.ms", "10000"),
        ];
        let mut config = ClientConfig::new();
        for (name, value) in common.iter().chain(defaults) {
            config.set(*name, *value);
        }
        for (name, value) in self.options.iter() {
            config.set(name, value);
        }
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config.set("bootstrap.servers", &*self.brokers).set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    /// Administration and metadata. Nobody drains the log queues of these clients, so they log nothing.
    pub(super) fn query(&self) -> ClientConfig {
        let mut config = self.build(&[], &[("isolation.level", "read_committed")]);
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    pub(super) fn producer(&self) -> ClientConfig {
        // The broker's own default limit, of a whole batch; MAX_RECORD and its framing fit.
        let limit = (MAX_RECORD + 12).to_string();
        let defaults = [
            ("compression.type", "lz4"),
            ("linger.ms", "5"),
            ("message.max.bytes", limit.as_str()),
            ("message.timeout.ms", "30000"),
            ("queue.buffering.max.kbytes", "65536"),
            ("queue.buffering.max.messages", "200000"),
        ];
        let fixed = [("acks", "all"), ("enable.idempotence", "true"), ("partitioner", "murmur2_random")];
        self.build(&defaults, &fixed)
    }

    /// How long an append may wait for its acknowledgement.
    pub(super) fn delivery_timeout(&self) -> Duration {
        let given = ["message.timeout.ms", "delivery.timeout.ms"].iter().find_map(|name| self.options.get(*name));
        Duration::from_millis(given.and_then(|ms| ms.parse().ok()).unwrap_or(30_000))
    }

    /// A member of a consumer group.
    pub(super) fn member(&self, group: &str) -> ClientConfig {
        let defaults = [
            ("fetch.max.bytes", "8388608"),
            ("fetch.queue.backoff.ms", "10"),
            ("fetch.wait.max.ms", "100"),
            ("queued.max.messages.kbytes", "16384"),
            ("session.timeout.ms", "15000"),
        ];
        self.consumer(group, &defaults)
    }

    /// A reader outside of every group. librdkafka wants a group name even of a consumer that joins none.
    pub(super) fn reader(&self) -> ClientConfig {
        let defaults = [
            ("fetch.max.bytes", "2097152"),
            ("fetch.queue.backoff.ms", "10"),
            ("fetch.wait.max.ms", "100"),
            ("queued.max.messages.kbytes", "2048"),
        ];
        self.consumer("lamina-reader", &defaults)
    }

    fn consumer(&self, group: &str, defaults: &[(&str, &str)]) -> ClientConfig {
        let fixed = [
            ("group.id", group),
            ("group.protocol", "classic"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
        ];
        self.build(defaults, &fixed)
    }

    pub(super) fn logged(&self) -> Logged {
        Logged { doubt: Arc::clone(&self.doubt) }
    }

    /// Makes a client; this contacts nobody.
    pub(super) fn make<C, T: FromClientConfigAndContext<C>>(
        &self,
        config: &ClientConfig,
        context: C,
    ) -> Result<T, LogError>
    where
        C: ClientContext,
    {
        T::from_config_and_context(config, context)
            .map_err(|error| LogError::Refused(format!("Kafka client settings: {error}")))
    }

    /// What an error of librdkafka means for the caller. `topic` is empty where none is concerned.
    pub(super) fn error(&self, doing: &str, topic: &str, error: &KafkaError) -> LogError {
        match error.rdkafka_error_code() {
            Some(code) => self.code(doing, topic, code),
            None => self.unavailable(doing, error),
        }
    }

    pub(super) fn code(&self, doing: &str, topic: &str, code: RDKafkaErrorCode) -> LogError {
        use RDKafkaErrorCode as Code;
        match code {
            Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition if !topic.is_empty() => {
                LogError::NoTopic(topic.to_owned())
            }
            Code::Authentication
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::InvalidArgument
            | Code::InvalidConfig
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidTopic
            | Code::PolicyViolation
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::UnsupportedVersion => LogError::Refused(format!("{doing} ({}): {code}", self.brokers)),
            _ => self.unavailable(doing, code),
        }
    }

    fn unavailable(&self, doing: &str, why: impl Display) -> LogError {
        self.doubt();
        LogError::Unavailable(format!("{doing} ({}): {why}", self.brokers))
    }
}

/// Sends what librdkafka logs to `tracing`, and notes that it reached no broker.
#[derive(Clone)]
pub(super) struct Logged {
    doubt: Arc<AtomicBool>,
}

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        forward(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.doubt.store(true, Ordering::Release);
        }
        debug!(%error, reason, "kafka client");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("OAuth tokens are obtained by librdkafka: set sasl.oauthbearer.method=oidc".into())
    }
}

impl ConsumerContext for Logged {}

/// Problems of single connections repeat while a broker is down and heal by themselves; only the rest is a warning.
pub(super) fn forward(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let passing = ["FAIL", "ERROR", "CONFWARN", "REQTMOUT", "SESSTMOUT"].contains(&facility);
    if !passing && (level as i32) <= (RDKafkaLogLevel::Warning as i32) {
        warn!(facility, "kafka client: {message}");
    } else {
        debug!(facility, "kafka client: {message}");
    }
}

/// The next message or error, if there is one already. Never waits: librdkafka waits by the wall clock, and would do so for
/// an hour if that is set back by an hour.
pub(super) fn poll_now<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<KafkaResult<BorrowedMessage<'_>>> {
    // An event that is neither, such as a line of librdkafka's log, looks like nothing.
    const OTHER_EVENTS: usize = 50;
    (0..OTHER_EVENTS).find_map(|_| consumer.poll(Duration::ZERO))
}

/// Runs a blocking call of librdkafka beside the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(LogError::Unavailable(format!("a call of the Kafka client did not end: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> KafkaConfig {
        let options = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        KafkaConfig { brokers: "localhost:9092".into(), replication_factor: 1, options, credentials: None }
    }

    #[test]
    fn options_on_which_exactness_rests_are_refused_by_name() {
        for name in options::FIXED {
            let refusal = Profile::new(&with(name, "1")).err().expect("refused").to_string();
            assert!(refusal.contains(name) && refusal.contains("lamina itself"), "{refusal}");
        }
    }

    #[test]
    fn options_that_are_secrets_or_do_something_else_are_refused_without_their_values() {
        for name in
            ["sasl.password", "ssl.key.password", "plugin.library.paths", "sasl.kerberos.kinit.cmd", "debug", "x"]
        {
            let refusal = Profile::new(&with(name, "hunter2")).err().expect("refused").to_string();
            assert!(refusal.contains(name) && !refusal.contains("hunter2"), "{refusal}");
        }
    }

    #[test]
    fn options_override_defaults_but_not_what_is_fixed() {
        let producer = Profile::new(&with("linger.ms", "50")).expect("accepted").producer();
        assert_eq!((producer.get("linger.ms"), producer.get("acks")), (Some("50"), Some("all")));
    }

    #[test]
    fn the_password_reaches_librdkafka_and_no_log() {
        let mut config = with("security.protocol", "sasl_ssl");
        config.credentials = Some(("lamina".to_owned(), "hunter2".to_owned()));
        assert!(!format!("{config:?}").contains("hunter2"));
        let producer = Profile::new(&config).expect("accepted").producer();
        assert_eq!((producer.get("sasl.username"), producer.get("sasl.password")), (Some("lamina"), Some("hunter2")));
    }
}
