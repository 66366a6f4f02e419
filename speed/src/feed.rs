//! The way of records from the consumer to a partition's task, and of orders back.
//!
//! A feed holds at most [`FULL`] bytes and the batch that filled it: then the consumer pauses the partition until the
//! task has worked it down to [`LOW`]. Every start gets a feed of its own, so records of before cannot be mistaken for
//! records of after.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use lamina_core::{
    Offset,
    log::{LogError, Record, TopicPartition},
};
use tokio::sync::mpsc;

/// Bytes at which a partition is paused.
pub(crate) const FULL: usize = 8 << 20;
/// Bytes at which it is resumed.
const LOW: usize = 2 << 20;
/// What a record costs besides its bytes.
const RECORD_OVERHEAD: usize = 96;

/// What the consumer says of a partition.
#[derive(Debug)]
pub(crate) enum Input {
    Records { records: Vec<Record>, next: Offset },
    Failed(LogError),
}

impl Input {
    fn bytes(&self) -> usize {
        match self {
            Self::Records { records, .. } => {
                let size = |record: &Record| record.payload.len() + record.key.as_ref().map_or(0, bytes::Bytes::len);
                records.iter().map(|record| size(record) + RECORD_OVERHEAD).sum()
            }
            Self::Failed(_) => 0,
        }
    }
}

/// The consumer's end.
#[derive(Debug)]
pub(crate) struct Feed {
    inputs: mpsc::UnboundedSender<Input>,
    buffered: Arc<AtomicUsize>,
}

/// The partition task's end.
#[derive(Debug)]
pub(crate) struct Intake {
    inputs: mpsc::UnboundedReceiver<Input>,
    buffered: Arc<AtomicUsize>,
    /// Taken out and put back.
    kept: Option<Input>,
}

/// What a partition's task wants of the consumer.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) partition: TopicPartition,
    /// The task that asks; one that was replaced is not heard.
    pub(crate) task: u64,
    pub(crate) order: Order,
}

#[derive(Debug)]
pub(crate) enum Order {
    /// Deliver from here on into this feed.
    Start(Offset, Feed),
    /// The partition is sealed up to here.
    Sealed(Offset),
}

/// A new, empty feed.
pub(crate) fn feed() -> (Feed, Intake) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let buffered = Arc::new(AtomicUsize::new(0));
    let intake = Intake { inputs: receiver, buffered: Arc::clone(&buffered), kept: None };
    (Feed { inputs: sender, buffered }, intake)
}

impl Feed {
    /// Hands an input over; false if nobody takes it any more.
    pub(crate) fn send(&self, input: Input) -> bool {
        self.buffered.fetch_add(input.bytes(), Ordering::Relaxed);
        self.inputs.send(input).is_ok()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.buffered.load(Ordering::Relaxed) >= FULL
    }

    pub(crate) fn is_low(&self) -> bool {
        self.buffered.load(Ordering::Relaxed) <= LOW
    }
}

impl Intake {
    /// The next input; several batches of records become one of about `most` records. `None` if the consumer let go.
    pub(crate) async fn next(&mut self, most: usize) -> Option<Input> {
        let first = match self.kept.take() {
            Some(kept) => kept,
            None => self.receive().await?,
        };
        let Input::Records { mut records, mut next } = first else { return Some(first) };
        while records.len() < most {
            match self.inputs.try_recv() {
                Ok(input) => {
                    self.buffered.fetch_sub(input.bytes(), Ordering::Relaxed);
                    match input {
                        Input::Records { records: more, next: further } => {
                            records.extend(more);
                            next = further;
                        }
                        failed => {
                            self.kept = Some(failed);
                            break;
                        }
                    }
                }
                Err(_) => break,
            }
        }
        Some(Input::Records { records, next })
    }

    async fn receive(&mut self) -> Option<Input> {
        let input = self.inputs.recv().await?;
        self.buffered.fetch_sub(input.bytes(), Ordering::Relaxed);
        Some(input)
    }

    /// Bytes that wait.
    pub(crate) fn buffered(&self) -> usize {
        self.buffered.load(Ordering::Relaxed)
    }
}
