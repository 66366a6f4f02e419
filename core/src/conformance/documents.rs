//! Laws of documents.

use bytes::Bytes;
use futures::future::join_all;

use super::{Random, random_name, unknown};
use crate::store::{Commit, Document, Documents, Store};

pub(super) async fn laws(store: &dyn Store) {
    a_document_changes_at_its_version_only(store).await;
    documents_are_listed_by_kind_in_order_of_keys(store).await;
    of_concurrent_puts_exactly_one_applies(store).await;
}

fn document(version: u64, value: &'static str) -> Document {
    Document { version, value: Bytes::from_static(value.as_bytes()) }
}

/// Puts text and takes only `Applied` or `Refused` for an answer.
async fn put(store: &dyn Store, kind: &str, key: &str, expected: u64, value: &'static str) -> Commit {
    let value = Bytes::from_static(value.as_bytes());
    Documents::put(store, kind, key, expected, value).await.expect("put")
}

async fn a_document_changes_at_its_version_only(store: &dyn Store) {
    let (kind, key) = (random_name("kind"), "a/b c\u{e9}.1");
    let put = |expected, value: &'static str| put(store, &kind, key, expected, value);
    let get = || async { store.get(&kind, key).await.expect("get") };
    assert_eq!(get().await, None, "a document that was never written is not there");
    assert_eq!(put(1, "x").await, Commit::Refused, "it is not at version 1");
    assert_eq!(store.remove(&kind, key, 0).await.expect("remove"), Commit::Refused, "what is not there is not removed");
    assert_eq!(put(0, "one").await, Commit::Applied, "expected 0 creates");
    assert_eq!(get().await, Some(document(1, "one")), "the first version is 1");
    for stale in [0, 2, 100] {
        assert_eq!(put(stale, "x").await, Commit::Refused, "it is at version 1, not {stale}");
        let removed = store.remove(&kind, key, stale).await.expect("remove");
        assert_eq!(removed, Commit::Refused, "it is at version 1, not {stale}");
    }
    assert_eq!(put(1, "two").await, Commit::Applied, "the expected version is replaced");
    assert_eq!(get().await, Some(document(2, "two")), "and grows by one");
    assert_eq!(store.remove(&kind, key, 2).await.expect("remove"), Commit::Applied, "the expected version is removed");
    assert_eq!(get().await, None, "a removed document is not there");
    assert!(store.list(&kind).await.expect("list").is_empty(), "nor is it listed");
    assert_eq!(put(2, "x").await, Commit::Refused, "nor has it a version");
    assert_eq!(put(0, "").await, Commit::Applied, "it may be created again, even empty");
    assert_eq!(get().await, Some(document(1, "")), "at version 1");
    let large = Random(5).bytes(300_000);
    let answer = Documents::put(store, &kind, key, 1, large.clone()).await.expect("put");
    assert_eq!(answer, Commit::Applied, "a document of 300 kB is fine");
    assert_eq!(get().await, Some(Document { version: 2, value: large }), "and comes back whole");
}

async fn documents_are_listed_by_kind_in_order_of_keys(store: &dyn Store) {
    let kind = random_name("kind");
    let longer = format!("{kind}-longer");
    let mut keys: Vec<_> = (0..120).map(|i| format!("key-{}", i * 7919 % 1000)).collect();
    for key in &keys {
        assert_eq!(put(store, &kind, key, 0, "mine").await, Commit::Applied);
    }
    assert_eq!(put(store, &longer, "other", 0, "other").await, Commit::Applied);
    keys.sort_unstable();
    let listed = store.list(&kind).await.expect("list");
    let found: Vec<_> = listed.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(found, keys, "all documents of the kind, and of no other, by key");
    assert!(listed.iter().all(|(_, found)| *found == document(1, "mine")), "with version and value");
    assert_eq!(store.get(&longer, "key-0").await.expect("get"), None, "the same key of another kind is another");
}

async fn of_concurrent_puts_exactly_one_applies(store: &dyn Store) {
    let (kind, key) = (random_name("kind"), "contended");
    for version in 0..6 {
        let values: Vec<_> = (0..4).map(|i| Bytes::from(format!("{version}:{i}"))).collect();
        let puts = values.iter().map(|value| Documents::put(store, &kind, key, version, value.clone()));
        let answers = join_all(puts).await;
        let applied = answers.iter().filter(|answer| matches!(answer, Ok(Commit::Applied))).count();
        let in_doubt = answers.iter().filter(|answer| unknown(answer)).count();
        assert!(applied == 1 || (applied == 0 && in_doubt > 0), "exactly one applies: {answers:?}");
        let found = store.get(&kind, key).await.expect("get").expect("the document is there");
        assert_eq!(found.version, version + 1, "the version grew by one: {answers:?}");
        let winner = values.iter().position(|value| *value == found.value).expect("the value is one of those put");
        let claimed = matches!(answers[winner], Ok(Commit::Applied)) || unknown(&answers[winner]);
        assert!(claimed, "the value is the applied one: {answers:?}");
    }
}
