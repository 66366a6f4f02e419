//! Faults of batch, and what closed buckets must look like meanwhile.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::RngExt;

use super::Run;
use crate::{
    check::Reply,
    event::{Event, GRAIN},
    failure::{Failure, Outcome, until},
    process::Process,
    query::{Answer, Filter, Group, Layer, Query},
    world::{Plan, Totals, World},
};

const SECOND: Duration = Duration::from_secs(1);
/// A short lease, so that a standby takes over soon.
pub(super) const LEASE: &str = "lease = \"2s\"\n";
/// How long it may take until somebody leads.
const LEADS: Duration = Duration::from_secs(30);

pub(super) fn kill(run: &mut Run<'_>) -> Outcome<Totals> {
    let world = World::start(Plan { schedule: "*/3 * * * * *", more: LEASE.to_owned(), ..run.plan() })?;
    run.in_world(world, |run, world| {
        world.run_for(15 * SECOND)?;
        kills(world, 50, 7.0)?;
        pairs(world, 10)?;
        run.faults.push("50 x kill -9 of the leader".to_owned());
        run.faults.push("10 x two leaders at once (SIGSTOP beyond the lease, SIGCONT)".to_owned());
        world.run_for(10 * SECOND)?;
        run.notes.push(covered(world)?);
        Ok(())
    })
}

/// Waits until a process leads.
fn leader(world: &World) -> Outcome<usize> {
    let leads = |process: &Process| process.gauge(&world.client, "lamina_batch_leader") == Some(1.0);
    let mut found = None;
    until("a batch process leads", LEADS, || {
        found = world.batch.iter().position(leads);
        found.is_some()
    })?;
    found.ok_or_else(|| Failure::Broken("nobody leads batch".to_owned()))
}

/// Kills the leader at any moment of its work, at most so many seconds after it began to lead, again and again.
pub(super) fn kills(world: &mut World, count: u32, within: f64) -> Outcome {
    for _ in 0..count {
        let victim = leader(world)?;
        let works = world.random.random_range(0.0..within);
        world.run_for(SECOND.mul_f64(works))?;
        world.batch[victim].kill();
        let gone = world.random.random_range(0.1..1.0);
        world.run_for(SECOND.mul_f64(gone))?;
        world.batch[victim].start()?;
    }
    Ok(())
}

/// Lets a leader believe that it still leads after another took over.
pub(super) fn pairs(world: &mut World, count: u32) -> Outcome {
    for _ in 0..count {
        for process in &world.batch {
            process.wait_until_ready(&world.client)?;
        }
        let first = leader(world)?;
        let works = world.random.random_range(0.0..3.0);
        world.run_for(SECOND.mul_f64(works))?;
        world.batch[first].signal("STOP")?;
        let other = &world.batch[1 - first];
        let leads = || other.gauge(&world.client, "lamina_batch_leader") == Some(1.0);
        until("the other batch process leads", LEADS, leads)?;
        let alone = world.random.random_range(0.0..2.0);
        world.run_for(SECOND.mul_f64(alone))?;
        world.batch[first].signal("CONT")?;
        world.run_for(3 * SECOND)?;
    }
    Ok(())
}

/// How much of the log batch has published; nothing at all is a failure.
fn covered(world: &World) -> Outcome<String> {
    let cut: i64 = world.cut()?.values().sum();
    match cut {
        0 => Err(Failure::Broken("batch has published nothing".to_owned())),
        _ => Ok(format!("batch covers {cut} records")),
    }
}

const CLOSED: i64 = 200;
/// Queries that read them all.
const QUERIES: i64 = 10;
const CYCLES: i64 = 10;
/// Events in each closed bucket.
const FILLED: i64 = 40;

/// Buckets to which nothing is added any more answer the same for ever, wherever their values come from.
pub(super) fn closed_buckets(run: &mut Run<'_>) -> Outcome<Totals> {
    let plan = Plan { takeovers: false, serving: 2, schedule: "*/15 * * * * *", ..run.plan() };
    let first = (chrono::Utc::now().timestamp_millis() - 3 * 3_600_000).div_euclid(GRAIN) * GRAIN;
    let closed = first..first + CLOSED * GRAIN;
    let mut world = World::start_closed(plan, closed.clone())?;
    // The second one keeps nothing in memory, the third begins anew with each round.
    world.serving[1].kill();
    world.serving[1].set("LAMINA__SERVING__CACHE_MIB", "0");
    world.serving[1].start()?;
    world.serving[1].wait_until_ready(&world.client)?;
    let mut fresh = world.another("serving", 3)?;
    run.in_world(world, |run, world| {
        world.send(fill(first))?;
        world.caught_up(60 * SECOND)?;
        let begun = Instant::now();
        let (mut known, mut answers, mut rounds) = (HashMap::new(), 0_u64, 0);
        let from = world.generation()?;
        let mut to = from;
        while to < from + CYCLES {
            if begun.elapsed() > 540 * SECOND {
                return Err(Failure::Broken(format!("only {} batch cycles within 9 minutes", to - from)));
            }
            fresh.kill();
            fresh.start()?;
            fresh.wait_until_ready(&world.client)?;
            let urls = [world.serving[0].url.clone(), world.serving[1].url.clone(), fresh.url.clone()];
            for query in queries(first) {
                world.check()?;
                for url in &urls {
                    read_closed(world, url, &query, &mut known)?;
                    answers += 1;
                }
            }
            rounds += 1;
            to = world.generation()?;
        }
        run.faults.push(format!("{} batch cycles; caches on, off, and a fresh process {rounds} times", to - from));
        run.notes
            .push(format!("{CLOSED} closed buckets in {answers} answers, each identical to the first of its query"));
        Ok(())
    })
}

fn fill(first: i64) -> Vec<Event> {
    let event = |bucket: i64, number: i64| {
        let id = 0xc105_ed00_0000_0000 + (bucket * FILLED + number) as u64;
        let time = first + bucket * GRAIN + number * GRAIN / FILLED;
        Event { id, time, series: ((bucket * 7 + number) % 500) as u16, value: (bucket * 31 + number) as i32 }
    };
    (0..CLOSED).flat_map(|bucket| (0..FILLED).map(move |number| event(bucket, number))).collect()
}

/// All buckets by region, and some region's series in them.
fn queries(first: i64) -> Vec<Query> {
    let step = CLOSED / QUERIES * GRAIN;
    let range = |number: i64| (first + number * step, first + (number + 1) * step);
    let query = |(from, to), group, filter| Query { from, to, step: Some(GRAIN), group, filter, layer: Layer::Merged };
    let mut queries: Vec<Query> = (0..QUERIES).map(|at| query(range(at), Group::Region, Filter::None)).collect();
    queries.push(query(range(0), Group::Host, Filter::Region(3)));
    queries.push(query(range(QUERIES - 1), Group::Host, Filter::Region(5)));
    queries
}

/// Compared with the oracle, and byte by byte with the first answer.
fn read_closed(world: &World, url: &str, query: &Query, known: &mut HashMap<String, String>) -> Outcome {
    let Reply::Complete(Answer { text, .. }) = world.checker.ask(&world.client, url, query)? else {
        return Err(Failure::Broken(format!("{url} gives no complete answer to {:?}", query.parameters())));
    };
    let first = known.entry(format!("{:?}", query.parameters())).or_insert_with(|| text.clone());
    if *first != text {
        world.checker.wrong(format!("{url} {:?}: closed buckets were {first} and are {text}", query.parameters()));
    }
    Ok(())
}
