//! Why a scenario ends early, and the Ctrl-C that ends all of them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Why a scenario did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("interrupted")]
    Interrupted,
    /// What had to be prepared or done could not be.
    #[error("cannot {doing}: {why}")]
    Cannot { doing: String, why: String },
    /// Something that was promised did not hold.
    #[error("{0}")]
    Broken(String),
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Turns any error into a failure to do something.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Outcome<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Outcome<T> {
        self.map_err(|error| Failure::Cannot { doing: what.into(), why: error.to_string() })
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Ctrl-C and SIGTERM end the scenario under way, which then cleans up; a second one ends the program at once.
pub(crate) fn watch_signals() -> Outcome {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("watch signals")?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = tokio::signal::ctrl_c() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("stopping and cleaning up");
            }
        });
    });
    Ok(())
}

/// Sleeps, unless interrupted.
pub(crate) fn pause(length: Duration) -> Outcome {
    let end = Instant::now() + length;
    while Instant::now() < end {
        if interrupted() {
            return Err(Failure::Interrupted);
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
    }
    Ok(())
}

/// Polls until `holds`; gives how long that took.
pub(crate) fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Outcome<Duration> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > within {
            return Err(Failure::Broken(format!("waited {within:?} in vain until {what}")));
        }
        pause(Duration::from_millis(100))?;
    }
    Ok(begun.elapsed())
}
