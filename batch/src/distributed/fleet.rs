//! The leader's side: which executors there are, and who folds what.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use datafusion::{error::DataFusionError, execution::TaskContext, prelude::SessionConfig};
use datafusion_distributed::{
    DistributedConfig, DistributedExt, ExecuteTaskRequest, GetWorkerInfoRequest, MaybeEncoded, ProducerHead,
    SetPlanRequest, TaskKey, WorkerChannel,
    grpc::{BoxCloneSyncChannel, create_worker_client},
};
use futures::{
    StreamExt, TryStreamExt,
    future::{join_all, try_join_all},
    stream::{self, FuturesUnordered},
};
use lamina_core::ids::new_id;
use lamina_metric::Metric;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::transport::Endpoint;
use url::Url;

use super::{VERSION, codec, heard};
use crate::{
    BatchError,
    context::{Engine, stopped},
    fold,
    report::{self, Folded},
    scan::{Piece, Scan},
    telemetry,
};

/// How long an executor may take to answer at the beginning of a run.
const ANSWER: Duration = Duration::from_secs(3);
/// One that is silent for so long in the middle of a share is given up: its machine hangs, or the network between.
const SILENCE: Duration = Duration::from_secs(20);
/// Shares of a group for each executor, so that a fast one does more of them.
const SHARES_EACH: usize = 2;

/// The executors that a run can use. One that is lost is left out until the next run.
pub(crate) struct Fleet {
    executors: Vec<Executor>,
    /// Why others are left out.
    lost: Vec<String>,
}

struct Executor {
    address: Url,
    channel: Box<dyn WorkerChannel>,
}

/// Why a share was not folded.
enum Failure {
    /// The executor is not there any more, or hangs: another one can do it.
    Lost(String),
    /// The share itself cannot be folded.
    Share(BatchError),
}

impl Fleet {
    /// Asks all executors whether they are there and of this version.
    ///
    /// # Errors
    /// If none is.
    pub(crate) async fn muster(addresses: &[Url]) -> Result<Self, BatchError> {
        let mut fleet = Self { executors: Vec::new(), lost: Vec::new() };
        let answers = join_all(addresses.iter().map(Executor::reach)).await;
        for (address, answer) in addresses.iter().zip(answers) {
            match answer {
                Ok(executor) => fleet.executors.push(executor),
                Err(why) => fleet.leave_out(address, &why),
            }
        }
        telemetry::executors(fleet.executors.len());
        if fleet.executors.is_empty() { Err(fleet.none_left()) } else { Ok(fleet) }
    }

    pub(crate) fn len(&self) -> usize {
        self.executors.len()
    }

    /// Folds files on the executors. A share whose executor is lost is folded by another one.
    ///
    /// # Errors
    /// If a share cannot be folded, or no executor is left.
    pub(crate) async fn fold(
        &mut self,
        engine: &Engine,
        metric: &Arc<Metric>,
        pieces: Vec<Piece>,
    ) -> Result<Vec<Folded>, BatchError> {
        let context = context(engine);
        let shares = fold::share_out(pieces, self.len() * SHARES_EACH);
        let mut waiting: VecDeque<Vec<Piece>> = shares.into();
        let mut under_way = FuturesUnordered::new();
        let mut folded = Vec::new();
        loop {
            while let Some(share) = waiting.pop_front() {
                let Some(executor) = self.executors.pop() else {
                    waiting.push_front(share);
                    break;
                };
                let (context, metric, ways) = (Arc::clone(&context), Arc::clone(metric), engine.parallelism);
                under_way.push(async move { give(executor, context, metric, share, ways).await });
            }
            let Some(ended) = under_way.next().await else { break };
            match ended? {
                (executor, _, Ok(parts)) => {
                    self.executors.push(executor);
                    folded.extend(parts);
                }
                (executor, share, Err(Failure::Lost(why))) => {
                    self.leave_out(&executor.address, &why);
                    telemetry::executors(self.len() + under_way.len());
                    waiting.push_front(share);
                }
                (_, _, Err(Failure::Share(error))) => return Err(error),
            }
        }
        if waiting.is_empty() { Ok(folded) } else { Err(self.none_left()) }
    }

    fn leave_out(&mut self, address: &Url, why: &str) {
        tracing::warn!(executor = %address, why, "an executor is left out of this run");
        telemetry::lost(address.as_str());
        self.lost.push(format!("{address}: {why}"));
    }

    fn none_left(&self) -> BatchError {
        BatchError::NoExecutor(self.lost.clone())
    }
}

/// What the leader's end of a channel runs with.
fn context(engine: &Engine) -> Arc<TaskContext> {
    let config = SessionConfig::new().with_distributed_option_extension(DistributedConfig::default());
    Arc::new(TaskContext::default().with_session_config(config).with_runtime(engine.environment()))
}

type Given = (Executor, Vec<Piece>, Result<Vec<Folded>, Failure>);

/// Gives a share to an executor, on a task of its own: what it sends is decoded beside the others'.
async fn give(
    mut executor: Executor,
    context: Arc<TaskContext>,
    metric: Arc<Metric>,
    share: Vec<Piece>,
    ways: usize,
) -> Result<Given, BatchError> {
    let task = tokio::spawn(async move {
        let folded = executor.fold(&context, &metric, &share, ways).await;
        (executor, share, folded)
    });
    AbortOnDropHandle::new(task).await.map_err(stopped)
}

impl Executor {
    async fn reach(address: &Url) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(address.to_string()).map_err(|error| words(&error))?;
        let endpoint = endpoint.connect_timeout(ANSWER).tcp_nodelay(true);
        let endpoint = endpoint.http2_keep_alive_interval(SILENCE / 4).keep_alive_timeout(SILENCE / 4 * 3);
        let asked = async {
            let channel = endpoint.connect().await.map_err(|error| words(&error))?;
            let mut channel = create_worker_client(BoxCloneSyncChannel::new(channel));
            let info = channel.get_worker_info(GetWorkerInfoRequest {}).await.map_err(|error| words(&error))?;
            Ok((channel, info.version))
        };
        let answer: Result<_, String> =
            tokio::time::timeout(ANSWER, asked).await.map_err(|_| format!("no answer within {ANSWER:?}"))?;
        let (channel, version) = answer?;
        if version != VERSION {
            return Err(format!("it is {version:?} and this leader is {VERSION:?}"));
        }
        Ok(Self { address: address.clone(), channel })
    }

    async fn fold(
        &mut self,
        context: &Arc<TaskContext>,
        metric: &Arc<Metric>,
        share: &[Piece],
        ways: usize,
    ) -> Result<Vec<Folded>, Failure> {
        let scan = Scan::new(Arc::clone(metric), fold::share_out(share.to_vec(), ways));
        let output = self.execute(context, scan).await.map_err(|error| self.failure(error))?;
        let read = |batches: Vec<_>| report::read(metric, &batches).map_err(Failure::Share);
        output.into_iter().map(read).collect()
    }

    /// What each partition of the fold gives on the executor. Dropping the future stops it there, too.
    async fn execute(
        &mut self,
        context: &Arc<TaskContext>,
        scan: Scan,
    ) -> Result<Vec<Vec<arrow::array::RecordBatch>>, DataFusionError> {
        let partitions = scan.partitions.len();
        let task_key = TaskKey { query_id: new_id(), stage_id: 0, task_number: 0 };
        let request = SetPlanRequest {
            task_key,
            task_count: 1,
            plan: MaybeEncoded::Encoded(codec::encode(scan)?),
            work_unit_feed_declarations: Vec::new(),
            target_worker_url: self.address.clone(),
            query_start_time_ns: 0,
        };
        // The executor forgets the plan once this end of the channel is closed.
        let open = CancellationToken::new();
        let closed = open.clone().drop_guard();
        let nothing_more = stream::pending().take_until(open.cancelled_owned()).boxed();
        let (headers, metrics) = (Default::default(), Default::default());
        let told = self.channel.coordinator_channel(headers, request, nothing_more, metrics, context).await?;
        let request = ExecuteTaskRequest {
            task_key,
            target_partition_start: 0,
            target_partition_end: partitions,
            producer_head: ProducerHead::None,
        };
        let (headers, metrics) = (Default::default(), Default::default());
        let streams = self.channel.execute_task(headers, request, metrics, context).await?;
        let output = try_join_all(streams.into_iter().map(TryStreamExt::try_collect)).await?;
        drop((closed, told));
        Ok(output)
    }

    /// A status is the channel's own; what the executor found out comes as DataFusion's error.
    fn failure(&self, error: DataFusionError) -> Failure {
        match error {
            DataFusionError::External(cause) if cause.is::<tonic::Status>() => Failure::Lost(words(&*cause)),
            other => Failure::Share(heard(self.address.as_str(), other)),
        }
    }
}

/// An error with its causes, in one line.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut all: Vec<String> = causes.map(ToString::to_string).collect();
    all.dedup();
    all.join(": ")
}
