//! Returning to what a recompute replaced.

use std::time::Duration;

use lamina_batch::{BatchError, Config, Outcome, Wanted};
use lamina_core::Micros;

use crate::{
    runs::events,
    world::{DEFINITIONS, HOUR, START, World},
};

const NOON: Micros = START + 12 * HOUR;
const ALL: Wanted = Wanted::Rebuild { from: None, to: None };

async fn bases(world: &World) -> Vec<(std::ops::Range<Micros>, u32)> {
    let mut bases = Vec::new();
    for view in &world.metric.views {
        bases.push(world.published(view).await.published.bases);
    }
    bases.dedup();
    assert_eq!(bases.len(), 1, "all views are at the same point: {bases:?}");
    bases.remove(0)
}

/// Covers at noon and rebuilds everything an hour later, twice, with new events all the while.
async fn recomputed_twice() -> World {
    let world = World::new(DEFINITIONS);
    for hour in 0..3 {
        world.clock.set(NOON + hour * HOUR);
        world.seal(0, &events(40)).await;
        world.run(Wanted::Cover).await.unwrap();
        if hour > 0 {
            world.run(ALL).await.unwrap();
        }
        world.seal(1, &events(30)).await;
    }
    world.clock.set(NOON + 3 * HOUR);
    world
}

#[tokio::test]
async fn a_rollback_returns_to_the_bases_of_that_moment_and_counts_what_came_since() {
    let world = recomputed_twice().await;
    let everything = Micros::MIN..Micros::MAX;
    assert_eq!(bases(&world).await, [(everything.clone(), 2)]);
    let rows = world.store.rows();
    for (as_of, expected) in
        [(NOON, vec![]), (NOON + HOUR, vec![(everything.clone(), 1)]), (NOON + 2 * HOUR, vec![(everything, 2)])]
    {
        world.trim().await;
        world.seal(0, &events(20)).await;
        let outcome = world.run(Wanted::Rollback { as_of }).await.unwrap();
        assert!(matches!(outcome, Outcome::Published { .. }), "{outcome:?}");
        assert_eq!(bases(&world).await, expected, "as of {as_of}");
        world.check("rolled back").await;
        let again = world.run(Wanted::Rollback { as_of }).await.unwrap();
        assert!(matches!(again, Outcome::Published { .. }), "a repeated attempt comes to the same: {again:?}");
        assert_eq!(bases(&world).await, expected, "as of {as_of}, again");
        world.clock.set(world.deps.clock.now() + HOUR / 4);
    }
    let kept = |row: &&lamina_core::BatchRow| world.store.rows().iter().any(|now| now.key == row.key);
    assert_eq!(rows.iter().filter(kept).count(), rows.len(), "a rollback removes nothing");
    let never = world.run(Wanted::Rollback { as_of: world.deps.clock.now() }).await;
    assert!(matches!(never, Err(BatchError::NothingKept)), "{never:?}");
}

#[tokio::test]
async fn a_rollback_that_dies_anywhere_does_no_harm() {
    for calls in 0.. {
        let world = recomputed_twice().await;
        world.seal(0, &events(25)).await;
        world.store.fail_after(Some(calls));
        let died = world.run(Wanted::Rollback { as_of: NOON }).await.is_err();
        world.store.fail_after(None);
        world.check("after the death").await;
        world.seal(1, &events(15)).await;
        world.run(Wanted::Cover).await.unwrap();
        world.check("after the next run").await;
        world.run(Wanted::Rollback { as_of: NOON }).await.unwrap();
        assert_eq!(bases(&world).await, []);
        world.check("after the next attempt").await;
        if !died {
            assert!(calls > 10, "the store is asked more often than {calls} times");
            break;
        }
    }
}

#[tokio::test]
async fn what_was_replaced_long_ago_is_removed() {
    let config =
        Config { keep: Duration::from_secs(2 * 3_600), memory_bytes: 64 << 20, parallelism: 2, ..Config::default() };
    let world = World::with(DEFINITIONS, &config);
    world.clock.set(NOON);
    world.seal(0, &events(40)).await;
    world.run(Wanted::Cover).await.unwrap();
    world.run(ALL).await.unwrap();
    let of_base = |base| world.store.rows().iter().filter(|row| row.key.base == base).count();
    assert!(of_base(0) > 0 && of_base(0) == of_base(1));
    world.clock.set(NOON + HOUR);
    world.seal(0, &events(40)).await;
    world.run(Wanted::Cover).await.unwrap();
    assert!(of_base(0) > 0, "it is kept for two hours");
    world.clock.set(NOON + 3 * HOUR);
    world.seal(0, &events(40)).await;
    world.run(Wanted::Cover).await.unwrap();
    assert_eq!(of_base(0), 0);
    world.check("tidied up").await;
    for view in &world.metric.views {
        let state = world.published(view).await;
        assert!(state.kept.is_empty() && state.unused.is_empty());
    }
}
