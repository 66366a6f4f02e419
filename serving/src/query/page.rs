//! Long answers in parts. The rows of an answer are kept for a while, so that its pages fold the same prefix of the log and are
//! not computed again; a page that has to be computed anew says whether the prefix is still the same.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use lamina_core::{Micros, ids::new_id};
use moka::future::Cache;
use serde::{Deserialize, Serialize};

use crate::query::{
    Document,
    calendar::{EARLIEST, LATEST},
    table::Row,
};

/// How long an answer is kept after its last page was asked for.
const KEPT: Duration = Duration::from_secs(300);
const MAX_TOKEN: usize = 256;

/// Where the next page begins, opaque to clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PageToken {
    /// Under which the answer is kept.
    id: u128,
    /// Of the query without its page.
    pub(crate) query: u128,
    /// Of the prefix that the answer folds.
    pub(crate) prefix: u128,
    /// Where the range ended: `to` may have been left out.
    pub(crate) to: Micros,
    /// Points before it.
    at: u64,
}

impl PageToken {
    fn encode(&self) -> String {
        // Plain data always serialises.
        URL_SAFE_NO_PAD.encode(postcard::to_stdvec(self).unwrap_or_default())
    }

    /// `None` if the text is no token.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (token, rest) = postcard::take_from_bytes::<Self>(&bytes).ok()?;
        (rest.is_empty() && (EARLIEST..=LATEST).contains(&token.to)).then_some(token)
    }
}

/// Answers of which pages are still to be asked for, within a bound of memory.
pub(crate) struct Pages(Cache<u128, Arc<Document>>);

impl Pages {
    pub(crate) fn new(bytes: u64) -> Self {
        let weigh = |_: &u128, document: &Arc<Document>| u32::try_from(document.bytes()).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(bytes).weigher(weigh).time_to_idle(KEPT).build())
    }

    pub(crate) async fn find(&self, token: &PageToken) -> Option<Arc<Document>> {
        self.0.get(&token.id).await.filter(|document| document.query == token.query)
    }

    /// The page of `size` points after the token, and the token of the next one if there is one.
    pub(crate) async fn cut(
        &self,
        document: &Arc<Document>,
        after: Option<&PageToken>,
        size: usize,
    ) -> (Vec<Row>, Option<String>) {
        let from = after.map_or(0, |token| usize::try_from(token.at).unwrap_or(usize::MAX));
        let to = from.saturating_add(size);
        let rows = between(&document.rows, from, to);
        if to >= document.points() {
            return (rows, None);
        }
        let id = match after {
            Some(token) => token.id,
            None => new_id().as_u128(),
        };
        self.0.insert(id, Arc::clone(document)).await;
        let (query, prefix) = (document.query, document.prefix);
        let next = PageToken { id, query, prefix, to: document.question.range.end, at: to as u64 };
        (rows, Some(next.encode()))
    }
}

/// Points `from..to` of all, each in its series; series without points stand on the first page.
fn between(rows: &[Row], from: usize, to: usize) -> Vec<Row> {
    let (mut before, mut page) = (0, Vec::new());
    for row in rows {
        let end = before + row.points.len();
        let (first, last) = (from.clamp(before, end), to.clamp(before, end));
        if first < last || (row.points.is_empty() && from == 0) {
            page.push(Row { values: row.values.clone(), points: row.points[first - before..last - before].to_vec() });
        }
        before = end;
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::table::Point;

    #[test]
    fn pages_put_together_are_the_whole() {
        let point = |start| Point { start, answers: Vec::new() };
        let row = |points: i64| Row { values: Vec::new(), points: (0..points).map(point).collect() };
        let rows = [row(3), row(0), row(1), row(5)];
        for size in 1..11 {
            let mut starts = Vec::new();
            for at in (0..9).step_by(size) {
                let page = between(&rows, at, at + size);
                let points: usize = page.iter().map(|row| row.points.len()).sum();
                assert!(points <= size && (points == size || at + size >= 9));
                starts.extend(page.iter().flat_map(|row| row.points.iter().map(|point| point.start)));
            }
            assert_eq!(starts, [0, 1, 2, 0, 0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn a_token_comes_back_as_it_was_and_no_text_makes_decoding_panic() {
        let token = PageToken { id: 1, query: u128::MAX, prefix: 3, to: -4, at: 5 };
        assert_eq!(PageToken::decode(&token.encode()), Some(token.clone()));
        let far = PageToken { to: i64::MAX, ..token };
        for text in [&far.encode(), "", "x", "AAAA", "é", &"A".repeat(300)] {
            assert_eq!(PageToken::decode(text), None, "{text}");
        }
    }
}
