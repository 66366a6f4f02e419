use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Micros {
    DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}

fn starts(from: &str, to: &str, division: Division) -> Vec<String> {
    let buckets = Buckets { range: at(from)..at(to), division };
    let text = |start: &Micros| naive(*start).format("%m-%dT%H:%M").to_string();
    buckets.starts(1000).unwrap().iter().map(text).collect()
}

const BERLIN: Tz = chrono_tz::Europe::Berlin;

#[test]
fn weeks_begin_on_monday_and_months_on_their_first() {
    let weeks = starts("2024-01-03T00:00:00Z", "2024-01-20T00:00:00Z", Division::Utc(Step::Weeks(1)));
    assert_eq!(weeks, ["01-03T00:00", "01-08T00:00", "01-15T00:00"], "the first is clipped to `from`");
    let months = starts("2024-01-01T00:00:00Z", "2024-04-01T00:00:00Z", Division::Utc(Step::Months(1)));
    assert_eq!(months, ["01-01T00:00", "02-01T00:00", "03-01T00:00"]);
    let months = starts("1969-11-30T00:00:00Z", "1970-02-01T00:00:00Z", Division::Utc(Step::Months(1)));
    assert_eq!(months, ["11-30T00:00", "12-01T00:00", "01-01T00:00"]);
}

#[test]
fn local_days_have_23_and_25_hours_where_clocks_change() {
    let day = Division::Local(Step::Fixed(DAY), BERLIN);
    let spring = starts("2024-03-29T23:00:00Z", "2024-04-01T22:00:00Z", day);
    assert_eq!(spring, ["03-29T23:00", "03-30T23:00", "03-31T22:00"]);
    let autumn = starts("2024-10-25T22:00:00Z", "2024-10-28T23:00:00Z", day);
    assert_eq!(autumn, ["10-25T22:00", "10-26T22:00", "10-27T23:00"]);
}

#[test]
fn an_hour_that_occurs_twice_is_two_buckets_and_six_hours_stay_on_the_wall_clock() {
    let hours = |n: i64| Division::Local(Step::Fixed(n * 3600 * SECOND), BERLIN);
    let twice = starts("2024-10-26T23:00:00Z", "2024-10-27T03:00:00Z", hours(1));
    assert_eq!(twice, ["10-26T23:00", "10-27T00:00", "10-27T01:00", "10-27T02:00"]);
    // 02:00 to 03:00 occurs twice: wall-clock 00:00 to 06:00 is seven hours.
    let six = starts("2024-10-26T22:00:00Z", "2024-10-27T17:00:00Z", hours(6));
    assert_eq!(six, ["10-26T22:00", "10-27T05:00", "10-27T11:00"]);
    let six = starts("2024-03-30T23:00:00Z", "2024-03-31T16:00:00Z", hours(6));
    assert_eq!(six, ["03-30T23:00", "03-31T04:00", "03-31T10:00"]);
}

#[test]
fn a_day_without_midnight_begins_after_the_gap() {
    let day = Division::Local(Step::Fixed(DAY), chrono_tz::America::Sao_Paulo);
    let days = starts("2018-11-03T03:00:00Z", "2018-11-06T02:00:00Z", day);
    assert_eq!(days, ["11-03T03:00", "11-04T03:00", "11-05T02:00"]);
}

#[test]
fn stored_buckets_hit_local_ones_only_where_offsets_allow() {
    let range = at("2024-03-29T23:00:00Z")..at("2024-04-01T22:00:00Z");
    let hit = |zone, width| {
        Buckets { range: range.clone(), division: Division::Local(Step::Fixed(DAY), zone) }.hit_by(width * SECOND)
    };
    assert!(hit(BERLIN, 3600) && hit(BERLIN, 60));
    assert!(!hit(BERLIN, 86_400), "days in UTC are not days in Berlin");
    let kolkata = chrono_tz::Asia::Kolkata;
    assert!(!hit(kolkata, 3600) && hit(kolkata, 1800), "half an hour off");
}

#[test]
fn earlier_is_by_the_calendar_of_the_zone() {
    let day = Step::Fixed(DAY);
    let text = |at: Micros| naive(at).format("%Y-%m-%dT%H:%M").to_string();
    let of = |time: &str, period, zone| text(earlier(at(time), period, zone));
    // The night before had an hour less: 23 hours lie between the two midnights.
    assert_eq!(of("2024-03-31T22:00:00Z", day, Some(BERLIN)), "2024-03-30T23:00");
    assert_eq!(of("2024-03-31T22:00:00Z", day, None), "2024-03-30T22:00");
    assert_eq!(of("2024-03-31T22:00:00Z", Step::Fixed(3_600 * SECOND), Some(BERLIN)), "2024-03-31T21:00");
    assert_eq!(of("2024-04-01T00:30:00Z", day, Some(BERLIN)), "2024-03-31T01:00", "02:30 did not exist");
    assert_eq!(of("2024-04-03T22:00:00Z", Step::Weeks(1), Some(BERLIN)), "2024-03-27T23:00");
    assert_eq!(of("2024-03-31T12:00:00Z", Step::Months(1), None), "2024-02-29T12:00");
    assert_eq!(of("2024-01-01T00:00:00Z", Step::Months(12), None), "2023-01-01T00:00");
}

fn zones() -> impl Strategy<Value = Tz> {
    prop::sample::select(vec![
        BERLIN,
        chrono_tz::America::New_York,
        chrono_tz::America::Sao_Paulo,
        chrono_tz::Australia::Lord_Howe,
        chrono_tz::Asia::Kathmandu,
        chrono_tz::Pacific::Apia,
        chrono_tz::Africa::Casablanca,
        chrono_tz::America::St_Johns,
        chrono_tz::UTC,
    ])
}

fn steps() -> impl Strategy<Value = Step> {
    let minute = 60 * SECOND;
    prop::sample::select(vec![
        Step::Fixed(20 * minute),
        Step::Fixed(60 * minute),
        Step::Fixed(120 * minute),
        Step::Fixed(360 * minute),
        Step::Fixed(DAY),
        Step::Fixed(3 * DAY),
        Step::Weeks(1),
        Step::Months(1),
    ])
}

proptest! {
    #[test]
    fn every_instant_lies_in_exactly_the_bucket_that_begins_last(
        zone in zones(), step in steps(), from in 0_i64..2_000_000_000, offset in 0_i64..4_000_000, local in any::<bool>(),
    ) {
        let division = if local { Division::Local(step, zone) } else { Division::Utc(step) };
        let buckets = Buckets { range: from * SECOND..(from + 4_000_000) * SECOND, division };
        let starts = buckets.starts(usize::MAX).unwrap();
        prop_assert!(starts.is_sorted_by(|a, b| a < b));
        let at = (from + offset) * SECOND;
        let begun = starts.iter().copied().rfind(|start| *start <= at).unwrap();
        prop_assert_eq!(buckets.start_of(at), begun);
    }
}
