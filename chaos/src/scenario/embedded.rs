//! Everything in one process over the embedded log and store: killed, and without space on its disk.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;

use super::{Run, disk::Tmpfs};
use crate::{
    check::Checker,
    event::{Event, Events, REGIONS},
    failure::{Doing, Outcome, pause, until},
    history::History,
    kafka::lock,
    process::Process,
    query::{Filter, Group, METRIC, Query},
    readers::client,
    world::{DEFINITIONS, Totals},
};

const SECOND: Duration = Duration::from_secs(1);
/// Events of one request.
const BODY: usize = 100;
const SENDERS: usize = 2;

/// What senders have sent: each event is sent until it is acknowledged, and counts once.
#[derive(Default)]
struct Sent {
    /// Everything that was acknowledged.
    acknowledged: Vec<Event>,
    /// Events that are in a request that was begun.
    begun: u64,
    /// The latest token of each sender.
    tokens: [String; SENDERS],
    /// Requests that had to be sent again.
    again: u64,
}

struct Senders {
    sent: Arc<Mutex<Sent>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(url: &str, rate: u32, seed: u64) -> Self {
        let (sent, stop) = (Arc::new(Mutex::new(Sent::default())), Arc::new(AtomicBool::new(false)));
        let sender = |number: usize| {
            let (sent, stop, url) = (Arc::clone(&sent), Arc::clone(&stop), format!("{url}/v1/sources/readings/events"));
            let events = Events::new(seed + number as u64, 0..0).without_duplicates();
            std::thread::spawn(move || send(&url, number, events, rate / SENDERS as u32, &sent, &stop))
        };
        let threads = (0..SENDERS).map(sender).collect();
        Self { sent, stop, threads }
    }

    /// Ends once everything begun is acknowledged.
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.stop();
    }
}

fn send(url: &str, number: usize, mut events: Events, rate: u32, sent: &Mutex<Sent>, stop: &AtomicBool) {
    let client = client();
    let pace = Duration::from_secs_f64(BODY as f64 / f64::from(rate.max(1)));
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let now = chrono::Utc::now().timestamp_millis();
        let batch: Vec<Event> = (0..BODY).map(|_| events.next(now)).collect();
        let body: String = batch.iter().map(|event| event.payload() + "\n").collect();
        lock(sent).begun += BODY as u64;
        while !deliver(&client, url, number, &batch, &body, sent) {
            lock(sent).again += 1;
            if crate::failure::interrupted() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(pace.saturating_sub(begun.elapsed()));
    }
}

/// True once the log has acknowledged every event.
fn deliver(
    client: &reqwest::blocking::Client,
    url: &str,
    number: usize,
    batch: &[Event],
    body: &str,
    sent: &Mutex<Sent>,
) -> bool {
    let request = client.post(url).header("content-type", "application/x-ndjson").body(body.to_owned());
    let Ok(answer) = request.send() else { return false };
    if answer.status().as_u16() != 202 {
        return false;
    }
    let Ok(answer) = answer.json::<Value>() else { return false };
    let mut sent = lock(sent);
    sent.acknowledged.extend_from_slice(batch);
    if answer["accepted"].as_u64() != Some(batch.len() as u64) {
        eprintln!("a body was not accepted as a whole: {answer}");
    }
    answer["position"].as_str().unwrap_or_default().clone_into(&mut sent.tokens[number]);
    true
}

/// A process with everything in it, and who sends to it.
struct Whole {
    process: Process,
    senders: Senders,
    checker: Checker,
    client: reqwest::blocking::Client,
    begun: Instant,
    random: StdRng,
}

impl Whole {
    fn start(run: &Run<'_>, data: &Path) -> Outcome<Self> {
        let plan = run.plan();
        let doing = "write the configuration";
        let definitions = DEFINITIONS.replace("TOPIC", "readings").replace("\"30s\"", "\"1h\"");
        std::fs::write(plan.folder.join("metrics.toml"), definitions).doing(doing)?;
        let config = plan.folder.join("lamina.toml");
        let text = format!(
            "definitions = [\"metrics.toml\"]\ndata_dir = {data:?}\n[log]\npartitions = 4\n\
             [speed]\nflush_interval = \"500ms\"\nepoch = \"5s\"\n[batch]\nschedule = \"*/10 * * * * *\"\nlease = \"2s\"\n"
        );
        std::fs::write(&config, text).doing(doing)?;
        let mut process = Process::new(&plan.lamina, &config, &plan.folder, "all", 1)?;
        let client = client();
        process.start()?;
        process.wait_until_ready(&client)?;
        let senders = Senders::start(&process.url, plan.rate, plan.seed);
        let checker = Checker::new(Arc::new(Mutex::new(History::new())), plan.folder, true);
        let random = StdRng::seed_from_u64(plan.seed);
        Ok(Self { process, senders, checker, client, begun: Instant::now(), random })
    }

    /// Everything acknowledged before is in an answer that must be at least as new, and nothing that was never sent.
    fn check(&mut self) -> Outcome {
        self.process.check()?;
        let (least, tokens) = {
            let sent = lock(&self.senders.sent);
            (sent.acknowledged.len() as u64, sent.tokens.join(","))
        };
        let total = Query::everything(chrono::Utc::now().timestamp_millis(), Group::All, Filter::None);
        let mut parameters = total.parameters();
        parameters.push(("at_least", tokens));
        parameters.push(("wait", "30s".to_owned()));
        let request = self.client.get(format!("{}/v1/metrics/{METRIC}/query", self.process.url)).query(&parameters);
        let body = request.send().and_then(reqwest::blocking::Response::json::<Value>);
        let body = body.doing("read what was acknowledged")?;
        let most = lock(&self.senders.sent).begun;
        let count = body["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
        let complete = body["meta"]["complete"] == Value::Bool(true);
        self.checker.update(|figures| figures.checked += 1);
        if !complete || !(least..=most).contains(&count) {
            self.checker.wrong(format!("{least} events were acknowledged and {most} begun, but the answer is {body}"));
        }
        self.checker.verdict()
    }

    /// Every event counts once, in every series.
    fn finish(mut self) -> Outcome<Totals> {
        let seconds = self.begun.elapsed().as_secs();
        self.senders.stop();
        let mut last = Ok(());
        // The last ones become visible.
        for _ in 0..3 {
            last = self.check();
        }
        last?;
        let sent = std::mem::take(&mut *lock(&self.senders.sent));
        {
            let mut history = lock(&self.checker.history);
            for (offset, event) in (0..).zip(&sent.acknowledged) {
                history.absorb(0, offset, 0, *event);
            }
        }
        let positions = lock(&self.checker.history).ends();
        let now = chrono::Utc::now().timestamp_millis();
        let mut values = 0;
        for number in 0..REGIONS {
            let query = Query::everything(now, Group::Host, Filter::Region(number));
            let request =
                self.client.get(format!("{}/v1/metrics/{METRIC}/query", self.process.url)).query(&query.parameters());
            let body =
                request.send().and_then(reqwest::blocking::Response::json::<Value>).doing("read every series")?;
            let answer = query.parse(&body).doing("read every series")?;
            let expected = lock(&self.checker.history).answer(&query, &positions);
            values += expected.len() as u64;
            self.checker.update(|figures| figures.checked += 1);
            if !answer.complete || answer.states != expected {
                let differences = crate::query::differences(&expected, &answer.states, 20).join("\n");
                self.checker.wrong(format!("at the end, complete: {}:\n{differences}", answer.complete));
            }
        }
        self.checker.verdict()?;
        let mut figures = self.checker.figures();
        figures.values = values;
        figures.refused.insert("requests sent again".to_owned(), sent.again);
        let acknowledged = sent.acknowledged.len() as u64;
        Ok(Totals { seconds, acknowledged, records: acknowledged, final_values: values, figures, ..Totals::default() })
    }
}

pub(super) fn kill(run: &mut Run<'_>) -> Outcome<Totals> {
    let data = run.plan().folder.join("data");
    let mut whole = Whole::start(run, &data)?;
    let mut slowest = Duration::ZERO;
    for number in 0..100 {
        let works = whole.random.random_range(0.3..3.0);
        pause(SECOND.mul_f64(works))?;
        whole.process.kill();
        whole.process.start()?;
        slowest = slowest.max(whole.process.wait_until_ready(&whole.client)?);
        if number % 3 == 0 {
            whole.check()?;
        }
    }
    run.faults.push("100 x kill -9 of the one process".to_owned());
    run.notes.push(format!("ready again within {:.1} s at most", slowest.as_secs_f64()));
    run.notes.push("every event is sent until acknowledged, and counts exactly once".to_owned());
    let totals = whole.finish()?;
    let _ = std::fs::remove_dir_all(data);
    Ok(totals)
}

/// The data folder's disk is full, three times.
pub(super) fn full(run: &mut Run<'_>) -> Outcome<Totals> {
    let disk = Tmpfs::mount(&run.plan().folder.join("disk"), 1_024)?;
    let mut whole = Whole::start(run, &disk.folder)?;
    for _ in 0..3 {
        pause(10 * SECOND)?;
        whole.check()?;
        disk.fill()?;
        let before = lock(&whole.senders.sent).again;
        let client = &whole.client;
        let refused = || !whole.process.is_ready(client) && lock(&whole.senders.sent).again > before;
        until("a full disk is told", 90 * SECOND, refused)?;
        pause(10 * SECOND)?;
        disk.free()?;
        let before = lock(&whole.senders.sent).acknowledged.len();
        let takes = || whole.process.is_ready(client) && lock(&whole.senders.sent).acknowledged.len() > before;
        let took = until("it takes events again", 60 * SECOND, takes)?;
        whole.check()?;
        run.notes.push(format!("took events again {:.1} s after space returned", took.as_secs_f64()));
    }
    run.faults.push("3 x the data folder's disk is full".to_owned());
    whole.finish()
}
