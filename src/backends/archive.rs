//! The archive's object store: any URL that `object_store` knows, or a folder whose files are on disk when a put returns.

use std::{
    fmt,
    fs::File,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, local::LocalFileSystem, path::Path, prefix::PrefixStore,
};
use url::Url;

/// Opens the archive at `url`; credentials come from the environment.
///
/// # Errors
/// If the URL's scheme is not known, or a folder cannot be made.
pub fn open(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    if let Ok(folder) = url.to_file_path() {
        return Ok(Arc::new(DurableFolder::open(&folder)?));
    }
    let (store, prefix) = object_store::parse_url_opts(url, std::env::vars())?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

/// A folder. The local file system of `object_store` leaves what it wrote to the page cache: after a power loss a file that
/// the ledger names could be empty. Here file and folder are synced before a put returns.
#[derive(Debug)]
pub struct DurableFolder {
    files: LocalFileSystem,
    root: PathBuf,
}

impl DurableFolder {
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &FilePath) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        Ok(Self { files: LocalFileSystem::new_with_prefix(folder)?, root: folder.to_owned() })
    }

    /// Syncs a file and the folders above it, up to the root.
    async fn sync(&self, location: &Path) -> Result<()> {
        let file = self.files.path_to_filesystem(location)?;
        let root = self.root.clone();
        let synced = tokio::task::spawn_blocking(move || {
            let folders = file.ancestors().skip(1).take_while(|folder| folder.starts_with(&root));
            let mut paths = std::iter::once(file.as_path()).chain(folders);
            paths.try_for_each(|path| File::open(path)?.sync_all())
        });
        match synced.await {
            Ok(done) => done.map_err(|error| failed(&self.root, error)),
            Err(error) => Err(failed(&self.root, std::io::Error::other(error))),
        }
    }
}

fn failed(folder: &FilePath, error: std::io::Error) -> object_store::Error {
    let source = format!("{}: {error}", folder.display()).into();
    object_store::Error::Generic { store: "archive folder", source }
}

impl fmt::Display for DurableFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for DurableFolder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let put = self.files.put_opts(location, payload, opts).await;
        // What stands there already may be our own, of an attempt that failed before it was synced.
        if matches!(put, Ok(_) | Err(object_store::Error::AlreadyExists { .. })) {
            self.sync(location).await?;
        }
        put
    }

    /// Uploads in parts are for readers' tools; the archive is written by [`ObjectStore::put_opts`].
    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await?;
        self.sync(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await?;
        self.sync(to).await
    }
}
