use proptest::prelude::*;

use super::*;

fn check(sample: &str, name: &str, lines: &[&str]) {
    let text = infer(sample.as_bytes(), name).unwrap();
    for line in lines {
        assert!(text.lines().any(|l| l.starts_with(line)), "no line begins with {line:?} in\n{text}");
    }
}

#[test]
fn json_is_inferred_with_nested_fields_mixed_numbers_and_an_epoch() {
    let sample = r#"
{"type":"Feature","properties":{"mag":2,"time":1517365101235,"felt":null},"geometry":{"coordinates":[-136.5,59.8,0]},"id":"ak1"}
{"type":"Feature","properties":{"mag":1.9,"time":1517365017350,"felt":3},"geometry":{"coordinates":[-175.7,-28,10]},"id":"us2"}
{"type":"Feature","properties":{"mag":1.1,"ti"#;
    check(
        sample,
        "quakes",
        &[
            "# Proposed by `lamina infer`: 2 of 2 events",
            "[source.quakes]",
            "format = \"json\"",
            "time = \"properties.time\"  # 2018-01-31T02:16:57.350Z to 2018-01-31T02:18:21.235Z",
            "time_unit = \"ms\"",
            "id = \"id\"",
            "\"properties.mag\" = \"float64\"",
            "\"properties.felt\" = \"int64\"  # 3; empty in 1 events",
            "\"geometry.coordinates[0]\" = \"float64\"",
            "\"type\" = \"string\"",
        ],
    );
}

#[test]
fn csv_is_inferred_with_its_delimiter_and_numbers_that_are_names() {
    let sample = "when;shop;total;paid\n2015-09-12 00:46:58;007;1.50;true\n2015-09-12 00:47:58;012;;false\n";
    check(
        sample,
        "my shop",
        &[
            "[source.my_shop]",
            "header = true",
            "delimiter = \";\"",
            "time = \"when\"",
            "# time_zone",
            "\"shop\" = \"string\"",
            "\"total\" = \"float64\"",
            "\"paid\" = \"bool\"",
        ],
    );
}

#[test]
fn log_lines_are_inferred_by_the_time_in_them() {
    let apache = "127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] \"GET /a.gif HTTP/1.0\" 200 2326\n";
    check(apache, "access", &["format = \"text\"", "time = \"to_timestamp(at, '%d/%b/%Y:%H:%M:%S %z')\""]);
    let iso = "2015-09-12T00:46:58.771Z INFO started\n2015-09-12T00:46:59Z WARN slow\n  at line 3\n";
    check(iso, "app", &["# Proposed by `lamina infer`: 2 of 3", "time = \"at\""]);
}

#[test]
fn a_sample_without_a_time_says_so() {
    assert!(infer(b"", "x").unwrap_err().contains("empty"));
    assert!(infer(b"{\"a\":1}\n", "x").unwrap_err().contains("event time"));
    assert!(infer(b"hello\nworld\n", "x").unwrap_err().contains("no time"));
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        (-1e9..1e9).prop_map(Into::into),
        "\\PC{0,8}".prop_map(Into::into),
        Just("2015-09-12".into()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::btree_map("[a-c.\"\\[\u{7f}é]{0,3}|_id", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_proposed_for_json_compiles_and_reads_every_event_of_the_sample(
        rows in prop::collection::vec((json_value(), 1_400_000_000_i64..1_600_000_000), 1..8),
    ) {
        let lines = rows.into_iter().map(|(mut value, at)| {
            if !value.is_object() {
                value = serde_json::json!({ "inner": value });
            }
            value["ts"] = at.into();
            format!("{value}\n")
        });
        let sample: String = lines.collect();
        let text = infer(sample.as_bytes(), "any").unwrap();
        let catalog = Catalog::compile(&[("p".to_owned(), text.clone())], &Versions::default()).unwrap();
        let read = catalog.sources["any"].split(sample.as_bytes()).unwrap();
        prop_assert!(read.iter().all(Result::is_ok), "{read:?}\n{text}");
    }

    #[test]
    fn no_sample_makes_inferring_panic(sample in prop::collection::vec(any::<u8>(), 0..200), name in "\\PC{0,10}") {
        let _ = infer(&sample, &name);
    }
}
