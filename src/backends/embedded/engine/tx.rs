//! What a job on the writer thread reads and writes.

use fjall::Slice;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::{
    db::{Db, Space, Writes, live},
    failure::Failure,
    value::Value,
};

/// A job: joins the group and says how to answer, or is told why nothing can be written.
pub(super) type Job = Box<dyn FnOnce(Result<&mut Group<'_>, Failure>) -> Option<Done> + Send>;
/// Answers a job with what became of its group.
pub(super) type Done = Box<dyn FnOnce(Result<(), Failure>) + Send>;
type Hook = Box<dyn FnOnce() + Send>;

/// Jobs that are committed together.
pub(super) struct Group<'a> {
    db: &'a Db,
    writes: Writes,
    bytes: usize,
}

impl<'a> Group<'a> {
    pub(super) fn new(db: &'a Db) -> Self {
        Self { db, writes: Writes::new(), bytes: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn into_writes(self) -> Writes {
        self.writes
    }
}

/// One job's view: the database, the group's earlier writes, and its own.
pub(crate) struct Tx<'a> {
    group: &'a Group<'a>,
    writes: Writes,
    bytes: usize,
    hooks: Vec<Hook>,
}

impl Tx<'_> {
    pub(crate) fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, Failure> {
        let place = (space, key.to_vec());
        match self.writes.get(&place).or_else(|| self.group.writes.get(&place)) {
            Some(written) => Ok(written.clone()),
            None => self.group.db.get(space, key),
        }
    }

    /// A value that has not expired.
    pub(crate) fn value<T: DeserializeOwned>(&self, space: Space, key: &[u8]) -> Result<Option<Value<T>>, Failure> {
        live(space, key, self.get(space, key)?)
    }

    pub(crate) fn put(&mut self, space: Space, key: Vec<u8>, value: impl Into<Slice>) {
        let value = value.into();
        self.bytes += key.len() + value.len();
        self.writes.insert((space, key), Some(value));
    }

    pub(crate) fn remove(&mut self, space: Space, key: Vec<u8>) {
        self.writes.insert((space, key), None);
    }

    /// Runs `hook` once the writes are on disk.
    pub(crate) fn then(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.hooks.push(Box::new(hook));
    }
}

/// Wraps what a caller wants done for the writer thread.
pub(super) fn job<T, F>(work: F, reply: oneshot::Sender<Result<T, Failure>>) -> Job
where
    T: Send + 'static,
    F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
{
    // A caller that stopped waiting gets no answer; the work is done all the same.
    let answer = |reply: oneshot::Sender<_>, result| drop(reply.send(result));
    Box::new(move |group| {
        let group = match group {
            Ok(group) => group,
            Err(failure) => {
                answer(reply, Err(failure));
                return None;
            }
        };
        let mut tx = Tx { group, writes: Writes::new(), bytes: 0, hooks: Vec::new() };
        let result = work(&mut tx);
        let Tx { writes, bytes, hooks, .. } = tx;
        match result {
            Ok(value) => {
                group.writes.extend(writes);
                group.bytes += bytes;
                Some(Box::new(move |outcome: Result<(), Failure>| {
                    if outcome.is_ok() {
                        hooks.into_iter().for_each(|hook| hook());
                    }
                    answer(reply, outcome.map(|()| value));
                }))
            }
            Err(failure) => {
                answer(reply, Err(failure));
                None
            }
        }
    })
}
