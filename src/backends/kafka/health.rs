//! What a member makes of the errors that librdkafka reports: which partition cannot be read on, and whether the cluster
//! answers.
//!
//! Errors come without the partition they concern, so that an offset out of range is found by comparing every flow with the
//! log's spans. Errors of single connections mean nothing by themselves; only "all brokers are down" does, and it is
//! said once, so the member asks again until a broker answers.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lamina_core::log::LogError;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use tracing::debug;

use super::{
    line::Told,
    member::Member,
    offsets::{Offsets, is_out_of_range},
};

/// How often a cluster that does not answer is asked, and the consumer told so.
const PROBE: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often other trouble is told at most.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Health {
    /// When to ask a cluster that was down.
    probe_at: Option<Instant>,
    /// When to look for partitions whose offset is out of range.
    check_at: Option<Instant>,
    told_at: Option<Instant>,
}

impl Health {
    /// Asks at the next opportunity whether the cluster answers.
    pub(super) fn doubt(&mut self) {
        self.probe_at.get_or_insert_with(Instant::now);
    }
}

impl Member {
    /// Takes an error of a poll in.
    ///
    /// # Errors
    /// If the consumer cannot go on.
    pub(super) fn problem(&mut self, error: KafkaError) -> KafkaResult<()> {
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(error);
        }
        if is_out_of_range(&error) {
            self.health.check_at = Some(Instant::now());
            return Ok(());
        }
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => self.health.doubt(),
            Some(
                Code::BrokerTransportFailure
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::PollExceeded
                | Code::RebalanceInProgress,
            ) => debug!(group = self.group, %error, "passing kafka error"),
            _ => {
                let topic = self.topics.first().map_or("", String::as_str);
                let error = self.profile.error("consuming", topic, &error);
                self.trouble(error);
            }
        }
        Ok(())
    }

    /// Does what is due.
    pub(super) fn look_after(&mut self) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
        if due(self.health.probe_at) {
            self.health.probe_at = match self.offsets.ping(PROBE_TIMEOUT) {
                Ok(()) => None,
                Err(error) => {
                    self.line.tell(Told::Trouble(error));
                    Some(Instant::now() + PROBE)
                }
            };
        }
        if due(self.health.check_at) {
            self.health.check_at = match self.check_ranges() {
                Ok(()) => None,
                Err(error) => {
                    self.trouble(error);
                    Some(Instant::now() + QUIET)
                }
            };
        }
    }

    /// Fails the flows whose offset the log does not hold. If there is none, the error has passed: all begin again where
    /// they stand.
    fn check_ranges(&mut self) -> Result<(), LogError> {
        let running = self.parts.iter_mut().filter(|(_, _, part)| part.flow.is_some());
        let topics: BTreeSet<_> = running.map(|(topic, _, _)| topic.to_owned()).collect();
        let mut failed = false;
        for topic in topics {
            let spans = self.offsets.spans(&topic)?;
            for (_, partition, part) in self.parts.iter_mut().filter(|(name, _, _)| *name == topic) {
                let (Some(flow), Some(span)) = (&part.flow, spans.get(&partition)) else { continue };
                if !(span.start..=span.end).contains(&flow.next) {
                    let error = Offsets::out_of_range(&topic, partition, flow.next, *span);
                    let from = (topic.clone(), partition);
                    self.line.tell(Told::Failed { from, flow: flow.id, error });
                    part.flow = None;
                    failed = true;
                }
            }
        }
        if !failed {
            for (_, _, part) in self.parts.iter_mut() {
                if let Some(flow) = &mut part.flow {
                    (flow.running, flow.tried) = (false, None);
                }
            }
        }
        Ok(())
    }

    fn trouble(&mut self, error: LogError) {
        if self.health.told_at.is_none_or(|at| at.elapsed() >= QUIET) {
            self.health.told_at = Some(Instant::now());
            self.line.tell(Told::Trouble(error));
        }
    }
}
