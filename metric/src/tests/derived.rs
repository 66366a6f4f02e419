//! Derived metrics: what is refused, with its place, and what a sound one is over.

use std::sync::Arc;

use super::{ADDED, EDITS, compile};
use crate::{Answer, AnswerType, Catalog, Versions};

const OTHERS: &str = r#"
[metric.visits]
source = "edits"
dimensions = ["channel", { name = "countryIsoCode", sql = "isRobot" }]
aggregates = ["count"]
grain = "10s"
[metric.odd]
source = "edits"
aggregates = ["count"]
grain = "15s"
"#;

fn with(expression: &str) -> String {
    format!("{EDITS}{ADDED}{OTHERS}[derived.d]\nexpression = {expression}\n")
}

#[test]
fn each_mistake_is_told_with_its_place_and_what_would_be_right() {
    let line = with("").trim_end().lines().count();
    for (expression, column, message) in [
        ("\"sum(added) / count(visit)\"", 28, "`expression`: there is no metric visit (did you mean visits?)"),
        ("\"visits +\"", 23, "`expression`: ends where a number or a metric should stand (numbers, METRIC"),
        ("\"added / visits\"", 15, "`expression`: metric added has several aggregates: say which, as in count(added),"),
        ("\"visits / sum(visits)\"", 24, "`expression`: metric visits has no `sum`; it has count"),
        ("\"1 + 1\"", 15, "`expression`: names no metric (as in errors / requests)"),
        ("\"visits / odd\"", 15, "`expression`: the grain 10s of metric visits does not divide another's, 15s"),
        ("5", 14, "`expression` is the number 5 (it must be a text in quotes)"),
    ] {
        let files = [("m.toml".to_owned(), with(expression))];
        let found = Catalog::compile(&files, &Versions::default()).map(|_| ()).unwrap_err();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let place = format!("m.toml:{line}:{column}: {message}");
        assert!(found.len() == 1 && found[0].starts_with(&place), "{expression}: {found:?}");
    }
    for (text, message) in [
        ("[derived.added]\nexpression = \"visits\"\n", "added is a metric already, at m.toml:"),
        ("[derived.d]\n", "derived.d has no `expression`"),
        ("[derived.d]\nexpression = \"visits\"\ngrain = \"1m\"\n", "derived.d has an unknown key `grain`"),
        ("[dervied.d]\n", "did you mean [derived.NAME]?"),
    ] {
        let files = [("m.toml".to_owned(), format!("{EDITS}{ADDED}{OTHERS}{text}"))];
        let found = Catalog::compile(&files, &Versions::default()).map(|_| ()).unwrap_err();
        assert!(found.len() == 1 && found[0].to_string().contains(message), "{found:?}");
    }
}

#[test]
fn it_has_the_coarsest_grain_and_the_dimensions_that_all_its_metrics_have() {
    let catalog = compile(&with("\"sum(added) * 2 / visits + distinct(added, user)\""));
    let derived = Arc::clone(&catalog.derived["d"]);
    let resolved = derived.over(|name| catalog.metrics.get(name)).unwrap();
    assert_eq!(resolved.grain, 60_000_000);
    let dimensions: Vec<&str> = resolved.dimensions.iter().map(|dimension| dimension.name.as_str()).collect();
    assert_eq!(dimensions, ["channel"], "of the same name and another type is another dimension");
    assert_eq!(resolved.metrics.len(), 2);
    assert_eq!(resolved.answer_type(), AnswerType::Float);
    let value = |answers: [Answer; 3]| resolved.value(|at| Ok(answers[at].clone())).unwrap();
    assert_eq!(value([Answer::Int(6), Answer::Int(4), Answer::Int(1)]), Answer::Float(4.0));
    assert_eq!(value([Answer::Null, Answer::Int(4), Answer::Null]), Answer::Float(0.0), "sums of nothing are zero");
    assert_eq!(value([Answer::Int(6), Answer::Int(0), Answer::Int(1)]), Answer::Null);
    let gone = derived.over(|name| catalog.metrics.get(name).filter(|metric| metric.name != "visits")).unwrap_err();
    assert_eq!(gone, "there is no metric visits");
}
