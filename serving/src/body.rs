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

    /// The plain bytes.
    pub(crate) fn unpack(self, packed: Bytes, limit: usize) -> Result<Bytes, Problem> {
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
        if unpacked.len() > limit { Err(too_large(limit)) } else { Ok(unpacked.into()) }
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
        let refused = Packing::Zstd.unpack(bomb.into(), 1 << 20).unwrap_err();
        assert!(matches!(refused.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST), "{refused:?}");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&vec![7_u8; 4096]).unwrap();
        let gzip: Bytes = gzip.finish().unwrap().into();
        assert_eq!(Packing::Gzip.unpack(gzip.clone(), 4096).unwrap().len(), 4096);
        assert_eq!(Packing::Gzip.unpack(gzip.clone(), 4095).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(Packing::Gzip.unpack(gzip.slice(..20), 4096).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
