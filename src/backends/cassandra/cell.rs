//! Numbers and blobs between lamina and Cassandra.

use bytes::Bytes;
use lamina_core::{BatchRow, Cut, Generation, Micros, StoreError, envelope};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Cassandra's integers are signed.
pub(super) fn signed(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number)
        .map_err(|_| StoreError::Refused(format!("{number} is beyond 2^63 - 1, the largest number stored")))
}

/// The largest offset that can be stored, for ends of ranges.
pub(super) fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64, what: impl Fn() -> String) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Corrupt { what: what(), why: format!("{number} is negative") })
}

pub(super) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    envelope::pack(value).map_err(|error| StoreError::Refused(format!("a value cannot be encoded: {error}")))
}

pub(super) fn unpack<T: DeserializeOwned>(cell: &[u8], what: impl Fn() -> String) -> Result<T, StoreError> {
    envelope::unpack(cell).map_err(|error| StoreError::Corrupt { what: what(), why: error.to_string() })
}

/// What a batch chunk's cell says besides its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) generation: Generation,
    pub(super) stamp: Micros,
    pub(super) cut: Cut,
    pub(super) expires_at: Option<Micros>,
}

/// Packs and unpacks batch cells: length of the head (4 bytes, little-endian), the head's envelope, the body as it is.
/// Neighbours mostly have equal heads, so the last one is kept and not packed or unpacked again.
#[derive(Default)]
pub(super) struct Heads {
    last: Option<(Head, Vec<u8>)>,
}

impl Heads {
    pub(super) fn pack(&mut self, row: &BatchRow) -> Result<Vec<u8>, StoreError> {
        let same = |head: &Head| {
            (head.generation, head.stamp, head.expires_at) == (row.generation, row.stamp, row.expires_at)
                && head.cut == row.cut
        };
        let packed = match &self.last {
            Some((head, packed)) if same(head) => packed,
            _ => {
                let BatchRow { generation, stamp, cut, expires_at, .. } = row.clone();
                let head = Head { generation, stamp, cut, expires_at };
                let packed = pack(&head)?;
                &self.last.insert((head, packed)).1
            }
        };
        let length =
            u32::try_from(packed.len()).map_err(|_| StoreError::Refused("a cut has too many partitions".to_owned()))?;
        Ok([&length.to_le_bytes()[..], packed, &row.body].concat())
    }

    pub(super) fn unpack(&mut self, cell: &[u8], what: impl Fn() -> String) -> Result<(Head, Bytes), StoreError> {
        let parts = cell
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?));
        let Some((packed, body)) = parts else {
            return Err(StoreError::Corrupt { what: what(), why: format!("{} bytes are too short", cell.len()) });
        };
        let head = match &self.last {
            Some((head, last)) if last == packed => head,
            _ => {
                let head = unpack(packed, what)?;
                &self.last.insert((head, packed.to_vec())).0
            }
        };
        Ok((head.clone(), Bytes::copy_from_slice(body)))
    }
}

#[cfg(test)]
mod tests {
    use lamina_core::{BatchKey, ViewId};

    use super::*;

    #[test]
    fn a_batch_cell_comes_back_and_damage_of_its_head_is_seen() {
        let key =
            BatchKey { view: ViewId::new("m", 1, 0), width: 1, base: 0, shard: 0, period: 0, series: Bytes::new() };
        let row = |generation, body: &'static [u8]| BatchRow {
            key: key.clone(),
            generation,
            stamp: 7,
            cut: [(0, 5), (3, 9)].into_iter().collect(),
            body: Bytes::from_static(body),
            expires_at: Some(-1),
        };
        let rows = [row(1, b"a"), row(1, b""), row(2, b"c"), row(1, b"d")];
        let (mut packing, mut unpacking) = (Heads::default(), Heads::default());
        for row in &rows {
            let cell = packing.pack(row).unwrap();
            assert_eq!(cell, Heads::default().pack(row).unwrap(), "bytes do not depend on what was packed before");
            let (head, body) = unpacking.unpack(&cell, String::new).unwrap();
            assert_eq!((head.generation, head.stamp, head.expires_at), (row.generation, row.stamp, row.expires_at));
            assert_eq!((&head.cut, &body), (&row.cut, &row.body));
            for at in 4..cell.len() - row.body.len() {
                let mut damaged = cell.clone();
                damaged[at] ^= 1;
                assert!(Heads::default().unpack(&damaged, String::new).is_err(), "damage at byte {at} was not seen");
            }
            assert!(Heads::default().unpack(&cell[..3], String::new).is_err());
        }
    }
}
