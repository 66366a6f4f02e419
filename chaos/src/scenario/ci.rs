//! A bit of everything within three minutes, on one broker and one node.

use std::time::Duration;

use super::{Run, batch, speed};
use crate::{
    failure::Outcome,
    world::{Plan, Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn slice(run: &mut Run<'_>) -> Outcome<Totals> {
    let plan = Plan { speed: 2, epoch: "5s", schedule: "*/5 * * * * *", more: batch::LEASE.to_owned(), ..run.plan() };
    let world = World::start(plan)?;
    run.in_world(world, |run, world| {
        world.run_for(10 * SECOND)?;
        speed::kills(world, 6)?;
        speed::pauses(world, 2)?;
        batch::kills(world, 5, 3.0)?;
        batch::pairs(world, 2)?;
        for number in 0..2 {
            world.serving[number].kill();
            world.serving[number].start()?;
            world.run_for(3 * SECOND)?;
        }
        let all = ["6 x kill speed", "2 x pause speed", "5 x kill batch", "2 x two leaders", "2 x restart serving"];
        run.faults.extend(all.map(str::to_owned));
        Ok(())
    })
}
