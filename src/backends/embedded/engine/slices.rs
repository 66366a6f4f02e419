//! Slices: speed chunks whose epochs were opened in the same stretch of time lie in one keyspace, which is dropped whole.
//!
//! That is how the TTL frees space; a chunk that has expired is never returned, whether its slice is still there or not.
//! For each slice the latest expiry of its chunks is noted, rounded up so that it is seldom written.

use lamina_core::Micros;

use super::{
    db::{Db, Space, Writes},
    failure::Failure,
    now,
    tx::Tx,
    value::{self, Key, Parts},
};

/// Minutes of opened epochs that one slice holds: with a TTL of three days 13 slices live at a time.
const SLICE_MINUTES: i64 = 360;
const ROUND: Micros = 600_000_000;

/// The slice of a speed chunk's slot (in minutes).
pub(crate) fn slice_of(slot: i64) -> Space {
    Space::Slice(slot.div_euclid(SLICE_MINUTES))
}

/// Notes that a slice holds chunks until `expires_at`.
pub(crate) fn note_slice(tx: &mut Tx<'_>, space: Space, expires_at: Micros) -> Result<(), Failure> {
    let Space::Slice(number) = space else { return Ok(()) };
    let key = key(number).done();
    let noted = tx.value::<Micros>(Space::Meta, &key)?.map_or(Micros::MIN, |value| value.head);
    if noted < expires_at {
        let until = expires_at.saturating_add(ROUND);
        let packed = value::pack(&until, None, &[]);
        let packed = packed.map_err(|why| Failure::Corrupt { what: format!("expiry of slice {number}"), why })?;
        tx.put(Space::Meta, key, packed);
    }
    Ok(())
}

/// A slice past its time.
pub(super) struct Expired {
    pub(super) number: i64,
    key: Vec<u8>,
}

impl Expired {
    /// Removes the note of the slice.
    pub(super) fn forget(self) -> Writes {
        [((Space::Meta, self.key), None)].into()
    }
}

pub(super) fn expired(db: &Db) -> Result<Vec<Expired>, Failure> {
    let (first, last) = (prefix().done(), prefix().after());
    let mut expired = Vec::new();
    for entry in db.scan(Space::Meta, first, last) {
        let (key, _) = entry?;
        let Some(until) = db.value::<Micros>(Space::Meta, &key)? else { continue };
        let mut parts = Parts(&key);
        if let (Some(_), Some(number)) = (parts.bytes(), parts.i64())
            && until.head < now()
        {
            expired.push(Expired { number, key: key.to_vec() });
        }
    }
    Ok(expired)
}

fn prefix() -> Key {
    Key::default().text("slice")
}

fn key(number: i64) -> Key {
    prefix().i64(number)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Engine, Options, pack},
        *,
    };

    fn put(tx: &mut Tx<'_>, slot: i64, expires_at: Micros) -> Result<(), Failure> {
        let slice = slice_of(slot);
        note_slice(tx, slice, expires_at)?;
        tx.put(slice, vec![1], pack(&(), Some(expires_at), b"chunk").expect("plain data"));
        Ok(())
    }

    /// The first commit of a writer is followed by a sweep, and the next job runs after it.
    #[tokio::test]
    async fn a_slice_is_dropped_whole_when_all_in_it_expired_and_can_be_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (dead, alive) = (slice_of(0), slice_of(SLICE_MINUTES));
        for round in 0..2 {
            let engine = Engine::open(folder.path(), Options::default()).expect("open");
            let write = engine.write(|tx| {
                put(tx, SLICE_MINUTES - 1, now() - 2 * ROUND)?;
                put(tx, SLICE_MINUTES, now() + ROUND)
            });
            write.await.expect("write");
            engine.write(|_| Ok(())).await.expect("a job after the sweep");
            let db = engine.db().expect("open");
            assert!(!db.has(dead) && db.has(alive), "round {round}: only the expired slice is gone");
            assert!(db.value::<()>(dead, &[1]).expect("readable").is_none());
            assert!(db.value::<()>(alive, &[1]).expect("readable").is_some());
        }
    }
}
