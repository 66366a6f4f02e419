//! Faults of speed workers.

use std::time::Duration;

use rand::RngExt;

use super::Run;
use crate::{
    failure::{Failure, Outcome},
    world::{Plan, Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn steady(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(Plan { takeovers: false, ..run.plan() })?;
    run.faults.push("none".to_owned());
    run.in_world(world, |_, world| world.run_for(600 * SECOND))
}

pub(super) fn kill(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(run.plan())?;
    run.in_world(world, |run, world| {
        world.run_for(15 * SECOND)?;
        kills(world, 60)?;
        run.faults.push("60 x kill -9 of one of 3 workers".to_owned());
        Ok(())
    })
}

/// Kills one worker after another, and starts it again a little later.
pub(super) fn kills(world: &mut World, count: u32) -> Outcome {
    for _ in 0..count {
        let victim = world.random.random_range(0..world.speed.len());
        world.speed[victim].kill();
        let gone = world.random.random_range(0.1..2.0);
        world.run_for(SECOND.mul_f64(gone))?;
        world.speed[victim].start()?;
        let alive = world.random.random_range(2.0..5.0);
        world.run_for(SECOND.mul_f64(alive))?;
    }
    Ok(())
}

pub(super) fn pause_workers(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(run.plan())?;
    run.in_world(world, |run, world| {
        world.run_for(15 * SECOND)?;
        pauses(world, 20)?;
        run.faults.push("20 x SIGSTOP of one of 3 workers for 5 to 9 s (session time-out 3 s)".to_owned());
        Ok(())
    })
}

/// Stops one worker after another for longer than its session lasts.
pub(super) fn pauses(world: &mut World, count: u32) -> Outcome {
    for _ in 0..count {
        let victim = world.random.random_range(0..world.speed.len());
        world.speed[victim].signal("STOP")?;
        let stopped = world.random.random_range(5.0..9.0);
        world.run_for(SECOND.mul_f64(stopped))?;
        world.speed[victim].signal("CONT")?;
        let running = world.random.random_range(3.0..6.0);
        world.run_for(SECOND.mul_f64(running))?;
    }
    Ok(())
}

pub(super) fn scale(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(Plan { speed: 1, ..run.plan() })?;
    run.in_world(world, |run, world| {
        world.run_for(15 * SECOND)?;
        for number in 2..=4 {
            let another = world.another("speed", number)?;
            world.speed.push(another);
        }
        for _ in 0..30 {
            for worker in &mut world.speed[1..] {
                worker.start()?;
            }
            let running = world.random.random_range(4.0..7.0);
            world.run_for(SECOND.mul_f64(running))?;
            for at in 1..world.speed.len() {
                world.speed[at].signal("TERM")?;
            }
            for worker in &mut world.speed[1..] {
                if !worker.ended(40 * SECOND) {
                    return Err(Failure::Broken(format!(
                        "{} did not end within 40 s of SIGTERM: {}",
                        worker.name,
                        worker.log_tail()
                    )));
                }
            }
            world.run_for(2 * SECOND)?;
        }
        run.faults.push("30 x workers 1 -> 4 -> 1 (SIGTERM)".to_owned());
        Ok(())
    })
}
