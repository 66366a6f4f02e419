//! Every kind of fault and transition, counted: what never happened was not tested.

use std::fmt;

macro_rules! happenings {
    ($($name:ident => $text:literal,)*) => {
        /// A fault, or a transition of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Happening { $($name),* }

        /// All of them, with what they are called.
        pub const HAPPENINGS: &[(Happening, &str)] = &[$((Happening::$name, $text)),*];
    };
}

happenings! {
    Crash => "process crashed",
    CrashAtCall => "process crashed at a call of store, log or archive",
    Pause => "process paused",
    Resume => "process went on after a pause (zombie)",
    Drained => "process stopped in order",
    SessionLost => "member thrown out of the group while alive",
    Rebalance => "partitions changed hands",
    DualOwnership => "two workers believed to own a partition",
    Takeover => "takeover published",
    Fenced => "owner's ledger change refused, another worker's epoch is open",
    Seal => "epoch sealed",
    SealUnknown => "seal answered `unknown`",
    PublishUnknown => "publish of a takeover answered `unknown`",
    ViewUnknown => "change of a view's state answered `unknown`",
    Uncommitted => "decided ledger change not yet seen at quorum",
    NotSent => "write lost on its way",
    AnswerLost => "write applied, its answer lost",
    Late => "write applied late",
    LateAfterCrash => "write applied after its process had died",
    LateChange => "compare-and-set decided late",
    Partial => "part of a write applied",
    Twice => "write applied twice",
    ReadFailed => "read failed",
    HalfWritten => "archive file half-written by a process that died",
    BatchKilledOpened => "batch killed after opening a generation",
    BatchKilledWriting => "batch killed between chunks",
    BatchKilledPublishing => "batch killed between publications",
    TwoLeaders => "two leaders at once",
    Abandoned => "generation abandoned",
    Published => "generation published",
    Touch => "epochs touched",
    Repair => "epoch rebuilt from its archive file",
    Expired => "speed chunk asked for after it expired",
    Trim => "epochs trimmed from a ledger",
    Reread => "reader took everything again, past all caches",
    Recompute => "recomputed range published",
    Rollback => "rollback published",
    Unused => "chunks removed that nothing refers to",
    Compacted => "archive files put together",
    Revision => "definitions changed",
    CatalogLag => "workers with different definitions",
    Lost => "log cut off below the consumer, lost range recorded",
    Gap => "offsets without a record",
    Poison => "event that does not decode",
    Duplicate => "duplicate event",
    LateEvent => "late event",
    Overflow => "answer with an overflow series",
    Horizon => "answer that begins at a horizon",
    Rule => "answer that a rule of expiry cuts",
    Incomplete => "answer that names what is missing",
    Unavailable => "query answered 503",
    AtLeast => "query with `at_least` answered",
    Ingested => "events sent over HTTP",
    Dead => "dead letter written",
}

/// How often each happened.
#[derive(Clone, Debug)]
pub struct Counts(Vec<u64>);

impl Default for Counts {
    fn default() -> Self {
        Self(vec![0; HAPPENINGS.len()])
    }
}

impl Counts {
    pub(crate) fn add(&mut self, what: Happening) {
        self.add_many(what, 1);
    }

    pub(crate) fn add_many(&mut self, what: Happening, times: u64) {
        self.0[what as usize] += times;
    }

    pub fn of(&self, what: Happening) -> u64 {
        self.0[what as usize]
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own += other);
    }

    /// What never happened.
    pub fn never(&self) -> Vec<&'static str> {
        HAPPENINGS.iter().filter(|(what, _)| self.of(*what) == 0).map(|(_, text)| *text).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HAPPENINGS.iter().try_for_each(|(what, text)| writeln!(f, "{:>10}  {text}", self.of(*what)))
    }
}
