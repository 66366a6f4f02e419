//! The scenarios: what is done to a running system, how often, and what must hold besides the laws of `check`.

mod batch;
mod cassandra;
mod ci;
mod clock;
mod disk;
mod embedded;
mod kafka;
mod network;
mod speed;

use std::{path::PathBuf, time::Duration};

use crate::{
    backends::{Clusters, Needs},
    check::Figures,
    failure::{Failure, Outcome},
    report::Report,
    world::{Plan, Totals, World},
};

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    needs: Needs,
    /// Events per second.
    rate: u32,
    play: fn(&mut Run<'_>) -> Outcome<Totals>,
}

/// The scenarios of brokers have three of them.
const THREE_BROKERS: Needs = Needs::Clusters { kafka: 3, cassandra: 3 };
const ONE_BROKER: Needs = Needs::Clusters { kafka: 1, cassandra: 3 };

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "steady",
        about: "10 minutes without faults",
        needs: ONE_BROKER,
        rate: 5_000,
        play: speed::steady,
    },
    Scenario {
        name: "kill-speed",
        about: "60 x kill -9 of a speed worker",
        needs: ONE_BROKER,
        rate: 5_000,
        play: speed::kill,
    },
    Scenario {
        name: "pause-speed",
        about: "20 x SIGSTOP of a speed worker beyond the session time-out",
        needs: ONE_BROKER,
        rate: 5_000,
        play: speed::pause_workers,
    },
    Scenario {
        name: "scale-speed",
        about: "speed workers 1 -> 4 -> 1, 30 times",
        needs: ONE_BROKER,
        rate: 5_000,
        play: speed::scale,
    },
    Scenario {
        name: "kill-batch",
        about: "50 x kill -9 of batch, 10 x two leaders at once",
        needs: ONE_BROKER,
        rate: 5_000,
        play: batch::kill,
    },
    Scenario {
        name: "closed-buckets",
        about: "200 closed buckets, read through 10 batch cycles",
        needs: ONE_BROKER,
        rate: 500,
        play: batch::closed_buckets,
    },
    Scenario {
        name: "cassandra-kill",
        about: "9 rolling kills of Cassandra nodes",
        needs: ONE_BROKER,
        rate: 5_000,
        play: cassandra::kill,
    },
    Scenario {
        name: "cassandra-pause",
        about: "6 x SIGSTOP of a Cassandra node for 60 s",
        needs: ONE_BROKER,
        rate: 5_000,
        play: cassandra::pause,
    },
    Scenario {
        name: "cassandra-quorum-lost",
        about: "two of three Cassandra nodes away, twice",
        needs: ONE_BROKER,
        rate: 5_000,
        play: cassandra::quorum_lost,
    },
    Scenario {
        name: "kafka-kill",
        about: "10 rolling kills of Kafka brokers",
        needs: THREE_BROKERS,
        rate: 5_000,
        play: kafka::kill,
    },
    Scenario {
        name: "disk-full-archive",
        about: "no space under the archive, 3 times",
        needs: ONE_BROKER,
        rate: 5_000,
        play: disk::archive,
    },
    Scenario {
        name: "disk-full-spill",
        about: "no space under batch's spill files, 3 times",
        needs: ONE_BROKER,
        rate: 5_000,
        play: disk::spill,
    },
    Scenario {
        name: "disk-full-embedded",
        about: "no space under the embedded store, 3 times",
        needs: Needs::Nothing,
        rate: 2_000,
        play: embedded::full,
    },
    Scenario {
        name: "network",
        about: "connections cut, delayed and reset",
        needs: ONE_NODE,
        rate: 3_000,
        play: network::disturb,
    },
    Scenario { name: "clock", about: "wall clocks jump by hours", needs: ONE_BROKER, rate: 5_000, play: clock::jump },
    Scenario {
        name: "embedded-kill",
        about: "100 x kill -9 of an embedded lamina",
        needs: Needs::Nothing,
        rate: 2_000,
        play: embedded::kill,
    },
    Scenario {
        name: "ci",
        about: "several kinds of faults within three minutes",
        needs: Needs::Pair,
        rate: 1_000,
        play: ci::slice,
    },
];

/// A proxy stands in front of one node of each.
const ONE_NODE: Needs = Needs::Clusters { kafka: 1, cassandra: 1 };

/// One scenario under way.
pub(crate) struct Run<'a> {
    pub(crate) clusters: &'a mut Clusters,
    scenario: &'static Scenario,
    plan: Plan,
    /// What was done.
    pub(crate) faults: Vec<String>,
    /// What was measured besides.
    pub(crate) notes: Vec<String>,
    /// Of a world that failed.
    figures: Option<Figures>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        scenario: &'static Scenario,
        clusters: &'a mut Clusters,
        lamina: PathBuf,
        folder: PathBuf,
        rate: Option<u32>,
        seed: u64,
    ) -> Self {
        let plan = Plan {
            lamina,
            folder,
            addresses: crate::backends::Addresses::default(),
            seed,
            rate: rate.unwrap_or(scenario.rate),
            speed: 3,
            batch: 2,
            serving: 2,
            pace: Duration::from_millis(800),
            epoch: "10s",
            schedule: "*/30 * * * * *",
            takeovers: true,
            through: None,
            more: String::new(),
            archive: None,
        };
        Self { clusters, scenario, plan, faults: Vec::new(), notes: Vec::new(), figures: None }
    }

    pub(crate) fn execute(&mut self) -> Report {
        let played = self.clusters.provide(self.scenario.needs).and_then(|addresses| {
            self.plan.addresses = addresses;
            (self.scenario.play)(self)
        });
        let (totals, failure) = match played {
            Ok(totals) => (totals, None),
            Err(error) => {
                let figures = self.figures.take().unwrap_or_default();
                (Totals { figures, ..Totals::default() }, Some(error.to_string()))
            }
        };
        Report {
            scenario: self.scenario.name,
            rate: self.plan.rate,
            faults: std::mem::take(&mut self.faults),
            notes: std::mem::take(&mut self.notes),
            totals,
            failure,
        }
    }

    /// A copy of the usual plan, to be changed.
    pub(crate) fn plan(&self) -> Plan {
        self.plan.clone()
    }

    /// Plays in a world, and ends it as every world ends.
    pub(crate) fn in_world(
        &mut self,
        mut world: World,
        play: impl FnOnce(&mut Self, &mut World) -> Outcome,
    ) -> Outcome<Totals> {
        let ended = play(self, &mut world).and_then(|()| world.finish());
        if ended.is_err() {
            self.figures = Some(world.checker.figures());
        } else {
            world.tidy();
        }
        let totals = ended?;
        // A scenario that checks next to nothing shows nothing; while a quorum is lost there is nothing to check.
        let least = 30 + totals.seconds / 10;
        if totals.figures.checked < least {
            let why =
                format!("{} answers were checked in {} s, fewer than {least}", totals.figures.checked, totals.seconds);
            self.figures = Some(totals.figures);
            return Err(Failure::Broken(why));
        }
        Ok(totals)
    }
}
