//! The same runs on executors: they come to the same, whoever of them goes away meanwhile.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lamina_batch::{BatchError, Config, Outcome, Wanted};
use object_store::{ObjectStoreExt, memory::InMemory};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    runs::events,
    world::{DEFINITIONS, World},
};

fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn config() -> Config {
    Config { memory_bytes: 64 << 20, parallelism: 2, ..Config::default() }
}

fn leader(config: Config, executors: &[SocketAddr]) -> Config {
    let executors = executors.iter().map(|address| Url::parse(&format!("http://{address}")).unwrap()).collect();
    Config { executors, ..config }
}

/// An executor in this process, until it is told to stop.
fn execute(archive: &Arc<InMemory>, config: Config, listener: TcpListener) -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(lamina_batch::execute(Arc::clone(archive) as _, config, listener, stop.clone()));
    stop
}

/// A world whose batch folds on `count` executors, all of them there.
pub(crate) fn start(definitions: &str, count: usize, config: &Config) -> (World, Vec<CancellationToken>) {
    let (listeners, addresses): (Vec<_>, Vec<_>) = (0..count).map(|_| bind()).unzip();
    let world = World::with(definitions, &leader(config.clone(), &addresses));
    let executor = |listener| execute(&world.files, config.clone(), listener);
    let stops = listeners.into_iter().map(executor).collect();
    (world, stops)
}

async fn seal_some(world: &World) {
    for at in 0..6 {
        world.seal(at % 2, &events(40 + i64::from(at))).await;
    }
}

/// Forwards connections to `to`; each is cut once `bytes` came back, after the first so many connections.
fn cutting(to: SocketAddr, bytes: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cuts);
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            tokio::spawn(forward(from, to, bytes, Arc::clone(&counted)));
        }
    });
    (address, cuts)
}

async fn forward(from: TcpStream, to: SocketAddr, bytes: usize, cuts: Arc<AtomicUsize>) {
    let to = TcpStream::connect(to).await.unwrap();
    let ((mut asks, mut answers), (mut reads, mut writes)) = (from.into_split(), to.into_split());
    let there = tokio::spawn(async move { tokio::io::copy(&mut asks, &mut writes).await });
    let (mut left, mut buffer) = (bytes, [0; 256]);
    while let Ok(count) = reads.read(&mut buffer).await {
        if count == 0 || count > left {
            cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
        left -= count;
        if answers.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    there.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn executors_give_what_this_process_would() {
    let (world, stops) = start(DEFINITIONS, 2, &config());
    seal_some(&world).await;
    let outcome = world.run(Wanted::Cover).await.unwrap();
    assert!(matches!(outcome, Outcome::Published { files: 6, .. }), "{outcome:?}");
    world.check("covered").await;
    world.trim().await;
    seal_some(&world).await;
    world.run(Wanted::Rebuild { from: None, to: None }).await.unwrap();
    world.check("rebuilt").await;
    stops.iter().for_each(CancellationToken::cancel);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_is_cut_off_anywhere_is_left_out_and_the_others_go_on() {
    let mut in_the_middle = 0;
    for bytes in [0, 100, 200, 400, 800, 1_600, 6_400, 12_800] {
        let ((one, first), (other, second)) = (bind(), bind());
        let (cut, cuts) = cutting(first, bytes);
        let world = World::with(DEFINITIONS, &leader(config(), &[cut, second]));
        let _stops = [execute(&world.files, config(), one), execute(&world.files, config(), other)];
        seal_some(&world).await;
        world.run(Wanted::Cover).await.unwrap();
        world.check(&format!("cut off after {bytes} bytes")).await;
        in_the_middle += cuts.load(Ordering::SeqCst).min(1);
    }
    assert!(in_the_middle >= 5, "only {in_the_middle} cuts were made");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_executors_a_run_fails_and_says_so() {
    let ((one, first), (_, gone)) = (bind(), bind());
    let world = World::with(DEFINITIONS, &leader(config(), &[first, gone]));
    let stop = execute(&world.files, config(), one);
    seal_some(&world).await;
    world.run(Wanted::Cover).await.unwrap();
    world.check("one of two").await;
    stop.cancel();
    world.seal(0, &events(5)).await;
    let error = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            // It ends its connections first.
            match world.run(Wanted::Rebuild { from: None, to: None }).await {
                Err(error) => return error,
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let error = error.await.unwrap();
    let BatchError::NoExecutor(why) = &error else { panic!("{error}") };
    assert!(why.len() == 2 && why.iter().any(|why| why.contains(&gone.to_string())), "{error}");
    world.check("nothing was published").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_file_is_told_and_is_not_taken_for_a_lost_executor() {
    let (world, _stops) = start(DEFINITIONS, 2, &config());
    let path = world.seal(0, &events(50)).await;
    world.seal(1, &events(30)).await;
    let whole = world.files.get(&path).await.unwrap().bytes().await.unwrap();
    let mut damaged = whole.to_vec();
    damaged[whole.len() / 2] ^= 1;
    world.files.put(&path, damaged.into()).await.unwrap();
    let error = world.run(Wanted::Cover).await.unwrap_err();
    assert!(matches!(&error, BatchError::Executor { violation: true, .. }), "{error:?}");
    assert!(error.to_string().contains(path.as_ref()) && error.to_string().contains("CRC-32"), "{error}");

    world.files.delete(&path).await.unwrap();
    let error = world.run(Wanted::Cover).await.unwrap_err();
    assert!(matches!(&error, BatchError::Executor { violation: false, .. }), "{error:?}");
    assert!(error.to_string().contains(path.as_ref()) && error.to_string().contains("cannot be read"), "{error}");

    let mut ledger = world.store.ledger(&world.log, 0);
    ledger.epochs[0].archive.as_mut().unwrap().path = "../elsewhere.parquet".to_owned();
    world.store.set_ledger(&world.log, 0, ledger);
    let error = world.run(Wanted::Cover).await.unwrap_err().to_string();
    assert!(error.contains("../elsewhere.parquet") && error.contains("below the archive's root"), "{error}");
    world.check("nothing was published").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_does_not_end_an_executor() {
    let (listener, address) = bind();
    let world = World::with(DEFINITIONS, &leader(config(), &[address]));
    let _stop = execute(&world.files, config(), listener);
    seal_some(&world).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let endless: Vec<u8> = (0..100_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4_096], &endless, &[&preface[..], &endless].concat()] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // It may hang up at any moment.
        let _ = connection.write_all(garbage).await;
        let _ = tokio::time::timeout(Duration::from_millis(200), connection.read(&mut [0; 64])).await;
    }
    let _hangs = TcpStream::connect(address).await.unwrap();
    world.run(Wanted::Cover).await.unwrap();
    world.check("after the garbage").await;
}
