//! Generations: how batch moves a view's cut forward.
//!
//! The state of a view is one document, changed by compare-and-set. A run opens a generation, whose cut never changes;
//! writes chunks, each with its own cut; and publishes, which moves the view's cut. Opening the next generation abandons
//! an unfinished one and inherits its scope.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    cut::Cut,
    envelope,
    ids::{Generation, LogId, Micros, Offset, Partition, ViewId},
    rules::{self, Rule},
    store::{Documents, StoreError},
};

/// Kind of the documents that hold view states.
pub const VIEW_DOCUMENTS: &str = "view";

/// What batch has published of a view, and what it is at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewState {
    pub published: Published,
    pub open: Option<Opened>,
    /// Number and write timestamp of the last generation opened.
    pub last_generation: Generation,
    pub last_stamp: Micros,
    pub last_base: u32,
    /// Per width, the event time below which nothing is served or written. Only rises.
    pub horizons: BTreeMap<Micros, Micros>,
}

/// The publication that readers use. Generation 0 is "nothing yet".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub generation: Generation,
    pub cut: Cut,
    pub stamp: Micros,
    /// When it was published.
    pub at: Micros,
    /// Largest event time below the cut, for information.
    pub through: Option<Micros>,
    /// Ranges of event time that were recomputed, latest first, with the base they are stored under. Elsewhere the base is 0.
    pub bases: Vec<(Range<Micros>, u32)>,
    /// Offsets below the cut that the log had lost before they were read. It outlives the epochs' stay in the ledger.
    pub lost: Vec<(Partition, Range<Offset>)>,
    /// The log whose offsets the cut counts, as far as it was noted: of a topic that was made again they say nothing.
    pub log: Option<LogId>,
}

/// A generation that has begun and is not published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    pub generation: Generation,
    /// Covers everything below; stored before reading, never changed.
    pub cut: Cut,
    /// Write timestamp of its chunks: greater than every earlier generation's.
    pub stamp: Micros,
    pub scope: Scope,
    /// The base that a rebuilt range is written under.
    pub base: u32,
}

/// What a generation does besides covering newly sealed epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Event time to rebuild from the archive, whatever was there; whole batch chunks.
    pub rebuild: Option<Range<Micros>>,
}

impl Scope {
    fn with(self, other: &Self) -> Self {
        let rebuild = match (self.rebuild, &other.rebuild) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.or_else(|| b.clone()),
        };
        Self { rebuild }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    #[error("generation {asked} is not open: {open:?} is")]
    NotOpen { asked: Generation, open: Option<Generation> },
    #[error("the new cut lies below the published one")]
    CutBackwards,
}

impl ViewState {
    /// Opens the next generation up to `sealed`.
    ///
    /// # Errors
    /// [`GenerationError::CutBackwards`] if `sealed` lies below what is published.
    pub fn begin(&self, sealed: Cut, scope: Scope, now: Micros) -> Result<(Self, Opened), GenerationError> {
        if !sealed.reaches(&self.published.cut) {
            return Err(GenerationError::CutBackwards);
        }
        let scope = self.open.as_ref().map_or(scope.clone(), |abandoned| scope.with(&abandoned.scope));
        let generation = self.last_generation + 1;
        let stamp = now.max(self.last_stamp + 1);
        let base = self.last_base + u32::from(scope.rebuild.is_some());
        let opened = Opened { generation, cut: sealed, stamp, scope, base };
        let state = Self {
            open: Some(opened.clone()),
            last_generation: generation,
            last_stamp: stamp,
            last_base: base,
            ..self.clone()
        };
        Ok((state, opened))
    }

    /// Publishes a generation all of whose chunks are acknowledged.
    ///
    /// # Errors
    /// [`GenerationError::NotOpen`] if another was opened since.
    pub fn publish(&self, opened: &Opened, now: Micros, through: Option<Micros>) -> Result<Self, GenerationError> {
        let open = self.open.as_ref().map(|open| open.generation);
        if open != Some(opened.generation) && rules::on(Rule::OnlyTheOpenPublishes) {
            return Err(GenerationError::NotOpen { asked: opened.generation, open });
        }
        let mut bases = self.published.bases.clone();
        if let Some(range) = &opened.scope.rebuild {
            bases.retain(|(old, _)| old.start < range.start || old.end > range.end);
            bases.insert(0, (range.clone(), opened.base));
        }
        let published = Published {
            generation: opened.generation,
            cut: opened.cut.clone(),
            stamp: opened.stamp,
            at: now,
            through: through.max(self.published.through),
            bases,
            lost: self.published.lost.clone(),
            log: self.published.log.clone(),
        };
        Ok(Self { published, open: None, ..self.clone() })
    }

    /// Raises the horizon of a width.
    pub fn raise_horizon(&mut self, width: Micros, to: Micros) {
        let horizon = self.horizons.entry(width).or_insert(to);
        *horizon = (*horizon).max(to);
    }
}

impl Published {
    /// Whether the cut counts offsets of this log. Without a topic there is none that it could be mixed with.
    pub fn is_of(&self, log: &LogId) -> bool {
        log.topic_id().is_empty() || self.log.as_ref().is_none_or(|own| own == log)
    }

    /// Notes that epochs below the cut lack these offsets, each once.
    pub fn lose(&mut self, lost: impl IntoIterator<Item = (Partition, Range<Offset>)>) {
        for one in lost {
            if !self.lost.contains(&one) {
                self.lost.push(one);
            }
        }
    }

    /// The base under which the batch chunk of the period that starts at `period` is stored.
    pub fn base_at(&self, period: Micros) -> u32 {
        self.bases.iter().find(|(range, _)| range.contains(&period)).map_or(0, |(_, base)| *base)
    }

    /// From where a run extends a chunk: the later of the chunk's own cut and the published one. A chunk that no
    /// published run touched holds nothing below the published cut.
    pub fn extend_from(&self, own: Option<&Cut>) -> Cut {
        match own {
            Some(own) if rules::on(Rule::ExtendFromOwnCut) => own.max(&self.cut),
            _ => self.cut.clone(),
        }
    }
}

impl Opened {
    /// Whether the period that starts at `period` is rebuilt, and so written under this generation's base from nothing.
    pub fn rebuilds(&self, period: Micros) -> bool {
        self.scope.rebuild.as_ref().is_some_and(|range| range.contains(&period))
    }
}

/// Below which offset a partition's epochs may leave the ledger: the lowest published cut of all active views of the
/// source, given with none left out. A view that was never published keeps everything;
/// without a view nobody needs the epochs.
pub fn trim_below<'a>(
    views: impl IntoIterator<Item = &'a ViewState>,
    partition: Partition,
    sealed_end: Offset,
) -> Offset {
    if !rules::on(Rule::TrimBelowPublished) {
        return sealed_end;
    }
    views.into_iter().map(|view| view.published.cut.at(partition)).min().unwrap_or(sealed_end)
}

/// Reads a view's state with the version that a change must name.
///
/// # Errors
/// As the store, and [`StoreError::Corrupt`] if it does not decode.
pub async fn load_view<D: Documents + ?Sized>(store: &D, view: &ViewId) -> Result<(u64, ViewState), StoreError> {
    let Some(document) = store.get(VIEW_DOCUMENTS, view.as_str()).await? else { return Ok((0, ViewState::default())) };
    let corrupt = |error: envelope::EnvelopeError| StoreError::Corrupt {
        what: format!("state of view {view}"),
        why: error.to_string(),
    };
    Ok((document.version, envelope::unpack(&document.value).map_err(corrupt)?))
}

/// Writes a view's state if it is still at `expected`.
///
/// # Errors
/// As the store; [`StoreError::Unknown`] means: read back before deciding.
pub async fn save_view<D: Documents + ?Sized>(
    store: &D,
    view: &ViewId,
    expected: u64,
    state: &ViewState,
) -> Result<crate::store::Commit, StoreError> {
    let corrupt = |error: envelope::EnvelopeError| StoreError::Corrupt {
        what: format!("state of view {view}"),
        why: error.to_string(),
    };
    let value = envelope::pack(state).map_err(corrupt)?;
    store.put(VIEW_DOCUMENTS, view.as_str(), expected, value.into()).await
}
