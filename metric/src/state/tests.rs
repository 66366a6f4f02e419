//! The laws of states. [`Row`] and [`prepared`] make prepared rows for the other modules' tests too.

use std::collections::BTreeMap;

use arrow::{
    array::{
        ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray, UInt32Array,
        UInt64Array,
    },
    record_batch::RecordBatch,
};
use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::*;
use crate::{
    answer::{Answer, Ask, Numbers},
    chunk::{BatchChunk, SpeedChunk},
    series::Series,
};

/// A prepared row. `value` is in hundredths for decimals and floats.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) time: i64,
    pub(crate) order: Option<i64>,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) bucket: i64,
    pub(crate) dimensions: (Option<String>, Option<i64>),
    pub(crate) value: Option<i64>,
    pub(crate) texts: (Option<String>, Option<String>),
}

/// Rows of one partition, in offset order.
pub(crate) fn rows(most: usize) -> impl Strategy<Value = Vec<Row>> {
    let row = (
        (0..4_i64, option::of(-2..2_i64), 0..3_i64),
        (option::of("[a-d]"), option::of(0..3_i64)),
        option::weighted(0.8, prop_oneof![-300..300_i64, any::<i64>()]),
        (option::of("[a-z]{0,2}"), option::of("[a-f]")),
    );
    let row = row.prop_map(|((time, order, bucket), dimensions, value, texts)| Row {
        time,
        order,
        partition: 3,
        offset: 0,
        bucket,
        dimensions,
        value,
        texts,
    });
    vec(row, 0..most).prop_map(|mut rows| {
        for (offset, row) in rows.iter_mut().enumerate() {
            row.offset = offset as u64;
        }
        rows
    })
}

pub(crate) fn numbers() -> impl Strategy<Value = ValueType> {
    prop_oneof![
        Just(ValueType::Int64),
        Just(ValueType::Float64),
        Just(ValueType::Decimal { precision: 38, scale: 2 }),
        Just(ValueType::None)
    ]
}

pub(crate) fn aggregates() -> Vec<Aggregate> {
    use Aggregate::{Avg, Count, Distinct, First, Last, Max, Min, Quantiles, Sum, Top};
    let distinct = Distinct { field: "user".into(), input: 0 };
    let top = Top { field: "page".into(), input: 1, k: 3 };
    vec![Count, Sum, Min, Max, Avg, First, Last, distinct, Quantiles, top]
}

pub(crate) fn layout(value: ValueType) -> Layout {
    Layout::new(&aggregates(), value)
}

pub(crate) fn prepared(rows: &[Row], value: ValueType) -> RecordBatch {
    let each = |get: fn(&Row) -> Option<i64>| rows.iter().map(get).collect::<Int64Array>();
    let time = |get: fn(&Row) -> i64| rows.iter().map(|row| Some(get(row))).collect::<TimestampMicrosecondArray>();
    let text = |get: fn(&Row) -> Option<&String>| rows.iter().map(get).collect::<StringArray>();
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("_partition", std::sync::Arc::new(rows.iter().map(|row| Some(row.partition)).collect::<UInt32Array>())),
        ("_offset", std::sync::Arc::new(rows.iter().map(|row| Some(row.offset)).collect::<UInt64Array>())),
        ("_time", std::sync::Arc::new(time(|row| row.time))),
        ("_order", std::sync::Arc::new(each(|row| row.order))),
        ("_bucket", std::sync::Arc::new(time(|row| row.bucket))),
        ("d0", std::sync::Arc::new(text(|row| row.dimensions.0.as_ref()))),
        ("d1", std::sync::Arc::new(each(|row| row.dimensions.1))),
    ];
    let floats = || rows.iter().map(|row| row.value.map(|value| value as f64 / 100.0)).collect::<Float64Array>();
    let decimals = || rows.iter().map(|row| row.value.map(i128::from)).collect::<Decimal128Array>();
    match value {
        ValueType::None => {}
        ValueType::Int64 => columns.push(("v", std::sync::Arc::new(each(|row| row.value)))),
        ValueType::Float64 => columns.push(("v", std::sync::Arc::new(floats()))),
        ValueType::Decimal { precision, scale } => {
            columns.push(("v", std::sync::Arc::new(decimals().with_precision_and_scale(precision, scale).unwrap())));
        }
    }
    columns.push(("x0", std::sync::Arc::new(text(|row| row.texts.0.as_ref()))));
    columns.push(("x1", std::sync::Arc::new(text(|row| row.texts.1.as_ref()))));
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

/// Equal by value; float sums within 1e-9.
pub(crate) fn same(a: &States, b: &States) -> bool {
    let close = |a: &FloatSum, b: &FloatSum| match (a.total(), b.total()) {
        (Ok(x), Ok(y)) => a.n == b.n && (x - y).abs() <= 1e-9 * x.abs().max(y.abs()),
        (x, y) => x == y,
    };
    a.layout == b.layout
        && a.counts == b.counts
        && a.columns.iter().zip(&b.columns).all(|pair| match pair {
            (Column::FloatSum(a), Column::FloatSum(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b))
            }
            (a, b) => a == b,
        })
}

pub(crate) fn folded(rows: &[Row], value: ValueType) -> States {
    let mut states = States::new(&layout(value));
    states.resize(1);
    states.update(&prepared(rows, value), &vec![0; rows.len()]).unwrap();
    states
}

fn merged(parts: &[&States]) -> States {
    let mut states = States::new(parts[0].layout());
    states.resize(1);
    for part in parts {
        states.merge(part, &[0]).unwrap();
    }
    states
}

fn asks(value: ValueType) -> Vec<Ask> {
    let valued = ["sum", "avg", "min", "max", "first", "last", "p0", "p50", "p99.9", "p100"];
    let always = ["count", "distinct(user)", "top(page)", "top(page, 1)"];
    let texts = always.iter().chain(valued.iter().filter(|_| value != ValueType::None));
    texts.map(|text| Ask::of(text, &aggregates(), "m").unwrap()).collect()
}

proptest! {
    #[test]
    fn merging_is_associative_and_commutative_and_gives_the_fold_of_all(
        rows in rows(60), cuts in (any::<Index>(), any::<Index>()), value in numbers(),
    ) {
        let (a, b) = (cuts.0.index(rows.len() + 1), cuts.1.index(rows.len() + 1));
        let [x, y, z] = [&rows[..a.min(b)], &rows[a.min(b)..a.max(b)], &rows[a.max(b)..]].map(|part| folded(part, value));
        let all = folded(&rows, value);
        prop_assert!(same(&merged(&[&x, &y, &z]), &all));
        prop_assert!(same(&merged(&[&z, &x, &y]), &all));
        prop_assert!(same(&merged(&[&x, &merged(&[&z, &y])]), &all));
        let mut shuffled = rows.clone();
        shuffled.sort_by_key(|row| (row.texts.0.clone(), row.value));
        prop_assert!(same(&folded(&shuffled, value), &all));
    }

    #[test]
    fn encoded_states_come_back_and_rows_are_independent(rows in rows(40), value in numbers()) {
        let batch = prepared(&rows, value);
        let groups: Vec<usize> = rows.iter().map(|row| row.bucket as usize).collect();
        let mut states = States::new(&layout(value));
        states.resize(3);
        states.update(&batch, &groups).unwrap();
        let mut rebuilt = States::new(&layout(value));
        for bucket in 0..3 {
            let own: Vec<Row> = rows.iter().filter(|row| row.bucket == bucket).cloned().collect();
            let bytes = states.encode_row(bucket as usize, Vec::new()).unwrap();
            prop_assert_eq!(&bytes, &folded(&own, value).encode_row(0, Vec::new()).unwrap());
            rebuilt.decode_row(&bytes).unwrap();
        }
        prop_assert_eq!(&rebuilt, &states);
        prop_assert_eq!(rebuilt.take(&[2, 0]).take(&[1]), states.take(&[0]));
    }

    #[test]
    fn damaged_states_give_an_error_or_states_that_answer(
        rows in rows(20), value in numbers(), damage in vec((any::<Index>(), any::<u8>()), 0..4), cut in option::of(any::<Index>()),
    ) {
        let mut bytes = folded(&rows, value).encode_row(0, Vec::new()).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let mut states = folded(&[], value);
        let kept = states.clone();
        if states.decode_row(&bytes).is_err() {
            prop_assert_eq!(states, kept);
        } else {
            for row in 0..states.len() {
                for ask in asks(value) {
                    let _ = states.answer(row, &ask).map(|answer| answer.to_json(Numbers::Number).to_string());
                }
            }
            let into: Vec<usize> = (0..states.len()).collect();
            states.clone().merge(&states, &into).unwrap();
            states.bytes();
        }
    }

    #[test]
    fn random_bytes_never_decode_into_trouble(bytes in vec(any::<u8>(), 0..200)) {
        let _ = States::new(&layout(ValueType::Int64)).decode_row(&bytes);
        if let Ok(chunk) = postcard::from_bytes::<SpeedChunk>(&bytes) {
            let _ = SpeedChunk::decode(&lamina_core::envelope::pack(&chunk).unwrap());
        }
    }

    #[test]
    fn quantiles_lie_within_one_percent_of_the_nearest_rank(
        values in vec(prop_oneof![-1e3..1e3, any::<i32>().prop_map(f64::from), Just(0.0), Just(1e-200), Just(-1e300)], 1..200),
        percents in 0..=1000_u32,
    ) {
        let mut sketch = Quantiles::empty(&Kind::Quantiles);
        values.iter().for_each(|&value| sketch.add(value));
        let mut sorted = values;
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percents as usize).div_ceil(1000).max(1);
        let exact = sorted[rank - 1];
        let rank = Rank::parse(&format!("{}.{}", percents / 10, percents % 10)).unwrap();
        let answer = sketch.quantile(rank).unwrap();
        prop_assert!((answer - exact).abs() <= exact.abs() * (QUANTILE_ERROR + 1e-12), "{answer} for {exact}");
    }

    #[test]
    fn top_counts_lie_within_their_error_however_they_were_merged(
        seeds in vec(any::<u64>(), 1..6), hot in 1..40_u64,
    ) {
        let kind = Kind::Top { input: 0, k: 3 };
        let mut exact = BTreeMap::new();
        let mut total = Top::empty(&kind);
        let mut events = 0_u64;
        for seed in seeds {
            let mut part = Top::empty(&kind);
            for i in 0..900_u64 {
                let text = if i % 3 == 0 { format!("hot{}", i % hot) } else { (seed.wrapping_mul(i + 1) % 5_000).to_string() };
                *exact.entry(text.clone()).or_insert(0_u64) += 1;
                events += 1;
                part.add(&text);
            }
            total.merge(&part);
        }
        for item in total.most(3) {
            let count = exact[&item.value];
            prop_assert!(item.count - item.error <= count && count <= item.count, "{item:?}, exactly {count}");
            prop_assert!(item.error as f64 <= top_error(3) * events as f64);
        }
    }
}

#[test]
fn distinct_states_are_a_function_of_the_set() {
    let texts: Vec<String> = (0..3000).map(|i| format!("user-{i}")).collect();
    for most in [10, 511, 512, 513, 600, 3000] {
        let mut forward = Distinct::empty(&Kind::Distinct { input: 0 });
        texts[..most].iter().for_each(|text| forward.add(text));
        let mut parts = [forward.clone(), Distinct::empty(&Kind::Distinct { input: 0 })];
        parts[0] = Distinct::empty(&Kind::Distinct { input: 0 });
        for (i, text) in texts[..most].iter().rev().enumerate() {
            parts[usize::from(i % 7 == 0)].add(text);
            parts[1].add(text);
        }
        let [mut few, all] = parts;
        few.merge(&all);
        assert_eq!(few, forward, "{most} values");
        assert_eq!(all, forward, "{most} values");
    }
}

#[test]
fn distinct_estimates_lie_within_the_stated_bound() {
    let mut outside = 0;
    for (run, n) in [100, 511, 700, 2_000, 6_000, 20_000, 60_000].into_iter().cycle().take(105).enumerate() {
        let mut sketch = Distinct::empty(&Kind::Distinct { input: 0 });
        (0..n).for_each(|i| sketch.add(&format!("{run}/{i}")));
        let estimate = sketch.estimate().unwrap().unwrap() as f64;
        outside += usize::from((estimate - f64::from(n)).abs() > DISTINCT_ERROR * f64::from(n));
    }
    assert!(outside <= 2, "{outside} of 105 estimates lie outside the 99 % bound");
}

#[test]
fn an_overflow_spoils_one_state_only() {
    let value = ValueType::Decimal { precision: 38, scale: 0 };
    let layout = Layout::new(&[Aggregate::Sum, Aggregate::Avg], value);
    let huge = 10_i128.pow(38) - 1;
    let decimals = Decimal128Array::from(vec![huge, huge, 5, 7]).with_precision_and_scale(38, 0).unwrap();
    let mut batch = prepared(&vec![some_row(); 4], ValueType::None);
    let at = batch.schema().index_of("x0").unwrap();
    let mut columns: Vec<(String, ArrayRef)> =
        batch.schema().fields().iter().map(|field| field.name().clone()).zip(batch.columns().to_vec()).collect();
    columns.insert(at, ("v".into(), std::sync::Arc::new(decimals)));
    batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut states = States::new(&layout);
    states.resize(2);
    states.update(&batch, &[0, 0, 1, 1]).unwrap();
    let sum = Ask::of("sum", &[Aggregate::Sum], "m").unwrap();
    assert_eq!(states.answer(0, &sum), Err(StateError::Overflow));
    assert_eq!(states.answer(1, &sum), Ok(Answer::Decimal { value: 12, scale: 0 }));
    assert_eq!(states.answer(0, &Ask::of("avg", &[Aggregate::Sum], "m").unwrap()), Err(StateError::Overflow));
    assert_eq!(states.count(0), 2);
}

#[test]
fn nulls_are_skipped_and_nothing_but_nulls_is_null() {
    let rows = [Row { value: None, texts: (None, None), ..some_row() }];
    let states = folded(&rows, ValueType::Int64);
    for ask in asks(ValueType::Int64) {
        let expected = if ask.name() == "count" { Answer::Int(1) } else { Answer::Null };
        assert_eq!(states.answer(0, &ask), Ok(expected), "{}", ask.name());
    }
}

#[test]
fn first_and_last_go_by_time_then_order_then_place_and_null_orders_come_first() {
    let row = |time, order, offset, value| Row { time, order, offset, value: Some(value), ..some_row() };
    let answer = |rows: &[Row], ask: &str| {
        let states = folded(rows, ValueType::Int64);
        states.answer(0, &Ask::of(ask, &aggregates(), "m").unwrap()).unwrap()
    };
    let by_order = [row(1, Some(5), 0, 10), row(1, None, 1, 20), row(1, Some(-5), 2, 30)];
    assert_eq!((answer(&by_order, "first"), answer(&by_order, "last")), (Answer::Int(20), Answer::Int(10)));
    let by_place = [row(1, Some(5), 8, 10), row(1, Some(5), 7, 20), row(0, Some(9), 9, 30)];
    assert_eq!((answer(&by_place, "first"), answer(&by_place, "last")), (Answer::Int(30), Answer::Int(10)));
}

#[test]
fn chunks_come_back_and_do_not_fit_other_states() {
    let states = folded(&[some_row()], ValueType::Int64);
    let speed = SpeedChunk { series: vec![Series::overflow(1)], rows: vec![(0, 60)], states: states.clone() };
    assert_eq!(SpeedChunk::decode(&speed.encode().unwrap()).unwrap(), speed);
    let batch = BatchChunk { buckets: vec![60], states: states.clone() };
    assert_eq!(BatchChunk::decode(&batch.encode().unwrap()).unwrap(), batch);
    for rows in [vec![(1, 60)], vec![], vec![(0, 60), (0, 60)]] {
        assert!(SpeedChunk::decode(&SpeedChunk { rows, ..speed.clone() }.encode().unwrap()).is_err());
    }
    assert!(BatchChunk::decode(&BatchChunk { buckets: vec![], states }.encode().unwrap()).is_err());
    let mut other = States::new(&layout(ValueType::None));
    assert_eq!(other.merge(&speed.states, &[0]), Err(StateError::Layout));
}

pub(crate) fn some_row() -> Row {
    let texts = (Some("u".into()), Some("p".into()));
    Row { time: 0, order: None, partition: 0, offset: 0, bucket: 0, dimensions: (None, None), value: Some(1), texts }
}
