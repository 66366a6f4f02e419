//! Readers that ask random queries of every serving process all the time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    check::{Checker, Reply},
    failure::{Failure, Outcome},
    kafka::lock,
    query::Query,
};

/// How long a reader waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A client of the lamina under test. Clients are made here only: reqwest makes none before somebody has said what speaks TLS.
pub(crate) fn client() -> reqwest::blocking::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::blocking::Client::builder().timeout(PATIENCE).connect_timeout(Duration::from_secs(2));
    builder.build().unwrap_or_default()
}

pub(crate) struct Readers {
    stop: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<Failure>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// One reader per address, each asking about every `pace`.
    pub(crate) fn start(checker: &Arc<Checker>, urls: &[String], pace: Duration, seed: u64) -> Self {
        let (stop, failure) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let reader = |(number, url): (u64, &String)| {
            let (checker, stop, failure, url) =
                (Arc::clone(checker), Arc::clone(&stop), Arc::clone(&failure), url.clone());
            std::thread::spawn(move || {
                let random = StdRng::seed_from_u64(seed.wrapping_add(number));
                if let Err(error) = read(&checker, &url, pace, random, &stop) {
                    lock(&failure).get_or_insert(error);
                }
            })
        };
        let threads = (0..).zip(urls).map(reader).collect();
        Self { stop, failure, threads }
    }

    /// # Errors
    /// If a reader could not go on.
    pub(crate) fn check(&self) -> Outcome {
        lock(&self.failure).take().map_or(Ok(()), Err)
    }

    pub(crate) fn stop(&mut self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.check()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn read(checker: &Checker, url: &str, pace: Duration, mut random: StdRng, stop: &AtomicBool) -> Outcome {
    let client = client();
    let mut answered = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let query = Query::random(&mut random, chrono::Utc::now().timestamp_millis());
        if let Reply::Complete(_) | Reply::Incomplete(_) = checker.ask(&client, url, &query)? {
            let silence = u64::try_from(answered.elapsed().as_millis()).unwrap_or(u64::MAX);
            checker.update(|figures| figures.longest_silence_ms = figures.longest_silence_ms.max(silence));
            answered = Instant::now();
        }
        std::thread::sleep(pace.mul_f64(random.random_range(0.5..1.5)));
    }
    Ok(())
}
