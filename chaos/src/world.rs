//! A whole system over fresh topic, keyspace and archive: processes, generator, oracle, readers.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use crate::{
    backends::Addresses,
    check::{Checker, Figures, Reply},
    event::{Event, Events, PARTITIONS, REGIONS},
    failure::{Doing, Failure, Outcome, interrupted, pause, until},
    kafka::{self, Generator, Reader, lock},
    process::Process,
    query::{Filter, Group, Layer, METRIC, Query},
    readers::{Readers, client},
};

pub(crate) const DEFINITIONS: &str = r#"
[source.readings]
topic = "TOPIC"
format = "json"
time = "time"
time_unit = "ms"
id = "id"
dedup_window = "30s"

[source.readings.fields]
id = "string"
time = "int64"
region = "string"
host = "string"
value = "int64"

[metric.load]
source = "readings"
value = "value"
dimensions = ["region", "host"]
groupings = [["region"]]
aggregates = ["count", "sum", "min", "max"]
grain = "10s"
rollups = ["1m", "1h"]
"#;

const TOLD_EVERY: Duration = Duration::from_secs(30);

/// What differs between scenarios.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) lamina: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) addresses: Addresses,
    pub(crate) seed: u64,
    /// Events per second.
    pub(crate) rate: u32,
    pub(crate) speed: usize,
    pub(crate) batch: usize,
    pub(crate) serving: usize,
    /// Time between two queries of a reader.
    pub(crate) pace: Duration,
    pub(crate) epoch: &'static str,
    pub(crate) schedule: &'static str,
    /// Whether workers may lose partitions.
    pub(crate) takeovers: bool,
    /// Addresses that lamina is given instead of the real ones, which everybody else uses.
    pub(crate) through: Option<Addresses>,
    /// More lines of configuration.
    pub(crate) more: String,
    /// Where the archive lies, if not in the folder.
    pub(crate) archive: Option<PathBuf>,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) name: String,
    pub(crate) config: PathBuf,
    pub(crate) speed: Vec<Process>,
    pub(crate) batch: Vec<Process>,
    pub(crate) serving: Vec<Process>,
    pub(crate) checker: Arc<Checker>,
    pub(crate) client: reqwest::blocking::Client,
    pub(crate) random: StdRng,
    pub(crate) begun: Instant,
    generator: Generator,
    reader: Reader,
    readers: Readers,
    acknowledged_checked: u64,
    told: Instant,
}

impl World {
    /// Starts everything; returns once all is ready and events are served.
    pub(crate) fn start(plan: Plan) -> Outcome<Self> {
        Self::start_with(plan, 0..0, |_| {})
    }

    /// As [`World::start`]; the generator leaves a range of event times (Unix ms) alone.
    pub(crate) fn start_closed(plan: Plan, closed: Range<i64>) -> Outcome<Self> {
        Self::start_with(plan, closed, |_| {})
    }

    /// As [`World::start_closed`]; `adapt` may change how processes are started.
    pub(crate) fn start_with(plan: Plan, closed: Range<i64>, adapt: impl Fn(&mut Process)) -> Outcome<Self> {
        fs::create_dir_all(&plan.folder).doing(format!("make {}", plan.folder.display()))?;
        let name = format!("chaos_{:x}", chrono::Utc::now().timestamp_micros());
        let brokers = plan.addresses.kafka.join(",");
        kafka::make_topic(&brokers, &name, plan.addresses.kafka.len())?;
        let config = configure(&plan, &name)?;
        let process = |role, number| {
            let mut process = Process::new(&plan.lamina, &config, &plan.folder, role, number)?;
            adapt(&mut process);
            Ok(process)
        };
        let all = |role: &'static str, count: usize| {
            (1..=count).map(|number| process(role, number)).collect::<Outcome<Vec<_>>>()
        };
        let (mut speed, mut batch, mut serving) =
            (all("speed", plan.speed)?, all("batch", plan.batch)?, all("serving", plan.serving)?);
        migrate(&plan, &config)?;
        let client = client();
        for process in serving.iter_mut().chain(&mut speed).chain(&mut batch) {
            process.start()?;
        }
        for process in serving.iter().chain(&speed).chain(&batch) {
            process.wait_until_ready(&client)?;
        }
        let reader = Reader::start(&brokers, &name)?;
        let checker = Arc::new(Checker::new(Arc::clone(&reader.history), plan.folder.clone(), plan.takeovers));
        let generator = Generator::start(&brokers, &name, plan.rate, Events::new(plan.seed, closed))?;
        let urls: Vec<String> = serving.iter().map(|process| process.url.clone()).collect();
        let mut world = Self {
            readers: Readers::start(&checker, &[], plan.pace, plan.seed),
            random: StdRng::seed_from_u64(plan.seed),
            begun: Instant::now(),
            acknowledged_checked: 0,
            told: Instant::now(),
            config,
            plan,
            name,
            speed,
            batch,
            serving,
            checker,
            client,
            generator,
            reader,
        };
        let visible = || world.serving.iter().all(|process| world.sees_something(process));
        until("the first events are served", Duration::from_secs(60), visible)
            .map_err(|error| Failure::Broken(format!("{error}: {}", world.speed[0].log_tail())))?;
        world.readers = Readers::start(&world.checker, &urls, world.plan.pace, world.plan.seed);
        world.begun = Instant::now();
        Ok(world)
    }

    fn total(&self) -> Query {
        Query::everything(chrono::Utc::now().timestamp_millis(), Group::All, Filter::None)
    }

    fn sees_something(&self, process: &Process) -> bool {
        let total = self.total();
        let answer =
            self.client.get(format!("{}/v1/metrics/{METRIC}/query", process.url)).query(&total.parameters()).send();
        let body = answer.and_then(reqwest::blocking::Response::json::<serde_json::Value>);
        body.is_ok_and(|body| body["series"].as_array().is_some_and(|series| !series.is_empty()))
    }

    /// Lets it run, ending early if something is wrong.
    pub(crate) fn run_for(&mut self, length: Duration) -> Outcome {
        let end = Instant::now() + length;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            pause(left.min(Duration::from_millis(500)))?;
        }
    }

    /// # Errors
    /// If an answer was wrong, a process ended by itself, or an acknowledged event is not in the log.
    pub(crate) fn check(&mut self) -> Outcome {
        if self.told.elapsed() > TOLD_EVERY {
            self.told = Instant::now();
            eprintln!("{:4} s: {}", self.begun.elapsed().as_secs(), self.checker.figures());
        }
        if interrupted() {
            return Err(Failure::Interrupted);
        }
        self.checker.verdict()?;
        self.readers.check()?;
        self.reader.check()?;
        for process in self.speed.iter_mut().chain(&mut self.batch).chain(&mut self.serving) {
            process.check()?;
        }
        Ok(())
    }

    /// The cut of the published generation.
    pub(crate) fn cut(&self) -> Outcome<BTreeMap<i32, i64>> {
        match self.checker.ask(&self.client, &self.serving[0].url, &self.recent())? {
            Reply::Complete(answer) | Reply::Incomplete(answer) => Ok(answer.cut),
            Reply::Refused(why) => Err(Failure::Broken(format!("{} answers {why}", self.serving[0].name))),
        }
    }

    /// The published generation.
    pub(crate) fn generation(&self) -> Outcome<i64> {
        let request = self.client.get(format!("{}/v1/metrics/{METRIC}/query", self.serving[0].url));
        let answer = request.query(&self.recent().parameters()).send();
        let body = answer.and_then(reqwest::blocking::Response::json::<serde_json::Value>);
        let body = body.doing("ask for the published generation")?;
        body["meta"]["batch"]["generation"].as_i64().ok_or_else(|| Failure::Broken(format!("no generation in {body}")))
    }

    /// Sends events besides those of the generator; returns once Kafka has acknowledged them.
    pub(crate) fn send(&self, events: Vec<Event>) -> Outcome {
        kafka::send_all(&self.plan.addresses.kafka.join(","), &self.name, events)
    }

    /// Waits until every serving process answers with all that is in the log now; gives how long that took.
    pub(crate) fn caught_up(&self, within: Duration) -> Outcome<Duration> {
        let begun = Instant::now();
        self.reader.catch_up(within)?;
        let ends = lock(&self.reader.history).ends();
        for process in &self.serving {
            let reached = || match self.checker.ask(&self.client, &process.url, &self.recent()) {
                Ok(Reply::Complete(answer)) => {
                    ends.iter().all(|(partition, end)| answer.positions.get(partition) >= Some(end))
                }
                _ => false,
            };
            until(&format!("{} has caught up to {ends:?}", process.name), within, reached)?;
        }
        Ok(begun.elapsed())
    }

    /// A small query.
    pub(crate) fn recent(&self) -> Query {
        let to = chrono::Utc::now().timestamp_millis().div_euclid(60_000) * 60_000;
        Query { from: to - 60_000, to, step: None, group: Group::All, filter: Filter::None, layer: Layer::Merged }
    }

    /// The end: nothing is sent any more, everything is served, and every series of both layers is compared.
    pub(crate) fn finish(&mut self) -> Outcome<Totals> {
        let lasted = self.begun.elapsed();
        self.generator.stop();
        self.readers.stop()?;
        let catching_up = self.caught_up(Duration::from_secs(120))?;
        self.check_acknowledged()?;
        let figures_before = self.checker.figures();
        let now = chrono::Utc::now().timestamp_millis();
        for url in self.serving.iter().map(|process| process.url.clone()) {
            for number in 0..REGIONS {
                self.must_answer(&url, &Query::everything(now, Group::Host, Filter::Region(number)))?;
            }
            for (step, group) in [(60_000, Group::Region), (10_000, Group::All)] {
                let query = Query { step: Some(step), ..Query::everything(now, group, Filter::None) };
                self.must_answer(&url, &query)?;
            }
        }
        self.check()?;
        let figures = self.checker.figures();
        let (records, duplicates) = {
            let history = lock(&self.reader.history);
            (history.records() as u64, history.duplicates)
        };
        Ok(Totals {
            seconds: lasted.as_secs(),
            acknowledged: self.acknowledged_checked,
            unacknowledged: self.generator.failed(),
            records,
            duplicates,
            final_values: figures.values - figures_before.values,
            caught_up_ms: u64::try_from(catching_up.as_millis()).unwrap_or(u64::MAX),
            figures,
        })
    }

    fn must_answer(&self, url: &str, query: &Query) -> Outcome {
        for _ in 0..10 {
            if let Reply::Complete(_) = self.checker.ask(&self.client, url, query)? {
                return Ok(());
            }
            pause(Duration::from_secs(1))?;
        }
        Err(Failure::Broken(format!("{url} gives no complete answer at the end to {:?}", query.parameters())))
    }

    /// Every acknowledged event stands in the log where the broker said.
    fn check_acknowledged(&mut self) -> Outcome {
        let acknowledged = self.generator.take();
        let history = lock(&self.reader.history);
        let lost = |of: &&kafka::Acknowledged| !history.holds(of.partition, of.offset, of.id);
        self.acknowledged_checked += acknowledged.len() as u64;
        if self.acknowledged_checked != self.generator.acknowledged() {
            return Err(Failure::Broken("some acknowledgements were not checked".to_owned()));
        }
        let lost: Vec<_> = acknowledged.iter().filter(lost).collect();
        match lost.first() {
            None => Ok(()),
            Some(first) => Err(Failure::Broken(format!(
                "{} acknowledged events are not in the log, such as {:016x} at offset {} of partition {}",
                lost.len(),
                first.id,
                first.offset,
                first.partition
            ))),
        }
    }

    /// Removes what takes space; logs stay.
    pub(crate) fn tidy(&self) {
        let _ = fs::remove_dir_all(self.plan.folder.join("data"));
    }

    /// A process more than there were at the start.
    pub(crate) fn another(&self, role: &'static str, number: usize) -> Outcome<Process> {
        Process::new(&self.plan.lamina, &self.config, &self.plan.folder, role, number)
    }
}

/// What a scenario came to.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Totals {
    pub(crate) seconds: u64,
    /// Events that Kafka acknowledged, each found in the log.
    pub(crate) acknowledged: u64,
    /// Events of which nobody knows.
    pub(crate) unacknowledged: u64,
    pub(crate) records: u64,
    pub(crate) duplicates: u64,
    /// Values compared at the end.
    pub(crate) final_values: u64,
    pub(crate) caught_up_ms: u64,
    pub(crate) figures: Figures,
}

fn configure(plan: &Plan, name: &str) -> Outcome<PathBuf> {
    let doing = format!("write the configuration in {}", plan.folder.display());
    let definitions = plan.folder.join("metrics.toml");
    fs::write(&definitions, DEFINITIONS.replace("TOPIC", name)).doing(&*doing)?;
    let Addresses { kafka, cassandra } = plan.through.as_ref().unwrap_or(&plan.addresses);
    let replicas = (plan.addresses.kafka.len(), plan.addresses.cassandra.len());
    let archive = plan.archive.clone().unwrap_or_else(|| plan.folder.join("data/archive"));
    fs::create_dir_all(&archive).doing(&*doing)?;
    let text = format!(
        "definitions = [\"metrics.toml\"]\ndata_dir = \"data\"\n\
         [log]\nkind = \"kafka\"\nbrokers = \"{}\"\npartitions = {PARTITIONS}\nreplication_factor = {}\n\
         [log.options]\n\"session.timeout.ms\" = \"3000\"\n\"heartbeat.interval.ms\" = \"500\"\n\
         [store]\nkind = \"cassandra\"\ncontact_points = {cassandra:?}\nkeyspace = \"{name}\"\nreplication_factor = {}\n\
         [archive]\nurl = \"file://{}\"\n[speed]\nflush_interval = \"1s\"\nepoch = \"{}\"\ngroup = \"{name}\"\n\
         [batch]\nschedule = \"{}\"\n{}",
        kafka.join(","),
        replicas.0,
        replicas.1,
        archive.display(),
        plan.epoch,
        plan.schedule,
        plan.more,
    );
    let config = plan.folder.join("lamina.toml");
    fs::write(&config, text).doing(doing)?;
    Ok(config)
}

fn migrate(plan: &Plan, config: &Path) -> Outcome {
    let doing = "migrate the keyspace";
    let done = Command::new(&plan.lamina).arg("migrate").arg("--config").arg(config).output().doing(doing)?;
    if done.status.success() {
        return Ok(());
    }
    Err(Failure::Cannot { doing: doing.to_owned(), why: String::from_utf8_lossy(&done.stderr).into_owned() })
}
