//! A version that is built beside the one that answers.

use std::{sync::Arc, time::Duration};

use lamina_batch::{Config, Deps, Schedule};
use lamina_core::{Job, JobKind, clock::SystemClock, generation::load_view, jobs};
use lamina_metric::{Catalog, Metric, Versions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    runs::events,
    world::{DEFINITIONS, World},
};

/// The world's definitions, with version 2 of the metric being built.
fn building(text: &str) -> (Catalog, Arc<Metric>) {
    let files = [("metrics.toml".to_owned(), DEFINITIONS.to_owned())];
    let mut catalog = Catalog::compile(&files, &Versions::default()).unwrap();
    let metric = Arc::new(catalog.version("version 2", text, (2, 2)).unwrap());
    catalog.building.insert(metric.name.clone(), Arc::clone(&metric));
    (catalog, metric)
}

async fn build(world: &World) -> Option<Job> {
    let all = jobs::list(&*world.store).await.unwrap();
    all.into_iter().map(|(_, job)| job).find(|job| job.kind == JobKind::Build && job.state.is_finished())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_built_at_once_and_compared_with_the_one_that_answers() {
    let world = World::new(DEFINITIONS);
    world.seal(0, &events(100)).await;
    world.seal(1, &events(60)).await;
    let text = &DEFINITIONS[DEFINITIONS.find("[metric.added]").unwrap()..];
    let (catalog, metric) = building(&text.replace("NOT robot", "NOT robot AND added <> 7"));
    let catalog = watch::channel(Arc::new(catalog)).1;
    let deps = Deps { clock: Arc::new(SystemClock), catalog, ..world.deps.clone() };
    let config = Config { schedule: Schedule::off(), memory_bytes: 64 << 20, parallelism: 1, ..Config::default() };
    let stop = CancellationToken::new();
    let leader = tokio::spawn(lamina_batch::run(deps, config, stop.clone()));
    let mut job = None;
    for _ in 0..400 {
        job = build(&world).await;
        if job.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let job = job.expect("a job that builds");
    assert_eq!((job.request.metrics.as_slice(), job.error), (&["added@2".to_owned()][..], None));
    let result: serde_json::Value = serde_json::from_str(job.result.as_deref().unwrap()).unwrap();
    let built = &result["metrics"]["added@2"];
    assert_eq!((&built["outcome"], &built["rows"]), (&"published".into(), &160.into()));
    let comparison = &built["comparison"];
    assert_eq!(
        (&comparison["version"], &comparison["step"], &comparison["comparable"]),
        (&1.into(), &"1h".into(), &true.into())
    );
    assert_eq!((&comparison["buckets"], &comparison["differing"]), (&1.into(), &1.into()), "{comparison}");
    let example = &comparison["examples"][0];
    assert_eq!((&example["before"]["count"], &example["after"]["count"]), (&160.into(), &158.into()), "{example}");
    for view in &metric.views {
        let (_, state) = load_view(&*world.store, &view.id).await.unwrap();
        for partition in 0..2 {
            let mut ledger = world.store.ledger(&world.log, partition);
            assert!(
                !state.published.builds(2, partition, &ledger),
                "an open epoch of the old revision is still to come"
            );
            ledger.epochs.pop();
            assert!(state.published.builds(2, partition, &ledger));
        }
    }
    stop.cancel();
    leader.await.unwrap().unwrap();
}
