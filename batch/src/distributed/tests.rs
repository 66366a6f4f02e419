use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::Schema;
use datafusion::{
    execution::SessionStateBuilder,
    physical_plan::{ExecutionPlan, displayable, empty::EmptyExec},
    prelude::SessionConfig,
};
use datafusion_distributed::{DistributedCodec, DistributedExt, WorkerPlanRewriteEvent};
use datafusion_proto::{
    bytes::physical_plan_from_bytes_with_proto_converter, physical_plan::DeduplicatingProtoConverter,
};
use lamina_core::{Archive, Counts};
use lamina_metric::{Catalog, Metric, Versions};
use proptest::prelude::*;

use super::{
    codec::{Codec, encode, pack, unpack},
    executor::only_folds,
};
use crate::{
    BatchError,
    fold::{self, Fates},
    names::Names,
    plan::File,
    report::{Folded, Report, together},
    scan::{Piece, Scan},
};

const DEFINITIONS: &str = r#"
[source.edits]
format = "json"
time = "time"
[source.edits.fields]
time = "timestamp"
page = "string"
added = "decimal(20,4)"
[source.edits.derive]
half = "added / 2"

[metric.added]
source = "edits"
where = "page <> 'it''s \"quoted\"'"
value = "half"
dimensions = ["page", { name = "initial", sql = "left(page, 1)" }]
aggregates = ["count", "sum", "first", "distinct(page)", "quantiles", "top(page, 3)"]
grain = "10s"
rollups = ["1m"]
"#;

fn metric() -> Arc<Metric> {
    let versions = Versions { revision: 9, metrics: [("added".to_owned(), (4, 7))].into() };
    let catalog = Catalog::compile(&[("metrics.toml".to_owned(), DEFINITIONS.to_owned())], &versions).unwrap();
    Arc::clone(&catalog.metrics["added"])
}

fn piece(partition: u32, start: u64) -> Piece {
    let counts = Counts { accepted: 5, dead: 1, ..Counts::default() };
    let path = format!("edits/t/{partition}/{start}.parquet");
    let archive = Archive { path, bytes: 9, checksum: 7, counts, event_time: Some((-1, 5)), last_record: None };
    Piece {
        file: File { partition, offsets: start..start + 6, archive },
        window: Some(-5..7),
        names: Arc::new(Names::Shared(vec![(0, (1, 4)), (5, (2, 8))])),
    }
}

fn pieces() -> Vec<Vec<Piece>> {
    vec![vec![piece(0, 0), piece(1, 3)], vec![piece(2, 6)]]
}

fn plan() -> Arc<dyn ExecutionPlan> {
    fold::plan(&metric(), pieces()).unwrap()
}

fn decode(bytes: &[u8]) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
    let config = SessionConfig::new().with_distributed_user_codec(Codec);
    let codecs = DistributedCodec::new_combined_with_user(&config);
    let session = SessionStateBuilder::new().with_default_features().with_config(config).build();
    let converter = DeduplicatingProtoConverter::default();
    physical_plan_from_bytes_with_proto_converter(bytes, &session.task_ctx(), &codecs, &converter)
}

#[test]
fn a_plan_travels_whole() {
    let plan = plan();
    let there = decode(&encode(Scan::new(metric(), pieces())).unwrap()).unwrap();
    let text = |plan: &dyn ExecutionPlan| displayable(plan).indent(true).to_string();
    assert_eq!(text(&*there), text(&*plan));
    assert_eq!((there.schema(), there.properties().partitioning.partition_count()), (plan.schema(), 2));
    let scan = there.children()[0].children()[0].downcast_ref::<Scan>().unwrap();
    let (here, there) = (metric(), &scan.metric);
    assert_eq!((there.version, there.since, there.fingerprint()), (here.version, here.since, here.fingerprint()));
    assert_eq!(format!("{:?}", scan.partitions[1]), format!("{:?}", [piece(2, 6)]));
}

#[test]
fn an_executor_runs_folds_and_nothing_else() {
    let empty = || Arc::new(EmptyExec::new(Arc::new(Schema::empty())));
    let asked = |plan| only_folds(WorkerPlanRewriteEvent { plan, session_config: &SessionConfig::new() });
    assert!(asked(plan()).is_ok());
    let refused = asked(empty()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("EmptyExec"), "{refused}");
    let over = Report::over(empty()).unwrap_err().to_string();
    assert!(over.contains("fold of archive files"), "{over}");
}

proptest! {
    #[test]
    fn what_is_to_be_folded_gives_an_error_or_a_plan_and_never_a_panic_if_it_is_damaged(
        at in 0..2_000_usize, byte: u8, length in 0..2_000_usize
    ) {
        let mut bytes = pack(&Scan::new(metric(), pieces())).unwrap();
        let (at, length) = (at % bytes.len(), length % bytes.len());
        let _ = unpack(&bytes[..length]);
        bytes[at] = byte;
        let _ = unpack(&bytes);
    }
}

#[test]
fn what_is_lost_or_comes_twice_on_the_way_is_an_error() {
    let folded = |keys: &[(u32, u64)], folded: u64| {
        let own = Fates { folded, filtered: 5, rejected: 0 };
        let fates: HashMap<_, _> = keys.iter().map(|key| (*key, own)).collect();
        Folded { groups: fold::groups(&metric(), &[]).unwrap(), fates }
    };
    let asked = [piece(0, 0), piece(1, 3)];
    let whole = || vec![folded(&[(0, 0)], 0), folded(&[(1, 3)], 0)];
    assert_eq!(together(&asked, whole()).unwrap().1.len(), 2);
    let (mut lost, mut twice, mut more) = (whole(), whole(), whole());
    lost.pop();
    twice.push(folded(&[(1, 3)], 0));
    more.push(folded(&[(1, 4)], 0));
    for (parts, key) in [(lost, (1, 3)), (twice, (1, 3)), (more, (1, 4))] {
        let Err(BatchError::Unaccounted { partition, start }) = together(&asked, parts) else { panic!("{key:?}") };
        assert_eq!((partition, start), key);
    }
    let stateless = vec![folded(&[(0, 0), (1, 3)], 2)];
    assert!(matches!(together(&asked, stateless), Err(BatchError::NotFolded { expected: 4, found: 0 })));
}
