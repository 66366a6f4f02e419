//! How far speed has come with each partition of a source.

use std::{collections::BTreeMap, time::Duration};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lamina_core::{
    Consistency, LogId, Micros, Offset, Partition,
    log::{LogError, Span},
    read,
    snapshot::Taken,
};
use lamina_metric::Source;
use serde::Serialize;
use utoipa::ToSchema;

use super::movements::{PartitionState, Stand};
use crate::{app::App, instant::millis, instruments, problem::Problem, query::partitions_of};

/// Partitions that are asked about at once.
const PARALLEL: usize = 16;

/// A source as speed has folded it.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) taken: BTreeMap<Partition, Taken>,
    pub(super) partitions: Vec<PartitionProgress>,
    /// Why the log refuses the topic, if it does.
    pub(super) refused: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct PartitionProgress {
    pub(super) partition: Partition,
    /// Next offset to be folded.
    position: Offset,
    /// Next offset of the log.
    end: Offset,
    lag_records: u64,
    /// How much of what the log keeps lies before the oldest unread record, from 0 (it goes next) to 1; null if nothing is
    /// unread or the log forgets nothing.
    retention_left: Option<f64>,
    state: PartitionState,
    #[serde(skip)]
    lag_ms: i64,
    /// For how long it was seen at this position, with something unread.
    #[serde(skip)]
    standing_ms: i64,
}

impl Progress {
    /// Age by append time of the oldest unread record, else 0.
    pub(super) fn lag_ms(&self) -> i64 {
        self.furthest_behind().map_or(0, |partition| partition.lag_ms)
    }

    pub(super) fn furthest_behind(&self) -> Option<&PartitionProgress> {
        self.partitions.iter().max_by_key(|partition| partition.lag_ms)
    }
}

impl PartitionProgress {
    /// Takes the age of the oldest unread record into account, of a log that keeps records for so long.
    fn age(&mut self, kept: Duration) {
        if self.lag_records > 0 {
            let left = 1.0 - self.lag_ms as f64 / (kept.as_millis() as f64).max(1.0);
            self.retention_left = Some(self.retention_left.unwrap_or(1.0).min(left).max(0.0));
        }
    }

    /// What keeps it, if it is stalled.
    pub(super) fn stalled(&self) -> Option<String> {
        let Self { partition, position, lag_records, standing_ms, state, .. } = self;
        (*state == PartitionState::Stalled).then(|| {
            format!(
                "partition {partition} is stalled: {lag_records} records from {position} on are unread, and none was \
                 folded for {standing_ms} ms; is a speed worker running, and what does its log say?"
            )
        })
    }

    /// How late it is, in words.
    pub(super) fn lateness(&self) -> String {
        let Self { partition, state, lag_ms, .. } = self;
        let how = match state {
            PartitionState::CatchingUp => ", which is catching up",
            PartitionState::Lagging => ", which is not catching up",
            _ => "",
        };
        format!("the oldest unread event is {lag_ms} ms old, in partition {partition}{how}")
    }

    /// How much retention is left, if it is little.
    pub(super) fn little_retention(&self, limit: f64) -> Option<f64> {
        self.retention_left.filter(|left| *left < limit)
    }
}

/// # Errors
/// If the log or the store does not answer.
pub(super) async fn of(app: &App, source: &Source, now: Micros) -> Result<Progress, Problem> {
    if source.table.is_some() {
        return Ok(Progress { taken: BTreeMap::new(), partitions: Vec::new(), refused: None });
    }
    let refused = match app.topics.find(&source.topic).await {
        Err(LogError::Refused(why)) => Some(why),
        _ => None,
    };
    let partitions = match partitions_of(app, source).await {
        Ok(partitions) if !partitions.all.is_empty() => partitions,
        Err(problem) if refused.is_none() => return Err(problem),
        _ => return Ok(Progress { taken: BTreeMap::new(), partitions: Vec::new(), refused }),
    };
    // Ledgers first: what is appended in between counts as unread, never as negative.
    let ledgers: Vec<_> =
        partitions.all.iter().map(|&partition| taken(app, &partitions.log, partition).boxed()).collect();
    let taken: BTreeMap<_, _> = stream::iter(ledgers).buffered(PARALLEL).try_collect().await?;
    let spans = app.deps.log.spans(&source.topic).await?;
    let each = spans.into_iter().map(|(partition, span)| {
        let marked = taken.get(&partition).map_or(0, position);
        of_partition(app, source, partition, marked, span, now).boxed()
    });
    let each: Vec<_> = each.collect();
    let mut partitions: Vec<PartitionProgress> = stream::iter(each).buffered(PARALLEL).try_collect().await?;
    if partitions.iter().any(|partition| partition.lag_records > 0)
        && let Some(kept) = app.deps.log.retention(&source.topic).await?
    {
        partitions.iter_mut().for_each(|partition| partition.age(kept));
    }
    let states = partitions.iter().map(|partition| partition.state);
    instruments::partition_states(&source.name, &states.collect::<Vec<_>>());
    Ok(Progress { taken, partitions, refused })
}

async fn taken(app: &App, log: &LogId, partition: Partition) -> Result<(Partition, Taken), Problem> {
    let store = &*app.deps.store;
    let ledger = store.load(log, partition, Consistency::Quorum).await?;
    let mark = read::open_mark(store, log, partition, &ledger).await?;
    Ok((partition, Taken { ledger, mark }))
}

fn position(taken: &Taken) -> Offset {
    taken.ledger.sealed_end().max(taken.mark.as_ref().map_or(0, |mark| mark.end))
}

async fn of_partition(
    app: &App,
    source: &Source,
    partition: Partition,
    marked: Offset,
    span: Span,
    now: Micros,
) -> Result<PartitionProgress, Problem> {
    let position = marked.max(span.start);
    let lag_records = span.end.saturating_sub(position);
    let lag_ms = if lag_records == 0 { 0 } else { age_at(app, source, partition, position, now).await? };
    let (key, stand) = ((source.topic.clone(), partition), Stand { position, lag_records, lag_ms });
    let (state, standing_ms) = app.movements.look(key, stand, &app.config.freshness, now);
    // What was deleted already tells how deletion goes, whether by age or by size.
    let kept = (span.end - span.start) as f64;
    let retention_left = (lag_records > 0 && span.start > 0).then(|| (position - span.start) as f64 / kept);
    Ok(PartitionProgress {
        partition,
        position,
        end: span.end,
        lag_records,
        retention_left,
        state,
        lag_ms,
        standing_ms,
    })
}

/// Age by append time of the first record at or after `position`.
async fn age_at(
    app: &App,
    source: &Source,
    partition: Partition,
    position: Offset,
    now: Micros,
) -> Result<i64, Problem> {
    let (records, _) = app.deps.log.read(&source.topic, partition, position, 1).await?;
    Ok(records.first().map_or(0, |record| millis(now - record.appended_at).max(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_retention_is_judged_by_age_and_by_what_was_deleted() {
        let left = |lag_records, lag_ms, by_offset| {
            let (partition, position, end, state) = (0, 10, 20, PartitionState::Running);
            let mut progress = PartitionProgress {
                partition,
                position,
                end,
                lag_records,
                retention_left: by_offset,
                state,
                lag_ms,
                standing_ms: 0,
            };
            progress.age(Duration::from_secs(100));
            progress.little_retention(0.25)
        };
        assert_eq!(left(5, 50_000, None), None, "half is left");
        assert_eq!(left(5, 80_000, None).map(|left| (left * 100.0).round()), Some(20.0));
        assert_eq!(left(5, 500_000, None), Some(0.0));
        assert_eq!(left(5, 10_000, Some(0.1)), Some(0.1), "size-based deletion comes first");
        assert_eq!(left(0, 0, None), None, "nothing is unread");
    }
}
