//! The rules of the seam by name, so that tests can switch each off and see a law break.
//!
//! In every build but a test's, `on` is the constant `true` and the compiler removes the question.

/// A rule that the laws rest on. Named after what holds while it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A takeover writes under an id of its own.
    NewIdAtTakeover,
    /// A takeover starts at the open epoch's start, not where its chunks end.
    RewindAtTakeover,
    /// A ledger changes only if it is still the one that the change was made for.
    CompareAndSet,
    /// A seal waits until all that was folded is flushed and marked.
    FlushBeforeSeal,
    /// A takeover is published only past the mark that was visible before.
    PublishPastTheGoal,
    /// After a seal was sent nothing more is written under that id.
    StopAfterSeal,
    /// Only epochs of the ledger count.
    LedgerDecides,
    /// Of an open epoch, only sequences up to its mark count.
    MarkBounds,
    /// A cut that is no epoch start of the ledger taken means: take everything again.
    RecheckCuts,
    /// It is not enough that the cut lies within what is served.
    RecheckStarts,
    /// A view that an epoch's mark does not name is not folded by it, which is not emptiness.
    UnnamedIsAnError,
    /// A chunk that is named and not there is an error, not emptiness.
    MissingIsAnError,
    /// Epochs above the published cut that left the ledger mean: take everything again.
    RecheckTrimmed,
    /// Speed is read before batch.
    SpeedBeforeBatch,
    /// A cached batch chunk serves only the published generation under which it was read.
    FreshBatchChunks,
    /// A batch run extends a chunk from the chunk's own cut.
    ExtendFromOwnCut,
    /// A rollback extends the chunks that it returns to from where they were left.
    RollbackExtends,
    /// A belated run's chunk loses against a later generation's.
    LaterGenerationWins,
    /// A view's cut moves only when every chunk of the run is written.
    PublishAfterChunks,
    /// Only the open generation may publish.
    OnlyTheOpenPublishes,
    /// Only epochs below every active view's published cut leave the ledger.
    TrimBelowPublished,
    /// The mark follows the acknowledgement of every chunk that it names.
    ChunksBeforeMark,
    /// The ledger changes only once the archive file is durable.
    FileBeforeSeal,
    /// A takeover reads one dedup window back.
    RememberOneWindow,
    /// Batch caps series as speed does: by epoch, by first appearance.
    CapLikeSpeed,
    /// An answer is read again unless it reaches the positions asked for.
    AtLeastIsChecked,
}

#[cfg(any(test, feature = "conformance"))]
mod switch {
    use std::cell::Cell;

    use super::Rule;

    thread_local!(static OFF: Cell<&'static [Rule]> = const { Cell::new(&[]) });

    /// Runs `body` with some rules switched off on this thread.
    pub fn without<T>(rules: &'static [Rule], body: impl FnOnce() -> T) -> T {
        OFF.set(rules);
        let result = body();
        OFF.set(&[]);
        result
    }

    pub(super) fn on(rule: Rule) -> bool {
        !OFF.get().contains(&rule)
    }
}

#[cfg(any(test, feature = "conformance"))]
pub use switch::without;

/// Whether a rule holds: always, except within `without` in a test.
#[inline]
pub fn on(rule: Rule) -> bool {
    #[cfg(any(test, feature = "conformance"))]
    return switch::on(rule);
    #[cfg(not(any(test, feature = "conformance")))]
    {
        let _ = rule;
        true
    }
}
