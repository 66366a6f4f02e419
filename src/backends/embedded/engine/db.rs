//! The open database: its keyspaces, reading from them, and opening it.

use std::{collections::BTreeMap, ops::Bound, path::Path, sync::Arc};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode, Slice, Snapshot,
    compaction::filter::{CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict},
};
use lamina_core::Micros;
use serde::de::DeserializeOwned;

use super::{
    Options,
    failure::Failure,
    now,
    value::{self, Value},
};

/// A keyspace holds at most this much in memory before it is written out.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Journals, and so all that is in memory and not yet in tables, stay within about this.
const JOURNAL_BYTES: u64 = 128 << 20;
const SLICE: &str = "speed-";

/// Where a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// Topics, and until when each slice lives.
    Meta,
    Records,
    Ledgers,
    Marks,
    Batch,
    Documents,
    /// Speed chunks of epochs opened in one stretch of time, dropped whole once all are past their TTL.
    Slice(i64),
}

impl Space {
    const FIXED: [(Self, &'static str); 6] = [
        (Self::Meta, "meta"),
        (Self::Records, "records"),
        (Self::Ledgers, "ledgers"),
        (Self::Marks, "marks"),
        (Self::Batch, "batch"),
        (Self::Documents, "documents"),
    ];
}

/// An open database. It closes when the last reference is dropped.
#[derive(Clone)]
pub(crate) struct Db {
    folder: Arc<Path>,
    database: Database,
    spaces: BTreeMap<Space, Keyspace>,
}

impl Db {
    pub(crate) fn open(folder: &Path, options: Options) -> Result<Self, fjall::Error> {
        let database = Database::builder(folder)
            .cache_size(options.cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(2)
            .with_compaction_filter_factories(Arc::new(|name| {
                let expires = matches!(name, "marks" | "batch");
                expires.then(|| Arc::new(DropExpired) as Arc<dyn Factory>)
            }))
            .open()?;
        let mut spaces = BTreeMap::new();
        for (space, name) in Space::FIXED {
            spaces.insert(space, database.keyspace(name, space_options)?);
        }
        for name in database.list_keyspace_names() {
            if let Some(slice) = name.strip_prefix(SLICE).and_then(|number| number.parse().ok()) {
                spaces.insert(Space::Slice(slice), database.keyspace(&name, space_options)?);
            }
        }
        Ok(Self { folder: folder.into(), database, spaces })
    }

    /// This database with one more slice.
    pub(super) fn with_slice(&self, slice: i64) -> Result<Self, fjall::Error> {
        let mut db = self.clone();
        db.spaces.insert(Space::Slice(slice), self.database.keyspace(&format!("{SLICE}{slice}"), space_options)?);
        Ok(db)
    }

    /// This database without a slice, which is deleted once nobody reads it any more.
    pub(super) fn without_slice(&self, slice: i64) -> Result<Self, fjall::Error> {
        let mut db = self.clone();
        if let Some(keyspace) = db.spaces.remove(&Space::Slice(slice)) {
            self.database.delete_keyspace(keyspace)?;
        }
        Ok(db)
    }

    pub(super) fn has(&self, space: Space) -> bool {
        self.spaces.contains_key(&space)
    }

    /// Whether an I/O error stopped the database: it takes no more writes until it is opened again.
    pub(super) fn stopped(&self) -> bool {
        // Nothing is buffered between commits, so this only looks at the database's own flag.
        self.database.persist(PersistMode::Buffer).is_err()
    }

    /// Whether so much waits to be written out that a commit could block for ever if writing out fails.
    pub(super) fn overloaded(&self) -> bool {
        self.spaces.values().any(|keyspace| keyspace.sealed_memtable_count() >= 3)
    }

    /// Writes all, atomically, and returns once it is on disk.
    pub(super) fn commit(&self, writes: Writes) -> Result<(), fjall::Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for ((space, key), value) in writes {
            // A slice is made before it is written to, and dropped only by the thread that writes.
            let Some(keyspace) = self.spaces.get(&space) else { continue };
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit()
    }

    pub(crate) fn get(&self, space: Space, key: &[u8]) -> Result<Option<Slice>, Failure> {
        let Some(keyspace) = self.spaces.get(&space) else { return Ok(None) };
        keyspace.get(key).map_err(|error| Failure::before_writing(&self.folder, &error))
    }

    pub(crate) fn get_at(&self, moment: &Snapshot, space: Space, key: &[u8]) -> Result<Option<Slice>, Failure> {
        let Some(keyspace) = self.spaces.get(&space) else { return Ok(None) };
        fjall::Readable::get(moment, keyspace, key).map_err(|error| Failure::before_writing(&self.folder, &error))
    }

    /// A value that has not expired.
    pub(crate) fn value<T: DeserializeOwned>(&self, space: Space, key: &[u8]) -> Result<Option<Value<T>>, Failure> {
        live(space, key, self.get(space, key)?)
    }

    /// All keys and values from `from` up to and without `to`, at one moment in time.
    pub(crate) fn scan(&self, space: Space, from: Vec<u8>, to: Vec<u8>) -> Scan<'_> {
        self.scan_at(&self.moment(), space, from, to)
    }

    /// Several scans of one moment see the same writes.
    pub(crate) fn scan_at(&self, moment: &Snapshot, space: Space, from: Vec<u8>, to: Vec<u8>) -> Scan<'_> {
        // An inverted range is empty here and a panic in the database.
        let keyspace = self.spaces.get(&space).filter(|_| from < to);
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let iter = keyspace.map(|keyspace| fjall::Readable::range::<Vec<u8>, _>(moment, keyspace, bounds));
        Scan { folder: &self.folder, iter }
    }

    pub(crate) fn moment(&self) -> Snapshot {
        self.database.snapshot()
    }
}

fn space_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

/// What a commit writes: `None` removes.
pub(super) type Writes = BTreeMap<(Space, Vec<u8>), Option<Slice>>;

/// Decodes a stored value; an expired one is not there.
pub(crate) fn live<T: DeserializeOwned>(
    space: Space,
    key: &[u8],
    stored: Option<Slice>,
) -> Result<Option<Value<T>>, Failure> {
    let Some(stored) = stored else { return Ok(None) };
    let corrupt = |why| Failure::Corrupt { what: format!("{space:?} key {}", key.escape_ascii()), why };
    let value: Value<T> = value::unpack(&stored).map_err(corrupt)?;
    Ok(Some(value).filter(|value| value.expires_at.is_none_or(|at| at > now())))
}

/// Keys and values in order.
pub(crate) struct Scan<'a> {
    folder: &'a Path,
    iter: Option<fjall::Iter>,
}

impl Iterator for Scan<'_> {
    type Item = Result<(Slice, Slice), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let guard = self.iter.as_mut()?.next()?;
        Some(guard.into_inner().map_err(|error| Failure::before_writing(self.folder, &error)))
    }
}

/// Drops values that have expired when the database rewrites them anyway.
struct DropExpired;

impl Factory for DropExpired {
    fn name(&self) -> &str {
        "drop-expired"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(ExpiredBefore(now()))
    }
}

struct ExpiredBefore(Micros);

impl CompactionFilter for ExpiredBefore {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let expired = value::expiry(&item.value()?).is_some_and(|at| at < self.0);
        Ok(if expired { Verdict::Remove } else { Verdict::Keep })
    }
}
