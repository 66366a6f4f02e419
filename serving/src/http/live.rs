//! `GET /v1/metrics/{metric}/live`: server-sent events of a query.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use lamina_core::Micros;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::Principal,
    http::layers::RequestId,
    instant,
    live::{self, Followed, Seen},
    problem::Problem,
    query::{Params, Subject},
    server::Stopping,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long nothing is sent at most, so that those between do not take the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
const DEFAULT_EVERY: Duration = Duration::from_secs(1);
const EVERY: std::ops::RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(60);
/// Parameters of queries that mean nothing here.
const NOT_HERE: [&str; 5] = ["to", "at_least", "wait", "page_size", "page_token"];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(follow_metric))
}

/// Follows a query: its answer now, and again whenever it changes.
///
/// Server-sent events, as `EventSource` reads them. Each `answer` is the whole answer that `GET /v1/metrics/{metric}/query` would give as
/// JSON, up to 10,000 points and 4 MiB; its `id` names the positions that it folds. A client that comes back with `last-event-id` (which
/// `EventSource` does by itself) gets the next answer that folds at least as much and is another one. A `problem` says why there is no
/// answer just now; after one of the request itself (4xx) the stream ends. Who takes answers slowly gets fewer of them, and who takes
/// nothing for half a minute is cut off.
///
/// The range is `window` before now, or begins at `from`; it ends now. Everything else is as in queries, but for `to`, `at_least`,
/// `wait`, `page_size` and `page_token`. All who follow the same query share one evaluation.
#[utoipa::path(get, path = "/v1/metrics/{metric}/live", tag = "queries",
    params(
        ("metric" = String, Path, description = "Name of the metric"),
        ("window" = Option<String>, Query, description = "How far back from now: 15m, 6h, 1d"),
        ("from" = Option<String>, Query, description = "Begin, instead of window"),
        ("every" = Option<String>, Query, description = "How often to look: 1s if left out, from 250ms to 60s"),
        ("step" = Option<String>, Query, description = "Length of a bucket; one bucket if left out"),
        ("aggregate" = Option<String>, Query, description = "Comma list of aggregates"),
        ("group_by" = Option<String>, Query, description = "Comma list of dimensions"),
        ("where" = Option<String>, Query, description = "SQL condition over dimensions"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10_000, description = "Most series"),
        ("last-event-id" = Option<String>, Header, description = "The id of the last event that the client got")
    ),
    responses((status = 200, description = "Events answer and problem", content_type = "text/event-stream"),
        (status = 400, description = "A parameter cannot be used, or the answer is too large to be sent again and again"),
        (status = 404, description = "Unknown metric"),
        (status = 503, description = "Too many follow already, or the store or the log does not answer")))]
async fn follow_metric(
    State(app): State<App>,
    principal: Principal,
    Path(metric): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    Extension(RequestId(id)): Extension<RequestId>,
    stopping: Option<Extension<Stopping>>,
) -> Result<Response, Problem> {
    Subject::find(&app, &metric)?;
    let followed = followed(metric, &pairs, &principal)?;
    let permit = Arc::clone(&app.live.clients).try_acquire_owned().map_err(|_| {
        Problem::unavailable("overloaded", "too many clients follow queries: ask the query itself from time to time")
    })?;
    let mut updates = live::follow(&app, followed)?;
    first(&mut updates, app.config.request_timeout).await?;
    let seen = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok()).and_then(Seen::parse);
    let stop = stopping.map(|Extension(Stopping(stop))| stop).unwrap_or_default();
    let client = Client { updates, seen, stop, id, look: true, begun: false, ended: false, _permit: permit };
    let events = stream::unfold(client, |mut client| async move {
        let event = client.next().await?;
        Some((Ok::<_, Infallible>(event), client))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Else a proxy in front would collect events.
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// Waits for the first look; what is wrong then is the request's answer.
async fn first(updates: &mut watch::Receiver<live::State>, within: Duration) -> Result<(), Problem> {
    let begun = updates.wait_for(|state| !matches!(state, live::State::Starting));
    match tokio::time::timeout(within, begun).await {
        Ok(Ok(state)) => match &*state {
            live::State::Failed(problem) => Err(Problem::clone(problem)),
            _ => Ok(()),
        },
        Ok(Err(_)) => Err(Problem::internal(&"the task of a followed query ended")),
        Err(_) => {
            Err(Problem::unavailable("timeout", "there was no first answer in time: ask for less, or again later"))
        }
    }
}

fn followed(metric: String, pairs: &[(String, String)], principal: &Principal) -> Result<Followed, Problem> {
    let (mut window, mut every, mut others) = (None, None, Vec::new());
    for (name, value) in pairs {
        let once = match name.as_str() {
            "window" => &mut window,
            "every" => &mut every,
            not if NOT_HERE.contains(&not) => {
                return Err(Problem::parameter(name, "has no meaning for a query that is followed: it ends now"));
            }
            _ => {
                others.push((name.clone(), value.clone()));
                continue;
            }
        };
        if once.replace(value.as_str()).is_some() {
            return Err(Problem::parameter(name, "is given twice"));
        }
    }
    let from = others.iter().any(|(name, _)| name == "from");
    let window = window.map(length).transpose()?;
    if window.is_some() == from {
        return Err(Problem::parameter("window", "either `window`, such as 15m, or `from` is required"));
    }
    if window.is_some() {
        // Where it begins is known at each look.
        others.push(("from".to_owned(), "0".to_owned()));
    }
    let every =
        every.map_or(Some(DEFAULT_EVERY), |text| instant::parse_duration(text).filter(|own| EVERY.contains(own)));
    let every = every.ok_or_else(|| Problem::parameter("every", "a length of time from 250ms to 60s"))?;
    Ok(Followed { metric, params: Params::parse(&others, principal)?, window, every })
}

fn length(text: &str) -> Result<Micros, Problem> {
    let length = lamina_metric::Length::parse(text).map_err(|why| Problem::parameter("window", why))?;
    Ok(length.0)
}

struct Client {
    updates: watch::Receiver<live::State>,
    seen: Option<Seen>,
    stop: tokio_util::sync::CancellationToken,
    /// Of the request.
    id: String,
    /// Whether there may be something new.
    look: bool,
    begun: bool,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Client {
    async fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            return Some(Bytes::from_static(b"retry: 2000\n\n"));
        }
        loop {
            if std::mem::take(&mut self.look)
                && let Some(event) = self.event()
            {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                changed = self.updates.changed() => {
                    changed.ok()?;
                    self.look = true;
                }
                () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b": still here\n\n")),
                () = self.stop.cancelled() => return None,
            }
        }
    }

    fn event(&mut self) -> Option<Bytes> {
        let state = self.updates.borrow_and_update().clone();
        match state {
            live::State::Starting => None,
            live::State::Answer(frame) => {
                if self.seen.as_ref().is_some_and(|seen| !seen.is_before(&frame)) {
                    return None;
                }
                self.seen = None;
                Some(frame.event.clone())
            }
            live::State::Failed(problem) => {
                self.ended = problem.status.is_client_error();
                Some(format!("event: problem\ndata: {}\n\n", problem.to_json(&self.id)).into())
            }
        }
    }
}
