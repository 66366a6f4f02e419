//! The examples compile, and the queries of `truths.toml` can be asked of them.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use crate::{Aggregate, Catalog, Metric, Versions};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Truths {
    query: Vec<Query>,
    left_out: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    truth: String,
    metric: String,
    params: BTreeMap<String, String>,
    map: BTreeMap<String, String>,
    #[serde(default)]
    how: BTreeMap<String, String>,
    rows: Option<String>,
    absent: Option<i64>,
}

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn keeps(metric: &Metric, asked: &str) -> bool {
    metric.aggregates.iter().any(|aggregate| match aggregate {
        Aggregate::Count => asked == "count",
        Aggregate::Sum => asked == "sum",
        Aggregate::Min => asked == "min",
        Aggregate::Max => asked == "max",
        Aggregate::Avg => asked == "avg",
        Aggregate::First => asked == "first",
        Aggregate::Last => asked == "last",
        Aggregate::Quantiles => asked.strip_prefix('p').is_some_and(|p| p.parse::<f64>().is_ok()),
        Aggregate::Distinct { field, .. } => asked == format!("distinct({field})"),
        Aggregate::Top { field, .. } => asked.starts_with(&format!("top({field}")),
    })
}

#[test]
fn every_truth_query_asks_for_what_its_metric_keeps() {
    let text = std::fs::read_to_string(examples().join("truths.toml")).unwrap();
    let truths: BTreeMap<String, Truths> = toml::from_str(&text).unwrap();
    assert_eq!(truths.len(), 7);
    for (set, Truths { query, left_out }) in &truths {
        let catalog = Catalog::load(&[examples().join(set)], &Versions::default()).unwrap();
        assert!(catalog.sources.contains_key(set) && catalog.metrics.len() <= 8);
        assert!(left_out.values().all(|why| !why.is_empty()));
        for query in query {
            let name = format!("{set}: {} of {}", query.truth, query.metric);
            let metric = &catalog.metrics[&query.metric];
            let group_by = query.params.get("group_by").map_or("", String::as_str);
            for dimension in group_by.split(',').filter(|dimension| !dimension.is_empty()) {
                assert!(
                    metric.dimensions.iter().any(|known| known.name == dimension),
                    "{name}: no dimension {dimension}"
                );
            }
            for (column, place) in &query.map {
                let good = match place.split_once(':') {
                    Some(("aggregate", asked)) => keeps(metric, asked),
                    Some(("dimension", dimension)) => group_by.split(',').any(|asked| asked == dimension),
                    _ => place == "start" && query.params.contains_key("step"),
                };
                assert!(good, "{name}: {column} = {place} cannot be asked");
            }
            assert!(
                query.how.iter().all(|(column, how)| query.map.contains_key(column)
                    && ["exact", "float", "quantile", "distinct"].contains(&how.as_str())),
                "{name}: how"
            );
            assert!(query.rows.as_ref().is_none_or(|rows| rows == "subset"), "{name}: rows");
            assert!(query.absent.is_none_or(|absent| absent == 0), "{name}: absent");
        }
    }
}
