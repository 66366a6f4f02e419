//! Records to events: exact to the row, strict, and never in panic.

use arrow::{
    array::{Array, AsArray},
    datatypes::{Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type},
    util::pretty::pretty_format_batches,
};
use proptest::prelude::*;

use super::{EDITS, source};
use crate::{Decoded, Outcome, Source, time::format_time};

fn decode(source: &Source, records: &[&str]) -> Decoded {
    let records: Vec<(u64, &[u8])> = (100..).zip(records.iter().map(|record| record.as_bytes())).collect();
    source.decode(3, &records)
}

fn reasons(decoded: &Decoded) -> Vec<&str> {
    let reason = |outcome| match outcome {
        &Outcome::Accepted => "",
        Outcome::Dead(why) => why.as_str(),
    };
    decoded.outcomes.iter().map(reason).collect()
}

fn times(decoded: &Decoded) -> Vec<String> {
    decoded.events["_time"]
        .as_primitive::<TimestampMicrosecondType>()
        .values()
        .iter()
        .map(|at| format_time(*at))
        .collect()
}

#[test]
fn a_dead_record_leaves_no_trace_in_the_events() {
    let edits = source(EDITS);
    let decoded = decode(
        &edits,
        &[
            r##"{"time":"2015-09-12T00:46:58.771Z","uuid":"u1","channel":"#en","user":"GELongstreet","isRobot":false,"added":36,"x":{"y":[1]}}"##,
            r#"{"time":"2015-09-12T00:46:58.771Z","added":1.9}"#,
            r#"{"time":"2015-09-12T00:46:58.771Z","channel":7}"#,
            r#"{"time":null,"channel":"a"}"#,
            r#"{"channel":"a"}"#,
            r#"{"time":"yesterday"}"#,
            r#"{"time":"2015-09-12T00:47:00"} x"#,
            r#"[1]"#,
            r#"{"time":"2015-09-12T00:47:00"#,
            r#"{"time":"2015-09-12T00:47:00.4961999+02:00","channel":"\u00e9\"","added":2.0,"isRobot":null}"#,
            r#"{"time":"2015-09-12T00:47:00","isRobot":"true"}"#,
        ],
    );
    assert_eq!(
        reasons(&decoded),
        [
            "",
            "field added: 1.9 has digits after the point that int64 would lose",
            "field channel: expected string, found a number 7",
            "time (time): the event time is missing",
            "time (time): the event time is missing",
            "field time: expected timestamp, found yesterday; a time looks like 2015-09-12T00:46:58.771Z",
            "does not fit as JSON: trailing characters at line 1 column 32",
            "does not fit as JSON: invalid type: sequence, expected an object or array at line 1 column 0",
            "does not fit as JSON: EOF while parsing a string at line 1 column 28",
            "",
            "field isRobot: expected bool, found text \"true\"",
        ]
    );
    assert_eq!(decoded.events.schema(), edits.schema());
    let table = pretty_format_batches(&[decoded.events]).unwrap().to_string();
    let expected = "\
+------------+---------+----------------------------+-----+--------+----------------------------+------+---------+----------------+--------------+---------+-------+
| _partition | _offset | _time                      | _id | _order | time                       | uuid | channel | countryIsoCode | user         | isRobot | added |
+------------+---------+----------------------------+-----+--------+----------------------------+------+---------+----------------+--------------+---------+-------+
| 3          | 100     | 2015-09-12T00:46:58.771    | u1  |        | 2015-09-12T00:46:58.771    | u1   | #en     |                | GELongstreet | false   | 36    |
| 3          | 109     | 2015-09-11T22:47:00.496199 |     |        | 2015-09-11T22:47:00.496199 |      | é\"      |                |              |         | 2     |
+------------+---------+----------------------------+-----+--------+----------------------------+------+---------+----------------+--------------+---------+-------+";
    assert_eq!(table, expected);
}

const QUAKES: &str = r#"
[source.quakes]
format = "json"
time = "properties.time"
time_unit = "ms"
id = "id"
order = "seen"
[source.quakes.fields]
id = "string"
"properties.mag" = "float64"
"properties.time" = "int64"
"properties.updated" = "timestamp"
"geometry.coordinates[2]" = "decimal(8,2)"
[source.quakes.derive]
lag_s = '(seen - "properties.time") / 1000'
seen = '''CAST(date_part('epoch', "properties.updated") * 1000 AS BIGINT)'''
"#;

#[test]
fn nested_fields_array_items_and_epochs_are_read_and_derived_columns_find_their_order() {
    let quakes = source(QUAKES);
    let decoded = decode(
        &quakes,
        &[
            r#"{"id":"ak1","properties":{"mag":2,"time":1517365101235,"updated":1517365391235},"geometry":{"type":"Point","coordinates":[-136.5559,59.8411,0]}}"#,
            r#"{"id":"ak2","properties":{"mag":-0.8,"time":1517365101235,"updated":1517365391235},"geometry":{"coordinates":[-136.5559,59.8411,10.125]}}"#,
            r#"{"id":"ak3","properties":{"mag":-0.8,"time":1517365101235,"updated":"2018-01-31T02:23:11.235Z"},"geometry":{"coordinates":[1]}}"#,
            r#"{"id":"ak4","properties":5}"#,
            r#"{"id":"ak5","properties":{"mag":1e999,"time":1517365101235}}"#,
            r#"{"id":"ak6","properties":{"mag":9007199254740993,"time":1517365101235}}"#,
        ],
    );
    assert_eq!(
        reasons(&decoded),
        [
            "",
            "field geometry.coordinates[2]: 10.125 has digits after the point that decimal(8,2) would lose",
            "",
            "does not fit as JSON: invalid type: integer `5`, expected an object or array at line 1 column 26",
            "field properties.mag: 1e999 is not a number that float64 holds",
            "field properties.mag: 9007199254740993 has more digits than float64 holds; declare a decimal or int64",
        ]
    );
    assert_eq!(times(&decoded), ["2018-01-31T02:18:21.235Z"; 2]);
    let events = &decoded.events;
    assert_eq!(events["lag_s"].as_primitive::<Int64Type>().values(), &[290, 290]);
    assert_eq!(events["_order"].as_primitive::<Int64Type>().values(), &[1_517_365_391_235; 2]);
    assert_eq!(events["geometry.coordinates[2]"].as_primitive::<Decimal128Type>().value_as_string(0), "0.00");
    assert!(events["geometry.coordinates[2]"].is_null(1));
    let names: Vec<&str> =
        quakes.schema().fields().iter().skip(10).map(|f| f.name().as_str().to_owned().leak() as &str).collect();
    assert_eq!(names, ["lag_s", "seen"]);
}

const RETAIL: &str = r#"
[source.retail]
format = "csv"
header = true
time = "InvoiceDate"
time_zone = "Europe/London"
[source.retail.fields]
InvoiceNo = "string"
Quantity = "int64"
InvoiceDate = "timestamp"
UnitPrice = "decimal(12,3)"
Gift = "bool"
[source.retail.derive]
per_piece = "UnitPrice / Quantity"
revenue = "UnitPrice * Quantity"
"#;

#[test]
fn csv_bodies_become_lines_in_the_order_of_the_source_and_come_back() {
    let retail = source(RETAIL);
    let body = "\u{feff}Description,UnitPrice,Gift,InvoiceDate,InvoiceNo,Quantity\r\n\
        \"A \"\"B\"\", C\",2.55,True,2010-12-01 08:26:00,\"53,6365\",6\r\n\
        D,2.555x,0,2010-12-01 08:26:00,536365,6\r\n\
        short,1\r\n\
        \"two\nlines\",2.5,,2011-07-01 08:26:00,\"a\nb\",1\r\n";
    let split = retail.split(body.as_bytes()).unwrap();
    let texts: Vec<Result<&str, &str>> = split
        .iter()
        .map(|record| match record {
            Ok(record) => Ok(std::str::from_utf8(&record.payload).unwrap()),
            Err(why) => Err(why.as_str()),
        })
        .collect();
    assert_eq!(
        texts,
        [
            Ok("\"53,6365\",6,2010-12-01 08:26:00,2.55,True"),
            Err("field UnitPrice: expected decimal(12,3), found 2.555x"),
            Err("the line has 2 fields; it should have 6"),
            Ok("\"a\nb\",1,2011-07-01 08:26:00,2.5,"),
        ]
    );
    let decoded = decode(&retail, &[texts[0].unwrap(), texts[3].unwrap()]);
    assert_eq!(reasons(&decoded), ["", ""]);
    assert_eq!(times(&decoded), ["2010-12-01T08:26:00Z", "2011-07-01T07:26:00Z"]);
    assert_eq!(decoded.events["revenue"].as_primitive::<Decimal128Type>().value_as_string(0), "15.300");
    assert!(decoded.events["Gift"].is_null(1));
    assert_eq!(
        retail.split(b"a,b\n1,2\n").unwrap_err(),
        "the header names none of the columns InvoiceNo, Quantity, InvoiceDate, UnitPrice, Gift; it begins a, b"
    );
    assert_eq!(retail.split(b""), Ok(vec![]));
}

#[test]
fn a_derived_column_that_fails_kills_its_row_alone() {
    let retail = source(RETAIL);
    let mut lines: Vec<String> = (1..=40).map(|i| format!("{i},{i},2010-12-01 08:26:00,2.55,1")).collect();
    lines[17] = "18,0,2010-12-01 08:26:00,2.55,1".to_owned();
    lines[30] = "31,,2010-12-01 08:26:00,2.55,1".to_owned();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let decoded = decode(&retail, &lines);
    let dead: Vec<usize> = (0..40).filter(|row| decoded.outcomes[*row] != Outcome::Accepted).collect();
    assert_eq!(dead, [17]);
    assert!(reasons(&decoded)[17].starts_with("per_piece: Divide by zero"), "{}", reasons(&decoded)[17]);
    let offsets = decoded.events["_offset"].as_primitive::<UInt64Type>();
    assert_eq!(offsets.values().to_vec(), (100..140).filter(|o| *o != 117).collect::<Vec<u64>>());
    assert!(decoded.events["per_piece"].is_null(29));
}

#[test]
fn whole_numbers_overflow_into_a_dead_record_and_never_wrap() {
    let text = "[source.x]\nformat = \"json\"\ntime = \"t\"\ntime_unit = \"s\"\n[source.x.fields]\nt = \"float64\"\nn = \"int64\"\n\
                [source.x.derive]\ntwice = \"n * 2\"\npart = \"1.0 / (n + 1)\"\n";
    let decoded = decode(
        &source(text),
        &[
            r#"{"t":1594598424.5023336,"n":4611686018427387904}"#,
            r#"{"t":-0.0000001,"n":4}"#,
            r#"{"t":1594598424.502333,"n":-1}"#,
            r#"{"t":1e18,"n":1}"#,
        ],
    );
    let reasons = reasons(&decoded);
    assert!(reasons[0].starts_with("twice: ") && reasons[0].to_lowercase().contains("overflow"), "{}", reasons[0]);
    assert_eq!(
        reasons[1..],
        [
            "",
            "part: gives inf, which is not a number",
            "time (t): 1000000000000000000 is not a time; a time looks like 2015-09-12T00:46:58.771Z",
        ]
    );
    assert_eq!(times(&decoded), ["1969-12-31T23:59:59.999999Z"]);
    assert_eq!(decoded.events["part"].as_primitive::<Float64Type>().values(), &[0.2]);
}

#[test]
fn lines_of_text_are_taken_apart_by_derived_columns() {
    let access = source(
        r#"
[source.access]
format = "text"
time = "to_timestamp(parts[2], '%d/%b/%Y:%H:%M:%S %z')"
id = "line"
[source.access.derive]
parts = '''regexp_match(line, '^(\S+) \S+ \S+ \[([^\]]+)\] "(\S+) (\S+)[^"]*" (\d+) (\d+)')'''
status = "CAST(parts[5] AS BIGINT)"
bytes = "CAST(parts[6] AS BIGINT)"
"#,
    );
    let line = r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /a.gif HTTP/1.0" 200 2326"#;
    let decoded = decode(&access, &[line, "nonsense"]);
    assert_eq!(reasons(&decoded)[0], "");
    assert!(reasons(&decoded)[1].ends_with("the event time is missing"));
    assert_eq!(times(&decoded), ["2000-10-10T20:55:36Z"]);
    assert_eq!(decoded.events["status"].as_primitive::<Int64Type>().values(), &[200]);
    let split = access.split(format!("{line}\r\n\r\nnonsense\n").as_bytes()).unwrap();
    assert_eq!(split.len(), 2);
    assert_eq!(split[0].as_ref().unwrap().key.as_deref(), Some(line.as_bytes()));
}

#[test]
fn json_bodies_may_be_lines_an_array_or_one_spread_object() {
    let edits = source(EDITS);
    let one = r#"{"time":"2015-09-12T00:46:58Z","uuid":"u1"}"#;
    let bodies = [
        format!("{one}\n\n{one}\r\n"),
        format!("[{one},\n {one}]"),
        "{\"time\":\n\"2015-09-12T00:46:58Z\",\n\"uuid\":\"u1\"}\n{\"time\":\"2015-09-12T00:46:58Z\",\"uuid\":\"u1\"}"
            .to_owned(),
    ];
    for body in bodies {
        let split = edits.split(body.as_bytes()).unwrap();
        let keys: Vec<&[u8]> = split.iter().map(|record| record.as_ref().unwrap().key.as_deref().unwrap()).collect();
        assert_eq!(keys, [b"u1", b"u1"], "{body}");
    }
    let mixed = edits.split(format!("{one}\n{{broken\n{one}").as_bytes()).unwrap();
    assert_eq!(mixed.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert!(edits.split(b"[{}").unwrap_err().starts_with("the body is not a JSON array"));
}

/// Records that are nearly right: mutated pieces of good ones.
fn nearly(good: &'static str) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        Just(good.as_bytes().to_vec()),
        (0..good.len(), any::<u8>()).prop_map(move |(at, byte)| {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at] = byte;
            bytes
        }),
        (0..good.len()).prop_map(move |at| good.as_bytes()[..at].to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_give_one_outcome_per_record_and_only_accepted_ones_become_rows(
        json in prop::collection::vec(nearly(r#"{"id":"a","properties":{"mag":1.5e0,"time":1517365101235,"updated":null},"geometry":{"coordinates":[1,2,3.25]}}"#), 0..12),
        csv in prop::collection::vec(nearly("\"53\",6,2010-12-01 08:26:00,2.55,True"), 0..12),
        text in prop::collection::vec(nearly("12 2015-09-12T00:46:58Z"), 0..12),
    ) {
        let lines = "[source.t]\nformat = \"text\"\ntime = \"substr(line, 4)\"\n[source.t.derive]\nn = \"CAST(substr(line, 1, 2) AS BIGINT)\"\n";
        for (definition, records) in [(QUAKES, json), (RETAIL, csv), (lines, text)] {
            let source = source(definition);
            let given: Vec<(u64, &[u8])> = (0..).zip(records.iter().map(Vec::as_slice)).collect();
            let decoded = source.decode(0, &given);
            prop_assert_eq!(decoded.outcomes.len(), records.len());
            let accepted: Vec<u64> = (0..).zip(&decoded.outcomes).filter(|(_, o)| **o == Outcome::Accepted).map(|(at, _)| at).collect();
            prop_assert_eq!(decoded.events["_offset"].as_primitive::<UInt64Type>().values().to_vec(), accepted);
            // Alone, each record fares as it did among the others.
            for (record, outcome) in given.iter().zip(&decoded.outcomes) {
                prop_assert_eq!(&source.decode(0, &[*record]).outcomes[0], outcome);
            }
            let _ = source.split(&records.concat());
        }
    }
}
