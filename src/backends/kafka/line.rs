//! What runs between a consumer and the thread that polls for it: commands one way, events the other.
//!
//! # Invariants
//! - Events keep their order; none is lost while the consumer lives.
//! - Records in flight are bounded in bytes: above [`LIMIT`] the thread stops taking messages from librdkafka. Other
//!   events are always let through.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lamina_core::{
    ids::Offset,
    log::{LogError, Record, TopicPartition},
};
use tokio::sync::{mpsc, oneshot};

/// Bytes of records that may wait for the consumer.
const LIMIT: usize = 8 << 20;

/// Tells one request to deliver a partition from the next, so that what an older one brought can be told apart.
pub(super) type Flow = u64;

pub(super) enum Command {
    /// Deliver the partition from this offset on, until told otherwise.
    Deliver(TopicPartition, Offset, Flow),
    /// Deliver nothing of it.
    Hold(TopicPartition),
    Release(Vec<TopicPartition>),
    Commit(Vec<(TopicPartition, Offset)>),
    Leave(Option<oneshot::Sender<()>>),
}

pub(super) enum Told {
    Assigned(Vec<TopicPartition>),
    Revoked(Vec<TopicPartition>),
    Lost(Vec<TopicPartition>),
    Records { from: TopicPartition, flow: Flow, records: Vec<Record>, next: Offset, bytes: usize },
    Failed { from: TopicPartition, flow: Flow, error: LogError },
    Trouble(LogError),
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    /// Bytes of records told and not yet taken.
    bytes: usize,
    /// Whether librdkafka has something to say that it had not before.
    woken: bool,
}

#[derive(Default)]
struct Common {
    state: Mutex<State>,
    changed: Condvar,
}

impl Common {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's end.
pub(super) struct Inside {
    common: Arc<Common>,
    events: mpsc::UnboundedSender<Told>,
}

/// The consumer's end.
pub(super) struct Outside {
    common: Arc<Common>,
    events: mpsc::UnboundedReceiver<Told>,
}

pub(super) fn line() -> (Outside, Inside) {
    let common = Arc::new(Common::default());
    let (sender, receiver) = mpsc::unbounded_channel();
    (Outside { common: Arc::clone(&common), events: receiver }, Inside { common, events: sender })
}

impl Outside {
    pub(super) fn send(&self, command: Command) {
        self.common.state().commands.push_back(command);
        self.common.changed.notify_one();
    }

    /// The next event; `None` once the thread has ended.
    pub(super) async fn hear(&mut self) -> Option<Told> {
        let told = self.events.recv().await?;
        if let Told::Records { bytes, .. } = &told {
            let mut state = self.common.state();
            state.bytes = state.bytes.saturating_sub(*bytes);
            drop(state);
            self.common.changed.notify_one();
        }
        Some(told)
    }
}

impl Inside {
    pub(super) fn commands(&self) -> VecDeque<Command> {
        std::mem::take(&mut self.common.state().commands)
    }

    pub(super) fn tell(&self, told: Told) {
        if let Told::Records { bytes, .. } = &told {
            self.common.state().bytes += bytes;
        }
        // The consumer was dropped: a Leave is on its way.
        let _ = self.events.send(told);
    }

    pub(super) fn is_full(&self) -> bool {
        self.common.state().bytes >= LIMIT
    }

    /// What librdkafka calls when there is something to poll.
    pub(super) fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let common = Arc::clone(&self.common);
        move || {
            common.state().woken = true;
            common.changed.notify_one();
        }
    }

    /// Ends the next rest at once.
    pub(super) fn wake(&self) {
        self.common.state().woken = true;
    }

    /// Waits until there is something to poll or a command.
    pub(super) fn rest(&self, longest: Duration) {
        let idle = |state: &mut State| state.commands.is_empty() && !state.woken;
        let waited = self.common.changed.wait_timeout_while(self.common.state(), longest, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0.woken = false;
    }

    /// Waits until there is room or a command.
    pub(super) fn wait(&self, longest: Duration) {
        let idle = |state: &mut State| state.commands.is_empty() && state.bytes >= LIMIT;
        let guard = self.common.changed.wait_timeout_while(self.common.state(), longest, idle);
        drop(guard.unwrap_or_else(PoisonError::into_inner));
    }
}
