//! Retention of raw events: a file goes once its time is over and no chunk above any horizon holds its states, so that
//! whatever is served can be recomputed.

use std::sync::Arc;

use lamina_core::{Micros, Segment, generation::load_view};
use lamina_metric::Metric;

use super::{Place, files};
use crate::BatchError;

/// Lets go of the segments whose events all lie before `kept_from` and below every horizon; gives how many files that are.
pub(super) async fn retire(
    place: &Place,
    metrics: &[Arc<Metric>],
    segments: &[Segment],
    kept_from: Micros,
    now: Micros,
) -> Result<u64, BatchError> {
    let Some(horizon) = lowest_horizon(place, metrics).await? else { return Ok(0) };
    let before = horizon.min(kept_from);
    let mut gone = 0;
    for run in runs(segments, before) {
        place.change(|holdings| holdings.let_go(run, now)).await?;
        gone += files(run);
    }
    Ok(gone)
}

/// The event time below which no view serves anything at any width; `None` if one is kept for ever.
async fn lowest_horizon(place: &Place, metrics: &[Arc<Metric>]) -> Result<Option<Micros>, BatchError> {
    let mut lowest = Micros::MAX;
    for metric in metrics {
        for view in &metric.views {
            let (_, state) = load_view(&*place.store, &view.id).await?;
            for width in metric.widths() {
                let Some(&horizon) = state.horizons.get(&width) else { return Ok(None) };
                lowest = lowest.min(horizon);
            }
        }
    }
    Ok(Some(lowest))
}

/// Segments in a row whose events all lie before `before`. Where none was accepted, the one before them decides.
fn runs(segments: &[Segment], before: Micros) -> Vec<&[Segment]> {
    let mut past = true;
    let ends: Vec<bool> = segments
        .iter()
        .map(|segment| {
            past = segment.archive.is_none() || segment.event_time().map_or(past, |(_, last)| last < before);
            past
        })
        .collect();
    let mut runs = Vec::new();
    let mut from = 0;
    for part in ends.chunk_by(|a, b| a == b) {
        let run = &segments[from..from + part.len()];
        if part[0] && files(run) > 0 {
            runs.push(run);
        }
        from += part.len();
    }
    runs
}
