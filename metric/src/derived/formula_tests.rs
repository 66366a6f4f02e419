use proptest::prelude::*;

use super::*;

fn value(text: &str, operands: &[Answer]) -> Result<Answer, StateError> {
    let (formula, _) = Formula::parse(text).unwrap();
    formula.value(&mut |at| Ok(operands[at].clone()))
}

#[test]
fn integers_and_decimals_stay_exact_and_a_division_is_a_float() {
    let dec = |value, scale| Answer::Decimal { value, scale };
    let (a, b) = (Answer::Int(7), dec(1250, 2));
    for (text, expected) in [
        ("a + b", dec(1950, 2)),
        ("a - b * 2", dec(-1800, 2)),
        ("a * b", dec(8750, 2)),
        ("(a + 1) * 0.5", dec(40, 1)),
        ("-a - -a", Answer::Int(0)),
        ("a / 2", Answer::Float(3.5)),
        ("b / 2 * 2", Answer::Float(12.5)),
        ("a / (a - 7)", Answer::Null),
        ("2 - a / 0", Answer::Null),
        ("1 - 2 - 3", Answer::Int(-4)),
        ("8 / 4 / 2", Answer::Float(1.0)),
        ("2 + 3 * 4", Answer::Int(14)),
    ] {
        // Operands are numbered as they stand in the text.
        let names = Formula::parse(text).unwrap().1;
        let operands: Vec<Answer> =
            names.iter().map(|leaf| if leaf.metric == "a" { a.clone() } else { b.clone() }).collect();
        assert_eq!(value(text, &operands), Ok(expected), "{text}");
    }
    assert_eq!(value("a + 1", &[Answer::Null]), Ok(Answer::Null));
    assert_eq!(value("a * a", &[Answer::Int(i128::MAX)]), Err(StateError::Overflow));
    assert_eq!(value("a + 0.1", &[Answer::Int(i128::MAX)]), Err(StateError::Overflow));
    assert_eq!(value("a / b", &[Answer::Float(1e300), Answer::Float(1e-300)]), Err(StateError::Overflow));
}

#[test]
fn operands_are_metrics_alone_or_aggregates_of_them_each_once() {
    let (_, leaves) = Formula::parse(
        "errors/requests + sum( revenue )/count(\"a-b\") * p99.9(ms) - distinct(v, geo.user) + errors + rate(sum(x))",
    )
    .unwrap();
    let one = |leaf: &Leaf| (leaf.metric.clone(), leaf.aggregate.clone().unwrap_or_default());
    let leaves: Vec<_> = leaves.iter().map(one).collect();
    let leaves: Vec<(&str, &str)> = leaves.iter().map(|(metric, of)| (metric.as_str(), of.as_str())).collect();
    let expected = [
        ("errors", ""),
        ("requests", ""),
        ("revenue", "sum"),
        ("a-b", "count"),
        ("ms", "p99.9"),
        ("v", "distinct(geo.user)"),
        ("x", "rate(sum)"),
    ];
    assert_eq!(leaves, expected);
}

#[test]
fn what_is_no_formula_is_told_with_its_place() {
    for (text, at, part) in [
        ("", 0, "ends where"),
        ("a +", 3, "ends where"),
        ("a b", 2, "unexpected 'b'"),
        ("(a", 2, "lacks a `)`"),
        ("a % b", 2, "unexpected '%'"),
        ("sum(", 4, "lacks a name"),
        ("1.2.3", 0, "no number"),
        ("1e9", 0, "no number"),
        ("\"a", 1, "quote"),
        ("rate(sum)", 8, "rate of no aggregate"),
    ] {
        let error = Formula::parse(text).unwrap_err();
        assert!(error.at == at && error.message.contains(part), "{text}: {error:?}");
    }
    assert!(Formula::parse(&"(".repeat(500)).unwrap_err().message.contains("within each other"));
    assert!(Formula::parse(&["1"; 65].join("+")).unwrap_err().message.contains("64 numbers"));
}

fn texts() -> impl Strategy<Value = (String, f64)> {
    let leaf = (1..10_i32).prop_map(|n| (n.to_string(), f64::from(n)));
    leaf.prop_recursive(3, 8, 2, |inner| {
        (inner.clone(), inner, 0..4_usize).prop_map(|((a, x), (b, y), op)| match op {
            0 => (format!("({a} + {b})"), x + y),
            1 => (format!("({a} - {b})"), x - y),
            2 => (format!("({a} * {b})"), x * y),
            _ => (format!("({a} / {b})"), if y == 0.0 { f64::NAN } else { x / y }),
        })
    })
}

proptest! {
    #[test]
    fn values_agree_with_floats_computed_beside((text, expected) in texts()) {
        match value(&text, &[]) {
            // Null spreads as NaN does.
            Ok(Answer::Null) => prop_assert!(expected.is_nan(), "{text} is {expected}"),
            Ok(answer) => {
                let own = answer.to_f64().unwrap();
                prop_assert!((own - expected).abs() <= expected.abs().max(1.0) * 1e-9, "{text}: {own} and {expected}");
            }
            Err(error) => prop_assert!(expected.abs() > 1e30, "{text}: {error}"),
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in "[a-z0-9\"(),.+*/ é-]{0,40}") {
        let _ = Formula::parse(&text);
    }

    #[test]
    fn a_value_is_of_the_type_that_was_told(a in any::<i32>(), b in -1000..1000_i64, op in "[-+*/]", scale in 0_i8..3) {
        let (formula, _) = Formula::parse(&format!("a {op} b * 0.25")).unwrap();
        let operands = [Answer::Int(i128::from(a)), Answer::Decimal { value: i128::from(b), scale: scale + 1 }];
        let told = formula.answer_type(&[AnswerType::Int, AnswerType::Decimal { scale: scale + 1 }]);
        match formula.value(&mut |at| Ok(operands[at].clone())).unwrap() {
            Answer::Int(_) => prop_assert_eq!(told, AnswerType::BigInt),
            Answer::Decimal { scale, .. } => prop_assert_eq!(told, AnswerType::Decimal { scale }),
            Answer::Float(_) => prop_assert_eq!(told, AnswerType::Float),
            other => prop_assert_eq!(other, Answer::Null),
        }
    }
}
