//! Deterministic simulation: the real speed, batch and serving code over a simulated log, store, archive and clock.
//!
//! A seed is one thread. Every simulated process has a runtime of its own, whose time stands until the driver lets it go
//! on; every call out of it asks the world, which delays, fails, loses, repeats or reorders it as the seed says, within
//! what Kafka, Cassandra and an object store may do. One seed fixes everything, so a failure replays.
//!
//! Flow of a seed: `plan` → `driver` (steps: producers, readers, time, nemesis) → `check` (answers against `oracle`) →
//! peace → the final account.
//!
//! # Invariants
//! - `oracle` uses none of lamina's code: it folds the raw records of the log.
//! - Faults stay within what the real systems may do: whatever a law says of them holds there too.

mod archive;
mod check;
mod counts;
mod determinism;
mod driver;
mod events;
mod log;
mod mutants;
mod oracle;
mod plan;
mod port;
mod process;
mod query;
mod random;
mod store;
mod world;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    panic,
    sync::{
        Mutex, Once, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use lamina_core::{
    offload,
    rules::{self, Rule},
};

pub use counts::{Counts, HAPPENINGS, Happening};
pub use mutants::{MUTANTS, Mutant};
pub use world::Violation;

/// What one seed came to.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub steps: u64,
    pub counts: Counts,
    /// Hash of everything that happened, in order.
    pub hash: u64,
    pub violation: Option<Violation>,
    /// What happened, if it was asked for.
    pub trace: Vec<String>,
}

thread_local!(static PANIC: RefCell<Option<String>> = const { RefCell::new(None) });

thread_local!(static SEED: Cell<u64> = const { Cell::new(0) });

/// How long a seed may take; most take a tenth of a second.
const LONGEST: Duration = Duration::from_secs(120);

/// What seeds panicked with last.
static BROKEN: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());

/// What a process panicked with on this thread since the last call.
pub(crate) fn take_panic() -> Option<String> {
    PANIC.take()
}

/// Panics of simulated processes are noted instead of printed.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if determinism::is_simulating() {
                PANIC.set(Some(info.to_string()));
                BROKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(SEED.get(), info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

/// Runs one seed, with some rules of the real code switched off.
pub fn run(seed: u64, without: &'static [Rule], keep_trace: bool) -> Report {
    note_panics();
    process::measurements();
    let body = move || {
        SEED.set(seed);
        determinism::begin(seed, plan::BEGIN);
        let report = offload::inline(|| rules::without(without, || simulate(seed, keep_trace)));
        determinism::end();
        report
    };
    let thread = thread::Builder::new().name(format!("seed {seed}")).stack_size(8 << 20);
    let (ended, end) = mpsc::channel();
    let thread = thread.spawn(move || ended.send(body()));
    let broken = |law, seen| {
        let (counts, trace) = Default::default();
        Report { seed, steps: 0, counts, hash: 0, violation: Some(Violation { law, seen }), trace }
    };
    match thread.map(|_| end.recv_timeout(LONGEST)) {
        Ok(Ok(report)) => report,
        // It goes on for as long as the process does.
        Ok(Err(RecvTimeoutError::Timeout)) => broken(
            "time-goes-on",
            format!("the seed has not ended after {LONGEST:?}: a task spins, and its clock stands still"),
        ),
        Ok(Err(RecvTimeoutError::Disconnected)) | Err(_) => {
            let seen = BROKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&seed).unwrap_or_default();
            broken("the-simulation-itself-works", seen)
        }
    }
}

fn simulate(seed: u64, keep_trace: bool) -> Report {
    let mut driver = driver::Driver::new(seed, keep_trace);
    let steps = driver.run();
    let mut world = driver.world.lock();
    let (counts, violation, hash) = (world.counts.clone(), world.violation.clone(), world.trace.hash());
    Report { seed, steps, counts, hash, violation, trace: world.trace.take() }
}
