//! Streams of events, which last: they end once whoever asked may not ask any more.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::{Interval, interval};

use super::Principal;
use crate::app::App;

/// How often credentials are looked at again.
const LOOK: Duration = Duration::from_secs(5);

struct Lasting {
    app: App,
    credentials: HeaderMap,
    asked: Principal,
    events: BodyDataStream,
    look: Interval,
}

/// What of a request's headers says who asks.
pub(super) fn credentials(headers: &HeaderMap) -> HeaderMap {
    let given = headers.get_all(header::AUTHORIZATION).iter();
    given.map(|value| (header::AUTHORIZATION, value.clone())).collect()
}

/// The response as it is, or an event stream that ends when the credentials are not what they were.
pub(super) fn while_allowed(
    app: &App,
    credentials: HeaderMap,
    asked: &Principal,
    response: Response<Body>,
) -> Response<Body> {
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
        return response;
    }
    let (app, asked) = (app.clone(), asked.clone());
    response.map(|body| {
        let lasting = Lasting { app, credentials, asked, events: body.into_data_stream(), look: interval(LOOK) };
        Body::from_stream(stream::unfold(lasting, |mut lasting| async move {
            let event = lasting.next().await?;
            Some((event, lasting))
        }))
    })
}

impl Lasting {
    async fn next(&mut self) -> Option<Result<Bytes, axum::Error>> {
        loop {
            tokio::select! {
                event = self.events.next() => return event,
                _ = self.look.tick() => if !may_still(&self.app, &self.credentials, &self.asked).await { return None },
            }
        }
    }
}

/// Only a clear no ends it: nobody is thrown out since the store is away.
async fn may_still(app: &App, credentials: &HeaderMap, asked: &Principal) -> bool {
    match app.access.principal(credentials).await {
        Ok(now) => now.scopes == asked.scopes && now.rows == asked.rows,
        Err(problem) => problem.status != StatusCode::UNAUTHORIZED,
    }
}
