//! Values of PromQL against an oracle that computes them from the raw events.

use std::collections::BTreeMap;

use proptest::{prelude::*, test_runner::TestCaseError};
use serde_json::{Value, json};

use crate::{
    prometheus::{BASE, data, edit},
    world::{PARTITIONS, World},
};

const CHANNELS: [&str; 3] = ["a", "b", "c"];
const COUNTRIES: [&str; 2] = ["DE", "FR"];

#[derive(Clone, Debug)]
struct Edit {
    partition: u32,
    second: i64,
    channel: usize,
    country: usize,
    added: i64,
}

fn edits() -> impl Strategy<Value = Edit> {
    let second = prop_oneof![0..7_200_i64, 0..600_i64];
    (0..PARTITIONS, second, 0..3_usize, 0..2_usize, -50..50_i64)
        .prop_map(|(partition, second, channel, country, added)| Edit { partition, second, channel, country, added })
}

/// What the world went through between appends: 0 flushes, 1 seals, 2 batches, 3 half a batch.
fn histories() -> impl Strategy<Value = Vec<(Vec<Edit>, u8)>> {
    prop::collection::vec((prop::collection::vec(edits(), 1..12), 0..4_u8), 1..6)
}

async fn replay(history: &[(Vec<Edit>, u8)]) -> (World, Vec<Edit>) {
    let (mut world, mut all) = (World::new().await, Vec::new());
    for (edits, action) in history {
        for one in edits {
            world.append(
                one.partition,
                &edit(one.second, Some(CHANNELS[one.channel]), COUNTRIES[one.country], "u", one.added),
            );
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

/// Value of some events of one series.
type Of = fn(&[i64]) -> f64;

fn sum(values: &[i64]) -> f64 {
    values.iter().sum::<i64>() as f64
}

fn count(values: &[i64]) -> f64 {
    values.len() as f64
}

fn max(values: &[i64]) -> f64 {
    values.iter().copied().max().unwrap() as f64
}

fn min(values: &[i64]) -> f64 {
    values.iter().copied().min().unwrap() as f64
}

/// Samples of one series by the end of their minutes.
fn samples(edits: &[&Edit], of: Of) -> BTreeMap<i64, f64> {
    let mut minutes: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for edit in edits {
        minutes.entry((edit.second.div_euclid(60) + 1) * 60).or_default().push(edit.added);
    }
    minutes.into_iter().map(|(end, values)| (end, of(&values))).collect()
}

/// Those with ends within `(at - length, at]`.
fn within(samples: &BTreeMap<i64, f64>, at: i64, length: i64) -> Vec<f64> {
    samples.iter().filter(|(end, _)| at - length < **end && **end <= at).map(|(_, value)| *value).collect()
}

#[derive(Clone, Debug)]
struct Asked {
    start: i64,
    steps: i64,
    step: i64,
    window: i64,
    offset: i64,
}

fn asked() -> impl Strategy<Value = Asked> {
    let step = prop::sample::select(vec![15_i64, 60, 90, 120, 300, 600, 3_600]);
    let window = prop::sample::select(vec![60_i64, 90, 120, 300, 600, 3_600]);
    let start = prop_oneof![
        (0..120_i64).prop_map(|minute| minute * 60),
        0..7_200_i64,
        (0..3_i64).prop_map(|hour| hour * 3_600)
    ];
    (start, 1..12_i64, step, window, prop::sample::select(vec![0_i64, 60, -120, 45]))
        .prop_map(|(start, steps, step, window, offset)| Asked { start, steps, step, window, offset })
}

/// By labels: the value at each second of the grid that has one.
type Answer = BTreeMap<String, BTreeMap<i64, f64>>;

async fn answered(world: &World, query: &str, asked: &Asked) -> Answer {
    let (start, end) = (BASE + asked.start, BASE + asked.start + (asked.steps - 1) * asked.step);
    let params =
        [("query", query), ("start", &start.to_string()), ("end", &end.to_string()), ("step", &asked.step.to_string())];
    let data = data(world, "query_range", &params).await;
    let mut answer = Answer::new();
    for series in data["result"].as_array().unwrap() {
        let values = series["values"].as_array().unwrap().iter();
        let point = |point: &Value| {
            let at: f64 = point[0].to_string().parse().unwrap();
            (at as i64 - BASE, point[1].as_str().unwrap().parse().unwrap())
        };
        answer.insert(series["metric"].to_string(), values.map(point).collect());
    }
    answer
}

/// The answer that follows from the raw events: per group of series, `of` their samples' windows.
fn expected(
    edits: &[Edit],
    asked: &Asked,
    labels: impl Fn(&Edit) -> Value,
    fold: impl Fn(&[Vec<f64>]) -> f64,
    of: Of,
) -> Answer {
    let mut groups: BTreeMap<String, BTreeMap<(usize, usize), Vec<&Edit>>> = BTreeMap::new();
    for edit in edits {
        let series = groups.entry(labels(edit).to_string()).or_default();
        series.entry((edit.channel, edit.country)).or_default().push(edit);
    }
    let mut answer = Answer::new();
    for (labels, series) in groups {
        let samples: Vec<BTreeMap<i64, f64>> = series.values().map(|edits| samples(edits, of)).collect();
        for k in 0..asked.steps {
            let at = asked.start + k * asked.step;
            let windows = samples.iter().map(|samples| within(samples, at - asked.offset, asked.window));
            let windows: Vec<Vec<f64>> = windows.filter(|window| !window.is_empty()).collect();
            if !windows.is_empty() {
                answer.entry(labels.clone()).or_default().insert(at, fold(&windows));
            }
        }
    }
    answer
}

fn agree(what: &str, found: &Answer, expected: &Answer) -> Result<(), TestCaseError> {
    let close =
        |(at, a): (&i64, &f64), (other, b): (&i64, &f64)| at == other && (a - b).abs() <= 1e-12 * a.abs().max(1.0);
    let same = found.len() == expected.len()
        && found.iter().zip(expected).all(|((labels, values), (own, wanted))| {
            labels == own && values.len() == wanted.len() && values.iter().zip(wanted).all(|(a, b)| close(a, b))
        });
    prop_assert!(same, "{}:\n found {:?}\nwanted {:?}", what, found, expected);
    Ok(())
}

async fn oracle_agrees(history: &[(Vec<Edit>, u8)], asked: &Asked) -> Result<(), TestCaseError> {
    let (world, all) = replay(history).await;
    let offset = if asked.offset == 0 { String::new() } else { format!(" offset {}s", asked.offset) };
    let range = format!("[{}s]{offset}", asked.window);
    let both = |edit: &Edit| json!({"channel": CHANNELS[edit.channel], "country": COUNTRIES[edit.country]});
    let channel = |edit: &Edit| json!({"channel": CHANNELS[edit.channel]});
    let none = |_: &Edit| json!({});
    let total = |windows: &[Vec<f64>]| windows.iter().flatten().sum::<f64>();
    let most = |windows: &[Vec<f64>]| windows.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = |windows: &[Vec<f64>]| windows.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let length = asked.window as f64;
    let german: Vec<Edit> = all.iter().filter(|edit| edit.country == 0).cloned().collect();
    let not_a: Vec<Edit> = all.iter().filter(|edit| edit.channel != 0).cloned().collect();
    let cases: Vec<(String, Answer)> = vec![
        (format!("increase(added_sum{range})"), expected(&all, asked, both, total, sum)),
        (format!("sum by (channel) (increase(added_sum{range}))"), expected(&all, asked, channel, total, sum)),
        (
            format!("sum without (country) (rate(added_count{range}))"),
            expected(&all, asked, channel, |w| total(w) / length, count),
        ),
        (format!("sum(increase(added_count{{country=\"DE\"}}{range}))"), expected(&german, asked, none, total, count)),
        (
            format!("sum by (channel) (increase(added_sum{{country=~\"D.\"}}{range}))"),
            expected(&german, asked, channel, total, sum),
        ),
        (
            format!("sum(sum_over_time(added_sum{{channel!~\"a|x\"}}{range}))"),
            expected(&not_a, asked, none, total, sum),
        ),
        (format!("max by (channel) (max_over_time(added_max{range}))"), expected(&all, asked, channel, most, max)),
        (format!("min(min_over_time(added_min{range}))"), expected(&all, asked, none, least, min)),
        (format!("min_over_time(added_max{range})"), expected(&all, asked, both, least, max)),
        (
            format!("avg_over_time(added_sum{range})"),
            expected(&all, asked, both, |w| total(w) / w[0].len() as f64, sum),
        ),
        (
            format!("sum(count_over_time(added_sum{range}))"),
            expected(&all, asked, none, |w| w.iter().flatten().count() as f64, sum),
        ),
        (
            format!("avg by (channel) (sum_over_time(added_count{range}))"),
            expected(&all, asked, channel, |w| total(w) / w.len() as f64, count),
        ),
        (format!("sum(increase(added_sum{range})) / sum(increase(added_count{range}))"), {
            let (a, b) = (expected(&all, asked, none, total, sum), expected(&all, asked, none, total, count));
            let divided = |(labels, values): (&String, &BTreeMap<i64, f64>)| {
                let values = values.iter().map(|(at, value)| (*at, value / b[labels][at]));
                (labels.clone(), values.collect())
            };
            a.iter().map(divided).collect()
        }),
        (format!("last_over_time(added_count{{channel=\"b\"}}{range}) * 2"), {
            let of_b: Vec<Edit> = all.iter().filter(|edit| edit.channel == 1).cloned().collect();
            expected(&of_b, asked, both, |w| w[0].last().unwrap() * 2.0, count)
        }),
    ];
    for (query, expected) in cases {
        agree(&query, &answered(&world, &query, asked).await, &expected)?;
    }
    // A selector by itself looks back five minutes.
    let latest = Asked { window: 300, offset: 0, ..asked.clone() };
    let wanted = expected(
        &all,
        &latest,
        |edit| json!({"__name__": "added_sum", "channel": CHANNELS[edit.channel], "country": COUNTRIES[edit.country]}),
        |w| *w[0].last().unwrap(),
        sum,
    );
    agree("added_sum", &answered(&world, "added_sum", &latest).await, &wanted)?;
    quantiles_agree(&world, &all, asked, &range).await
}

/// Quantiles over whole windows are those of all their events, within 1 %.
async fn quantiles_agree(world: &World, all: &[Edit], asked: &Asked, range: &str) -> Result<(), TestCaseError> {
    let query = format!("histogram_quantile(0.9, sum by (le, channel) (rate(added_bucket{range})))");
    let found = answered(world, &query, asked).await;
    let mut wanted = Answer::new();
    for (channel, name) in CHANNELS.iter().enumerate() {
        for k in 0..asked.steps {
            let at = asked.start + k * asked.step;
            let end = |edit: &Edit| (edit.second.div_euclid(60) + 1) * 60 + asked.offset;
            let own =
                all.iter().filter(|edit| edit.channel == channel && at - asked.window < end(edit) && end(edit) <= at);
            let mut values: Vec<i64> = own.map(|edit| edit.added).collect();
            values.sort_unstable();
            if let Some(last) = values.len().checked_sub(1) {
                let rank = (values.len() * 9).div_ceil(10).max(1) - 1;
                let labels = json!({"channel": name}).to_string();
                wanted.entry(labels).or_default().insert(at, values[rank.min(last)] as f64);
            }
        }
    }
    let close = |a: f64, b: f64| (a - b).abs() <= 0.0101 * b.abs();
    let same = found.len() == wanted.len()
        && found.iter().zip(&wanted).all(|((a, own), (b, other))| {
            a == b && own.len() == other.len() && own.iter().zip(other).all(|((x, a), (y, b))| x == y && close(*a, *b))
        });
    prop_assert!(same, "{}:\n found {:?}\nwanted {:?}", query, found, wanted);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn values_are_those_of_the_raw_events(history in histories(), asked in asked()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(oracle_agrees(&history, &asked))?;
    }
}
