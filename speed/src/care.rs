//! Care for epochs that batch does not cover yet: touch them at half of their life, rebuild them past it.
//!
//! A touch writes the same bytes again under the same stamp, which only renews their time to live, and moves
//! `alive_until` once all of them are acknowledged. Past `alive_until` nothing is touched: a late write may lose to a
//! tombstone for ever. Then the epoch is folded again under a new id: from its archive file, or, while it is open, from the
//! log by taking the partition over anew.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use lamina_core::{
    Change, Commit, Epoch, EpochId, Mark, Part, Shard, SpeedKey, Stamp, StoreError, ViewId,
    generation::load_view,
    offload::offload,
    store,
    writer::{Resolved, stamps},
};
use lamina_metric::{Catalog, Source, accepted_events, archive};
use tracing::{error, warn};

use crate::{
    archive_file::{self, FileError},
    partition::{Hold, Interrupt, chain},
    views::{Encoded, FoldError, Views, shards_of},
};

/// Epochs touched in one round at most, and one is rebuilt: fresh records must not wait long.
const TOUCHES: usize = 20;

/// Why an epoch cannot be cared for now.
#[derive(Debug, thiserror::Error)]
enum CareError {
    #[error("view store does not answer")]
    Store(#[from] StoreError),
    #[error("archive file cannot be used")]
    File(#[from] FileError),
    #[error("archive file does not fold")]
    Fold(#[from] FoldError),
    #[error("an epoch's time was over before it was touched")]
    TooLate,
}

/// What touching an epoch found.
enum Touch {
    Done,
    /// Chunks are gone before their time.
    Incomplete,
}

/// Where each view's published cut stands in this partition.
type Cuts = HashMap<ViewId, u64>;

impl Hold {
    /// One round of care; true if more is to be done soon.
    pub(crate) async fn care(&mut self) -> Result<bool, Interrupt> {
        self.care_for_open().await?;
        match self.care_for_sealed().await {
            Ok(Some((change, more))) => self.apply(change).await.map(|()| more),
            Ok(None) => Ok(false),
            Err(error) => {
                error!(place = %self.place, error = %chain(&error), "cannot care for old epochs; trying again");
                Ok(false)
            }
        }
    }

    /// The open epoch grows old only while it cannot be sealed, or while nothing comes.
    async fn care_for_open(&mut self) -> Result<(), Interrupt> {
        let (now, half) = (self.place.deps.clock.now(), self.place.config.life() / 2);
        let Some(open) = self.ledger.open().filter(|open| now > open.alive_until - half).cloned() else {
            return Ok(());
        };
        if self.is_empty() {
            // Nothing was folded for long: what comes must not be born old.
            return Err(Interrupt::Again("the open epoch is empty and old".to_owned()));
        }
        warn!(place = %self.place, epoch = %open.id, "the open epoch is not sealed for half of its chunks' time to live");
        if now >= open.alive_until {
            return Err(Interrupt::Again("the open epoch outlived its chunks".to_owned()));
        }
        match self.touch_open(&open).await {
            Ok(Some(change)) => self.apply(change).await,
            Ok(None) => Err(Interrupt::Again("chunks of the open epoch are gone before their time".to_owned())),
            Err(error) => {
                error!(place = %self.place, error = %chain(&error), "cannot touch the open epoch; trying again");
                Ok(())
            }
        }
    }

    /// Writes an open epoch's mark and delta chunks again as they are; `None` if some are gone.
    async fn touch_open(&self, open: &Epoch) -> Result<Option<Change>, CareError> {
        let (store, ttl, written_at) =
            (&self.place.deps.store, self.place.config.ttl_seconds(), self.place.deps.clock.now());
        let Some(mark) = store.mark(&self.log, self.place.partition, open.id).await? else { return Ok(None) };
        let (slot, stamp) = (store::slot(open.opened_at), Stamp { at: stamps(open.opened_at, mark.number).0, ttl });
        for ((view, shard), &upto) in &mark.sequences {
            let deltas = store.deltas(view, *shard, slot, open.id, 0..upto).await?;
            if (deltas.len() as u64) < upto {
                return Ok(None);
            }
            let key = |number| SpeedKey {
                view: view.clone(),
                shard: *shard,
                slot,
                epoch: open.id,
                part: Part::Delta(number),
            };
            let chunks: Vec<_> = deltas.into_iter().map(|(number, bytes)| (key(number), bytes)).collect();
            self.place.put_chunks(&chunks, stamp).await?;
        }
        store.put_mark(&self.log, self.place.partition, open.id, &mark, stamp).await?;
        if self.place.deps.clock.now() >= open.alive_until {
            return Err(CareError::TooLate);
        }
        self.place.instruments.touched(1);
        Ok(Some(self.ledger.touched(&[open.id], self.place.config.alive_until(written_at))))
    }

    /// Touches epochs, or rebuilds one; gives the change of the ledger that follows, and whether more remains.
    async fn care_for_sealed(&self) -> Result<Option<(Change, bool)>, CareError> {
        let (written_at, life) = (self.place.deps.clock.now(), self.place.config.life());
        let cuts = self.cuts().await?;
        let kept = self.ledger.sealed().map(|epoch| (epoch, self.shards_to_keep(epoch, &cuts)));
        let uncovered: Vec<_> = kept.filter(|(_, shards)| !shards.is_empty()).collect();
        let open = self.ledger.open().filter(|_| !self.is_empty());
        let alive_until = uncovered.iter().map(|(epoch, _)| *epoch).chain(open).map(|epoch| epoch.alive_until).min();
        self.place.instruments.headroom(alive_until.map_or(life, |until| until - written_at));
        let is_old = |epoch: &Epoch| written_at > epoch.alive_until - life / 2;
        let old: Vec<_> = uncovered.into_iter().filter(|(epoch, _)| is_old(epoch)).collect();
        // Those that still live first: the others can wait, they are gone already.
        let (alive, mut gone): (Vec<_>, Vec<_>) =
            old.iter().partition(|(epoch, _)| self.place.deps.clock.now() < epoch.alive_until);
        let mut touched = Vec::new();
        for kept in alive.into_iter().take(TOUCHES) {
            match self.touch(kept.0, &kept.1).await? {
                Touch::Done => touched.push(kept.0),
                Touch::Incomplete => gone.push(kept),
            }
        }
        if let (true, Some((epoch, _))) = (touched.is_empty(), gone.first()) {
            return self.rebuild(epoch).await.map(|change| Some((change, true)));
        }
        let now = self.place.deps.clock.now();
        if touched.iter().any(|epoch| now >= epoch.alive_until) {
            return Err(CareError::TooLate);
        }
        if touched.is_empty() {
            return Ok(None);
        }
        warn!(place = %self.place, epochs = touched.len(), "batch covers nothing for half of the chunks' time to live: touched");
        self.place.instruments.touched(touched.len() as u64);
        let ids: Vec<EpochId> = touched.iter().map(|epoch| epoch.id).collect();
        let change = self.ledger.touched(&ids, self.place.config.alive_until(written_at));
        Ok(Some((change, old.len() > touched.len())))
    }

    async fn cuts(&self) -> Result<Cuts, StoreError> {
        let mut cuts = Cuts::new();
        let catalog = Arc::clone(&self.catalog.borrow());
        for view in catalog.metrics_of(&self.place.source).flat_map(|metric| &metric.views) {
            let (_, state) = load_view(&*self.place.deps.store, &view.id).await?;
            cuts.insert(view.id.clone(), state.published.cut.at(self.place.partition));
        }
        Ok(cuts)
    }

    /// The shards of views that count this epoch and whose batch does not cover it.
    fn shards_to_keep(&self, epoch: &Epoch, cuts: &Cuts) -> Vec<(ViewId, Shard)> {
        let catalog = Arc::clone(&self.catalog.borrow());
        let mut shards = shards_of(&catalog, &self.place.source, epoch.revision);
        shards.retain(|(view, _)| cuts.get(view).is_some_and(|cut| *cut <= epoch.start));
        shards
    }

    /// Writes an epoch's mark and consolidated chunks again as they are.
    async fn touch(&self, epoch: &Epoch, shards: &[(ViewId, Shard)]) -> Result<Touch, CareError> {
        let (store, ttl) = (&self.place.deps.store, self.place.config.ttl_seconds());
        let Some(mark) = store.mark(&self.log, self.place.partition, epoch.id).await? else {
            warn!(place = %self.place, epoch = %epoch.id, "mark of a sealed epoch is gone before its time");
            return Ok(Touch::Incomplete);
        };
        let end = epoch.end.unwrap_or(epoch.start);
        let slot = store::slot(epoch.opened_at);
        let mut chunks: Vec<(SpeedKey, Bytes)> = Vec::with_capacity(shards.len());
        for (view, shard) in shards {
            let Some(bytes) = store.whole(view, *shard, slot, epoch.id, end).await? else {
                warn!(place = %self.place, epoch = %epoch.id, %view, shard, "chunk is gone before its time");
                return Ok(Touch::Incomplete);
            };
            let (view, shard, part) = (view.clone(), *shard, Part::Whole(end));
            chunks.push((SpeedKey { view, shard, slot, epoch: epoch.id, part }, bytes));
        }
        let (mark_stamp, chunk_stamp) = stamps(epoch.opened_at, mark.number);
        self.place.put_chunks(&chunks, Stamp { at: chunk_stamp, ttl }).await?;
        store.put_mark(&self.log, self.place.partition, epoch.id, &mark, Stamp { at: mark_stamp, ttl }).await?;
        Ok(Touch::Done)
    }

    /// Folds an epoch again from its archive file, under a new id.
    async fn rebuild(&self, epoch: &Epoch) -> Result<Change, CareError> {
        let (store, config) = (&self.place.deps.store, &self.place.config);
        let Some(archive) = &epoch.archive else {
            return Err(StoreError::Corrupt {
                what: format!("epoch {}", epoch.id),
                why: "it is sealed without an archive file".to_owned(),
            }
            .into());
        };
        let file = archive_file::get(&*self.place.deps.archive, archive).await?;
        let (catalog, source) = (Arc::clone(&self.folding), self.place.source.clone());
        let revision = epoch.revision;
        let fold = offload(move || fold_file(&catalog, &source, revision, file));
        let chunks = fold.await.map_err(|error| FoldError::Broken(error.to_string()))??;

        let (id, opened_at) = (EpochId::new(), self.place.deps.clock.now());
        let (slot, part) = (store::slot(opened_at), Part::Whole(epoch.end.unwrap_or(epoch.start)));
        let keyed = |((view, shard), bytes): Encoded| (SpeedKey { view, shard, slot, epoch: id, part }, bytes);
        let chunks: Vec<_> = chunks.into_iter().map(keyed).collect();
        let (mark_stamp, chunk_stamp) = stamps(opened_at, 0);
        let ttl = config.ttl_seconds();
        let watermark = archive.event_time.map(|(_, last)| last);
        let mark = Mark { end: epoch.end.unwrap_or(epoch.start), watermark, ..Mark::default() };
        self.place.put_chunks(&chunks, Stamp { at: chunk_stamp, ttl }).await?;
        store.put_mark(&self.log, self.place.partition, id, &mark, Stamp { at: mark_stamp, ttl }).await?;
        self.place.instruments.repaired();
        warn!(place = %self.place, start = epoch.start, old = %epoch.id, new = %id, "epoch rebuilt from its archive file");
        let change = self.ledger.repair(epoch.id, id, opened_at, config.alive_until(opened_at));
        change.map_err(|error| StoreError::Refused(error.to_string()).into())
    }

    /// Sends a change that may as well be made anew in the next round, if it is not known to be applied.
    async fn apply(&mut self, change: Change) -> Result<(), Interrupt> {
        let place = Arc::clone(&self.place);
        let outcome = place.deps.store.commit(&self.log, place.partition, &change).await;
        if let (Ok(Commit::Applied), Some(ledger)) = (&outcome, self.ledger.apply(&change)) {
            self.ledger = ledger;
            return Ok(());
        }
        self.reload().await;
        match self.writer.resolve(&self.ledger)? {
            Resolved::Fenced => Err(Interrupt::Fenced),
            Resolved::Applied | Resolved::Repeat(_) => Ok(()),
        }
    }
}

fn fold_file(catalog: &Catalog, source: &str, revision: u64, file: Bytes) -> Result<Vec<Encoded>, FoldError> {
    let mut views = Views::new(catalog, source, revision);
    let source: &Source = match catalog.sources.get(source) {
        Some(source) => source,
        None => return Err(FoldError::Broken(format!("source {source} is no longer defined"))),
    };
    for rows in archive::read(file)? {
        views.fold(&accepted_events(source, &rows?)?)?;
    }
    views.whole()
}
