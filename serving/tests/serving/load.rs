//! Behaviour under load and towards clients that take their time; TLS, on real sockets.

use std::{
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use hyper::Method;
use lamina_serving::{Config, tls};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use crate::world::World;

struct Served {
    world: World,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Served {
    async fn new(config: Config) -> Self {
        let world = World::with(config.clone()).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(lamina_serving::run(listener, world.router.clone(), config, stop.clone()));
        Self { world, address, stop }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const SOON: Duration = Duration::from_secs(10);

/// What the server sends until it closes the connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A connection may end in a reset; what came before it counts.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the connection is still open");
    bytes
}

#[tokio::test]
async fn requests_wait_in_a_bounded_queue_and_the_others_are_shed_at_once() {
    let config = Config { max_concurrent: 1, max_queued: 2, queue_wait: Duration::from_secs(5), ..Config::default() };
    let served = Served::new(config).await;
    let event = r#"{"time": "1970-01-01T00:00:00Z"}"#;
    let sent = served.world.send(Method::POST, "/v1/sources/edits/events", &[], event).await.json();
    // Nobody folds it: the query waits for as long as it may.
    let position = sent["position"].as_str().unwrap();
    let slow = format!("/v1/metrics/added/query?from=0&to=60000&wait=1s&at_least={position}");
    let url = |path: &str| format!("http://{}{path}", served.address);
    let client = client();
    let (waited, shed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let first = client.get(url(&slow)).send();
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let one = async || {
            let from = Instant::now();
            let answer = client.get(url("/v1/metrics")).send().await.unwrap();
            match answer.status().as_u16() {
                200 => waited.fetch_add(1, Ordering::SeqCst),
                503 => {
                    assert!(from.elapsed() < Duration::from_millis(400), "shed after {:?}", from.elapsed());
                    assert!(answer.headers().contains_key("retry-after"));
                    shed.fetch_add(1, Ordering::SeqCst)
                }
                other => panic!("{other}"),
            };
        };
        let health = async { assert_eq!(client.get(url("/livez")).send().await.unwrap().status(), 200) };
        futures::join!(one(), one(), one(), one(), one(), health);
    };
    let (first, ()) = futures::join!(first, others);
    assert_eq!(first.unwrap().status(), 504, "it held the only place meanwhile");
    assert_eq!((waited.load(Ordering::SeqCst), shed.load(Ordering::SeqCst)), (2, 3));
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let served = Served::new(Config { body_timeout: Duration::from_millis(200), ..Config::default() }).await;
    let mut slow = TcpStream::connect(served.address).await.unwrap();
    let head =
        "POST /v1/sources/edits/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let answer = String::from_utf8(rest(&mut slow).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answers_loses_the_connection() {
    let asked = 2_000;
    let read = async |pause: Duration| {
        let served = Served::new(Config { write_stall: Duration::from_millis(300), ..Config::default() }).await;
        let mut client = TcpStream::connect(served.address).await.unwrap();
        let last = "GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(asked - 1) + last;
        let (mut reader, mut writer) = client.split();
        let answered = async {
            tokio::time::sleep(pause).await;
            let mut bytes = Vec::new();
            let _ = tokio::time::timeout(4 * SOON, reader.read_to_end(&mut bytes)).await.expect("still open");
            bytes.windows(16).filter(|window| window == b"HTTP/1.1 200 OK\r").count()
        };
        let (answered, _) = futures::join!(answered, writer.write_all(requests.as_bytes()));
        answered
    };
    assert_eq!(read(Duration::ZERO).await, asked, "whoever reads gets everything");
    let answered = read(Duration::from_secs(2)).await;
    assert!(answered < asked, "all {answered} answers came");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let served = Served::new(Config::default()).await;
    for (head, status) in [
        (format!("GET /livez HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(200 << 10)), "431"),
        (format!("GET /livez HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(200)), "431"),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "x".repeat(20 << 10)), "414"),
        ("GET /livez HTTP/9.9\r\n\r\n".to_owned(), "400"),
        ("\u{0}\u{1}\u{2}\r\n\r\n".to_owned(), "400"),
    ] {
        let mut client = TcpStream::connect(served.address).await.unwrap();
        let _ = client.write_all(head.as_bytes()).await;
        let answer = String::from_utf8_lossy(&rest(&mut client).await).into_owned();
        let refused = answer.starts_with(&format!("HTTP/1.1 {status}"));
        assert!(refused, "{}: {}", &head[..20], answer.lines().next().unwrap_or("nothing"));
    }
}

#[tokio::test]
async fn dense_and_deep_bodies_are_refused_event_by_event_or_whole() {
    let world = World::new().await;
    let event = |nested: &str| format!(r#"{{"time": "1970-01-01T00:00:00Z", "x": {nested}}}"#);
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    let body = format!("{}\n{}", event("[[]]"), event(&deep));
    let answer = world.send(Method::POST, "/v1/sources/edits/events", &[], body).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!((&answer.json()["accepted"], &answer.json()["rejected"][0]["index"]), (&1.into(), &1.into()));
    let very = event(&"[".repeat(1_000_000));
    let answer = world.send(Method::POST, "/v1/sources/edits/events", &[], very).await;
    assert!(matches!(answer.status.as_u16(), 202 | 400), "{}", answer.text());
    let bomb = zstd::bulk::compress(&b" ".repeat(16 << 20), 3).unwrap();
    let answer = world.send(Method::POST, "/v1/sources/edits/events", &[("content-encoding", "zstd")], bomb).await;
    assert_eq!(answer.problem(413).0, "too_dense");
}

/// A certificate for localhost and its key, written over whatever was there; gives the certificate for clients to trust.
fn certificate(folder: &Path) -> reqwest::Certificate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

fn trusting(certificate: &reqwest::Certificate) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([certificate.clone()]).build().unwrap()
}

#[tokio::test]
async fn tls_is_spoken_and_a_new_certificate_is_shown_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = certificate(folder.path());
    let files = tls::Files { cert: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
    files.check().unwrap();
    let served = Served::new(Config { tls: Some(files.clone()), ..Config::default() }).await;
    let url = format!("https://localhost:{}/v1/metrics", served.address.port());
    let works = async |certificate: &reqwest::Certificate| {
        let answer = trusting(certificate).get(&url).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    };
    assert!(works(&first).await);
    let stranger = { certificate(tempfile::tempdir().unwrap().path()) };
    assert!(!works(&stranger).await, "a client that does not trust it is served");
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(!rest(&mut plain).await.starts_with(b"HTTP"), "plain HTTP is answered");

    std::fs::write(folder.path().join("cert.pem"), "half of a certificate").unwrap();
    assert!(files.check().is_err());
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(works(&first).await, "what cannot be used changes nothing");
    let second = certificate(folder.path());
    let from = Instant::now();
    while !works(&second).await {
        assert!(from.elapsed() < SOON, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!works(&first).await);
    assert_eq!(served.world.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_certificate_and_a_key_that_do_not_belong_together_are_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificate(one.path());
    certificate(other.path());
    for (cert, key, named) in [
        (one.path().join("cert.pem"), other.path().join("key.pem"), "key.pem"),
        (one.path().join("key.pem"), one.path().join("key.pem"), "key.pem"),
        (one.path().join("none.pem"), one.path().join("key.pem"), "none.pem"),
    ] {
        let why = tls::Files { cert, key }.check().unwrap_err().to_string();
        assert!(why.contains(named), "{why}");
    }
}
