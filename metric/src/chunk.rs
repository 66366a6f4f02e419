//! Chunks: what is stored in one row, many states together.
//!
//! Encoding is canonical: the same chunk always gives the same bytes. Decoding checks every invariant, so that damaged
//! bytes give an error and nothing else.

use bytes::Bytes;
use lamina_core::{
    Micros,
    envelope::{self, EnvelopeError},
};
use serde::{Deserialize, Serialize};

use crate::{series::Series, state::States};

/// Why stored states cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk does not unpack")]
    Envelope(#[from] EnvelopeError),
    #[error("states do not decode")]
    Body(#[source] postcard::Error),
    #[error("chunk is damaged: {0}")]
    Invalid(&'static str),
}

/// What one flush changed in one shard of one view: states of many (series, bucket).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeedChunk {
    /// Ascending, each once.
    pub series: Vec<Series>,
    /// Index into `series` and start of the bucket of each state; ascending, each once.
    pub rows: Vec<(u32, Micros)>,
    pub states: States,
}

impl SpeedChunk {
    /// # Errors
    /// If the chunk cannot be serialised, which plain data never runs into.
    pub fn encode(&self) -> Result<Bytes, ChunkError> {
        Ok(envelope::pack(self)?.into())
    }

    /// # Errors
    /// If the bytes are damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChunkError> {
        let chunk: Self = envelope::unpack(bytes)?;
        chunk.check()?;
        Ok(chunk)
    }

    fn check(&self) -> Result<(), ChunkError> {
        self.states.check()?;
        let ascending = self.series.is_sorted_by(|a, b| a < b) && self.rows.is_sorted_by(|a, b| a < b);
        let known = self.rows.iter().all(|&(series, _)| (series as usize) < self.series.len());
        if self.rows.len() != self.states.len() || !ascending || !known {
            return Err(ChunkError::Invalid("rows do not fit the states"));
        }
        self.series.iter().try_for_each(|series| series.values().map(drop))
    }
}

/// Body of a batch chunk: one series, one period; buckets ascending.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchChunk {
    pub buckets: Vec<Micros>,
    pub states: States,
}

impl BatchChunk {
    /// # Errors
    /// If the chunk cannot be serialised, which plain data never runs into.
    pub fn encode(&self) -> Result<Bytes, ChunkError> {
        Ok(envelope::pack(self)?.into())
    }

    /// # Errors
    /// If the bytes are damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChunkError> {
        let chunk: Self = envelope::unpack(bytes)?;
        chunk.check()?;
        Ok(chunk)
    }

    fn check(&self) -> Result<(), ChunkError> {
        self.states.check()?;
        if self.buckets.len() != self.states.len() || !self.buckets.is_sorted_by(|a, b| a < b) {
            return Err(ChunkError::Invalid("buckets do not fit the states"));
        }
        Ok(())
    }
}
