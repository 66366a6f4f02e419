//! What a principal may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One right. Which endpoint asks for which: [`super::endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    MetricsRead = 1,
    SqlRun = 2,
    RecomputeRun = 4,
    EventsWrite = 8,
    /// Every other right, and those over definitions, erasures, keys and the audit log.
    Admin = 16,
}

impl Scope {
    pub const ALL: [Self; 5] = [Self::MetricsRead, Self::SqlRun, Self::RecomputeRun, Self::EventsWrite, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MetricsRead => "metrics:read",
            Self::SqlRun => "sql:run",
            Self::RecomputeRun => "recompute:run",
            Self::EventsWrite => "events:write",
            Self::Admin => "admin",
        }
    }

    /// Whether it only shows values, which rules over rows can hold back.
    pub(crate) fn only_reads(self) -> bool {
        matches!(self, Self::MetricsRead | Self::SqlRun)
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(|scope| scope.as_str()).collect();
            format!("{text:?} is no scope; there are {}", all.join(", "))
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scopes(u8);

impl Scopes {
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether the right is given, by itself or by [`Scope::Admin`].
    pub fn allow(self, scope: Scope) -> bool {
        self.0 & (scope as u8 | Scope::Admin as u8) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that were given by name.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & *scope as u8 != 0)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope as u8))
    }
}
