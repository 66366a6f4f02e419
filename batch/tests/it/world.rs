//! A source with two partitions whose epochs are sealed into archive files, and the reference that batch is held against.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use lamina_batch::{Batch, BatchError, Config, Deps, Meter, Outcome, Wanted};
use lamina_core::{
    Archive, Counts, Cut, Epoch, EpochId, LogId, Micros, Offset, Partition, ViewState,
    clock::ManualClock,
    generation::load_view,
    log::{Append, Consumer, Log, LogError, Record, Span, Topic},
    store::{Ledgers, period},
};
use lamina_metric::{
    Answer, Ask, BatchChunk, Catalog, DimensionValue, Layout, Metric, Series, States, Versions, View, ViewFold, archive,
};
use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
use parquet::arrow::ArrowWriter;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::memory::Memory;

pub(crate) const SECOND: Micros = 1_000_000;
pub(crate) const HOUR: Micros = 3_600 * SECOND;
pub(crate) const PARTITIONS: u32 = 2;
/// 2026-01-01, a multiple of every period used here but the longest.
pub(crate) const START: Micros = 1_767_225_600 * SECOND;

pub(crate) const DEFINITIONS: &str = r#"
[source.edits]
format = "json"
time = "time"
id = "id"
[source.edits.fields]
time = "timestamp"
id = "string"
page = "string"
country = "string"
user = "string"
robot = "bool"
added = "int64"

[metric.added]
source = "edits"
where = "NOT robot"
value = "added"
dimensions = ["page", "country"]
groupings = [["page"]]
aggregates = ["count", "sum", "min", "max", "first", "last", "distinct(user)", "quantiles"]
grain = "10s"
rollups = ["1m", "1h"]
shards = 2
max_series = 5
"#;

const ASKED: [&str; 8] = ["count", "sum", "min", "max", "first", "last", "distinct(user)", "p50"];

/// One event; `at` is seconds after [`START`].
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) at: i64,
    pub(crate) page: u8,
    pub(crate) country: u8,
    pub(crate) user: u8,
    pub(crate) added: i64,
    pub(crate) fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Accepted,
    Filtered,
    Dead,
    Duplicate,
    /// The offset holds no record.
    Absent,
}

impl Event {
    fn payload(&self) -> String {
        if self.fate == Fate::Dead {
            return "{".to_owned();
        }
        let time = chrono::DateTime::from_timestamp_micros(START + self.at * SECOND).unwrap().to_rfc3339();
        format!(
            r#"{{"time":"{time}","id":"i","page":"p{}","country":"c{}","user":"u{}","robot":{},"added":{}}}"#,
            self.page,
            self.country,
            self.user,
            self.fate == Fate::Filtered,
            self.added
        )
    }
}

/// States of one epoch of a view by (series, grain bucket), as the speed layer folds them.
type Folded = Vec<(Series, Micros, States)>;
type Answers = BTreeMap<(Series, Micros), Vec<Answer>>;

/// A rule of expiry.
pub(crate) struct Rule {
    pub(crate) dimensions: &'static [&'static str],
    /// By the value of each of these dimensions; null is "".
    pub(crate) matches: fn(&[String]) -> bool,
    /// How long buckets of a width are kept.
    pub(crate) kept: fn(Micros) -> Option<Micros>,
}

pub(crate) struct World {
    pub(crate) store: Arc<Memory>,
    pub(crate) files: Arc<InMemory>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) metric: Arc<Metric>,
    pub(crate) log: LogId,
    pub(crate) deps: Deps,
    pub(crate) batch: Batch,
    /// What the definition's rules of expiry say, in words of the reference's own.
    pub(crate) rules: &'static [Rule],
    /// By partition and start of the epoch, per view.
    epochs: Mutex<BTreeMap<(Partition, Offset), Vec<Folded>>>,
    /// What was sealed, by the same.
    sealed: Mutex<BTreeMap<(Partition, Offset), Vec<Event>>>,
}

pub(crate) fn topic() -> Topic {
    Topic { name: "edits".to_owned(), id: "t1".to_owned(), partitions: PARTITIONS }
}

impl World {
    pub(crate) fn new(definitions: &str) -> Self {
        Self::with(definitions, &Config { memory_bytes: 64 << 20, parallelism: 2, ..Config::default() })
    }

    /// With rules of expiry, which the definitions hold too.
    pub(crate) fn ruled(definitions: &str, rules: &'static [Rule]) -> Self {
        Self { rules, ..Self::new(definitions) }
    }

    pub(crate) fn with(definitions: &str, config: &Config) -> Self {
        let files = [("metrics.toml".to_owned(), definitions.to_owned())];
        let catalog = Arc::new(Catalog::compile(&files, &Versions::default()).unwrap());
        let metric = Arc::clone(&catalog.metrics["added"]);
        let store = Arc::new(Memory::default());
        let clock = Arc::new(ManualClock::default());
        clock.set(START + 24 * HOUR);
        let archive = Arc::new(InMemory::new());
        let deps = Deps {
            store: Arc::clone(&store) as _,
            log: Arc::new(OnlyTopic(Arc::clone(&store))),
            archive: Arc::clone(&archive) as _,
            catalog: watch::channel(catalog).1,
            clock: Arc::clone(&clock) as _,
            tables: None,
        };
        let batch = Batch::new(deps.clone(), config).unwrap();
        let log = topic().log_id("edits");
        let (epochs, sealed) = (Mutex::default(), Mutex::default());
        Self { store, files: archive, clock, metric, log, deps, batch, rules: &[], epochs, sealed }
    }

    /// Seals the next epoch of a partition.
    pub(crate) async fn seal(&self, partition: Partition, events: &[Event]) -> Path {
        let mut ledger = self.store.ledger(&self.log, partition);
        let start = ledger.sealed_end();
        let end = start + events.len() as u64;
        self.sealed.lock().unwrap().insert((partition, start), events.to_vec());
        let (records, duplicates) = records(start, events);
        let (archive, path) = self.write(partition, start, end, &records, &duplicates).await;
        let epoch = |start, end, archive| Epoch {
            id: EpochId::new(),
            start,
            end,
            opened_at: START,
            revision: 1,
            dedup_clock: 0,
            alive_until: Micros::MAX,
            archive,
            lost: None,
        };
        let sealed = epoch(start, Some(end), Some(archive));
        ledger.epochs.pop();
        ledger.epochs.extend([sealed.clone(), epoch(end, None, None)]);
        ledger.version += 1;
        self.store.archive(&self.log, partition, &[sealed]).await.unwrap();
        self.store.set_ledger(&self.log, partition, ledger);
        path
    }

    async fn write(
        &self,
        partition: Partition,
        start: Offset,
        end: Offset,
        records: &[Record],
        duplicates: &[bool],
    ) -> (Archive, Path) {
        let (rows, events) = self.fold(partition, start, records, duplicates);
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        let (checksum, size) = (crc32fast::hash(&bytes), bytes.len() as u64);
        let path = Path::from(format!("edits/{partition}/{start}.parquet"));
        self.files.put(&path, bytes.into()).await.unwrap();
        let outcomes = rows.column_by_name("_outcome").unwrap();
        let outcomes = arrow::array::AsArray::as_primitive::<arrow::datatypes::UInt8Type>(outcomes).values();
        let count = |wanted: u8| outcomes.iter().filter(|outcome| **outcome == wanted).count() as u64;
        let counts = Counts {
            accepted: count(archive::ACCEPTED),
            dead: count(archive::DEAD),
            duplicates: count(archive::DUPLICATE),
            erased: 0,
            absent: end - start - records.len() as u64,
        };
        let times = events.column_by_name("_time").unwrap();
        let times = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(times);
        let event_time = times.values().iter().min().copied().zip(times.values().iter().max().copied());
        let (named, last_record) = (path.to_string(), None);
        let archive = Archive { path: named, bytes: size, checksum, counts, event_time, last_record };
        (archive, path)
    }

    /// Folds the records of an epoch for the reference; gives their rows and accepted events.
    fn fold(
        &self,
        partition: Partition,
        start: Offset,
        records: &[Record],
        duplicates: &[bool],
    ) -> (RecordBatch, RecordBatch) {
        let source = &self.metric.source;
        let pairs: Vec<(Offset, &[u8])> = records.iter().map(|record| (record.offset, &*record.payload)).collect();
        let decoded = source.decode(partition, &pairs);
        let rows = archive::archive_batch(source, partition, start, records, &decoded, duplicates).unwrap();
        let events = archive::accepted_events(source, &rows).unwrap();
        let prepared = self.metric.prepare(&events).unwrap();
        let folds = self.metric.views.iter().map(|view| {
            let mut fold = ViewFold::new(&self.metric, view);
            fold.fold(&prepared).unwrap();
            let chunks = fold.whole().into_iter().map(|(_, chunk)| chunk);
            let rows = chunks.flat_map(|chunk| {
                let row = |(at, &(series, bucket)): (usize, &(u32, Micros))| {
                    (chunk.series[series as usize].clone(), bucket, chunk.states.take(&[at]))
                };
                chunk.rows.iter().enumerate().map(row).collect::<Vec<_>>()
            });
            rows.collect()
        });
        self.epochs.lock().unwrap().insert((partition, start), folds.collect());
        (rows, events)
    }

    /// The reference forgets these events.
    pub(crate) fn forget(&self, gone: impl Fn(&Event) -> bool) {
        for (&(partition, start), events) in &*self.sealed.lock().unwrap() {
            let fate = |event: &Event| if gone(event) { Fate::Absent } else { event.fate };
            let left: Vec<Event> = events.iter().map(|event| Event { fate: fate(event), ..event.clone() }).collect();
            let (records, duplicates) = records(start, &left);
            self.fold(partition, start, &records, &duplicates);
        }
    }

    /// Drops the epochs below the lowest published cut from the ledgers: they are in the manifest.
    pub(crate) async fn trim(&self) {
        let mut below: Option<Cut> = None;
        for view in &self.metric.views {
            let cut = load_view(&*self.store, &view.id).await.unwrap().1.published.cut;
            below = Some(below.map_or(cut.clone(), |below| below.min(&cut)));
        }
        for partition in 0..PARTITIONS {
            let mut ledger = self.store.ledger(&self.log, partition);
            let cut = below.as_ref().map_or(0, |cut| cut.at(partition));
            ledger.epochs.retain(|epoch| epoch.end.is_none_or(|end| end > cut));
            self.store.set_ledger(&self.log, partition, ledger);
        }
    }

    pub(crate) async fn run(&self, wanted: Wanted) -> Result<Outcome, BatchError> {
        self.batch.run_metric(&self.metric, &wanted, &Arc::new(Meter::default()), &CancellationToken::new()).await
    }

    pub(crate) async fn published(&self, view: &View) -> ViewState {
        load_view(&*self.store, &view.id).await.unwrap().1
    }

    /// The fold of every sealed epoch, as far as (series, period) is kept.
    pub(crate) fn expected(&self, view: usize, width: Micros, kept: impl Fn(&Series, Micros) -> bool) -> Answers {
        let mut sums = Sums::new(&self.metric);
        for folds in self.epochs.lock().unwrap().values() {
            for (series, bucket, states) in &folds[view] {
                sums.add(series, floor(*bucket, width), states);
            }
        }
        sums.answers(&self.metric, |series, bucket| kept(series, floor(bucket, period(width))))
    }

    /// The rules that take a series, by index.
    pub(crate) fn rules_of(&self, view: usize, series: &Series) -> Vec<usize> {
        let names: Vec<&str> =
            self.metric.views[view].dimensions.iter().map(|&at| &*self.metric.dimensions[at].name).collect();
        let text = |value: &DimensionValue| value.to_json().as_str().unwrap_or_default().to_owned();
        let values: Vec<String> = series.values().unwrap().iter().map(text).collect();
        let takes = |rule: &Rule| {
            let places = rule.dimensions.iter().map(|own| names.iter().position(|name| name == own));
            let own: Option<Vec<String>> = places.map(|at| Some(values[at?].clone())).collect();
            own.is_some_and(|own| (rule.matches)(&own)) && values.iter().any(|value| value != "$overflow")
        };
        (0..self.rules.len()).filter(|&at| takes(&self.rules[at])).collect()
    }

    /// Whether a chunk is above every horizon that is stored for its series.
    pub(crate) fn is_kept(
        &self,
        state: &ViewState,
        view: usize,
        width: Micros,
        series: &Series,
        period: Micros,
    ) -> bool {
        let rules = state.rule_horizons.get(&width).cloned().unwrap_or_default();
        let own = self.rules_of(view, series).into_iter().filter_map(|rule| rules.get(&rule).copied());
        state.horizons.get(&width).copied().into_iter().chain(own).all(|horizon| period >= horizon)
    }

    /// What a reader gets: batch chunks under their bases, and the epochs that they do not cover.
    pub(crate) async fn served(&self, view: usize, width: Micros) -> Answers {
        let state = self.published(&self.metric.views[view]).await;
        let published = &state.published;
        let mut sums = Sums::new(&self.metric);
        let mut covered: BTreeMap<(Series, Micros), Cut> = BTreeMap::new();
        for row in self.store.rows() {
            let key = &row.key;
            let served = key.view == self.metric.views[view].id
                && key.width == width
                && key.base == published.base_at(key.period);
            let series = Series::from_bytes(key.series.clone());
            if !served || !self.is_kept(&state, view, width, &series, key.period) {
                continue;
            }
            assert_eq!(key.shard, series.shard(self.metric.views[view].shards));
            let chunk = BatchChunk::decode(&row.body).unwrap();
            for (at, &bucket) in chunk.buckets.iter().enumerate() {
                assert_eq!(floor(bucket, period(width)), key.period);
                sums.add(&series, bucket, &chunk.states.take(&[at]));
            }
            covered.insert((series, key.period), row.cut.max(&published.cut));
        }
        for (&(partition, start), folds) in &*self.epochs.lock().unwrap() {
            for (series, bucket, states) in &folds[view] {
                let bucket = floor(*bucket, width);
                let chunk = (series.clone(), floor(bucket, period(width)));
                if !self.is_kept(&state, view, width, series, chunk.1) {
                    continue;
                }
                if !covered.get(&chunk).unwrap_or(&published.cut).covers(partition, start) {
                    sums.add(series, bucket, states);
                }
            }
        }
        sums.answers(&self.metric, |_, _| true)
    }

    /// The law: what is served is the fold of everything sealed.
    pub(crate) async fn check(&self, when: &str) {
        for (at, view) in self.metric.views.iter().enumerate() {
            let state = self.published(view).await;
            for width in self.metric.widths() {
                let expected =
                    self.expected(at, width, |series, period| self.is_kept(&state, at, width, series, period));
                let served = self.served(at, width).await;
                assert_eq!(served, expected, "{when}: view {}, width {width}", view.id);
            }
        }
    }
}

/// The records of events from this offset on, and which of them are duplicates.
fn records(start: Offset, events: &[Event]) -> (Vec<Record>, Vec<bool>) {
    let present = events.iter().enumerate().filter(|(_, event)| event.fate != Fate::Absent);
    let record = |(at, event): (usize, &Event)| Record {
        offset: start + at as u64,
        appended_at: START,
        key: None,
        payload: Bytes::from(event.payload()),
    };
    present.map(|(at, event)| (record((at, event)), event.fate == Fate::Duplicate)).unzip()
}

struct Sums {
    states: States,
    rows: BTreeMap<(Series, Micros), usize>,
}

impl Sums {
    fn new(metric: &Metric) -> Self {
        Self { states: States::new(&Layout::of(metric)), rows: BTreeMap::new() }
    }

    fn add(&mut self, series: &Series, bucket: Micros, states: &States) {
        let next = self.rows.len();
        let row = *self.rows.entry((series.clone(), bucket)).or_insert(next);
        self.states.resize(self.rows.len());
        self.states.merge(states, &[row]).unwrap();
    }

    fn answers(&self, metric: &Metric, wanted: impl Fn(&Series, Micros) -> bool) -> Answers {
        let asks = ASKED.map(|ask| Ask::parse(ask, metric).unwrap());
        let rows = self.rows.iter().filter(|((series, bucket), _)| wanted(series, *bucket));
        let answer = |row: usize| asks.iter().map(|ask| self.states.answer(row, ask).unwrap()).collect();
        rows.map(|(key, &row)| (key.clone(), answer(row))).collect()
    }
}

pub(crate) fn floor(at: Micros, width: Micros) -> Micros {
    at.div_euclid(width) * width
}

/// A log that only knows its topic, all of which is sealed.
struct OnlyTopic(Arc<Memory>);

#[async_trait]
impl Log for OnlyTopic {
    async fn ensure_topic(&self, _: &str, _: u32) -> Result<Topic, LogError> {
        Ok(topic())
    }

    async fn topic(&self, _: &str) -> Result<Topic, LogError> {
        Ok(topic())
    }

    async fn append(&self, _: &str, _: Vec<Append>) -> Result<Vec<(Partition, Offset)>, LogError> {
        Err(LogError::Refused("batch appends nothing".to_owned()))
    }

    async fn spans(&self, _: &str) -> Result<BTreeMap<Partition, Span>, LogError> {
        let end = |partition| self.0.ledger(&topic().log_id("edits"), partition).sealed_end();
        Ok((0..PARTITIONS).map(|partition| (partition, Span { start: 0, end: end(partition) })).collect())
    }

    async fn read(&self, _: &str, _: Partition, _: Offset, _: usize) -> Result<(Vec<Record>, Offset), LogError> {
        Err(LogError::Refused("batch does not read the log".to_owned()))
    }

    async fn offset_at(&self, _: &str, _: Partition, _: Micros) -> Result<Offset, LogError> {
        Err(LogError::Refused("batch does not read the log".to_owned()))
    }

    async fn join(&self, _: &str, _: &[String]) -> Result<Box<dyn Consumer>, LogError> {
        Err(LogError::Refused("batch does not read the log".to_owned()))
    }

    async fn ping(&self) -> Result<(), LogError> {
        Ok(())
    }
}
