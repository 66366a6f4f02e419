//! A view's cap on series, as the speed layer applies it: per partition and epoch the first `cap` series by first
//! appearance, the rest together under the overflow series.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lamina_core::{
    Offset, Partition,
    rules::{self, Rule},
};
use lamina_metric::{ChunkError, FastHash, Series, View};

use crate::fold::Groups;

/// The series of a view that occur in some groups, each once, and which of them each row has.
pub(crate) struct Named {
    pub(crate) series: Vec<Series>,
    pub(crate) of_row: Vec<u32>,
    /// Partition and start of the epochs that have more series than the cap.
    pub(crate) capped: Vec<(Partition, Offset)>,
}

/// The series of each row in this view.
pub(crate) fn series_of(groups: &Groups, view: &View) -> Result<Named, ChunkError> {
    let columns: Vec<_> = view.dimensions.iter().map(|&at| Arc::clone(&groups.dimensions[at])).collect();
    let mut named = Named { series: Vec::new(), of_row: Vec::with_capacity(groups.len()), capped: Vec::new() };
    let mut known: HashMap<Series, u32, FastHash> = HashMap::default();
    for row in 0..groups.len() {
        let at = named.index_of(Series::of_row(&columns, row)?, &mut known);
        named.of_row.push(at);
    }
    if !columns.is_empty() && rules::on(Rule::CapLikeSpeed) {
        let mut epochs: HashMap<(Partition, Offset), Vec<usize>> = HashMap::new();
        for row in 0..groups.len() {
            epochs.entry((groups.partitions[row], groups.epochs[row])).or_default().push(row);
        }
        let cap = view.cap as usize;
        for (epoch, rows) in epochs.iter().filter(|(_, rows)| rows.len() > cap) {
            let beyond = beyond(groups, cap, rows, &named);
            if !beyond.is_empty() {
                named.capped.push(*epoch);
                let overflow = named.index_of(Series::overflow(columns.len()), &mut known);
                beyond.into_iter().for_each(|row| named.of_row[row] = overflow);
            }
        }
    }
    Ok(named)
}

impl Named {
    fn index_of(&mut self, series: Series, known: &mut HashMap<Series, u32, FastHash>) -> u32 {
        if let Some(&at) = known.get(&series) {
            return at;
        }
        let at = self.series.len() as u32;
        self.series.push(series.clone());
        known.insert(series, at);
        at
    }
}

/// The rows of one epoch whose series are past the cap.
fn beyond(groups: &Groups, cap: usize, rows: &[usize], named: &Named) -> Vec<usize> {
    let mut first: HashMap<u32, Offset, FastHash> = HashMap::default();
    for &row in rows {
        let seen = first.entry(named.of_row[row]).or_insert(Offset::MAX);
        *seen = groups.first[row].min(*seen);
    }
    if first.len() <= cap {
        return Vec::new();
    }
    // One offset is one event, so no two series begin at the same.
    let mut order: Vec<(Offset, u32)> = first.into_iter().map(|(series, at)| (at, series)).collect();
    order.sort_unstable();
    let beyond: HashSet<u32> = order[cap..].iter().map(|(_, series)| *series).collect();
    rows.iter().copied().filter(|&row| beyond.contains(&named.of_row[row])).collect()
}
