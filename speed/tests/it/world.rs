//! A log, a store, an archive and definitions, workers over them, and what every answer must be.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lamina_core::{
    Clock, Cut, Ledger, LogId, Micros, Offset, Partition, Shard, StoreError, ViewId,
    clock::SystemClock,
    read::{self, BatchScan, Chunks, Inputs, Request},
    snapshot::Wanted,
    store::SpeedChunks,
};
use lamina_metric::{Answer, Ask, Catalog, DimensionValue, SpeedChunk, Versions};
use lamina_speed::{Config, Deps, SpeedError, run};
use object_store::local::LocalFileSystem;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{memory_log::MemoryLog, memory_store::MemoryStore};

pub(crate) const TOPIC: &str = "edits";
pub(crate) const WINDOW: Micros = 10_000_000;

pub(crate) const DEFINITIONS: &str = r#"
[source.edits]
format = "json"
time = "time"
id = "id"
dedup_window = "10s"
[source.edits.fields]
time = "timestamp"
id = "string"
channel = "string"
added = "int64"

[metric.added]
source = "edits"
where = "channel <> 'hidden'"
value = "added"
dimensions = ["channel"]
aggregates = ["count", "sum"]
grain = "1m"
shards = 2
"#;

/// The machine's clock, moved on at will.
#[derive(Default)]
pub(crate) struct ShiftedClock(pub(crate) AtomicI64);

impl Clock for ShiftedClock {
    fn now(&self) -> Micros {
        SystemClock.now() + self.0.load(Ordering::SeqCst)
    }
}

/// (channel, bucket) → count and sum.
pub(crate) type Table = BTreeMap<(String, Micros), (u64, i128)>;

pub(crate) struct World {
    pub(crate) log: MemoryLog,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) archive: TempDir,
    pub(crate) catalog: watch::Sender<Arc<Catalog>>,
    pub(crate) clock: Arc<ShiftedClock>,
    pub(crate) config: Config,
}

pub(crate) struct Worker {
    pub(crate) stop: CancellationToken,
    pub(crate) running: JoinHandle<Result<(), SpeedError>>,
}

impl Worker {
    /// Stops as a process does that is asked to.
    pub(crate) async fn drain(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.running).await.expect("drains").unwrap().unwrap();
    }

    /// Stops as a process does that is killed.
    pub(crate) async fn crash(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

pub(crate) fn compile(more: &str, versions: &Versions) -> Arc<Catalog> {
    let text = format!("{DEFINITIONS}\n{more}");
    Arc::new(Catalog::compile(&[("test.toml".to_owned(), text)], versions).unwrap())
}

impl World {
    pub(crate) fn new(partitions: usize) -> Self {
        Self::with(partitions, "")
    }

    pub(crate) fn with(partitions: usize, more: &str) -> Self {
        let clock = Arc::new(ShiftedClock::default());
        let log = MemoryLog::default();
        log.make(TOPIC, partitions);
        Self {
            log,
            store: Arc::new(MemoryStore::new(Arc::clone(&clock) as _)),
            archive: tempfile::tempdir().unwrap(),
            catalog: watch::channel(compile(more, &Versions::default())).0,
            clock,
            config: Config {
                flush_interval: Duration::from_millis(20),
                epoch: Duration::from_millis(150),
                ttl: Duration::from_secs(3600),
                ..Config::default()
            },
        }
    }

    pub(crate) fn start(&self, group: &str) -> Worker {
        let deps = Deps {
            log: Arc::new(self.log.clone()),
            store: Arc::clone(&self.store) as _,
            archive: Arc::new(LocalFileSystem::new_with_prefix(self.archive.path()).unwrap()),
            catalog: self.catalog.subscribe(),
            clock: Arc::clone(&self.clock) as _,
        };
        let config = Config { group: group.to_owned(), ..self.config.clone() };
        let stop = CancellationToken::new();
        Worker { running: tokio::spawn(run(deps, config, stop.clone())), stop }
    }

    pub(crate) fn id(&self) -> LogId {
        LogId::new("edits", "t1")
    }

    pub(crate) fn ledger(&self, partition: Partition) -> Ledger {
        self.store.ledger(&self.id(), partition)
    }

    pub(crate) fn push(&self, partition: Partition, appended_at: Micros, id: &str, channel: &str, added: i64) {
        let minute = added.unsigned_abs() % 3;
        let payload = format!(
            r#"{{"id": "{id}", "time": "2024-05-01T00:0{minute}:30Z", "channel": "{channel}", "added": {added}}}"#
        );
        self.log.push(TOPIC, partition, appended_at, Some(&payload));
    }

    /// What readers see of a metric's full view, and the prefix that it folds.
    pub(crate) async fn read(&self, metric: &str) -> Result<(Table, BTreeMap<Partition, Offset>), read::ReadError> {
        let inputs = self.inputs(metric).await?;
        let metric = Arc::clone(&self.catalog.borrow().metrics[metric]);
        let (count, sum) = (Ask::parse("count", &metric).unwrap(), Ask::parse("sum", &metric).unwrap());
        let mut table = Table::new();
        for piece in &inputs.speed {
            let chunk = &piece.chunk;
            for (row, (series, bucket)) in chunk.rows.iter().enumerate() {
                let values = chunk.series[*series as usize].values().unwrap();
                let [DimensionValue::Str(channel)] = values.as_slice() else { panic!("one text dimension") };
                let cell = table.entry((channel.clone(), *bucket)).or_default();
                let number = |ask| match chunk.states.answer(row, ask).unwrap() {
                    Answer::Int(value) => value,
                    other => panic!("an integer, not {other:?}"),
                };
                cell.0 += number(&count) as u64;
                cell.1 += number(&sum);
            }
        }
        Ok((table, inputs.snapshot.positions()))
    }

    pub(crate) async fn inputs(&self, metric: &str) -> Result<Inputs<SpeedChunk, ()>, read::ReadError> {
        let metric = Arc::clone(&self.catalog.borrow().metrics[metric]);
        let view = &metric.views[0];
        let (partitions, shards): (Vec<_>, Vec<_>) =
            (self.log.ends(TOPIC).into_keys().collect(), (0..view.shards).collect());
        let request = Request {
            log: &self.id(),
            partitions: &partitions,
            view: &view.id,
            since: metric.since,
            shards: &shards,
            width: metric.grain,
            periods: 0..1,
            series: None,
            now: self.clock.now(),
        };
        read::read(&*self.store, &FromStore(&self.store), &request).await
    }

    /// The fold of a prefix of the log, by the rules as they are written down.
    pub(crate) fn expected(&self, positions: &BTreeMap<Partition, Offset>) -> Table {
        let mut table = Table::new();
        for (&partition, &end) in positions {
            let (mut clock, mut seen) = (0, HashMap::new());
            for record in self.log.records(TOPIC, partition).into_iter().filter(|record| record.offset < end) {
                clock = clock.max(record.appended_at);
                let Ok(event) = serde_json::from_slice::<serde_json::Value>(&record.payload) else { continue };
                let before: Option<Micros> = seen.insert(event["id"].as_str().unwrap().to_owned(), clock);
                let channel = event["channel"].as_str().unwrap();
                if before.is_some_and(|before| clock - before <= WINDOW) || channel == "hidden" {
                    continue;
                }
                let minute: Micros = event["time"].as_str().unwrap()[15..16].parse().unwrap();
                let bucket = 1_714_521_600_000_000 + minute * 60_000_000;
                let cell = table.entry((channel.to_owned(), bucket)).or_default();
                cell.0 += 1;
                cell.1 += i128::from(event["added"].as_i64().unwrap());
            }
        }
        table
    }

    /// Every answer is the fold of exactly the prefix that it says.
    pub(crate) async fn check(&self) -> BTreeMap<Partition, Offset> {
        let (table, positions) = self.read("added").await.expect("what ledger and marks name is there");
        assert_eq!(table, self.expected(&positions), "the answer at {positions:?}");
        positions
    }

    /// Waits until all of the log is visible, checking every answer on the way.
    pub(crate) async fn all_visible(&self) {
        self.until("all of the log is visible", async || self.check().await == self.log.ends(TOPIC)).await;
    }

    /// Waits until all of the log is sealed.
    pub(crate) async fn all_sealed(&self) {
        let sealed = async || self.log.ends(TOPIC).iter().all(|(&p, &end)| self.ledger(p).sealed_end() == end);
        self.until("all of the log is sealed", sealed).await;
    }

    pub(crate) async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !done().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap_or_else(|_| panic!("not within 30 s: {what}"));
    }
}

struct FromStore<'a>(&'a MemoryStore);

#[async_trait]
impl Chunks for FromStore<'_> {
    type Speed = SpeedChunk;
    type Batch = ();

    async fn whole(&self, view: &ViewId, shard: Shard, wanted: &Wanted) -> Result<Option<SpeedChunk>, StoreError> {
        let lamina_core::snapshot::WantedPart::Whole(end) = wanted.part else { panic!("a sealed epoch") };
        let found = self.0.whole(view, shard, wanted.slot, wanted.epoch, end).await?;
        Ok(found.map(|bytes| SpeedChunk::decode(&bytes).unwrap()))
    }

    async fn deltas(
        &self,
        view: &ViewId,
        shard: Shard,
        wanted: &Wanted,
        range: Range<u64>,
    ) -> Result<Vec<SpeedChunk>, StoreError> {
        let found = self.0.deltas(view, shard, wanted.slot, wanted.epoch, range).await?;
        Ok(found.iter().map(|(_, bytes)| SpeedChunk::decode(bytes).unwrap()).collect())
    }

    async fn batch(&self, _: &BatchScan<'_>) -> Result<Vec<()>, StoreError> {
        Ok(Vec::new())
    }

    fn cut(&(): &()) -> &Cut {
        unreachable!("there is no batch here")
    }
}
