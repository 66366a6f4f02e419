//! The secret part of an API key: made by chance, shown once, kept as a hash.
//!
//! A key reads `lam_ID_SECRET`. The id is public and finds the document; the secret is 256 random bits, so a plain SHA-256
//! of it can neither be guessed nor looked up in a table, and needs no slow hash.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

const PREFIX: &str = "lam_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A key as its owner holds it. It is printed on purpose only: [`Presented::reveal`].
#[derive(Clone)]
pub struct Presented {
    id: String,
    secret: String,
}

/// What is stored of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hash([u8; 32]);

impl Presented {
    /// A new secret for a new key.
    pub(crate) fn new() -> Result<Self, String> {
        let id = random::<ID_BYTES>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::for_key(id)
    }

    /// A new secret for a key that is there.
    pub(crate) fn for_key(id: String) -> Result<Self, String> {
        Ok(Self { id, secret: URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?) })
    }

    /// Reads what a client sent; `None` if it has not the form of a key.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let well_formed = id.len() == 2 * ID_BYTES
            && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            && secret.len() == (SECRET_BYTES * 4).div_ceil(3)
            && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        well_formed.then(|| Self { id: id.to_owned(), secret: secret.to_owned() })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn hash(&self) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, self.secret.as_bytes()).as_ref());
        Hash(hash)
    }

    /// The whole key, for its owner.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }
}

impl Hash {
    /// In constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Whether a bearer is meant to be a key.
pub(crate) fn looks_like_key(bearer: &str) -> bool {
    bearer.starts_with(PREFIX)
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| "the system gives no random bytes".to_owned())
}

/// Leaves the secret out.
impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Leaves the hash out, too: it belongs in no log.
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_nothing_else_does() {
        let key = Presented::new().unwrap();
        let text = key.reveal();
        assert!(looks_like_key(&text) && text.len() == 64, "{text}");
        let read = Presented::parse(&text).unwrap();
        assert!(read.id() == key.id() && read.hash().is(&key.hash()));
        for wrong in ["", "lam_", "lam_x", &text[1..], &text[..63], &format!("{text}x"), &text.replace("lam_", "lam-")]
        {
            assert!(Presented::parse(wrong).is_none(), "{wrong}");
        }
        let other = Presented::for_key(key.id().to_owned()).unwrap();
        assert!(!other.hash().is(&key.hash()));
    }

    #[test]
    fn what_is_printed_for_debugging_holds_no_secret() {
        let key = Presented::new().unwrap();
        let printed = format!("{key:?} {:?}", key.hash());
        assert!(printed.contains(key.id()) && !printed.contains(&key.secret), "{printed}");
    }

    /// SHA-256 of the empty string is known; of a secret the hash is that of its text.
    #[test]
    fn the_hash_is_sha_256() {
        let key = Presented { id: String::new(), secret: String::new() };
        let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(key.hash().0.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), known);
    }
}
