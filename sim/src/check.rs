//! The laws that answers and the final account are held against.

use std::collections::{BTreeMap, BTreeSet};

use lamina_core::{Epoch, Micros, Offset, Partition};

use crate::{
    counts::Happening,
    oracle::{Answer, Fate, Oracle, Prefix, Table, is_exact},
    plan::TOPIC,
    query::{Asked, Layer},
    world::World,
};

/// Ends of epochs that may have been sealed while an answer was read: so many are tried both ways.
const AMBIGUOUS: usize = 4;

#[derive(Default)]
pub(crate) struct Checks {
    pub(crate) answered_finally: u64,
}

/// What is sealed for every quorum reader to see.
pub(crate) fn sealed_now(world: &World) -> BTreeMap<Partition, Offset> {
    let log = world.log_id();
    world.partitions().map(|partition| (partition, world.ledger_at_quorum(&log, partition).sealed_end())).collect()
}

impl Checks {
    pub(crate) fn reply(&mut self, world: &mut World, oracle: &Oracle, asked: &Asked, status: u16, body: &[u8]) {
        let text = || format!("{}: {}", asked.query.uri(), String::from_utf8_lossy(body));
        world.note(format_args!("{} answers {} with {status}", asked.who, asked.number));
        match status {
            200 => {}
            503 | 504 if !asked.is_final => return world.count(Happening::Unavailable),
            404 if asked.query.metric == "late" => return,
            _ => return world.violate("queries-are-answered", format!("{status} for {}", text())),
        }
        let Some(answer) = Answer::read(&asked.query, body) else {
            return world.violate("answers-keep-the-contract", text());
        };
        self.answered_finally += u64::from(asked.is_final);
        let seen = judge(world, oracle, asked, &answer);
        if let Some((law, seen)) = seen {
            world.violate(law, format!("{seen}; answer {} to {}", asked.number, text()));
        }
    }

    /// Every offset of every sealed epoch became what the oracle says.
    pub(crate) fn conservation(&self, world: &mut World, oracle: &Oracle) {
        let accounts: Vec<((Partition, Offset), Epoch)> =
            world.accounts.iter().map(|(at, epoch)| (*at, epoch.clone())).collect();
        let mut next: BTreeMap<Partition, Offset> = BTreeMap::new();
        for ((partition, start), epoch) in accounts {
            let end = epoch.end.unwrap_or(start);
            let log_start = world.log.partition(TOPIC, partition).map_or(0, |log| log.start);
            // What the log had lost before lamina first saw the partition is in no epoch.
            let chains = next.insert(partition, end).map_or(start <= log_start, |end| end == start);
            if !chains {
                world.violate("epochs-conserve", format!("epochs of partition {partition} leave a gap before {start}"));
            }
            let Some(counts) = epoch.archive.as_ref().map(|archive| archive.counts) else { continue };
            let fates = oracle.fates(partition, start, end);
            let number = |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count() as u64;
            let expected = [
                number(|fate| matches!(fate, Fate::Event(_))),
                number(|fate| *fate == Fate::Dead),
                number(|fate| *fate == Fate::Duplicate),
                number(|fate| *fate == Fate::Absent),
            ];
            let found = [counts.accepted, counts.dead, counts.duplicates, counts.absent];
            if epoch.lost.is_none() && expected != found {
                let seen = format!("{partition}: {start}..{end} holds {expected:?}, accounted for as {found:?}");
                world.violate("epochs-conserve", seen);
            }
        }
    }
}

fn judge(world: &mut World, oracle: &Oracle, asked: &Asked, answer: &Answer) -> Option<(&'static str, String)> {
    let query = &asked.query;
    if answer.overflow {
        world.count(Happening::Overflow);
    }
    if answer.retained_from.is_some() {
        world.count(Happening::Horizon);
    }
    if answer.expired.is_some() {
        world.count(Happening::Rule);
    }
    if let Some(seen) = positions(world, asked, answer) {
        return Some(seen);
    }
    if let Some(seen) = completeness(world, asked, answer) {
        return Some(("what-is-missing-is-named-and-real", seen));
    }
    if !is_exact(query.layer) {
        return None;
    }
    fold(world, oracle, asked, answer).map(|seen| ("answers-fold-the-prefix-they-name", seen))
}

/// `complete: false` names what justifies it.
fn completeness(world: &mut World, asked: &Asked, answer: &Answer) -> Option<String> {
    if answer.complete {
        return (!answer.missing.is_empty()).then(|| "complete, and something is missing".to_owned());
    }
    world.count(Happening::Incomplete);
    let filtered_overflow = answer.overflow && asked.query.filter.is_some();
    if answer.missing.is_empty() && !filtered_overflow {
        return Some("incomplete, and nothing is missing".to_owned());
    }
    for (partition, from, to, why) in &answer.missing {
        let start = world.log.partition(TOPIC, *partition).map_or(0, |log| log.start);
        let real = match why.as_str() {
            "lost" => *from < start,
            "expired" => world.plan.ttl_s < 600,
            "not_built" => answer.version > 1 || asked.query.metric == "late",
            _ => false,
        };
        if !real || (asked.is_final && why != "lost") {
            return Some(format!("{from}..{to} of partition {partition} is said to be missing: {why}"));
        }
    }
    None
}

/// Sealed offsets do not go back, and `at_least` is honoured.
fn positions(world: &mut World, asked: &Asked, answer: &Answer) -> Option<(&'static str, String)> {
    for partition in world.partitions() {
        let position = answer.positions.get(&partition).copied().unwrap_or(0);
        let sealed = asked.sealed.get(&partition).copied().unwrap_or(0);
        if asked.query.layer == Layer::Batch {
            if answer.cut.get(&partition).copied().unwrap_or(0) > position {
                return Some(("answers-fold-the-prefix-they-name", format!("batch at {position} in {partition}")));
            }
        } else if position < sealed {
            return Some(("sealed-offsets-never-go-back", format!("{position} in {partition}, {sealed} was sealed")));
        }
    }
    if let Some((_, wanted)) = &asked.query.at_least {
        world.count(Happening::AtLeast);
        for (partition, past) in wanted {
            if answer.positions.get(partition).copied().unwrap_or(0) < *past {
                return Some(("at-least-is-honoured", format!("{past} of {partition} was asked for")));
            }
        }
    }
    None
}

/// The answer is the fold of exactly the prefix that it names.
fn fold(world: &World, oracle: &Oracle, asked: &Asked, answer: &Answer) -> Option<String> {
    let ends = |until: Micros| -> BTreeMap<Partition, BTreeSet<Offset>> {
        let before = |ends: &BTreeMap<Offset, Micros>| {
            ends.iter().filter(|(_, at)| **at <= until).map(|(end, _)| *end).collect()
        };
        world.sealed.iter().map(|(partition, ends)| (*partition, before(ends))).collect()
    };
    let prefix = Prefix {
        positions: answer.positions.clone(),
        without: answer.missing_because(&["not_built", "expired"]),
        epoch_ends: ends(world.now),
        retained_from: answer.retained_from,
        expired: answer.expired,
    };
    let query = &asked.query;
    let table = |prefix: &Prefix| oracle.expected(query, answer.version, prefix);
    let cut_off = |partition: Partition| world.log.partition(TOPIC, partition).map_or(0, |log| log.start);
    if world.partitions().any(|partition| cut_off(partition) > 0) {
        // What was read before it was lost may count or not, and so may who came first under a cap.
        let mut least = prefix.clone();
        least.without.extend(world.partitions().map(|partition| (partition, 0, cut_off(partition))));
        let most = Prefix { without: Vec::new(), ..prefix };
        let most = table(&most);
        let total = |table: &Table| table.values().map(|cell| cell.count).sum::<u64>();
        let (least, most, found) = (total(&table(&least)), total(&most), total(&answer.table));
        let outside = query.filter.is_none() && !(least..=most).contains(&found);
        return outside.then(|| format!("{found} events, the log holds {least} to {most}"));
    }
    if !prefix.without.is_empty() {
        // Chunks of a run that is not published yet may hold what is named as missing.
        let most = Prefix { without: Vec::new(), ..prefix.clone() };
        return oracle.outside(&table(&prefix), &table(&most), &answer.table);
    }
    let compare = |prefix: &Prefix| oracle.differences(query, &table(prefix), &answer.table);
    let first = compare(&prefix)?;
    let certain = ends(asked.at);
    let ambiguous: Vec<(Partition, Offset)> = prefix
        .epoch_ends
        .iter()
        .flat_map(|(partition, all)| all.iter().map(|end| (*partition, *end)))
        .filter(|(partition, end)| !certain.get(partition).is_some_and(|known| known.contains(end)))
        .take(AMBIGUOUS)
        .collect();
    for choice in 1..1_u32 << ambiguous.len() {
        let mut other = prefix.clone();
        for (at, (partition, end)) in ambiguous.iter().enumerate() {
            if choice & (1 << at) != 0
                && let Some(ends) = other.epoch_ends.get_mut(partition)
            {
                ends.remove(end);
            }
        }
        compare(&other)?;
    }
    Some(first)
}
