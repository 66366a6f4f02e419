//! Consumer groups: who has which partition, and for how long without being heard.
//!
//! # Invariants
//! - The group gives a partition to one member at a time. A member that is not heard within the session, or does not let
//!   go in time, is thrown out: it learns of it at its next call, and until then may believe that it owns what others do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    ids::Micros,
    log::{Event, TopicPartition},
};

pub type MemberId = u64;

/// All groups of a log.
#[derive(Debug)]
pub struct Groups {
    groups: BTreeMap<String, Group>,
    joined: MemberId,
    /// How long a member may stay silent, and how long it may keep a partition that was revoked, in µs.
    pub session: Micros,
    pub release_within: Micros,
    /// How often partitions changed hands, and members were thrown out.
    pub rebalances: u64,
    pub thrown_out: u64,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<MemberId, GroupMember>,
    owners: BTreeMap<TopicPartition, Owner>,
}

#[derive(Debug)]
struct GroupMember {
    wants: BTreeSet<TopicPartition>,
    events: VecDeque<Event>,
    heard: Micros,
    /// Thrown out: what it believes to own.
    out: Option<Vec<TopicPartition>>,
}

#[derive(Debug)]
struct Owner {
    member: MemberId,
    /// When it was told to let go.
    revoked: Option<Micros>,
}

impl Default for Groups {
    fn default() -> Self {
        let (session, release_within) = (45_000_000, 10_000_000);
        Self { groups: BTreeMap::new(), joined: 0, session, release_within, rebalances: 0, thrown_out: 0 }
    }
}

impl Groups {
    pub fn join(&mut self, group: &str, wants: impl IntoIterator<Item = TopicPartition>, now: Micros) -> MemberId {
        self.joined += 1;
        let id = self.joined;
        let member = GroupMember { wants: wants.into_iter().collect(), events: VecDeque::new(), heard: now, out: None };
        self.groups.entry(group.to_owned()).or_default().members.insert(id, member);
        self.rebalance(group, now);
        id
    }

    pub fn leave(&mut self, group: &str, member: MemberId, now: Micros) {
        if let Some(state) = self.groups.get_mut(group) {
            state.members.remove(&member);
            state.owners.retain(|_, owner| owner.member != member);
            self.rebalance(group, now);
        }
    }

    /// Frees partitions that the member was told to let go of.
    pub fn release(&mut self, group: &str, member: MemberId, partitions: &[TopicPartition], now: Micros) {
        if let Some(state) = self.groups.get_mut(group) {
            state.owners.retain(|partition, owner| {
                !(owner.member == member && owner.revoked.is_some() && partitions.contains(partition))
            });
            self.rebalance(group, now);
        }
    }

    /// Throws a member out: its partitions go to others at once, and it learns of it when it asks next.
    pub fn throw_out(&mut self, group: &str, member: MemberId, now: Micros) {
        let Some(state) = self.groups.get_mut(group) else { return };
        let Some(out) = state.members.get_mut(&member).filter(|member| member.out.is_none()) else { return };
        // What it was told of and did not hear yet it does not believe to own.
        let unheard: BTreeSet<TopicPartition> = out.events.drain(..).flat_map(|event| assigned(&event)).collect();
        let owned = state.owners.iter().filter(|(_, owner)| owner.member == member && owner.revoked.is_none());
        let owned = owned.map(|(partition, _)| partition.clone()).filter(|partition| !unheard.contains(partition));
        out.out = Some(owned.collect());
        state.owners.retain(|_, owner| owner.member != member);
        self.thrown_out += 1;
        self.rebalance(group, now);
    }

    /// The next thing that a member must know. Asking is also how it is heard.
    pub fn poll(&mut self, group: &str, member: MemberId, now: Micros) -> Option<Event> {
        let state = self.groups.get_mut(group)?;
        let own = state.members.get_mut(&member)?;
        own.heard = now;
        if let Some(believed) = own.out.take() {
            self.rebalance(group, now);
            return (!believed.is_empty()).then_some(Event::Lost(believed)).or_else(|| self.next(group, member));
        }
        self.throw_out_the_silent(group, now);
        self.next(group, member)
    }

    fn next(&mut self, group: &str, member: MemberId) -> Option<Event> {
        self.groups.get_mut(group)?.members.get_mut(&member)?.events.pop_front()
    }

    fn throw_out_the_silent(&mut self, group: &str, now: Micros) {
        let Some(state) = self.groups.get(group) else { return };
        let silent = state.members.iter().filter(|(_, member)| member.out.is_none());
        let silent = silent.filter(|(_, member)| now - member.heard > self.session).map(|(id, _)| *id);
        let late = state.owners.values().filter(|owner| owner.revoked.is_some_and(|at| now - at > self.release_within));
        let out: BTreeSet<MemberId> = silent.chain(late.map(|owner| owner.member)).collect();
        out.into_iter().for_each(|id| self.throw_out(group, id, now));
    }

    /// Members of a group that were not thrown out.
    pub fn members(&self, group: &str) -> Vec<MemberId> {
        let Some(group) = self.groups.get(group) else { return Vec::new() };
        group.members.iter().filter(|(_, member)| member.out.is_none()).map(|(id, _)| *id).collect()
    }

    /// Members that believe to own a partition which the group gave to another.
    pub fn deceived(&self, group: &str) -> usize {
        let Some(group) = self.groups.get(group) else { return 0 };
        let believes = |member: &GroupMember| {
            let mut believed = member.out.iter().flatten();
            believed.any(|partition| group.owners.contains_key(partition))
        };
        group.members.values().filter(|member| believes(member)).count()
    }

    /// Gives free partitions to those that should have them, and asks for those that others should have.
    fn rebalance(&mut self, group: &str, now: Micros) {
        let Some(group) = self.groups.get_mut(group) else { return };
        let (mut given, mut asked) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (partition, target) in group.targets() {
            match group.owners.get_mut(&partition) {
                None => {
                    group.owners.insert(partition.clone(), Owner { member: target, revoked: None });
                    given.entry(target).or_default().push(partition);
                }
                Some(owner) if owner.member != target && owner.revoked.is_none() => {
                    owner.revoked = Some(now);
                    asked.entry(owner.member).or_default().push(partition);
                }
                Some(_) => {}
            }
        }
        self.rebalances += u64::from(!given.is_empty() || !asked.is_empty());
        let asked = asked.into_iter().map(|(member, partitions)| (member, Event::Revoked(partitions)));
        let given = given.into_iter().map(|(member, partitions)| (member, Event::Assigned(partitions)));
        for (member, event) in asked.chain(given) {
            if let Some(member) = group.members.get_mut(&member) {
                member.events.push_back(event);
            }
        }
    }
}

fn assigned(event: &Event) -> Vec<TopicPartition> {
    match event {
        Event::Assigned(partitions) => partitions.clone(),
        _ => Vec::new(),
    }
}

impl Group {
    /// Who should have each partition: as many for each member as for the others, moving few.
    fn targets(&self) -> BTreeMap<TopicPartition, MemberId> {
        let able: BTreeMap<MemberId, &GroupMember> =
            self.members.iter().filter(|(_, member)| member.out.is_none()).map(|(id, member)| (*id, member)).collect();
        let all: BTreeSet<&TopicPartition> = able.values().flat_map(|member| &member.wants).collect();
        let mut load: BTreeMap<MemberId, usize> = able.keys().map(|id| (*id, 0)).collect();
        let (share, mut extra) = (all.len() / able.len().max(1), all.len() % able.len().max(1));
        let mut targets = BTreeMap::new();
        for &partition in &all {
            let keeper = self.owners.get(partition).filter(|owner| owner.revoked.is_none()).map(|owner| owner.member);
            let Some(count) = keeper.and_then(|id| load.get_mut(&id)) else { continue };
            let room = *count < share || (*count == share && extra > 0);
            if let Some(keeper) = keeper.filter(|id| room && able[id].wants.contains(partition)) {
                extra -= usize::from(*count == share);
                *count += 1;
                targets.insert(partition.clone(), keeper);
            }
        }
        for partition in all {
            if !targets.contains_key(partition) {
                let wanting = able.iter().filter(|(_, member)| member.wants.contains(partition));
                if let Some(id) = wanting.map(|(id, _)| *id).min_by_key(|id| load[id]) {
                    load.entry(id).and_modify(|count| *count += 1);
                    targets.insert(partition.clone(), id);
                }
            }
        }
        targets
    }
}
