//! The distributed engine: the leader cuts the files of a fold into shares and gives them to executors, which are other
//! processes. An executor needs the archive and nothing else: a share names files and carries the metric's definition.
//!
//! Plans, states and errors travel by `datafusion-distributed`; see `docs/decisions/006-distributed-engine.md`.
//!
//! # Invariants
//! - What executors give is held against the ledger here, as what is folded in this process is.
//! - An executor that is lost costs time only: its share goes to another one.
//! - An executor runs nothing but folds of its own archive's files.

mod codec;
mod executor;
mod fleet;

use datafusion::{error::DataFusionError, execution::TaskContext};

pub use executor::execute;
pub(crate) use fleet::Fleet;

use crate::{BatchError, fold::own};

/// Leader and executors must be of the same build, or states could differ.
const VERSION: &str = concat!("lamina ", env!("CARGO_PKG_VERSION"), ", plans 3");
/// Marks an error that says that something does not add up.
const VIOLATION: &str = "conservation";

/// In the configuration of what runs for a leader elsewhere.
#[derive(Debug)]
struct Elsewhere;

/// An error of a plan as it is told: in words if the leader is another process, since it has no use for our types.
pub(crate) fn told(error: DataFusionError, context: &TaskContext) -> DataFusionError {
    if context.session_config().get_extension::<Elsewhere>().is_none() {
        return error;
    }
    let error = own(error);
    let words = DataFusionError::Execution(error.chain());
    if error.is_violation() { words.context(VIOLATION) } else { words }
}

/// What an executor told, as an error of the run.
fn heard(executor: &str, error: DataFusionError) -> BatchError {
    let (violation, error) = match error {
        DataFusionError::Context(what, cause) if what == VIOLATION => (true, *cause),
        other => (false, other),
    };
    let text = match error {
        DataFusionError::Execution(text) => text,
        other => other.to_string(),
    };
    BatchError::Executor { executor: executor.to_owned(), text, violation }
}

#[cfg(test)]
mod tests;
