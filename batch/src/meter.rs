//! How far a run has come, for whoever asks meanwhile.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use lamina_core::Progress;

/// Progress of one job. The run writes it, the job's document takes it from here once a second.
#[derive(Debug)]
pub struct Meter(Mutex<(Progress, Instant)>);

impl Default for Meter {
    fn default() -> Self {
        Self(Mutex::new((Progress::default(), Instant::now())))
    }
}

impl Meter {
    /// Begins a stage of `total` units.
    pub(crate) fn stage(&self, stage: String, total: u64, unit: &str) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = guard.0.rows;
        *guard = (Progress { stage, done: 0, total, unit: unit.to_owned(), rows, eta_ms: None }, Instant::now());
    }

    pub(crate) fn advance(&self, units: u64, rows: u64) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = guard.1.elapsed().as_millis();
        let progress = &mut guard.0;
        progress.done += units;
        progress.rows += rows;
        let left = u128::from(progress.total.saturating_sub(progress.done));
        let eta = (progress.done > 0).then(|| spent * left / u128::from(progress.done));
        progress.eta_ms = eta.and_then(|eta| u64::try_from(eta).ok());
    }

    pub fn progress(&self) -> Progress {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}
