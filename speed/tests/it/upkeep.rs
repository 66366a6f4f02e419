//! Care for sealed epochs: touched at half of their life, rebuilt past it, trimmed once covered.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lamina_core::{
    Cut, Ledgers, Scope,
    generation::{load_view, save_view},
};

use crate::world::{TOPIC, World};

fn short_lived() -> World {
    let mut world = World::new(1);
    world.config.ttl = Duration::from_secs(4);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn touched_epochs_outlive_their_time_to_live() {
    let world = short_lived();
    let worker = world.start("g");
    world.push(0, 1_000, "a", "en", 5);
    world.all_sealed().await;
    let sealed = world.ledger(0).epochs[0].clone();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(9) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.check().await;
        assert!(world.inputs("added").await.unwrap().snapshot.missing().is_empty());
    }
    let now = world.ledger(0).epochs[0].clone();
    assert_eq!(now.id, sealed.id, "a touch keeps the epoch");
    assert!(now.alive_until > sealed.alive_until + 4_000_000);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_epoch_that_cannot_be_sealed_is_touched_and_past_its_time_rebuilt_from_the_log() {
    let mut world = short_lived();
    world.config.epoch = Duration::from_secs(600);
    let worker = world.start("g");
    world.push(0, 1_000, "a", "en", 5);
    world.all_visible().await;
    world.push(0, 1_001, "b", "de", 6);
    world.all_visible().await;
    let opened = world.ledger(0).open().unwrap().clone();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(9) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.check().await;
        assert!(world.inputs("added").await.unwrap().snapshot.missing().is_empty());
    }
    let now = world.ledger(0).open().unwrap().clone();
    assert_eq!(now.id, opened.id, "a touch keeps the epoch");
    assert!(now.alive_until > opened.alive_until + 4_000_000);
    world.clock.0.store(60_000_000, Ordering::SeqCst);
    assert!(world.inputs("added").await.unwrap().speed.is_empty(), "what may be gone is not folded");
    let replaced = async || world.ledger(0).open().unwrap().id != opened.id;
    world.until("the partition is taken over anew", replaced).await;
    world.all_visible().await;
    assert!(world.inputs("added").await.unwrap().snapshot.missing().is_empty());
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_whose_chunks_died_is_rebuilt_from_its_archive_file() {
    let world = short_lived();
    let worker = world.start("g");
    for i in 0..30 {
        world.push(0, 1_000 + i, &(i % 20).to_string(), ["en", "de"][i as usize % 2], i);
    }
    world.log.push(TOPIC, 0, 2_000, Some("garbage"));
    world.all_sealed().await;
    worker.drain().await;
    let before = world.ledger(0);
    world.clock.0.store(60_000_000, Ordering::SeqCst);
    let gone = world.inputs("added").await.unwrap();
    let named: Vec<_> = gone.snapshot.missing().into_iter().map(|missing| (missing.from, missing.to)).collect();
    let ranges: Vec<_> = before.sealed().map(|epoch| (epoch.start, epoch.end.unwrap())).collect();
    assert_eq!(named, ranges, "what is gone is named");
    assert!(gone.speed.is_empty(), "and nothing of it is folded");
    let worker = world.start("g");
    let whole = async || world.inputs("added").await.is_ok_and(|inputs| inputs.snapshot.missing().is_empty());
    world.until("the answer is whole again", whole).await;
    world.check().await;
    let after = world.ledger(0);
    for (old, new) in before.sealed().zip(after.sealed()) {
        assert_ne!(old.id, new.id, "under a new id");
        assert_eq!((old.start, old.end, &old.archive), (new.start, new.end, &new.archive), "over the same range");
    }
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_epochs_below_every_published_cut_leave_the_ledger_and_the_manifest_has_them() {
    let world = World::new(1);
    let worker = world.start("g");
    world.push(0, 1_000, "a", "en", 5);
    world.all_sealed().await;
    world.push(0, 1_001, "b", "en", 6);
    world.all_sealed().await;
    let (ledger, metric) = (world.ledger(0), Arc::clone(&world.catalog.borrow().metrics["added"]));
    let cut = Cut::from_iter([(0, ledger.epochs[0].end.unwrap())]);
    for (published, view) in metric.views.iter().enumerate() {
        if published == metric.views.len() - 1 {
            world.push(0, 1_002, "c", "en", 7);
            world.all_sealed().await;
            assert_eq!(world.ledger(0).epochs[0].start, 0, "one view is not published yet");
        }
        let (version, state) = load_view(&*world.store, &view.id).await.unwrap();
        let (state, opened) = state.begin(cut.clone(), Scope::default(), 1).unwrap();
        save_view(&*world.store, &view.id, version, &state.publish(&opened, 2, None).unwrap()).await.unwrap();
    }
    world.push(0, 1_003, "d", "en", 8);
    world.all_sealed().await;
    assert_eq!(world.ledger(0).epochs[0].start, cut.at(0), "epochs below the cut are gone");
    let archived = world.store.archived(&world.id(), 0, 0..u64::MAX).await.unwrap();
    assert_eq!(archived.len(), 1);
    assert_eq!(archived[0], ledger.epochs[0]);
    worker.drain().await;
}
