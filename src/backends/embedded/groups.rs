//! Consumer groups within this process: who has which partition.
//!
//! # Invariants
//! - A partition has one owner at most. It goes to another only after its owner released it, left, or let
//!   [`RELEASE_WITHIN`] pass.
//! - Members of a group that read the same topics have as many partitions as each other, give or take one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lamina_core::log::{Event, TopicPartition};
use tokio::sync::watch;

/// How long a member may keep a partition that was revoked.
pub(super) const RELEASE_WITHIN: Duration = Duration::from_secs(10);

pub(super) type MemberId = u64;

/// All groups of a log.
#[derive(Default)]
pub(super) struct Groups {
    groups: Mutex<HashMap<String, Group>>,
    /// Counts changes, so that members wake at once.
    pub(super) changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Group {
    joined: MemberId,
    members: BTreeMap<MemberId, Member>,
    owners: BTreeMap<TopicPartition, Owner>,
}

struct Member {
    wants: BTreeSet<TopicPartition>,
    events: VecDeque<Event>,
}

struct Owner {
    member: MemberId,
    /// When it was told to let go.
    revoked: Option<Instant>,
}

impl Groups {
    pub(super) fn join(&self, group: &str, wants: impl IntoIterator<Item = TopicPartition>) -> MemberId {
        let mut groups = self.lock();
        let group = groups.entry(group.to_owned()).or_default();
        group.joined += 1;
        let member = Member { wants: wants.into_iter().collect(), events: VecDeque::new() };
        group.members.insert(group.joined, member);
        let id = group.joined;
        self.rebalance(group);
        id
    }

    pub(super) fn leave(&self, name: &str, member: MemberId) {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(name) else { return };
        group.members.remove(&member);
        group.owners.retain(|_, owner| owner.member != member);
        if group.members.is_empty() {
            groups.remove(name);
        } else {
            self.rebalance(group);
        }
    }

    pub(super) fn release(&self, name: &str, member: MemberId, partitions: &[TopicPartition]) {
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(name) else { return };
        group.owners.retain(|partition, owner| {
            !(owner.member == member && owner.revoked.is_some() && partitions.contains(partition))
        });
        self.rebalance(group);
    }

    /// The next thing that a member must know.
    pub(super) fn next_event(&self, name: &str, member: MemberId) -> Option<Event> {
        let mut groups = self.lock();
        let group = groups.get_mut(name)?;
        if let Some(event) = group.members.get_mut(&member)?.events.pop_front() {
            return Some(event);
        }
        let late = |owner: &Owner| owner.revoked.is_some_and(|at| at.elapsed() >= RELEASE_WITHIN);
        if group.owners.values().any(late) {
            group.owners.retain(|_, owner| !late(owner));
            self.rebalance(group);
        }
        group.members.get_mut(&member)?.events.pop_front()
    }

    fn rebalance(&self, group: &mut Group) {
        group.rebalance();
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// Gives free partitions to those that should have them, and asks for those that others should have.
    fn rebalance(&mut self) {
        let (mut assigned, mut revoked) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (partition, target) in self.target() {
            match self.owners.get_mut(&partition) {
                None => {
                    self.owners.insert(partition.clone(), Owner { member: target, revoked: None });
                    assigned.entry(target).or_default().push(partition);
                }
                Some(owner) if owner.member != target && owner.revoked.is_none() => {
                    owner.revoked = Some(Instant::now());
                    revoked.entry(owner.member).or_default().push(partition);
                }
                Some(_) => {}
            }
        }
        let revoked = revoked.into_iter().map(|(member, partitions)| (member, Event::Revoked(partitions)));
        let assigned = assigned.into_iter().map(|(member, partitions)| (member, Event::Assigned(partitions)));
        for (member, event) in revoked.chain(assigned) {
            if let Some(member) = self.members.get_mut(&member) {
                member.events.push_back(event);
            }
        }
    }

    /// Who should have each partition: as many for each member as for the others, moving as few as possible.
    fn target(&self) -> BTreeMap<TopicPartition, MemberId> {
        let all: BTreeSet<_> = self.members.values().flat_map(|member| &member.wants).cloned().collect();
        let mut load: BTreeMap<MemberId, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        let share = all.len().div_ceil(load.len().max(1));
        let mut target = BTreeMap::new();
        for partition in &all {
            let keeper = self.owners.get(partition).filter(|owner| owner.revoked.is_none()).map(|owner| owner.member);
            let wanted =
                keeper.filter(|id| self.members.get(id).is_some_and(|member| member.wants.contains(partition)));
            if let Some((keeper, load)) = wanted.and_then(|id| Some((id, load.get_mut(&id)?)))
                && *load < share
            {
                *load += 1;
                target.insert(partition.clone(), keeper);
            }
        }
        let least = |load: &BTreeMap<MemberId, usize>, partition: &TopicPartition| {
            let able = load.iter().filter(|(id, _)| self.members[id].wants.contains(partition));
            able.min_by_key(|(_, load)| **load).map(|(id, load)| (*id, *load))
        };
        for partition in &all {
            if target.contains_key(partition) {
                continue;
            }
            if let Some((id, count)) = least(&load, partition) {
                load.insert(id, count + 1);
                target.insert(partition.clone(), id);
            }
        }
        for partition in &all {
            let Some(&holder) = target.get(partition) else { continue };
            if let Some((id, count)) = least(&load, partition)
                && load[&holder] > count + 1
            {
                load.insert(id, count + 1);
                load.insert(holder, load[&holder] - 1);
                target.insert(partition.clone(), id);
            }
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partitions(count: u32) -> Vec<TopicPartition> {
        (0..count).map(|partition| (format!("t{}", partition % 3), partition)).collect()
    }

    proptest! {
        /// Members join, leave and release in any order; at the end all let go of what they must.
        #[test]
        fn partitions_have_one_owner_and_end_up_shared_evenly(count in 1..20_u32, steps in prop::collection::vec((0..3, 0..8_u64), 0..30)) {
            let groups = Groups::default();
            let mut owned: BTreeMap<MemberId, BTreeSet<TopicPartition>> = BTreeMap::new();
            let settle = |owned: &mut BTreeMap<MemberId, BTreeSet<TopicPartition>>, id: MemberId| {
                while let Some(event) = groups.next_event("g", id) {
                    match event {
                        Event::Assigned(new) => for partition in new {
                            assert!(owned.values().all(|mine| !mine.contains(&partition)), "two owners of {partition:?}");
                            owned.get_mut(&id).expect("a member").insert(partition);
                        },
                        Event::Revoked(old) => {
                            owned.get_mut(&id).expect("a member").retain(|partition| !old.contains(partition));
                            groups.release("g", id, &old);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            };
            owned.insert(groups.join("g", partitions(count)), BTreeSet::new());
            for (kind, which) in steps {
                let some = owned.keys().copied().nth(which as usize % owned.len()).expect("not empty");
                match kind {
                    0 => { owned.insert(groups.join("g", partitions(count)), BTreeSet::new()); }
                    1 if owned.len() > 1 => { groups.leave("g", some); owned.remove(&some); }
                    _ => settle(&mut owned, some),
                }
            }
            for _ in 0..2 * owned.len() + 2 {
                for id in owned.keys().copied().collect::<Vec<_>>() {
                    settle(&mut owned, id);
                }
            }
            let sizes: Vec<_> = owned.values().map(BTreeSet::len).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), count as usize);
            prop_assert!(sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1, "{:?}", sizes);
        }
    }
}
