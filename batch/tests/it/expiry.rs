//! Rules of expiry: what is neither written nor served, how far, and until when it stands there.

use lamina_batch::{Outcome, Wanted};
use lamina_core::{Clock, Micros, store::period};
use lamina_metric::Series;

use crate::{
    runs::events,
    world::{DEFINITIONS, Event, HOUR, Rule, SECOND, START, World, floor},
};

const GRAIN: Micros = 10 * SECOND;
const MINUTE: Micros = 60 * SECOND;
const DAY: Micros = 24 * HOUR;
const GRACE: Micros = 7 * DAY;

const RULES: &str = r#"
[metric.added.retention]
"10s" = "12h"
[[metric.added.expire]]
where = "page = 'p1'"
after = "2h"
[[metric.added.expire]]
where = "country <> 'c0' AND page IN ('p1', 'p2')"
[metric.added.expire.retention]
"10s" = "1h"
"1h" = "1d"
"#;

/// The same in other words.
const SAME: &[Rule] = &[
    Rule { dimensions: &["page"], matches: |own| own[0] == "p1", kept: |_| Some(2 * HOUR) },
    Rule {
        dimensions: &["country", "page"],
        matches: |own| own[0] != "c0" && !own[0].is_empty() && (own[1] == "p1" || own[1] == "p2"),
        kept: |width| match width {
            GRAIN => Some(HOUR),
            HOUR => Some(DAY),
            _ => None,
        },
    },
];

pub(crate) fn world() -> World {
    World::ruled(&format!("{DEFINITIONS}{RULES}"), SAME)
}

/// How long a series is kept.
fn kept(world: &World, view: usize, width: Micros, series: &Series) -> Option<Micros> {
    let rules = world.rules_of(view, series).into_iter().filter_map(|rule| (world.rules[rule].kept)(width));
    rules.chain((width == GRAIN).then_some(12 * HOUR)).min()
}

/// Each chunk says when it goes, and each is gone once that has passed.
pub(crate) fn nothing_is_stored_below_a_horizon_for_longer_than_needed(world: &World) {
    for row in world.store.rows() {
        let view = world.metric.views.iter().position(|view| view.id == row.key.view).unwrap();
        let (width, series) = (row.key.width, Series::from_bytes(row.key.series.clone()));
        let ends = kept(world, view, width, &series).map(|kept| row.key.period + period(width) + kept + GRACE);
        assert_eq!(row.expires_at, ends, "{:?}", row.key);
    }
}

#[tokio::test]
async fn each_view_and_width_has_a_horizon_for_each_rule_that_concerns_it() {
    let world = world();
    let now = START + 40 * HOUR + 17 * SECOND;
    world.clock.set(now);
    world.seal(0, &events(5)).await;
    world.run(Wanted::Cover).await.unwrap();
    for (at, view) in world.metric.views.iter().enumerate() {
        let found = world.published(view).await.rule_horizons;
        let concerned = [&[0, 1][..], &[0], &[]][at];
        for width in [GRAIN, MINUTE, HOUR] {
            let expected = concerned
                .iter()
                .filter_map(|&rule| Some((rule, floor(now - (SAME[rule].kept)(width)?, period(width)))));
            let expected: Vec<(usize, Micros)> = expected.collect();
            let found: Vec<(usize, Micros)> = found.get(&width).cloned().unwrap_or_default().into_iter().collect();
            assert_eq!(found, expected, "view {at}, width {width}");
        }
    }
    world.clock.set(now - 10 * HOUR);
    let before = world.published(&world.metric.views[0]).await.rule_horizons;
    world.run(Wanted::Cover).await.unwrap();
    assert_eq!(world.published(&world.metric.views[0]).await.rule_horizons, before, "it never falls");
    world.clock.set(now + period(GRAIN));
    assert!(matches!(world.run(Wanted::Cover).await.unwrap(), Outcome::Unchanged));
    let after = world.published(&world.metric.views[0]).await.rule_horizons;
    assert_eq!(after[&GRAIN][&0], before[&GRAIN][&0] + period(GRAIN), "it rises although nothing was sealed");
}

/// One event a minute for four hours, over pages and countries alike.
fn spread() -> Vec<Event> {
    let event = |(minute, event): (i64, Event)| Event {
        at: minute * 60,
        page: (minute % 4) as u8,
        country: (minute / 4 % 3) as u8,
        ..event
    };
    (0..).zip(events(240)).map(event).collect()
}

#[tokio::test]
async fn matching_states_below_the_horizon_are_counted_as_expired_and_not_written() {
    let world = World::ruled(&format!("{DEFINITIONS}{RULES}").replace("max_series = 5", ""), SAME);
    world.clock.set(START + 5 * HOUR);
    world.seal(0, &spread()).await;
    let outcome = world.run(Wanted::Cover).await.unwrap();
    world.check("covered").await;
    // Of the full view's finest rollup: p1 below 3 h, and of it and p2 what is not of c0 below 4 h.
    let below = |hours: i64, takes: fn(i64) -> bool| (0..hours * 60).filter(|minute| takes(*minute)).count() as u64;
    let first = below(3, |minute| minute % 4 == 1);
    let second = below(4, |minute| [1, 2].contains(&(minute % 4)) && minute / 4 % 3 > 0);
    let both = below(3, |minute| minute % 4 == 1 && minute / 4 % 3 > 0);
    let Outcome::Published { fates, .. } = &outcome else { panic!("{outcome:?}") };
    assert_eq!((fates["expired"], fates["folded"]), (first + second - both, 240 - (first + second - both)));
    nothing_is_stored_below_a_horizon_for_longer_than_needed(&world);
    for row in world.store.rows() {
        let at = world.metric.views.iter().position(|view| view.id == row.key.view).unwrap();
        let (state, series) = (world.published(&world.metric.views[at]).await, Series::from_bytes(row.key.series));
        assert!(world.is_kept(&state, at, row.key.width, &series, row.key.period), "{series:?}");
    }
}

#[tokio::test]
async fn a_dry_run_finds_nothing_to_change_although_expired_chunks_still_stand_there() {
    let world = world();
    world.clock.set(START + HOUR);
    world.seal(0, &spread()).await;
    world.run(Wanted::Cover).await.unwrap();
    let rows = world.store.rows().len();
    world.clock.set(START + 30 * HOUR);
    assert!(matches!(world.run(Wanted::Cover).await.unwrap(), Outcome::Unchanged));
    world.check("later").await;
    assert_eq!(world.store.rows().len(), rows, "they stand there still");
    let dry = world.run(Wanted::DryRun { from: None, to: None }).await.unwrap();
    assert!(matches!(dry, Outcome::DryRun { rows: 240, buckets: 0, chunks: 0, .. }), "{dry:?}");
    world.run(Wanted::Rebuild { from: None, to: None }).await.unwrap();
    world.check("rebuilt").await;
    let as_of = world.clock.now() - HOUR;
    world.clock.set(world.clock.now() + 100 * DAY);
    world.run(Wanted::Rollback { as_of }).await.unwrap();
    world.store.expire(world.clock.now());
    world.check("rolled back, and gone").await;
}
