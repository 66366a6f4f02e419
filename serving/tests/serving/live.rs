//! Followed queries: hundreds of clients, one evaluation; back where one was after a break.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Request};
use lamina_serving::Config;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::world::World;

const QUERY: &str = "/v1/metrics/added/live?from=2015-09-12T00:00:00Z&aggregate=count,sum&every=250ms";

/// On the day after the events.
async fn world(config: Config) -> World {
    let mut world = World::with(config).await;
    world.set_now(1_442_102_400_000_000);
    world
}

fn edit(added: i64) -> Value {
    json!({"time": "2015-09-12T00:00:00Z", "channel": "a", "country": "DE", "user": "u", "added": added})
}

/// An event as `EventSource` gives it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

/// A client of the stream.
struct Client {
    body: Body,
    text: String,
}

impl Client {
    async fn connect(world: &World, uri: &str, last: Option<&str>) -> Self {
        let mut request = Request::builder().uri(uri);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = world.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let headers: &HeaderMap = response.headers();
        assert_eq!(response.status(), 200);
        assert_eq!(headers["content-type"], "text/event-stream");
        assert_eq!(headers["cache-control"], "no-store");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event, or `None` if none comes for so long.
    async fn next_within(&mut self, within: Duration) -> Option<Event> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let mut read = Event::default();
                for line in event.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => read.id = id.to_owned(),
                        Some(("event", name)) => read.name = name.to_owned(),
                        Some(("data", data)) => read.data = serde_json::from_str(data).unwrap(),
                        _ => {}
                    }
                }
                self.text = rest.to_owned();
                if read != Event::default() {
                    return Some(read);
                }
                continue;
            }
            let frame = tokio::time::timeout_at(deadline, self.body.frame()).await.ok()??;
            self.text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
    }

    async fn next(&mut self) -> Event {
        self.next_within(Duration::from_secs(10)).await.unwrap()
    }
}

fn sum(event: &Event) -> i64 {
    event.data["series"][0]["points"][0]["sum"].as_i64().unwrap()
}

#[tokio::test]
async fn hundreds_of_clients_share_one_evaluation_which_ends_with_the_last() {
    const CLIENTS: usize = 500;
    let mut world = world(Config { cache_bytes: 0, ..Config::default() }).await;
    world.append(0, &edit(1));
    world.seal(0).await;
    world.batch(true).await;
    let one = async |world: &World| {
        let before = world.store.scans();
        world.get(&QUERY.replace("live", "query").replace("&every=250ms", "")).await.ok();
        world.store.scans() - before
    };
    let reads = one(&world).await;
    let before = world.store.scans();
    let clients = futures::stream::iter(0..CLIENTS).map(|_| Client::connect(&world, QUERY, None));
    let mut clients: Vec<Client> = clients.buffer_unordered(50).collect().await;
    for client in &mut clients {
        let event = client.next().await;
        assert_eq!((event.name.as_str(), sum(&event)), ("answer", 1));
    }
    assert_eq!(world.store.scans() - before, reads, "one evaluation for all");
    // Whoever asks something else gets an evaluation of its own.
    let mut other = Client::connect(&world, &QUERY.replace("count,sum", "sum"), None).await;
    other.next().await;
    assert_eq!(world.store.scans() - before, 2 * reads);
    drop(other);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let before = world.store.scans();
    for round in 1..=3 {
        world.append(0, &edit(1));
        world.flush(0).await;
        for client in &mut clients {
            assert_eq!(sum(&client.next().await), 1 + round);
        }
        assert_eq!(world.store.scans() - before, reads * round as usize, "one evaluation for each change");
    }
    assert_eq!(clients[0].next_within(Duration::from_millis(700)).await, None, "nothing changed");
    assert_eq!(world.store.scans() - before, reads * 3);
    drop(clients);
    tokio::time::sleep(Duration::from_millis(600)).await;
    world.append(0, &edit(1));
    world.flush(0).await;
    let (before, loads) = (world.store.scans(), world.store.loads());
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((world.store.scans(), world.store.loads()), (before, loads), "nobody follows any more");
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_has_not_seen() {
    let mut world = world(Config::default()).await;
    world.append(0, &edit(1));
    world.flush(0).await;
    let mut client = Client::connect(&world, QUERY, None).await;
    let first = client.next().await;
    let query = world.get(&QUERY.replace("live", "query").replace("&every=250ms", "")).await.ok();
    assert_eq!(first.data["series"], query["series"]);
    drop(client);
    let mut client = Client::connect(&world, QUERY, Some(&first.id)).await;
    assert_eq!(client.next_within(Duration::from_millis(600)).await, None, "it has that already");
    world.append(1, &edit(10));
    world.flush(1).await;
    let second = client.next().await;
    assert_eq!(sum(&second), 11);
    assert_ne!(second.id, first.id);
    for strange in ["x", "", "AAAA.x", "."] {
        let mut client = Client::connect(&world, QUERY, Some(strange)).await;
        assert_eq!(sum(&client.next().await), 11, "{strange:?} is no id of ours");
    }
    // A process that has not come as far keeps quiet until it has.
    let mut behind = self::world(Config::default()).await;
    behind.append(0, &edit(1));
    behind.flush(0).await;
    let mut client = Client::connect(&behind, QUERY, Some(&second.id)).await;
    assert_eq!(client.next_within(Duration::from_millis(600)).await, None);
    behind.append(1, &edit(10));
    behind.append(1, &edit(100));
    behind.flush(1).await;
    assert_eq!(sum(&client.next().await), 111);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_its_answer() {
    let world = world(Config { max_live_queries: 1, max_live_clients: 2, ..Config::default() }).await;
    for (uri, status, part) in [
        ("/v1/metrics/nope/live?window=1h", 404, "nope"),
        ("/v1/metrics/added/live", 400, "`window`"),
        ("/v1/metrics/added/live?window=1h&from=0", 400, "`window`"),
        ("/v1/metrics/added/live?window=1x", 400, "`window`"),
        ("/v1/metrics/added/live?window=200000y&step=1d&fill=zero", 400, "points"),
        ("/v1/metrics/added/live?window=1h&every=1ms", 400, "`every`: a length of time from 250ms"),
        ("/v1/metrics/added/live?window=1h&to=5", 400, "`to`"),
        ("/v1/metrics/added/live?window=1h&aggregate=x", 400, "`aggregate`"),
        ("/v1/metrics/added/live?from=0&step=1d&fill=zero", 400, "10000"),
    ] {
        let (_, detail) = world.get(uri).await.problem(status);
        assert!(detail.contains(part), "{uri}: {detail}");
    }
    let _one = Client::connect(&world, QUERY, None).await;
    let (code, _) = world.get(&QUERY.replace("sum", "max")).await.problem(503);
    assert_eq!(code, "overloaded", "too many queries");
    let _two = Client::connect(&world, QUERY, None).await;
    assert_eq!(world.get(QUERY).await.problem(503).0, "overloaded", "too many clients");
}

#[tokio::test]
async fn a_store_that_is_down_is_told_once_and_the_stream_goes_on_when_it_is_back() {
    let mut world = world(Config::default()).await;
    world.append(0, &edit(1));
    world.flush(0).await;
    let mut client = Client::connect(&world, QUERY, None).await;
    client.next().await;
    world.store.down.store(true, std::sync::atomic::Ordering::SeqCst);
    let event = client.next().await;
    assert_eq!((event.name.as_str(), &event.data["code"]), ("problem", &json!("store_unavailable")));
    assert_eq!(event.id, "", "where one was stays where it was");
    assert_eq!(client.next_within(Duration::from_millis(600)).await, None);
    world.store.down.store(false, std::sync::atomic::Ordering::SeqCst);
    let event = client.next().await;
    assert_eq!((event.name.as_str(), sum(&event)), ("answer", 1));
}

#[tokio::test]
async fn a_window_moves_with_the_clock() {
    let mut world = world(Config::default()).await;
    let now = 1_442_016_090_000_000; // 2015-09-12T00:01:30Z
    world.set_now(now);
    world.append(0, &edit(7));
    world.flush(0).await;
    let uri = "/v1/metrics/added/live?window=1m&aggregate=sum&every=250ms";
    let mut client = Client::connect(&world, uri, None).await;
    let event = client.next().await;
    assert_eq!((&event.data["from"], sum(&event)), (&json!("2015-09-12T00:00:00Z"), 7));
    world.set_now(now + 60_000_000);
    let event = client.next().await;
    assert_eq!(event.data["from"], "2015-09-12T00:01:00Z");
    assert_eq!(event.data["series"][0]["points"], json!([]));
}

#[tokio::test]
async fn a_stop_ends_streams_at_once() {
    let world = Arc::new(world(Config::default()).await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(lamina_serving::run(listener, world.router.clone(), Config::default(), stop.clone()));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(format!("GET {QUERY} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(3), running).await.unwrap().unwrap().unwrap();
}
