use std::collections::BTreeMap;

use datafusion::{datasource::MemTable, prelude::SessionConfig, prelude::SessionContext};
use lamina_core::ViewId;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    aggregate::ValueType,
    fold::ViewFold,
    metric::{Prepared, View},
    series::Series,
    state::tests::{Row, folded, layout, numbers, prepared, rows, same},
};

async fn query(sql: &str, parts: &[Vec<Row>], value: ValueType) -> Vec<arrow::record_batch::RecordBatch> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(7));
    context.register_udaf(udaf(layout(value)));
    let parts: Vec<_> = parts.iter().map(|rows| vec![prepared(rows, value)]).collect();
    let table = MemTable::try_new(parts[0][0].schema(), parts).unwrap();
    context.register_table("t", Arc::new(table)).unwrap();
    context.sql(sql).await.unwrap().collect().await.unwrap()
}

fn arguments(value: ValueType) -> &'static str {
    if value == ValueType::None {
        "_partition, _offset, _time, _order, x0, x1"
    } else {
        "_partition, _offset, _time, _order, v, x0, x1"
    }
}

fn decoded(column: &ArrayRef, row: usize, value: ValueType) -> States {
    let mut states = States::new(&layout(value));
    states.decode_row(column.as_binary::<i32>().value(row)).unwrap();
    states
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_aggregate_gives_what_the_fold_gives(mut parts in vec(rows(40), 1..4), value in numbers()) {
        for (partition, rows) in parts.iter_mut().enumerate() {
            rows.iter_mut().for_each(|row| row.partition = partition as u32);
        }
        let all: Vec<Row> = parts.iter().flatten().cloned().collect();
        let view = View { id: ViewId::new("m", 1, 0), dimensions: vec![0, 1], shards: 1, cap: u32::MAX };
        let mut fold = ViewFold::with_layout(layout(value), &view);
        fold.fold(&Prepared { rows: prepared(&all, value), filtered: 0, rejected: Vec::new() }).unwrap();
        let (_, chunk) = fold.whole().remove(0);

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let sql = format!("SELECT d0, d1, _bucket, lamina_states({}) FROM t GROUP BY 1, 2, 3", arguments(value));
        let mut found = BTreeMap::new();
        for batch in runtime.block_on(query(&sql, &parts, value)) {
            for row in 0..batch.num_rows() {
                let series = Series::of_row(&batch.columns()[..2], row).unwrap();
                let bucket = batch.column(2).as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(row);
                found.insert((series, bucket), decoded(batch.column(3), row, value));
            }
        }
        prop_assert_eq!(found.len(), chunk.rows.len());
        for (at, &(series, bucket)) in chunk.rows.iter().enumerate() {
            let own = &found[&(chunk.series[series as usize].clone(), bucket)];
            prop_assert!(same(own, &chunk.states.take(&[at])));
        }
        type Keeps = (&'static str, fn(&Row) -> bool);
        let keeps: [Keeps; 3] =
            [("d1 > 0", |row| row.dimensions.1 > Some(0)), ("_offset > 5", |row| row.offset > 5), ("TRUE", |_| true)];
        for ((filter, keep), group) in keeps.into_iter().flat_map(|keep| [(keep, ""), (keep, "GROUP BY _offset < 1000000")]) {
            let sql = format!("SELECT lamina_states({}) FILTER (WHERE {filter}) FROM t {group}", arguments(value));
            let kept: Vec<Row> = all.iter().filter(|row| keep(row)).cloned().collect();
            let batches = runtime.block_on(query(&sql, &parts, value));
            match batches.iter().find(|batch| batch.num_rows() > 0) {
                Some(batch) => {
                    let total = decoded(batch.column(0), 0, value);
                    prop_assert!(same(&total, &folded(&kept, value)), "{sql}");
                }
                None => prop_assert!(all.is_empty()),
            }
        }
    }
}
