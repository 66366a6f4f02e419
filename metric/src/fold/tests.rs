use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lamina_core::ViewId;
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::{
    aggregate::ValueType,
    series::DimensionValue,
    state::tests::{Row, folded, layout, numbers, prepared, rows, same, some_row},
};

fn view(dimensions: &[usize], shards: Shard, cap: u32) -> View {
    View { id: ViewId::new("m", 1, 0), dimensions: dimensions.to_vec(), shards, cap }
}

fn fold(fold: &mut ViewFold, rows: &[Row], value: ValueType) {
    let prepared = Prepared { rows: prepared(rows, value), filtered: 0, rejected: Vec::new() };
    fold.fold(&prepared).unwrap();
}

fn encoded(chunks: &[(Shard, SpeedChunk)]) -> Vec<(Shard, Bytes)> {
    chunks.iter().map(|(shard, chunk)| (*shard, chunk.encode().unwrap())).collect()
}

fn series_of(row: &Row) -> Series {
    let text = row.dimensions.0.clone().map_or(DimensionValue::Null, DimensionValue::Str);
    Series::new(&[text, row.dimensions.1.map_or(DimensionValue::Null, DimensionValue::Int)])
}

/// The fold again, row by row: the cap counts first appearances.
fn expected(rows: &[Row], cap: usize, value: ValueType) -> BTreeMap<(Series, i64), States> {
    let mut seen = BTreeSet::new();
    let mut groups: BTreeMap<(Series, i64), Vec<Row>> = BTreeMap::new();
    for row in rows {
        let mut series = series_of(row);
        if !seen.contains(&series) && seen.len() == cap {
            series = Series::overflow(2);
        } else {
            seen.insert(series.clone());
        }
        groups.entry((series, row.bucket)).or_default().push(row.clone());
    }
    groups.into_iter().map(|(key, rows)| (key, folded(&rows, value))).collect()
}

fn by_key(chunks: &[(Shard, SpeedChunk)]) -> BTreeMap<(Series, i64), States> {
    let states = chunks.iter().flat_map(|(_, chunk)| {
        let row = |(at, &(series, bucket)): (usize, &(u32, i64))| {
            ((chunk.series[series as usize].clone(), bucket), chunk.states.take(&[at]))
        };
        chunk.rows.iter().enumerate().map(row)
    });
    states.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batch_boundaries_do_not_show(rows in rows(60), cuts in vec(any::<Index>(), 0..5), cap in 0..8_u32, value in numbers()) {
        let view = view(&[0, 1], 3, cap);
        let mut whole = ViewFold::with_layout(layout(value), &view);
        fold(&mut whole, &rows, value);
        let mut pieces = ViewFold::with_layout(layout(value), &view);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len() + 1)).chain([rows.len()]).collect();
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            fold(&mut pieces, &rows[start..end], value);
            start = end;
        }
        let groups = expected(&rows, cap as usize, value);
        prop_assert_eq!(&by_key(&whole.whole()), &groups);
        prop_assert_eq!(encoded(&pieces.whole()), encoded(&whole.whole()));
        prop_assert_eq!(encoded(&pieces.take_delta()), encoded(&whole.take_delta()));
    }

    #[test]
    fn the_whole_is_the_merge_of_the_deltas(rows in rows(60), cuts in vec(any::<Index>(), 0..4), value in numbers()) {
        let mut view_fold = ViewFold::with_layout(layout(value), &view(&[0, 1], 3, 5));
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(rows.len() + 1)).chain([rows.len()]).collect();
        ends.sort_unstable();
        let mut start = 0;
        let mut merged: BTreeMap<(Series, i64), States> = BTreeMap::new();
        for end in ends {
            fold(&mut view_fold, &rows[start..end], value);
            start = end;
            let before = by_key(&view_fold.whole());
            for (key, states) in by_key(&view_fold.take_delta()) {
                merged.entry(key).and_modify(|own| own.merge(&states, &[0]).unwrap()).or_insert(states);
            }
            let after = by_key(&view_fold.whole());
            prop_assert!(before.keys().eq(after.keys()) && before.values().zip(after.values()).all(|(a, b)| same(a, b)));
            prop_assert!(view_fold.take_delta().is_empty());
        }
        let whole = view_fold.whole();
        prop_assert_eq!(whole.len(), 3);
        let whole = by_key(&whole);
        prop_assert!(merged.keys().eq(whole.keys()) && merged.values().zip(whole.values()).all(|(a, b)| same(a, b)));
    }
}

#[test]
fn a_view_without_dimensions_has_one_series_even_at_cap_zero() {
    let mut total = ViewFold::with_layout(layout(ValueType::Int64), &view(&[], 1, 0));
    fold(&mut total, &[some_row(), Row { bucket: 60, ..some_row() }], ValueType::Int64);
    let chunks = total.take_delta();
    assert_eq!(
        (chunks.len(), &chunks[0].1.series, &chunks[0].1.rows),
        (1, &vec![Series::new(&[])], &vec![(0, 0), (0, 60)])
    );
    assert!(total.bytes() > 0);
}

#[test]
fn an_event_that_says_overflow_shares_the_overflow_series() {
    let said = |text: &str| Row { dimensions: (Some(text.into()), None), ..some_row() };
    let mut one = ViewFold::with_layout(layout(ValueType::Int64), &view(&[0], 1, 1));
    fold(&mut one, &[said("$overflow"), said("a")], ValueType::Int64);
    let chunks = one.take_delta();
    assert_eq!((&chunks[0].1.series, chunks[0].1.states.count(0)), (&vec![Series::overflow(1)], 2));
    assert!(SpeedChunk::decode(&chunks[0].1.encode().unwrap()).is_ok());
}
