//! A small lamina in memory: events are folded, sealed and batched here by lamina-core's and lamina-metric's own types,
//! and the router answers over what that leaves in the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering},
};

use arrow::{array::AsArray, datatypes::TimestampMicrosecondType};
use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, Request, StatusCode};
use lamina_core::{
    Archive, BatchChunks, BatchKey, BatchRow, Consistency, Counts, Cut, Epoch, EpochId, LogId, Mark, Micros, Offset,
    Part, Partition, Scope, SpeedChunks, SpeedKey, Stamp, ViewState,
    clock::ManualClock,
    generation,
    log::{Log, Record},
    store::{self, Commit, Ledgers},
};
use lamina_metric::{
    BatchChunk, Catalog, Layout, Metric, Series, SpeedChunk, States, Versions, View, ViewFold, archive,
    archive::archive_batch,
};
use lamina_serving::{
    Config, Deps, Sampler,
    registry::{DefinitionBody, DefinitionKind, Origin, Put, Registry, RegistryError},
};
use object_store::{ObjectStoreExt, memory::InMemory};
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::memory::{MemoryLog, MemoryStore};

pub(crate) const SECOND: Micros = 1_000_000;
pub(crate) const MINUTE: Micros = 60 * SECOND;
pub(crate) const HOUR: Micros = 60 * MINUTE;
pub(crate) const DAY: Micros = 24 * HOUR;
pub(crate) const PARTITIONS: u32 = 2;

pub(crate) const DEFINITIONS: &str = r#"
[source.edits]
format = "json"
time = "time"
[source.edits.fields]
time = "timestamp"
channel = "string"
country = "string"
user = "string"
added = "int64"
price = "decimal(12,2)"
big = "decimal(38,0)"

[metric.added]
source = "edits"
value = "added"
dimensions = ["channel", "country"]
groupings = [["channel"]]
aggregates = ["count", "sum", "min", "max", "avg", "last", "distinct(user)", "quantiles", "top(user, 3)"]
grain = "1m"
rollups = ["1h", "1d"]

[metric.price]
source = "edits"
value = "price"
aggregates = ["sum"]
grain = "1m"

[metric.big]
source = "edits"
value = "big"
aggregates = ["sum", "max"]
grain = "1m"

[metric.capped]
source = "edits"
dimensions = ["channel"]
aggregates = ["count"]
grain = "1m"
max_series = 2

[source.other]
format = "csv"
header = true
time = "time"
[source.other.fields]
time = "timestamp"
n = "int64"

[metric.n]
source = "other"
value = "n"
aggregates = ["sum"]
grain = "1s"
"#;

/// What one call of the interface answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The JSON of a 200.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The code of a problem with this status, and its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> (String, String) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let body = self.json();
        for member in ["type", "title", "status", "detail", "code", "request_id"] {
            assert!(!body[member].is_null(), "{member} is missing in {body}");
        }
        assert_eq!(body["status"], status);
        assert_eq!(body["request_id"], self.headers["x-request-id"].to_str().unwrap());
        (body["code"].as_str().unwrap().to_owned(), body["detail"].as_str().unwrap().to_owned())
    }
}

/// Files are read-only; everything else is noted.
#[derive(Default)]
pub(crate) struct NotedRegistry {
    pub(crate) puts: Mutex<Vec<(String, DefinitionBody, Option<String>)>>,
}

#[async_trait]
impl Registry for NotedRegistry {
    async fn put(
        &self,
        kind: DefinitionKind,
        name: &str,
        body: DefinitionBody,
        if_match: Option<String>,
    ) -> Result<Put, RegistryError> {
        match (name, if_match.as_deref()) {
            ("added", _) => Err(RegistryError::ReadOnly { file: "metrics/edits.toml".into() }),
            (_, Some("\"old\"")) => Err(RegistryError::Changed { current: "\"new\"".into() }),
            _ => {
                self.puts.lock().unwrap().push((format!("{}/{name}", kind.as_str()), body, if_match));
                Ok(Put::Created)
            }
        }
    }

    async fn delete(&self, _: DefinitionKind, name: &str, _: Option<String>) -> Result<(), RegistryError> {
        match name {
            "added" => Err(RegistryError::ReadOnly { file: "metrics/edits.toml".into() }),
            "edits" => Err(RegistryError::InUse("metric added reads it".into())),
            _ => Err(RegistryError::NotFound),
        }
    }

    fn origin(&self, _: DefinitionKind, _: &str) -> Option<Origin> {
        Some(Origin::File("metrics/edits.toml".into()))
    }
}

pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) registry: Arc<NotedRegistry>,
    /// The archive.
    pub(crate) files: Arc<InMemory>,
    pub(crate) router: Router,
    pub(crate) sampler: Sampler,
    pub(crate) id: LogId,
    /// Flushes of the open epoch, per partition: the deltas so far.
    marks: BTreeMap<Partition, Mark>,
    _catalogs: watch::Sender<Arc<Catalog>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::over(DEFINITIONS, config).await
    }

    pub(crate) async fn over(definitions: &str, config: Config) -> Self {
        let files = [("test.toml".to_owned(), definitions.to_owned())];
        let catalog = Catalog::compile(&files, &Versions::default());
        let catalog = Arc::new(catalog.unwrap_or_else(|errors| panic!("{errors:?}")));
        let (store, log) = (Arc::new(MemoryStore::default()), Arc::new(MemoryLog::default()));
        let topic = log.ensure_topic("edits", PARTITIONS).await.unwrap();
        let files = Arc::new(InMemory::new());
        let (clock, registry) = (Arc::new(ManualClock::default()), Arc::new(NotedRegistry::default()));
        let (sender, receiver) = watch::channel(Arc::clone(&catalog));
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let deps = Deps {
            log: Arc::clone(&log) as _,
            store: Arc::clone(&store) as _,
            archive: Arc::clone(&files) as _,
            catalog: receiver,
            registry: Arc::clone(&registry) as _,
            clock: Arc::clone(&clock) as _,
            metrics: recorder.handle(),
        };
        let (router, sampler) = lamina_serving::service(deps, &config);
        let id = topic.log_id("edits");
        let mut world = Self {
            store,
            log,
            clock,
            catalog,
            registry,
            files,
            router,
            sampler,
            id,
            marks: BTreeMap::new(),
            _catalogs: sender,
        };
        world.set_now(1_000 * DAY);
        world
    }

    pub(crate) fn set_now(&mut self, now: Micros) {
        self.clock.set(now);
        self.log.now.store(now, Ordering::SeqCst);
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Reply {
        let live = request.uri().path().ends_with("/live");
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        // A followed query has no end that could be waited for.
        let bytes = match live && status == 200 {
            true => Bytes::new(),
            false => response.into_body().collect().await.unwrap().to_bytes(),
        };
        Reply { status, headers, bytes }
    }

    pub(crate) async fn get(&self, uri: &str) -> Reply {
        self.call(Request::builder().uri(uri).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.call(request.body(body.into()).unwrap()).await
    }

    /// Queries metric `added`; the values of parameters are encoded here.
    pub(crate) async fn query(&self, params: &[(&str, &str)]) -> Reply {
        self.query_of("added", params).await
    }

    pub(crate) async fn query_of(&self, metric: &str, params: &[(&str, &str)]) -> Reply {
        let pairs: Vec<String> = params.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        self.get(&format!("/v1/metrics/{metric}/query?{}", pairs.join("&"))).await
    }

    pub(crate) fn append(&self, partition: Partition, event: &Value) -> Offset {
        self.log.append_to("edits", partition, event.to_string().into())
    }

    fn metrics(&self) -> Vec<Arc<Metric>> {
        self.catalog.metrics_of("edits").cloned().collect()
    }

    /// States of records `range`, per view.
    fn folds(&self, partition: Partition, range: std::ops::Range<Offset>) -> Vec<(Arc<Metric>, View, ViewFold)> {
        let records = self.log.records("edits", partition);
        let wanted: Vec<(Offset, &[u8])> = records
            .iter()
            .filter(|record| range.contains(&record.offset))
            .map(|record| (record.offset, &*record.payload))
            .collect();
        let mut folds = Vec::new();
        for metric in self.metrics() {
            let events = metric.source.decode(partition, &wanted).events;
            let prepared = metric.prepare(&events).unwrap();
            for view in &metric.views {
                let mut fold = ViewFold::new(&metric, view);
                fold.fold(&prepared).unwrap();
                folds.push((Arc::clone(&metric), view.clone(), fold));
            }
        }
        folds
    }

    async fn open(&mut self, partition: Partition) -> Epoch {
        let ledger = self.store.load(&self.id, partition, Consistency::Serial).await.unwrap();
        if let Some(open) = ledger.open() {
            return open.clone();
        }
        let epoch = self.epoch(0);
        let change = ledger.replace_open(None, epoch.clone()).unwrap();
        assert_eq!(self.store.commit(&self.id, partition, &change).await.unwrap(), Commit::Applied);
        epoch
    }

    fn epoch(&self, start: Offset) -> Epoch {
        let now = lamina_core::Clock::now(&*self.clock);
        Epoch {
            id: EpochId::new(),
            start,
            end: None,
            opened_at: now,
            revision: 1,
            dedup_clock: 0,
            alive_until: now + 3 * DAY,
            archive: None,
            lost: None,
        }
    }

    /// Folds what came since the last flush into delta chunks, and marks them.
    pub(crate) async fn flush(&mut self, partition: Partition) {
        let open = self.open(partition).await;
        let from = self.marks.get(&partition).map_or(open.start, |mark| mark.end);
        let end = self.log.records("edits", partition).len() as u64;
        let mark = self.marks.entry(partition).or_default().clone();
        let mut next = Mark { end, number: mark.number + 1, watermark: Some(end as i64), ..mark };
        let mut chunks = Vec::new();
        for (_, view, mut fold) in self.folds(partition, from..end) {
            for shard in 0..view.shards {
                next.sequences.entry((view.id.clone(), shard)).or_default();
            }
            for (shard, chunk) in fold.take_delta() {
                let sequence = next.sequences.entry((view.id.clone(), shard)).or_default();
                chunks.push((key(&open, &view, shard, Part::Delta(*sequence)), chunk.encode().unwrap()));
                *sequence += 1;
            }
        }
        let stamp = Stamp { at: open.opened_at, ttl: 1 };
        SpeedChunks::put(&*self.store, &chunks, stamp).await.unwrap();
        self.store.put_mark(&self.id, partition, open.id, &next, stamp).await.unwrap();
        self.marks.insert(partition, next);
    }

    /// Leaves the open epoch's mark as a worker does whose definitions have none of these views (any more).
    pub(crate) async fn fold_other_views(&mut self, partition: Partition) {
        let open = self.open(partition).await;
        let mark = self.marks.entry(partition).or_default();
        mark.sequences.clear();
        mark.number += 1;
        let stamp = Stamp { at: open.opened_at, ttl: 1 };
        self.store.put_mark(&self.id, partition, open.id, mark, stamp).await.unwrap();
    }

    /// Ends the open epoch where the log ends.
    pub(crate) async fn seal(&mut self, partition: Partition) {
        let open = self.open(partition).await;
        let end = self.log.records("edits", partition).len() as u64;
        if end == open.start {
            return;
        }
        let mut chunks = Vec::new();
        for (_, view, fold) in self.folds(partition, open.start..end) {
            for (shard, chunk) in fold.whole() {
                chunks.push((key(&open, &view, shard, Part::Whole(end)), chunk.encode().unwrap()));
            }
        }
        SpeedChunks::put(&*self.store, &chunks, Stamp { at: open.opened_at, ttl: 1 }).await.unwrap();
        let archive = self.archived(partition, open.start..end).await;
        let ledger = self.store.load(&self.id, partition, Consistency::Serial).await.unwrap();
        let change = ledger.seal(open.id, end, archive, self.epoch(end), 0).unwrap();
        assert_eq!(self.store.commit(&self.id, partition, &change).await.unwrap(), Commit::Applied);
        self.marks.remove(&partition);
    }

    /// Writes the archive's file of these records.
    async fn archived(&self, partition: Partition, range: std::ops::Range<Offset>) -> Archive {
        let source = &self.catalog.sources["edits"];
        let records = self.log.records("edits", partition);
        let records: Vec<Record> = records.into_iter().filter(|record| range.contains(&record.offset)).collect();
        let wanted: Vec<(Offset, &[u8])> = records.iter().map(|record| (record.offset, &*record.payload)).collect();
        let decoded = source.decode(partition, &wanted);
        let rows =
            archive_batch(source, partition, range.start, &records, &decoded, &vec![false; records.len()]).unwrap();
        let mut writer = archive::writer(&rows.schema()).unwrap();
        writer.write(&rows).unwrap();
        let file = writer.into_inner().unwrap();
        let times = decoded.events.column_by_name("_time").unwrap().as_primitive::<TimestampMicrosecondType>();
        let event_time = times.values().iter().min().copied().zip(times.values().iter().max().copied());
        let accepted = decoded.events.num_rows() as u64;
        let counts = Counts { accepted, dead: records.len() as u64 - accepted, ..Counts::default() };
        let path = format!("edits/{partition}/{}-{}.parquet", range.start, range.end);
        let (bytes, checksum) = (file.len() as u64, crc32fast::hash(&file));
        self.files.put(&path.as_str().into(), file.into()).await.unwrap();
        Archive { path, bytes, checksum, counts, event_time, last_record: None }
    }

    /// A batch run over everything sealed. Without `publish` it dies after writing about half of its chunks.
    pub(crate) async fn batch(&mut self, publish: bool) {
        let mut cut = Cut::default();
        for partition in 0..PARTITIONS {
            cut.set(partition, self.store.load(&self.id, partition, Consistency::Serial).await.unwrap().sealed_end());
        }
        for metric in self.metrics() {
            for view in &metric.views {
                self.batch_view(&metric, view, &cut, publish).await;
            }
        }
    }

    async fn batch_view(&self, metric: &Metric, view: &View, cut: &Cut, publish: bool) {
        let now = lamina_core::Clock::now(&*self.clock);
        let (version, state) = generation::load_view(&*self.store, &view.id).await.unwrap();
        let (state, opened) = state.begin(cut.clone(), Scope::default(), now).unwrap();
        generation::save_view(&*self.store, &view.id, version, &state).await.unwrap();
        let mut rows = Vec::new();
        for width in metric.widths() {
            rows.extend(self.batch_rows(metric, view, width, cut));
        }
        for row in &mut rows {
            (row.generation, row.stamp) = (opened.generation, opened.stamp);
        }
        if !publish {
            rows = rows.into_iter().step_by(2).collect();
        }
        BatchChunks::put(&*self.store, &rows).await.unwrap();
        if publish {
            let published = state.publish(&opened, now, Some(7)).unwrap();
            generation::save_view(&*self.store, &view.id, version + 1, &published).await.unwrap();
        }
    }

    fn batch_rows(&self, metric: &Metric, view: &View, width: Micros, cut: &Cut) -> Vec<BatchRow> {
        let mut states: BTreeMap<(Series, Micros), BTreeMap<Micros, States>> = BTreeMap::new();
        for partition in 0..PARTITIONS {
            for (own, own_view, fold) in self.folds(partition, 0..cut.at(partition)) {
                if own.name != metric.name || own_view.id != view.id {
                    continue;
                }
                for (_, chunk) in fold.whole() {
                    add(&mut states, metric, &chunk, width);
                }
            }
        }
        let row = |((series, period), buckets): ((Series, Micros), BTreeMap<Micros, States>)| {
            let mut chunk = BatchChunk { buckets: Vec::new(), states: States::new(&Layout::of(metric)) };
            for (bucket, state) in buckets {
                chunk.buckets.push(bucket);
                chunk.states.decode_row(&state.encode_row(0, Vec::new()).unwrap()).unwrap();
            }
            let shard = series.shard(view.shards);
            let series = Bytes::copy_from_slice(series.as_bytes());
            BatchRow {
                key: BatchKey { view: view.id.clone(), width, base: 0, shard, period, series },
                generation: 0,
                stamp: 0,
                cut: cut.clone(),
                body: chunk.encode().unwrap(),
                expires_at: None,
            }
        };
        states.into_iter().map(row).collect()
    }

    /// Changes the state of every view of a metric.
    pub(crate) async fn edit_views(&self, metric: &str, edit: impl Fn(&mut ViewState)) {
        self.edit_views_of(metric, |_, state| edit(state)).await;
    }

    pub(crate) async fn edit_views_of(&self, metric: &str, edit: impl Fn(&View, &mut ViewState)) {
        for view in &self.catalog.metrics[metric].views {
            let (version, mut state) = generation::load_view(&*self.store, &view.id).await.unwrap();
            edit(view, &mut state);
            assert_eq!(generation::save_view(&*self.store, &view.id, version, &state).await.unwrap(), Commit::Applied);
        }
    }
}

fn add(
    into: &mut BTreeMap<(Series, Micros), BTreeMap<Micros, States>>,
    metric: &Metric,
    chunk: &SpeedChunk,
    width: Micros,
) {
    for (row, &(series, bucket)) in chunk.rows.iter().enumerate() {
        let bucket = bucket.div_euclid(width) * width;
        let period = bucket.div_euclid(store::period(width)) * store::period(width);
        let buckets = into.entry((chunk.series[series as usize].clone(), period)).or_default();
        let state = buckets.entry(bucket).or_insert_with(|| {
            let mut state = States::new(&Layout::of(metric));
            state.resize(1);
            state
        });
        state.merge(&chunk.states.take(&[row]), &[0]).unwrap();
    }
}

fn key(epoch: &Epoch, view: &View, shard: u32, part: Part) -> SpeedKey {
    SpeedKey { view: view.id.clone(), shard, slot: store::slot(epoch.opened_at), epoch: epoch.id, part }
}

/// Percent-encodes everything but unreserved characters.
pub(crate) fn encoded(text: &str) -> String {
    let byte = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Names of the keys of an object, in order.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

pub(crate) fn set(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}
