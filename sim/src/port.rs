//! The way from a process to what is outside it: every call is delayed, fails, arrives late or twice, as the seed says.

use std::time::Duration;

use lamina_core::{Clock, Micros};
use tokio::time::sleep;

use crate::{
    counts::Happening,
    world::{Done, Effect, Role, Shared, Who, World},
};

/// How long a process waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_millis(600);

/// One life's way out.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) world: Shared,
    pub(crate) who: Who,
}

/// Why a call failed, from where the caller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing happened.
    NotDone,
    /// Something may have happened, or may happen later.
    Unknown,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Prompt,
    NotSent,
    AnswerLost,
    Late(Micros),
    Twice(Micros),
}

/// Delays before and after.
type Delays = (Duration, Duration);

impl Port {
    /// Whether the process may still call: one that is to die at this call never hears of it again.
    async fn live(&self) {
        let doomed = {
            let mut world = self.world.lock();
            let life = world.life(self.who);
            match &mut life.calls_left {
                Some(0) => {
                    life.halted = true;
                    true
                }
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => false,
            }
        };
        if doomed {
            std::future::pending::<()>().await;
        }
    }

    fn delays(world: &mut World) -> Delays {
        let (calm, slow) = (world.calm, world.plan.slow);
        let mut delay = || match () {
            () if calm => Duration::ZERO,
            () if world.random.permille(slow / 8) => Duration::from_millis(world.random.below(2_500)),
            () if world.random.permille(slow * 4) => Duration::from_millis(1 + world.random.below(60)),
            () => Duration::ZERO,
        };
        (delay(), delay())
    }

    /// Looks at the world, or fails to.
    pub(crate) async fn ask<T>(&self, look: impl FnOnce(&mut World) -> T + Send) -> Result<T, Fault> {
        self.live().await;
        let ((before, after), fails) = {
            let mut world = self.world.lock();
            let delays = Self::delays(&mut world);
            let (calm, failed) = (world.calm, world.plan.read_failed);
            (delays, !calm && world.random.permille(failed))
        };
        wait(before).await;
        if fails {
            self.world.lock().count(Happening::ReadFailed);
            wait(PATIENCE).await;
            return Err(Fault::NotDone);
        }
        let found = look(&mut self.world.lock());
        wait(after).await;
        Ok(found)
    }

    fn fate(world: &mut World, effect: &Effect) -> Fate {
        let plan = &world.plan;
        let (not_sent, lost, late) = (plan.not_sent, plan.answer_lost, plan.late);
        let twice = if effect.is_conditional() { 0 } else { plan.twice };
        // What decides is tried harder than what repeats itself.
        let weight = if effect.is_conditional() { 3 } else { 1 };
        if world.calm {
            return Fate::Prompt;
        }
        let far = |world: &mut World| {
            let at_most = *world.random.pick(&[400_000, 3_000_000, 15_000_000]);
            50_000 + world.random.within(0, at_most)
        };
        match world.random.below(1000) {
            at if at < not_sent * weight => Fate::NotSent,
            at if at < (not_sent + lost) * weight => Fate::AnswerLost,
            at if at < (not_sent + lost + late) * weight => Fate::Late(far(world)),
            at if at < (not_sent + lost + late) * weight + twice => Fate::Twice(far(world)),
            _ => Fate::Prompt,
        }
    }

    /// Writes, and says what it did, or that this is not known.
    pub(crate) async fn write(&self, effect: Effect) -> Result<Done, Fault> {
        self.live().await;
        let (fate, (before, after)) = {
            let mut world = self.world.lock();
            let fate = Self::fate(&mut world, &effect);
            (fate, Self::delays(&mut world))
        };
        let mut under_way = UnderWay { port: self, effect: Some(effect) };
        wait(before).await;
        let Some(effect) = under_way.effect.take() else { return Err(Fault::Unknown) };
        match fate {
            Fate::Prompt => {
                let done = self.apply(&effect);
                wait(after).await;
                Ok(done)
            }
            Fate::Twice(later) => {
                let done = self.apply(&effect);
                let mut world = self.world.lock();
                world.count(Happening::Twice);
                world.send(self.who, effect, later);
                Ok(done)
            }
            Fate::NotSent => {
                self.world.lock().count(Happening::NotSent);
                wait(PATIENCE).await;
                Err(Fault::NotDone)
            }
            Fate::AnswerLost => {
                self.lose_answer(&effect);
                wait(PATIENCE).await;
                Err(Fault::Unknown)
            }
            Fate::Late(later) => {
                self.delay(effect, later);
                wait(PATIENCE).await;
                Err(Fault::Unknown)
            }
        }
    }

    fn apply(&self, effect: &Effect) -> Done {
        let mut world = self.world.lock();
        let done = world.apply(self.who, effect);
        world.note(format_args!("{} {}: {done:?}", self.who, effect.name()));
        done
    }

    /// Applied, or in part, but the caller does not learn of it.
    fn lose_answer(&self, effect: &Effect) {
        let mut world = self.world.lock();
        world.count(Happening::AnswerLost);
        let before = match effect {
            Effect::Commit { log, partition, .. } => Some(world.store.ledger(log, *partition)),
            _ => None,
        };
        let done = world.apply(self.who, effect);
        world.note(format_args!("{} {}: {done:?}, answer lost", self.who, effect.name()));
        if let (Effect::Commit { log, partition, .. }, Some(before)) = (effect, before)
            && world.random.permille(600)
        {
            world.veil(log, *partition, before);
        }
    }

    /// Each part arrives now, later, or never.
    fn delay(&self, effect: Effect, later: Micros) {
        let mut world = self.world.lock();
        world.note(format_args!("{} {} is late", self.who, effect.name()));
        let parts = effect.parts();
        if parts.len() == 1 {
            return world.send(self.who, effect, later);
        }
        for part in parts {
            match world.random.below(3) {
                0 => {
                    world.count(Happening::Partial);
                    world.apply(self.who, &part);
                }
                1 => world.send(self.who, part, later),
                _ => {}
            }
        }
    }
}

/// A write that waits to be sent: if its process dies meanwhile, it may be on its way all the same.
struct UnderWay<'a> {
    port: &'a Port,
    effect: Option<Effect>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Some(effect) = self.effect.take() else { return };
        let mut world = self.port.world.lock();
        if world.random.permille(500) {
            return;
        }
        if let Effect::File { path, bytes, create } = effect {
            // Without its answer a file may be left in half.
            let half = bytes.slice(..bytes.len() / 2);
            world.count(Happening::HalfWritten);
            return world.send(self.port.who, Effect::File { path, bytes: half, create }, 0);
        }
        let later = world.random.within(0, 4_000_000);
        drop(world);
        self.port.delay(effect, later);
    }
}

pub(crate) async fn wait(duration: Duration) {
    if !duration.is_zero() {
        sleep(duration).await;
    }
}

/// A process's clock: the world's, a little off.
pub(crate) struct SimClock(pub(crate) Port);

impl Clock for SimClock {
    fn now(&self) -> Micros {
        let mut world = self.0.world.lock();
        let skew = world.life(self.0.who).skew;
        world.now + skew
    }
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Speed, Self::Batch, Self::Serving];
}
