//! Batch's own runtime: DataFusion's work never runs on the threads that serve.

use std::{future::Future, sync::Arc};

use datafusion::{
    error::DataFusionError,
    execution::{
        TaskContext,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::FairSpillPool,
        object_store::ObjectStoreUrl,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::SessionConfig,
};
use lamina_core::offload;
use object_store::ObjectStore;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinError,
};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::{BatchError, Config, distributed::Fleet};

/// Rows decoded and aggregated at once, at most and at least. Aggregation spills between batches, so that the states
/// which one batch begins must fit into memory.
const LARGEST_BATCH: usize = 8192;
const SMALLEST_BATCH: usize = 64;
/// Bytes allowed for the states that one row begins: sketches and all.
const ROW_COST: usize = 8 << 10;

pub(crate) struct Engine {
    /// `None`: on the caller's, as a simulation wants it.
    runtime: Option<Runtime>,
    environment: Arc<RuntimeEnv>,
    pub(crate) parallelism: usize,
    pub(crate) memory_bytes: usize,
    /// Where executors are; none if all is folded here.
    executors: Vec<Url>,
}

/// Under which plans find the archive.
pub(crate) fn archive_url() -> Result<ObjectStoreUrl, DataFusionError> {
    ObjectStoreUrl::parse("lamina://archive")
}

impl Engine {
    pub(crate) fn new(config: &Config, archive: Arc<dyn ObjectStore>) -> Result<Self, BatchError> {
        let &Config { memory_bytes, parallelism, nice, .. } = config;
        let parallelism = parallelism.max(1);
        let runtime = (!offload::is_inline()).then(|| own_runtime(parallelism, nice)).transpose()?;
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory_bytes)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory))
            .build_arc()?;
        environment.register_object_store(archive_url()?.as_ref(), archive);
        Ok(Self { runtime, environment, parallelism, memory_bytes, executors: config.executors.clone() })
    }

    /// The executors that a run can use; `None` if all is folded here.
    pub(crate) async fn fleet(&self) -> Result<Option<Fleet>, BatchError> {
        match &self.executors[..] {
            [] => Ok(None),
            some => Fleet::muster(some).await.map(Some),
        }
    }

    pub(crate) fn environment(&self) -> Arc<RuntimeEnv> {
        Arc::clone(&self.environment)
    }

    /// Rows decoded and aggregated at once.
    pub(crate) fn batch_size(&self) -> usize {
        (self.memory_bytes / self.parallelism / ROW_COST).clamp(SMALLEST_BATCH, LARGEST_BATCH)
    }

    /// Runs `work` on batch's runtime; it is aborted when the caller goes away, and a panic is an error.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T, BatchError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BatchError>> + Send + 'static,
    {
        let task = match &self.runtime {
            Some(runtime) => runtime.spawn(work),
            None => tokio::spawn(work),
        };
        AbortOnDropHandle::new(task).await.unwrap_or_else(|error| Err(stopped(error)))
    }

    /// What one query runs with.
    pub(crate) fn query(&self) -> Arc<TaskContext> {
        let config = SessionConfig::new().with_target_partitions(self.parallelism).with_batch_size(self.batch_size());
        Arc::new(TaskContext::default().with_session_config(config).with_runtime(Arc::clone(&self.environment)))
    }
}

fn own_runtime(threads: usize, nice: u8) -> Result<Runtime, BatchError> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name("lamina-batch").on_thread_start(move || yield_to_others(nice));
    builder.enable_all().build().map_err(BatchError::Runtime)
}

/// Lets other threads go first where the processors do not suffice for all. On Linux a priority is a thread's own.
#[cfg(target_os = "linux")]
fn yield_to_others(nice: u8) {
    if let Err(error) = rustix::process::setpriority_process(None, i32::from(nice.min(19))) {
        tracing::warn!(%error, nice, "a batch thread keeps its priority");
    }
}

#[cfg(not(target_os = "linux"))]
fn yield_to_others(_: u8) {}

impl Drop for Engine {
    /// A runtime may not be waited for where asynchronous code runs.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Why a task did not end by itself.
pub(crate) fn stopped(error: JoinError) -> BatchError {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            BatchError::Panicked(text.unwrap_or_else(|| "no message".to_owned()))
        }
        Err(_) => BatchError::Cancelled,
    }
}
