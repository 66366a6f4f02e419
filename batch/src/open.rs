//! Opening, publishing and giving up generations: the only places where a run changes the state of a view.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use lamina_core::{
    Commit, Cut, Generation, LogId, Micros, Offset, Opened, Partition, Published, Scope, Store, StoreError,
    generation::{GenerationError, ViewState, load_view, save_view},
    store::period,
};
use lamina_metric::{Metric, View};

use crate::{BatchError, plan::Sealed};

/// How often a change of a view's state is made again on what was read back.
const ATTEMPTS: u32 = 16;
/// Publications that are kept at most.
const MOST_KEPT: usize = 16;
/// What was replaced is kept at least so long: readers may still be using it.
const LEAST_KEPT: Micros = 3_600_000_000;

/// What a run is for, besides covering newly sealed epochs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    Cover,
    /// Of whole batch chunks.
    Rebuild(Range<Micros>),
    /// Return to what was served at this moment.
    Rollback(Micros),
}

impl Aim {
    /// For a view in this state. One that was not replaced since the moment of a rollback stays.
    fn scope(&self, state: &ViewState) -> Scope {
        match self {
            Self::Cover => Scope::default(),
            Self::Rebuild(range) => Scope { rebuild: Some(range.clone()), rollback: None },
            Self::Rollback(at) => {
                Scope { rebuild: None, rollback: state.kept_at(*at).map(|kept| kept.published.generation) }
            }
        }
    }
}

/// One view as a run writes it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) view: View,
    /// What chunks are extended from: what readers use meanwhile, or what is returned to.
    pub(crate) published: Published,
    pub(crate) opened: Opened,
    pub(crate) metric: Arc<Metric>,
    /// Per width, the event time below which nothing is written.
    pub(crate) horizons: BTreeMap<Micros, Micros>,
    /// Per width and rule, that below which nothing of matching series is.
    pub(crate) rule_horizons: BTreeMap<Micros, BTreeMap<usize, Micros>>,
    /// Whether the view may have chunks beyond the cut that they are extended from: of a generation that never was published,
    /// or of those after the one that is returned to.
    pub(crate) has_beyond: bool,
}

impl Target {
    /// `published` of the state is what chunks are extended from, and `last` the generation before `opened`.
    fn new(metric: &Arc<Metric>, view: &View, opened: Opened, state: ViewState, last: Generation) -> Self {
        let ViewState { published, horizons, rule_horizons, .. } = state;
        let has_beyond = published.generation != last;
        let (view, metric) = (view.clone(), Arc::clone(metric));
        Self { view, published, opened, metric, horizons, rule_horizons, has_beyond }
    }

    /// A view as a run would write it that rebuilds `range` of what is published; it is there to be compared with.
    pub(crate) async fn imagined(
        store: &dyn Store,
        metric: &Arc<Metric>,
        view: &View,
        range: Range<Micros>,
    ) -> Result<Self, BatchError> {
        let (_, state) = load_view(store, &view.id).await?;
        let scope = Scope { rebuild: Some(range), rollback: None };
        let (generation, cut) = (state.last_generation, state.published.cut.clone());
        let opened = Opened { generation, cut, stamp: 0, scope, base: 0 };
        Ok(Self::new(metric, view, opened, state, generation))
    }

    /// Whether a chunk of this view may have been written by an earlier run.
    pub(crate) fn may_exist(&self) -> bool {
        self.opened.generation > 1
    }

    /// Whether it holds what was scanned of a table, which no log orders: all event time is rebuilt, and there is no cut.
    pub(crate) fn is_snapshot(&self) -> bool {
        let everything = self.opened.scope.rebuild.as_ref().is_some_and(|range| *range == (Micros::MIN..Micros::MAX));
        everything && self.has_no_log()
    }

    /// Whether it returns to what was scanned of a table earlier.
    fn returns_to_snapshot(&self) -> bool {
        self.opened.scope.rollback.is_some() && self.has_no_log()
    }

    fn has_no_log(&self) -> bool {
        self.opened.cut.iter().next().is_none()
    }
}

/// The horizon of what is `kept` so long, at `now`: a whole chunk is dropped once all its buckets are past.
fn horizon(width: Micros, kept: Micros, now: Micros) -> Micros {
    let period = period(width);
    now.saturating_sub(kept).div_euclid(period).saturating_mul(period)
}

/// Whether a run has anything to do for this view, short of raising horizons.
pub(crate) fn is_current(state: &ViewState, cut: &Cut) -> bool {
    let inherits = state.open.as_ref().is_some_and(|open| open.scope.rebuild.is_some());
    state.published.cut.reaches(cut) && !inherits
}

/// Opens the next generation of a view, up to what is sealed, and raises its horizons: from now on nothing below is served.
pub(crate) async fn open(
    store: &dyn Store,
    metric: &Arc<Metric>,
    view: &View,
    sealed: &Sealed,
    aim: &Aim,
    now: Micros,
) -> Result<Target, BatchError> {
    for _ in 0..ATTEMPTS {
        let (version, state) = load_view(store, &view.id).await?;
        let (mut next, opened) = state.begin(sealed.cut(), aim.scope(&state), now)?;
        raise(metric, view, &mut next, now);
        begin_above(metric, &mut next, sealed.gone_through);
        let published = next.origin(&opened)?;
        match save_view(store, &view.id, version, &next).await {
            Ok(Commit::Applied) => {
                return Ok(Target::new(metric, view, opened, ViewState { published, ..next }, state.last_generation));
            }
            // An unknown outcome may have opened a generation, and another leader may have opened the very same: the
            // next one is surely ours.
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BatchError::Contended(view.id.to_string()))
}

/// Publishes a generation of `log` all of whose chunks are acknowledged, with what was lost of the epochs it covers.
pub(crate) async fn publish(
    store: &dyn Store,
    log: &LogId,
    target: &Target,
    now: Micros,
    through: Option<Micros>,
    lost: &[(Partition, Range<Offset>)],
) -> Result<(), BatchError> {
    let (view, opened) = (&target.view.id, &target.opened);
    for _ in 0..ATTEMPTS {
        let (version, state) = load_view(store, view).await?;
        let stamp = if target.returns_to_snapshot() { target.published.stamp } else { opened.stamp };
        if (state.published.generation, state.published.stamp) == (opened.generation, stamp) {
            return Ok(());
        }
        let mut next = match state.publish(opened, now, through) {
            Ok(next) => next,
            Err(GenerationError::NotOpen { .. }) => return Err(BatchError::TakenOver),
            Err(error) => return Err(error.into()),
        };
        if target.is_snapshot() {
            // What an earlier snapshot held may be gone.
            next.published.through = through;
        } else if target.returns_to_snapshot() {
            // It is what it was then, and answers say when that was.
            let Published { through, stamp, at, .. } = &target.published;
            (next.published.through, next.published.stamp, next.published.at) = (*through, *stamp, *at);
        }
        next.published.lose(lost.iter().cloned());
        next.published.log = Some(log.clone());
        match save_view(store, view, version, &next).await {
            Ok(Commit::Applied) => return Ok(()),
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BatchError::Contended(view.to_string()))
}

/// Gives an open generation up, so that the next one does not inherit a rebuild that was cancelled or cannot succeed.
pub(crate) async fn give_up(store: &dyn Store, target: &Target) -> Result<(), BatchError> {
    let given_up = |state: &ViewState| match state.open.as_ref() == Some(&target.opened) {
        true => state.given_up(),
        false => state.clone(),
    };
    update(store, &target.view, given_up).await.map(drop)
}

/// Raises the horizons of a view that has nothing else to do, and forgets what was replaced before `replaced_since`, chunks
/// and all.
pub(crate) async fn tidy(
    store: &dyn Store,
    metric: &Metric,
    view: &View,
    now: Micros,
    replaced_since: Micros,
) -> Result<(), BatchError> {
    let change = |state: &ViewState| {
        let mut next = state.clone();
        raise(metric, view, &mut next, now);
        let read_since = now.saturating_sub(LEAST_KEPT);
        next.forget(replaced_since.min(read_since), read_since, MOST_KEPT);
        next
    };
    let ViewState { unused, last_stamp, .. } = update(store, view, change).await?;
    for (range, base) in &unused {
        for width in metric.widths() {
            for shard in 0..view.shards.max(1) {
                store.remove_chunks(&view.id, width, *base, shard, range.clone(), last_stamp).await?;
            }
        }
    }
    let removed = |state: &ViewState| {
        let mut next = state.clone();
        next.unused.retain(|one| !unused.contains(one));
        next
    };
    if !unused.is_empty() {
        update(store, view, removed).await?;
        tracing::info!(view = %view.id, ranges = unused.len(), "chunks that nothing refers to were removed");
    }
    Ok(())
}

/// From now on nothing that was replaced can be returned to.
pub(crate) async fn bar(store: &dyn Store, view: &View) -> Result<(), BatchError> {
    let barred = |state: &ViewState| {
        let mut next = state.clone();
        next.bar();
        next
    };
    update(store, view, barred).await.map(drop)
}

/// Changes a view's state by compare-and-set, if `change` changes it, and gives it as it stands afterwards.
async fn update(
    store: &dyn Store,
    view: &View,
    change: impl Fn(&ViewState) -> ViewState + Send,
) -> Result<ViewState, BatchError> {
    for _ in 0..ATTEMPTS {
        let (version, state) = load_view(store, &view.id).await?;
        let next = change(&state);
        if next == state {
            return Ok(state);
        }
        match save_view(store, &view.id, version, &next).await {
            Ok(Commit::Applied) => return Ok(next),
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BatchError::Contended(view.id.to_string()))
}

/// Nothing is served that could not be recomputed: a view that is built after retention removed raw events begins above them.
fn begin_above(metric: &Metric, state: &mut ViewState, gone_through: Option<Micros>) {
    let Some(gone) = gone_through else { return };
    for width in metric.widths() {
        let period = period(width);
        state.raise_horizon(width, gone.div_euclid(period).saturating_add(1).saturating_mul(period));
    }
}

fn raise(metric: &Metric, view: &View, state: &mut ViewState, now: Micros) {
    for (&width, &kept) in &metric.retention {
        state.raise_horizon(width, horizon(width, kept, now));
    }
    for (at, rule) in metric.expire.iter().enumerate().filter(|(_, rule)| rule.concerns(view)) {
        for (&width, &kept) in &rule.kept {
            state.raise_rule_horizon(width, at, horizon(width, kept, now));
        }
    }
}
