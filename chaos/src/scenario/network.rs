//! Connections to the log and the store cut, delayed and reset, through toxiproxy.

use std::time::Duration;

use rand::RngExt;
use serde_json::json;

use super::Run;
use crate::{
    backends::Addresses,
    failure::{Failure, Outcome},
    proxy::Toxiproxy,
    world::{Plan, Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 8;

pub(super) fn disturb(run: &mut Run<'_>) -> Outcome<Totals> {
    let plan = run.plan();
    let proxy = Toxiproxy::start(&run.clusters.root)?;
    let place = |addresses: &[String]| {
        let first = addresses.first().and_then(|address| address.rsplit_once(':'));
        let parsed = first.and_then(|(host, port)| Some((host.to_owned(), port.parse::<u16>().ok()?)));
        parsed.ok_or_else(|| Failure::Broken(format!("{addresses:?} names no port")))
    };
    // The broker has a listener for the proxy, which it advertises as the proxy's address.
    let (host, port) = place(&plan.addresses.kafka)?;
    let kafka = format!("{host}:{}", port + 3);
    proxy.forward("kafka", &kafka, &format!("{host}:{}", port + 2))?;
    let (host, port) = place(&plan.addresses.cassandra)?;
    let cassandra = format!("{host}:{}", port + 1);
    proxy.forward("cassandra", &cassandra, &format!("{host}:{port}"))?;
    let through = Some(Addresses { kafka: vec![kafka], cassandra: vec![cassandra] });
    let world = World::start(Plan { through, ..plan })?;
    run.in_world(world, |run, world| {
        world.run_for(10 * SECOND)?;
        for _ in 0..ROUNDS {
            for name in ["cassandra", "kafka"] {
                cut(world, &proxy, name)?;
                slow(world, &proxy, name)?;
                reset(world, &proxy, name)?;
            }
        }
        for what in ["cut for 1 to 6 s", "delayed by 400 ms for 6 s", "reset every 0 to 300 ms for 5 s"] {
            run.faults.push(format!("{ROUNDS} x Cassandra and {ROUNDS} x Kafka {what}"));
        }
        Ok(())
    })
}

fn cut(world: &mut World, proxy: &Toxiproxy, name: &str) -> Outcome {
    proxy.enable(name, false)?;
    let length = world.random.random_range(1.0..6.0);
    world.run_for(SECOND.mul_f64(length))?;
    proxy.enable(name, true)?;
    world.run_for(5 * SECOND)
}

fn slow(world: &mut World, proxy: &Toxiproxy, name: &str) -> Outcome {
    proxy.poison(name, "latency", &json!({"latency": 400, "jitter": 200}))?;
    world.run_for(6 * SECOND)?;
    proxy.cure(name, "latency")?;
    world.run_for(3 * SECOND)
}

fn reset(world: &mut World, proxy: &Toxiproxy, name: &str) -> Outcome {
    for _ in 0..5 {
        let after = world.random.random_range(0..300);
        proxy.poison(name, "reset_peer", &json!({"timeout": after}))?;
        world.run_for(SECOND / 2)?;
        proxy.cure(name, "reset_peer")?;
        world.run_for(SECOND / 2)?;
    }
    world.run_for(5 * SECOND)
}
