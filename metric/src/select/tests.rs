use super::{condition::MAX_LENGTH, *};
use DimensionValue::{Bool, Float, Int, Null, Str};

fn dimensions() -> Vec<Dimension> {
    let types = [DataType::Utf8, DataType::Int64, DataType::Boolean, DataType::Float64, DataType::Utf8, DataType::Utf8];
    let names = ["user", "Status", "isRobot", "load", "geo.country", "a b"];
    names.into_iter().zip(types).map(|(name, data_type)| Dimension { name: name.to_owned(), data_type }).collect()
}

fn parse(sql: &str) -> Result<SeriesFilter, String> {
    SeriesFilter::over(sql, &dimensions())
}

/// Which of three series pass: one of usual values, one of nulls, the overflow.
fn passes(sql: &str) -> [bool; 3] {
    let usual = [Str("anna".into()), Int(200), Bool(true), Float(0.5_f64.to_bits()), Str("DE".into()), Str("x".into())];
    let series = [Series::new(&usual), Series::new(&vec![Null; 6]), Series::overflow(6)];
    let filter = parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    filter.mask_of(&[0, 1, 2, 3, 4, 5], &dimensions(), &series.each_ref()).unwrap().try_into().unwrap()
}

#[test]
fn only_true_passes() {
    let usual = [true, false, false];
    for sql in [
        "user = 'anna'",
        "isRobot",
        "NOT isRobot = FALSE",
        "Status BETWEEN 200 AND 299",
        "Status > -1",
        "Status >= 199.5",
        "load < 1",
        "load IN (0.5, 1)",
        "geo.country LIKE 'D%' AND user NOT LIKE '%b%'",
        "user ILIKE 'ANN_'",
        "\"a b\" = 'x' AND \"geo.country\" = 'DE'",
        "isRobot IS TRUE and Status in (1, 200) or (user is null and Status is not null)",
        "user <> '$overflow'",
        "user IS DISTINCT FROM '$overflow' AND user IS NOT NULL",
        "'anna' = user",
    ] {
        assert_eq!(passes(sql), usual, "{sql}");
    }
    assert_eq!(passes("user IS NULL"), [false, true, false]);
    assert_eq!(passes("user = '$overflow'"), [false, false, true]);
    assert_eq!(passes("Status IS NULL"), [false, true, true]);
    assert_eq!(passes("TRUE"), [true; 3]);
    assert_eq!(passes("NULL"), [false; 3]);
    assert_eq!(passes("user = NULL"), [false; 3]);
}

#[test]
fn what_is_not_allowed_is_named() {
    for (sql, named) in [
        ("lower(user) = 'a'", "functions are not allowed in a filter: `lower(`"),
        ("User = 'a'", "`User` is not a dimension; the metric has user, Status, isRobot, load, geo.country, a b"),
        ("Status + 1 = 2", "`+`"),
        ("Status - 1 = 2", "`-`"),
        ("Status = -user", "`-` is allowed before a number only"),
        ("user IN (SELECT 1)", "`SELECT` is not a dimension"),
        ("CASE WHEN isRobot THEN 1 END", "`CASE` is not a dimension"),
        ("CAST(Status AS TEXT) = '1'", "`CAST("),
        ("user = 'a' ; DROP", "`;` is not expected"),
        ("user = 'a' user", "`user` is not expected there"),
        ("user", "must be a condition"),
        ("Status", "must be a condition"),
        ("", "ends too early"),
        ("user = ", "ends too early"),
        ("user = 'a", ""),
        ("user ~ 'a'", "`~`"),
        ("user || 'a' = 'b'", "`||`"),
        ("geo. = 'a'", "a name is expected after `geo.`"),
        ("(user, Status) = ('a', 1)", "`)` is expected, not `,`"),
        ("user NOT = 'a'", "after NOT"),
        ("Status = 1e999", "not a number"),
    ] {
        let error = parse(sql).expect_err(sql);
        assert!(error.contains(named), "{sql}: {error}");
    }
}

#[test]
fn columns_are_those_read_and_the_view_must_have_them() {
    let filter = parse("Status = 1 OR user = 'a' OR Status = 2").unwrap();
    assert_eq!(filter.columns(), [0, 1]);
    let series = [Series::new(&[Int(2), Str("b".into())])];
    assert!(filter.mask_of(&[1, 4], &dimensions(), &series.each_ref()).unwrap_err().contains("`user`"));
    assert_eq!(filter.mask_of(&[0, 1], &dimensions(), &[]).unwrap(), Vec::<bool>::new());
}

#[test]
fn hostile_filters_end_soon_on_a_small_stack() {
    let repeated = |part: &str, end: &str| {
        let mut sql = part.repeat((MAX_LENGTH - end.len()) / part.len());
        sql.push_str(end);
        sql
    };
    let hostile: Vec<String> = [
        ("(", "1"),
        ("NOT ", "isRobot"),
        ("- ", "1"),
        ("-", "1"),
        ("isRobot IN (", "1"),
        ("isRobot IS TRUE ", ""),
        ("isRobot =", "1"),
        ("(isRobot) IN (", "1"),
        ("isRobot IS NULL = ", "1"),
        ("NOT(", "isRobot"),
        ("isRobot BETWEEN ", "1"),
        ("isRobot LIKE ", "user"),
        ("isRobot IS DISTINCT FROM ", "isRobot"),
        ("user LIKE 'a' ESCAPE ", "'a'"),
        ("'", ""),
        ("\"", ""),
        ("geo.", "country"),
        ("((isRobot) OR ", "isRobot"),
        ("/*", ""),
        ("--", ""),
    ]
    .into_iter()
    .map(|(part, end)| repeated(part, end))
    .chain([repeated("isRobot IS NULL", " IS NULL"), format!("isRobot{}", " IS TRUE".repeat(500)), "x".repeat(5000)])
    .collect();
    let long_chain = repeated("load=1 OR ", "load=2");
    let work = move || {
        for sql in hostile {
            let begun = std::time::Instant::now();
            assert!(parse(&sql).is_err(), "{}", &sql[..20]);
            assert!(begun.elapsed().as_secs() < 2, "{} took {:?}", &sql[..20], begun.elapsed());
        }
        assert!(parse(&long_chain).is_ok());
        let mixed = format!("{}isRobot", "isRobot AND NOT isRobot OR ".repeat(140));
        assert!(parse(&mixed).is_ok());
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(work).unwrap().join().unwrap();
}

#[test]
fn a_filter_excludes_another_only_where_its_values_show_it() {
    let metric = crate::tests::compile(
        "[source.s]\nformat = \"json\"\ntime = \"t\"\n[source.s.fields]\nt = \"timestamp\"\na = \"string\"\nb = \"bool\"\n\
         [metric.m]\nsource = \"s\"\ndimensions = [\"a\", \"b\"]\naggregates = [\"count\"]\ngrain = \"1m\"\n",
    );
    let metric = &metric.metrics["m"];
    let excludes = |one: &str, other: &str| {
        SeriesFilter::parse(one, metric).unwrap().excludes(&SeriesFilter::parse(other, metric).unwrap(), metric)
    };
    for (one, other) in
        [("a = 'x'", "a = 'y'"), ("a IN ('x', 'y') AND b", "NOT b"), ("a = 'x' AND a = 'y'", "a IS NULL")]
    {
        assert!(excludes(one, other), "{one}: {other}");
    }
    for (one, other) in [
        ("a = 'x'", "a <> 'y'"),
        ("a <> 'y'", "a = 'y'"),
        ("b", "a = 'y'"),
        ("a = 'x'", "a = 'y' OR b"),
        ("a > 'x'", "a > 'y'"),
    ] {
        assert!(!excludes(one, other), "{one}: {other}");
    }
}

#[test]
fn series_are_named_only_where_no_other_can_pass() {
    let named = |sql: &str, view: &[usize]| {
        let series = parse(sql).unwrap().series_of(view)?;
        Some(series.iter().map(|series| series.values().unwrap()).collect::<Vec<_>>())
    };
    let text = |text: &str| Str(text.into());
    assert_eq!(named("user = 'a' AND 7 = Status", &[0, 1]), Some(vec![vec![text("a"), Int(7)]]));
    assert_eq!(named("user = 'a' AND (Status > 1 AND user <> 'b')", &[0]), Some(vec![vec![text("a")]]));
    assert_eq!(
        named("user IN ('b', 'a', 'b') AND isRobot", &[0, 2]),
        Some(vec![vec![text("a"), Bool(true)], vec![text("b"), Bool(true)]])
    );
    assert_eq!(named("NOT isRobot", &[2]), Some(vec![vec![Bool(false)]]));
    assert_eq!(named("user = 'a' AND user IN ('b', 'c')", &[0]), Some(vec![]));
    let many = (0..300).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
    for (sql, view) in [
        ("user = 'a'", &[0, 1][..]),
        ("user = 'a' OR user = 'b'", &[0]),
        ("NOT user = 'a'", &[0]),
        ("user <> 'a'", &[0]),
        ("user NOT IN ('a')", &[0]),
        ("user = NULL", &[0]),
        ("user IN ('a', NULL)", &[0]),
        ("user = 1", &[0]),
        ("Status = 200.0", &[1]),
        ("load = 0.5", &[3]),
        ("user IS NOT DISTINCT FROM 'a'", &[0]),
        ("user = \"geo.country\"", &[0]),
        (&format!("Status IN ({many})"), &[1]),
    ] {
        assert_eq!(named(sql, view), None, "{sql}");
    }
}

/// Of series whose users are anna, bert, null and the overflow's, those that pass the filter within the rule.
fn passes_within(sql: Option<&str>, dimension: &str, values: &[&str]) -> Vec<bool> {
    let of = |user: &str| {
        let rest = [Int(200), Bool(true), Float(0.5_f64.to_bits()), Str("DE".into()), Str("x".into())];
        Series::new(&[&[Str(user.into())], &rest[..]].concat())
    };
    let series = [of("anna"), of("bert"), Series::new(&vec![Null; 6]), Series::overflow(6)];
    let rules = [(dimension.to_owned(), values.iter().map(|value| (*value).to_owned()).collect())].into();
    let filter = SeriesFilter::joined(sql, &rules, &dimensions()).unwrap_or_else(|error| panic!("{sql:?}: {error}"));
    filter.unwrap().mask_of(&[0, 1, 2, 3, 4, 5], &dimensions(), &series.each_ref()).unwrap()
}

#[test]
fn no_filter_gets_around_a_rule() {
    let anna = [true, false, false, false];
    for sql in [
        None,
        Some("TRUE"),
        Some("TRUE OR TRUE"),
        Some("user = 'anna' OR user = 'bert'"),
        Some("user IS NOT NULL OR user IS NULL"),
        Some("NOT FALSE OR user <> 'anna'"),
        Some("(Status = 200) OR (TRUE)"),
        Some("TRUE -- "),
        Some("TRUE /* "),
    ] {
        let Ok(passed) = std::panic::catch_unwind(|| passes_within(sql, "user", &["anna"])) else {
            assert!(parse(sql.unwrap()).is_err(), "{sql:?} is a filter by itself and none within a rule");
            continue;
        };
        assert_eq!(passed, anna, "{sql:?}");
    }
    assert_eq!(passes_within(Some("user = 'bert'"), "user", &["anna"]), [false; 4]);
    assert_eq!(passes_within(Some("NULL"), "user", &["anna"]), [false; 4]);
    assert_eq!(passes_within(None, "user", &["anna", "bert"]), [true, true, false, false]);
    assert_eq!(passes_within(None, "user", &["anna' OR '1' = '1"]), [false; 4]);
}

#[test]
fn a_rule_speaks_of_a_value_as_a_filter_does() {
    let both = [true, true, false, false];
    for (dimension, value) in [("Status", "200"), ("isRobot", "true"), ("load", "0.5"), ("geo.country", "DE")] {
        assert_eq!(passes_within(None, dimension, &[value]), both, "{dimension}");
        assert_eq!(passes_within(None, dimension, &["nothing like it"]), [false; 4], "{dimension}");
    }
    let rules = [("tenant".to_owned(), vec!["a".to_owned()])].into();
    assert!(SeriesFilter::joined(None, &rules, &dimensions()).unwrap_err().contains("tenant"));
    assert!(SeriesFilter::joined(Some("user"), &[].into(), &dimensions()).unwrap_err().contains("condition"));
    let within = SeriesFilter::joined(None, &[("user".to_owned(), vec!["anna".to_owned()])].into(), &dimensions());
    assert_eq!(within.unwrap().unwrap().pinned[&0], [Str("anna".into())], "only that series is read");
}
