//! Jobs and leaders, with the real clock.

use std::{sync::Arc, time::Duration};

use lamina_batch::{Config, Deps, Schedule};
use lamina_core::{Job, JobKind, JobRequest, JobState, Pause, clock::SystemClock, jobs};
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    runs::events,
    world::{DEFINITIONS, World},
};

fn start(world: &World, schedule: Schedule, stop: &CancellationToken) -> JoinHandle<()> {
    start_with(Deps { clock: Arc::new(SystemClock), ..world.deps.clone() }, schedule, stop)
}

fn start_with(deps: Deps, schedule: Schedule, stop: &CancellationToken) -> JoinHandle<()> {
    let lease = Duration::from_millis(300);
    let config = Config { schedule, memory_bytes: 64 << 20, parallelism: 1, lease, retries: 0, ..Config::default() };
    let stop = stop.clone();
    tokio::spawn(async move { lamina_batch::run(deps, config, stop).await.unwrap() })
}

async fn ended(world: &World, id: &str) -> Job {
    for _ in 0..400 {
        let job = jobs::load(&*world.store, id).await.unwrap().unwrap().1;
        if job.state.is_finished() {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("job {id} did not end");
}

async fn queue(world: &World, request: JobRequest) -> String {
    let job = Job::new(JobKind::Recompute, request, 1);
    jobs::create(&*world.store, &job).await.unwrap();
    job.id
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_leaders_one_does_each_job_and_the_other_takes_over() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let handles = [start(&world, Schedule::off(), &first), start(&world, Schedule::off(), &second)];
    let job = ended(&world, &queue(&world, JobRequest::default()).await).await;
    assert_eq!((job.state, job.attempts, job.error), (JobState::Succeeded, 1, None));
    let result: serde_json::Value = serde_json::from_str(job.result.as_deref().unwrap()).unwrap();
    assert_eq!(result["metrics"]["added"]["rows"], 50);
    assert_eq!(job.progress.rows, 50);
    world.check("first job").await;

    world.seal(1, &events(20)).await;
    first.cancel();
    let job = ended(&world, &queue(&world, JobRequest::default()).await).await;
    assert_eq!(job.state, JobState::Succeeded);
    world.check("second job").await;
    second.cancel();
    for handle in handles {
        handle.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_scheduled_run_is_made_at_once_and_the_next_is_told() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    let stop = CancellationToken::new();
    let handle = start(&world, "0 0 1 1 *".parse().unwrap(), &stop);
    let scheduled = async {
        loop {
            let all = jobs::list(&*world.store).await.unwrap();
            if let Some((_, job)) = all.into_iter().find(|(_, job)| job.kind == JobKind::Scheduled) {
                return job.id;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let id = tokio::time::timeout(Duration::from_secs(20), scheduled).await.unwrap();
    assert_eq!(ended(&world, &id).await.state, JobState::Succeeded);
    world.check("scheduled").await;
    let told = jobs::load_schedule(&*world.store).await.unwrap();
    assert!(told.next_run > told.last_run && told.last_run.is_some() && told.leader.is_some(), "{told:?}");
    assert_eq!((told.cron.as_str(), told.time_zone.as_str(), told.last_job), ("0 0 1 1 *", "UTC", Some(id)));
    stop.cancel();
    handle.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_schedule_queues_nothing_and_makes_up_for_it_once_when_it_goes_on() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    let store = &*world.store;
    let paused = Pause { since: 1, reason: Some("maintenance".to_owned()) };
    jobs::update_schedule(store, |state| state.paused = Some(paused.clone())).await.unwrap();
    let stop = CancellationToken::new();
    let handle = start(&world, "* * * * * *".parse().unwrap(), &stop);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(jobs::list(store).await.unwrap().is_empty());
    let state = jobs::load_schedule(store).await.unwrap();
    assert_eq!((state.paused, state.leader.is_some()), (Some(paused), true), "the leader keeps what people want");

    // It runs on request all the same.
    let asked = jobs::queue_scheduled(store, 2).await.unwrap();
    assert_eq!(jobs::queue_scheduled(store, 3).await.unwrap().id, asked.id, "one at a time");
    assert_eq!(ended(&world, &asked.id).await.state, JobState::Succeeded);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(jobs::list(store).await.unwrap().len(), 1);

    jobs::update_schedule(store, |state| state.paused = None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!((2..=5).contains(&jobs::list(store).await.unwrap().len()), "it goes on, and makes up for one run only");
    stop.cancel();
    handle.await.unwrap();
    world.check("resumed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_cannot_succeed_fail_with_the_reason_and_queued_ones_can_be_cancelled() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    let unknown = queue(&world, JobRequest { metrics: vec!["nope".to_owned()], ..JobRequest::default() }).await;
    let empty = queue(&world, JobRequest { from: Some(5), to: Some(5), ..JobRequest::default() }).await;
    let cancelled = queue(&world, JobRequest::default()).await;
    let job = jobs::cancel(&*world.store, &cancelled, 7).await.unwrap().unwrap();
    assert_eq!((job.state, job.finished_at), (JobState::Cancelled, Some(7)));
    let stop = CancellationToken::new();
    let handle = start(&world, Schedule::off(), &stop);
    let (unknown, empty) = (ended(&world, &unknown).await, ended(&world, &empty).await);
    assert_eq!((unknown.state, empty.state), (JobState::Failed, JobState::Failed));
    assert_eq!(unknown.error.as_deref(), Some("metric nope does not exist; there are added"));
    assert!(empty.error.unwrap().contains("`from` must lie before `to`"));
    let still = jobs::load(&*world.store, &cancelled).await.unwrap().unwrap().1;
    assert_eq!((still.state, still.attempts), (JobState::Cancelled, 0));
    stop.cancel();
    handle.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_stops_within_seconds_of_the_wish_to_cancel_it() {
    let world = World::new(DEFINITIONS);
    for _ in 0..60 {
        world.seal(0, &events(20)).await;
    }
    let id = queue(&world, JobRequest::default()).await;
    let stop = CancellationToken::new();
    let slow = ThrottleConfig { wait_get_per_call: Duration::from_secs(1), ..ThrottleConfig::default() };
    let archive = Arc::new(ThrottledStore::new(world.files.fork(), slow));
    let deps = Deps { clock: Arc::new(SystemClock), archive, ..world.deps.clone() };
    let handle = start_with(deps, Schedule::off(), &stop);
    while jobs::load(&*world.store, &id).await.unwrap().unwrap().1.state != JobState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    jobs::cancel(&*world.store, &id, 7).await.unwrap();
    let began = std::time::Instant::now();
    let job = ended(&world, &id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(world.published(&world.metric.views[0]).await.published.generation, 0);
    stop.cancel();
    handle.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_end_could_not_be_stored_is_taken_up_again_by_the_same_leader() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(50)).await;
    let id = queue(&world, JobRequest::default()).await;
    let slow = ThrottleConfig { wait_get_per_call: Duration::from_secs(1), ..ThrottleConfig::default() };
    let archive = Arc::new(ThrottledStore::new(world.files.fork(), slow));
    let deps = Deps { clock: Arc::new(SystemClock), archive, ..world.deps.clone() };
    // Longer than the store is away: nobody else comes to lead.
    let lease = Duration::from_secs(60);
    let config = Config {
        schedule: Schedule::off(),
        memory_bytes: 64 << 20,
        parallelism: 1,
        lease,
        retries: 0,
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let handle = tokio::spawn(lamina_batch::run(deps, config, stop.clone()));
    while jobs::load(&*world.store, &id).await.unwrap().unwrap().1.state != JobState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.store.fail_after(Some(0));
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.store.fail_after(None);
    assert_eq!(ended(&world, &id).await.state, JobState::Succeeded);
    stop.cancel();
    handle.await.unwrap().unwrap();
}
