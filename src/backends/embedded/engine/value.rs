//! How values and keys are laid out in the embedded database.
//!
//! ```text
//! value  byte 0       format (1)
//!        bytes 1..5   CRC-32 of the rest, little-endian
//!        bytes 5..13  when it expires, µs, little-endian; i64::MAX is never
//!        bytes 13..17 length of the head, little-endian
//!        then         the head (postcard), the body as it was given
//! key    parts one after another, so that the order of keys is the order of parts: texts end with 0 1 and have 0
//!        escaped as 0 255, numbers are big-endian, signed ones with the sign bit flipped
//! ```
//!
//! Expiry stands at a fixed place so that compaction can drop a dead value without decoding it.

use bytes::Bytes;
use fjall::Slice;
use lamina_core::Micros;
use serde::{Serialize, de::DeserializeOwned};

const FORMAT: u8 = 1;
const HEAD: usize = 17;
const NEVER: Micros = Micros::MAX;

/// A value as it was stored.
pub(crate) struct Value<T> {
    pub(crate) head: T,
    pub(crate) expires_at: Option<Micros>,
    pub(crate) body: Bytes,
}

/// Lays out a value; the same parts always give the same bytes.
pub(crate) fn pack<T: Serialize>(head: &T, expires_at: Option<Micros>, body: &[u8]) -> Result<Vec<u8>, String> {
    let head = postcard::to_stdvec(head).map_err(|error| error.to_string())?;
    let length = u32::try_from(head.len()).map_err(|_| format!("a head of {} bytes is too long", head.len()))?;
    let mut packed = Vec::with_capacity(HEAD + head.len() + body.len());
    packed.extend_from_slice(&[FORMAT, 0, 0, 0, 0]);
    packed.extend_from_slice(&expires_at.unwrap_or(NEVER).to_le_bytes());
    packed.extend_from_slice(&length.to_le_bytes());
    packed.extend_from_slice(&head);
    packed.extend_from_slice(body);
    let checksum = crc32fast::hash(&packed[5..]);
    packed[1..5].copy_from_slice(&checksum.to_le_bytes());
    Ok(packed)
}

/// Takes apart what [`pack`] made; the error says why it cannot be.
pub(crate) fn unpack<T: DeserializeOwned>(packed: &Slice) -> Result<Value<T>, String> {
    let (front, rest) = packed.split_at_checked(HEAD).ok_or("it is too short")?;
    if front[0] != FORMAT {
        return Err(format!("format {} is not known to this version of lamina", front[0]));
    }
    if front[1..5] != crc32fast::hash(&packed[5..]).to_le_bytes() {
        return Err("the checksum differs: the bytes were damaged".into());
    }
    let length = front[13..].iter().rev().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    let (head, body) = rest.split_at_checked(length).ok_or("its head is cut off")?;
    let head = postcard::from_bytes(head).map_err(|error| format!("its head does not decode: {error}"))?;
    let expires_at = expiry(packed).filter(|at| *at != NEVER);
    Ok(Value { head, expires_at, body: Bytes::copy_from_slice(body) })
}

/// When a packed value expires, without looking at the rest of it.
pub(crate) fn expiry(packed: &[u8]) -> Option<Micros> {
    let at = packed.get(5..13)?.try_into().ok()?;
    Some(Micros::from_le_bytes(at))
}

/// A key being put together.
#[derive(Clone, Default)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0.push(byte);
            if byte == 0 {
                self.0.push(255);
            }
        }
        self.0.extend_from_slice(&[0, 1]);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn tag(self, tag: u8) -> Self {
        self.raw(&[tag])
    }

    pub(crate) fn u32(self, number: u32) -> Self {
        self.raw(&number.to_be_bytes())
    }

    pub(crate) fn u64(self, number: u64) -> Self {
        self.raw(&number.to_be_bytes())
    }

    pub(crate) fn i64(self, number: i64) -> Self {
        self.u64(number.cast_unsigned() ^ (1 << 63))
    }

    /// The least key that is greater than every key beginning with this one.
    pub(crate) fn after(mut self) -> Vec<u8> {
        while self.0.pop_if(|last| *last == 255).is_some() {}
        match self.0.last_mut() {
            Some(last) => *last += 1,
            // Parts begin with a text, whose end is no 255: a key of 255s only does not occur, and this is past it.
            None => self.0.resize(1 << 16, 255),
        }
        self.0
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// A key being taken apart.
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl Parts<'_> {
    /// The bytes that [`Key::bytes`] put there.
    pub(crate) fn bytes(&mut self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            match self.0 {
                [0, 1, rest @ ..] => {
                    self.0 = rest;
                    return Some(bytes);
                }
                [0, 255, rest @ ..] => {
                    bytes.push(0);
                    self.0 = rest;
                }
                [0, ..] | [] => return None,
                [byte, rest @ ..] => {
                    bytes.push(*byte);
                    self.0 = rest;
                }
            }
        }
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        Some((self.u64()? ^ (1 << 63)).cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_are_ordered_as_their_parts_and_come_apart(
            a in (prop::collection::vec(0_u8..3, 0..4), any::<i64>()),
            b in (prop::collection::vec(0_u8..3, 0..4), any::<i64>()),
        ) {
            let key = |(bytes, number): &(Vec<u8>, i64)| Key::default().bytes(bytes).i64(*number).done();
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            let packed = key(&a);
            let mut parts = Parts(&packed);
            prop_assert_eq!((parts.bytes(), parts.i64()), (Some(a.0.clone()), Some(a.1)));
            let prefix = Key::default().bytes(&a.0);
            prop_assert!(packed < prefix.clone().after() && (b.0 <= a.0 || prefix.after() <= key(&b)));
        }

        #[test]
        fn a_value_comes_back_and_damage_is_seen(
            head in any::<(u64, String)>(), at in any::<Option<i32>>(), body: Vec<u8>, flip in any::<prop::sample::Index>(),
        ) {
            let at = at.map(i64::from);
            let mut packed = pack(&head, at, &body).expect("plain data");
            let value = unpack::<(u64, String)>(&packed.clone().into()).expect("just packed");
            prop_assert_eq!((value.head, value.expires_at, &value.body[..]), (head, at, &body[..]));
            let flip = flip.index(packed.len());
            packed[flip] ^= 4;
            prop_assert!(unpack::<(u64, String)>(&packed.into()).is_err());
        }
    }
}
