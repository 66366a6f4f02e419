//! Joins the consumer group for the topics of all sources, and joins again when those change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lamina_core::log::{Log, LogError};
use lamina_metric::Catalog;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    Config, Deps, SpeedError,
    membership::{Left, Membership},
    retry::Backoff,
};

/// Pause before topics are looked for again, if there is none to consume.
const NO_TOPIC_PAUSE: Duration = Duration::from_secs(2);

/// Topic → the source that it feeds.
pub(crate) type Topics = BTreeMap<String, String>;

pub(crate) async fn run(deps: Arc<Deps>, config: Arc<Config>, stop: CancellationToken) -> Result<(), SpeedError> {
    let mut backoff = Backoff::new();
    while !stop.is_cancelled() {
        let mut catalog = deps.catalog.clone();
        let wanted = topics_of(&catalog.borrow_and_update());
        let present = present(&*deps.log, &wanted).await;
        if present.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // A closed channel gives an error at once: then the pause alone counts.
                Ok(()) = catalog.changed() => {}
                () = tokio::time::sleep(NO_TOPIC_PAUSE) => {}
            }
            continue;
        }
        let topics: Vec<String> = present.keys().cloned().collect();
        let consumer = match deps.log.join(&config.group, &topics).await {
            Ok(consumer) => consumer,
            Err(cause @ LogError::Refused(_)) => return Err(SpeedError::Join { group: config.group.clone(), cause }),
            Err(error) => {
                warn!(%error, group = config.group, "cannot join the consumer group yet");
                let _ = timeout(backoff.next(), stop.cancelled()).await;
                continue;
            }
        };
        info!(group = config.group, ?topics, "joined the consumer group");
        let membership = Membership::new(Arc::clone(&deps), Arc::clone(&config), consumer, wanted, present);
        match membership.run(&stop).await {
            Left::Stopped => return Ok(()),
            Left::TopicsChanged => backoff.reset(),
            Left::Failed(error) => {
                error!(%error, "consumer failed; joining the group again");
                let _ = timeout(backoff.next(), stop.cancelled()).await;
            }
        }
    }
    Ok(())
}

/// The topics of all sources. Where two sources name one topic, the first of them by name is consumed.
pub(crate) fn topics_of(catalog: &Catalog) -> Topics {
    let mut topics = Topics::new();
    for source in catalog.sources.values() {
        let first = topics.entry(source.topic.clone()).or_insert_with(|| source.name.clone());
        if *first != source.name {
            error!(source = source.name, topic = source.topic, %first, "topic feeds another source already; this one is not consumed");
        }
    }
    topics
}

/// Those of the topics that exist.
async fn present(log: &dyn Log, wanted: &Topics) -> Topics {
    let mut present = Topics::new();
    for (topic, source) in wanted {
        match log.topic(topic).await {
            Ok(_) => drop(present.insert(topic.clone(), source.clone())),
            Err(LogError::NoTopic(_)) => warn!(source, topic, "topic does not exist yet"),
            Err(error) => warn!(source, topic, %error, "topic cannot be looked up"),
        }
    }
    present
}
