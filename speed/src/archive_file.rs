//! The archive file of an epoch: Parquet, written in memory while the epoch is open.
//!
//! A finished file can be gone on with: if a seal has to wait, the epoch takes in more records, and the file is written
//! again with them.

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use bytes::Bytes;
use lamina_core::Archive;
use lamina_metric::archive;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
};

/// Rows of one epoch on their way into a file.
pub(crate) struct ArchiveFile {
    schema: SchemaRef,
    state: State,
}

enum State {
    /// No row yet.
    Empty,
    Writing(Box<ArrowWriter<Vec<u8>>>),
    Finished(Bytes),
}

impl ArchiveFile {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema, state: State::Empty }
    }

    pub(crate) fn append(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        self.writer()?.write(rows)
    }

    /// The file with all rows so far, zero rows included.
    pub(crate) fn finish(&mut self) -> Result<Bytes, ParquetError> {
        if let State::Finished(bytes) = &self.state {
            return Ok(bytes.clone());
        }
        self.writer()?;
        let State::Writing(writer) = std::mem::replace(&mut self.state, State::Empty) else {
            return Err(ParquetError::General("archive file is not being written".to_owned()));
        };
        let bytes = Bytes::from(writer.into_inner()?);
        self.state = State::Finished(bytes.clone());
        Ok(bytes)
    }

    /// Estimate of the memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.state {
            State::Empty => 0,
            State::Writing(writer) => writer.bytes_written() + writer.memory_size(),
            State::Finished(bytes) => bytes.len(),
        }
    }

    fn writer(&mut self) -> Result<&mut ArrowWriter<Vec<u8>>, ParquetError> {
        let writer = match std::mem::replace(&mut self.state, State::Empty) {
            State::Writing(writer) => writer,
            State::Empty => Box::new(archive::writer(&self.schema)?),
            State::Finished(bytes) => {
                let mut writer = Box::new(archive::writer(&self.schema)?);
                for rows in archive::read(bytes)? {
                    writer.write(&rows?)?;
                }
                writer
            }
        };
        self.state = State::Writing(writer);
        match &mut self.state {
            State::Writing(writer) => Ok(writer),
            State::Empty | State::Finished(_) => Err(ParquetError::General("archive file is not being written".into())),
        }
    }
}

/// How many rows a file holds, as its footer says.
pub(crate) fn rows(file: &Bytes) -> Result<u64, ParquetError> {
    let file = ParquetRecordBatchReaderBuilder::try_new(file.clone())?;
    Ok(u64::try_from(file.metadata().file_metadata().num_rows()).unwrap_or(0))
}

/// Why a file is not (known to be) durable, or not usable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("archive does not take or give {path}")]
    Store {
        path: String,
        #[source]
        cause: object_store::Error,
    },
    #[error("archive holds another file at {path}: {found} bytes, not the {expected} written here")]
    Different { path: String, found: usize, expected: usize },
    #[error("archive file {path} is damaged: size or checksum differ from the ledger's")]
    Damaged { path: String },
    #[error("{path} is no path below an archive's root")]
    Path { path: String },
}

/// Puts a file where none may be; one that already stands there is fine if it is the same.
pub(crate) async fn put(archive: &dyn ObjectStore, path: &Path, file: &Bytes) -> Result<(), FileError> {
    let failed = |cause| FileError::Store { path: path.to_string(), cause };
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match archive.put_opts(path, file.clone().into(), create).await {
        Ok(_) => Ok(()),
        // An earlier attempt may have arrived although its answer did not.
        Err(object_store::Error::AlreadyExists { .. }) => {
            let found = archive.get(path).await.map_err(failed)?.bytes().await.map_err(failed)?;
            let different =
                || FileError::Different { path: path.to_string(), found: found.len(), expected: file.len() };
            if found == *file { Ok(()) } else { Err(different()) }
        }
        Err(cause) => Err(failed(cause)),
    }
}

/// Reads the file that a ledger names, and checks that it is the one.
pub(crate) async fn get(archive: &dyn ObjectStore, named: &Archive) -> Result<Bytes, FileError> {
    let failed = |cause| FileError::Store { path: named.path.clone(), cause };
    let path = Path::parse(&named.path).map_err(|_| FileError::Path { path: named.path.clone() })?;
    let file = archive.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?;
    if !named.describes(&file) {
        return Err(FileError::Damaged { path: named.path.clone() });
    }
    Ok(file)
}
