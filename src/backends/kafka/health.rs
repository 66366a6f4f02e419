//! What a member makes of the errors that librdkafka reports: which partition cannot be read on, and whether the cluster
//! answers.
//!
//! Errors come without the partition they concern, so that an offset out of range is found by comparing every flow with the
//! log's spans. Errors of single connections mean nothing by themselves, and not even "all brokers are down" says how long
//! that lasts, so the member asks by itself whether a broker answers. To ask also wakes librdkafka's own thread, which
//! sends the heartbeats and waits by the wall clock: set back by an hour, it would sleep for an hour.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lamina_core::log::LogError;
use rdkafka::{
    consumer::Consumer,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code},
};
use tracing::debug;

use super::{
    keeper,
    line::Told,
    member::Member,
    offsets::{Offsets, is_out_of_range},
};

/// How often the cluster is asked whether it answers, and the consumer told if not: well within a session.
const PROBE: Duration = Duration::from_secs(5);
/// How often other trouble is told at most.
const QUIET: Duration = Duration::from_secs(1);

pub(super) struct Health {
    /// When to ask whether the cluster answers.
    probe_at: Instant,
    /// When to look for partitions whose offset is out of range.
    check_at: Option<Instant>,
    told_at: Option<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self { probe_at: Instant::now() + PROBE, check_at: None, told_at: None }
    }
}

impl Health {
    /// Asks at the next opportunity whether the cluster answers.
    pub(super) fn doubt(&mut self) {
        self.probe_at = Instant::now();
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
        if self.health.probe_at <= Instant::now() {
            if let Err(error) = keeper::look_after(&self.profile, self.consumer.client()) {
                self.line.tell(Told::Trouble(error));
            }
            self.health.probe_at = Instant::now() + PROBE;
        }
        if self.health.check_at.is_some_and(|at| at <= Instant::now()) {
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
