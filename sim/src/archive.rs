//! The archive as a process sees it: files that are there whole once acknowledged.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use crate::{
    port::{Fault, Port},
    world::{Done, Effect},
};

pub(crate) struct SimArchive(pub(crate) Port);

impl fmt::Debug for SimArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SimArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated archive")
    }
}

fn unavailable(_: Fault) -> Error {
    Error::Generic { store: "simulated", source: "it does not answer".into() }
}

#[async_trait]
impl ObjectStore for SimArchive {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = matches!(options.mode, PutMode::Create);
        let effect = Effect::File { path: path.to_string(), bytes: Bytes::from(payload), create };
        match self.0.write(effect).await.map_err(unavailable)? {
            Done::Exists => Err(Error::AlreadyExists { path: path.to_string(), source: "it stands there".into() }),
            _ => Ok(PutResult { e_tag: None, version: None }),
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".to_owned(), implementer: "simulation".to_owned() })
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let found = self.0.ask(|world| world.files.get(path.as_ref()).cloned()).await.map_err(unavailable)?;
        let missing = || Error::NotFound { path: path.to_string(), source: "it is not there".into() };
        let one = InMemory::new();
        one.put(path, found.ok_or_else(missing)?.into()).await?;
        one.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let port = self.0.clone();
        let remove = move |path: Result<Path>| {
            let port = port.clone();
            async move {
                let path = path?;
                port.write(Effect::RemoveFile { path: path.to_string() }).await.map_err(unavailable)?;
                Ok(path)
            }
        };
        paths.then(remove).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::empty().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotImplemented { operation: "list".to_owned(), implementer: "simulation".to_owned() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".to_owned(), implementer: "simulation".to_owned() })
    }
}
