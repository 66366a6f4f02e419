//! Whatever happens to runs, batch chunks and uncovered epochs together are the fold of everything sealed.

use lamina_batch::{Outcome, Wanted};
use lamina_core::Clock;
use proptest::prelude::*;

use crate::{
    expiry,
    world::{DEFINITIONS, Event, Fate, HOUR, SECOND, START, World},
};

#[derive(Clone, Debug)]
enum Step {
    Seal(u32, Vec<Event>),
    Run,
    /// The store goes away after so many writes.
    Crash(usize),
    CrashRebuild(usize, i64, i64),
    Rebuild(i64, i64),
    /// A run whose chunk writes arrive only at the end of everything, and that publishes nothing.
    Zombie,
    ZombieRebuild(i64, i64),
    /// Some of the zombies' writes arrive: every so-manieth.
    Arrive(usize),
    Trim,
    /// So many hours pass.
    Later(i64),
    /// A run raises horizons, and then everything goes whose time to live has passed.
    Expire,
}

fn event() -> impl Strategy<Value = Event> {
    let fate = prop_oneof![
        12 => Just(Fate::Accepted),
        1 => Just(Fate::Filtered),
        1 => Just(Fate::Dead),
        1 => Just(Fate::Duplicate),
        1 => Just(Fate::Absent),
    ];
    // Mostly within ten minutes, some hours late or early.
    let at = prop_oneof![4 => 0..600_i64, 1 => -20_000..20_000_i64, 1 => -400_000..400_000_i64];
    (at, 0..5_u8, 0..3_u8, 0..6_u8, -1000..1000_i64, fate).prop_map(|(at, page, country, user, added, fate)| Event {
        at,
        page,
        country,
        user,
        added,
        fate,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (-400_000..400_000_i64, 1..300_000_i64).prop_map(|(from, long)| (from, from + long));
    prop_oneof![
        6 => (0..2_u32, prop::collection::vec(event(), 0..25)).prop_map(|(p, events)| Step::Seal(p, events)),
        3 => Just(Step::Run),
        2 => (0..60_usize).prop_map(Step::Crash),
        1 => ((0..60_usize), range()).prop_map(|(writes, (from, to))| Step::CrashRebuild(writes, from, to)),
        1 => range().prop_map(|(from, to)| Step::Rebuild(from, to)),
        2 => Just(Step::Zombie),
        1 => range().prop_map(|(from, to)| Step::ZombieRebuild(from, to)),
        1 => (1..4_usize).prop_map(Step::Arrive),
        1 => Just(Step::Trim),
    ]
}

fn step_in_time() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => step(),
        2 => prop_oneof![3 => 0..6_i64, 1 => 0..400_i64].prop_map(Step::Later),
        1 => Just(Step::Expire),
    ]
}

fn rebuild(from: i64, to: i64) -> Wanted {
    Wanted::Rebuild { from: Some(START + from * SECOND), to: Some(START + to * SECOND) }
}

async fn take(world: &World, step: Step, late: &mut Vec<lamina_core::BatchRow>) {
    let crash = |writes: usize, wanted: Wanted| async move {
        world.store.fail_after(Some(writes));
        let _ = world.run(wanted).await;
        world.store.fail_after(None);
    };
    match step {
        Step::Seal(partition, events) => drop(world.seal(partition, &events).await),
        Step::Run => drop(world.run(Wanted::Cover).await.unwrap()),
        Step::Rebuild(from, to) => drop(world.run(rebuild(from, to)).await.unwrap()),
        Step::Crash(writes) => crash(writes, Wanted::Cover).await,
        Step::CrashRebuild(writes, from, to) => crash(writes, rebuild(from, to)).await,
        Step::Zombie => late.extend(zombie(world, Wanted::Cover).await),
        Step::ZombieRebuild(from, to) => late.extend(zombie(world, rebuild(from, to)).await),
        Step::Arrive(every) => world.store.arrive(late.iter().step_by(every).cloned().collect()),
        Step::Trim => world.trim().await,
        Step::Later(hours) => world.clock.set(world.clock.now() + hours * HOUR),
        Step::Expire => {
            world.run(Wanted::Cover).await.unwrap();
            world.store.expire(world.clock.now());
        }
    }
}

/// Lets a run open its generations and write into the void, then takes the store away from it before it publishes.
async fn zombie(world: &World, wanted: Wanted) -> Vec<lamina_core::BatchRow> {
    let views = world.metric.views.len();
    world.store.hold();
    world.store.view_writes(Some(views));
    let _ = world.run(wanted).await;
    world.store.view_writes(None);
    world.store.held()
}

fn play(world: &World, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut late = Vec::new();
        for step in steps {
            let name = format!("{step:?}");
            take(world, step, &mut late).await;
            world.check(&name).await;
        }
        world.run(Wanted::Cover).await.unwrap();
        world.check("last run").await;
        world.store.arrive(late);
        world.check("zombies wrote").await;
        let again = world.run(Wanted::Cover).await.unwrap();
        assert!(matches!(again, Outcome::Unchanged), "{again:?}");
        world.run(Wanted::Rebuild { from: None, to: None }).await.unwrap();
        world.check("rebuilt whole").await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn chunks_and_uncovered_epochs_are_the_fold_of_everything(
        steps in prop::collection::vec(step(), 1..14), capped in any::<bool>(),
    ) {
        // Where no cap decides, epochs are folded under shared names.
        let wide = DEFINITIONS.replace("max_series = 5", "max_series = 100");
        play(&World::new(if capped { DEFINITIONS } else { &wide }), steps);
    }

    #[test]
    fn they_are_so_above_the_horizons_of_each_series(steps in prop::collection::vec(step_in_time(), 1..14)) {
        let world = expiry::world();
        play(&world, steps);
        expiry::nothing_is_stored_below_a_horizon_for_longer_than_needed(&world);
    }
}
