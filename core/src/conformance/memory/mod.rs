//! A log and a view store in memory: the plain state that tests and simulations share.
//!
//! [`LogState`] and [`StoreState`] are values without locks, waits or faults; whoever simulates puts those around them.
//! [`MemoryLog`] and [`MemoryStore`] are the same states behind the traits, and pass the suites.

mod groups;
mod log;
mod store;

pub use groups::{Groups, MemberId};
pub use log::{LogState, Member, MemoryLog, PartitionState};
pub use store::{MemoryStore, StoreState};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        clock::SystemClock,
        conformance::{log_suite, store_suite},
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn the_log_in_memory_passes_the_suite() {
        log_suite(&super::MemoryLog::new(Arc::new(SystemClock)), "memory").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_store_in_memory_passes_the_suite() {
        store_suite(&super::MemoryStore::new(Arc::new(SystemClock))).await;
    }
}
