//! The embedded backend: log and view store in one database in a data folder, for one process.
//!
//! # Invariants
//! - What was acknowledged is on disk (fsync), whether the process or the machine dies.
//! - One process per folder: a second one is refused with [`OpenError::Locked`].
//! - When the disk is full writes are refused with `Full` and reads go on; once there is space again writes succeed
//!   without a restart.
//!
//! Memory: the block cache ([`Options::cache_bytes`], 64 MiB), what waits to be written out (about 200 MB at most under
//! steady load), and what callers have in flight.

mod consumer;
mod engine;
mod groups;
mod log;
mod store;
mod topics;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use self::engine::Engine;
pub use self::{engine::Options, log::EmbeddedLog, store::EmbeddedStore};

/// The folder of the database within the data folder.
const FOLDER: &str = "db";

/// Why the data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data folder {} is in use by another process: stop that one, or give this one a folder of its own", .0.display())]
    Locked(PathBuf),
    #[error("data folder {} cannot be made", .0.display())]
    Create(PathBuf, #[source] std::io::Error),
    #[error("database in {} cannot be opened: {why}", folder.display())]
    Open { folder: PathBuf, why: String },
}

/// The log and the store of a data folder. The database closes when both are dropped.
#[derive(Clone)]
pub struct Embedded {
    pub log: Arc<EmbeddedLog>,
    pub store: Arc<EmbeddedStore>,
}

/// Opens the log and the store in `folder`, which is made if it does not exist. This blocks, for seconds if the process
/// before was killed.
///
/// # Errors
/// If another process has it open, or it cannot be read or written.
pub fn open(folder: &Path) -> Result<Embedded, OpenError> {
    open_with(folder, Options::default())
}

/// As [`open`], with other options.
///
/// # Errors
/// As [`open`].
pub fn open_with(folder: &Path, options: Options) -> Result<Embedded, OpenError> {
    let database = folder.join(FOLDER);
    std::fs::create_dir_all(&database).map_err(|error| OpenError::Create(folder.to_path_buf(), error))?;
    let engine = Engine::open(&database, options).map_err(|error| match error {
        fjall::Error::Locked => OpenError::Locked(folder.to_path_buf()),
        fjall::Error::Io(error) => OpenError::Open { folder: database.clone(), why: error.to_string() },
        error => OpenError::Open { folder: database.clone(), why: format!("{error:?}") },
    })?;
    let engine = Arc::new(engine);
    let log = Arc::new(EmbeddedLog::new(Arc::clone(&engine)));
    Ok(Embedded { log, store: Arc::new(EmbeddedStore::new(engine)) })
}
