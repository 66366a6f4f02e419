//! A wrong definition is told apart exactly: which file, which line, which column, and what would be right.

use super::{ADDED, EDITS};
use crate::{Catalog, Versions};

fn problems(text: &str) -> Vec<String> {
    let files = [("m.toml".to_owned(), text.to_owned())];
    let found = Catalog::compile(&files, &Versions::default()).map(|_| ()).unwrap_err();
    found.iter().map(ToString::to_string).collect()
}

/// The example of the documentation with one text replaced.
fn with(from: &str, to: &str) -> Vec<String> {
    let text = format!("{}{}", EDITS.trim_start(), ADDED.trim_start());
    assert!(text.contains(from), "{from:?} is not in the example");
    problems(&text.replacen(from, to, 1))
}

#[test]
fn each_mistake_is_told_with_its_place_and_what_would_be_right() {
    let table: &[(&str, &str, &[&str])] = &[
        (
            "format = \"json\"",
            "format = \"avro\"",
            &["m.toml:3:10: format avro is not read by this version (this version reads json, csv and text)"],
        ),
        ("topic = ", "topics = ", &["m.toml:2:1: source.edits has an unknown key `topics` (did you mean `topic`?)"]),
        (
            "topic = \"wikipedia.edits\"",
            "topic = \"a/b\"",
            &["m.toml:2:9: topic \"a/b\" is not a topic name (use up to 249 letters, digits, dots, _ and -)"],
        ),
        (
            "time = \"time\"",
            "",
            &[
                "m.toml:1:9: source.edits has no `time` (name the field or SQL expression that gives the event time, as in time = \"ts\")",
            ],
        ),
        (
            "time = \"time\"",
            "time = \"added\"",
            &["m.toml:4:8: `time` is a number (say what it counts: time_unit = \"s\", \"ms\", \"us\" or \"ns\")"],
        ),
        (
            "time = \"time\"",
            "time = \"tiem\"",
            &["m.toml:4:8: there is no field tiem (did you mean time? Names are case-sensitive)"],
        ),
        (
            "time = \"time\"",
            "time = \"time\"\ntime_zone = \"America/NewYork\"",
            &["m.toml:5:13: time_zone \"America/NewYork\" is not known (did you mean America/New_York?)"],
        ),
        ("time = \"time\"", "time = 5", &["m.toml:4:8: `time` is the number 5 (it must be a text in quotes)"]),
        (
            "added = \"int64\"",
            "added = \"integer\"",
            &[
                "m.toml:13:9: field added has the unknown type \"integer\" (types are string, int64, float64, decimal(p,s), bool, timestamp or date)",
            ],
        ),
        (
            "added = \"int64\"",
            "geo.country = \"string\"",
            &["m.toml:13:1: `geo` is a table, not a text (quote a name that holds a dot: \"geo.country\" = ...)"],
        ),
        (
            "added = \"int64\"",
            "added = \"int64\"\n_time = \"string\"",
            &["m.toml:14:1: _time is a column that every source has (choose another name)"],
        ),
        ("source = \"edits\"", "source = \"edit\"", &["m.toml:15:10: there is no source edit (did you mean edits?)"]),
        (
            "where = \"NOT isRobot\"",
            "where = \"channel\"",
            &["m.toml:16:9: `where` is of type string (it must be true or false, as in status = 200)"],
        ),
        (
            "value = \"added\"",
            "value = \"isRobot\"",
            &[
                "m.toml:17:9: `value` is of type bool (it must be a number: CASE WHEN x THEN 1 ELSE 0 END counts what is true)",
            ],
        ),
        (
            "value = \"added\"",
            "value = \"sum(added)\"",
            &[
                "m.toml:17:9: the aggregate sum cannot be used in an expression over one event (use columns and scalar functions)",
            ],
        ),
        (
            "value = \"added\"",
            "value = \"added * random()\"",
            &[
                "m.toml:17:9: random() gives another value each time it is asked (an expression must depend on the event alone; take times from its fields)",
            ],
        ),
        (
            "value = \"added\"",
            "value = \"date_part('year', now())\"",
            &[
                "m.toml:17:9: now() gives another value each time it is asked (an expression must depend on the event alone; take times from its fields)",
            ],
        ),
        (
            "value = \"added\"",
            "value = \"(SELECT 1)\"",
            &[
                "m.toml:17:9: a subquery cannot be used in an expression over one event (use columns and scalar functions)",
            ],
        ),
        (
            "value = \"added\"",
            "value = \"added AS bytes\"",
            &[
                "m.toml:17:9: \"bytes\" after an expression would name it, which has no meaning here (leave it out; a name that holds a space or a dot is quoted)",
            ],
        ),
        (
            "value = \"added\"",
            "",
            &[
                "m.toml:20:24: sum needs a `value` (say which field or expression it is of, as in value = \"amount\")",
                "m.toml:20:31: min needs a `value` (say which field or expression it is of, as in value = \"amount\")",
                "m.toml:20:38: max needs a `value` (say which field or expression it is of, as in value = \"amount\")",
                "m.toml:20:63: quantiles needs a `value` (say which field or expression it is of, as in value = \"amount\")",
            ],
        ),
        (
            "\"countryIsoCode\"]\n",
            "\"countryIsoCode\", \"Channel\"]\n",
            &["m.toml:18:44: there is no field Channel (did you mean channel? Names are case-sensitive)"],
        ),
        (
            "\"countryIsoCode\"]\n",
            "\"countryIsoCode\", \"substr(channel, 1, 3)\"]\n",
            &[
                "m.toml:18:44: dimension substr(channel, 1, 3) could not be asked for: its name holds a comma (give it a name: { name = \"...\", sql = \"...\" })",
            ],
        ),
        (
            "groupings = [[\"channel\"]]",
            "groupings = [[\"user\"], [\"countryIsoCode\", \"channel\"]]",
            &[
                "m.toml:19:14: user is not a dimension of the metric (dimensions are channel, countryIsoCode)",
                "m.toml:19:24: the full set of dimensions is always kept (leave this grouping out)",
            ],
        ),
        (
            "\"quantiles\"]",
            "\"p95\"]",
            &["m.toml:20:63: aggregate \"p95\" is not known (keep quantiles; queries ask for p50, p99.9 and so on)"],
        ),
        ("\"quantiles\"]", "\"mean\"]", &["m.toml:20:63: aggregate \"mean\" is not known (did you mean avg?)"]),
        (
            "\"quantiles\"]",
            "\"top(user, 0)\"]",
            &["m.toml:20:63: top(user, 0) is not usable (write top(FIELD, K) with K from 1 to 1000)"],
        ),
        (
            "grain = \"1m\"",
            "grain = \"7s\"",
            &[
                "m.toml:21:9: grain 7s does not divide a day (a grain of at least 1s that divides a day, as 10s, 1m, 5m, 1h or 1d)",
                "m.toml:22:12: rollup 1h is not a multiple of 7s (rollups ascend, each a multiple of the one before and of the grain)",
                "m.toml:24:1: retention for 1m, which is neither the grain nor a rollup (widths are 7s, 1h, 1d)",
            ],
        ),
        (
            "grain = \"1m\"",
            "grain = \"1 minute\"",
            &[
                "m.toml:21:9: \"1 minute\" is not a length of time (write a whole number and s, m, h, d, w or y, as in 10s)",
            ],
        ),
        (
            "rollups = [\"1h\", \"1d\"]",
            "rollups = [\"1d\", \"1h\"]",
            &[
                "m.toml:22:18: rollup 1h is not a multiple of 1d (rollups ascend, each a multiple of the one before and of the grain)",
            ],
        ),
        (
            "\"1m\" = \"14d\"",
            "\"5m\" = \"14d\"",
            &["m.toml:24:1: retention for 5m, which is neither the grain nor a rollup (widths are 1m, 1h, 1d)"],
        ),
        (
            "\"1h\" = \"2y\"",
            "\"1h\" = \"5m\"",
            &["m.toml:25:8: buckets of 1h cannot be kept for only 5m (keep them for at least their own width)"],
        ),
    ];
    let told: Vec<(&str, Vec<String>)> = table.iter().map(|(from, to, _)| (*to, with(from, to))).collect();
    let expected: Vec<(&str, Vec<String>)> =
        table.iter().map(|(_, to, expected)| (*to, expected.iter().map(ToString::to_string).collect())).collect();
    for (told, expected) in told.iter().zip(&expected).filter(|(told, expected)| told != expected) {
        println!("told:     {told:?}\nexpected: {expected:?}");
    }
    assert!(told == expected);
}

#[test]
fn a_word_that_is_neither_source_nor_metric_is_refused() {
    assert_eq!(problems("[metrics.added]\n"), ["m.toml:1:2: unknown key `metrics` (did you mean [metric.NAME]?)"]);
    assert_eq!(problems("metric = 3\n"), ["m.toml:1:10: `metric` is not a table (write [metric.NAME])"]);
}

#[test]
fn every_problem_of_every_file_is_told_at_once() {
    let files = [
        ("a.toml".to_owned(), EDITS.replace("json", "xml").replace("\"bool\"", "\"flag\"")),
        ("b.toml".to_owned(), format!("{ADDED}\n[metric.added2]\nsource = \"edits\"\ngrain = \"1m\"\n")),
        ("c.toml".to_owned(), ADDED.to_owned()),
        ("d.toml".to_owned(), "[source.x]\nformat = \n".to_owned()),
    ];
    let found = Catalog::compile(&files, &Versions::default()).map(|_| ()).unwrap_err();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found[..4],
        [
            "a.toml:4:10: format \"xml\" is not known (this version reads json, csv and text)",
            "a.toml:13:11: field isRobot has the unknown type \"flag\" (types are string, int64, float64, decimal(p,s), bool, timestamp or date)",
            "b.toml:15:9: metric.added2 has no `aggregates` (as in aggregates = [\"count\", \"sum\"])",
            "c.toml:2:9: metric added is defined already, at b.toml:2 (each name stands once; rename or remove one of them)",
        ]
    );
    assert!(found[4].starts_with("d.toml:2:10: is not TOML: "), "{}", found[4]);
    assert_eq!(found.len(), 5);
}

#[test]
fn derived_columns_that_need_one_another_are_refused_and_others_are_not_blamed() {
    let text = |derive: &str| format!("{EDITS}[source.edits.derive]\n{derive}\n");
    assert_eq!(
        problems(&text("a = \"b + 1\"\nb = \"c\"\nc = \"a\"\nd = \"added\"")),
        ["m.toml:16:1: derived columns need one another in a circle: a, b, c (define one of them from fields alone)"]
    );
    assert_eq!(
        problems(&text("a = \"b + 1\"\nb = \"addded * 2\"")),
        ["m.toml:17:5: there is no field addded (did you mean added? Names are case-sensitive)"]
    );
    for wraps in ["added + (9223372036854775807 + 1)", "added / (1 / 0)"] {
        let constant = problems(&text(&format!("a = \"{wraps}\"")));
        assert!(constant[0].starts_with("m.toml:16:5: "), "{constant:?}");
    }
    let syntax = problems(&text("a = \"added +\""));
    assert!(syntax[0].starts_with("m.toml:16:5: "), "{syntax:?}");
    let function = problems(&text("a = \"no_such_function(added)\""));
    assert!(function[0].starts_with("m.toml:16:5: ") && function[0].contains("no_such_function"), "{function:?}");
}
