//! Sources that are tables, here one in memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_batch::{Config, Deps, Schedule};
use lamina_core::{
    Cut, Job, JobKind, JobRequest, JobState, Micros, StoreError, TableName, Tables,
    clock::SystemClock,
    generation::load_view,
    jobs,
    read::base_ranges,
    store::BatchChunks,
    tables::{CellChange, Column, ColumnType, Page, Reading, Role, RowKey, Table, TableRow, TokenRange, Value},
};
use lamina_metric::{BatchChunk, Metric, Series};
use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use crate::world::{DEFINITIONS, World};

const TABLE: &str = r#"
[source.people]
kind = "cassandra"
table = "k.people"
time = "seen"
[source.people.fields]
town = "string"
age = "int64"
seen = "timestamp"
[source.people.update]
adult = "age >= 18"
[[source.people.expire]]
where = "age > 100"

[metric.people]
source = "people"
value = "age"
dimensions = ["town"]
aggregates = ["count", "sum"]
grain = "1m"
rollups = ["1h"]
max_series = 3
"#;

const RANGES: i64 = 16;

/// Age, and whether of age once that was written; by token.
type People = BTreeMap<i64, (i64, Option<bool>)>;

#[derive(Default)]
struct Memory {
    people: Mutex<People>,
    /// Pages that are given before one fails.
    pages_left: AtomicU64,
    updates: AtomicU64,
}

#[derive(Clone)]
struct Handle(Arc<Memory>);

#[async_trait]
impl Tables for Handle {
    async fn describe(&self, _: &TableName) -> Result<Vec<Column>, StoreError> {
        let column = |name: &str, role, kind| Column {
            name: name.to_owned(),
            role,
            kind,
            declared: format!("{kind:?}"),
            writable: true,
        };
        Ok(vec![
            column("town", Role::PartitionKey, ColumnType::Text),
            column("age", Role::Regular, ColumnType::Int),
            column("seen", Role::Regular, ColumnType::Time),
            column("adult", Role::Regular, ColumnType::Bool),
        ])
    }

    async fn open(&self, _: Reading) -> Result<Arc<dyn Table>, StoreError> {
        Ok(Arc::new(self.clone()))
    }
}

fn key(token: i64) -> RowKey {
    RowKey(vec![Bytes::copy_from_slice(&token.to_be_bytes())])
}

fn token(key: &RowKey) -> i64 {
    i64::from_be_bytes(key.0[0][..].try_into().unwrap())
}

#[async_trait]
impl Table for Handle {
    fn ranges(&self) -> Vec<TokenRange> {
        (0..RANGES).map(|at| TokenRange { after: at * 100 - 1, upto: at * 100 + 99 }).collect()
    }

    async fn page(&self, range: TokenRange, from: Option<Bytes>) -> Result<Page, StoreError> {
        let left = self.0.pages_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| StoreError::Unavailable("the node is gone".to_owned()))?;
        let after = from.map_or(range.after, |from| i64::from_be_bytes(from[..].try_into().unwrap()));
        let people = self.0.people.lock().unwrap();
        let mut rows: Vec<TableRow> = Vec::new();
        let within = people.range(after + 1..).take_while(|(token, _)| **token <= range.upto);
        for (&token, (age, adult)) in within.take(7) {
            let town = Value::Text(format!("t{}", token % 5));
            let seen = Value::Time(1_767_225_600_000_000 + token * 1_000_000);
            let adult = adult.map_or(Value::Null, Value::Bool);
            let values = vec![town, Value::Int(*age), seen, adult];
            rows.push(TableRow { key: key(token), values, written_at: vec![Some(5)], ttl: None });
        }
        let next = rows.last().filter(|_| rows.len() == 7).map(|row| row.key.0[0].clone());
        Ok(Page { rows, next })
    }

    async fn update(&self, cells: &[CellChange]) -> Result<(), StoreError> {
        self.0.updates.fetch_add(cells.len() as u64, Ordering::SeqCst);
        let mut people = self.0.people.lock().unwrap();
        for CellChange { key, value, at, .. } in cells {
            let Value::Bool(adult) = value else { panic!("{value:?}") };
            assert_eq!(*at, 6, "just after what it replaces");
            people.entry(token(key)).and_modify(|person| person.1 = Some(*adult));
        }
        Ok(())
    }

    async fn delete(&self, keys: &[RowKey], _: Micros) -> Result<(), StoreError> {
        self.0.people.lock().unwrap().retain(|token, _| !keys.contains(&key(*token)));
        Ok(())
    }
}

/// Ages from 0 to 119, a row each third token.
fn world() -> (World, Arc<Memory>) {
    let people = (0..RANGES * 100).step_by(3).map(|token| (token, (token % 120, None))).collect();
    let memory = Memory { people: Mutex::new(people), pages_left: u64::MAX.into(), updates: 0.into() };
    (World::new(&format!("{DEFINITIONS}{TABLE}")), Arc::new(memory))
}

async fn ran(world: &World, tables: Option<Arc<dyn Tables>>, request: JobRequest) -> (Job, Json) {
    let deps = Deps { clock: Arc::new(SystemClock), tables, ..world.deps.clone() };
    let lease = Duration::from_millis(300);
    let config = Config {
        schedule: Schedule::off(),
        memory_bytes: 64 << 20,
        parallelism: 2,
        lease,
        retries: 0,
        ..Config::default()
    };
    let job = Job::new(JobKind::Recompute, request, 1);
    jobs::create(&*world.store, &job).await.unwrap();
    let stop = CancellationToken::new();
    let leader = tokio::spawn(lamina_batch::run(deps, config, stop.clone()));
    let ended = loop {
        let job = jobs::load(&*world.store, &job.id).await.unwrap().unwrap().1;
        if job.state.is_finished() {
            break job;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    stop.cancel();
    leader.await.unwrap().unwrap();
    let result = ended.result.as_deref().map_or(Json::Null, |text| serde_json::from_str(text).unwrap());
    (ended, result)
}

fn people() -> JobRequest {
    JobRequest { metrics: vec!["people".to_owned()], ..JobRequest::default() }
}

/// How many events the published states of one view hold, by series.
async fn counts(world: &World, metric: &Metric, view: usize, width: Micros) -> BTreeMap<Series, u64> {
    let view = &metric.views[view];
    let (_, state) = load_view(&*world.store, &view.id).await.unwrap();
    assert_eq!((&state.published.cut, state.published.bases.len()), (&Cut::default(), 1));
    let mut counts = BTreeMap::new();
    for (periods, base) in base_ranges(&state.published.bases, &(Micros::MIN..Micros::MAX)) {
        for shard in 0..view.shards.max(1) {
            let rows = world.store.scan(&view.id, width, base, shard, periods.clone(), None).await.unwrap();
            for row in rows {
                let chunk = BatchChunk::decode(&row.body).unwrap();
                let events: u64 = (0..chunk.buckets.len()).map(|at| chunk.states.count(at)).sum();
                *counts.entry(Series::from_bytes(row.key.series)).or_default() += events;
            }
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scan_replaces_the_one_before() {
    let (world, memory) = world();
    let tables: Arc<dyn Tables> = Arc::new(Handle(Arc::clone(&memory)));
    let metric = Arc::clone(&world.deps.catalog.borrow().metrics["people"]);
    let all = memory.people.lock().unwrap().len() as u64;
    let old = memory.people.lock().unwrap().values().filter(|(age, _)| *age > 100).count() as u64;

    let dry = JobRequest { dry_run: true, ..people() };
    let (job, result) = ran(&world, Some(Arc::clone(&tables)), dry).await;
    let said = &result["sources"]["people"];
    assert_eq!(
        (&said["expired"], &said["updated"], &said["written"]),
        (&old.into(), &(all - old).into(), &false.into())
    );
    assert_eq!((job.state, memory.updates.load(Ordering::SeqCst)), (JobState::Succeeded, 0), "{result}");

    let (job, result) = ran(&world, Some(Arc::clone(&tables)), people()).await;
    let said = &result["sources"]["people"];
    assert_eq!(
        (&said["rows"], &said["ranges"], &said["expired"]),
        (&all.into(), &RANGES.into(), &old.into()),
        "{result}"
    );
    assert_eq!((job.progress.unit.as_str(), job.progress.total), ("ranges", RANGES.unsigned_abs()));
    for width in metric.widths() {
        let total = counts(&world, &metric, 1, width).await;
        assert_eq!(total.values().sum::<u64>(), all - old);
        let by_town = counts(&world, &metric, 0, width).await;
        assert_eq!(by_town.values().sum::<u64>(), all - old);
        assert_eq!(by_town.len(), 4, "three series and what is beyond them, over the table as a whole");
    }

    memory.people.lock().unwrap().retain(|token, _| token % 2 == 0);
    let (_, result) = ran(&world, Some(tables), people()).await;
    let left = memory.people.lock().unwrap().len() as u64;
    assert_eq!(
        (&result["sources"]["people"]["updated"], &result["sources"]["people"]["rows"]),
        (&0.into(), &left.into())
    );
    assert_eq!(counts(&world, &metric, 1, metric.grain).await.values().sum::<u64>(), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_breaks_off_publishes_nothing_and_the_next_goes_on() {
    let (world, memory) = world();
    let tables: Arc<dyn Tables> = Arc::new(Handle(Arc::clone(&memory)));
    let metric = Arc::clone(&world.deps.catalog.borrow().metrics["people"]);
    memory.pages_left.store(20, Ordering::SeqCst);
    let (job, _) = ran(&world, Some(Arc::clone(&tables)), people()).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.error.as_deref().is_some_and(|why| why.contains("the node is gone")), "{:?}", job.error);
    let (_, state) = load_view(&*world.store, &metric.views[0].id).await.unwrap();
    assert_eq!((state.published.generation, state.open), (0, None));
    let before = memory.updates.load(Ordering::SeqCst);

    memory.pages_left.store(u64::MAX, Ordering::SeqCst);
    let (_, result) = ran(&world, Some(tables), people()).await;
    let people = memory.people.lock().unwrap().clone();
    assert!(people.values().all(|(age, adult)| *age <= 100 && *adult == Some(*age >= 18)));
    assert!(before > 0 && memory.updates.load(Ordering::SeqCst) == people.len() as u64, "none is written twice");
    assert_eq!(result["sources"]["people"]["summarised"], people.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_cluster_is_an_error_that_says_so() {
    let (world, _) = world();
    let (job, _) = ran(&world, None, people()).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.error.as_deref().is_some_and(|why| why.contains("store is not Cassandra")), "{:?}", job.error);
}
