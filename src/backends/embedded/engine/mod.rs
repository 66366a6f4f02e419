//! One database per data folder, written by one thread.
//!
//! Every change is a job for the writer thread. It takes all jobs that wait, runs them one after another, each seeing
//! what those before it wrote, and commits their writes as one batch with one fsync. So concurrent callers share the
//! fsync, a compare-and-set needs no lock, and a job is answered only when what it wrote is on disk.
//!
//! # Invariants
//! - What a reader sees is on disk: the database shows a batch after its journal was synced.
//! - A job that fails writes nothing; a group that fails is answered with [`Failure::InDoubt`].
//! - The database refuses writes for ever after one I/O error, since its journal may end in half a batch. The writer
//!   then opens it again as soon as there is space, which drops that half; until then reads go on.

mod db;
mod failure;
mod slices;
mod tx;
mod value;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lamina_core::Micros;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{
    db::{Db, Space, live},
    failure::Failure,
    slices::{note_slice, slice_of},
    tx::Tx,
    value::{Key, Parts, pack},
};
use self::{
    failure::says_full,
    tx::{Done, Group, Job},
};

/// A group is committed when it holds this many jobs or bytes, even if more wait.
const GROUP_JOBS: usize = 512;
const GROUP_BYTES: usize = 16 << 20;
/// Jobs that wait; further callers wait for room.
const QUEUE: usize = 1024;
const SWEEP: Duration = Duration::from_secs(30);
/// There must be at least this much room before a database that ran out of space is opened again.
const ROOM: usize = 4 << 20;

/// How the embedded database is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Blocks of tables kept in memory, in bytes. In addition, about 200 MB at most wait in memory to be written out.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

pub(crate) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}

/// The database, open for reading, and its writer thread. Dropping it writes what waits and closes the database.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    options: Options,
    /// `None` while it is opened again, and after that failed.
    current: RwLock<Option<Arc<Db>>>,
}

impl Engine {
    pub(crate) fn open(folder: &Path, options: Options) -> Result<Self, fjall::Error> {
        let db = Db::open(folder, options)?;
        let current = RwLock::new(Some(Arc::new(db)));
        let shared = Arc::new(Shared { folder: folder.to_path_buf(), options, current });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer { shared: Arc::clone(&shared), healthy: true, swept: None };
        let writer = thread::Builder::new().name("lamina-embedded".into()).spawn(move || writer.run(queue))?;
        Ok(Self { shared, jobs: Some(jobs), writer: Some(writer) })
    }

    /// The database as it is now, for a short read. Holding on to it would keep it from being opened again.
    pub(crate) fn db(&self) -> Result<Arc<Db>, Failure> {
        self.shared.db().ok_or_else(|| Failure::Unavailable(self.shared.closed()))
    }

    /// Reads on a thread that may block.
    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Db) -> Result<T, Failure> + Send + 'static,
    {
        let db = self.db()?;
        let answer = tokio::task::spawn_blocking(move || read(&db)).await;
        answer.unwrap_or_else(|error| Err(Failure::Unavailable(format!("a read did not end: {error}"))))
    }

    /// Runs `job` on the writer thread and answers when what it wrote is on disk.
    pub(crate) async fn write<T, F>(&self, job: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
    {
        let stopped = || Failure::Unavailable(format!("writer of {} has stopped", self.shared.folder.display()));
        let (reply, answer) = oneshot::channel();
        let queue = self.jobs.as_ref().ok_or_else(stopped)?;
        queue.send(tx::job(job, reply)).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(folder = %self.shared.folder.display(), "writer of the embedded database panicked");
        }
    }
}

impl Shared {
    fn db(&self) -> Option<Arc<Db>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn swap(&self, db: Db) -> Arc<Db> {
        let db = Arc::new(db);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&db));
        db
    }

    fn closed(&self) -> String {
        format!("embedded database in {} could not be opened again after an I/O error", self.folder.display())
    }

    /// Closes the database and opens it again, which replays the journal and drops half a batch at its end.
    fn reopen(&self) -> Result<Arc<Db>, Failure> {
        self.probe()?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut old) = current.take() {
            // New readers wait at the lock; those that are under way end soon.
            let begun = Instant::now();
            while let Err(shared) = Arc::try_unwrap(old).map(drop) {
                old = shared;
                if begun.elapsed() > Duration::from_secs(30) {
                    *current = Some(old);
                    return Err(Failure::Unavailable(format!("{} is still being read", self.folder.display())));
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        let db = Db::open(&self.folder, self.options);
        let db = Arc::new(db.map_err(|error| Failure::before_writing(&self.folder, &error))?);
        *current = Some(Arc::clone(&db));
        tracing::warn!(folder = %self.folder.display(), "embedded database was opened again after an I/O error");
        Ok(db)
    }

    /// Whether files can be written again.
    fn probe(&self) -> Result<(), Failure> {
        let path = self.folder.join(".room");
        let write = || File::create(&path).and_then(|mut file| file.write_all(&vec![1; ROOM]).and(file.sync_all()));
        let written = write();
        let removed = fs::remove_file(&path);
        written.and(removed).map_err(|error| {
            let why = format!("embedded database in {} waits for space: {error}", self.folder.display());
            if says_full(&error) { Failure::Full(why) } else { Failure::Unavailable(why) }
        })
    }
}

/// The thread that makes every change.
struct Writer {
    shared: Arc<Shared>,
    healthy: bool,
    swept: Option<Instant>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let db = match self.ready() {
                Ok(db) => db,
                Err(failure) => {
                    first(Err(failure));
                    continue;
                }
            };
            let mut group = Group::new(&db);
            let mut answers: Vec<Done> = first(Ok(&mut group)).into_iter().collect();
            while answers.len() < GROUP_JOBS && group.bytes() < GROUP_BYTES {
                let Ok(job) = queue.try_recv() else { break };
                answers.extend(job(Ok(&mut group)));
            }
            let writes = group.into_writes();
            let outcome = self.commit(db, writes);
            self.healthy = outcome.is_ok();
            for answer in answers {
                answer(outcome.clone());
            }
            if self.healthy && self.swept.is_none_or(|at| at.elapsed() > SWEEP) {
                self.swept = Some(Instant::now());
                self.sweep();
            }
        }
    }

    /// The database, opened again if an I/O error stopped it.
    fn ready(&mut self) -> Result<Arc<Db>, Failure> {
        loop {
            let Some(db) = self.shared.db().filter(|db| self.healthy && !db.stopped()) else {
                let db = self.shared.reopen()?;
                self.healthy = true;
                return Ok(db);
            };
            if !db.overloaded() {
                return Ok(db);
            }
            drop(db);
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn commit(&self, mut db: Arc<Db>, writes: db::Writes) -> Result<(), Failure> {
        if writes.is_empty() {
            return Ok(());
        }
        for (space, _) in writes.keys() {
            if let Space::Slice(slice) = space
                && !db.has(*space)
            {
                let grown = db.with_slice(*slice);
                let grown = grown.map_err(|error| Failure::before_writing(&self.shared.folder, &error))?;
                db = self.shared.swap(grown);
            }
        }
        db.commit(writes).map_err(|error| Failure::while_writing(&self.shared.folder, &error))
    }

    /// Drops slices whose every chunk is past its TTL.
    fn sweep(&mut self) {
        if let Err(failure) = self.drop_expired_slices() {
            tracing::warn!(?failure, "expired speed chunks could not be dropped");
        }
    }

    fn drop_expired_slices(&mut self) -> Result<(), Failure> {
        let Some(db) = self.shared.db() else { return Ok(()) };
        let expired = slices::expired(&db)?;
        drop(db);
        for slice in expired {
            let Some(db) = self.shared.db() else { return Ok(()) };
            let without = db.without_slice(slice.number);
            let without = without.map_err(|error| Failure::before_writing(&self.shared.folder, &error))?;
            drop(db);
            let committed = self.commit(self.shared.swap(without), slice.forget());
            self.healthy = committed.is_ok();
            committed?;
        }
        Ok(())
    }
}
