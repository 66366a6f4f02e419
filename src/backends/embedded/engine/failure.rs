//! What can go wrong in the embedded database, and what each layer above is told of it.

use std::{io, path::Path};

use lamina_core::{StoreError, log::LogError};

/// Why a read or a write failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no space; nothing was written.
    Full(String),
    /// The database cannot be used now; nothing was written.
    Unavailable(String),
    /// Writing began and failed: after the database is opened again, the write may be there or not.
    InDoubt { full: bool, why: String },
    /// A value is there and does not decode.
    Corrupt { what: String, why: String },
}

impl Failure {
    /// A failure in which nothing was written.
    pub(crate) fn before_writing(folder: &Path, error: &fjall::Error) -> Self {
        let why = describe(folder, error);
        if is_full(error) { Self::Full(why) } else { Self::Unavailable(why) }
    }

    /// A failure of a commit.
    pub(crate) fn while_writing(folder: &Path, error: &fjall::Error) -> Self {
        Self::InDoubt { full: is_full(error), why: describe(folder, error) }
    }

    /// What a caller is told whose write may be repeated.
    pub(crate) fn store(self) -> StoreError {
        match self {
            Self::Full(why) | Self::InDoubt { full: true, why } => StoreError::Full(why),
            Self::Unavailable(why) | Self::InDoubt { full: false, why } => StoreError::Unavailable(why),
            Self::Corrupt { what, why } => StoreError::Corrupt { what, why },
        }
    }

    /// What a caller of a compare-and-set is told.
    pub(crate) fn conditional(self) -> StoreError {
        match self {
            Self::InDoubt { why, .. } => StoreError::Unknown(why),
            other => other.store(),
        }
    }

    pub(crate) fn log(self) -> LogError {
        match self {
            Self::Full(why) | Self::InDoubt { full: true, why } => LogError::Full(why),
            Self::Unavailable(why) | Self::InDoubt { full: false, why } => LogError::Unavailable(why),
            Self::Corrupt { what, why } => LogError::Refused(format!("{what} does not decode: {why}")),
        }
    }
}

/// Whether an I/O error says that nothing more can be stored.
pub(crate) fn says_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn is_full(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => says_full(error),
        _ => false,
    }
}

fn describe(folder: &Path, error: &fjall::Error) -> String {
    let folder = folder.display();
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            format!("embedded database in {folder}: {error}")
        }
        fjall::Error::Poisoned => format!("embedded database in {folder} stopped after an I/O error"),
        error => format!("embedded database in {folder}: {error:?}"),
    }
}
