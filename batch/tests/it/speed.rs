//! How fast a full recompute is. `cargo test -p lamina-batch -- --ignored --nocapture rows_per_second`.

use std::time::Instant;

use lamina_batch::{Config, Wanted};

use crate::{
    distributed::start,
    world::{DEFINITIONS, Event, Fate, World},
};

#[tokio::test]
#[ignore = "a measurement, not a law"]
async fn rows_per_second_of_a_full_recompute() {
    measure(&World::with(&definitions(), &Config::default())).await;
}

/// Of the same threads: what it costs that states go through the network.
#[tokio::test]
#[ignore = "a measurement, not a law"]
async fn rows_per_second_of_a_full_recompute_on_two_executors() {
    let (world, _stops) = start(&definitions(), 2, &Config { parallelism: 1, ..Config::default() });
    measure(&world).await;
}

fn definitions() -> String {
    DEFINITIONS.replace("max_series = 5", "max_series = 10000")
}

async fn measure(world: &World) {
    let (epochs, rows) = (20, 20_000);
    for epoch in 0..epochs {
        let event = |row: i64| Event {
            at: epoch * 60 + row % 60,
            page: (row.wrapping_mul(7919) % 250) as u8,
            country: (row % 4) as u8,
            user: (row % 251) as u8,
            added: row,
            fate: Fate::Accepted,
        };
        let events: Vec<Event> = (0..rows).map(event).collect();
        world.seal((epoch % 2) as u32, &events).await;
    }
    for wanted in [Wanted::Cover, Wanted::Rebuild { from: None, to: None }] {
        let began = Instant::now();
        let outcome = world.run(wanted.clone()).await.unwrap();
        let took = began.elapsed().as_secs_f64();
        println!("{wanted:?}: {:.0} rows/s, {took:.2} s, {outcome:?}", (epochs * rows) as f64 / took);
    }
}
