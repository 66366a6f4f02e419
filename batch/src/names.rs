//! By which names epochs are folded.
//!
//! Cuts and the cap on series count epochs, so states are kept apart by epoch. Where the events of a series are spread over
//! partitions and epochs, that makes nearly a group of each event, although mostly nothing tells the epochs apart. So those
//! that lie on the same side of every cut of a run go by the name of one of them, and their states merge as they are folded.
//!
//! # Invariants
//! - Every cut covers an epoch if and only if it covers the one by whose name it goes.
//! - That does not hold for cuts of chunks that a run left behind unpublished, and says nothing of caps: where these may
//!   matter, each epoch goes by its own name.

use std::collections::{BTreeMap, BTreeSet};

use lamina_core::{Cut, Offset, Partition};
use serde::{Deserialize, Serialize};

/// Partition and start of an epoch.
pub(crate) type EpochKey = (Partition, Offset);

/// How the epochs of one partition are named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Names {
    Own,
    /// Those that start at or after an offset, by the name beside it; the first offset is 0, and they ascend.
    Shared(Vec<(Offset, EpochKey)>),
}

impl Names {
    /// Of some partitions, such that none of these cuts tells epochs of one name apart.
    pub(crate) fn shared(cuts: &[&Cut], partitions: impl IntoIterator<Item = Partition>) -> BTreeMap<Partition, Self> {
        let mut by_sides = BTreeMap::<Vec<bool>, EpochKey>::new();
        let of_partition = |partition: Partition| {
            let edges: BTreeSet<Offset> = cuts.iter().map(|cut| cut.at(partition)).chain([0]).collect();
            let named = edges.into_iter().map(|edge| {
                let sides = cuts.iter().map(|cut| cut.covers(partition, edge)).collect();
                (edge, *by_sides.entry(sides).or_insert((partition, edge)))
            });
            (partition, Self::Shared(named.collect()))
        };
        partitions.into_iter().map(of_partition).collect()
    }

    /// The name of an epoch of this partition.
    pub(crate) fn of(&self, partition: Partition, start: Offset) -> EpochKey {
        match self {
            Self::Own => (partition, start),
            Self::Shared(names) => {
                let at = names.partition_point(|(from, _)| *from <= start);
                names.get(at.saturating_sub(1)).map_or((partition, start), |(_, name)| *name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn no_cut_tells_an_epoch_from_the_one_by_whose_name_it_goes(
            cuts in vec(vec(0_u64..20, 3), 0..4), epochs in vec((0_u32..4, 0_u64..22), 1..40),
        ) {
            let cuts: Vec<Cut> = cuts.into_iter().map(|cut| (0..).zip(cut).collect()).collect();
            let cuts: Vec<&Cut> = cuts.iter().collect();
            let names = Names::shared(&cuts, 0..4);
            let mut used = BTreeSet::new();
            for (partition, start) in epochs {
                let name = names[&partition].of(partition, start);
                for cut in &cuts {
                    prop_assert_eq!(cut.covers(name.0, name.1), cut.covers(partition, start));
                }
                used.insert(name);
                prop_assert_eq!(Names::Own.of(partition, start), (partition, start));
            }
            // As few as can be: one for each combination of sides.
            let sides = |name: &EpochKey| cuts.iter().map(|cut| cut.covers(name.0, name.1)).collect::<Vec<_>>();
            prop_assert_eq!(used.iter().map(sides).collect::<BTreeSet<_>>().len(), used.len());
        }
    }
}
