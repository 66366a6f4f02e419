//! What stands before every handler: who asks, whether they may, how often they may, and the note of what was done.

use std::net::IpAddr;

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{Response, header},
    middleware::Next,
    response::IntoResponse,
};
use lamina_core::store::Store;
use tracing::Instrument;

use super::{
    Principal,
    audit::Entry,
    endpoints::{self, Effect, Endpoint},
    lasting,
};
use crate::{
    app::App,
    http::layers::RequestId,
    limits::{self, Peer},
    problem::Problem,
};

/// Of a response: whose request it answers, for the line of log.
#[derive(Clone)]
pub(crate) struct AskedBy(pub(crate) Principal);

pub(crate) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response<Body> {
    // Without a route there is nothing to guard: the answer is 404 for everybody.
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else { return next.run(request).await };
    let endpoint = endpoints::find(request.method(), path.as_str());
    if endpoint.is_open() || (path.as_str() == "/metrics" && app.access.open_metrics()) {
        request.extensions_mut().insert(Principal::open());
        return next.run(request).await;
    }
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let principal = match app.access.principal(request.headers()).await {
        Ok(principal) => principal,
        Err(problem) => return refused(&app, peer, problem).await.into_response(),
    };
    let left = match app.rates.take(&principal).await {
        Ok(left) => left,
        Err(problem) => return asked_by(principal, problem.into_response()),
    };
    let note = note_of(&app, endpoint, &request, &principal, path.as_str());
    let mut response = match endpoint.check(&principal) {
        Err(problem) => {
            let response = problem.into_response();
            // In memory: whoever may not change anything cannot push out of the store who did.
            note_down(&app, Effect::Sends, note.map(|note| ended(note, &response))).await;
            response
        }
        Ok(()) => {
            request.extensions_mut().insert(principal.clone());
            let credentials = lasting::credentials(request.headers());
            let response = run(&app, endpoint.effect, note, request, next).await;
            lasting::while_allowed(&app, credentials, &principal, response)
        }
    };
    limits::describe(&mut response, left);
    asked_by(principal, response)
}

/// Runs the handler. What changes something goes on to its end and is noted even if the client has left.
async fn run(app: &App, effect: Effect, note: Option<Entry>, request: Request, next: Next) -> Response<Body> {
    if note.is_none() {
        return next.run(request).await;
    }
    let app = app.clone();
    let work = async move {
        let response = next.run(request).await;
        note_down(&app, effect, note.map(|note| ended(note, &response))).await;
        response
    };
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|error| Problem::internal(&error).into_response())
}

/// Too many refusals of one address are answered without saying why.
async fn refused(app: &App, peer: Option<IpAddr>, problem: Problem) -> Problem {
    if problem.status != axum::http::StatusCode::UNAUTHORIZED {
        return problem;
    }
    metrics::counter!(crate::instruments::UNAUTHORIZED).increment(1);
    match peer {
        Some(peer) => app.rates.take_failure(peer).await.err().unwrap_or(problem),
        None => problem,
    }
}

fn note_of(app: &App, endpoint: &Endpoint, request: &Request, who: &Principal, route: &str) -> Option<Entry> {
    if endpoint.effect == Effect::Reads {
        return None;
    }
    let id = request.extensions().get::<RequestId>().map(|id| id.0.as_str()).unwrap_or_default();
    let action = format!("{} {route}", request.method());
    Some(Entry::new(app.deps.clock.now(), &who.id, id, action, request.uri().path()))
}

/// The entry with what became of the request.
fn ended(entry: Entry, response: &Response<Body>) -> Entry {
    let text = |value: &axum::http::HeaderValue| value.to_str().ok().map(str::to_owned);
    Entry {
        status: response.status().as_u16(),
        problem: response.extensions().get::<Problem>().map(|problem| problem.code.to_owned()),
        made: response.headers().get(header::LOCATION).and_then(text),
        ..entry
    }
}

async fn note_down(app: &App, effect: Effect, entry: Option<Entry>) {
    let store: &dyn Store = &*app.deps.store;
    if let Some(entry) = entry {
        app.audit.note(store, effect, entry).await;
    }
}

fn asked_by(principal: Principal, mut response: Response<Body>) -> Response<Body> {
    response.extensions_mut().insert(AskedBy(principal));
    response
}
