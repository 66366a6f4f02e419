//! Rows of SQL against an oracle that computes them from the raw events.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestCaseError};
use serde_json::{Value, json};

use crate::{
    sql::{BASE, edit, rows},
    world::{PARTITIONS, World},
};

#[derive(Clone, Debug)]
struct Edit {
    partition: u32,
    second: i64,
    channel: usize,
    country: usize,
    user: u8,
    added: i64,
}

const CHANNELS: [&str; 3] = ["a", "b", "c"];
const COUNTRIES: [&str; 2] = ["DE", "FR"];

fn edits() -> impl Strategy<Value = Edit> {
    (0..PARTITIONS, 0..7_200_i64, 0..3_usize, 0..2_usize, 0..6_u8, -50..50_i64).prop_map(
        |(partition, second, channel, country, user, added)| Edit { partition, second, channel, country, user, added },
    )
}

fn histories() -> impl Strategy<Value = Vec<(Vec<Edit>, u8)>> {
    prop::collection::vec((prop::collection::vec(edits(), 1..15), 0..4_u8), 1..5)
}

async fn replay(history: &[(Vec<Edit>, u8)]) -> (World, Vec<Edit>) {
    let (mut world, mut all) = (World::new().await, Vec::new());
    world.set_now((BASE + 86_400) * 1_000_000);
    for (edits, action) in history {
        for one in edits {
            let (channel, country) = (Some(CHANNELS[one.channel]), COUNTRIES[one.country]);
            world.append(one.partition, &edit(one.second, channel, country, &format!("u{}", one.user), one.added));
        }
        all.extend(edits.iter().cloned());
        for partition in 0..PARTITIONS {
            if *action == 0 { world.flush(partition).await } else { world.seal(partition).await }
        }
        if *action >= 2 {
            world.batch(*action == 2).await;
        }
    }
    for partition in 0..PARTITIONS {
        world.flush(partition).await;
    }
    (world, all)
}

async fn oracle_agrees(
    history: &[(Vec<Edit>, u8)],
    from: i64,
    minutes: i64,
    country: Option<usize>,
) -> Result<(), TestCaseError> {
    let (world, all) = replay(history).await;
    let iso = |second: i64| chrono::DateTime::from_timestamp(BASE + second, 0).unwrap().to_rfc3339();
    let filter = country.map_or_else(String::new, |country| format!(" AND country = '{}'", COUNTRIES[country]));
    let bounds = format!("time >= '{}' AND time < '{}'{filter}", iso(from * 60), iso((from + minutes) * 60));
    let mut wanted: BTreeMap<usize, Vec<&Edit>> = BTreeMap::new();
    for edit in &all {
        let minute = edit.second.div_euclid(60);
        if (from..from + minutes).contains(&minute) && country.is_none_or(|country| country == edit.country) {
            wanted.entry(edit.channel).or_default().push(edit);
        }
    }
    let wanted: Vec<Value> = wanted
        .into_iter()
        .map(|(channel, edits)| {
            let mut users: Vec<u8> = edits.iter().map(|edit| edit.user).collect();
            users.sort_unstable();
            users.dedup();
            let added = || edits.iter().map(|edit| edit.added);
            let average = added().sum::<i64>() as f64 / edits.len() as f64;
            json!([
                CHANNELS[channel],
                edits.len(),
                added().sum::<i64>(),
                added().min(),
                added().max(),
                users.len(),
                (average * 1e6).round()
            ])
        })
        .collect();
    for table in ["added", "added_1h"] {
        // An hour begins within the bounds, or does not count.
        if table == "added_1h" && (from % 60 != 0 || minutes % 60 != 0) {
            continue;
        }
        let query = format!(
            "SELECT channel, sum(added_count), sum(added_sum), min(added_min), max(added_max), lamina_distinct(added_distinct_user), \
             round(lamina_avg(added_avg) * 1e6) FROM {table} WHERE {bounds} GROUP BY channel ORDER BY channel"
        );
        let found = rows(&world, &query).await;
        // All but the average are exact.
        let average = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= 1.0;
        let equal = |(a, b): (&Value, &Value)| (0..6).all(|at| a[at] == b[at]) && average(&a[6], &b[6]);
        let same = found.len() == wanted.len() && found.iter().zip(&wanted).all(equal);
        prop_assert!(same, "{}:\n found {:?}\nwanted {:?}", query, found, wanted);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_those_of_the_raw_events(
        history in histories(),
        from in prop_oneof![0..120_i64, (0..2_i64).prop_map(|hour| hour * 60)],
        minutes in prop_oneof![1..120_i64, Just(60), Just(120)],
        country in prop::option::of(0..2_usize),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(oracle_agrees(&history, from, minutes, country))?;
    }
}
