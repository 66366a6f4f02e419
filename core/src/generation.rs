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
    ledger::Ledger,
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
    /// What recomputes and rollbacks replaced, the latest first: a rollback can return to it.
    pub kept: Vec<Kept>,
    /// What must not be returned to, as some of it was erased. Its chunks stay a little longer, for readers.
    pub barred: Vec<Kept>,
    /// Ranges of event time under bases that nothing refers to any more: their chunks can go.
    pub unused: Vec<(Range<Micros>, u32)>,
    /// Per width and rule of expiry (by index), the event time below which nothing of the series that match it is served or
    /// written. Only rise. The rules of a version never change.
    pub rule_horizons: BTreeMap<Micros, BTreeMap<usize, Micros>>,
}

/// A publication that a recompute or a rollback replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The last one with its bases.
    pub published: Published,
    pub replaced_at: Micros,
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
    /// When a recompute or a rollback brought these bases into force, if one did.
    pub bases_since: Option<Micros>,
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
    /// The kept generation to return to, extended to this one's cut.
    pub rollback: Option<Generation>,
}

impl Scope {
    /// With what an abandoned generation should have done. A rollback is not for a later generation to inherit, nor does it
    /// rebuild: it was asked for on what stood then.
    fn with(self, other: &Self) -> Self {
        if self.rollback.is_some() {
            return self;
        }
        let rebuild = match (self.rebuild, &other.rebuild) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.or_else(|| b.clone()),
        };
        Self { rebuild, rollback: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    #[error("generation {asked} is not open: {open:?} is")]
    NotOpen { asked: Generation, open: Option<Generation> },
    #[error("the new cut lies below the published one")]
    CutBackwards,
    #[error("generation {0} is not kept any more")]
    NotKept(Generation),
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
            ..self.given_up()
        };
        Ok((state, opened))
    }

    /// Without an open generation: what it has rebuilt is of no use.
    pub fn given_up(&self) -> Self {
        let mut state = Self { open: None, ..self.clone() };
        let abandoned = self.open.as_ref().and_then(|open| Some((open.scope.rebuild.clone()?, open.base)));
        state.unused.extend(abandoned);
        state
    }

    /// Publishes a generation all of whose chunks are acknowledged.
    ///
    /// # Errors
    /// [`GenerationError::NotOpen`] if another was opened since, [`GenerationError::NotKept`] as [`ViewState::origin`].
    pub fn publish(&self, opened: &Opened, now: Micros, through: Option<Micros>) -> Result<Self, GenerationError> {
        let open = self.open.as_ref().map(|open| open.generation);
        if open != Some(opened.generation) && rules::on(Rule::OnlyTheOpenPublishes) {
            return Err(GenerationError::NotOpen { asked: opened.generation, open });
        }
        let mut bases = self.origin(opened)?.bases;
        if let Some(range) = &opened.scope.rebuild {
            bases.retain(|(old, _)| old.start < range.start || old.end > range.end);
            bases.insert(0, (range.clone(), opened.base));
        }
        let mut kept = self.kept.clone();
        let replaces = opened.scope.rebuild.is_some() || opened.scope.rollback.is_some();
        if replaces && self.published.generation > 0 {
            kept.insert(0, Kept { published: self.published.clone(), replaced_at: now });
        }
        let published = Published {
            generation: opened.generation,
            cut: opened.cut.clone(),
            stamp: opened.stamp,
            at: now,
            through: through.max(self.published.through),
            bases,
            bases_since: if replaces { Some(now) } else { self.published.bases_since },
            lost: self.published.lost.clone(),
            log: self.published.log.clone(),
        };
        Ok(Self { published, open: None, kept, ..self.clone() })
    }

    /// The kept publication whose last generation this was.
    ///
    /// # Errors
    /// [`GenerationError::NotKept`].
    pub fn kept(&self, generation: Generation) -> Result<&Kept, GenerationError> {
        let found = self.kept.iter().find(|kept| kept.published.generation == generation);
        found.ok_or(GenerationError::NotKept(generation))
    }

    /// What the chunks of this generation are extended from: what is published, or what it returns to, with the cut at
    /// which that was left.
    ///
    /// # Errors
    /// [`GenerationError::NotKept`].
    pub fn origin(&self, opened: &Opened) -> Result<Published, GenerationError> {
        let Some(generation) = opened.scope.rollback else { return Ok(self.published.clone()) };
        let mut kept = self.kept(generation)?.published.clone();
        if !rules::on(Rule::RollbackExtends) {
            kept.cut = self.published.cut.clone();
        }
        Ok(kept)
    }

    /// The publication whose bases were in force at this moment, if they were replaced since and are kept.
    pub fn kept_at(&self, at: Micros) -> Option<&Kept> {
        let since = |kept: &Kept| kept.published.bases_since.unwrap_or(Micros::MIN);
        self.kept.iter().find(|kept| since(kept) <= at && at < kept.replaced_at)
    }

    /// From now on nothing that was replaced can be returned to.
    pub fn bar(&mut self) {
        self.barred.append(&mut self.kept);
    }

    /// Keeps at most `most` of what was replaced after `replaced_since`, and for readers all that was after `read_since`;
    /// chunks that only the others refer to are noted as unused. What an open generation returns to stays.
    pub fn forget(&mut self, replaced_since: Micros, read_since: Micros, most: usize) {
        let wanted = self.open.as_ref().and_then(|open| open.scope.rollback);
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for (at, one) in std::mem::take(&mut self.kept).into_iter().enumerate() {
            let stays = (one.replaced_at > replaced_since && at < most) || wanted == Some(one.published.generation);
            if stays { kept.push(one) } else { dropped.push(one) }
        }
        self.kept = kept;
        let (barred, over): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.barred).into_iter().partition(|barred| barred.replaced_at > read_since);
        self.barred = barred;
        dropped.extend(over);
        let used: Vec<&Published> = std::iter::once(&self.published)
            .chain(self.kept.iter().chain(&self.barred).map(|kept| &kept.published))
            .collect();
        let unused = dropped.iter().flat_map(|dropped| only_in(&dropped.published, &used));
        for one in unused.collect::<Vec<_>>() {
            if !self.unused.contains(&one) {
                self.unused.push(one);
            }
        }
    }

    /// Raises the horizon of a width.
    pub fn raise_horizon(&mut self, width: Micros, to: Micros) {
        let horizon = self.horizons.entry(width).or_insert(to);
        *horizon = (*horizon).max(to);
    }

    /// Raises the horizon of a width for the series that match a rule.
    pub fn raise_rule_horizon(&mut self, width: Micros, rule: usize, to: Micros) {
        let horizon = self.rule_horizons.entry(width).or_default().entry(rule).or_insert(to);
        *horizon = (*horizon).max(to);
    }

    /// Whether a horizon of a width lies higher here than in `before`.
    pub fn rose_since(&self, before: &Self, width: Micros) -> bool {
        let rules = |state: &Self| state.rule_horizons.get(&width).cloned().unwrap_or_default();
        let (then, now) = (rules(before), rules(self));
        self.horizons.get(&width) > before.horizons.get(&width)
            || now.iter().any(|(rule, at)| Some(at) > then.get(rule))
    }
}

impl Published {
    /// Whether the cut counts offsets of this log. Without a topic there is none that it could be mixed with.
    pub fn is_of(&self, log: &LogId) -> bool {
        log.topic_id().is_empty() || self.log.as_ref().is_none_or(|own| own == log)
    }

    /// Whether a view that counts epochs since the revision `since` has all that was folded before in a partition with
    /// this ledger: published at all, and up to the first epoch that it folded itself.
    pub fn builds(&self, since: u64, partition: Partition, ledger: &Ledger) -> bool {
        let mut above = ledger.epochs.iter().filter(|epoch| !self.cut.covers(partition, epoch.start));
        self.generation > 0 && above.all(|epoch| epoch.revision >= since)
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

/// The ranges, with their bases, that `one` refers to and none of `others` does.
fn only_in(one: &Published, others: &[&Published]) -> Vec<(Range<Micros>, u32)> {
    let all = std::iter::once(&one).chain(others);
    let mut edges: Vec<Micros> =
        all.flat_map(|published| &published.bases).flat_map(|(range, _)| [range.start, range.end]).collect();
    edges.extend([Micros::MIN, Micros::MAX]);
    edges.sort_unstable();
    edges.dedup();
    let mut found: Vec<(Range<Micros>, u32)> = Vec::new();
    for pair in edges.windows(2) {
        let base = one.base_at(pair[0]);
        if others.iter().any(|other| other.base_at(pair[0]) == base) {
            continue;
        }
        match found.last_mut() {
            Some((range, last)) if *last == base && range.end == pair[0] => range.end = pair[1],
            _ => found.push((pair[0]..pair[1], base)),
        }
    }
    found
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

#[cfg(test)]
mod tests;
