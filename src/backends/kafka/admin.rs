//! Makes topics and says what they are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lamina_core::log::{LogError, Topic};
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::RDKafkaErrorCode,
};
use tracing::{info, warn};

use super::{
    Shared,
    client::{Logged, REQUEST_TIMEOUT, blocking},
    native,
};

/// How long a new topic may take until every partition has a leader.
const SETTLE: Duration = Duration::from_secs(15);

pub(super) type Admin = AdminClient<Logged>;

/// The topic as it is. Refuses compacted ones: they lose records that lamina must count.
pub(super) async fn topic(shared: &Arc<Shared>, name: &str) -> Result<Topic, LogError> {
    let found = describe(shared, name).await?;
    let settings = settings(shared, name).await?;
    if settings.policy.split(',').any(|policy| policy.trim() == "compact") {
        return Err(LogError::Refused(format!(
            "topic {name} has cleanup.policy={}: compaction removes records that must be counted; set it to delete",
            settings.policy
        )));
    }
    if settings.time != "LogAppendTime" && shared.warns_first(&found) {
        warn!(topic = name, "message.timestamp.type is {}: append times are what producers say", settings.time);
    }
    Ok(found)
}

/// `retention.ms` of the topic; -1 is for ever.
pub(super) async fn retention(shared: &Shared, name: &str) -> Result<Option<Duration>, LogError> {
    Ok(settings(shared, name).await?.retention_ms.parse().ok().map(Duration::from_millis))
}

pub(super) async fn describe(shared: &Arc<Shared>, name: &str) -> Result<Topic, LogError> {
    let (shared, name) = (Arc::clone(shared), name.to_owned());
    blocking(move || match native::describe(shared.admin.inner(), &name, REQUEST_TIMEOUT) {
        Ok(found) if found.id.is_empty() => {
            Err(LogError::Refused(format!("topic {name} has no id: lamina needs Kafka 2.8 or newer")))
        }
        Ok(found) => Ok(Topic { name, id: found.id, partitions: found.partitions }),
        Err(code) => match shared.profile.code("describing a topic", &name, code) {
            LogError::NoTopic(name) => Err(shared.offsets.gone(&name)),
            error => Err(error),
        },
    })
    .await
}

struct Settings {
    policy: String,
    time: String,
    retention_ms: String,
}

async fn settings(shared: &Shared, name: &str) -> Result<Settings, LogError> {
    let wanted = [ResourceSpecifier::Topic(name)];
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    let doing = "reading a topic's settings";
    let found = shared.admin.describe_configs(&wanted, &options).await;
    let found = found.map_err(|error| shared.profile.error(doing, name, &error))?;
    let resource = match found.into_iter().next() {
        Some(Ok(resource)) => resource,
        Some(Err(code)) => return Err(shared.profile.code(doing, name, code)),
        None => return Err(LogError::NoTopic(name.to_owned())),
    };
    let value = |key| resource.get(key).and_then(|entry| entry.value.clone()).unwrap_or_default();
    Ok(Settings {
        policy: value("cleanup.policy"),
        time: value("message.timestamp.type"),
        retention_ms: value("retention.ms"),
    })
}

/// Makes the topic unless it exists, and waits until it can be used.
pub(super) async fn ensure_topic(shared: &Arc<Shared>, name: &str, partitions: u32) -> Result<Topic, LogError> {
    match topic(shared, name).await {
        Err(LogError::NoTopic(_)) => create(shared, name, partitions).await?,
        other => return other,
    }
    let begun = Instant::now();
    loop {
        let usable = {
            let (shared, name) = (Arc::clone(shared), name.to_owned());
            blocking(move || {
                let (_, led) = shared.offsets.partitions(&name)?;
                if led { shared.offsets.spans(&name).map(|_| true) } else { Ok(false) }
            })
            .await
        };
        if matches!(usable, Ok(true)) {
            match topic(shared, name).await {
                Err(LogError::NoTopic(_)) => {}
                other => return other,
            }
        }
        if begun.elapsed() > SETTLE {
            return Err(LogError::Unavailable(format!(
                "topic {name} was made, but its partitions have no leaders yet"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn create(shared: &Shared, name: &str, partitions: u32) -> Result<(), LogError> {
    let count = i32::try_from(partitions).unwrap_or(i32::MAX);
    let topic = NewTopic::new(name, count, TopicReplication::Fixed(shared.replication_factor))
        .set("cleanup.policy", "delete")
        .set("message.timestamp.type", "LogAppendTime");
    let options = AdminOptions::new().request_timeout(Some(SETTLE)).operation_timeout(Some(REQUEST_TIMEOUT));
    let doing = format!(
        "making topic {name} with {partitions} partitions and replication factor {}",
        shared.replication_factor
    );
    let made = shared.admin.create_topics([&topic], &options).await;
    match made.map_err(|error| shared.profile.error(&doing, "", &error))?.into_iter().next() {
        None | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(shared.profile.code(&doing, "", code)),
        Some(Ok(_)) => {
            info!(topic = name, partitions, "made topic");
            Ok(())
        }
    }
}
