//! Opening, publishing and giving up generations: the only places where a run changes the state of a view.

use std::{collections::BTreeMap, ops::Range};

use lamina_core::{
    Commit, Cut, LogId, Micros, Offset, Opened, Partition, Published, Scope, Store, StoreError,
    generation::{GenerationError, ViewState, load_view, save_view},
    store::period,
};
use lamina_metric::{Metric, View};

use crate::BatchError;

/// How often a change of a view's state is made again on what was read back.
const ATTEMPTS: u32 = 16;

/// One view as a run writes it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) view: View,
    /// What readers use while the run is under way.
    pub(crate) published: Published,
    pub(crate) opened: Opened,
    /// Per width that is not kept for ever, how long it is.
    pub(crate) retention: BTreeMap<Micros, Micros>,
    /// Per width, the event time below which nothing is written.
    pub(crate) horizons: BTreeMap<Micros, Micros>,
}

impl Target {
    /// Whether a chunk of this view may have been written by an earlier run.
    pub(crate) fn may_exist(&self) -> bool {
        self.opened.generation > 1
    }
}

/// The horizon that retention gives at `now`: a whole chunk is dropped once all its buckets are past.
pub(crate) fn horizon(metric: &Metric, width: Micros, now: Micros) -> Option<Micros> {
    let kept = *metric.retention.get(&width)?;
    let period = period(width);
    Some(now.saturating_sub(kept).div_euclid(period).saturating_mul(period))
}

/// Whether a run has anything to do for this view, short of raising horizons.
pub(crate) fn is_current(state: &ViewState, cut: &Cut) -> bool {
    let inherits = state.open.as_ref().is_some_and(|open| open.scope.rebuild.is_some());
    state.published.cut.reaches(cut) && !inherits
}

/// Opens the next generation of a view, up to `cut`, and raises its horizons: from now on nothing below is served.
pub(crate) async fn open(
    store: &dyn Store,
    metric: &Metric,
    view: &View,
    cut: &Cut,
    scope: &Scope,
    now: Micros,
) -> Result<Target, BatchError> {
    for _ in 0..ATTEMPTS {
        let (version, state) = load_view(store, &view.id).await?;
        let (mut next, opened) = state.begin(cut.clone(), scope.clone(), now)?;
        raise(metric, &mut next, now);
        match save_view(store, &view.id, version, &next).await {
            Ok(Commit::Applied) => {
                let retention = metric.retention.clone();
                let (published, horizons) = (state.published, next.horizons);
                return Ok(Target { view: view.clone(), published, opened, retention, horizons });
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
        if (state.published.generation, state.published.stamp) == (opened.generation, opened.stamp) {
            return Ok(());
        }
        let mut next = match state.publish(opened, now, through) {
            Ok(next) => next,
            Err(GenerationError::NotOpen { .. }) => return Err(BatchError::TakenOver),
            Err(error) => return Err(error.into()),
        };
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
    for _ in 0..ATTEMPTS {
        let (version, state) = load_view(store, &target.view.id).await?;
        if state.open.as_ref() != Some(&target.opened) {
            return Ok(());
        }
        let next = ViewState { open: None, ..state };
        match save_view(store, &target.view.id, version, &next).await {
            Ok(Commit::Applied) => return Ok(()),
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BatchError::Contended(target.view.id.to_string()))
}

/// Raises the horizons of a view that has nothing else to do.
pub(crate) async fn raise_horizons(
    store: &dyn Store,
    metric: &Metric,
    view: &View,
    now: Micros,
) -> Result<(), BatchError> {
    for _ in 0..ATTEMPTS {
        let (version, state) = load_view(store, &view.id).await?;
        let mut next = state.clone();
        raise(metric, &mut next, now);
        if next == state {
            return Ok(());
        }
        match save_view(store, &view.id, version, &next).await {
            Ok(Commit::Applied) => return Ok(()),
            Ok(Commit::Refused) | Err(StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(BatchError::Contended(view.id.to_string()))
}

fn raise(metric: &Metric, state: &mut ViewState, now: Micros) {
    for width in metric.widths() {
        if let Some(horizon) = horizon(metric, width, now) {
            state.raise_horizon(width, horizon);
        }
    }
}
