//! The archive in object storage: a real server that speaks S3, over a folder.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    place::{Place, count_and_sum, event},
    process::{Backend, Lamina, Launch, free_port},
};

const EVENTS: usize = 600;
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z&aggregate=count,sum";
const SECRET: &str = "a-secret-that-stands-in-no-log";

/// Killed when dropped.
struct Server(Child);

impl Server {
    /// Serves the folder; gives its URL, too.
    fn start(binary: &str, folder: &Path) -> (Self, String) {
        let port = free_port();
        let child = Command::new(binary)
            .args([
                "--host",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--access-key",
                "lamina",
                "--secret-key",
                SECRET,
            ])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let from = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(from.elapsed() < Duration::from_secs(10), "{binary} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        (Self(child), format!("http://127.0.0.1:{port}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Files of the archive, as the server keeps them.
fn files(folder: PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| if path.is_dir() { files(path) } else { vec![path] });
    below.filter(|path| path.extension().is_some_and(|extension| extension == "parquet")).collect()
}

#[test]
fn the_archive_may_lie_in_s3() {
    let Ok(binary) = std::env::var("LAMINA_TEST_S3") else {
        assert!(!super::process::in_ci(), "LAMINA_TEST_S3 must name the server in continuous integration");
        return eprintln!("skipped: LAMINA_TEST_S3 is not set; `make test` sets it");
    };
    let place = Place::new(Backend::Embedded);
    let root = place.path().join("s3");
    fs::create_dir_all(root.join("archive")).unwrap();
    let (_server, endpoint) = Server::start(&binary, &root);
    let settings = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "lamina"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ];
    let environment = settings.map(|(name, value)| (name, value.to_owned())).to_vec();
    let launch = Launch { environment, ..Launch::default() };
    let with_archive = |text: String| format!("{text}[archive]\nurl = \"s3://archive/of/lamina\"\n");
    let mut lamina = Lamina::start_as("lamina", launch, place.path(), &place.settings(), &place.name, with_archive);
    let file = place.path().join("events.ndjson");
    fs::write(&file, (0..EVENTS).map(event).collect::<Vec<_>>().join("\n")).unwrap();
    let token = lamina.ingest("hits", &file);
    let answers = |lamina: &Lamina| {
        let answer = lamina.get(&format!("/v1/metrics/bytes/query?{RANGE}&at_least={token}"), &[]);
        let point = &answer["series"][0]["points"][0];
        assert_eq!(answer["meta"]["complete"], true, "{answer}");
        let (count, sum) = count_and_sum(EVENTS);
        assert_eq!((point["count"].as_u64(), point["sum"].as_u64()), (Some(count), Some(sum)), "{answer}");
        answer["meta"]["batch"]["generation"].as_u64().unwrap()
    };
    answers(&lamina);
    lamina.until("every partition has a file there", || files(root.join("archive/of/lamina")).len() >= 2);
    lamina.recompute_all();
    assert!(answers(&lamina) > 0, "covered from what S3 gave");
    lamina.kill();
    lamina.restart();
    answers(&lamina);

    // What is not what the ledger says is never parsed, wherever it lies.
    let damaged = files(root.join("archive/of/lamina")).remove(0);
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let job: Value =
        lamina.request(reqwest::Method::POST, "/v1/recomputes").json(&json!({})).send().unwrap().json().unwrap();
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let name = damaged.file_name().unwrap().to_string_lossy().into_owned();
    lamina.until("the job says which file is damaged", || {
        let error = lamina.get(&path, &[])["error"].as_str().unwrap_or_default().to_owned();
        error.contains("CRC-32") && error.contains(&name)
    });
    answers(&lamina);
    let log = fs::read_to_string(place.path().join("lamina.log")).unwrap();
    assert!(!log.contains(SECRET), "the log tells the secret");
}
