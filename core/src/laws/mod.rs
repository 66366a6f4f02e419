//! The laws of the seam, over generated logs, crashes, takeovers, zombies, delayed compare-and-sets and batch runs.
//!
//! [`world`] is a store and the actors that use it, moved by dice; the actors and the reader are the real code of this
//! crate. At each of the reader's calls the world moves on, so its inputs are of different moments. [`mutants`] switches
//! each rule off and must see a law break: a law that cannot break is worth nothing.
//!
//! The executable specifications that these laws follow are the two seam models of the design: one chunk, and several
//! shards and chunks.

mod mutants;
mod reader;
mod worker;
mod world;

use proptest::prelude::*;

use world::{Faults, World};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    /// Whatever crashes, is delayed or believes that it still owns a partition: an answer is the fold of exactly the
    /// prefix that it names, at least as long as what was sealed when it began.
    #[test]
    fn every_answer_is_the_fold_of_the_prefix_it_names(seed: u64) {
        let end = World::new(seed, Faults::all()).run(220);
        prop_assert!(end.is_ok(), "{}", end.unwrap_err());
    }

    /// Without a worker that flushes on after losing its partition, an answer never steps back.
    #[test]
    fn answers_never_step_back_without_zombies(seed: u64) {
        let end = World::new(seed, Faults { zombies: false, ..Faults::all() }).run(220);
        prop_assert!(end.is_ok(), "{}", end.unwrap_err());
    }
}

/// The generator reaches what the laws speak of: a kind of step that never happens proves nothing.
#[test]
fn every_kind_of_step_happens() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..400 {
        let mut world = World::new(seed, Faults::all());
        world.run(220).expect("the laws hold");
        for (kind, n) in world.counts() {
            *seen.entry(kind).or_insert(0_u64) += n;
        }
    }
    for kind in world::KINDS {
        assert!(seen.get(kind).copied().unwrap_or(0) >= 20, "{kind:?} happened too seldom: {seen:?}");
    }
}
