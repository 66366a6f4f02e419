//! The simulation in CI: every law over a fixed number of seeds, every fault counted, the same seed the same trace, and
//! every mutant dead by the law that is named for it.

use std::{
    num::NonZeroUsize,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use lamina_sim::{Counts, MUTANTS, Report, run};

/// Seeds that each run of the tests goes through.
const SEEDS: u64 = 2_000;
/// Seeds that are run twice.
const TWICE: u64 = 12;
/// Seeds within which a mutant must die.
const HUNT: u64 = 150;

/// Runs `work` of every number below `count`, on all cores.
fn each(count: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let turn = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            work(at);
        }
    };
    let threads = thread::available_parallelism().map_or(2, NonZeroUsize::get);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(turn))));
}

fn holds(report: &Report) {
    if let Some(violation) = &report.violation {
        let seed = report.seed;
        panic!("{}: {}\nreplay with its trace: make simulate SEED={seed}", violation.law, violation.seen);
    }
}

#[test]
fn every_law_holds_over_all_seeds_and_every_fault_happened() {
    let counts = Mutex::new(Counts::default());
    each(SEEDS, |seed| {
        let report = run(seed, &[], false);
        holds(&report);
        assert!(report.steps >= 200, "seed {seed} ended after {} steps", report.steps);
        counts.lock().unwrap().merge(&report.counts);
    });
    let counts = counts.into_inner().unwrap();
    println!("{SEEDS} seeds:\n{counts}");
    assert!(counts.never().is_empty(), "never happened in {SEEDS} seeds: {:?}", counts.never());
}

#[test]
fn one_seed_fixes_everything() {
    each(TWICE, |seed| {
        let (first, second) = (run(seed, &[], false), run(seed, &[], false));
        assert_eq!(first.hash, second.hash, "seed {seed} goes another way the second time");
    });
}

#[test]
fn every_mutant_dies_by_its_law() {
    let survivors = Mutex::new(Vec::new());
    each(MUTANTS.len() as u64, |at| {
        let mutant = MUTANTS[at as usize];
        let mut hunted = mutant.from..mutant.from + HUNT;
        let broken = hunted.find_map(|seed| Some((seed, run(seed, mutant.off, false).violation?)));
        match broken {
            Some((seed, violation)) if violation.law == mutant.law => println!("{}: seed {seed}", mutant.name),
            other => survivors.lock().unwrap().push((mutant.name, mutant.law, other)),
        }
    });
    let survivors = survivors.into_inner().unwrap();
    assert!(survivors.is_empty(), "{survivors:#?}");
}
