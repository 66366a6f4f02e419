//! Laws of ledgers and of the manifest.

use futures::future::join_all;

use super::{Random, now, random_name, unknown};
use crate::{
    ids::{EpochId, LogId, Offset},
    ledger::{Archive, Change, Counts, Epoch, Ledger},
    store::{Commit, Consistency, Store},
};

const BOTH: [Consistency; 2] = [Consistency::Quorum, Consistency::Serial];

pub(super) async fn laws(store: &dyn Store) {
    an_unwritten_ledger_is_empty_at_version_0(store).await;
    a_change_applies_at_its_version_only(store).await;
    ledgers_do_not_disturb_each_other(store).await;
    of_concurrent_changes_exactly_one_applies(store).await;
    for seed in 0..3 {
        a_ledger_goes_through_what_apply_says(store, seed).await;
    }
    a_ledger_of_3000_epochs_loads_whole(store).await;
    the_manifest_keeps_each_epoch_once_in_order(store).await;
}

fn some_log() -> LogId {
    LogId::new(&random_name("source"), &random_name("topic"))
}

fn epoch(start: Offset, end: Option<Offset>) -> Epoch {
    let archive = end.map(|end| Archive {
        path: format!("source/0/{start:020}.parquet"),
        bytes: 1234,
        checksum: 0xdead_beef,
        counts: Counts { accepted: end - start, ..Counts::default() },
        event_time: Some((-1, now())),
        last_record: Some((start, 0xdead_beef)),
    });
    let (opened_at, alive_until) = (now(), now() + 3_600_000_000);
    let (id, revision, dedup_clock) = (EpochId::new(), 7, opened_at - 5);
    Epoch { id, start, end, opened_at, revision, dedup_clock, alive_until, archive, lost: None }
}

/// The change that opens an unwritten ledger.
fn opening(start: Offset) -> Change {
    Change { expected: 0, put: vec![epoch(start, None)], remove: Vec::new() }
}

/// Every reading of the ledger gives `expected`.
async fn holds(store: &dyn Store, log: &LogId, partition: u32, expected: &Ledger) {
    for consistency in BOTH {
        let found = store.load(log, partition, consistency).await.expect("load");
        assert_eq!(found.version, expected.version, "version of the ledger at {consistency:?}");
        assert_eq!(&found, expected, "epochs of the ledger at {consistency:?}");
    }
}

async fn an_unwritten_ledger_is_empty_at_version_0(store: &dyn Store) {
    holds(store, &some_log(), 0, &Ledger::default()).await;
    let found = store.archived(&some_log(), 0, 0..u64::MAX).await.expect("archived");
    assert!(found.is_empty(), "an unwritten manifest is empty");
}

async fn a_change_applies_at_its_version_only(store: &dyn Store) {
    let log = some_log();
    let change = opening(0);
    let early = Change { expected: 1, ..opening(0) };
    assert_eq!(store.commit(&log, 0, &early).await.expect("commit"), Commit::Refused, "version 1 is not there yet");
    holds(store, &log, 0, &Ledger::default()).await;
    assert_eq!(store.commit(&log, 0, &change).await.expect("commit"), Commit::Applied, "an unwritten ledger is at 0");
    let ledger = Ledger::default().apply(&change).expect("made for version 0");
    holds(store, &log, 0, &ledger).await;
    for stale in [0, 2, 99] {
        let change = Change { expected: stale, put: vec![epoch(0, None)], remove: Vec::new() };
        let answer = store.commit(&log, 0, &change).await.expect("commit");
        assert_eq!(answer, Commit::Refused, "the ledger is at version 1, not {stale}");
    }
    let empty = Change { expected: 1, put: Vec::new(), remove: Vec::new() };
    assert_eq!(store.commit(&log, 0, &empty).await.expect("commit"), Commit::Applied, "a change may be empty");
    holds(store, &log, 0, &Ledger { version: 2, ..ledger }).await;
}

async fn ledgers_do_not_disturb_each_other(store: &dyn Store) {
    let (log, source) = (some_log(), random_name("source"));
    let again = LogId::new(&source, "first");
    let places = [(&log, 0), (&log, 1), (&log, 10), (&again, 0), (&LogId::new(&source, "second"), 0)];
    let mut expected = Vec::new();
    for (i, (log, partition)) in places.into_iter().enumerate() {
        let change = opening(i as Offset * 10);
        assert_eq!(
            store.commit(log, partition, &change).await.expect("commit"),
            Commit::Applied,
            "a ledger of its own"
        );
        expected.push(Ledger::default().apply(&change).expect("made for version 0"));
    }
    for ((log, partition), expected) in places.into_iter().zip(&expected) {
        holds(store, log, partition, expected).await;
    }
}

async fn of_concurrent_changes_exactly_one_applies(store: &dyn Store) {
    let log = some_log();
    let mut ledger = Ledger::default();
    for round in 0..8 {
        let change = |start| match ledger.open() {
            None => opening(0),
            Some(open) => ledger.replace_open(Some(open.id), epoch(start, None)).expect("it is the open epoch"),
        };
        let changes: Vec<_> = (0..4).map(|_| change(0)).collect();
        let answers = join_all(changes.iter().map(|change| store.commit(&log, 0, change))).await;
        let applied = answers.iter().filter(|answer| matches!(answer, Ok(Commit::Applied))).count();
        let in_doubt = answers.iter().filter(|answer| unknown(answer)).count();
        let refused = answers.iter().filter(|answer| matches!(answer, Ok(Commit::Refused))).count();
        assert_eq!(applied + in_doubt + refused, 4, "a compare-and-set is applied, refused or unknown: {answers:?}");
        assert!(applied == 1 || (applied == 0 && in_doubt > 0), "round {round}: exactly one applies: {answers:?}");
        let found = store.load(&log, 0, Consistency::Serial).await.expect("load");
        let winner = changes.iter().zip(&answers).find(|(change, answer)| {
            let claimed = matches!(answer, Ok(Commit::Applied)) || (applied == 0 && unknown(answer));
            claimed && ledger.apply(change).as_ref() == Some(&found)
        });
        assert!(winner.is_some(), "round {round}: the ledger is what the applied change made: {found:?}");
        ledger = found;
    }
}

/// A change that a worker could make: a takeover, a seal with trimming, a touch or a repair.
fn some_change(ledger: &Ledger, random: &mut Random) -> Change {
    let Some(open) = ledger.open() else { return opening(random.below(50)) };
    let sealed: Vec<_> = ledger.sealed().collect();
    let mut change = match random.below(6) {
        0 => ledger.replace_open(Some(open.id), epoch(open.start, None)).expect("it is the open epoch"),
        1 => ledger.touched(&[open.id], open.alive_until + 1),
        2 if !sealed.is_empty() => {
            let old = sealed[random.below(sealed.len() as u64) as usize].id;
            ledger.repair(old, EpochId::new(), now(), now()).expect("it is a sealed epoch")
        }
        kind => {
            let end = open.start + 1 + random.below(1000);
            let archive = epoch(open.start, Some(end)).archive.expect("a sealed epoch has one");
            let trim = if kind == 3 { open.start - random.below(open.start + 1) } else { 0 };
            let next = Epoch { lost: Some((end, end + 1)), ..epoch(end, None) };
            ledger.seal(open.id, end, archive, next, trim).expect("it is the open epoch")
        }
    };
    if random.below(4) == 0 {
        // A row that is both removed and put is put.
        change.remove.extend(change.put.iter().map(|epoch| epoch.start));
    }
    change
}

async fn a_ledger_goes_through_what_apply_says(store: &dyn Store, seed: u64) {
    let (log, mut random, mut ledger) = (some_log(), Random(seed), Ledger::default());
    for step in 0..40 {
        let mut change = some_change(&ledger, &mut random);
        if random.below(5) == 0 {
            change.expected = change.expected.wrapping_add(1 + random.below(2)).saturating_sub(2 * random.below(2));
        }
        let answer = store.commit(&log, 3, &change).await.expect("commit");
        let expected = ledger.apply(&change);
        let should = if expected.is_some() { Commit::Applied } else { Commit::Refused };
        assert_eq!(answer, should, "seed {seed}, step {step}: version {}, change {change:?}", ledger.version);
        ledger = expected.unwrap_or(ledger);
        ledger.check().expect("the changes made here keep a ledger whole");
        holds(store, &log, 3, &ledger).await;
    }
}

async fn a_ledger_of_3000_epochs_loads_whole(store: &dyn Store) {
    let (log, mut ledger) = (some_log(), Ledger::default());
    for step in 0..60 {
        let starts = step * 50..(step + 1) * 50;
        let mut put: Vec<_> = starts.map(|start| epoch(start * 10, Some(start * 10 + 10))).collect();
        put.push(epoch((step + 1) * 500, None));
        let change = Change { expected: ledger.version, put, remove: Vec::new() };
        assert_eq!(store.commit(&log, 0, &change).await.expect("commit of 51 rows"), Commit::Applied);
        ledger = ledger.apply(&change).expect("made for this version");
    }
    assert_eq!(ledger.epochs.len(), 3001);
    holds(store, &log, 0, &ledger).await;
}

async fn the_manifest_keeps_each_epoch_once_in_order(store: &dyn Store) {
    let log = some_log();
    let epochs: Vec<_> = (0..300).map(|i| epoch(i * 10, Some(i * 10 + 10))).collect();
    store.archive(&log, 2, &[]).await.expect("archive of nothing");
    for part in [&epochs[200..], &epochs[..120], &epochs[100..200], &epochs[..]] {
        store.archive(&log, 2, part).await.expect("archive");
    }
    let last = Offset::from(u32::MAX) * 1000;
    let far = epoch(last, Some(last + 1));
    store.archive(&log, 2, std::slice::from_ref(&far)).await.expect("archive");
    for (range, expected) in [
        (0..u64::MAX, [&epochs[..], std::slice::from_ref(&far)].concat()),
        (0..3000, epochs.clone()),
        (10..20, epochs[1..2].to_vec()),
        (11..20, Vec::new()),
        (11..21, epochs[2..3].to_vec()),
        (500..1500, epochs[50..150].to_vec()),
        (50..50, Vec::new()),
        (3000..last, Vec::new()),
    ] {
        let found = store.archived(&log, 2, range.clone()).await.expect("archived");
        assert_eq!(found.len(), expected.len(), "number of epochs that start within {range:?}");
        assert_eq!(found, expected, "epochs that start within {range:?}");
    }
    for (log, partition) in [(&log, 1), (&some_log(), 2)] {
        let found = store.archived(log, partition, 0..u64::MAX).await.expect("archived");
        assert!(found.is_empty(), "the manifest of another partition is another");
    }
}
