//! Whether a partition is idle, keeps up, lags or is stuck, told from where it stood when it was looked at before.
//!
//! As Burrow does, by movement and not by a limit on unread records: a partition that is far behind and catches up needs
//! patience, one that stands needs somebody.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use lamina_core::{Micros, Offset, Partition};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{config::FreshnessLimits, instant::millis};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartitionState {
    /// Nothing is unread.
    Idle,
    /// What is unread is younger than the target.
    Running,
    /// The oldest unread record is older than the target, and gets younger.
    CatchingUp,
    /// The oldest unread record is older than the target, and does not get younger.
    Lagging,
    /// Something is unread and nothing moves.
    Stalled,
}

impl PartitionState {
    pub(crate) const ALL: [Self; 5] = [Self::Idle, Self::Running, Self::CatchingUp, Self::Lagging, Self::Stalled];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::CatchingUp => "catching_up",
            Self::Lagging => "lagging",
            Self::Stalled => "stalled",
        }
    }
}

/// Where a partition stands now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stand {
    pub(crate) position: Offset,
    pub(crate) lag_records: u64,
    /// Age of the oldest unread record.
    pub(crate) lag_ms: i64,
}

/// A partition with unread records, as it was found.
struct Course {
    position: Offset,
    /// When `position` was first found.
    since: Micros,
    /// An age of the oldest unread record, and when it was found: between one and two times [`FreshnessLimits::stalled`] ago
    /// if looks come often, else at the look before.
    before: Option<(i64, Micros)>,
    /// What takes the place of `before` next.
    recent: (i64, Micros),
}

/// What was seen of partitions with unread records, as far as was looked.
#[derive(Default)]
pub(crate) struct Movements(Mutex<HashMap<(String, Partition), Course>>);

impl Movements {
    /// How a partition does, and for how many milliseconds it has not moved.
    pub(crate) fn look(
        &self,
        key: (String, Partition),
        now_at: Stand,
        limits: &FreshnessLimits,
        now: Micros,
    ) -> (PartitionState, i64) {
        let Stand { position, lag_records, lag_ms } = now_at;
        let mut courses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lag_records == 0 {
            courses.remove(&key);
            return (PartitionState::Idle, 0);
        }
        let course = courses.entry(key).or_insert(Course { position, since: now, before: None, recent: (lag_ms, now) });
        if course.position != position {
            (course.position, course.since) = (position, now);
        }
        let window = i64::try_from(limits.stalled.as_millis()).unwrap_or(i64::MAX);
        if millis(now - course.recent.1) >= window {
            course.before = Some(std::mem::replace(&mut course.recent, (lag_ms, now)));
        }
        let standing = millis(now - course.since);
        let on_time = u128::try_from(lag_ms).is_ok_and(|lag| lag <= limits.target.as_millis());
        // A partition that catches up has old records too, but moves; one that was idle has stood for long, but its
        // oldest unread record is young.
        let state = if standing >= window && lag_ms >= window {
            PartitionState::Stalled
        } else if on_time {
            PartitionState::Running
        } else if course.before.is_some_and(|(before, _)| lag_ms < before) {
            PartitionState::CatchingUp
        } else {
            PartitionState::Lagging
        };
        (state, standing)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lamina_core::{Clock, clock::ManualClock};
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;
    const LIMITS: fn() -> FreshnessLimits = || FreshnessLimits {
        target: Duration::from_secs(10),
        stalled: Duration::from_secs(30),
        ..FreshnessLimits::default()
    };

    /// A partition whose record `n` was appended at second `n`, looked at by a clock that is set.
    struct Watched(Movements, ManualClock);

    impl Watched {
        fn new() -> Self {
            Self(Movements::default(), ManualClock::default())
        }

        fn at(&self, second: i64, position: i64) -> PartitionState {
            self.1.set(second * SECOND);
            let unread = (second + 1 - position).max(0);
            let lag_ms = if unread == 0 { 0 } else { (second - position) * 1_000 };
            let stand = Stand { position: position as u64, lag_records: unread as u64, lag_ms };
            self.0.look(("edits".to_owned(), 0), stand, &LIMITS(), self.1.now()).0
        }
    }

    #[test]
    fn a_partition_is_stalled_only_if_it_stands_while_an_old_record_is_unread() {
        let movements = Movements::default();
        let look = |position, lag_records, lag_ms, at_s: i64| {
            let stand = Stand { position, lag_records, lag_ms };
            movements.look(("edits".to_owned(), 0), stand, &LIMITS(), at_s * SECOND)
        };
        use PartitionState::{CatchingUp, Idle, Lagging, Running, Stalled};
        assert_eq!(look(5, 0, 0, 0).0, Idle);
        assert_eq!(look(5, 9, 1_000, 3_600).0, Running, "was idle for long, which is no stall");
        assert_eq!(look(6, 9, 90_000, 3_640).0, Lagging, "moves, and was younger before");
        assert_eq!(look(6, 9, 110_000, 3_660).0, Lagging);
        assert_eq!(look(6, 9, 120_000, 3_670), (Stalled, 30_000));
        assert_eq!(look(9, 6, 80_000, 3_671).0, CatchingUp);
        assert_eq!(look(14, 1, 10_000, 3_672).0, Running);
    }

    #[test]
    fn catching_up_is_told_from_falling_behind() {
        let (behind, faster) = (Watched::new(), Watched::new());
        // Both begin 500 s behind; one folds half a record a second, the other three.
        for second in (500..700).step_by(5) {
            let slow = behind.at(second, (second - 500) / 2);
            let fast = faster.at(second, (second - 500) * 3);
            assert_eq!(slow, PartitionState::Lagging, "at {second}");
            let known = if second < 530 { PartitionState::Lagging } else { PartitionState::CatchingUp };
            assert_eq!(
                fast, known,
                "at {second}: before there is something to compare with, lagging is all that is known"
            );
        }
    }

    /// What it should be, from all that was ever seen.
    fn expected(looks: &[(i64, i64)]) -> Option<PartitionState> {
        let &(now, position) = looks.last()?;
        let (unread, lag) = (now + 1 - position, now - position);
        if unread <= 0 {
            return Some(PartitionState::Idle);
        }
        // Since the last look that found nothing unread.
        let busy = looks.iter().rposition(|(at, position)| at + 1 - position <= 0).map_or(0, |idle| idle + 1);
        let stood =
            looks[busy..].iter().rev().take_while(|look| look.1 == position).last().map_or(0, |look| now - look.0);
        if stood >= 30 && lag >= 30 {
            return Some(PartitionState::Stalled);
        }
        // Which of the two it is beyond the target depends on what is compared with.
        (lag <= 10).then_some(PartitionState::Running)
    }

    proptest! {
        #[test]
        fn states_are_what_all_looks_together_say(steps in prop::collection::vec((1_i64..20, 0_i64..40), 1..60)) {
            let watched = Watched::new();
            let (mut second, mut position, mut looks) = (0, 0, Vec::new());
            for (wait, folded) in steps {
                second += wait;
                // Often nothing at all.
                position = (position + if folded < 20 { 0 } else { folded - 20 }).min(second + 1);
                looks.push((second, position));
                let state = watched.at(second, position);
                match expected(&looks) {
                    Some(known) => prop_assert_eq!(state, known, "{:?}", looks),
                    None => prop_assert!(
                        matches!(state, PartitionState::Lagging | PartitionState::CatchingUp), "{:?} {:?}", state, looks
                    ),
                }
                if state == PartitionState::CatchingUp {
                    let lag = second - position;
                    prop_assert!(looks.iter().any(|(at, position)| at - position > lag), "it was never further behind");
                }
            }
        }
    }
}
