//! Hurts a running lamina (real processes, real Kafka and Cassandra) and checks every answer against the log.
//!
//! Imports nothing of lamina: what it expects, it computes by itself from what it reads in Kafka. See docs/chaos.md.

mod backends;
mod check;
mod event;
mod failure;
mod history;
mod kafka;
mod process;
mod proxy;
mod query;
mod readers;
mod report;
mod scenario;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{
    backends::Clusters,
    report::Report,
    scenario::{Run, SCENARIOS, Scenario},
};

/// Hurt a running lamina and check every answer.
#[derive(Parser)]
#[command(name = "lamina-chaos")]
struct Options {
    /// Scenarios, in this order; `all` is every one. Without any, lists them
    scenarios: Vec<String>,
    /// The binary to run
    #[arg(long, default_value = "target/debug/lamina")]
    lamina: PathBuf,
    /// The repository
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Where logs and results go
    #[arg(long, default_value = ".run/chaos")]
    out: PathBuf,
    /// Events per second, instead of the scenario's own
    #[arg(long)]
    rate: Option<u32>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the clusters running for the next time
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.scenarios.is_empty() {
        for scenario in SCENARIOS {
            println!("  {:24}{}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    let mut chosen: Vec<&'static Scenario> = Vec::new();
    for name in &options.scenarios {
        match name.as_str() {
            "all" => chosen.extend(SCENARIOS),
            name => match SCENARIOS.iter().find(|scenario| scenario.name == name) {
                Some(scenario) => chosen.push(scenario),
                None => {
                    eprintln!("error: no scenario is called {name}; without arguments they are listed");
                    return ExitCode::from(2);
                }
            },
        }
    }
    match run(&options, &chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// True if every scenario succeeded.
fn run(options: &Options, chosen: &[&'static Scenario]) -> failure::Outcome<bool> {
    use failure::Doing;
    failure::watch_signals()?;
    let absolute = |path: &PathBuf| std::path::absolute(path).doing(format!("find {}", path.display()));
    let out = absolute(&options.out)?.join(chrono::Local::now().format("%Y%m%d-%H%M%S").to_string());
    std::fs::create_dir_all(&out).doing(format!("make {}", out.display()))?;
    let lamina = absolute(&options.lamina)?;
    let mut clusters = Clusters::new(&absolute(&options.root)?, options.keep);
    let mut reports: Vec<Report> = Vec::new();
    for scenario in chosen {
        eprintln!("== {}: {}", scenario.name, scenario.about);
        let folder = out.join(scenario.name);
        std::fs::create_dir_all(&folder).doing(format!("make {}", folder.display()))?;
        let mut run = Run::new(scenario, &mut clusters, lamina.clone(), folder.clone(), options.rate, options.seed);
        let report = run.execute();
        println!("{}", report.row());
        if let Some(why) = &report.failure {
            eprintln!("FAILED {}: {why}\nlogs of the processes: {}", scenario.name, folder.display());
        }
        // The next one begins on fresh clusters: old tables fill memory, and nobody knows what a failure left behind.
        let fresh = report.failure.is_some() || !options.keep;
        reports.push(report);
        report::write(&out, &reports)?;
        if failure::interrupted() {
            break;
        }
        if fresh {
            clusters.reset()?;
        }
    }
    eprintln!("results: {}", out.join("results.md").display());
    Ok(reports.iter().all(|report| report.failure.is_none()))
}
