//! Faults of a Cassandra cluster of three nodes, replication factor 3.

use std::time::Duration;

use super::Run;
use crate::{
    failure::{Failure, Outcome},
    world::{Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);
/// How soon a query is refused when two of three nodes are away.
const REFUSED_WITHIN_MS: u64 = 5_000;
/// How soon everything is served after they are back.
const BACK_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn kill(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(run.plan())?;
    run.in_world(world, |run, world| {
        world.run_for(10 * SECOND)?;
        for number in 0..9 {
            let node = format!("cassandra-{}", number % 3 + 1);
            run.clusters.run(&["kill", &node])?;
            world.run_for(5 * SECOND)?;
            run.clusters.run(&["start", &node])?;
            run.clusters.run(&["wait", &node])?;
            world.run_for(5 * SECOND)?;
        }
        run.faults.push("9 x kill -9 of a node, one after another".to_owned());
        Ok(())
    })
}

pub(super) fn pause(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(run.plan())?;
    run.in_world(world, |run, world| {
        world.run_for(10 * SECOND)?;
        for number in 0..6 {
            let node = format!("cassandra-{}", number % 3 + 1);
            run.clusters.run(&["pause", &node])?;
            let ran = world.run_for(60 * SECOND);
            run.clusters.run(&["resume", &node])?;
            ran?;
            world.run_for(12 * SECOND)?;
        }
        run.faults.push("6 x SIGSTOP of a node for 60 s".to_owned());
        Ok(())
    })
}

pub(super) fn quorum_lost(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(run.plan())?;
    run.in_world(world, |run, world| {
        world.run_for(15 * SECOND)?;
        for (away, back, what) in [("pause", "resume", "SIGSTOP"), ("kill", "start", "kill -9")] {
            let nodes = ["cassandra-2", "cassandra-3"];
            for node in nodes {
                run.clusters.run(&[away, node])?;
            }
            world.checker.fault();
            let refused = world.checker.figures().refused.values().sum::<u64>();
            let ran = world.run_for(45 * SECOND);
            for node in nodes {
                run.clusters.run(&[back, node])?;
            }
            ran?;
            let figures = world.checker.figures();
            if figures.refused.values().sum::<u64>() <= refused {
                return Err(Failure::Broken("nothing was refused while two of three nodes were away".to_owned()));
            }
            for node in nodes {
                run.clusters.run(&["wait", node])?;
            }
            let took = world.caught_up(BACK_WITHIN)?;
            run.faults.push(format!("two of three nodes away for 45 s ({what})"));
            run.notes.push(format!("{what}: caught up {:.1} s after the nodes answered", took.as_secs_f64()));
            world.run_for(10 * SECOND)?;
        }
        let figures = world.checker.figures();
        run.notes.push(format!("slowest refusal {:.1} s", figures.slowest_refusal_ms as f64 / 1e3));
        if figures.slowest_refusal_ms > REFUSED_WITHIN_MS || figures.refused.contains_key("timeout") {
            return Err(Failure::Broken(format!("a query was refused late: {figures:?}")));
        }
        Ok(())
    })
}
