//! Care for the archive, end to end: small files put together, read by DuckDB as they stand, events erased for good.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};

use super::{
    place::{Place, count_and_sum, event},
    process::{Backend, Lamina, in_ci, run},
};

const BODIES: usize = 12;
const EACH: usize = 40;
const EVENTS: usize = BODIES * EACH;
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z&aggregate=count,sum";
/// What DuckDB says of the accepted events in some files: (count, sum of sizes, records of site a).
const DUCKDB: &str = "import duckdb, json, sys
files = sys.argv[1:]
total = duckdb.sql(\"SELECT count(*), sum(size) FROM read_parquet($files) WHERE _outcome = 0 AND site <> 'hidden'\",
                   params={'files': files}).fetchall()[0]
of_a = duckdb.sql(\"SELECT count(*) FROM read_parquet($files) WHERE site = 'a' OR decode(_payload) LIKE '%\\\"a\\\"%'\",
                  params={'files': files}).fetchall()[0]
print(json.dumps([total[0], int(total[1]), of_a[0]]))";

struct Kept {
    place: Place,
    lamina: Lamina,
}

impl Kept {
    /// A partition's events lie in about a dozen epochs.
    fn new(backend: Backend) -> Self {
        let place = Place::new(backend);
        let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
        let kept = Self { place, lamina };
        for body in 0..BODIES {
            let events: String = (body * EACH..(body + 1) * EACH).map(|number| event(number) + "\n").collect();
            let sent =
                kept.lamina.request(reqwest::Method::POST, "/v1/sources/hits/events").body(events).send().unwrap();
            assert_eq!(sent.status(), 202, "{}", sent.text().unwrap());
            kept.lamina.until("it is sealed", || kept.sealed() == ((body + 1) * EACH) as u64);
        }
        kept
    }

    fn sealed(&self) -> u64 {
        let archive = self.lamina.get("/v1/sources/hits/archive", &[]);
        archive["partitions"].as_array().unwrap().iter().map(|one| one["sealed_end"].as_u64().unwrap()).sum()
    }

    fn files(&self) -> Vec<Value> {
        let archive = self.lamina.get("/v1/sources/hits/archive", &[]);
        let partitions = archive["partitions"].as_array().unwrap();
        assert!(partitions.iter().all(|one| one["holes"] == json!([])), "{archive}");
        partitions.iter().flat_map(|one| one["files"].as_array().unwrap().clone()).collect()
    }

    /// Runs what the schedule would, and gives the job's result.
    fn scheduled(&self) -> Value {
        let queued = self.lamina.request(reqwest::Method::POST, "/v1/schedule/run").send().unwrap();
        let job: Value = queued.json().unwrap();
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        self.lamina.until("the scheduled run ends", || self.lamina.get(&path, &[])["state"] == "succeeded");
        self.lamina.get(&path, &[])["result"].clone()
    }

    fn is_exactly(&self, (count, sum): (u64, u64)) {
        let answer = self.lamina.get(&format!("/v1/metrics/bytes/query?{RANGE}"), &[]);
        let point = &answer["series"][0]["points"][0];
        assert_eq!(answer["meta"]["complete"], true, "{answer}");
        assert_eq!((point["count"].as_u64(), point["sum"].as_u64()), (Some(count), Some(sum)), "{answer}");
    }

    fn audit_agrees(&self) {
        let config = self.place.path().join("lamina.toml");
        let audited =
            run(&["audit", "--config", &config.to_string_lossy(), "--server", &self.lamina.url, "--sample", "20"]);
        assert_eq!(audited.status.code(), Some(0), "{}", String::from_utf8_lossy(&audited.stderr));
    }

    /// Whether DuckDB, reading the files as they stand, comes to the same; `of_a` records tell of site a.
    fn duckdb_agrees(&self, (count, sum): (u64, u64), of_a: u64) {
        let Ok(python) = std::env::var("LAMINA_TEST_DUCKDB") else {
            assert!(!in_ci(), "LAMINA_TEST_DUCKDB must name a Python with DuckDB in continuous integration");
            return eprintln!("left out: LAMINA_TEST_DUCKDB is not set; `make test` sets it");
        };
        let root = self.place.path().join("data/archive");
        let files = self.files();
        let paths = files.iter().map(|file| root.join(file["archive"]["path"].as_str().unwrap()));
        let found = Command::new(python).args(["-c", DUCKDB]).args(paths).output().unwrap();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let found: Value = serde_json::from_slice(&found.stdout).unwrap();
        assert_eq!(found, json!([count, sum, of_a]));
    }
}

fn small_files_are_put_together_and_events_erased_for_good(backend: Backend) {
    if backend.skipped() {
        return;
    }
    let mut kept = Kept::new(backend);
    let of_a = (0..EVENTS).filter(|number| number % 3 == 0).count() as u64;
    let before = kept.files().len();
    let result = kept.scheduled();
    assert!(result["archive"]["hits"]["files_merged"].as_u64() >= Some(8), "{before} files: {result}");
    assert!(kept.files().len() + 8 <= before, "{before} files: {:?}", kept.files());
    kept.is_exactly(count_and_sum(EVENTS));
    kept.duckdb_agrees(count_and_sum(EVENTS), of_a);
    kept.audit_agrees();
    kept.lamina.kill();
    kept.lamina.restart();
    kept.lamina.recompute_all();
    kept.is_exactly(count_and_sum(EVENTS));

    let url = kept.lamina.url.clone();
    let erase = |more: &[&str]| {
        let arguments = ["erase", "hits", "--server", &url, "--where", "site = 'a'", "--reason", "request 4711"];
        let done = run(&[&arguments[..], more].concat());
        assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), kept.lamina.log_tail());
        let text = String::from_utf8(done.stdout).unwrap();
        let (job, report) = text.split_once('\n').unwrap();
        (job.to_owned(), serde_json::from_str::<Value>(report).unwrap())
    };
    let (_, found) = erase(&["--dry-run"]);
    assert_eq!((found["records"].as_u64(), found["files_removed"].as_u64()), (Some(of_a), Some(0)), "{found}");
    kept.is_exactly(count_and_sum(EVENTS));
    let (job, report) = erase(&[]);
    assert_eq!(report["records"].as_u64(), Some(of_a), "{report}");
    let left = (0..EVENTS).filter(|number| number % 3 == 1).fold((0, 0), |(n, sum), size| (n + 1, sum + size as u64));
    kept.is_exactly(left);
    kept.duckdb_agrees(left, 0);
    let job = kept.lamina.get(&format!("/v1/jobs/{job}"), &[]);
    assert_eq!((&job["request"]["where"], &job["request"]["reason"]), (&Value::Null, &json!("request 4711")));
    let erased: u64 = kept.files().iter().map(|file| file["archive"]["counts"]["erased"].as_u64().unwrap()).sum();
    assert_eq!(erased, of_a);

    let back = kept.lamina.request(reqwest::Method::POST, "/v1/metrics/bytes/rollback").send().unwrap();
    assert_eq!(back.status(), 409, "there is no way back");
    kept.lamina.recompute_all();
    kept.is_exactly(left);
    kept.audit_agrees();
    kept.lamina.kill();
    kept.lamina.restart();
    kept.is_exactly(left);

    let refused = kept.lamina.request(reqwest::Method::POST, "/v1/sources/hits/erasures");
    let refused = refused.json(&json!({"where": "sight = 'a'"})).send().unwrap();
    assert_eq!(refused.status(), 400);
    let problem: Value = refused.json().unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("sight"), "{problem}");
    assert!(kept.lamina.stop(Duration::from_secs(30)).success());
}

#[test]
fn embedded_small_files_are_put_together_and_events_erased_for_good() {
    small_files_are_put_together_and_events_erased_for_good(Backend::Embedded);
}

#[test]
fn real_small_files_are_put_together_and_events_erased_for_good() {
    small_files_are_put_together_and_events_erased_for_good(Backend::Real);
}
