//! A column of states of one kind, and what every kind of cell can do.

use serde::{Deserialize, Serialize};

use super::{Distinct, First, FloatSum, Inputs, Kind, Last, Max, Min, Number, Quantiles, Sum, Top};
use crate::chunk::ChunkError;

pub(super) const UNFIT: ChunkError = ChunkError::Invalid("states do not fit their layout");

/// The state of one aggregate of one row.
pub(crate) trait Cell: Clone {
    /// The state of no rows. Merging it changes nothing.
    fn empty(kind: &Kind) -> Self;

    fn merge(&mut self, other: &Self);

    /// Bytes held outside the cell itself.
    fn heap(&self) -> usize {
        0
    }

    /// Whether a decoded cell keeps its kind's invariants.
    fn fits(&self, _kind: &Kind) -> bool {
        true
    }
}

/// The cells of one kept state, one per row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Column {
    Sum(Vec<Sum>),
    FloatSum(Vec<FloatSum>),
    Min(Vec<Min>),
    Max(Vec<Max>),
    First(Vec<First>),
    Last(Vec<Last>),
    Quantiles(Vec<Quantiles>),
    Distinct(Vec<Distinct>),
    Top(Vec<Top>),
}

/// Does the same with the cells of any kind.
macro_rules! with_cells {
    ($column:expr, $cells:ident => $body:expr) => {
        match $column {
            Column::Sum($cells) => $body,
            Column::FloatSum($cells) => $body,
            Column::Min($cells) => $body,
            Column::Max($cells) => $body,
            Column::First($cells) => $body,
            Column::Last($cells) => $body,
            Column::Quantiles($cells) => $body,
            Column::Distinct($cells) => $body,
            Column::Top($cells) => $body,
        }
    };
}

/// Does something with the cells of two columns of the same kind.
macro_rules! with_both {
    ($left:expr, $right:expr, $a:ident, $b:ident => $body:expr) => {
        match ($left, $right) {
            (Column::Sum($a), Column::Sum($b)) => $body,
            (Column::FloatSum($a), Column::FloatSum($b)) => $body,
            (Column::Min($a), Column::Min($b)) => $body,
            (Column::Max($a), Column::Max($b)) => $body,
            (Column::First($a), Column::First($b)) => $body,
            (Column::Last($a), Column::Last($b)) => $body,
            (Column::Quantiles($a), Column::Quantiles($b)) => $body,
            (Column::Distinct($a), Column::Distinct($b)) => $body,
            (Column::Top($a), Column::Top($b)) => $body,
            _ => unreachable!("equal layouts have columns of equal kinds: checked when decoded"),
        }
    };
}

impl Column {
    pub(crate) fn new(kind: &Kind, number: Number) -> Self {
        match kind {
            Kind::Sum if number == Number::Float => Self::FloatSum(Vec::new()),
            Kind::Sum => Self::Sum(Vec::new()),
            Kind::Min => Self::Min(Vec::new()),
            Kind::Max => Self::Max(Vec::new()),
            Kind::First => Self::First(Vec::new()),
            Kind::Last => Self::Last(Vec::new()),
            Kind::Quantiles => Self::Quantiles(Vec::new()),
            Kind::Distinct { .. } => Self::Distinct(Vec::new()),
            Kind::Top { .. } => Self::Top(Vec::new()),
        }
    }

    pub(crate) fn resize(&mut self, n: usize, kind: &Kind) {
        with_cells!(self, cells => cells.resize_with(n, || Cell::empty(kind)));
    }

    pub(crate) fn take(&self, rows: &[usize]) -> Self {
        fn pick<C: Clone>(cells: &[C], rows: &[usize]) -> Vec<C> {
            rows.iter().map(|&row| cells[row].clone()).collect()
        }
        match self {
            Self::Sum(cells) => Self::Sum(pick(cells, rows)),
            Self::FloatSum(cells) => Self::FloatSum(pick(cells, rows)),
            Self::Min(cells) => Self::Min(pick(cells, rows)),
            Self::Max(cells) => Self::Max(pick(cells, rows)),
            Self::First(cells) => Self::First(pick(cells, rows)),
            Self::Last(cells) => Self::Last(pick(cells, rows)),
            Self::Quantiles(cells) => Self::Quantiles(pick(cells, rows)),
            Self::Distinct(cells) => Self::Distinct(pick(cells, rows)),
            Self::Top(cells) => Self::Top(pick(cells, rows)),
        }
    }

    /// Appends a cell to `bytes`.
    pub(crate) fn encode(&self, row: usize, bytes: Vec<u8>) -> Result<Vec<u8>, ChunkError> {
        with_cells!(self, cells => postcard::to_extend(&cells[row], bytes).map_err(ChunkError::Body))
    }

    /// Adds the cell that `bytes` begin with, and gives what follows it.
    pub(crate) fn decode<'a>(&mut self, kind: &Kind, bytes: &'a [u8]) -> Result<&'a [u8], ChunkError> {
        with_cells!(self, cells => {
            let (cell, rest) = postcard::take_from_bytes(bytes).map_err(ChunkError::Body)?;
            cells.push(cell);
            if cells.last().is_some_and(|cell| cell.fits(kind)) { Ok(rest) } else { Err(UNFIT) }
        })
    }

    pub(crate) fn drop_first(&mut self, n: usize) {
        with_cells!(self, cells => drop(cells.drain(..n)));
    }

    /// Merges cell `i` of `other` into cell `into[i]`.
    pub(crate) fn merge(&mut self, other: &Self, into: &[usize]) {
        with_both!(self, other, cells, more => {
            for (&to, cell) in into.iter().zip(more) {
                cells[to].merge(cell);
            }
        });
    }

    pub(crate) fn bytes(&self) -> usize {
        fn held<C: Cell>(cells: &[C]) -> usize {
            size_of_val(cells) + cells.iter().map(Cell::heap).sum::<usize>()
        }
        with_cells!(self, cells => held(cells))
    }

    pub(crate) fn fits(&self, kind: &Kind, number: Number, rows: usize) -> bool {
        let same = std::mem::discriminant(self) == std::mem::discriminant(&Self::new(kind, number));
        same && with_cells!(self, cells => cells.len() == rows && cells.iter().all(|cell| cell.fits(kind)))
    }

    /// Folds the inputs' rows: row `i` into cell `groups[i]`, which exists. Nulls are skipped.
    pub(crate) fn fold(&mut self, kind: &Kind, number: Number, inputs: &Inputs, groups: &[usize]) {
        match self {
            Self::Sum(cells) => inputs.values(groups, |_, group, value| cells[group].add(value)),
            Self::FloatSum(cells) => inputs.floats(number, groups, |group, value| cells[group].add(value)),
            Self::Min(cells) => inputs.values(groups, |_, group, value| cells[group].add(value)),
            Self::Max(cells) => inputs.values(groups, |_, group, value| cells[group].add(value)),
            Self::First(cells) => inputs.values(groups, |row, group, value| {
                if cells[group].may_take(inputs.time(row)) {
                    cells[group].add(inputs.moment(row, value));
                }
            }),
            Self::Last(cells) => inputs.values(groups, |row, group, value| {
                if cells[group].may_take(inputs.time(row)) {
                    cells[group].add(inputs.moment(row, value));
                }
            }),
            Self::Quantiles(cells) => inputs.floats(number, groups, |group, value| cells[group].add(value)),
            Self::Distinct(cells) => inputs.texts(kind, groups, |group, text| cells[group].add(text)),
            Self::Top(cells) => inputs.texts(kind, groups, |group, text| cells[group].add(text)),
        }
    }
}
