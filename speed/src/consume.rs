//! Joins the consumer group for the topics of all sources, and joins again when those change.
//!
//! A member of a group reads a partition from one place only, but several sources may be fed by one topic. So sources are
//! spread over lanes, each with at most one source of every topic and a group of its own: `group`, `group.1`, ...
//! Nearly always there is one lane. If workers disagree on lanes while definitions change, the ledger still counts one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use lamina_core::{
    Offset,
    log::{Log, LogError, TopicPartition},
};
use lamina_metric::Catalog;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    Config, Deps, SpeedError, instruments,
    membership::{Left, Membership},
    retry::Backoff,
};

/// Pause before topics are looked for again, if there is none to consume.
const NO_TOPIC_PAUSE: Duration = Duration::from_secs(2);

/// Topic → the source that it feeds.
pub(crate) type Topics = BTreeMap<String, String>;

/// Runs one lane for each source of the topic that feeds most.
pub(crate) async fn run(deps: Arc<Deps>, config: Arc<Config>, stop: CancellationToken) -> Result<(), SpeedError> {
    let mut catalog = deps.catalog.clone();
    let mut catalog_open = true;
    let mut lanes = JoinSet::new();
    let mut started = 0;
    loop {
        let needed = (1..).find(|lane| topics_of(&catalog.borrow_and_update(), *lane).is_empty()).unwrap_or(1);
        while started < needed {
            lanes.spawn(run_lane(Arc::clone(&deps), Arc::clone(&config), started, stop.clone()));
            started += 1;
        }
        tokio::select! {
            biased;
            changed = catalog.changed(), if catalog_open => catalog_open = changed.is_ok(),
            ended = lanes.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(ended)) => ended?,
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Some(Err(_)) => {}
            }
        }
    }
}

/// Consumes one source of each topic, until `stop`.
async fn run_lane(
    deps: Arc<Deps>,
    config: Arc<Config>,
    lane: usize,
    stop: CancellationToken,
) -> Result<(), SpeedError> {
    let group = if lane == 0 { config.group.clone() } else { format!("{}.{lane}", config.group) };
    let mut backoff = Backoff::new();
    let mut seen = Seen::default();
    while !stop.is_cancelled() {
        let mut catalog = deps.catalog.clone();
        let wanted = topics_of(&catalog.borrow_and_update(), lane);
        let present = seen.look(&*deps.log, &wanted).await;
        if present.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // A closed channel gives an error at once: then the pause alone counts.
                Ok(()) = catalog.changed() => {}
                () = tokio::time::sleep(NO_TOPIC_PAUSE) => {}
            }
            continue;
        }
        let topics: Vec<String> = present.keys().cloned().collect();
        let consumer = match deps.log.join(&group, &topics).await {
            Ok(consumer) => consumer,
            Err(cause @ LogError::Refused(_)) => return Err(SpeedError::Join { group, cause }),
            Err(error) => {
                warn!(%error, group, "cannot join the consumer group yet");
                let _ = timeout(backoff.next(), stop.cancelled()).await;
                continue;
            }
        };
        info!(group, ?topics, "joined the consumer group");
        let joined = Joined { wanted, topics: present, holes: seen.holes.clone() };
        let membership = Membership::new(Arc::clone(&deps), Arc::clone(&config), lane, consumer, joined);
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

/// Of each topic the source that is `lane`th by name among those it feeds, counted from 0.
pub(crate) fn topics_of(catalog: &Catalog, lane: usize) -> Topics {
    let mut fed: BTreeMap<&str, usize> = BTreeMap::new();
    let mut topics = Topics::new();
    for source in catalog.sources.values().filter(|source| source.table.is_none()) {
        let before = fed.entry(&source.topic).or_default();
        if *before == lane {
            topics.insert(source.topic.clone(), source.name.clone());
        }
        *before += 1;
    }
    topics
}

/// A topic that a lane consumes.
#[derive(Clone, Debug)]
pub(crate) struct Consumed {
    pub(crate) source: String,
    /// The topic's own id: one of the same name that was made later is another topic.
    pub(crate) id: String,
}

/// What a member joins the group for.
pub(crate) struct Joined {
    /// Topics that the definitions name.
    pub(crate) wanted: Topics,
    /// Those of them that exist and may be consumed.
    pub(crate) topics: BTreeMap<String, Consumed>,
    pub(crate) holes: Holes,
}

/// Where a log that was refused for a while ended when that was over: below, offsets without a record may be records that
/// were compacted away.
pub(crate) type Holes = HashMap<TopicPartition, Offset>;

/// What a lane knows of its topics.
#[derive(Default)]
struct Seen {
    /// Topics that the log refuses.
    refused: BTreeSet<String>,
    holes: Holes,
}

impl Seen {
    /// Those of the topics that exist and may be consumed.
    async fn look(&mut self, log: &dyn Log, wanted: &Topics) -> BTreeMap<String, Consumed> {
        let mut present = BTreeMap::new();
        for (topic, source) in wanted {
            match self.look_at(log, topic).await {
                Ok(id) => drop(present.insert(topic.clone(), Consumed { source: source.clone(), id })),
                Err(LogError::NoTopic(_)) => warn!(source, topic, "topic does not exist yet"),
                Err(error @ LogError::Refused(_)) => {
                    if self.refused.insert(topic.clone()) {
                        error!(source, topic, %error, "topic is not consumed");
                    }
                }
                Err(error) => warn!(source, topic, %error, "topic cannot be looked up"),
            }
            instruments::refused(topic, self.refused.contains(topic));
        }
        present
    }

    /// The topic's id.
    async fn look_at(&mut self, log: &dyn Log, topic: &str) -> Result<String, LogError> {
        let found = log.topic(topic).await?;
        if self.refused.contains(topic) {
            let ends = log.spans(topic).await?.into_iter().map(|(at, span)| ((topic.to_owned(), at), span.end));
            self.holes.extend(ends);
            self.refused.remove(topic);
            info!(topic, "topic may be consumed again");
        }
        Ok(found.id)
    }
}
