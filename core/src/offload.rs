//! Work that would hold up a runtime's threads runs beside them.
//!
//! A simulation keeps all work on its own thread instead, so that one seed fixes the order of everything.

use tokio::task::JoinError;

/// Runs `work` off the runtime's threads.
///
/// # Errors
/// If `work` panicked, or the runtime is shutting down.
pub async fn offload<T, F>(work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if is_inline() {
        return tokio::spawn(async move { work() }).await;
    }
    tokio::task::spawn_blocking(work).await
}

/// Whether all work stays on the caller's thread: never, except within `inline` in a test.
#[inline]
pub fn is_inline() -> bool {
    #[cfg(any(test, feature = "conformance"))]
    return switch::on();
    #[cfg(not(any(test, feature = "conformance")))]
    false
}

#[cfg(any(test, feature = "conformance"))]
mod switch {
    use std::cell::Cell;

    thread_local!(static INLINE: Cell<bool> = const { Cell::new(false) });

    /// Runs `body` with all work done on this thread.
    pub fn inline<T>(body: impl FnOnce() -> T) -> T {
        INLINE.set(true);
        let result = body();
        INLINE.set(false);
        result
    }

    pub(super) fn on() -> bool {
        INLINE.get()
    }
}

#[cfg(any(test, feature = "conformance"))]
pub use switch::inline;
