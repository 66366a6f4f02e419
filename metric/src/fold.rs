//! The fold of one view over one epoch in the speed layer.
//!
//! Invariants:
//! - The states depend on the rows and their order only, not on how they were cut into batches.
//! - At most `cap` series, by first appearance; rows of further ones go to the overflow series.
//! - A chunk's rows are sorted, so the same states give the same bytes.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    compute::cast,
    datatypes::{DataType, Float64Type, TimestampMicrosecondType},
    record_batch::RecordBatch,
    row::{RowConverter, Rows, SortField},
};
use lamina_core::{Micros, Shard};

use crate::{
    chunk::SpeedChunk,
    metric::{Metric, Prepared, View},
    series::{FastHash, Series},
    state::{Inputs, Layout, StateError, States},
};

/// A series' number within the fold, in order of first appearance.
type SeriesNumber = u32;

/// States by (series, bucket).
struct Groups {
    index: HashMap<(SeriesNumber, Micros), u32, FastHash>,
    keys: Vec<(SeriesNumber, Micros)>,
    states: States,
}

impl Groups {
    fn new(layout: &Layout) -> Self {
        Self { index: HashMap::default(), keys: Vec::new(), states: States::new(layout) }
    }

    /// The state of this key; a new one exists only after the next [`Groups::grow`].
    fn find(&mut self, key: (SeriesNumber, Micros)) -> usize {
        let next = self.keys.len();
        let found = *self.index.entry(key).or_insert_with(|| {
            self.keys.push(key);
            next as u32
        });
        found as usize
    }

    fn grow(&mut self) {
        self.states.resize(self.keys.len());
    }

    fn absorb(&mut self, other: &Self) {
        let into: Vec<usize> = other.keys.iter().map(|&key| self.find(key)).collect();
        self.grow();
        self.states.absorb(&other.states, &into);
    }

    fn bytes(&self) -> usize {
        // A key in the vector and one in the map with its index.
        self.keys.len() * 48 + self.states.bytes()
    }
}

/// The fold of one view over one epoch, bounded by the view's cap. It keeps the delta since the last take and the whole.
pub struct ViewFold {
    layout: Layout,
    /// Columns of the dimensions in prepared rows.
    columns: Vec<String>,
    shards: Shard,
    cap: usize,
    converter: Option<RowConverter>,
    /// Series by their row-encoded dimensions; those beyond the cap are not kept.
    numbers: HashMap<Box<[u8]>, SeriesNumber, FastHash>,
    series: Vec<Series>,
    overflow: Option<SeriesNumber>,
    delta: Groups,
    whole: Groups,
    /// Bytes of the series kept, for the estimate.
    series_bytes: usize,
}

impl ViewFold {
    pub fn new(metric: &Metric, view: &View) -> Self {
        Self::with_layout(Layout::of(metric), view)
    }

    pub(crate) fn with_layout(layout: Layout, view: &View) -> Self {
        Self {
            columns: view.dimensions.iter().map(|at| format!("d{at}")).collect(),
            shards: view.shards.max(1),
            cap: view.cap as usize,
            converter: None,
            numbers: HashMap::default(),
            series: Vec::new(),
            overflow: None,
            delta: Groups::new(&layout),
            whole: Groups::new(&layout),
            layout,
            series_bytes: 0,
        }
    }

    /// Folds prepared rows, in offset order.
    ///
    /// # Errors
    /// If the rows are not of the metric's prepared schema; then nothing was folded.
    pub fn fold(&mut self, prepared: &Prepared) -> Result<(), StateError> {
        let rows = &prepared.rows;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let inputs = Inputs::of_batch(&self.layout, rows)?;
        let missing = |name: &str| StateError::Input(format!("column `{name}` is missing or of another type"));
        let buckets = rows.column_by_name("_bucket").ok_or_else(|| missing("_bucket"))?;
        let buckets = buckets.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| missing("_bucket"))?;
        let dimensions = self.dimensions(rows)?;
        let numbers = self.number_rows(&dimensions, rows.num_rows())?;
        let groups: Vec<usize> =
            numbers.iter().zip(buckets.values()).map(|(&series, &bucket)| self.delta.find((series, bucket))).collect();
        self.delta.grow();
        self.delta.states.fold(&inputs, &groups)
    }

    fn dimensions(&self, rows: &RecordBatch) -> Result<Vec<ArrayRef>, StateError> {
        let column = |name: &String| {
            let column = rows.column_by_name(name);
            let column = column.ok_or_else(|| StateError::Input(format!("column `{name}` is missing")))?;
            match column.data_type() {
                // Rows compare bit by bit; negative zero is the series of zero.
                DataType::Float64 => {
                    Ok(Arc::new(column.as_primitive::<Float64Type>().unary::<_, Float64Type>(|v| v + 0.0)) as ArrayRef)
                }
                DataType::Utf8View => cast(column, &DataType::Utf8).map_err(input),
                _ => Ok(Arc::clone(column)),
            }
        };
        self.columns.iter().map(column).collect()
    }

    /// The series number of each row.
    fn number_rows(&mut self, dimensions: &[ArrayRef], rows: usize) -> Result<Vec<SeriesNumber>, StateError> {
        let keys = self.keys(dimensions)?;
        let mut numbers = Vec::with_capacity(rows);
        for row in 0..rows {
            let key = keys.as_ref().map_or(&[][..], |keys| keys.row(row).data());
            let number = match self.numbers.get(key) {
                Some(&number) => number,
                None if self.numbers.len() >= self.cap && !dimensions.is_empty() => self.overflow_number(),
                None => {
                    let series = Series::of_row(dimensions, row).map_err(input)?;
                    let number = self.add_series(series);
                    self.series_bytes += key.len() + 48;
                    self.numbers.insert(key.into(), number);
                    number
                }
            };
            numbers.push(number);
        }
        Ok(numbers)
    }

    fn keys(&mut self, dimensions: &[ArrayRef]) -> Result<Option<Rows>, StateError> {
        if dimensions.is_empty() {
            return Ok(None);
        }
        let converter = match &mut self.converter {
            Some(converter) => converter,
            None => {
                let fields = dimensions.iter().map(|array| SortField::new(array.data_type().clone())).collect();
                self.converter.insert(RowConverter::new(fields).map_err(input)?)
            }
        };
        converter.convert_columns(dimensions).map(Some).map_err(input)
    }

    fn overflow_number(&mut self) -> SeriesNumber {
        match self.overflow {
            Some(number) => number,
            None => {
                let series = Series::overflow(self.columns.len());
                // An event may itself have said `$overflow` everywhere: one series, one number.
                let said = self.series.iter().position(|own| *own == series).map(|at| at as SeriesNumber);
                let number = said.unwrap_or_else(|| self.add_series(series));
                *self.overflow.insert(number)
            }
        }
    }

    fn add_series(&mut self, series: Series) -> SeriesNumber {
        self.series_bytes += series.as_bytes().len() + 48;
        self.series.push(series);
        (self.series.len() - 1) as SeriesNumber
    }

    /// What was folded since the last take, per shard (only shards with something); empties the delta.
    pub fn take_delta(&mut self) -> Vec<(Shard, SpeedChunk)> {
        let delta = std::mem::replace(&mut self.delta, Groups::new(&self.layout));
        self.whole.absorb(&delta);
        let chunks = self.chunks(&delta);
        chunks.into_iter().filter(|(_, chunk)| !chunk.rows.is_empty()).collect()
    }

    /// Everything folded in this epoch, one chunk per shard, empty shards included.
    pub fn whole(&self) -> Vec<(Shard, SpeedChunk)> {
        if self.delta.keys.is_empty() {
            return self.chunks(&self.whole);
        }
        let mut all = Groups::new(&self.layout);
        all.absorb(&self.whole);
        all.absorb(&self.delta);
        self.chunks(&all)
    }

    /// Estimate of the memory held.
    pub fn bytes(&self) -> usize {
        self.series_bytes + self.delta.bytes() + self.whole.bytes()
    }

    /// The chunk of every shard, rows sorted by (series, bucket).
    fn chunks(&self, groups: &Groups) -> Vec<(Shard, SpeedChunk)> {
        let mut order: Vec<usize> = (0..groups.keys.len()).collect();
        let key = |row: usize| {
            let (series, bucket) = groups.keys[row];
            (&self.series[series as usize], bucket)
        };
        order.sort_unstable_by(|&a, &b| key(a).cmp(&key(b)));
        let mut shards = vec![Vec::new(); self.shards as usize];
        for row in order {
            shards[key(row).0.shard(self.shards) as usize].push(row);
        }
        let chunk = |rows: &Vec<usize>| {
            let mut series: Vec<Series> = Vec::new();
            let places = rows.iter().map(|&row| {
                let (own, bucket) = key(row);
                if series.last() != Some(own) {
                    series.push(own.clone());
                }
                ((series.len() - 1) as u32, bucket)
            });
            let places = places.collect();
            SpeedChunk { series, rows: places, states: groups.states.take(rows) }
        };
        shards.iter().enumerate().map(|(shard, rows)| (shard as Shard, chunk(rows))).collect()
    }
}

fn input(error: impl std::fmt::Display) -> StateError {
    StateError::Input(error.to_string())
}

#[cfg(test)]
mod tests;
