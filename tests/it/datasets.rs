//! Seven real data sets against their truths, through the HTTP interface of a spawned binary, in five situations that must
//! all answer alike.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;

use super::{
    process::{Addresses, Backend, Lamina, Settings},
    truth::{self, DataSet},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Situation {
    /// Batch has never run.
    SpeedOnly,
    /// Half of the events came before a batch run, half after, spread over the same buckets.
    BatchInTheMiddle,
    /// Batch covers everything.
    AllCovered,
    /// kill -9 in an unsealed epoch with acknowledged events, and restart.
    Killed,
    /// Shuffled, and a tenth arrives after batch covered its buckets.
    Shuffled,
}

const SITUATIONS: [Situation; 5] =
    [Situation::SpeedOnly, Situation::BatchInTheMiddle, Situation::AllCovered, Situation::Killed, Situation::Shuffled];
const PARTITIONS: u32 = 4;

/// A data set as lines, with the header that each file of them begins with.
struct Events {
    header: Option<String>,
    lines: Vec<String>,
    extension: String,
}

impl Events {
    fn read(path: &Path) -> Self {
        let mut text = String::new();
        GzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let extension = if name.contains(".csv") { "csv" } else { "ndjson" }.to_owned();
        let mut lines = text.lines().map(str::to_owned);
        let header = (extension == "csv").then(|| lines.next().expect("a header"));
        Self { header, lines: lines.collect(), extension }
    }

    fn write<'a>(&self, folder: &Path, name: &str, lines: impl Iterator<Item = &'a String>) -> PathBuf {
        let path = folder.join(format!("{name}.{}", self.extension));
        let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
        for line in self.header.iter() {
            writeln!(file, "{line}").unwrap();
        }
        for line in lines {
            writeln!(file, "{line}").unwrap();
        }
        file.flush().unwrap();
        path
    }

    fn shuffled(&self) -> Vec<String> {
        let mut lines = self.lines.clone();
        lines.shuffle(&mut StdRng::seed_from_u64(7));
        lines
    }
}

/// One data set in one situation on one backend.
struct Check<'a> {
    name: &'a str,
    set: &'a DataSet,
    data: &'a Path,
    backend: Backend,
    situation: Situation,
    tokens: Vec<String>,
}

impl Check<'_> {
    /// Brings the situation about; gives the process and the number of truths that hold.
    fn run(mut self) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::read(&truth::file_of(self.data, self.name));
        let keyspace = format!("t{}", uuid::Uuid::new_v4().simple());
        let mut lamina = Lamina::start(folder.path(), &self.settings(folder.path(), &keyspace), &keyspace);
        match self.situation {
            Situation::SpeedOnly => self.send(&lamina, &events, "all", events.lines.iter()),
            Situation::BatchInTheMiddle => {
                self.send(&lamina, &events, "even", events.lines.iter().step_by(2));
                self.cover(&lamina);
                self.send(&lamina, &events, "odd", events.lines.iter().skip(1).step_by(2));
            }
            Situation::AllCovered => {
                self.send(&lamina, &events, "all", events.lines.iter());
                self.cover(&lamina);
            }
            Situation::Killed => {
                self.send(&lamina, &events, "all", events.lines.iter());
                lamina.kill();
                lamina.restart();
            }
            Situation::Shuffled => {
                let shuffled = events.shuffled();
                let (early, late) = shuffled.split_at(shuffled.len() * 9 / 10);
                self.send(&lamina, &events, "early", early.iter());
                self.cover(&lamina);
                self.send(&lamina, &events, "late", late.iter());
            }
        }
        let held = self.check_truths(&lamina);
        self.check_situation(&lamina);
        held
    }

    fn settings(&self, folder: &Path, keyspace: &str) -> Settings {
        // Kafka's topics outlive a process, so each check has topics of its own
        let example = truth::examples().join(self.name).join("metrics.toml");
        let text = fs::read_to_string(&example).unwrap_or_else(|error| panic!("{}: {error}", example.display()));
        let topic = format!("topic = \"{}\"", self.name);
        assert!(text.contains(&topic), "{} does not say {topic}", example.display());
        let definitions = folder.join("metrics.toml");
        fs::write(&definitions, text.replace(&topic, &format!("topic = \"{keyspace}\""))).unwrap();
        let never = matches!(self.situation, Situation::SpeedOnly | Situation::Killed);
        Settings {
            definitions,
            backend: self.backend,
            addresses: Addresses::default(),
            partitions: PARTITIONS,
            // the epoch that is killed must be unsealed
            epoch: if self.situation == Situation::Killed { "10m" } else { "1s" },
            schedule: if never || self.situation == Situation::BatchInTheMiddle { "off" } else { "* * * * * *" },
        }
    }

    fn send<'a>(&mut self, lamina: &Lamina, events: &Events, name: &str, lines: impl Iterator<Item = &'a String>) {
        let file = events.write(&lamina.folder, name, lines);
        self.tokens.push(lamina.ingest(self.name, &file));
    }

    /// Waits until everything sent so far is sealed, and covered by batch: by its schedule, or by a recompute.
    fn cover(&self, lamina: &Lamina) {
        if self.situation == Situation::BatchInTheMiddle {
            lamina.until("every epoch is sealed and recomputed", || {
                lamina.recompute_all();
                self.metrics().iter().all(|metric| covered(&self.ask(lamina, metric)))
            });
        } else {
            lamina.until("batch covers everything", || {
                self.metrics().iter().all(|metric| covered(&self.ask(lamina, metric)))
            });
        }
    }

    fn metrics(&self) -> BTreeSet<&str> {
        self.set.query.iter().map(|truth| truth.metric.as_str()).collect()
    }

    /// The count of everything, at least up to what was sent.
    fn ask(&self, lamina: &Lamina, metric: &str) -> Value {
        let truth = self.set.query.iter().find(|truth| truth.metric == metric).expect("a truth of the metric");
        let mut parameters: Vec<_> = [("from", &truth.params["from"]), ("to", &truth.params["to"])]
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .into();
        parameters.extend(self.at_least());
        lamina.query(metric, &parameters)
    }

    fn at_least(&self) -> Vec<(String, String)> {
        let mut parameters: Vec<_> = self.tokens.iter().map(|token| ("at_least".to_owned(), token.clone())).collect();
        parameters.push(("wait".to_owned(), "60s".to_owned()));
        parameters
    }

    fn check_truths(&self, lamina: &Lamina) -> usize {
        let wanted = truth::truths(self.data, self.name);
        let mut differences = Vec::new();
        let mut held = BTreeSet::new();
        for truth in &self.set.query {
            let mut parameters = truth.parameters();
            parameters.extend(self.at_least());
            let answer = lamina.query(&truth.metric, &parameters);
            assert_eq!(answer["meta"]["complete"], Value::Bool(true), "{}: {}", truth.truth, answer["meta"]);
            let found = truth.differences(&answer, &wanted[&truth.truth]);
            if found.is_empty() {
                held.insert(truth.truth.clone());
            }
            differences.extend(found.into_iter().take(5).map(|difference| format!("{}: {difference}", truth.truth)));
        }
        assert!(
            differences.is_empty(),
            "{} on {:?}, {:?}:\n  {}\n{}",
            self.name,
            self.backend,
            self.situation,
            differences.join("\n  "),
            lamina.log_tail()
        );
        held.len()
    }

    /// The situation is what it claims to be.
    fn check_situation(&self, lamina: &Lamina) {
        let metric = *self.metrics().first().expect("a metric");
        let meta = self.ask(lamina, metric)["meta"].clone();
        let (cut, end) = (total(&meta["batch"]["cut"]), total(&meta["speed"]["positions"]));
        match self.situation {
            Situation::SpeedOnly | Situation::Killed => assert_eq!(cut, 0, "batch ran: {meta}"),
            Situation::AllCovered => assert!(cut == end && end > 0, "batch does not cover everything: {meta}"),
            Situation::Shuffled => assert!(0 < cut && cut <= end, "batch never ran: {meta}"),
            Situation::BatchInTheMiddle => {
                assert!(0 < cut && cut < end, "batch is not in the middle: {meta}");
                let share = self.fed_by_both(lamina, metric);
                assert!(share >= 0.1, "only {share} of the buckets are fed by both layers");
            }
        }
    }

    /// The share of the first rollup's buckets to which both layers contribute.
    fn fed_by_both(&self, lamina: &Lamina, metric: &str) -> f64 {
        let truth = self.set.query.iter().find(|truth| truth.metric == metric).expect("a truth of the metric");
        let known = lamina.get(&format!("/v1/metrics/{metric}"), &[]);
        let definition = &known["definition"];
        let width = definition["rollups"][0].as_str().or(definition["grain"].as_str()).expect("a grain");
        let buckets = |layer: &str| -> BTreeSet<String> {
            let parameters = [
                ("from", truth.params["from"].as_str()),
                ("to", truth.params["to"].as_str()),
                ("step", width),
                ("layer", layer),
            ];
            let parameters: Vec<_> = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            let answer = lamina.query(metric, &parameters);
            let points =
                answer["series"].as_array().expect("series").iter().flat_map(|series| series["points"].as_array());
            points.flatten().filter_map(|point| point["start"].as_str().map(str::to_owned)).collect()
        };
        let (batch, speed) = (buckets("batch"), buckets("speed"));
        batch.intersection(&speed).count() as f64 / batch.union(&speed).count().max(1) as f64
    }
}

/// Sum of the offsets of a cut or of positions.
fn total(offsets: &Value) -> u64 {
    offsets.as_object().map_or(0, |offsets| offsets.values().filter_map(Value::as_u64).sum())
}

fn covered(answer: &Value) -> bool {
    let meta = &answer["meta"];
    total(&meta["batch"]["cut"]) == total(&meta["speed"]["positions"])
}

/// Runs every situation of a data set; prints a line of the table of truths for each.
fn check(name: &str, backend: Backend) {
    let Some(data) = truth::data_folder() else { return };
    if backend.skipped() {
        return;
    }
    let sets = truth::data_sets();
    let set = &sets[name];
    let distinct: BTreeSet<&str> = set.query.iter().map(|truth| truth.truth.as_str()).collect();
    for situation in SITUATIONS {
        let held = Check { name, set, data: &data, backend, situation, tokens: Vec::new() }.run();
        eprintln!("truths: {name} | {backend:?} | {situation:?} | {held} / {} | 0 differences", distinct.len());
        assert_eq!(held, distinct.len());
    }
}

/// At least eight truths a set and sixty in all; each truth is asked, or left out with a reason.
#[test]
fn every_truth_is_asked_or_left_out_with_a_reason() {
    let Some(data) = truth::data_folder() else { return };
    let sets = truth::data_sets();
    let mut asked_in_all = 0;
    for (name, set) in &sets {
        let asked: BTreeSet<&str> = set.query.iter().map(|truth| truth.truth.as_str()).collect();
        for truth in truth::truths(&data, name).keys() {
            let left_out = set.left_out.contains_key(truth);
            assert!(asked.contains(truth.as_str()) != left_out, "{name}: {truth} must be either asked or left out");
        }
        assert!(asked.len() >= 8, "{name}: only {} truths are asked", asked.len());
        asked_in_all += asked.len();
    }
    assert_eq!(sets.len(), 7);
    assert!(asked_in_all >= 60, "only {asked_in_all} truths are asked");
}

macro_rules! checks {
    ($($test:ident: $name:literal on $backend:ident;)*) => { $(#[test] fn $test() { check($name, Backend::$backend); })* };
}

checks! {
    embedded_ad_impressions: "ad_impressions" on Embedded;
    embedded_cloudwatch: "cloudwatch" on Embedded;
    embedded_iot_telemetry: "iot_telemetry" on Embedded;
    embedded_online_retail: "online_retail" on Embedded;
    embedded_quakes: "quakes" on Embedded;
    embedded_trades: "trades" on Embedded;
    embedded_wikiticker: "wikiticker" on Embedded;
    real_iot_telemetry: "iot_telemetry" on Real;
    real_quakes: "quakes" on Real;
    real_wikiticker: "wikiticker" on Real;
}
