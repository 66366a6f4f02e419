//! A view's cap on series, as the speed layer applies it: per partition and epoch the first `cap` series by first
//! appearance, the rest together under the overflow series.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef},
    datatypes::{Field, Schema},
};
use datafusion::{
    logical_expr::EmitTo,
    physical_plan::aggregates::{group_values::new_group_values, order::GroupOrdering},
};
use lamina_core::{
    Offset,
    rules::{self, Rule},
};
use lamina_metric::{ChunkError, FastHash, Series, View};

use crate::{BatchError, fold::Groups, names::EpochKey};

/// The series of a view that occur in some groups, each once, and which of them each row has.
pub(crate) struct Named {
    pub(crate) series: Vec<Series>,
    pub(crate) of_row: Vec<u32>,
    /// Names of epochs under which there are more series than the cap.
    pub(crate) capped: Vec<EpochKey>,
}

/// The series of each row in this view.
pub(crate) fn series_of(groups: &Groups, view: &View) -> Result<Named, BatchError> {
    let columns: Vec<_> = view.dimensions.iter().map(|&at| Arc::clone(&groups.dimensions[at])).collect();
    let (distinct, of_row) = distinct(&columns, groups.len())?;
    let mut named = Named { series: Vec::new(), of_row: Vec::new(), capped: Vec::new() };
    let mut known: HashMap<Series, u32, FastHash> = HashMap::default();
    let count = distinct.first().map_or(usize::from(columns.is_empty()), |column| column.len());
    // What differs to DataFusion may be one series to us: the two zeros of a float.
    let numbers = (0..count).map(|row| Ok(named.index_of(Series::of_row(&distinct, row)?, &mut known)));
    let numbers: Vec<u32> = numbers.collect::<Result<_, ChunkError>>().map_err(unnamed)?;
    named.of_row = of_row.into_iter().map(|at| numbers[at]).collect();
    if !columns.is_empty() && rules::on(Rule::CapLikeSpeed) {
        let mut epochs: HashMap<EpochKey, Vec<usize>> = HashMap::new();
        for (row, &epoch) in groups.epochs.iter().enumerate() {
            epochs.entry(epoch).or_default().push(row);
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

/// The distinct rows of some columns, and which of them each row is.
fn distinct(columns: &[ArrayRef], rows: usize) -> Result<(Vec<ArrayRef>, Vec<usize>), BatchError> {
    if columns.is_empty() || rows == 0 {
        return Ok((columns.to_vec(), vec![0; rows]));
    }
    let fields = columns.iter().enumerate();
    let fields = fields.map(|(at, column)| Field::new(format!("d{at}"), column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut values = new_group_values(schema, &GroupOrdering::None)?;
    let mut of_row = Vec::with_capacity(rows);
    values.intern(columns, &mut of_row)?;
    Ok((values.emit(EmitTo::All)?, of_row))
}

fn unnamed(cause: ChunkError) -> BatchError {
    BatchError::chunk("dimensions of the aggregation", cause)
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
