//! One seed from beginning to end: steps of producers, readers, time and nemesis; then peace, and the final account.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{body::Body, http::Request};
use bytes::Bytes;
use lamina_core::{Micros, Offset, Partition, generation::VIEW_DOCUMENTS, jobs::JOB_DOCUMENTS};

use crate::{
    check::{Checks, sealed_now},
    counts::Happening,
    events,
    oracle::Oracle,
    plan::{Plan, SECOND, TOPIC},
    process::{Process, Replies, Reply},
    query::{Asked, Layer, Query},
    random::Random,
    world::{Role, Shared, World},
};

/// Longest time of peace in which everything must heal, in µs of simulated time.
const PEACE: Micros = 240 * SECOND;

/// What a serving process was asked.
pub(crate) enum Sent {
    Query(Box<Asked>),
    /// Ids of the events that were sent.
    Ingest(Vec<String>),
    Recompute,
}

pub(crate) struct Driver {
    pub(crate) world: Shared,
    pub(crate) random: Random,
    processes: Vec<Process>,
    replies: Replies<Sent>,
    pub(crate) oracle: Oracle,
    checks: Checks,
    step: u64,
    asked: u64,
    events: u64,
    /// Ids of events sent lately.
    recent: Vec<String>,
    /// Tokens of ingests with the positions that they stand for.
    tokens: Vec<(String, BTreeMap<Partition, Offset>)>,
    revision: u64,
    /// Everything is covered: from now on answers must be whole.
    is_final: bool,
}

impl Driver {
    pub(crate) fn new(seed: u64, keep_trace: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::of(&mut random);
        let world = World::new(plan.clone(), Random::new(random.next()), keep_trace);
        let number = |role| match role {
            Role::Speed => plan.speed_workers,
            Role::Batch | Role::Serving => 2,
        };
        let processes = [Role::Speed, Role::Batch, Role::Serving].into_iter();
        let processes = processes.flat_map(|role| (0..number(role)).map(move |at| Process::new(role, at))).collect();
        let mut driver = Self {
            world: Shared::new(world),
            random,
            processes,
            replies: Arc::new(Mutex::new(Vec::new())),
            oracle: Oracle::default(),
            checks: Checks::default(),
            step: 0,
            asked: 0,
            events: 0,
            recent: Vec::new(),
            tokens: Vec::new(),
            revision: 1,
            is_final: false,
        };
        driver.world.lock().note(format_args!("{plan:?}"));
        for at in 0..driver.processes.len() {
            driver.start(at);
        }
        driver
    }

    /// Steps until all are done or a law does not hold; then the final account.
    pub(crate) fn run(&mut self) -> u64 {
        let steps = self.plan().steps;
        while self.step < steps && !self.is_violated() {
            self.step += 1;
            self.act();
            let pause = 100 + self.random.below(400) as i64;
            self.pass(pause);
        }
        if !self.is_violated() {
            self.make_peace();
        }
        self.step
    }

    fn plan(&self) -> Plan {
        self.world.lock().plan.clone()
    }

    pub(crate) fn is_violated(&self) -> bool {
        self.world.lock().violation.is_some()
    }

    fn start(&mut self, at: usize) {
        // A process that starts finds the definitions as they are; sometimes it reads them before they change.
        let revision = if self.revision > 1 && self.random.permille(200) { 1 } else { self.revision };
        let catalog = self.world.lock().plan.catalog(revision);
        self.processes[at].start(&self.world, catalog);
    }

    fn act(&mut self) {
        let plan = self.plan();
        if plan.revise_at == Some(self.step) {
            self.revision = 2;
            self.world.lock().count(Happening::Revision);
        }
        let action = self.random.below(1000);
        if action < plan.nemesis {
            return self.nemesis();
        }
        match self.random.below(100) {
            0..50 => self.produce(),
            50..55 => self.ingest(),
            55..82 => self.ask(),
            _ => self.learn(),
        }
    }

    /// A process learns of the new definitions.
    fn learn(&mut self) {
        let lagging: Vec<usize> = (0..self.processes.len())
            .filter(|&at| self.processes[at].revision().is_some_and(|known| known < self.revision))
            .collect();
        if lagging.is_empty() {
            return;
        }
        let at = *self.random.pick(&lagging);
        let catalog = self.world.lock().plan.catalog(self.revision);
        self.processes[at].define(catalog);
        let who = self.processes[at].who();
        self.world.lock().note(format_args!("{who} learns of revision {}", self.revision));
    }

    fn produce(&mut self) {
        let mut world = self.world.lock();
        let world = &mut *world;
        for _ in 0..1 + self.random.below(8) {
            let partition = self.random.below(u64::from(world.plan.partitions)) as Partition;
            // The log's clock does not always go forward.
            let appended_at = world.now - self.random.within(0, 1_500_000);
            let Ok(log) = world.log.partition_mut(TOPIC, partition) else { continue };
            if self.random.permille(25) {
                log.push(appended_at, None, None);
                world.counts.add(Happening::Gap);
                continue;
            }
            self.events += 1;
            let made = events::make(&mut self.random, self.events, world.now, &self.recent, !world.plan.cut_off);
            made.happened.into_iter().for_each(|what| world.counts.add(what));
            log.push(appended_at, None, Some(Bytes::from(made.payload)));
            self.recent.extend(made.id);
        }
        let keep = self.recent.len().saturating_sub(40);
        self.recent.drain(..keep);
    }

    fn serving(&mut self) -> Option<usize> {
        let running = |at: &usize| {
            let process = &self.processes[*at];
            process.role == Role::Serving && process.running.is_some() && !process.is_paused()
        };
        let running: Vec<usize> = (0..self.processes.len()).filter(running).collect();
        (!running.is_empty()).then(|| *self.random.pick(&running))
    }

    fn ingest(&mut self) {
        let Some(at) = self.serving() else { return };
        let now = self.world.lock().now;
        let (mut body, mut ids) = (String::new(), Vec::new());
        for _ in 0..1 + self.random.below(4) {
            self.events += 1;
            let made = events::valid(&mut self.random, self.events, now);
            body.push_str(&made.payload);
            body.push('\n');
            ids.extend(made.id);
        }
        let request = Request::post("/v1/sources/edits/events").header("content-type", "application/x-ndjson");
        let Ok(request) = request.body(Body::from(body)) else { return };
        self.processes[at].request(request, Sent::Ingest(ids), &self.replies);
    }

    fn ask(&mut self) {
        let begin = self.plan().begin;
        let metrics: &[_] =
            if self.revision > 1 { &["added", "added", "hits", "late"] } else { &["added", "added", "hits"] };
        let mut query = Query::random(&mut self.random, metrics, begin);
        if query.layer == Layer::Merged && !self.tokens.is_empty() && self.random.permille(150) {
            query.at_least = Some(self.random.pick(&self.tokens).clone());
        }
        if let Some(at) = self.serving() {
            self.ask_of(at, query);
        }
    }

    fn ask_of(&mut self, at: usize, query: Query) {
        self.asked += 1;
        let (number, who) = (self.asked, self.processes[at].who());
        let asked = {
            let mut world = self.world.lock();
            world.note(format_args!("{who} is asked {number}: {}", query.uri()));
            Asked { number, who, at: world.now, sealed: sealed_now(&world), is_final: self.is_final, query }
        };
        if let Ok(request) = Request::get(asked.query.uri()).body(Body::empty()) {
            self.processes[at].request(request, Sent::Query(Box::new(asked)), &self.replies);
        }
    }

    fn recompute(&mut self) {
        let Some(at) = self.serving() else { return };
        let begin = self.plan().begin;
        let back = self.random.within(0, 300);
        let from = (begin - back * SECOND) / 1000;
        let metric = if self.random.permille(700) { "added" } else { "hits" };
        let recompute =
            format!(r#"{{"metric": "{metric}", "from": {from}, "to": {}, "reason": "simulated"}}"#, from + 600_000);
        let (path, body) = match back % 3 {
            0 => (format!("/v1/metrics/{metric}/rollback"), "{}".to_owned()),
            _ => ("/v1/recomputes".to_owned(), recompute),
        };
        let request = Request::post(path).header("content-type", "application/json");
        let Ok(request) = request.body(Body::from(body)) else { return };
        self.processes[at].request(request, Sent::Recompute, &self.replies);
    }

    fn pick_process(&mut self, roles: &[Role]) -> Option<usize> {
        let wanted = |at: &usize| roles.contains(&self.processes[*at].role) && self.processes[*at].running.is_some();
        let all: Vec<usize> = (0..self.processes.len()).filter(wanted).collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    fn nemesis(&mut self) {
        let plan = self.plan();
        match self.random.below(20) {
            0..3 => {
                if let Some(at) = self.pick_process(&Role::ALL) {
                    self.crash(at, Happening::Crash);
                }
            }
            3..8 => {
                let roles: &[_] = if self.random.permille(500) { &[Role::Batch] } else { &[Role::Speed, Role::Batch] };
                if let Some(at) = self.pick_process(roles) {
                    let who = self.processes[at].who();
                    let calls = self.random.below(40);
                    self.world.lock().life(who).calls_left = Some(calls);
                }
            }
            8..12 => {
                if let Some(at) = self.pick_process(&Role::ALL) {
                    self.pause(at);
                }
            }
            12..14 => self.throw_out(),
            14 => {
                if let Some(at) = self.pick_process(&[Role::Speed, Role::Batch]) {
                    self.processes[at].stop();
                    let who = self.processes[at].who();
                    self.world.lock().note(format_args!("{who} is asked to stop"));
                }
            }
            15 => self.batch_outage(),
            16 | 19 if plan.cut_off => self.cut_off(),
            17 | 18 => self.recompute(),
            _ => self.crash_workers(),
        }
    }

    fn crash_workers(&mut self) {
        for at in 0..self.processes.len() {
            if self.processes[at].role == Role::Speed && self.random.permille(700) {
                self.crash(at, Happening::Crash);
            }
        }
    }

    fn crash(&mut self, at: usize, how: Happening) {
        let process = &mut self.processes[at];
        if process.running.is_none() {
            return;
        }
        let who = process.who();
        {
            let mut world = self.world.lock();
            world.count(how);
            world.died(who);
            world.note(format_args!("{who} dies"));
        }
        process.crash();
        let down = self.random.within(100_000, 6_000_000);
        process.away_until = Some(self.world.lock().now + down);
    }

    fn pause(&mut self, at: usize) {
        let process = &mut self.processes[at];
        if process.away_until.is_some() {
            return;
        }
        let mut world = self.world.lock();
        let long = if self.random.permille(500) { 14_000_000 } else { 3_000_000 };
        process.away_until = Some(world.now + self.random.within(200_000, long));
        world.count(Happening::Pause);
        world.note(format_args!("{} is paused", process.who()));
    }

    fn throw_out(&mut self) {
        let mut world = self.world.lock();
        let members = world.log.groups.members("lamina");
        if members.is_empty() {
            return;
        }
        let (member, now) = (*self.random.pick(&members), world.now);
        world.log.groups.throw_out("lamina", member, now);
        world.count(Happening::SessionLost);
        world.note(format_args!("member {member} is thrown out of the group"));
    }

    /// No batch for longer than speed chunks live, if they live shortly.
    fn batch_outage(&mut self) {
        let until = self.world.lock().now + self.random.within(8, 45) * SECOND;
        for at in 0..self.processes.len() {
            if self.processes[at].role == Role::Batch {
                self.crash(at, Happening::Crash);
                self.processes[at].away_until = Some(until);
            }
        }
    }

    /// Retention overtakes the consumers of a partition, most likely while they are down.
    fn cut_off(&mut self) {
        if self.random.permille(700) {
            self.crash_workers();
        }
        let mut world = self.world.lock();
        let world = &mut *world;
        let partition = self.random.below(u64::from(world.plan.partitions)) as Partition;
        let sealed = world.ledger(partition).sealed_end();
        let Ok(log) = world.log.partition_mut(TOPIC, partition) else { return };
        let to = log.end() - self.random.below(log.end().saturating_sub(sealed) + 1);
        log.start = log.start.max(to);
        world.trace_cut(partition, to);
    }

    /// Lets time pass: each process runs a little, in an order that the seed gives, and what comes of it is checked.
    fn pass(&mut self, milliseconds: i64) {
        let until = self.world.lock().now + milliseconds * 1000;
        loop {
            let now = {
                let mut world = self.world.lock();
                let now = until.min(world.now + 1000 * (20 + self.random.below(160) as i64));
                world.advance(now);
                now
            };
            let mut order: Vec<usize> = (0..self.processes.len()).collect();
            for at in (1..order.len()).rev() {
                order.swap(at, self.random.below(at as u64 + 1) as usize);
            }
            for at in order {
                self.run_process(at, now);
            }
            self.watch();
            self.check_replies();
            if now >= until || self.is_violated() {
                return;
            }
        }
    }

    fn run_process(&mut self, at: usize, now: Micros) {
        let process = &mut self.processes[at];
        match process.away_until {
            Some(until) if until > now => return,
            Some(_) if process.running.is_none() => return self.start(at),
            Some(_) => {
                let who = process.who();
                let mut world = self.world.lock();
                world.count(Happening::Resume);
                world.note(format_args!("{who} goes on"));
                drop(world);
                process.resume(now);
            }
            None => {}
        }
        let process = &mut self.processes[at];
        let goes_on = process.run_to(now);
        let who = process.who();
        if self.world.lock().life(who).halted {
            self.crash(at, Happening::CrashAtCall);
        } else if !goes_on {
            self.crash(at, Happening::Drained);
        }
    }

    /// Counts what is only seen from outside.
    fn watch(&mut self) {
        let revisions: std::collections::BTreeSet<u64> =
            self.processes.iter().filter(|process| process.role == Role::Speed).filter_map(Process::revision).collect();
        let mut world = self.world.lock();
        if world.log.groups.deceived("lamina") > 0 {
            world.count(Happening::DualOwnership);
        }
        if revisions.len() > 1 {
            world.count(Happening::CatalogLag);
        }
        if let Some(panic) = crate::take_panic() {
            world.violate("nothing-panics", panic);
        }
    }

    fn check_replies(&mut self) {
        let replies = std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner));
        for Reply { asked, status, body } in replies {
            let mut world = self.world.lock();
            let world = &mut *world;
            match asked {
                Sent::Query(asked) => {
                    if let Some(process) = self.processes.iter_mut().find(|process| process.who() == asked.who) {
                        process.under_way = process.under_way.saturating_sub(1);
                    }
                    read_log(&mut self.oracle, world);
                    self.checks.reply(world, &self.oracle, &asked, status, &body);
                }
                Sent::Ingest(ids) if status == 202 => {
                    world.count(Happening::Ingested);
                    let token = serde_json::from_slice::<serde_json::Value>(&body).ok();
                    let token = token.and_then(|body| Some(body["position"].as_str()?.to_owned()));
                    if let Some(token) = token {
                        self.tokens.push((token, positions_of(world, &ids)));
                    }
                }
                Sent::Ingest(_) | Sent::Recompute => {}
            }
        }
        // Ingests and recomputes are soon answered; what is left of them does not keep a process busy.
    }

    fn make_peace(&mut self) {
        {
            let mut world = self.world.lock();
            world.calm = true;
            world.note(format_args!("peace"));
            let lives: Vec<_> = world.lives.keys().copied().collect();
            lives.into_iter().for_each(|who| world.life(who).calls_left = None);
        }
        let now = self.world.lock().now;
        for process in &mut self.processes {
            if process.away_until.is_some() {
                process.away_until = Some(now);
            }
        }
        let until = now + PEACE;
        while !self.is_violated() && self.world.lock().now < until {
            self.pass(1_000);
            for _ in 0..self.processes.len() {
                self.learn();
            }
            if self.is_covered() {
                return self.final_account();
            }
        }
        if !self.is_violated() {
            let mut world = self.world.lock();
            let errors = world.store.list(JOB_DOCUMENTS).into_iter().filter_map(|(_, document)| {
                lamina_core::envelope::unpack::<lamina_core::Job>(&document.value).ok()?.error
            });
            let seen =
                format!("{} jobs: {:?}", self.uncovered(&world), errors.collect::<std::collections::BTreeSet<_>>());
            world.violate("everything-heals-and-is-covered", seen);
        }
    }

    fn uncovered(&self, world: &World) -> String {
        let catalog = world.plan.catalog(self.revision);
        let mut seen = String::new();
        for partition in world.partitions() {
            let end = world.log.partition(TOPIC, partition).map_or(0, |log| log.end());
            let ledger = world.ledger(partition);
            if ledger.sealed_end() != end {
                seen.push_str(&format!("partition {partition} is sealed to {} of {end}; ", ledger.sealed_end()));
            }
            for view in catalog.metrics.values().flat_map(|metric| &metric.views) {
                let cut = world.published(&view.id).cut.at(partition);
                if cut != end {
                    seen.push_str(&format!("{} covers {cut} of {end} in {partition}; ", view.id));
                }
            }
        }
        seen
    }

    fn is_covered(&self) -> bool {
        let world = self.world.lock();
        self.uncovered(&world).is_empty()
    }

    /// With everything covered, each process answers with the fold of the whole log, and every offset is accounted for.
    fn final_account(&mut self) {
        let begin = self.plan().begin;
        self.world.lock().note(format_args!("final account"));
        let metrics: &[_] = if self.revision > 1 { &["added", "hits", "late"] } else { &["added", "hits"] };
        self.is_final = true;
        for at in 0..self.processes.len() {
            if self.processes[at].role != Role::Serving {
                continue;
            }
            for metric in metrics {
                for layer in [Layer::Merged, Layer::Batch] {
                    self.ask_of(at, Query { layer, ..Query::whole(metric, begin) });
                }
            }
            self.ask_of(at, Query { step: None, group_by: Vec::new(), ..Query::whole("added", begin) });
        }
        let expected = self.asked;
        self.pass(2_000);
        let mut world = self.world.lock();
        if self.checks.answered_finally == 0 && world.violation.is_none() {
            world.violate("queries-are-answered", format!("of {expected} queries the last were not"));
        }
        read_log(&mut self.oracle, &world);
        self.checks.conservation(&mut world, &self.oracle);
    }
}

/// Where these events are in the log: positions past them.
fn positions_of(world: &World, ids: &[String]) -> BTreeMap<Partition, Offset> {
    let mut positions = BTreeMap::new();
    for partition in world.partitions() {
        let Ok(log) = world.log.partition(TOPIC, partition) else { continue };
        for record in log.records.iter().flatten() {
            let text = String::from_utf8_lossy(&record.payload);
            if ids.iter().any(|id| text.contains(&format!("\"id\":\"{id}\""))) {
                let past: &mut Offset = positions.entry(partition).or_default();
                *past = (*past).max(record.offset + 1);
            }
        }
    }
    positions
}

fn read_log(oracle: &mut Oracle, world: &World) {
    for partition in world.partitions() {
        let Ok(log) = world.log.partition(TOPIC, partition) else { continue };
        let raw = log.records.iter().map(|record| {
            record
                .as_ref()
                .map(|record| crate::oracle::Raw { appended_at: record.appended_at, payload: &record.payload })
        });
        oracle.read(partition, raw);
    }
}

impl World {
    fn trace_cut(&mut self, partition: Partition, to: Offset) {
        self.note(format_args!("the log of partition {partition} now begins at {to}"));
    }

    pub(crate) fn published(&self, view: &lamina_core::ViewId) -> lamina_core::Published {
        let document = self.store.document(VIEW_DOCUMENTS, view.as_str());
        let state =
            document.and_then(|found| lamina_core::envelope::unpack::<lamina_core::ViewState>(&found.value).ok());
        state.unwrap_or_default().published
    }
}
