//! Runs seeds: `simulate [--from N] [--seeds N]`, or one with its trace: `simulate --seed N`.

use std::{
    env,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use lamina_sim::{Counts, MUTANTS, Report, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    if let Some(seed) = number("--seed") {
        let report = run(seed, &[], true);
        report.trace.iter().for_each(|line| println!("{line}"));
        print!("{}", report.counts);
        return verdict(&report);
    }
    if let Some(seeds) = number("--mutants") {
        return hunt(seeds);
    }
    let (from, seeds) = (number("--from").unwrap_or(0), number("--seeds").unwrap_or(1000));
    many(from, seeds)
}

/// Switches each rule off until a law breaks.
fn hunt(seeds: u64) -> ExitCode {
    let next = AtomicU64::new(0);
    let worker = || {
        while let Some(mutant) = MUTANTS.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let began = Instant::now();
            let mut hunted = mutant.from..mutant.from + seeds;
            let found = hunted.find_map(|seed| Some((seed, run(seed, mutant.off, false).violation?)));
            let text = found.map_or("survives".to_owned(), |(seed, violation)| {
                let seen: String = violation.seen.chars().take(100).collect();
                format!("seed {seed}: {} ({seen})", violation.law)
            });
            println!("{:<22} {:>6.1} s  {text}", mutant.name, began.elapsed().as_secs_f64());
        }
    };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
    ExitCode::SUCCESS
}

fn verdict(report: &Report) -> ExitCode {
    match &report.violation {
        None => {
            eprintln!("seed {}: {} steps, every law holds; trace {:016x}", report.seed, report.steps, report.hash);
            ExitCode::SUCCESS
        }
        Some(violation) => {
            eprintln!("seed {}: {} does not hold: {}", report.seed, violation.law, violation.seen);
            eprintln!("replay: make simulate SEED={}", report.seed);
            ExitCode::FAILURE
        }
    }
}

fn many(from: u64, seeds: u64) -> ExitCode {
    let began = Instant::now();
    let (next, failed) = (AtomicU64::new(from), AtomicBool::new(false));
    let (counts, steps) = (Mutex::new(Counts::default()), AtomicU64::new(0));
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return;
            }
            let report = run(seed, &[], false);
            counts.lock().unwrap_or_else(PoisonError::into_inner).merge(&report.counts);
            steps.fetch_add(report.steps, Ordering::Relaxed);
            if report.violation.is_some() {
                failed.store(true, Ordering::Relaxed);
                verdict(&report);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
    let (counts, seconds) =
        (counts.into_inner().unwrap_or_else(PoisonError::into_inner), began.elapsed().as_secs_f64());
    print!("{counts}");
    println!("{seeds} seeds, {} steps, {:.1} seeds/s", steps.into_inner(), seeds as f64 / seconds);
    for never in counts.never() {
        println!("never happened: {never}");
    }
    if failed.into_inner() || !counts.never().is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
