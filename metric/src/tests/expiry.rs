//! Rules of expiry: what is refused and where, whom a rule concerns, and whom it takes.

use std::collections::BTreeMap;

use super::{ADDED, EDITS, metric};
use crate::{Catalog, DimensionValue, Metric, MetricDefinition, Series, Versions, time::DAY};

const RULES: &str = r#"
[[metric.added.expire]]
where = "channel = 'free'"
after = "7d"
[[metric.added.expire]]
where = "countryIsoCode IN ('DE', 'FR') AND channel <> 'gold'"
[metric.added.expire.retention]
"1m" = "1d"
"1d" = "60d"
"#;

fn text(rules: &str) -> String {
    format!("{}{}{}", EDITS.trim_start(), ADDED.trim_start(), rules.trim_start())
}

/// The problems of a rule that begins in line 26.
fn problems(rule: &str) -> Vec<String> {
    let text = text(&format!("[[metric.added.expire]]\n{rule}\n"));
    match Catalog::compile(&[("m.toml".to_owned(), text)], &Versions::default()) {
        Ok(_) => Vec::new(),
        Err(found) => found.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn each_mistake_in_a_rule_is_told_with_its_place() {
    let table: &[(&str, &[&str])] = &[
        ("where = \"channel = 'free'\"\nafter = \"7d\"", &[]),
        (
            "where = \"chanel = 'free'\"\nafter = \"7d\"",
            &["m.toml:27:9: `chanel` is not a dimension; the metric has channel, countryIsoCode"],
        ),
        (
            "where = \"user = 'anna'\"\nafter = \"7d\"",
            &["m.toml:27:9: `user` is not a dimension; the metric has channel, countryIsoCode"],
        ),
        (
            "where = \"lower(channel) = 'free'\"\nafter = \"7d\"",
            &["m.toml:27:9: functions are not allowed in a filter: `lower(`"],
        ),
        (
            "where = \"1 = 1\"\nafter = \"7d\"",
            &[
                "m.toml:27:9: the condition names no dimension (what holds for every series stands in the metric's own `retention`)",
            ],
        ),
        ("where = \"channel =\"\nafter = \"7d\"", &["m.toml:27:9: the filter ends too early"]),
        (
            "after = \"7d\"",
            &[
                "m.toml:26:1: metric.added.expire has no `where` (say which series by their dimensions, as in where = \"tier = 'free'\")",
            ],
        ),
        (
            "where = \"channel = 'free'\"",
            &[
                "m.toml:26:1: metric.added.expire needs either `after` or `retention` (`after` is for all rollups, as in after = \"7d\"; a table `retention` says it by rollup)",
            ],
        ),
        (
            "where = \"channel = 'free'\"\nafter = \"7d\"\nretention = { \"1m\" = \"1d\" }",
            &[
                "m.toml:26:1: metric.added.expire needs either `after` or `retention` (`after` is for all rollups, as in after = \"7d\"; a table `retention` says it by rollup)",
            ],
        ),
        (
            "where = \"channel = 'free'\"\nafter = \"a week\"",
            &[
                "m.toml:28:9: \"a week\" is not a length of time (write a whole number and s, m, h, d, w or y, as in 10s)",
            ],
        ),
        (
            "where = \"channel = 'free'\"\nafter = \"12h\"",
            &[
                "m.toml:28:9: buckets of 1d cannot be kept for only 12h (keep them for at least their own width, or say it by rollup in a table `retention`)",
            ],
        ),
        (
            "where = \"channel = 'free'\"\nretention = { \"5m\" = \"1d\" }",
            &["m.toml:28:15: retention for 5m, which is neither the grain nor a rollup (widths are 1m, 1h, 1d)"],
        ),
        (
            "where = \"channel = 'free'\"\nretention = { \"1h\" = \"5m\" }",
            &["m.toml:28:22: buckets of 1h cannot be kept for only 5m (keep them for at least their own width)"],
        ),
        (
            "where = \"channel = 'free'\"\nretention = { \"1m\" = \"14d\" }",
            &[
                "m.toml:28:22: buckets of 1m are kept for only 2w anyway (a rule can only shorten what the metric's retention says; leave it out)",
            ],
        ),
        (
            "where = \"channel = 'free'\"\nafter = \"7d\"\nkeep = 1",
            &["m.toml:29:1: metric.added.expire has an unknown key `keep` (known are where, after and retention)"],
        ),
        (
            "where = \"channel = 'a'\"\nafter = \"7d\"\n[[metric.added.expire]]\nwhere = \"channel = 'a'\"\nafter = \"8d\"",
            &["m.toml:30:9: the condition is listed twice (say by rollup how long, in one rule)"],
        ),
    ];
    for (rule, expected) in table {
        assert_eq!(problems(rule), *expected, "{rule}");
    }
    let single = text("[metric.added.expire]\nwhere = \"channel = 'a'\"\nafter = \"7d\"\n");
    let found = Catalog::compile(&[("m.toml".to_owned(), single)], &Versions::default()).map(|_| ()).unwrap_err();
    let help = "it must be a list of tables: [[metric.added.expire]]";
    assert_eq!(found[0].to_string(), format!("m.toml:26:1: `expire` is of type table ({help})"));
}

#[test]
fn a_rule_that_shortens_nothing_is_refused() {
    let all = ADDED.replace("\"1h\" = \"2y\"", "\"1h\" = \"7d\"\n\"1d\" = \"3d\"").replace("14d", "5d");
    let text = format!("{EDITS}{all}[[metric.added.expire]]\nwhere = \"channel = 'free'\"\nafter = \"7d\"\n");
    let found = Catalog::compile(&[("m.toml".to_owned(), text)], &Versions::default()).map(|_| ()).unwrap_err();
    assert!(found[0].message.contains("every rollup is kept for at most 1w anyway"), "{}", found[0]);
}

#[test]
fn a_rule_shortens_what_is_kept_for_longer_and_makes_another_definition() {
    let (with, without) = (metric(&text(RULES)), metric(&text("")));
    let minute = DAY / 1440;
    let kept = |rule: usize| with.expire[rule].kept.clone().into_iter().collect::<Vec<_>>();
    assert_eq!(kept(0), [(minute, 7 * DAY), (60 * minute, 7 * DAY), (DAY, 7 * DAY)]);
    assert_eq!(kept(1), [(minute, DAY), (DAY, 60 * DAY)]);
    let short =
        metric(&text("").replace("\"1m\" = \"14d\"", "\"1m\" = \"2d\"").replace("2y\"\n", &format!("2y\"\n{RULES}")));
    assert_eq!(short.expire[0].kept.keys().copied().collect::<Vec<_>>(), [60 * minute, DAY], "1m goes sooner anyway");

    let fingerprints =
        [&text(""), &text(RULES), &text(&RULES.replace("7d", "8d")), &text(&RULES.replace("'DE', ", ""))]
            .map(|text| metric(text).fingerprint());
    for (at, one) in fingerprints.iter().enumerate() {
        assert!(!fingerprints[..at].contains(one), "{at}: every change makes a new version");
    }
    let json = serde_json::to_string(&with.definition).unwrap();
    let definition: MetricDefinition = serde_json::from_str(&json).unwrap();
    let again = metric(&format!("{EDITS}{}", definition.to_toml("added").unwrap()));
    assert_eq!((again.fingerprint(), &again.definition), (with.fingerprint(), &with.definition));
    assert!(!serde_json::to_string(&without.definition).unwrap().contains("expire"));
}

fn series(values: &[&str]) -> Series {
    Series::new(&values.iter().map(|value| DimensionValue::Str((*value).to_owned())).collect::<Vec<_>>())
}

fn by_rules(metric: &Metric, view: usize, all: &[Series], best: fn(i64, i64) -> i64) -> Vec<Option<i64>> {
    let view = &metric.views[view];
    let rules = metric.expire.iter().enumerate().filter(|(_, rule)| rule.concerns(view));
    let values: BTreeMap<usize, i64> = rules.map(|(at, _)| (at, 10 + at as i64)).collect();
    metric.by_rules(view, &values, best, &all.iter().collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_rule_takes_matching_series_of_the_views_that_hold_its_dimensions() {
    let metric = metric(&text(RULES));
    let null = Series::new(&[DimensionValue::Null, DimensionValue::Str("DE".into())]);
    let all = [series(&["free", "DE"]), series(&["free", "US"]), series(&["x", "FR"]), series(&["gold", "FR"]), null];
    assert_eq!(by_rules(&metric, 0, &all, i64::max), [Some(11), Some(10), Some(11), None, None]);
    assert_eq!(by_rules(&metric, 0, &all, i64::min)[0], Some(10), "of several, the best");
    assert_eq!(by_rules(&metric, 1, &[series(&["free"]), series(&["gold"])], i64::max), [Some(10), None]);
    assert_eq!(by_rules(&metric, 2, &[series(&[])], i64::max), [None], "the total");
    let unknown = metric.by_rules(&metric.views[0], &BTreeMap::from([(2, 0)]), i64::max, &[]).unwrap_err();
    assert!(unknown.contains("no rule 2"), "{unknown}");
}

#[test]
fn the_overflow_series_matches_no_rule() {
    let metric = metric(&text(&RULES.replace("IN ('DE', 'FR')", "<> 'US'")));
    let all = [Series::overflow(2), series(&["$overflow", "x"])];
    assert_eq!(by_rules(&metric, 0, &all, i64::max), [None, Some(11)]);
}
