//! How a value is wrapped before it is stored: one byte of format, a checksum, compressed bytes.
//!
//! ```text
//! byte 0      format (1 = postcard body, zstd level 1)
//! bytes 1..5  CRC-32 of the compressed body, little-endian
//! bytes 5..   compressed body
//! ```

use std::{cell::RefCell, io};

use serde::{Serialize, de::DeserializeOwned};
use zstd::bulk::{Compressor, Decompressor};

const FORMAT: u8 = 1;
const LEVEL: i32 = 1;
const HEAD: usize = 5;
/// A stored value never unpacks to more than this; a larger one is damaged or hostile.
const MAX_BODY: usize = 256 << 20;

/// Why stored bytes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("format {0} is not known to this version of lamina")]
    Format(u8),
    #[error("{0} bytes are too short for an envelope")]
    Short(usize),
    #[error("checksum differs: the bytes were damaged")]
    Checksum,
    #[error("body does not unpack")]
    Unpack(#[source] io::Error),
    #[error("body does not decode")]
    Body(#[source] postcard::Error),
}

/// Packs a value. The same value always gives the same bytes.
///
/// # Errors
/// If the value cannot be serialised, which plain data never runs into.
pub fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, EnvelopeError> {
    let body = postcard::to_stdvec(value).map_err(EnvelopeError::Body)?;
    let body = compress(&body).map_err(EnvelopeError::Unpack)?;
    let mut packed = Vec::with_capacity(HEAD + body.len());
    packed.push(FORMAT);
    packed.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    packed.extend_from_slice(&body);
    Ok(packed)
}

/// Unpacks what [`pack`] made.
///
/// # Errors
/// If the bytes are of another format, damaged, or hold another type.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EnvelopeError> {
    let (head, body) = bytes.split_at_checked(HEAD).ok_or(EnvelopeError::Short(bytes.len()))?;
    if head[0] != FORMAT {
        return Err(EnvelopeError::Format(head[0]));
    }
    if head[1..] != crc32fast::hash(body).to_le_bytes() {
        return Err(EnvelopeError::Checksum);
    }
    let size = Decompressor::upper_bound(body).unwrap_or(MAX_BODY).min(MAX_BODY);
    let body = decompress(body, size).map_err(EnvelopeError::Unpack)?;
    postcard::from_bytes(&body).map_err(EnvelopeError::Body)
}

// Setting a context up costs more than a small body, so each thread keeps its own.
thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(context) => context.compress(body),
        None => kept.insert(Compressor::new(LEVEL)?).compress(body),
    })
}

fn decompress(body: &[u8], size: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| match kept {
        Some(context) => context.decompress(body, size),
        None => kept.insert(Decompressor::new()?).decompress(body, size),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_value_comes_back_and_damage_is_seen() {
        let value = vec![("a".to_owned(), 1_i128), ("b".to_owned(), -2)];
        let packed = pack(&value).unwrap();
        assert_eq!(unpack::<Vec<(String, i128)>>(&packed).unwrap(), value);
        for at in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            assert!(unpack::<Vec<(String, i128)>>(&damaged).is_err(), "damage at byte {at} was not seen");
        }
        assert!(matches!(unpack::<u8>(&packed[..3]), Err(EnvelopeError::Short(3))));
    }
}
