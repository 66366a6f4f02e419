//! Laws of definitions: what is refused, how, and what events become.

mod bad_definitions;
mod decoding;
mod derived;
mod examples;
mod expiry;
mod preparing;
mod tables;

use std::sync::Arc;

use crate::{Catalog, Metric, Source, Versions};

pub(crate) fn compile(text: &str) -> Catalog {
    match Catalog::compile(&[("metrics.toml".to_owned(), text.to_owned())], &Versions::default()) {
        Ok(catalog) => catalog,
        Err(found) => panic!("{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

fn source(text: &str) -> Arc<Source> {
    Arc::clone(compile(text).sources.values().next().unwrap())
}

fn metric(text: &str) -> Arc<Metric> {
    Arc::clone(compile(text).metrics.values().next().unwrap())
}

const EDITS: &str = r#"
[source.edits]
topic = "wikipedia.edits"
format = "json"
time = "time"
id = "uuid"
[source.edits.fields]
time = "timestamp"
uuid = "string"
channel = "string"
countryIsoCode = "string"
user = "string"
isRobot = "bool"
added = "int64"
"#;

const ADDED: &str = r#"
[metric.added]
source = "edits"
where = "NOT isRobot"
value = "added"
dimensions = ["channel", "countryIsoCode"]
groupings = [["channel"]]
aggregates = ["count", "sum", "min", "max", "distinct(user)", "quantiles"]
grain = "1m"
rollups = ["1h", "1d"]
[metric.added.retention]
"1m" = "14d"
"1h" = "2y"
"#;
