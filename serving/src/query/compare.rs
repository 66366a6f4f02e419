//! Values of an earlier period beside those of the range: which bucket stands beside which.

use std::collections::HashMap;

use axum::http::StatusCode;
use lamina_core::Micros;
use lamina_metric::FastHash;

use crate::{
    problem::Problem,
    query::{
        calendar::{Buckets, earlier},
        question::Question,
        table::MAX_POINTS,
    },
};

/// The earlier buckets, each with the buckets of the range beside which it stands: mostly one. Where clocks were changed an
/// hour may have none, or stand beside two.
pub(crate) struct Earlier {
    buckets: Buckets,
    beside: HashMap<Micros, Vec<Micros>, FastHash>,
}

impl Earlier {
    /// Of a question with `compare`; below `horizon` nothing of the earlier range is kept.
    pub(crate) fn of(question: &Question, present: &Buckets, horizon: Micros) -> Result<Self, Problem> {
        let whole = question.parts.get(question.present).map_or_else(|| question.whole(), |part| part.buckets.clone());
        let mut buckets = whole.clone();
        buckets.range.start = horizon;
        let starts = present.starts(MAX_POINTS).ok_or_else(|| {
            let detail =
                format!("`compare` is for at most {MAX_POINTS} buckets: take a longer step or a shorter range");
            Problem::new(StatusCode::BAD_REQUEST, "too_many_points", detail)
        })?;
        let mut beside: HashMap<Micros, Vec<Micros>, FastHash> = HashMap::default();
        let Some((period, _)) = &question.params.compare else { return Ok(Self { buckets, beside }) };
        for start in starts {
            let own = whole.start_of(earlier(start, *period, question.params.zone));
            if whole.next(own) > horizon && own < whole.range.end {
                beside.entry(own.max(horizon)).or_default().push(start);
            }
        }
        Ok(Self { buckets, beside })
    }

    /// The buckets of the range beside which the one stands that begins there.
    pub(crate) fn shown_at(&self, start: Micros) -> impl Iterator<Item = Micros> + '_ {
        self.beside.get(&self.buckets.start_of(start)).into_iter().flatten().copied()
    }
}
