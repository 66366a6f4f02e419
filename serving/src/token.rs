//! Position tokens: which records a client wants to see, opaque to it.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use lamina_core::{Offset, Partition};
use serde::{Deserialize, Serialize};

/// Longest token taken from outside; one of 500 partitions is shorter.
const MAX_TOKEN: usize = 8192;

/// Next offsets of some partitions of one incarnation of a source's topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub(crate) source: String,
    pub(crate) topic_id: String,
    pub(crate) positions: BTreeMap<Partition, Offset>,
}

impl Token {
    /// The token of appended records.
    pub(crate) fn of(source: &str, topic_id: &str, appended: &[(Partition, Offset)]) -> Self {
        let mut positions = BTreeMap::new();
        for &(partition, offset) in appended {
            let next: &mut Offset = positions.entry(partition).or_default();
            *next = (*next).max(offset + 1);
        }
        Self { source: source.to_owned(), topic_id: topic_id.to_owned(), positions }
    }

    /// As clients see it.
    pub fn encode(&self) -> String {
        // Plain data always serialises; postcard fails only on sequences of unknown length and on full buffers.
        URL_SAFE_NO_PAD.encode(postcard::to_stdvec(self).unwrap_or_default())
    }

    /// `None` if the text is no token.
    pub fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (token, rest) = postcard::take_from_bytes(&bytes).ok()?;
        rest.is_empty().then_some(token)
    }

    /// The token that covers what both cover, if they are of the same topic.
    pub fn and(mut self, other: &Self) -> Option<Self> {
        if self.source != other.source || self.topic_id != other.topic_id {
            return None;
        }
        for (&partition, &next) in &other.positions {
            let known = self.positions.entry(partition).or_default();
            *known = (*known).max(next);
        }
        Some(self)
    }

    /// Whether a reader at `positions` sees every record of the token.
    pub(crate) fn reached(&self, positions: &BTreeMap<Partition, Offset>) -> bool {
        self.positions.iter().all(|(partition, next)| positions.get(partition).is_some_and(|at| at >= next))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_covers_exactly_what_was_appended() {
        let token = Token::of("edits", "id", &[(0, 7), (3, 2), (0, 9), (3, 1)]);
        assert_eq!(token.positions, BTreeMap::from([(0, 10), (3, 3)]));
        assert!(token.reached(&BTreeMap::from([(0, 10), (1, 0), (3, 3)])));
        assert!(!token.reached(&BTreeMap::from([(0, 9), (3, 3)])));
        assert!(!token.reached(&BTreeMap::from([(0, 10)])));
        assert!(Token::of("edits", "id", &[]).reached(&BTreeMap::new()));
        assert_eq!(Token::decode(&token.encode()), Some(token));
    }

    #[test]
    fn two_tokens_of_a_topic_make_one_that_covers_both() {
        let (a, b) = (Token::of("edits", "id", &[(0, 7), (1, 2)]), Token::of("edits", "id", &[(1, 9), (2, 0)]));
        let both = a.clone().and(&b).map(|token| token.positions);
        assert_eq!(both, Some(BTreeMap::from([(0, 8), (1, 10), (2, 1)])));
        assert_eq!(a.and(&Token::of("edits", "another", &[])), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_decoding_panic(text in "[A-Za-z0-9_=-]{0,80}") {
            let _ = Token::decode(&text);
        }
    }
}
