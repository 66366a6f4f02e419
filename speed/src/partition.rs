//! The task of one assigned partition: takes it over, folds, flushes, seals, and lets go.
//!
//! ```text
//! take over ──► hold: fold / flush / publish / seal / care ──► drained
//!     ▲            │ fenced, definitions changed, log cut off
//!     └────────────┘
//! ```
//!
//! # Invariants
//! - Everything in memory belongs to one hold and is dropped with it; the next hold begins at the ledger.
//! - After a seal was sent nothing is folded or written until its outcome is known.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use lamina_core::{
    Ledger, LedgerError, LogId, Offset, Partition, SpeedChunks, SpeedKey, Stamp, StoreError, log::LogError,
    writer::Writer,
};
use lamina_metric::Catalog;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    Config, Deps,
    dead_letters::DeadLetters,
    feed::{Command, Input, Intake, Order, feed},
    fold::{Standing, Workbench},
    instruments::Instruments,
    retry::Backoff,
    seal::Draft,
    takeover,
    views::FoldError,
};

/// Records that are decoded and folded at once.
const MICRO_BATCH: usize = 5_000;
/// How long a fenced worker waits before it believes the group again rather than the ledger.
const FENCED_PAUSE: Duration = Duration::from_secs(5);
/// Dead letters that force a flush.
const MAX_DEAD_BYTES: usize = 4 << 20;
/// Pause before reading on after the log failed.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// What a partition's task works on and with.
pub(crate) struct Place {
    pub(crate) deps: Arc<Deps>,
    pub(crate) config: Arc<Config>,
    pub(crate) source: String,
    pub(crate) topic: String,
    pub(crate) partition: Partition,
    /// Offsets below that hold no record may have held one.
    pub(crate) holes_below: Offset,
    /// Number of the task: orders of one that was replaced are not heard.
    pub(crate) task: u64,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) instruments: Instruments,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.source, self.partition)
    }
}

impl Place {
    pub(crate) fn order(&self, order: Order) {
        let partition = (self.topic.clone(), self.partition);
        // Without a consumer the task is about to be dropped too.
        let _ = self.commands.send(Command { partition, task: self.task, order });
    }

    pub(crate) async fn put_chunks(&self, chunks: &[(SpeedKey, Bytes)], stamp: Stamp) -> Result<(), StoreError> {
        SpeedChunks::put(&*self.deps.store, chunks, stamp).await
    }
}

/// Why a hold on a partition ends before it is drained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interrupt {
    #[error("another worker owns the partition")]
    Fenced,
    #[error("{0}")]
    Again(String),
    #[error(
        "the log is not the one that was read: {0}. It was cut off and written anew, as by an unclean leader election. \
         Nothing more of this partition is counted: make the topic again, or name another in the source"
    )]
    CutOff(String),
    #[error("the epoch cannot be folded")]
    Fold(#[from] FoldError),
    #[error("the ledger does not allow the change")]
    Ledger(#[source] LedgerError),
}

impl Interrupt {
    /// Whether offsets or events do not add up.
    fn is_violation(&self) -> bool {
        matches!(self, Self::Fold(FoldError::NotConserved { .. }) | Self::Ledger(LedgerError::NotConserved { .. }))
    }
}

impl From<LedgerError> for Interrupt {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Fenced { .. } => Self::Fenced,
            other => Self::Ledger(other),
        }
    }
}

/// After a pause, holds the partition, again and again, until `drain` and all is sealed.
pub(crate) async fn own(place: Arc<Place>, drain: CancellationToken, pause: Duration) {
    let _ = timeout(pause, drain.cancelled()).await;
    let mut backoff = Backoff::new();
    while !drain.is_cancelled() {
        let began = Instant::now();
        let Err(interrupt) = hold(&place, &drain).await else { return };
        if began.elapsed() > FENCED_PAUSE {
            backoff.reset();
        }
        let pause = match &interrupt {
            Interrupt::Fenced => {
                place.instruments.fenced();
                warn!(%place, "fenced: another worker owns the partition, everything of it is dropped");
                FENCED_PAUSE
            }
            Interrupt::Again(why) => {
                info!(%place, %why, "taking the partition over anew");
                backoff.next()
            }
            Interrupt::CutOff(_) => {
                place.instruments.cut_off();
                error!(%place, error = %interrupt, "partition is set aside");
                FENCED_PAUSE
            }
            Interrupt::Fold(_) | Interrupt::Ledger(_) => {
                if interrupt.is_violation() {
                    place.instruments.violated();
                }
                error!(%place, error = %chain(&interrupt), "partition failed; its open epoch is rebuilt from the log");
                backoff.next()
            }
        };
        let _ = timeout(pause, drain.cancelled()).await;
    }
}

async fn hold(place: &Arc<Place>, drain: &CancellationToken) -> Result<(), Interrupt> {
    let taken = tokio::select! {
        biased;
        () = drain.cancelled() => return Ok(()),
        taken = takeover::take_over(place) => taken?,
    };
    let mut hold = taken;
    hold.work(drain).await
}

/// One worker's hold on one partition.
pub(crate) struct Hold {
    pub(crate) place: Arc<Place>,
    pub(crate) log: LogId,
    /// The definitions as they are now.
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    /// The definitions that fold the open epoch.
    pub(crate) folding: Arc<Catalog>,
    pub(crate) writer: Writer,
    /// As it was last read or changed by us.
    pub(crate) ledger: Ledger,
    pub(crate) bench: Workbench,
    pub(crate) standing: Standing,
    pub(crate) intake: Intake,
    /// Where the log is to be read on: before the epoch's start while ids are remembered.
    pub(crate) fed: Offset,
    /// End of the mark that readers saw before the takeover.
    pub(crate) goal: Offset,
    pub(crate) dead_letters: DeadLetters,
    /// Offsets without a record that may have been lost.
    pub(crate) gap: Option<(Offset, Offset)>,
    pub(crate) draft: Option<Draft>,
    pub(crate) due: Due,
}

/// When what is to be done.
pub(crate) struct Due {
    pub(crate) flush: Instant,
    /// When the epoch's first record was folded.
    pub(crate) first_record: Option<Instant>,
    /// A seal that was delayed is not tried before.
    pub(crate) seal_not_before: Instant,
    pub(crate) seal_backoff: Backoff,
    pub(crate) care: Instant,
    pub(crate) catalog_closed: bool,
}

impl Due {
    pub(crate) fn new(config: &Config) -> Self {
        let now = Instant::now();
        Self {
            flush: now + config.flush_interval,
            first_record: None,
            seal_not_before: now,
            seal_backoff: Backoff::new(),
            care: now + care_interval(config),
            catalog_closed: false,
        }
    }
}

/// Once a minute, or often enough for short-lived chunks.
pub(crate) fn care_interval(config: &Config) -> Duration {
    Duration::from_secs(60).min(config.ttl / 10)
}

impl Hold {
    async fn work(&mut self, drain: &CancellationToken) -> Result<(), Interrupt> {
        loop {
            self.do_what_is_due().await?;
            let wake = self.next_due();
            let room = self.has_room();
            tokio::select! {
                biased;
                () = drain.cancelled() => return self.finish().await,
                changed = self.catalog.changed(), if !self.due.catalog_closed => self.due.catalog_closed = changed.is_err(),
                input = self.intake.next(MICRO_BATCH), if room => match input {
                    Some(input) => self.take_in(input).await?,
                    None => return Err(Interrupt::Again("the consumer let go of the partition".to_owned())),
                },
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    async fn take_in(&mut self, input: Input) -> Result<(), Interrupt> {
        match input {
            Input::Records { records, next } => {
                let fold = move |fold: &mut crate::fold::EpochFold| {
                    for records in records.chunks(MICRO_BATCH) {
                        let next = records.last().map_or(0, |record| record.offset + 1);
                        fold.absorb(records, next)?;
                    }
                    fold.absorb(&[], next)?;
                    Ok(fold.standing())
                };
                let standing = self.bench.run(fold).await?;
                self.fed = self.fed.max(next);
                self.stand(standing);
                Ok(())
            }
            Input::Failed(error) => self.survive(error).await,
        }
    }

    /// Notes where the fold stands now.
    fn stand(&mut self, standing: Standing) {
        self.place.instruments.records(self.standing.counts, standing.counts);
        self.place.instruments.buffered(standing.memory + self.intake.buffered());
        if standing.position > self.writer.position() {
            self.writer.folded_to(standing.position);
            self.due.first_record.get_or_insert_with(Instant::now);
            if self.standing.position == self.writer.marked() {
                self.due.flush = Instant::now() + self.place.config.flush_interval;
            }
        }
        self.standing = standing;
    }

    /// The log cannot be read on: skips what it lost, or begins again after a pause.
    async fn survive(&mut self, error: LogError) -> Result<(), Interrupt> {
        match error {
            LogError::OutOfRange { wanted, start, .. } if wanted < start => {
                self.lose(start).await?;
                self.fed = start;
            }
            LogError::OutOfRange { .. } | LogError::NoTopic(_) => {
                return Err(Interrupt::Again(format!("the topic was cut off or made anew: {error}")));
            }
            other => {
                warn!(place = %self.place, error = %other, "log cannot be read; trying again");
                tokio::time::sleep(LOG_PAUSE).await;
            }
        }
        let (feed, intake) = feed();
        self.intake = intake;
        self.place.order(Order::Start(self.fed, feed));
        Ok(())
    }

    /// Skips what the log no longer holds and records it.
    async fn lose(&mut self, start: Offset) -> Result<(), Interrupt> {
        let from = self.standing.position;
        if start <= from {
            return Ok(());
        }
        error!(place = %self.place, from, to = start, "records are gone from the log before they were read");
        self.place.instruments.lost(start - from);
        self.writer.lost((from, start));
        let skip = move |fold: &mut crate::fold::EpochFold| {
            fold.skip_lost(start);
            Ok(fold.standing())
        };
        let standing = self.bench.run(skip).await?;
        self.stand(standing);
        Ok(())
    }

    async fn do_what_is_due(&mut self) -> Result<(), Interrupt> {
        let now = Instant::now();
        if self.is_unflushed() && (now >= self.due.flush || self.standing.dead_bytes >= MAX_DEAD_BYTES) {
            self.flush().await?;
        }
        if !self.writer.is_live() {
            return self.publish().await;
        }
        let newer = self.catalog.borrow().revision > self.writer.epoch().revision;
        if newer && self.is_empty() {
            return Err(Interrupt::Again("definitions changed".to_owned()));
        }
        if now >= self.due.seal_not_before && (newer || self.seal_due().is_some_and(|due| now >= due)) {
            self.try_seal().await?;
        }
        if now >= self.due.care {
            let more = self.care().await?;
            // Work that remains goes on after the next flush, so that fresh records do not wait for it.
            let pause = if more { self.place.config.flush_interval } else { care_interval(&self.place.config) };
            self.due.care = Instant::now() + pause;
        }
        Ok(())
    }

    async fn try_seal(&mut self) -> Result<(), Interrupt> {
        match self.seal().await? {
            Ok(()) => self.due.seal_backoff.reset(),
            Err(delayed) => {
                let pause = self.due.seal_backoff.next();
                self.place.instruments.seal_delayed();
                let retry_in_ms = pause.as_millis() as u64;
                warn!(place = %self.place, error = %chain(&delayed), retry_in_ms, "cannot seal yet");
                self.due.seal_not_before = Instant::now() + pause;
            }
        }
        Ok(())
    }

    /// Seals what is published and lets go. Of a partition that is still being taken over, nothing counts yet.
    async fn finish(&mut self) -> Result<(), Interrupt> {
        let mut backoff = Backoff::new();
        while self.writer.is_live() && !self.is_empty() {
            if let Err(delayed) = self.seal().await? {
                warn!(place = %self.place, error = %chain(&delayed), "cannot seal yet while letting go");
                backoff.wait().await;
            }
        }
        debug!(place = %self.place, position = self.standing.position, "partition is drained");
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.standing.position == self.writer.epoch().start
    }

    fn is_unflushed(&self) -> bool {
        self.writer.marked() < self.standing.position
    }

    fn is_over_limit(&self) -> bool {
        let config = &self.place.config;
        self.standing.counts.records() >= config.epoch_max_records || self.standing.bytes >= config.epoch_max_bytes
    }

    /// Past the limit an epoch takes no more records until it is sealed; only what readers saw before a takeover must be
    /// folded in any case.
    fn has_room(&self) -> bool {
        !self.is_over_limit() || (!self.writer.is_live() && self.standing.position < self.goal)
    }

    /// When the epoch is to be sealed, if anything was consumed.
    fn seal_due(&self) -> Option<Instant> {
        let first = self.due.first_record?;
        Some(if self.is_over_limit() { first } else { first + self.place.config.epoch })
    }

    /// When [`Hold::do_what_is_due`] has something to do next, unless something comes in before. Nothing that it puts off may
    /// be among it, or the task would spin.
    fn next_due(&self) -> Option<Instant> {
        let flush = self.is_unflushed().then_some(self.due.flush);
        if !self.writer.is_live() {
            return flush;
        }
        let newer = self.catalog.borrow().revision > self.writer.epoch().revision;
        let seal = if newer { Some(self.due.seal_not_before) } else { self.seal_due() };
        let seal = seal.map(|due| due.max(self.due.seal_not_before));
        [flush, seal, Some(self.due.care)].into_iter().flatten().min()
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
