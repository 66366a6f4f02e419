//! Queries that are followed: each distinct one is evaluated by one task, however many clients follow it, and for as long as one
//! does.
//!
//! # Invariants
//! - A client gets the latest answer, each whole; one that takes them slowly gets fewer. Nothing is queued for anybody.
//! - The answers are one text that all clients share.
//! - What a client saw last never comes again: after a break it gets answers that fold at least as much.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use bytes::Bytes;
use lamina_core::Micros;
use tokio::sync::{Semaphore, watch};

use crate::{
    app::App,
    problem::Problem,
    query::{self, Params, Subject, calendar::EARLIEST, format::Format},
    token::Token,
};

/// Most points of an answer that is followed: it is sent whole each time.
const MAX_POINTS: usize = 10_000;
/// Longest text of one, which lists of frequent values make long.
const MAX_BYTES: usize = 4 << 20;

/// What is followed.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub(crate) metric: String,
    pub(crate) params: Params,
    /// How far the range reaches back from now, instead of `from`.
    pub(crate) window: Option<Micros>,
    /// How long between two looks.
    pub(crate) every: Duration,
}

/// An answer as it is sent.
#[derive(Debug)]
pub(crate) struct Frame {
    /// `id`, `event` and `data` of an event.
    pub(crate) event: Bytes,
    pub(crate) id: String,
    pub(crate) positions: Vec<Token>,
}

/// How it stands with a followed query.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Starting,
    Answer(Arc<Frame>),
    /// Trying goes on unless it is the request that is wrong.
    Failed(Arc<Problem>),
}

/// The followed queries of this process.
pub(crate) struct Live {
    queries: Mutex<HashMap<String, Arc<watch::Sender<State>>>>,
    max_queries: usize,
    /// Clients that may still come.
    pub(crate) clients: Arc<Semaphore>,
}

impl Live {
    pub(crate) fn new(max_queries: usize, max_clients: usize) -> Self {
        Self { queries: Mutex::default(), max_queries, clients: Arc::new(Semaphore::new(max_clients)) }
    }

    fn queries(&self) -> MutexGuard<'_, HashMap<String, Arc<watch::Sender<State>>>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a query, together with all who follow the same.
pub(crate) fn follow(app: &App, query: Followed) -> Result<watch::Receiver<State>, Problem> {
    let key = format!("{query:?}");
    let mut queries = app.live.queries();
    if let Some(known) = queries.get(&key) {
        return Ok(known.subscribe());
    }
    if queries.len() >= app.live.max_queries {
        let detail = format!("{} other queries are followed already: ask this one from time to time", queries.len());
        return Err(Problem::unavailable("overloaded", detail));
    }
    let (sender, receiver) = watch::channel(State::Starting);
    let sender = Arc::new(sender);
    queries.insert(key.clone(), Arc::clone(&sender));
    metrics::gauge!(crate::instruments::LIVE_QUERIES).set(queries.len() as f64);
    drop(queries);
    let task = Task { app: app.clone(), key, query, sender };
    tokio::spawn(task.run());
    Ok(receiver)
}

/// Evaluates one query until nobody follows it.
struct Task {
    app: App,
    key: String,
    query: Followed,
    sender: Arc<watch::Sender<State>>,
}

impl Task {
    async fn run(self) {
        // The ETag of what was sent last, and its text.
        let mut last: Option<(Option<String>, Bytes)> = None;
        loop {
            match self.look(last.as_ref()).await {
                Ok(Some((tag, frame))) => {
                    last = Some((tag, frame.event.clone()));
                    self.sender.send_replace(State::Answer(Arc::new(frame)));
                }
                Ok(None) => {}
                Err(problem) => {
                    last = None;
                    let ends = problem.status.is_client_error();
                    self.fail(problem);
                    if ends {
                        return;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.query.every) => {}
                () = self.sender.closed() => {}
            }
            if self.is_over() {
                return;
            }
        }
    }

    /// Says so once, not at every look.
    fn fail(&self, problem: Problem) {
        self.sender.send_if_modified(|state| {
            if matches!(state, State::Failed(known) if known.code == problem.code) {
                return false;
            }
            *state = State::Failed(Arc::new(problem));
            true
        });
    }

    /// Whether nobody follows any more. Decided while nobody can begin to.
    fn is_over(&self) -> bool {
        let mut queries = self.app.live.queries();
        let over = self.sender.receiver_count() == 0;
        if over {
            queries.remove(&self.key);
        }
        over
    }

    /// The answer as it is now, or `None` if it is what was sent last.
    async fn look(&self, last: Option<&(Option<String>, Bytes)>) -> Result<Option<(Option<String>, Frame)>, Problem> {
        let (app, query) = (&self.app, &self.query);
        let subject = Subject::find(app, &query.metric)?;
        let mut params = query.params.clone();
        if let Some(window) = query.window {
            params.from = app.deps.clock.now().saturating_sub(window).max(EARLIEST);
        }
        let question = query::question(app, subject, &params)?;
        if let Some((Some(tag), _)) = last
            && query::still_stands(app, &question, Format::Json, std::slice::from_ref(tag)).await?.is_some()
        {
            return Ok(None);
        }
        metrics::counter!(crate::instruments::LIVE_EVALUATIONS).increment(1);
        let document = query::evaluate(app, question).await?;
        if document.points() > MAX_POINTS {
            return Err(too_large(&format!("{} points, more than {MAX_POINTS}", document.points())));
        }
        let tag = document.validator.as_ref().map(|validator| validator.tag(Format::Json));
        let frame = frame(&document)?;
        if frame.event.len() > MAX_BYTES {
            return Err(too_large(&format!("{} bytes, more than {MAX_BYTES}", frame.event.len())));
        }
        let same = last.is_some_and(|(_, event)| *event == frame.event);
        Ok((!same).then_some((tag, frame)))
    }
}

impl Drop for Task {
    /// However it ends, the next client begins anew.
    fn drop(&mut self) {
        let mut queries = self.app.live.queries();
        if queries.get(&self.key).is_some_and(|own| Arc::ptr_eq(own, &self.sender)) {
            queries.remove(&self.key);
        }
        metrics::gauge!(crate::instruments::LIVE_QUERIES).set(queries.len() as f64);
    }
}

fn too_large(how: &str) -> Problem {
    let detail = format!(
        "the answer has {how}, which is the most that is sent again and again: take a longer step, a shorter range, a `limit` or \
         fewer aggregates"
    );
    Problem::new(StatusCode::BAD_REQUEST, "too_many_points", detail)
}

fn frame(document: &query::Document) -> Result<Frame, Problem> {
    let tokens: Vec<String> = document.positions.iter().map(Token::encode).collect();
    let which = document.validator.as_ref().map_or_else(|| format!("{:032x}", document.prefix), |own| own.id());
    let id = format!("{}.{which}", tokens.join(","));
    let json = document.write(Format::Json)?.bytes;
    let mut event = format!("id: {id}\nevent: answer\ndata: ").into_bytes();
    event.extend_from_slice(&json);
    event.extend_from_slice(b"\n\n");
    Ok(Frame { event: event.into(), id, positions: document.positions.clone() })
}

/// What a client that comes back saw last.
#[derive(Debug)]
pub(crate) struct Seen {
    id: String,
    positions: Vec<Token>,
}

impl Seen {
    /// Of `last-event-id`; `None` if it is none of ours.
    pub(crate) fn parse(id: &str) -> Option<Self> {
        let (tokens, _) = id.rsplit_once('.')?;
        let positions = tokens.split(',').map(Token::decode).collect::<Option<_>>()?;
        Some(Self { id: id.to_owned(), positions })
    }

    /// Whether the answer is another one and folds at least as much. Positions of a topic that was made again say nothing.
    pub(crate) fn is_before(&self, frame: &Frame) -> bool {
        let reached = |own: &Token| {
            let same = |now: &&Token| now.source == own.source && now.topic_id == own.topic_id;
            frame.positions.iter().find(same).is_none_or(|now| own.reached(&now.positions))
        };
        self.id != frame.id && self.positions.iter().all(reached)
    }
}
