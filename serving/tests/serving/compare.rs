//! Values of an earlier period, values per second, and long answers in pages, each against what is computed beside.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, TimeZone};
use chrono_tz::Europe::Berlin;
use proptest::{prelude::*, test_runner::TestCaseError};
use serde_json::{Value, json};

use crate::{
    property::{BASE, CHANNELS, Edit, actions, perform, runtime},
    world::{DAY, HOUR, MINUTE, World},
};

const RANGE: [(&str, &str); 2] = [("from", "2015-09-12T00:00:00Z"), ("to", "2015-09-14T00:00:00Z")];

fn micros(text: &Value) -> i64 {
    DateTime::parse_from_rfc3339(text.as_str().unwrap()).unwrap().timestamp_micros()
}

async fn small() -> World {
    let mut world = World::new().await;
    world.set_now(micros(&json!("2015-09-14T00:00:00Z")));
    for (time, channel, added) in [
        ("2015-09-12T00:10:00Z", "a", 1),
        ("2015-09-12T05:00:00Z", "gone", 2),
        ("2015-09-13T00:10:00Z", "a", 10),
        ("2015-09-13T00:20:00Z", "a", 20),
        ("2015-09-13T07:00:00Z", "new", 40),
    ] {
        world.append(0, &json!({"time": time, "channel": channel, "country": "DE", "user": "u", "added": added}));
    }
    world.seal(0).await;
    world.batch(true).await;
    world.append(0, &json!({"time": "2015-09-12T06:00:00Z", "channel": "a", "country": "DE", "added": 5}));
    world.flush(0).await;
    world
}

#[tokio::test]
async fn values_of_the_earlier_period_stand_beside_and_are_of_the_same_prefix() {
    let world = small().await;
    let params = [
        ("from", "2015-09-13T00:00:00Z"),
        ("to", "2015-09-14T00:00:00Z"),
        ("aggregate", "sum,count"),
        ("group_by", "channel"),
        ("step", "1h"),
        ("compare", "1d"),
    ];
    let body = world.query(&params).await.ok();
    let expected = json!([
        {"dimensions": {"channel": "a"}, "points": [
            {"start": "2015-09-13T00:00:00Z", "sum": 30, "count": 2, "sum@1d": 1, "count@1d": 1},
            {"start": "2015-09-13T06:00:00Z", "sum": null, "count": 0, "sum@1d": 5, "count@1d": 1}]},
        {"dimensions": {"channel": "gone"}, "points": [
            {"start": "2015-09-13T05:00:00Z", "sum": null, "count": 0, "sum@1d": 2, "count@1d": 1}]},
        {"dimensions": {"channel": "new"}, "points": [
            {"start": "2015-09-13T07:00:00Z", "sum": 40, "count": 1, "sum@1d": null, "count@1d": 0}]},
    ]);
    assert_eq!(body["series"], expected);
    let compared = &body["meta"]["compare"];
    assert_eq!((&compared["period"], &compared["complete"]), (&json!("1d"), &json!(true)));
    assert_eq!((&compared["from"], &compared["to"]), (&json!("2015-09-12T00:00:00Z"), &json!("2015-09-13T00:00:00Z")));
    assert_eq!(compared["speed"]["positions"], body["meta"]["speed"]["positions"]);
    let ordered = world.query(&[&params[..], &[("order_by", "sum desc"), ("limit", "1")]].concat()).await.ok();
    assert_eq!(ordered["series"][0]["dimensions"]["channel"], "new");
    for (step, compare) in [("1h", "30m"), ("1d", "1h"), ("1h", "1mo"), ("1w", "1d"), ("1mo", "1w")] {
        let (_, detail) = world.query(&[RANGE[0], RANGE[1], ("step", step), ("compare", compare)]).await.problem(400);
        assert!(detail.starts_with("`compare`") && detail.contains("`step`"), "{step} {compare}: {detail}");
    }
    let far = [("from", "0001-01-02T00:00:00Z"), ("to", "0001-01-03T00:00:00Z"), ("compare", "1w")];
    world.query(&far).await.problem(400);
}

#[tokio::test]
async fn an_earlier_period_below_the_horizon_is_missing_and_said_to_be() {
    let world = small().await;
    let params = [
        ("from", "2015-09-13T00:00:00Z"),
        ("to", "2015-09-14T00:00:00Z"),
        ("aggregate", "count"),
        ("step", "1h"),
        ("compare", "1d"),
    ];
    // 2015-09-12T03:30:00Z, in both widths that hit hours.
    let horizon = 16_690 * DAY + 3 * HOUR + 30 * MINUTE;
    world.edit_views("added", |state| state.raise_horizon(HOUR, horizon)).await;
    world.edit_views("added", |state| state.raise_horizon(MINUTE, horizon)).await;
    let body = world.query(&params).await.ok();
    assert_eq!(body["meta"]["compare"]["retained_from"], "2015-09-12T03:30:00Z");
    assert!(body["meta"].get("retained_from").is_none());
    let expected = json!([
        {"start": "2015-09-13T00:00:00Z", "count": 2, "count@1d": 0},
        {"start": "2015-09-13T05:00:00Z", "count": 0, "count@1d": 1},
        {"start": "2015-09-13T06:00:00Z", "count": 0, "count@1d": 1},
        {"start": "2015-09-13T07:00:00Z", "count": 1, "count@1d": 0},
    ]);
    assert_eq!(body["series"][0]["points"], expected);
}

#[tokio::test]
async fn the_day_before_one_after_clocks_went_forward_has_23_hours() {
    let mut world = World::new().await;
    for (time, added) in [("2024-03-30T12:00:00Z", 1), ("2024-03-31T12:00:00Z", 10), ("2024-04-01T12:00:00Z", 100)] {
        world.append(0, &json!({"time": time, "channel": "a", "country": "DE", "added": added}));
    }
    world.flush(0).await;
    let params = [
        ("from", "2024-03-31T22:00:00Z"),
        ("to", "2024-04-01T22:00:00Z"),
        ("step", "1d"),
        ("tz", "Europe/Berlin"),
        ("aggregate", "sum"),
        ("compare", "1d"),
    ];
    let body = world.query(&params).await.ok();
    let expected = json!([{"start": "2024-03-31T22:00:00Z", "sum": 100, "sum@1d": 10}]);
    assert_eq!(
        (&body["series"][0]["points"], &body["meta"]["compare"]["from"]),
        (&expected, &json!("2024-03-30T23:00:00Z"))
    );
    let whole: Vec<(&str, &str)> = params.iter().copied().filter(|(name, _)| *name != "step").collect();
    assert_eq!(world.query(&whole).await.ok()["series"][0]["points"], expected);
}

#[tokio::test]
async fn a_rate_is_per_second_of_the_bucket_as_it_is_clipped() {
    let world = small().await;
    let params = [
        ("from", "2015-09-13T00:05:00Z"),
        ("to", "2015-09-13T07:30:00Z"),
        ("aggregate", "rate(count),rate(sum),sum"),
        ("step", "1h"),
    ];
    let body = world.query(&params).await.ok();
    let expected = json!([
        {"start": "2015-09-13T00:05:00Z", "rate(count)": 2.0 / 3300.0, "rate(sum)": 30.0 / 3300.0, "sum": 30},
        {"start": "2015-09-13T07:00:00Z", "rate(count)": 1.0 / 1800.0, "rate(sum)": 40.0 / 1800.0, "sum": 40},
    ]);
    assert_eq!(body["series"][0]["points"], expected);
    let day =
        [("from", "2024-10-26T22:00:00Z"), ("to", "2024-10-27T23:00:00Z"), ("step", "1d"), ("tz", "Europe/Berlin")];
    let mut world = world;
    world.append(0, &json!({"time": "2024-10-27T10:00:00Z", "channel": "a", "country": "DE", "added": 90}));
    world.flush(0).await;
    let body = world.query(&[&day[..], &[("aggregate", "rate(sum)")]].concat()).await.ok();
    assert_eq!(body["series"][0]["points"][0]["rate(sum)"], 0.001, "a day of 25 hours has 90,000 seconds");
    for wrong in ["rate(avg)", "rate(p50)", "rate()", "rate(rate(sum))"] {
        let (_, detail) = world.query(&[RANGE[0], RANGE[1], ("aggregate", wrong)]).await.problem(400);
        assert!(detail.starts_with("`aggregate`") && detail.contains("count"), "{wrong}: {detail}");
    }
}

/// All points of all pages: series, then point.
async fn pages(world: &World, params: &[(&str, &str)], size: &str) -> (Vec<(Value, Value)>, usize) {
    let (mut all, mut token, mut count) = (Vec::new(), None::<String>, 0);
    loop {
        let page = [("page_size", size), ("page_token", token.as_deref().unwrap_or_default())];
        let more = if token.is_some() { &page[..] } else { &page[..1] };
        let reply = world.query(&[params, more].concat()).await;
        let body = reply.ok();
        count += 1;
        let mut points = 0;
        for series in body["series"].as_array().unwrap() {
            for point in series["points"].as_array().unwrap() {
                all.push((series["dimensions"].clone(), point.clone()));
                points += 1;
            }
        }
        assert!(points <= size.parse().unwrap() && body["meta"]["page"]["same_prefix"] == true, "{body}");
        token = body["next_page_token"].as_str().map(str::to_owned);
        let link = reply.headers.get("link").map(|link| link.to_str().unwrap().to_owned());
        match (&token, link) {
            (Some(token), Some(link)) => {
                let (uri, rel) = link.trim_start_matches('<').split_once('>').unwrap();
                assert_eq!(rel, "; rel=\"next\"");
                assert!(uri.contains(token.as_str()) && uri.matches("page_token").count() == 1, "{uri}");
                let next = world.get(uri).await.ok();
                assert_eq!(next["meta"]["page"]["same_prefix"], true);
            }
            (None, None) => return (all, count),
            other => panic!("{other:?}"),
        }
    }
}

fn points(body: &Value) -> Vec<(Value, Value)> {
    let series = body["series"].as_array().unwrap().iter();
    series
        .flat_map(|one| {
            one["points"].as_array().unwrap().iter().map(|point| (one["dimensions"].clone(), point.clone()))
        })
        .collect()
}

#[tokio::test]
async fn pages_put_together_are_the_whole_answer_of_one_prefix() {
    let mut world = small().await;
    let params = [RANGE[0], RANGE[1], ("aggregate", "count,sum"), ("group_by", "channel"), ("step", "1h")];
    let whole = world.query(&params).await.ok();
    assert!(whole.get("next_page_token").is_none());
    for size in ["1", "2", "3", "5", "100"] {
        let (all, count) = pages(&world, &params, size).await;
        assert_eq!(all, points(&whole), "{size}");
        assert_eq!(count, points(&whole).len().div_ceil(size.parse().unwrap()).max(1));
    }
    // What is folded in between is not seen by the pages that follow.
    let first = world.query(&[&params[..], &[("page_size", "2")]].concat()).await.ok();
    let token = first["next_page_token"].as_str().unwrap().to_owned();
    world.append(0, &json!({"time": "2015-09-12T00:00:00Z", "channel": "0", "country": "DE", "added": 1}));
    world.flush(0).await;
    let page = [("page_size", "100"), ("page_token", token.as_str())];
    let second = world.query(&[&params[..], &page].concat()).await.ok();
    assert_eq!([points(&first), points(&second)].concat(), points(&whole));
    assert_eq!(second["meta"]["speed"], first["meta"]["speed"]);
    let (_, detail) = world.query(&[&params[..4], &page].concat()).await.problem(400);
    assert!(detail.starts_with("`page_token`: is of another query"), "{detail}");
    // Elsewhere, or when it is no longer kept, it is computed anew and says that the prefix is another.
    let elsewhere = small().await;
    let again = elsewhere.query(&[&params[..], &page].concat()).await.ok();
    assert_eq!((again["meta"]["page"]["same_prefix"].clone(), points(&again)), (json!(true), points(&second)));
    let mut moved = small().await;
    moved.append(0, &json!({"time": "2015-09-12T00:00:00Z", "channel": "z", "country": "DE", "added": 1}));
    moved.flush(0).await;
    let again = moved.query(&[&params[..], &page].concat()).await.ok();
    assert_eq!(again["meta"]["page"]["same_prefix"], false);
}

#[tokio::test]
async fn the_pages_of_a_range_that_ends_now_end_where_the_first_did() {
    let mut world = small().await;
    let now = micros(&json!("2015-09-13T00:30:00Z"));
    world.set_now(now);
    let params = [RANGE[0], ("aggregate", "count"), ("step", "1h")];
    let first = world.query(&[&params[..], &[("page_size", "1")]].concat()).await.ok();
    world.set_now(now + DAY);
    let token = first["next_page_token"].as_str().unwrap();
    let second = world.query(&[&params[..], &[("page_size", "9"), ("page_token", token)]].concat()).await.ok();
    assert_eq!(second["to"], "2015-09-13T00:30:00Z");
    assert_eq!([points(&first), points(&second)].concat().len(), 4);
}

#[tokio::test]
async fn more_series_than_one_answer_takes_come_in_pages() {
    let mut world = World::new().await;
    for at in 0..10_001 {
        let event = json!({"time": "2015-09-12T00:00:00Z", "channel": format!("c{at}"), "country": "DE", "added": at});
        world.append(0, &event);
    }
    world.flush(0).await;
    let params = [RANGE[0], RANGE[1], ("group_by", "channel"), ("aggregate", "sum")];
    let (_, detail) = world.query(&params).await.problem(400);
    assert!(detail.contains("page_size"), "{detail}");
    let (all, count) = pages(&world, &params, "4000").await;
    assert_eq!((all.len(), count), (10_001, 3));
}

/// Sums of the range and of the period before it, by channel and local day, counted by the calendar's own words.
fn expected(appended: &[Edit], meta: &Value, days: i64, first: i64, count: i64) -> BTreeMap<(String, i64), [i64; 2]> {
    let mut offsets = [0_u64; 2];
    let mut sums = BTreeMap::new();
    for edit in appended {
        let offset = offsets[edit.partition as usize];
        offsets[edit.partition as usize] += 1;
        if offset >= meta["speed"]["positions"][edit.partition.to_string()].as_u64().unwrap_or(0) {
            continue;
        }
        let local = DateTime::from_timestamp_micros(edit.at).unwrap().with_timezone(&Berlin).date_naive();
        for (column, shift) in [(0, 0), (1, days)] {
            let day = local + Duration::days(shift);
            let start = Berlin.from_local_datetime(&day.and_hms_opt(0, 0, 0).unwrap()).earliest().unwrap();
            let number =
                (day - DateTime::from_timestamp_micros(first).unwrap().with_timezone(&Berlin).date_naive()).num_days();
            if (0..count).contains(&number) {
                let key = (CHANNELS[edit.channel].to_owned(), start.timestamp_micros());
                sums.entry(key).or_insert([0, 0])[column] += edit.added;
            }
        }
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn earlier_days_of_a_zone_stand_beside_and_pages_hold_them_all(
        actions in actions(), days in 1..3_i64, from in 0..3_i64, count in 1..4_i64, size in 1..7_usize,
    ) {
        let checked: Result<(), TestCaseError> = runtime().block_on(async {
            let (mut world, mut appended) = (World::new().await, Vec::new());
            for action in actions {
                perform(&mut world, action, &mut appended, &mut [[0; 3]; 2]).await;
            }
            // Local midnights around the night in which clocks go back.
            let midnight = |day: i64| {
                let date = DateTime::from_timestamp_micros(BASE).unwrap().date_naive() + Duration::days(day);
                Berlin.from_local_datetime(&date.and_hms_opt(0, 0, 0).unwrap()).earliest().unwrap().timestamp_micros()
            };
            let (first, end) = (midnight(from), midnight(from + count));
            let (first_text, end_text) = ((first / 1000).to_string(), (end / 1000).to_string());
            let period = format!("{days}d");
            let params = [
                ("from", first_text.as_str()), ("to", &end_text), ("aggregate", "sum,count"), ("group_by", "channel"),
                ("step", "1d"), ("tz", "Europe/Berlin"), ("compare", &period),
            ];
            let body = world.query(&params).await.ok();
            let mut answered = BTreeMap::new();
            for (dimensions, point) in points(&body) {
                let value = |name: &str| point[name].as_i64().unwrap_or(0);
                let key = (dimensions["channel"].as_str().unwrap().to_owned(), micros(&point["start"]));
                answered.insert(key, [value("sum"), value(&format!("sum@{period}"))]);
            }
            prop_assert_eq!(&answered, &expected(&appended, &body["meta"], days, first, count), "{}", body);
            prop_assert_eq!(&body["meta"]["compare"]["speed"]["positions"], &body["meta"]["speed"]["positions"]);
            let (all, _) = pages(&world, &params, &size.to_string()).await;
            prop_assert_eq!(all, points(&body));
            Ok(())
        });
        checked?;
    }
}
