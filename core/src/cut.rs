//! How far batch has come: per partition, the offset below which everything is covered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Offset, Partition};

/// Per partition, the offset below which everything is covered; a partition that is not named is covered up to 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut(BTreeMap<Partition, Offset>);

impl Cut {
    pub fn at(&self, partition: Partition) -> Offset {
        self.0.get(&partition).copied().unwrap_or(0)
    }

    /// Whether the epoch that starts at `start` is covered. Coverage ends at epoch starts only, so an epoch is covered
    /// whole or not at all.
    pub fn covers(&self, partition: Partition, start: Offset) -> bool {
        start < self.at(partition)
    }

    pub fn set(&mut self, partition: Partition, offset: Offset) {
        self.0.insert(partition, offset);
    }

    /// The later of both, partition by partition.
    pub fn max(&self, other: &Self) -> Self {
        let mut later = self.clone();
        for (&partition, &offset) in &other.0 {
            if later.at(partition) < offset {
                later.set(partition, offset);
            }
        }
        later
    }

    /// The earlier of both, partition by partition.
    pub fn min(&self, other: &Self) -> Self {
        let partitions = self.0.keys().chain(other.0.keys()).copied();
        partitions.map(|p| (p, self.at(p).min(other.at(p)))).collect()
    }

    /// True if no partition lies below `other`'s.
    pub fn reaches(&self, other: &Self) -> bool {
        other.0.iter().all(|(&partition, &offset)| self.at(partition) >= offset)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Partition, Offset)> + '_ {
        self.0.iter().map(|(&partition, &offset)| (partition, offset))
    }
}

impl FromIterator<(Partition, Offset)> for Cut {
    fn from_iter<I: IntoIterator<Item = (Partition, Offset)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}
