//! Positions that several requests ask for at once are read once: under load a read serves all that waited for the one before.
//!
//! # Invariants
//! - A read that answers a request began after the request asked: an answer is never older than its question.
//! - One read of a thing is under way at a time, and at most one more is waited for.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use lamina_core::{
    Consistency, LogId, Partition, StoreError, ViewId, ViewState, read::Positions, snapshot::Taken, store::Store,
};

type Loaded<V> = Result<V, StoreError>;
type Reading<V> = BoxFuture<'static, Loaded<V>>;

/// Ledgers with their marks, and the states of views.
pub(crate) struct Coalesced {
    store: Arc<dyn Store>,
    taken: Reads<(LogId, Partition, bool), Taken>,
    views: Reads<ViewId, ViewState>,
}

impl Coalesced {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, taken: Reads::default(), views: Reads::default() }
    }
}

#[async_trait]
impl Positions for Coalesced {
    async fn taken(&self, log: &LogId, partition: Partition, consistency: Consistency) -> Loaded<Taken> {
        let key = (log.clone(), partition, consistency == Consistency::Serial);
        let (store, log) = (Arc::clone(&self.store), log.clone());
        self.taken.get(key, async move { store.taken(&log, partition, consistency).await }.boxed()).await
    }

    async fn view(&self, view: &ViewId) -> Loaded<ViewState> {
        let (store, own) = (Arc::clone(&self.store), view.clone());
        self.views.get(view.clone(), async move { Positions::view(&*store, &own).await }.boxed()).await
    }
}

/// Reads under way. They live as long as somebody waits for them.
struct Reads<K, V: Clone>(Arc<Mutex<HashMap<K, Pair<V>>>>);

struct Pair<V: Clone> {
    /// May have begun: nobody joins it any more.
    begun: WeakShared<Reading<V>>,
    /// Begins when that one ends.
    next: Option<WeakShared<Reading<V>>>,
}

impl<K, V: Clone> Default for Reads<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

fn lock<K, V: Clone>(all: &Mutex<HashMap<K, Pair<V>>>) -> MutexGuard<'_, HashMap<K, Pair<V>>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> Reads<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    async fn get(&self, key: K, load: Reading<V>) -> Loaded<V> {
        self.join(key, load).await
    }

    /// The read that this request waits for.
    fn join(&self, key: K, load: Reading<V>) -> Shared<Reading<V>> {
        let mut all = lock(&self.0);
        let known = all.get(&key);
        if let Some(next) = known.and_then(|pair| pair.next.as_ref()?.upgrade()) {
            return next;
        }
        let before = known.and_then(|pair| pair.begun.upgrade());
        let reading = Self::read(Arc::clone(&self.0), key.clone(), before.clone(), load).boxed().shared();
        // It is alive: nobody else has it yet.
        let Some(own) = reading.downgrade() else { return reading };
        match all.get_mut(&key).filter(|_| before.is_some()) {
            Some(pair) => pair.next = Some(own),
            None => drop(all.insert(key, Pair { begun: own, next: None })),
        }
        reading
    }

    async fn read(
        all: Arc<Mutex<HashMap<K, Pair<V>>>>,
        key: K,
        before: Option<Shared<Reading<V>>>,
        load: Reading<V>,
    ) -> Loaded<V> {
        if let Some(before) = before {
            let _ = before.await;
            if let Some(pair) = lock(&all).get_mut(&key)
                && let Some(own) = pair.next.take()
            {
                pair.begun = own;
            }
        }
        let loaded = load.await;
        let mut all = lock(&all);
        if all.get(&key).is_some_and(|pair| pair.next.as_ref().is_none_or(|next| next.upgrade().is_none())) {
            all.remove(&key);
        }
        loaded
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        time::Duration,
    };

    use tokio::time::{sleep, timeout};

    use super::*;

    /// Counts reads; each takes a while and answers how many questions had been asked when it began.
    #[derive(Clone, Default)]
    struct World {
        reads: Arc<Reads<u8, u64>>,
        asked: Arc<AtomicU64>,
        made: Arc<AtomicU64>,
    }

    impl World {
        async fn ask(&self) -> (u64, u64) {
            let question = self.asked.fetch_add(1, SeqCst) + 1;
            let (asked, made) = (Arc::clone(&self.asked), Arc::clone(&self.made));
            let load = async move {
                made.fetch_add(1, SeqCst);
                let seen = asked.load(SeqCst);
                sleep(Duration::from_millis(10)).await;
                Ok(seen)
            };
            (question, self.reads.get(0, load.boxed()).await.unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_is_older_than_its_question_and_many_share_a_read() {
        let world = World::default();
        let asking = (0..300_u64).map(|n| {
            let world = world.clone();
            tokio::spawn(async move {
                sleep(Duration::from_micros(n * 377)).await;
                // Some lose patience, whoever else waits for the same read.
                match n % 7 {
                    3 => timeout(Duration::from_millis(n % 12), world.ask()).await.ok(),
                    _ => Some(world.ask().await),
                }
            })
        });
        for answer in futures::future::join_all(asking).await {
            if let Some((question, seen)) = answer.unwrap() {
                assert!(seen >= question, "question {question} is answered by what was read at {seen}");
            }
        }
        let made = world.made.load(SeqCst);
        assert!((5..60).contains(&made), "{made} reads for 300 questions");
        assert!(lock(&world.reads.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_alone_waits_for_nobody() {
        let world = World::default();
        for _ in 0..5 {
            let began = tokio::time::Instant::now();
            world.ask().await;
            assert_eq!(began.elapsed(), Duration::from_millis(10));
        }
        assert_eq!(world.made.load(SeqCst), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_everybody_left_is_not_waited_for() {
        let world = World::default();
        assert!(timeout(Duration::from_millis(1), world.ask()).await.is_err());
        let began = tokio::time::Instant::now();
        world.ask().await;
        assert_eq!(began.elapsed(), Duration::from_millis(10));
    }
}
