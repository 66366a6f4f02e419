//! Request bodies: read within limits of size and time, and unpacked within limits of size.

use std::{io::Read, time::Duration};

use axum::{
    body::{self, Body},
    http::{HeaderMap, StatusCode, header},
};
use bytes::Bytes;
use http_body_util::LengthLimitError;

use crate::problem::Problem;

/// Zstandard frames that need a larger window than 8 MiB are refused: the window is memory.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What a packed body may always become.
const FREE: usize = 1 << 20;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// From `content-encoding`.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(Self::Plain) };
        match value.as_bytes().trim_ascii() {
            b"" | b"identity" => Ok(Self::Plain),
            b"gzip" | b"x-gzip" => Ok(Self::Gzip),
            b"zstd" => Ok(Self::Zstd),
            other => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                format!("content-encoding {:?} is not taken: gzip, zstd or none", String::from_utf8_lossy(other)),
            )),
        }
    }

    /// The plain bytes: at most `limit` of them, and at most `ratio` times as many as were packed once they are more than a MiB.
    pub(crate) fn unpack(self, packed: Bytes, limit: usize, ratio: usize) -> Result<Bytes, Problem> {
        let (whole, sent) = (limit, packed.len());
        let limit = limit.min(sent.saturating_mul(ratio).max(FREE));
        let unpacked = match self {
            Self::Plain => return Ok(packed),
            Self::Gzip => read_up_to(flate2::read::MultiGzDecoder::new(&*packed), limit),
            Self::Zstd => zstd::stream::read::Decoder::new(&*packed).and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                read_up_to(decoder, limit)
            }),
        };
        let unpacked = unpacked.map_err(|error| {
            let detail = format!("the body does not unpack as its content-encoding says: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "bad_encoding", detail)
        })?;
        match unpacked.len() > limit {
            false => Ok(unpacked.into()),
            true if limit == whole => Err(too_large(limit)),
            true => {
                let detail =
                    format!("{sent} bytes unpack to more than {ratio} times as many: pack the body less densely");
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_dense", detail).with("max_ratio", ratio))
            }
        }
    }
}

/// Whether JSON is nested deeper than this; of what is no JSON, nothing is said.
pub(crate) fn is_deeper(json: &[u8], most: usize) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > most {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// # Errors
/// 400 if JSON is nested deeper than this.
pub(crate) fn check_depth(json: &[u8], most: usize) -> Result<(), Problem> {
    match is_deeper(json, most) {
        false => Ok(()),
        true => {
            let detail = format!("the body is nested deeper than {most}");
            Err(Problem::new(StatusCode::BAD_REQUEST, "too_deep", detail))
        }
    }
}

fn read_up_to(reader: impl Read, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The body as it was sent.
pub(crate) async fn read(body: Body, limit: usize, within: Duration) -> Result<Bytes, Problem> {
    let read = tokio::time::timeout(within, body::to_bytes(body, limit)).await.map_err(|_| {
        let detail = format!("the body did not arrive within {} s", within.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
    })?;
    read.map_err(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if inner.is::<LengthLimitError>() {
                return too_large(limit);
            }
            cause = inner.source();
        }
        Problem::new(StatusCode::BAD_REQUEST, "bad_body", format!("the body broke off: {error}"))
    })
}

pub(crate) fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is over the limit of {limit} bytes (unpacked): send it in parts");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail).with("limit_bytes", limit)
}

/// The media type without its parameters, in lower case; empty if there is none.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_unpacks_to_more_than_the_limit_is_refused_without_holding_it() {
        let bomb = zstd::bulk::compress(&vec![0_u8; 64 << 20], 19).unwrap();
        assert!(bomb.len() < 20_000);
        let refused = Packing::Zstd.unpack(bomb.into(), 1 << 20, 10_000).unwrap_err();
        assert!(matches!(refused.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST), "{refused:?}");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&vec![7_u8; 4096]).unwrap();
        let gzip: Bytes = gzip.finish().unwrap().into();
        assert_eq!(Packing::Gzip.unpack(gzip.clone(), 4096, 200).unwrap().len(), 4096);
        assert_eq!(Packing::Gzip.unpack(gzip.clone(), 4095, 200).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(Packing::Gzip.unpack(gzip.slice(..20), 4096, 200).unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_body_that_grows_too_much_is_refused_though_it_would_fit() {
        let dense = zstd::bulk::compress(&vec![0_u8; 8 << 20], 19).unwrap();
        let refused = Packing::Zstd.unpack(dense.clone().into(), 32 << 20, 200).unwrap_err();
        assert_eq!((refused.status, refused.code), (StatusCode::PAYLOAD_TOO_LARGE, "too_dense"));
        assert_eq!(Packing::Zstd.unpack(dense.into(), 32 << 20, 100_000).unwrap().len(), 8 << 20);
    }

    #[test]
    fn nesting_is_counted_outside_of_strings() {
        let nested = |depth: usize| [b"[".repeat(depth), b"]".repeat(depth)].concat();
        assert!(!is_deeper(&nested(64), 64) && is_deeper(&nested(65), 64));
        assert!(!is_deeper(br#"{"a": "[[[[\"[[[["}"#, 2));
        assert!(!is_deeper(b"[] [] [] {} {}", 1));
        assert!(is_deeper(&b"[".repeat(1_000_000), 64), "what never closes, too");
    }
}
