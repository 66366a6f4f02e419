//! Lengths of time and texts of times.

use lamina_core::Micros;
use serde::{Deserialize, Serialize};

/// A length of time in microseconds, written `10s`, `1m`, `1h`, `1d`, `1w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Length(pub Micros);
