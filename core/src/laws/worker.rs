//! A worker of one partition: the I/O around [`Writer`], one durable step at a time.

use std::collections::BTreeMap;

use super::world::{self, EVENTS, Folded, World};
use crate::{
    Change, EpochId, Ledger, Offset, Partition, Shard, SpeedKey, ViewId, Writer,
    rules::{self, Rule},
    writer::{Flush, NextEpoch, Resolved, Takeover},
};

#[derive(Clone, Debug)]
pub(super) struct Worker {
    partition: Partition,
    writer: Writer,
    /// The ledger as last read.
    seen: Ledger,
    delta: BTreeMap<(ViewId, Shard), Folded>,
    /// A flush under way: chunks still to write, then its mark.
    flush: Option<(Flush, Vec<(SpeedKey, Folded)>)>,
    /// Consolidated chunks still to write for a seal at this end.
    consolidation: Option<(Offset, Vec<SpeedKey>)>,
    /// A change was sent and its outcome is not known.
    unresolved: bool,
}

impl Worker {
    pub(super) fn take_over(world: &mut World, partition: Partition) -> Option<Self> {
        let seen = world.ledgers[partition as usize].clone();
        let mark = seen.open().and_then(|open| world.marks.get(&open.id)).cloned();
        let (id, now) = (world.new_id(), world.tick());
        let takeover = Takeover { id, now, revision: 1, log_start: 0, alive_until: i64::MAX };
        let writer = Writer::take_over(&seen, mark.as_ref(), takeover).ok()?;
        world.note("take over", format!("partition {partition} from {}", writer.position()));
        let unresolved = false;
        Some(Self { partition, writer, seen, delta: BTreeMap::new(), flush: None, consolidation: None, unresolved })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.writer.is_fenced()
    }

    pub(super) fn writes(&self, epoch: EpochId) -> bool {
        self.writer.epoch().id == epoch
    }

    /// One step: whichever durable write is under way, else one that is allowed.
    pub(super) fn step(&mut self, world: &mut World) {
        if self.unresolved {
            return self.resolve(world);
        }
        if self.flush.is_some() {
            return self.step_flush(world);
        }
        if self.consolidation.is_some() {
            return self.step_consolidation(world);
        }
        match world.roll(6) {
            0..=2 if self.writer.may_write() && self.writer.position() < EVENTS => self.fold(world),
            3 if self.writer.may_write() => self.begin_flush(world),
            4 => self.publish(world),
            5 => self.begin_seal(world),
            _ => self.seen = world.ledgers[self.partition as usize].clone(),
        }
    }

    fn fold(&mut self, world: &mut World) {
        let offset = self.writer.position();
        for (view, shard) in world::shards().into_iter().filter(|(view, shard)| world::shard_of(view, offset) == *shard)
        {
            *self.delta.entry((view, shard)).or_default().entry((self.partition, offset)).or_default() += 1;
        }
        self.writer.folded_to(offset + 1);
        world.note("fold", format!("{}/{offset} by {}", self.partition, self.writer.epoch().id));
    }

    fn begin_flush(&mut self, world: &mut World) {
        if self.writer.marked() == self.writer.position() {
            return;
        }
        let (dirty, states): (Vec<_>, Vec<_>) = std::mem::take(&mut self.delta).into_iter().unzip();
        self.writer.folds(world::shards());
        let flush = self.writer.flush(&dirty, None, None);
        let chunks = flush.keys.iter().cloned().zip(states).collect();
        world.note("flush", format!("{} to {}", self.writer.epoch().id, flush.mark.end));
        self.flush = Some((flush, chunks));
    }

    fn step_flush(&mut self, world: &mut World) {
        let Some((flush, chunks)) = &mut self.flush else { return };
        if let Some((key, states)) = chunks.pop() {
            world.note("write chunk", format!("{key:?}"));
            world.chunks.insert(key, states);
            return;
        }
        world.note("write mark", format!("{} to {}", self.writer.epoch().id, flush.mark.end));
        world.marks.insert(self.writer.epoch().id, flush.mark.clone());
        self.writer.flushed(flush);
        self.flush = None;
    }

    fn publish(&mut self, world: &mut World) {
        match self.writer.publish(&self.seen) {
            Ok(Some(change)) => {
                world.note("publish", self.writer.epoch().id);
                self.send(world, &change);
            }
            Ok(None) => {}
            Err(_) => self.fenced(world),
        }
    }

    fn begin_seal(&mut self, world: &mut World) {
        let worth = self.writer.is_live() && self.writer.position() > self.writer.epoch().start;
        if self.writer.may_seal() {
            return self.seal(world);
        }
        if worth && self.writer.marked() == self.writer.position() {
            let (keys, _) = self.writer.consolidation(&world::shards());
            world.note("consolidate", format!("{} at {}", self.writer.epoch().id, self.writer.position()));
            self.consolidation = Some((self.writer.position(), keys));
        }
    }

    fn step_consolidation(&mut self, world: &mut World) {
        let Some((end, keys)) = &mut self.consolidation else { return };
        let Some(key) = keys.pop() else {
            self.writer.consolidated(*end);
            self.consolidation = None;
            return;
        };
        let start = self.writer.epoch().start;
        let folded = world::fold(self.partition, start..*end, &key.view, key.shard);
        world.note("write chunk", format!("{key:?}"));
        world.chunks.insert(key, folded);
    }

    fn seal(&mut self, world: &mut World) {
        let (id, now) = (world.new_id(), world.tick());
        let next = NextEpoch { id, now, revision: 1, dedup_clock: now, alive_until: i64::MAX };
        let trim = world.trim_below(self.partition);
        let leaving: Vec<_> = self.seen.trimmable(trim).cloned().collect();
        world.archive(self.partition, &leaving);
        let archive = world::archive_of(self.writer.position() - self.writer.epoch().start);
        world.note("seal", format!("{} at {}", self.writer.epoch().id, self.writer.position()));
        match self.writer.seal(&self.seen, archive, next, trim) {
            Ok(change) => self.send(world, &change),
            Err(_) => self.fenced(world),
        }
    }

    /// Sends a change; now and then its outcome stays unknown.
    fn send(&mut self, world: &mut World, change: &Change) {
        if world.roll(4) == 0 {
            world.commit_unknown(self.partition, change);
            self.unresolved = true;
        } else if world.commit(self.partition, change) {
            self.applied(world);
        } else {
            self.unresolved = true;
        }
    }

    fn applied(&mut self, world: &World) {
        if self.writer.may_write() {
            self.writer.published()
        } else {
            self.writer.sealed()
        }
        self.seen = world.ledgers[self.partition as usize].clone();
    }

    /// Reads the ledger back and does what the writer says.
    fn resolve(&mut self, world: &mut World) {
        self.seen = world.ledgers[self.partition as usize].clone();
        self.unresolved = false;
        match self.writer.resolve(&self.seen) {
            Ok(Resolved::Applied) => world.note("found applied", self.writer.epoch().id),
            Ok(Resolved::Repeat(change)) if rules::on(Rule::StopAfterSeal) => {
                world.note("repeat", self.writer.epoch().id);
                self.send(world, &change);
            }
            Ok(Resolved::Repeat(_)) => {}
            Ok(Resolved::Fenced) | Err(_) => self.fenced(world),
        }
    }

    fn fenced(&mut self, world: &mut World) {
        world.note("fenced", self.writer.epoch().id);
        self.writer.fence();
    }
}
