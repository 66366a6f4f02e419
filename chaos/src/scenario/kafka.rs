//! Faults of a Kafka cluster of three brokers, replication factor 3, two in sync.

use std::time::Duration;

use super::Run;
use crate::{
    failure::Outcome,
    world::{Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn kill(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(run.plan())?;
    run.in_world(world, |run, world| {
        world.run_for(10 * SECOND)?;
        for number in 0..10 {
            let node = format!("kafka-{}", number % 3 + 1);
            run.clusters.run(&["kill", &node])?;
            world.run_for(8 * SECOND)?;
            run.clusters.run(&["start", &node])?;
            run.clusters.run(&["wait", &node])?;
            world.run_for(10 * SECOND)?;
        }
        run.faults.push("10 x kill -9 of a broker, one after another".to_owned());
        Ok(())
    })
}
