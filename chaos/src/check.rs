//! Checks of answers, and what came of them.
//!
//! # Laws
//! - A complete answer equals the oracle's at exactly its positions.
//! - What was sealed stays: positions and cuts are never below a cut that was answered before.
//! - Positions never go back at all where no worker lost a partition.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    failure::{Failure, Outcome, until},
    history::History,
    kafka::lock,
    query::{Answer, Layer, METRIC, Query, differences},
};

/// How long the oracle may take to read what an answer folds.
const ORACLE: Duration = Duration::from_secs(60);
/// Wrong answers that are described in files.
const DESCRIBED: u64 = 20;

/// Figures of a scenario so far.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Complete answers that were compared.
    pub(crate) checked: u64,
    /// Values (series x buckets) in them.
    pub(crate) values: u64,
    pub(crate) wrong: u64,
    /// Answers with `complete: false`, by reason.
    pub(crate) incomplete: BTreeMap<String, u64>,
    /// What was no answer, by status or kind of error.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Answers whose open tail lay before an earlier answer's.
    pub(crate) stepped_back: u64,
    /// Longest time until a 503 came, since the question or, if that was later, the fault; ms.
    pub(crate) slowest_refusal_ms: u64,
    /// Longest time until an answer came, ms.
    pub(crate) slowest_answer_ms: u64,
    /// Largest age of an acknowledged event that an answer lacked, ms.
    pub(crate) longest_recovery_ms: u64,
    /// Longest time in which a serving process gave no answer, ms.
    pub(crate) longest_silence_ms: u64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { checked, wrong, incomplete, refused, stepped_back, longest_recovery_ms, .. } = self;
        write!(
            f,
            "{checked} answers, {wrong} wrong, incomplete {incomplete:?}, refused {refused:?}, \
             stepped back {stepped_back}, longest recovery {:.1} s",
            *longest_recovery_ms as f64 / 1e3
        )
    }
}

/// What earlier answers promise of later ones.
#[derive(Clone, Debug, Default)]
struct Seen {
    cut: BTreeMap<i32, i64>,
    positions: BTreeMap<i32, i64>,
}

/// What the server said.
pub(crate) enum Reply {
    Complete(Answer),
    Incomplete(Answer),
    Refused(String),
}

pub(crate) struct Checker {
    pub(crate) history: Arc<Mutex<History>>,
    figures: Mutex<Figures>,
    seen: Mutex<Seen>,
    first_wrong: Mutex<Option<String>>,
    folder: PathBuf,
    /// When the latest fault began.
    fault: Mutex<Option<Instant>>,
    /// Whether a worker may lose a partition in this scenario.
    takeovers: bool,
}

impl Checker {
    pub(crate) fn new(history: Arc<Mutex<History>>, folder: PathBuf, takeovers: bool) -> Self {
        Self {
            history,
            figures: Mutex::default(),
            seen: Mutex::default(),
            first_wrong: Mutex::default(),
            folder,
            fault: Mutex::default(),
            takeovers,
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        lock(&self.figures).clone()
    }

    /// A fault begins now: refusals that it causes are timed from here at the earliest.
    pub(crate) fn fault(&self) {
        *lock(&self.fault) = Some(Instant::now());
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut lock(&self.figures));
    }

    /// # Errors
    /// If an answer was wrong.
    pub(crate) fn verdict(&self) -> Outcome {
        match &*lock(&self.first_wrong) {
            Some(first) => Err(Failure::Broken(format!("{} wrong answers; the first:\n{first}", self.figures().wrong))),
            None => Ok(()),
        }
    }

    /// Asks, and compares what comes.
    pub(crate) fn ask(&self, client: &reqwest::blocking::Client, url: &str, query: &Query) -> Outcome<Reply> {
        let before = lock(&self.seen).clone();
        let begun = Instant::now();
        let request = client.get(format!("{url}/v1/metrics/{METRIC}/query")).query(&query.parameters());
        let answered = request.send().and_then(|answer| Ok((answer.status().as_u16(), answer.text()?)));
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (status, body) = match answered {
            Ok(answered) => answered,
            Err(error) => {
                let kind = if error.is_timeout() { "timeout" } else { "no connection" };
                return Ok(self.refused(kind.to_owned(), 0));
            }
        };
        if status != 200 {
            let code = serde_json::from_str::<Value>(&body).ok();
            let code = code.as_ref().and_then(|body| body["code"].as_str()).unwrap_or_default();
            if status < 500 {
                self.wrong(format!("{url} answered {status} to a right query {:?}: {body}", query.parameters()));
            }
            let since = lock(&self.fault).map_or(begun, |fault| fault.max(begun));
            let took = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Ok(self.refused(format!("{status} {code}"), took));
        }
        let answer = serde_json::from_str(&body).map_err(|error| error.to_string()).and_then(|body| query.parse(&body));
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                self.wrong(format!("{url} answered {:?} with what is no answer: {why}: {body}", query.parameters()));
                return Ok(Reply::Refused("unreadable".to_owned()));
            }
        };
        self.update(|figures| figures.slowest_answer_ms = figures.slowest_answer_ms.max(took));
        if !answer.complete {
            let why = answer.missing.first().cloned().unwrap_or_else(|| "no reason".to_owned());
            self.update(|figures| *figures.incomplete.entry(why).or_default() += 1);
            return Ok(Reply::Incomplete(answer));
        }
        self.compare(url, query, &answer, &body, &before)?;
        Ok(Reply::Complete(answer))
    }

    fn refused(&self, kind: String, took: u64) -> Reply {
        self.update(|figures| {
            *figures.refused.entry(kind.clone()).or_default() += 1;
            figures.slowest_refusal_ms = figures.slowest_refusal_ms.max(took);
        });
        Reply::Refused(kind)
    }

    fn compare(&self, url: &str, query: &Query, answer: &Answer, body: &str, before: &Seen) -> Outcome {
        let Answer { states, positions, cut, .. } = answer;
        // What batch alone answers is as of its cut.
        let oracle = || lock(&self.history).reaches(positions);
        until("the oracle has read what an answer folds", ORACLE, oracle)?;
        let (expected, unseen) = {
            let history = lock(&self.history);
            (history.answer(query, positions), history.oldest_unseen(positions))
        };
        let merged = query.layer == Layer::Merged;
        let age = unseen.map_or(0, |appended_at| chrono::Utc::now().timestamp_millis() - appended_at);
        self.update(|figures| {
            figures.checked += 1;
            figures.values += states.len() as u64;
            if merged {
                figures.longest_recovery_ms = figures.longest_recovery_ms.max(u64::try_from(age).unwrap_or(0));
            }
        });
        let asked = format!("{url} {:?}\npositions {positions:?}\ncut {cut:?}", query.parameters());
        if expected != *states {
            let differences = differences(&expected, states, 20).join("\n");
            self.wrong(format!("{asked}\ndifferences:\n{differences}\nanswer: {body}"));
        }
        let behind = |earlier: &BTreeMap<i32, i64>, now: &BTreeMap<i32, i64>| {
            earlier
                .iter()
                .find(|(partition, at)| now.get(partition).is_none_or(|now| now < at))
                .map(|(p, at)| (*p, *at))
        };
        for (what, now) in [("cut", cut), ("position", positions)] {
            if let Some((partition, at)) = behind(&before.cut, now) {
                self.wrong(format!(
                    "{asked}\nthe {what} of partition {partition} is below {at}, which was answered as sealed before"
                ));
            }
        }
        if merged && let Some((partition, at)) = behind(&before.positions, positions) {
            self.update(|figures| figures.stepped_back += 1);
            if !self.takeovers {
                self.wrong(format!(
                    "{asked}\nthe position of partition {partition} was {at} before, and no worker lost it"
                ));
            }
        }
        let mut seen = lock(&self.seen);
        raise(&mut seen.cut, cut);
        if merged {
            raise(&mut seen.positions, positions);
            if self.takeovers && behind(&before.positions, positions).is_some() {
                // Later answers are compared with the tail as it is since.
                seen.positions.clone_from(positions);
            }
        }
        Ok(())
    }

    /// Notes that something promised did not hold.
    pub(crate) fn wrong(&self, what: String) {
        let number = {
            let mut figures = lock(&self.figures);
            figures.wrong += 1;
            figures.wrong
        };
        if number <= DESCRIBED {
            let path = self.folder.join(format!("wrong-{number}.txt"));
            let _ = std::fs::write(&path, &what);
            eprintln!("WRONG ({}): {}", path.display(), what.chars().take(1_500).collect::<String>());
        }
        let short: String = what.chars().take(4_000).collect();
        lock(&self.first_wrong).get_or_insert(short);
    }
}

fn raise(known: &mut BTreeMap<i32, i64>, to: &BTreeMap<i32, i64>) {
    for (partition, at) in to {
        let known = known.entry(*partition).or_insert(*at);
        *known = (*known).max(*at);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        event::Event,
        query::{Filter, Group},
    };

    /// Answers requests with these bodies, one after another; gives its address.
    fn server(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for body in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).unwrap();
            }
        });
        url
    }

    fn answer(count: i64, position: i64, cut: i64) -> String {
        let point = format!(r#"{{"start":"1970-01-01T00:00:00Z","count":{count},"sum":{count},"min":1,"max":1}}"#);
        format!(
            r#"{{"series":[{{"dimensions":{{}},"points":[{point}]}}],"meta":{{"complete":true,"missing":[],
               "batch":{{"cut":{{"0":{cut}}}}},"speed":{{"positions":{{"0":{position}}}}}}}}}"#
        )
    }

    /// How many wrongs are found in these answers over a log of three events of value 1.
    fn wrongs(answers: &[(i64, i64, i64)], takeovers: bool) -> u64 {
        let mut history = History::new();
        for offset in 0..3 {
            history.absorb(0, offset, 1, Event { id: offset as u64, time: 0, series: 1, value: 1 });
        }
        let folder = tempfile::tempdir().unwrap();
        let checker = Checker::new(Arc::new(Mutex::new(history)), folder.path().to_owned(), takeovers);
        let url = server(answers.iter().map(|(count, position, cut)| answer(*count, *position, *cut)).collect());
        let query =
            Query { from: 0, to: 10_000, step: None, group: Group::All, filter: Filter::None, layer: Layer::Merged };
        let client = crate::readers::client();
        for _ in answers {
            let reply = checker.ask(&client, &url, &query).unwrap();
            assert!(matches!(reply, Reply::Complete(_)));
        }
        assert_eq!(checker.verdict().is_err(), checker.figures().wrong > 0);
        checker.figures().wrong
    }

    #[test]
    fn an_answer_that_is_not_the_fold_of_its_positions_is_wrong() {
        assert_eq!(wrongs(&[(2, 2, 0), (3, 3, 0)], false), 0);
        assert_eq!(wrongs(&[(1, 2, 0)], false), 1, "an event is missing");
        assert_eq!(wrongs(&[(3, 2, 0)], false), 1, "an event counts that lies beyond");
    }

    #[test]
    fn what_was_sealed_never_goes_back_and_the_tail_only_at_takeovers() {
        assert_eq!(wrongs(&[(3, 3, 2), (2, 2, 2)], true), 0);
        assert_eq!(wrongs(&[(3, 3, 2), (2, 2, 2)], false), 1, "the open tail");
        assert_eq!(wrongs(&[(3, 3, 2), (1, 1, 1)], true), 2, "position and cut below what was sealed");
    }
}
