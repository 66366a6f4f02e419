//! SQL over merged metrics: DataFusion in a runtime of its own, within limits.
//!
//! Flow: text → [`guard`] → plan over [`table`]s → stream of record batches → [`encode`] → body.
//!
//! # Invariants
//! - A table's rows come from the one planning function of queries; a scan folds one prefix of the log, and says which.
//! - Nothing but metrics can be read, and raw archives by whoever may; and nothing written: no files, no addresses, no
//!   statements but queries.
//! - What does not simply add up is a summary, which only lamina's own functions turn into numbers.
//! - Text, tokens, memory, rows, bytes, time and queries at once are bounded. A query ends when its client leaves.

mod archive;
mod columns;
pub(crate) mod encode;
mod engine;
mod filters;
mod growth;
mod guard;
pub(crate) mod request;
mod scan;
mod table;

pub(crate) use self::engine::{Piece, Sql, Started};
