//! Events to rows ready to fold.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Int64Type, UInt64Type},
    util::pretty::pretty_format_batches,
};

use super::{ADDED, EDITS, compile, metric};
use crate::{Aggregate, Metric, MetricError, ValueType, definition::MetricDefinition, definition::SourceDefinition};

fn events(metric: &Metric, records: &[String]) -> RecordBatch {
    let records: Vec<(u64, &[u8])> = (0..).zip(records.iter().map(String::as_bytes)).collect();
    metric.source.decode(0, &records).events
}

#[test]
fn the_example_of_the_documentation_is_prepared() {
    let metric = metric(&format!("{EDITS}{ADDED}"));
    let records = [
        r##"{"time":"2015-09-12T00:46:58.771Z","channel":"#en","user":"a","isRobot":false,"added":36}"##.to_owned(),
        r##"{"time":"2015-09-12T00:46:59Z","channel":"#en","user":"b","isRobot":true,"added":1}"##.to_owned(),
        r##"{"time":"1969-12-31T23:59:59Z","channel":"","countryIsoCode":"DE","isRobot":false}"##.to_owned(),
        r##"{"time":"2015-09-12T00:46:59Z","channel":"#en","added":1}"##.to_owned(),
    ];
    let prepared = metric.prepare(&events(&metric, &records)).unwrap();
    assert_eq!((prepared.filtered, prepared.rejected.len()), (2, 0));
    assert_eq!(prepared.rows.schema(), metric.prepared_schema());
    let expected = "\
+------------+---------+-------------------------+--------+---------------------+-----+----+----+----+
| _partition | _offset | _time                   | _order | _bucket             | d0  | d1 | v  | x0 |
+------------+---------+-------------------------+--------+---------------------+-----+----+----+----+
| 0          | 0       | 2015-09-12T00:46:58.771 |        | 2015-09-12T00:46:00 | #en |    | 36 | a  |
| 0          | 2       | 1969-12-31T23:59:59     |        | 1969-12-31T23:59:00 |     | DE |    |    |
+------------+---------+-------------------------+--------+---------------------+-----+----+----+----+";
    assert_eq!(pretty_format_batches(&[prepared.rows]).unwrap().to_string(), expected);
    assert_eq!(
        metric.columns(),
        ["_partition", "_offset", "_time", "_order", "channel", "countryIsoCode", "user", "isRobot", "added"]
    );
    assert_eq!(metric.value_type, ValueType::Int64);
    assert_eq!(metric.aggregates[4], Aggregate::Distinct { field: "user".to_owned(), input: 0 });
    let minute = 60_000_000;
    assert_eq!(metric.widths(), [minute, 60 * minute, 24 * 60 * minute]);
    assert_eq!(metric.retention[&minute], 14 * 24 * 60 * minute);
}

#[test]
fn rows_that_fail_are_rejected_one_by_one_and_the_archive_may_hold_fewer_columns() {
    let text = r#"
[metric.m]
source = "edits"
where = "100 / (added - 5) < 1000"
value = "sqrt(added)"
dimensions = ["channel", { name = "hour", sql = "date_trunc('hour', _time)" }, { name = "half", sql = "added / 2.0" }, "isRobot"]
aggregates = ["sum", "top(added * 1000000000000000000)"]
grain = "10s"
"#;
    let metric = metric(&format!("{EDITS}{text}"));
    let row = |added: i64, channel: &str| {
        format!(r#"{{"time":"2015-09-12T00:46:58Z","channel":"{channel}","isRobot":true,"added":{added}}}"#)
    };
    let records: Vec<String> =
        (0..9).map(|added| row(added, "a")).chain([row(-1, "a"), row(12, "a"), row(9, &"x".repeat(513))]).collect();
    let events = events(&metric, &records);
    let prepared = metric.prepare(&events).unwrap();
    let rejected: Vec<(u64, &str)> =
        prepared.rejected.iter().map(|(offset, why)| (*offset, why.split(':').next().unwrap())).collect();
    assert_eq!(rejected, [(5, "where"), (9, "value"), (10, "argument"), (11, "dimension channel")]);
    assert_eq!(prepared.rejected[3].1, "dimension channel: a value of 513 bytes; the limit is 512");
    assert_eq!(prepared.rows["_offset"].as_primitive::<UInt64Type>().values(), &[0, 1, 2, 3, 4, 6, 7, 8]);
    assert_eq!(prepared.rows["d1"].as_string::<i32>().value(0), "2015-09-12T00:00:00Z");
    assert_eq!(prepared.rows["x0"].as_string::<i32>().value(7), "8000000000000000000");
    let archived = events
        .project(&metric.columns().iter().rev().map(|name| events.schema().index_of(name).unwrap()).collect::<Vec<_>>())
        .unwrap();
    assert_eq!(metric.prepare(&archived).unwrap().rows, prepared.rows);
    let missing = events.project(&[0, 1, 2, 3, 4]).unwrap();
    assert!(matches!(metric.prepare(&missing), Err(MetricError::Events { .. })));
}

#[test]
fn a_query_goes_to_the_smallest_view_that_holds_its_columns() {
    let metric = metric(&format!("{EDITS}{ADDED}"));
    let ids: Vec<&str> = metric.views.iter().map(|view| view.id.as_str()).collect();
    assert_eq!(ids, ["added.1.0", "added.1.1", "added.1.2"]);
    let asked = |columns: &[&str]| metric.views_for(columns).unwrap()[0].id.as_str().to_owned();
    assert_eq!(asked(&[]), "added.1.2");
    assert_eq!(asked(&["channel"]), "added.1.1");
    assert_eq!(asked(&["countryIsoCode"]), "added.1.0");
    assert_eq!(
        metric.views_for(&["user"]).unwrap_err().to_string(),
        "metric added has no dimension \"user\"; it has channel, countryIsoCode"
    );
    assert_eq!(metric.views.iter().map(|view| view.shards).collect::<Vec<_>>(), [4, 4, 1]);
}

#[test]
fn definitions_come_back_from_json_and_toml_and_equal_ones_have_one_fingerprint() {
    let catalog = compile(&format!("{EDITS}{ADDED}"));
    let (source, metric) = (&catalog.sources["edits"].definition, &catalog.metrics["added"].definition);
    let json = serde_json::to_string(metric).unwrap();
    assert_eq!(&serde_json::from_str::<MetricDefinition>(&json).unwrap(), metric);
    let text = source.to_toml("edits").unwrap() + &metric.to_toml("added").unwrap();
    let again = compile(&text);
    assert_eq!(&again.sources["edits"].definition, source);
    assert_eq!(&again.metrics["added"].definition, metric);
    let json = serde_json::to_string(source).unwrap();
    assert_eq!(&serde_json::from_str::<SourceDefinition>(&json).unwrap(), source);
    let mut other = source.clone();
    other.fields.0.reverse();
    assert_eq!(other.fingerprint(), source.fingerprint());
    other.fields.0.pop();
    assert_ne!(other.fingerprint(), source.fingerprint());
    assert_eq!(metric.fingerprint(), again.metrics["added"].definition.fingerprint());
}

#[test]
fn decimals_and_distinct_values_keep_their_types() {
    let text = r#"
[source.sales]
format = "csv"
time = "at"
columns = ["at", "skipped", "price", "pieces", "day"]
[source.sales.fields]
at = "timestamp"
price = "decimal(12,3)"
pieces = "int64"
day = "date"
[metric.revenue]
source = "sales"
value = "price * pieces"
dimensions = ["day", "price"]
aggregates = ["sum", "distinct(pieces)", "top(pieces, 3)"]
grain = "1d"
"#;
    let metric = metric(text);
    assert_eq!(metric.value_type, ValueType::Decimal { precision: 33, scale: 3 });
    let events = events(&metric, &["2010-12-01 08:26,x,2.55,6,2010-12-01".to_owned()]);
    let rows = metric.prepare(&events).unwrap().rows;
    assert_eq!(rows["d0"].as_string::<i32>().value(0), "2010-12-01");
    assert_eq!(rows["d1"].as_string::<i32>().value(0), "2.550");
    assert_eq!(rows.num_columns(), 9);
    assert_eq!(rows["x0"].as_string::<i32>().value(0), "6");
    assert_eq!(rows["_bucket"].len(), 1);
    assert_eq!(rows["_offset"].as_primitive::<UInt64Type>().value(0), 0);
    let pieces = events["pieces"].as_primitive::<Int64Type>().value(0);
    assert_eq!(pieces, 6);
}
