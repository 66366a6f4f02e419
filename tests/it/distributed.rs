//! Batch on executors that are processes of their own: what they give is what one process gives, and one that is killed
//! while it folds costs nothing but time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    place::Place,
    process::{Backend, Lamina, Launch, Settings, configure, free_port, run},
};

const EVENTS: usize = 40_000;
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T02:00:00Z";
/// Every kind of aggregate over every kind of number, by texts some of which are missing.
const ASKED: [(&str, &str); 4] = [
    ("sizes", "count,sum,avg,min,max,first,last,distinct(user),p50,p99,top(user)"),
    ("prices", "count,sum,min,max,first,last,p90"),
    ("ratios", "count,sum,min,max,first,last,p90"),
    ("visits", "count,distinct(user)"),
];

const DEFINITIONS: &str = r#"
[source.shop]
topic = "TOPIC"
format = "json"
time = "time"
id = "id"

[source.shop.fields]
time = "timestamp"
id = "string"
site = "string"
zone = "string"
user = "string"
size = "int64"
price = "decimal(20,4)"
ratio = "float64"

[metric.sizes]
source = "shop"
where = "site <> 'hidden' OR site IS NULL"
value = "size"
dimensions = ["site", "zone"]
groupings = [["site"]]
aggregates = ["count", "sum", "avg", "min", "max", "first", "last", "distinct(user)", "quantiles", "top(user, 5)"]
grain = "1m"
rollups = ["1h"]
max_series = 9

[metric.prices]
source = "shop"
value = "price"
dimensions = ["site"]
aggregates = ["count", "sum", "min", "max", "first", "last", "quantiles"]
grain = "1m"

[metric.ratios]
source = "shop"
value = "ratio"
dimensions = ["zone"]
aggregates = ["count", "sum", "min", "max", "first", "last", "quantiles"]
grain = "1m"

[metric.visits]
source = "shop"
dimensions = ["site"]
aggregates = ["count", "distinct(user)"]
grain = "10s"
"#;

fn event(number: usize) -> String {
    let mut event = json!({
        "time": format!("2020-01-01T0{}:{:02}:{:02}Z", number % 2, number % 60, number % 59),
        "id": format!("e{number}"),
        "user": format!("u{}", number % 211),
        "size": (number * 37 % 10_007) as i64 - 5_000,
        "price": format!("{}.{:04}", number % 991, number % 10_000),
        // A sum of halves is exact in any order.
        "ratio": (number % 1_000) as f64 / 2.0,
    });
    if !number.is_multiple_of(5) {
        event["site"] = ["a", "b", "hidden"][number % 3].into();
    }
    if !number.is_multiple_of(7) {
        event["zone"] = format!("z{}", number % 4).into();
    }
    event.to_string()
}

/// A process that leads batch, and executors beside it.
struct Shop {
    place: Place,
    settings: Settings,
}

impl Shop {
    fn new(backend: Backend) -> Self {
        let place = Place::new(backend);
        let mut settings = place.settings();
        settings.definitions = place.path().join("shop.toml");
        fs::write(&settings.definitions, DEFINITIONS.replace("TOPIC", &format!("{}-shop", place.name))).unwrap();
        if backend == Backend::Real {
            let (config, _) = configure(place.path(), &settings, &place.name);
            let migrated = run(&["migrate", "--config", &config.to_string_lossy()]);
            assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        }
        Self { place, settings }
    }

    fn start(&self, name: &str, roles: Vec<&'static str>, change: impl FnOnce(String) -> String) -> Lamina {
        let launch = Launch { roles, ..Launch::default() };
        Lamina::start_as(name, launch, self.place.path(), &self.settings, &self.place.name, change)
    }

    /// An executor over the archive below `data`, and where it takes plans.
    fn executor(&self, name: &str, data: &Path) -> (Lamina, String) {
        let own = self.place.path().join("data");
        let address = format!("127.0.0.1:{}", free_port());
        let listen = format!("[executor]\nlisten = {address:?}\n");
        let change = |text: String| text.replace(&format!("{own:?}"), &format!("{data:?}")) + &listen;
        (self.start(name, vec!["executor"], change), format!("http://{address}"))
    }

    fn leader(&self, executors: &[&str]) -> Lamina {
        let keys = format!("retries = 0\nengine = \"distributed\"\nexecutors = {executors:?}\n");
        self.start("leader", Vec::new(), |text| text + &keys)
    }

    /// Sends all events and waits until they are in the archive.
    fn fill(&self, lamina: &Lamina) {
        let file = self.place.path().join("events.ndjson");
        for part in 0..4 {
            let events: Vec<String> = (part * EVENTS / 4..(part + 1) * EVENTS / 4).map(event).collect();
            fs::write(&file, events.join("\n")).unwrap();
            lamina.ingest("shop", &file);
            lamina.until("all is sealed", || {
                let epochs = lamina.get("/v1/sources/shop/epochs", &[]);
                let ends =
                    epochs["partitions"].as_array().unwrap().iter().map(|one| one["sealed_end"].as_u64().unwrap());
                ends.sum::<u64>() == ((part + 1) * EVENTS / 4) as u64
            });
        }
    }

    /// Recomputes everything; gives the job once it is over.
    fn recompute(&self, lamina: &Lamina, meanwhile: impl FnOnce()) -> Value {
        let asked = lamina.request(Method::POST, "/v1/recomputes").json(&json!({"reason": "test"})).send().unwrap();
        let job: Value = asked.json().unwrap();
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        meanwhile();
        lamina.until("the job is over", || {
            ["succeeded", "failed"].contains(&lamina.get(&path, &[])["state"].as_str().unwrap())
        });
        lamina.get(&path, &[])
    }

    /// Every value of every series, in all the ways in which it can be asked for; nothing of the proof beside it.
    fn answers(&self, lamina: &Lamina) -> Vec<Value> {
        let mut all = Vec::new();
        for (metric, aggregates) in ASKED {
            for by in [&["site", "zone"][..], &["site"], &["zone"], &[]] {
                for step in ["1m", "1h"] {
                    let path = format!("/v1/metrics/{metric}/query?{RANGE}&aggregate={aggregates}&step={step}");
                    let path = if by.is_empty() { path } else { path + "&group_by=" + &by.join(",") };
                    let answer = lamina.request(Method::GET, &path).send().unwrap();
                    if answer.status() == 400 {
                        continue;
                    }
                    let answer: Value = answer.json().unwrap();
                    assert_eq!(answer["meta"]["complete"], true, "{path}: {answer}");
                    let generation = answer["meta"]["batch"]["generation"].as_u64();
                    assert!(generation > Some(0), "{path}: batch made no part of this");
                    assert_eq!(answer["meta"]["batch"]["cut"], answer["meta"]["speed"]["positions"], "{path}");
                    all.push(answer["series"].clone());
                }
            }
        }
        assert!(all.len() >= 16, "only {} questions were answered", all.len());
        all
    }

    /// The archive's folder once more, with pipes for files: whoever opens one waits.
    fn stalled(&self) -> PathBuf {
        let (data, stalled) = (self.place.path().join("data"), self.place.path().join("stalled"));
        for file in files(&data.join("archive")) {
            let pipe = stalled.join(file.strip_prefix(&data).unwrap());
            fs::create_dir_all(pipe.parent().unwrap()).unwrap();
            assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        }
        stalled
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// One measurement of a process, summed over its labels.
fn measured(lamina: &Lamina, name: &str) -> f64 {
    let text = lamina.request(Method::GET, "/metrics").send().unwrap().text().unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn executors_give_what_one_process_gives(backend: Backend) {
    if backend.skipped() {
        return;
    }
    let shop = Shop::new(backend);
    let data = shop.place.path().join("data");
    let (first, one) = shop.executor("first", &data);
    let (second, other) = shop.executor("second", &data);
    let mut leader = shop.leader(&[&one, &other]);
    shop.fill(&leader);
    let job = shop.recompute(&leader, || ());
    assert_eq!(job["state"], "succeeded", "{job}\n{}", leader.log_tail());
    let distributed = shop.answers(&leader);
    let taken = |lamina: &Lamina| measured(lamina, "lamina_executor_shares_total");
    let shares = (taken(&first), taken(&second));
    assert!(shares.0 > 0.0 && shares.1 > 0.0, "an executor did nothing: {shares:?}");
    assert!(measured(&leader, "lamina_batch_executors") >= 2.0);
    assert!(leader.stop(std::time::Duration::from_secs(60)).success());

    let leader = shop.start("local", Vec::new(), |text| text);
    leader.recompute_all();
    let local = shop.answers(&leader);
    assert_eq!((taken(&first), taken(&second)), shares, "one process folds by itself");
    for (one, other) in distributed.iter().zip(&local) {
        assert_eq!(one, other);
    }
}

#[test]
fn executors_give_what_one_process_gives_embedded() {
    executors_give_what_one_process_gives(Backend::Embedded);
}

#[test]
fn executors_give_what_one_process_gives_kafka_cassandra() {
    executors_give_what_one_process_gives(Backend::Real);
}

#[test]
fn an_executor_killed_while_it_folds_costs_its_share_nothing() {
    let shop = Shop::new(Backend::Embedded);
    let data = shop.place.path().join("data");
    let leader = shop.start("filling", Vec::new(), |text| text);
    shop.fill(&leader);
    leader.recompute_all();
    let expected = shop.answers(&leader);
    drop(leader);

    let (mut victim, stalls) = shop.executor("victim", &shop.stalled());
    let (mut other, works) = shop.executor("other", &data);
    let leader = shop.leader(&[&works, &stalls]);
    let lost = || measured(&leader, "lamina_batch_executors_lost_total");
    let job = shop.recompute(&leader, || {
        leader.until("both executors fold", || {
            [&victim, &other].iter().all(|one| measured(one, "lamina_executor_shares_total") > 0.0)
        });
        assert_eq!(lost(), 0.0, "both were there when the run began");
        victim.kill();
    });
    assert_eq!((&job["state"], &job["attempts"]), (&json!("succeeded"), &json!(1)), "{job}\n{}", leader.log_tail());
    assert!(lost() >= 1.0 && leader.log_tail().contains("left out"), "{}", leader.log_tail());
    assert_eq!(shop.answers(&leader), expected);

    other.kill();
    let job = shop.recompute(&leader, || ());
    let error = job["error"].to_string();
    assert!(job["state"] == "failed" && error.contains("no executor of batch.executors is left"), "{job}");
    assert!(error.contains(works.trim_start_matches("http://")), "{error}");
    other.restart();
    let job = shop.recompute(&leader, || ());
    assert_eq!(job["state"], "succeeded", "an executor that is there again is used again: {job}");
    assert_eq!(shop.answers(&leader), expected);
}

#[test]
fn an_executor_runs_by_itself_and_on_loopback_only() {
    let place = Place::new(Backend::Embedded);
    let (config, _) = configure(place.path(), &place.settings(), &place.name);
    let config_text = fs::read_to_string(&config).unwrap();
    let config = config.to_string_lossy();
    let both = run(&["serve", "--config", &config, "--role", "executor", "--role", "batch"]);
    let error = String::from_utf8_lossy(&both.stderr).into_owned();
    assert!(both.status.code() == Some(2) && error.contains("by itself"), "{error}");
    fs::write(&*config, config_text + "[executor]\nlisten = \"0.0.0.0:9301\"\n").unwrap();
    let open = run(&["serve", "--config", &config, "--role", "executor"]);
    let error = String::from_utf8_lossy(&open.stderr).into_owned();
    assert!(
        open.status.code() == Some(2) && error.contains("executor.listen") && error.contains("loopback"),
        "{error}"
    );
}
