//! `lamina audit`: silent on a healthy system, and it finds what was broken on purpose.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch},
    datatypes::Int64Type,
};
use lamina::backends::embedded;
use lamina_core::{
    Archive, BatchChunks, BatchRow, Change, Commit, Consistency, Epoch, LogId, ViewId, generation::load_view, log::Log,
    store::Store,
};
use lamina_metric::BatchChunk;
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::{
    place::{Place, event},
    process::{Backend, Lamina, run},
};

const SOON: Duration = Duration::from_secs(30);

struct Audited {
    place: Place,
    lamina: Lamina,
}

impl Audited {
    /// Batch has covered some of the events, others are in speed chunks only; there are duplicates and poison.
    fn new(backend: Backend) -> Self {
        let place = Place::new(backend);
        let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
        let audited = Self { place, lamina };
        audited.send(0..400);
        audited.send(350..400);
        audited.all_sealed(450);
        audited.lamina.recompute_all();
        audited.send(400..500);
        audited
    }

    fn send(&self, numbers: std::ops::Range<usize>) {
        let mut body: String = numbers.map(|number| event(number) + "\n").collect();
        body += "{\"time\": \"yesterday\"}\n";
        let answer = self.lamina.request(reqwest::Method::POST, "/v1/sources/hits/events").body(body).send().unwrap();
        assert_eq!(answer.status(), 202, "{}", answer.text().unwrap());
    }

    fn all_sealed(&self, records: u64) {
        self.lamina.until("all is sealed", || {
            let epochs = self.lamina.get("/v1/sources/hits/epochs", &[]);
            let ends = epochs["partitions"].as_array().unwrap().iter().map(|one| one["sealed_end"].as_u64().unwrap());
            ends.sum::<u64>() == records
        });
    }

    /// Exit code and report.
    fn audit(&self, sample: &str) -> (i32, Value, String) {
        let config = self.place.path().join("lamina.toml");
        let audited = run(&[
            "audit",
            "--config",
            &config.to_string_lossy(),
            "--server",
            &self.lamina.url,
            "--sample",
            sample,
            "--seed",
            "7",
            "--output",
            "json",
        ]);
        let errors = String::from_utf8_lossy(&audited.stderr).into_owned();
        let report = serde_json::from_slice(&audited.stdout).unwrap_or_default();
        (audited.status.code().unwrap(), report, errors)
    }

    fn healthy(&self) {
        let (code, report, errors) = self.audit("40");
        assert_eq!(code, 0, "{report:#} {errors}");
        assert!(report["buckets"].as_u64().is_some_and(|buckets| buckets >= 10), "{report}");
        assert!(report["values"].as_u64().is_some_and(|values| values >= 60), "{report}");
        assert_eq!(report["differences"], serde_json::json!([]));
        eprintln!("{errors}");
    }

    /// Does something to the store; the server is away meanwhile, and starts with cold caches.
    fn with_store<T>(&mut self, change: impl AsyncFnOnce(&dyn Store, LogId) -> T) -> T {
        assert!(self.lamina.stop(SOON).success());
        let done = self.place.runtime.block_on(async {
            match self.place.backend {
                Backend::Embedded => {
                    let opened = embedded::open(&self.place.path().join("data")).unwrap();
                    let log = opened.log.topic(&self.place.name).await.unwrap().log_id("hits");
                    change(&*opened.store, log).await
                }
                Backend::Real => change(&self.place.cassandra(), LogId::new("hits", "")).await,
            }
        });
        self.lamina.restart();
        done
    }

    fn files(&self) -> Vec<PathBuf> {
        fn below(folder: PathBuf) -> Vec<PathBuf> {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.flat_map(|path| if path.is_dir() { below(path) } else { vec![path] }).collect()
        }
        below(self.place.path().join("data/archive"))
    }
}

/// Counts everything twice in the chunks of one view, and writes them as a later run would.
async fn corrupt(store: &dyn Store) -> usize {
    let (minute, everything) = (60_000_000, i64::MIN / 4..i64::MAX / 4);
    let view = ViewId::new("bytes", 1, 0);
    let base = load_view(store, &view).await.unwrap().1.published.base_at(0);
    let mut rows = Vec::new();
    for shard in 0..64 {
        rows.extend(store.scan(&view, minute, base, shard, everything.clone(), None).await.unwrap());
    }
    let twice = |row: BatchRow| {
        let mut chunk = BatchChunk::decode(&row.body).unwrap();
        let own = chunk.states.clone();
        chunk.states.merge(&own, &(0..own.len()).collect::<Vec<_>>()).unwrap();
        BatchRow { stamp: row.stamp + 1, body: chunk.encode().unwrap(), ..row }
    };
    let rows: Vec<BatchRow> = rows.into_iter().map(twice).collect();
    BatchChunks::put(store, &rows).await.unwrap();
    rows.len()
}

fn finds_a_corrupted_batch_chunk(backend: Backend) {
    let mut audited = Audited::new(backend);
    audited.healthy();
    let chunks = audited.with_store(async |store, _| corrupt(store).await);
    assert!(chunks > 0, "there is nothing to corrupt");
    let (code, report, errors) = audited.audit("40");
    assert_eq!(code, 1, "{errors}");
    let differences = report["differences"].as_array().unwrap();
    let count = differences.iter().find(|one| one["aggregate"] == "count").unwrap();
    assert_eq!((&count["metric"], &count["step"]), (&Value::from("bytes"), &Value::from("1m")));
    assert!(count["served"].as_u64() > count["recomputed"].as_u64(), "{count}");
    assert!(
        count["series"]["site"].is_string() && count["bucket"].as_str().unwrap().starts_with("2020-01-01"),
        "{count}"
    );
    audited.lamina.recompute_all();
    audited.healthy();
    assert!(audited.lamina.stop(SOON).success());
}

#[test]
fn an_audit_finds_a_corrupted_batch_chunk_and_nothing_else_embedded() {
    finds_a_corrupted_batch_chunk(Backend::Embedded);
}

#[test]
fn an_audit_finds_a_corrupted_batch_chunk_and_nothing_else_on_kafka_and_cassandra() {
    if !Backend::Real.skipped() {
        finds_a_corrupted_batch_chunk(Backend::Real);
    }
}

/// The file with 1,000 more in the first `size`.
fn tampered(file: &PathBuf) -> Vec<u8> {
    let bytes = bytes::Bytes::from(fs::read(file).unwrap());
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let schema = Arc::clone(reader.schema());
    let at = schema.index_of("size").unwrap();
    let (mut out, mut done) = (Vec::new(), false);
    let mut writer = ArrowWriter::try_new(&mut out, Arc::clone(&schema), None).unwrap();
    for rows in reader.build().unwrap() {
        let rows = rows.unwrap();
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        let sizes = columns[at].as_primitive::<Int64Type>();
        let larger = sizes.iter().map(|size| {
            let more = if done || size.is_none() { 0 } else { 1_000 };
            done |= size.is_some();
            size.map(|size| size + more)
        });
        columns[at] = Arc::new(larger.collect::<Int64Array>());
        assert_eq!(columns[at].len(), rows.num_rows());
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
    assert!(done);
    out
}

#[test]
fn an_audit_finds_archive_files_that_are_missing_or_tampered_with() {
    let mut audited = Audited::new(Backend::Embedded);
    audited.healthy();
    let files = audited.files();
    let file = files.iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap().clone();
    let (whole, name) = (fs::read(&file).unwrap(), file.file_name().unwrap().to_string_lossy().into_owned());
    let what = |report: &Value| {
        let found = report["differences"].as_array().unwrap();
        found.iter().filter_map(|one| one["archive"].as_str()).collect::<Vec<_>>().join("\n")
    };

    fs::remove_file(&file).unwrap();
    let (code, report, errors) = audited.audit("40");
    assert_eq!(code, 1, "{errors}");
    assert!(what(&report).contains(&format!("{name} is missing")), "{report}");

    let bad = tampered(&file_with(&file, &whole));
    fs::write(&file, &bad).unwrap();
    let (code, report, errors) = audited.audit("40");
    assert_eq!(code, 1, "{errors}");
    assert!(what(&report).contains(&name) && what(&report).contains("CRC-32"), "{report}");

    // Whoever tampers with the ledger too is found by the payloads.
    let (bytes, checksum) = (bad.len() as u64, crc32fast::hash(&bad));
    let changed = audited.with_store(async |store, log| {
        for partition in 0..2 {
            let ledger = store.load(&log, partition, Consistency::Serial).await.unwrap();
            let noted = store.archived(&log, partition, 0..u64::MAX).await.unwrap();
            let named = |epoch: &&Epoch| epoch.archive.as_ref().is_some_and(|archive| archive.path.ends_with(&name));
            let falsified = |epoch: &Epoch| {
                let archive = epoch.archive.clone().map(|archive| Archive { bytes, checksum, ..archive });
                Epoch { archive, opened_at: epoch.opened_at + 1, ..epoch.clone() }
            };
            if let Some(epoch) = ledger.epochs.iter().find(named) {
                let change = Change { expected: ledger.version, put: vec![falsified(epoch)], remove: Vec::new() };
                return store.commit(&log, partition, &change).await.unwrap() == Commit::Applied;
            }
            if let Some(epoch) = noted.iter().find(named) {
                store.archive(&log, partition, &[falsified(epoch)]).await.unwrap();
                return true;
            }
        }
        false
    });
    assert!(changed, "no ledger names {name}");
    let (code, report, errors) = audited.audit("40");
    assert_eq!(code, 1, "{errors}");
    assert!(what(&report).contains("column size is not what the payload of offset"), "{report}");
}

fn file_with(file: &PathBuf, bytes: &[u8]) -> PathBuf {
    fs::write(file, bytes).unwrap();
    file.clone()
}

#[test]
fn an_audit_that_cannot_tell_exits_with_2() {
    let mut audited = Audited::new(Backend::Embedded);
    let config = audited.place.path().join("lamina.toml").to_string_lossy().into_owned();
    let code = |more: &[&str]| {
        let audited = run(&[&["audit", "--config", &config, "--server", &audited.lamina.url], more].concat());
        (audited.status.code().unwrap(), String::from_utf8_lossy(&audited.stderr).into_owned())
    };
    let (unknown, errors) = code(&["nothing"]);
    assert!(unknown == 2 && errors.contains("unknown_metric"), "{errors}");
    let (step, errors) = code(&["--step", "7m"]);
    assert!(step == 2 && errors.contains("bytes keeps 1m, 1h"), "{errors}");
    let gone = audited.lamina.url.clone();
    audited.lamina.kill();
    let audited = run(&["audit", "--config", &config, "--server", &gone]);
    assert_eq!(audited.status.code(), Some(2), "{}", String::from_utf8_lossy(&audited.stderr));
}
