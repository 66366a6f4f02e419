//! `lamina ingest`: sends a file of events, in file order.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read},
    path::PathBuf,
    process::ExitCode,
};

use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lamina_serving::Token;
use reqwest::Method;
use serde_json::Value;

use super::{Done, Failure, Server, client::send};

/// Bytes of one request.
const CHUNK: usize = 1 << 20;
/// Rejected events that are shown; the rest is counted.
const SHOWN: usize = 10;

/// Send a file of events. Prints the position token of everything that was sent.
#[derive(clap::Args)]
pub(super) struct Ingest {
    /// Source to send to
    #[arg(long)]
    source: String,
    /// File, plain or gzip; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    server: Server,
}

impl Ingest {
    pub(super) async fn run(self) -> Done {
        let definition = send(self.server.request(Method::GET, &["v1", "sources", &self.source])?).await?;
        let definition = &definition["definition"];
        let content_type = match definition["format"].as_str() {
            Some("csv") => "text/csv",
            Some("text") => "text/plain",
            _ => "application/x-ndjson",
        };
        let header = definition["format"] == "csv" && definition["header"].as_bool().unwrap_or(true);
        let unreadable = |error: io::Error| Failure::usage(format!("{}: {error}", self.file.display()));
        let bar = progress(self.size());
        let input = self.open(&bar).map_err(unreadable)?;
        let mut chunks = Chunks::new(BufReader::new(input), header).map_err(unreadable)?;
        let mut sent = Sent::default();
        while let Some(body) = chunks.next().map_err(unreadable)? {
            let request = self.server.request(Method::POST, &["v1", "sources", &self.source, "events"])?;
            let answer = send(request.header("content-type", content_type).body(body)).await?;
            sent.add(&answer);
        }
        bar.finish_and_clear();
        sent.report()
    }

    /// Bytes of the file; a stream's are not known.
    fn size(&self) -> Option<u64> {
        self.file.metadata().ok().map(|metadata| metadata.len())
    }

    /// The file or standard input; the bar follows what is read of it.
    fn open(&self, bar: &ProgressBar) -> io::Result<Box<dyn Read>> {
        if self.file.as_os_str() == "-" {
            return decompressed(bar.wrap_read(io::stdin()));
        }
        decompressed(bar.wrap_read(File::open(&self.file)?))
    }
}

/// What the server said so far.
#[derive(Default)]
struct Sent {
    accepted: u64,
    rejected: u64,
    position: Option<Token>,
}

impl Sent {
    fn add(&mut self, answer: &Value) {
        for one in answer["rejected"].as_array().map_or(&[][..], Vec::as_slice) {
            if self.rejected < SHOWN as u64 {
                let at = self.accepted + self.rejected;
                eprintln!("rejected near event {at}: {}", one["error"].as_str().unwrap_or_default());
            }
            self.rejected += 1;
        }
        self.accepted += answer["accepted"].as_u64().unwrap_or(0);
        let position = answer["position"].as_str().and_then(Token::decode);
        self.position = match (self.position.take(), position) {
            (Some(before), Some(now)) => before.clone().and(&now).or(Some(now)),
            (before, now) => now.or(before),
        };
    }

    fn report(self) -> Done {
        eprintln!("{} events acknowledged, {} rejected", self.accepted, self.rejected);
        if let Some(position) = self.position {
            println!("{}", position.encode());
        }
        Ok(if self.rejected == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Plain or gzip, told by the first two bytes.
pub(super) fn decompressed(input: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut input = BufReader::new(input);
    let gzip = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if gzip { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) })
}

/// Cuts a stream of lines into bodies of about [`CHUNK`] bytes; a CSV header goes before each. A quoted line break does
/// not end a row.
struct Chunks<R> {
    input: R,
    header: Vec<u8>,
}

impl<R: BufRead> Chunks<R> {
    fn new(mut input: R, with_header: bool) -> io::Result<Self> {
        let mut header = Vec::new();
        if with_header {
            input.read_until(b'\n', &mut header)?;
        }
        Ok(Self { input, header })
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut body = self.header.clone();
        let mut open_quote = false;
        while body.len() < CHUNK || open_quote {
            let from = body.len();
            if self.input.read_until(b'\n', &mut body)? == 0 {
                break;
            }
            let quotes = body[from..].iter().filter(|&&byte| byte == b'"').count();
            open_quote ^= !self.header.is_empty() && quotes % 2 == 1;
        }
        Ok((body.len() > self.header.len()).then_some(body))
    }
}

fn progress(size: Option<u64>) -> ProgressBar {
    let bar = size.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template("{spinner} {bytes} of {total_bytes} read, {bytes_per_sec}, {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_sent_once_and_each_body_begins_with_the_header() {
        let row = |n: usize| format!("{n},\"two\nlines\",{}\n", "x".repeat(n % 90));
        let rows: Vec<String> = (0..60_000).map(row).collect();
        let file = format!("a,b,c\n{}", rows.concat());
        let mut chunks = Chunks::new(file.as_bytes(), true).unwrap();
        let mut back = String::new();
        let mut bodies = 0;
        while let Some(body) = chunks.next().unwrap() {
            let body = String::from_utf8(body).unwrap();
            back.push_str(body.strip_prefix("a,b,c\n").expect("a header"));
            assert_eq!(body.matches('"').count() % 2, 0, "a body ends inside a quoted field");
            bodies += 1;
        }
        assert_eq!(back, rows.concat());
        assert!(bodies > 2);
    }
}
