//! Answers equal an independent fold of exactly the records below `meta.speed.positions`, whatever was flushed, sealed,
//! batched or half batched; and no query string makes the server fail.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, NaiveTime, Offset, TimeZone, Timelike};
use proptest::{prelude::*, test_runner::TestCaseError};
use serde_json::{Value, json};

use crate::{
    expiry,
    world::{DAY, HOUR, MINUTE, PARTITIONS, SECOND, World},
};

/// 2024-10-26T00:00:00Z: clocks in Berlin go back in the night that follows.
pub(crate) const BASE: i64 = 1_729_900_800 * SECOND;
pub(crate) const CHANNELS: [&str; 3] = ["a", "b", "c"];
pub(crate) const COUNTRIES: [&str; 2] = ["DE", "FR"];

#[derive(Clone, Debug)]
pub(crate) struct Edit {
    pub(crate) partition: u32,
    pub(crate) at: i64,
    pub(crate) channel: usize,
    pub(crate) country: usize,
    pub(crate) added: i64,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Append(Vec<Edit>),
    Flush(u32),
    Seal(u32),
    Batch {
        publish: bool,
    },
    /// The horizon of a rule rises in one of the widths.
    Raise {
        rule: usize,
        width: usize,
        hour: i64,
    },
}

fn edits() -> impl Strategy<Value = Edit> {
    // Two days, most events in few minutes, so that states merge.
    let at = prop_oneof![0..48 * 60_i64, (0..6_i64).prop_map(|n| n * 7 * 60 + 40)];
    (0..PARTITIONS, at, 0..60_i64, 0..3_usize, 0..2_usize, -50..50_i64).prop_map(
        |(partition, minute, second, channel, country, added)| {
            let at = BASE + minute * MINUTE + second * SECOND;
            Edit { partition, at, channel, country, added }
        },
    )
}

pub(crate) fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => prop::collection::vec(edits(), 1..8).prop_map(Action::Append),
        3 => (0..PARTITIONS).prop_map(Action::Flush),
        3 => (0..PARTITIONS).prop_map(Action::Seal),
        2 => any::<bool>().prop_map(|publish| Action::Batch { publish }),
    ];
    prop::collection::vec(action, 1..20)
}

fn actions_and_raises() -> impl Strategy<Value = Vec<Action>> {
    let raise =
        (0..2_usize, 0..3_usize, -2..50_i64).prop_map(|(rule, width, hour)| Action::Raise { rule, width, hour });
    (actions(), prop::collection::vec(raise, 0..6)).prop_map(|(actions, raises)| {
        // Spread evenly, the last one last.
        let (every, mut raises) = (actions.len() / (raises.len() + 1) + 1, raises.into_iter());
        let mut all = Vec::new();
        for chunk in actions.chunks(every) {
            all.extend_from_slice(chunk);
            all.extend(raises.next());
        }
        all.extend(raises);
        all
    })
}

#[derive(Clone, Debug)]
struct Ask {
    from: i64,
    minutes: i64,
    step: Option<&'static str>,
    zone: Option<&'static str>,
    group_by: Vec<&'static str>,
    country: Option<usize>,
    /// With a country too, the filter names every series that can pass.
    channels: Option<Vec<usize>>,
}

fn asks() -> impl Strategy<Value = Ask> {
    let step =
        prop::sample::select(vec![None, Some("1m"), Some("20m"), Some("1h"), Some("6h"), Some("1d"), Some("1mo")]);
    let zone =
        prop::sample::select(vec![None, Some("Europe/Berlin"), Some("Asia/Kathmandu"), Some("America/New_York")]);
    let group_by = prop::sample::select(vec![vec![], vec!["channel"], vec!["country"], vec!["country", "channel"]]);
    // Often on the hour or the day, so that coarse widths are taken.
    let from = prop_oneof![0..3000_i64, (0..48_i64).prop_map(|hour| hour * 60), (0..2_i64).prop_map(|day| day * 1440)];
    let minutes = prop_oneof![1..3000_i64, (1..48_i64).prop_map(|hour| hour * 60), Just(1440), Just(2880)];
    let channels = prop::option::of(prop::collection::vec(0..3_usize, 1..3));
    (from, minutes, step, zone, group_by, prop::option::of(0..2_usize), channels).prop_map(
        |(from, minutes, step, zone, group_by, country, channels)| Ask {
            from: BASE + (from - 60) * MINUTE,
            minutes,
            step,
            zone,
            group_by,
            country,
            channels,
        },
    )
}

/// Start of the bucket of `at`, by way of the calendar's own words.
fn bucket(ask: &Ask, at: i64) -> i64 {
    let Some(step) = ask.step else { return ask.from };
    let zone: chrono_tz::Tz = ask.zone.unwrap_or("UTC").parse().unwrap();
    let instant = DateTime::from_timestamp_micros(at).unwrap().with_timezone(&zone);
    let local = instant.naive_local();
    let minutes = i64::from(local.num_seconds_from_midnight() / 60);
    let floor = |step: i64| local.date().and_time(NaiveTime::MIN) + chrono::Duration::minutes(minutes / step * step);
    let wall = match step {
        "1m" => floor(1),
        "20m" => floor(20),
        "1h" => floor(60),
        "6h" => floor(360),
        "1d" => local.date().and_time(NaiveTime::MIN),
        _ => local.date().with_day(1).unwrap().and_time(NaiveTime::MIN),
    };
    // Of two instants with this wall-clock time, the one of the same offset; a longer step begins at the first.
    let same = instant.offset().fix().from_local_datetime(&wall).unwrap();
    let start = match zone.from_local_datetime(&wall) {
        chrono::MappedLocalTime::Ambiguous(first, second) => match ["1m", "20m", "1h"].contains(&step) {
            true if second.timestamp() == same.timestamp() => second,
            _ => first,
        },
        found => found.single().unwrap(),
    };
    start.timestamp_micros().max(ask.from)
}

type Sums = BTreeMap<(Vec<String>, i64), (i64, i64, i64, i64)>;

fn expected(ask: &Ask, appended: &[Edit], meta: &Value) -> Sums {
    let (positions, expired) = (&meta["speed"]["positions"], expiry::named(meta));
    let mut offsets = [0_u64; PARTITIONS as usize];
    let mut sums = Sums::new();
    for edit in appended {
        let offset = offsets[edit.partition as usize];
        offsets[edit.partition as usize] += 1;
        let below = offset < positions[edit.partition.to_string()].as_u64().unwrap();
        let in_range = (ask.from..ask.from + ask.minutes * MINUTE).contains(&edit.at);
        let passes = ask.country.is_none_or(|country| country == edit.country)
            && ask.channels.as_ref().is_none_or(|channels| channels.contains(&edit.channel));
        let expires = |rule: usize| expiry::takes(rule, CHANNELS[edit.channel], COUNTRIES[edit.country]);
        let gone = expired.iter().any(|&(rule, horizon)| expires(rule) && edit.at < horizon);
        if !below || !in_range || !passes || gone {
            continue;
        }
        let value = |name: &&str| if *name == "channel" { CHANNELS[edit.channel] } else { COUNTRIES[edit.country] };
        let series: Vec<String> = ask.group_by.iter().map(|name| value(name).to_owned()).collect();
        let sum = sums.entry((series, bucket(ask, edit.at))).or_insert((0, 0, i64::MAX, i64::MIN));
        *sum = (sum.0 + 1, sum.1 + edit.added, sum.2.min(edit.added), sum.3.max(edit.added));
    }
    sums
}

fn answered(ask: &Ask, body: &Value) -> Sums {
    let mut sums = Sums::new();
    for series in body["series"].as_array().unwrap() {
        let name = |name: &&str| series["dimensions"][*name].as_str().unwrap().to_owned();
        let names: Vec<String> = ask.group_by.iter().map(name).collect();
        for point in series["points"].as_array().unwrap() {
            let start = DateTime::parse_from_rfc3339(point["start"].as_str().unwrap()).unwrap().timestamp_micros();
            let int = |name: &str| point[name].as_i64().unwrap();
            sums.insert((names.clone(), start), (int("count"), int("sum"), int("min"), int("max")));
        }
    }
    sums
}

/// Whether the asked range reaches below a rule's horizon, whichever width answers, in a view that the rule concerns.
fn must_be_named(ask: &Ask, rule: usize, horizons: [i64; 3]) -> bool {
    let held = |name: &str, filtered: bool| filtered || ask.group_by.contains(&name);
    let (channel, country) = (held("channel", ask.channels.is_some()), held("country", ask.country.is_some()));
    let concerns = channel && (rule == 0 || country);
    let can = |channel: &str, country: &str| {
        let channels = ask.channels.as_ref();
        channels.is_none_or(|own| own.iter().any(|&at| CHANNELS[at] == channel))
            && ask.country.is_none_or(|own| COUNTRIES[own] == country)
            && expiry::takes(rule, channel, country)
    };
    let matches = CHANNELS.iter().any(|channel| COUNTRIES.iter().any(|country| can(channel, country)));
    concerns && matches && horizons.into_iter().all(|horizon| horizon > ask.from)
}

async fn check(world: &World, metric: &str, appended: &[Edit], ask: &Ask) -> Result<Value, TestCaseError> {
    let (from, to) = ((ask.from / 1000).to_string(), ((ask.from + ask.minutes * MINUTE) / 1000).to_string());
    let group_by = ask.group_by.join(",");
    let mut filter: Vec<String> =
        ask.country.map(|country| format!("country = '{}'", COUNTRIES[country])).into_iter().collect();
    if let Some(channels) = &ask.channels {
        let names: Vec<String> = channels.iter().map(|&channel| format!("'{}'", CHANNELS[channel])).collect();
        filter.push(format!("channel IN ({})", names.join(", ")));
    }
    let filter = (!filter.is_empty()).then(|| filter.join(" AND "));
    let mut params =
        vec![("from", from.as_str()), ("to", &to), ("aggregate", "count,sum,min,max"), ("group_by", &group_by)];
    params.extend(ask.step.map(|step| ("step", step)));
    params.extend(ask.zone.map(|zone| ("tz", zone)));
    params.extend(filter.as_deref().map(|filter| ("where", filter)));
    let reply = world.query_of(metric, &params).await;
    prop_assert_eq!(reply.status.as_u16(), 200, "{}", reply.text());
    let body = reply.json();
    prop_assert_eq!(answered(ask, &body), expected(ask, appended, &body["meta"]), "{:?}", ask);
    Ok(body["meta"].clone())
}

/// Does one thing, noting what is appended and which horizons rise.
pub(crate) async fn perform(world: &mut World, action: Action, appended: &mut Vec<Edit>, raised: &mut [[i64; 3]; 2]) {
    match action {
        Action::Append(edits) => {
            for edit in edits {
                let time = DateTime::from_timestamp_micros(edit.at).unwrap().to_rfc3339();
                let (channel, country) = (CHANNELS[edit.channel], COUNTRIES[edit.country]);
                let event = json!({"time": time, "channel": channel, "country": country, "user": "u",
                    "added": edit.added});
                world.append(edit.partition, &event);
                appended.push(edit);
            }
        }
        Action::Flush(partition) => world.flush(partition).await,
        Action::Seal(partition) => world.seal(partition).await,
        Action::Batch { publish } => world.batch(publish).await,
        Action::Raise { rule, width, hour } => {
            let length = [MINUTE, HOUR, DAY][width];
            let to = (BASE + hour * HOUR).div_euclid(length) * length;
            expiry::raise(world, rule, length, to).await;
            raised[rule][width] = raised[rule][width].max(to);
        }
    }
}

async fn play(mut world: World, metric: &str, actions: Vec<Action>, asks: Vec<Ask>) -> Result<(), TestCaseError> {
    let mut appended: Vec<Edit> = Vec::new();
    let mut raised = [[i64::MIN; 3]; 2];
    for action in actions {
        perform(&mut world, action, &mut appended, &mut raised).await;
        // Asked in between too, so that caches are filled before things change.
        if let Some(ask) = asks.first() {
            check(&world, metric, &appended, ask).await?;
        }
    }
    for ask in &asks {
        let meta = check(&world, metric, &appended, ask).await?;
        let named = expiry::named(&meta);
        for (rule, horizons) in raised.into_iter().enumerate() {
            let own: Vec<i64> = named.iter().filter(|(named, _)| *named == rule).map(|(_, at)| *at).collect();
            prop_assert!(own.iter().all(|at| horizons.contains(at)), "{named:?} of {horizons:?}");
            prop_assert!(
                !own.is_empty() || !must_be_named(ask, rule, horizons),
                "rule {rule} of {horizons:?}: {ask:?}"
            );
        }
    }
    Ok(())
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn answers_equal_the_fold_of_the_prefix_that_they_name(
        actions in actions(), asks in prop::collection::vec(asks(), 1..6),
    ) {
        runtime().block_on(async { play(World::new().await, "added", actions, asks).await })?;
    }

    #[test]
    fn answers_leave_out_exactly_what_they_name_as_expired(
        actions in actions_and_raises(), asks in prop::collection::vec(asks(), 1..6),
    ) {
        runtime().block_on(async { play(expiry::world().await, "ruled", actions, asks).await })?;
    }
}

fn parameters() -> impl Strategy<Value = Vec<(String, String)>> {
    let names = vec![
        "from",
        "to",
        "step",
        "aggregate",
        "group_by",
        "where",
        "layer",
        "order_by",
        "limit",
        "fill",
        "tz",
        "at_least",
        "wait",
        "align",
        "numbers",
        "compare",
        "page_size",
        "page_token",
        "x",
    ];
    let values = prop_oneof![
        "\\PC{0,20}",
        "-?[0-9]{1,19}",
        "[0-9]{1,5}(ms|s|m|h|d|w|mo)",
        "[a-z(),0-9. ]{0,20}",
        prop::sample::select(vec![
            "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z",
            "count,sum",
            "channel",
            "country desc",
            "linear",
            "zero",
            "Pacific/Apia",
            "strict",
            "string",
            "batch",
            "channel = 'a'",
            "0",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec((prop::sample::select(names).prop_map(str::to_owned), values), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_query_string_makes_the_server_fail(parameters in parameters(), ranged in any::<bool>()) {
        thread_local!(static WORLD: (tokio::runtime::Runtime, World) = {
            let runtime = runtime();
            let mut world = runtime.block_on(World::new());
            world.append(0, &json!({"time": "2024-10-26T00:00:00Z", "channel": "a", "country": "DE", "added": 1}));
            runtime.block_on(world.flush(0));
            (runtime, world)
        });
        let mut pairs: Vec<(&str, &str)> = if ranged { vec![("from", "1729900000000"), ("wait", "0")] } else { Vec::new() };
        pairs.extend(parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let status = WORLD.with(|(runtime, world)| runtime.block_on(world.query(&pairs)).status.as_u16());
        // A token that decodes by chance may have to be waited for.
        prop_assert!(matches!(status, 200 | 400 | 422 | 504), "{status} for {pairs:?}");
    }
}

#[test]
fn hours_that_occur_twice_are_told_apart_by_the_independent_fold_too() {
    let ask = |step| Ask {
        from: BASE,
        minutes: 2880,
        step: Some(step),
        zone: Some("Europe/Berlin"),
        group_by: vec![],
        country: None,
        channels: None,
    };
    let one = BASE + 24 * HOUR + 90 * MINUTE;
    assert_eq!(bucket(&ask("1h"), one), BASE + 25 * HOUR);
    assert_eq!(bucket(&ask("6h"), one), BASE + 22 * HOUR);
}
