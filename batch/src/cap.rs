//! A view's cap on series, as the speed layer applies it: per partition and epoch the first `cap` series by first
//! appearance, the rest together under the overflow series.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lamina_core::{
    Offset,
    rules::{self, Rule},
};
use lamina_metric::{ChunkError, Series, View};

use crate::fold::Groups;

/// The series of each row in this view.
pub(crate) fn series_of(groups: &Groups, view: &View) -> Result<Vec<Series>, ChunkError> {
    let columns: Vec<_> = view.dimensions.iter().map(|&at| Arc::clone(&groups.dimensions[at])).collect();
    let mut series = Vec::with_capacity(groups.len());
    for row in 0..groups.len() {
        series.push(Series::of_row(&columns, row)?);
    }
    if !columns.is_empty() && rules::on(Rule::CapLikeSpeed) {
        let mut epochs: HashMap<_, Vec<usize>> = HashMap::new();
        for row in 0..groups.len() {
            epochs.entry((groups.partitions[row], groups.epochs[row])).or_default().push(row);
        }
        for rows in epochs.values() {
            cap(groups, view, rows, &mut series);
        }
    }
    Ok(series)
}

/// Caps the rows of one epoch.
fn cap(groups: &Groups, view: &View, rows: &[usize], series: &mut [Series]) {
    let cap = view.cap as usize;
    let mut first: HashMap<&Series, Offset> = HashMap::new();
    for &row in rows {
        let seen = first.entry(&series[row]).or_insert(Offset::MAX);
        *seen = groups.first[row].min(*seen);
    }
    if first.len() <= cap {
        return;
    }
    let mut order: Vec<(Offset, &Series)> = first.into_iter().map(|(series, at)| (at, series)).collect();
    order.sort_unstable();
    // One offset is one event, so no two series begin at the same.
    let (from, _) = order[cap];
    let beyond: HashSet<Series> = order[cap..].iter().map(|(_, series)| (*series).clone()).collect();
    let overflow = Series::overflow(view.dimensions.len());
    for &row in rows {
        // Most rows of the series that stay begin before the first that goes.
        if groups.first[row] >= from && beyond.contains(&series[row]) {
            series[row] = overflow.clone();
        }
    }
}
