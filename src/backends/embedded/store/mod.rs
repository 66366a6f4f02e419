//! The view store in the embedded database.

mod batch;
mod documents;
mod ledgers;
mod speed;

use std::sync::Arc;

use lamina_core::Micros;
use serde::Serialize;

use super::engine::{Engine, Failure, pack};

/// Ledgers, chunks and documents in the embedded database.
pub struct EmbeddedStore {
    engine: Arc<Engine>,
}

impl EmbeddedStore {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

/// Lays out a value; plain data cannot fail to serialise.
fn packed(what: &str, head: &impl Serialize, expires_at: Option<Micros>, body: &[u8]) -> Result<Vec<u8>, Failure> {
    pack(head, expires_at, body).map_err(|why| Failure::Corrupt { what: what.to_owned(), why })
}

fn corrupt(what: &str, key: &[u8]) -> Failure {
    Failure::Corrupt { what: format!("{what} {}", key.escape_ascii()), why: "its key is cut off".to_owned() }
}
