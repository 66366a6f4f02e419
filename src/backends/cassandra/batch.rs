//! Batch chunks: upserts stamped with the generation, read by spans of periods.

use std::{collections::BTreeSet, ops::Range};

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{
    BatchChunks, BatchKey, BatchRow, Clock, Micros, Shard, StoreError, ViewId, clock::SystemClock, store::period,
};
use scylla::{
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::CqlValue::{self, BigInt, Blob, Int, Text},
};

use super::{
    CassandraStore,
    cell::Heads,
    session::{Connection, all, gather},
};

/// A Cassandra partition holds so many periods of each series of a shard.
const PERIODS_PER_SPAN: i64 = 4;
/// Up to so many spans are read without asking which ones exist.
const FEW: i64 = 64;
/// Rows of one partition share a request up to this size.
const REQUEST_BYTES: usize = 48 << 10;
/// Bytes of a row besides its chunk and series, about.
const ROW_OVERHEAD: usize = 200;
const SECOND: Micros = 1_000_000;
/// Cassandra's longest TTL, 20 years; what lives longer has none.
const MAX_TTL: i64 = 630_720_000;

pub(super) struct BatchStatements {
    put: PreparedStatement,
    put_span: PreparedStatement,
    spans: PreparedStatement,
    all_series: PreparedStatement,
    one_series: PreparedStatement,
    keys: PreparedStatement,
    remove: PreparedStatement,
    remove_all: PreparedStatement,
    remove_span: PreparedStatement,
}

impl BatchStatements {
    pub(super) async fn prepare(connection: &Connection) -> Result<Self, StoreError> {
        let place = "view_id = ? AND width = ? AND base = ? AND shard = ?";
        let put = "UPDATE {}.batch_chunks USING TIMESTAMP ? AND TTL ? SET chunk = ? WHERE";
        let put_span =
            "INSERT INTO {}.batch_spans (view_id, width, base, shard, span) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
        let spans = "SELECT span FROM {}.batch_spans WHERE";
        let read = "SELECT series, period, chunk FROM {}.batch_chunks WHERE";
        let slice = "series = ? AND period >= ? AND period < ?";
        let keys = "SELECT series, period FROM {}.batch_chunks WHERE";
        let remove = "DELETE FROM {}.batch_chunks USING TIMESTAMP ? WHERE";
        let remove_span = "DELETE FROM {}.batch_spans USING TIMESTAMP ? WHERE";
        Ok(Self {
            put: connection
                .prepare_upsert(&format!("{put} {place} AND span = ? AND series = ? AND period = ?"))
                .await?,
            put_span: connection.prepare_upsert(put_span).await?,
            spans: connection.prepare(&format!("{spans} {place} AND span >= ? AND span <= ?")).await?,
            all_series: connection.prepare(&format!("{read} {place} AND span = ?")).await?,
            one_series: connection.prepare(&format!("{read} {place} AND span = ? AND {slice}")).await?,
            keys: connection.prepare(&format!("{keys} {place} AND span = ?")).await?,
            remove: connection
                .prepare_upsert(&format!("{remove} {place} AND span = ? AND series = ? AND period = ?"))
                .await?,
            remove_all: connection.prepare_upsert(&format!("{remove} {place} AND span = ?")).await?,
            remove_span: connection.prepare_upsert(&format!("{remove_span} {place} AND span = ?")).await?,
        })
    }
}

fn span(width: Micros, at: Micros) -> i64 {
    at.div_euclid(period(width).saturating_mul(PERIODS_PER_SPAN).max(1))
}

/// A Cassandra partition of one view's batch chunks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    width: Micros,
    base: i64,
    shard: i64,
    number: i64,
}

impl Span {
    fn of(key: &BatchKey) -> Self {
        let number = span(key.width, key.period);
        Self { width: key.width, base: i64::from(key.base), shard: i64::from(key.shard), number }
    }
}

/// Seconds to live from now on, as Cassandra takes them: 0 is for ever. What has expired lives for one second, so that an
/// older chunk does not come to light instead.
fn ttl(expires_at: Option<Micros>, now: Micros) -> i32 {
    let Some(expires_at) = expires_at else { return 0 };
    let seconds = expires_at.saturating_sub(now).saturating_add(SECOND - 1).div_euclid(SECOND).max(1);
    if seconds > MAX_TTL { 0 } else { i32::try_from(seconds).unwrap_or(0) }
}

/// Rows in groups of one request each: of one Cassandra partition, so that one node writes them at once.
fn together(rows: &[BatchRow]) -> Vec<Vec<&BatchRow>> {
    let mut sorted: Vec<_> = rows.iter().map(|row| (&row.key.view, Span::of(&row.key), row)).collect();
    sorted.sort_by_key(|&(view, span, _)| (view, span));
    let (mut groups, mut bytes): (Vec<Vec<&BatchRow>>, usize) = (Vec::new(), 0);
    let mut last = None;
    for (view, span, row) in sorted {
        bytes += row.body.len() + row.key.series.len() + ROW_OVERHEAD;
        match groups.last_mut() {
            Some(group) if last == Some((view, span)) && bytes <= REQUEST_BYTES => group.push(row),
            _ => {
                bytes = row.body.len() + row.key.series.len() + ROW_OVERHEAD;
                groups.push(vec![row]);
            }
        }
        last = Some((view, span));
    }
    groups
}

/// Values of the statement that puts a chunk.
fn values(row: &BatchRow, cell: Vec<u8>, now: Micros) -> Vec<CqlValue> {
    let Span { width, base, shard, number } = Span::of(&row.key);
    let BatchKey { view, series, period, .. } = &row.key;
    let place = [width, base, shard, number].map(BigInt);
    let mut values = vec![BigInt(row.stamp), Int(ttl(row.expires_at, now)), Blob(cell), Text(view.as_str().to_owned())];
    values.extend(place);
    values.extend([Blob(series.to_vec()), BigInt(*period)]);
    values
}

/// What the chunks of one scan have in common.
#[derive(Clone, Copy)]
struct Place<'a> {
    view: &'a ViewId,
    width: Micros,
    base: u32,
    shard: Shard,
}

#[async_trait]
impl BatchChunks for CassandraStore {
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError> {
        let open = self.opened().await?;
        // The index first, so that no chunk exists that it does not lead to.
        let spans: BTreeSet<_> = rows.iter().map(|row| (row.key.view.clone(), Span::of(&row.key), row.stamp)).collect();
        let note = |(view, span, stamp): (ViewId, Span, Micros)| async move {
            let Span { width, base, shard, number } = span;
            open.connection.upsert(&open.batch.put_span, (view.as_str(), width, base, shard, number, stamp)).await
        };
        all(spans.into_iter().map(note)).await?;
        let (mut heads, now) = (Heads::default(), SystemClock.now());
        let write = |rows: Vec<&BatchRow>| {
            let packed = rows.into_iter().map(|row| Ok(values(row, heads.pack(row)?, now)));
            let values: Result<Vec<_>, StoreError> = packed.collect();
            async move {
                let values = values?;
                let mut batch = Batch::new(BatchType::Unlogged);
                values.iter().for_each(|_| batch.append_statement(open.batch.put.clone()));
                open.connection.upsert_together(batch, values).await
            }
        };
        all(together(rows).into_iter().map(write)).await
    }

    async fn scan(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: Range<Micros>,
        series: Option<&[u8]>,
    ) -> Result<Vec<BatchRow>, StoreError> {
        let open = self.opened().await?;
        if periods.is_empty() {
            return Ok(Vec::new());
        }
        let place = Place { view, width, base, shard };
        let (first, last) = (span(width, periods.start), span(width, periods.end - 1));
        let spans = if last.saturating_sub(first) < FEW {
            (first..=last).collect()
        } else {
            open.batch.spans(&open.connection, place, first, last).await?
        };
        let read = |span| open.batch.read(&open.connection, place, span, periods.clone(), series);
        let mut rows = gather(spans.into_iter().map(read)).await?;
        rows.sort_unstable_by(|a, b| (&a.key.series, a.key.period).cmp(&(&b.key.series, b.key.period)));
        Ok(rows)
    }

    async fn remove_chunks(
        &self,
        view: &ViewId,
        width: Micros,
        base: u32,
        shard: Shard,
        periods: Range<Micros>,
        upto: Micros,
    ) -> Result<(), StoreError> {
        let open = self.opened().await?;
        let place = Place { view, width, base, shard };
        let (first, last) = (span(width, periods.start), span(width, periods.end.saturating_sub(1)));
        for span in open.batch.spans(&open.connection, place, first, last).await? {
            open.batch.remove(&open.connection, place, span, &periods, upto).await?;
        }
        Ok(())
    }
}

impl BatchStatements {
    /// A span that lies whole within the periods goes as a whole, with its entry in the index; of another its rows do.
    async fn remove(
        &self,
        connection: &Connection,
        place: Place<'_>,
        span: i64,
        periods: &Range<Micros>,
        upto: Micros,
    ) -> Result<(), StoreError> {
        let Place { view, width, base, shard } = place;
        let (view, base, shard) = (view.as_str(), i64::from(base), i64::from(shard));
        let length = period(width).saturating_mul(PERIODS_PER_SPAN);
        let start = span.saturating_mul(length);
        if periods.start <= start && start.saturating_add(length) <= periods.end {
            connection.upsert(&self.remove_all, (upto, view, width, base, shard, span)).await?;
            return connection.upsert(&self.remove_span, (upto, view, width, base, shard, span)).await;
        }
        let rows: Vec<(Vec<u8>, i64)> = connection.rows(&self.keys, (view, width, base, shard, span)).await?;
        let within = rows.into_iter().filter(|(_, at)| periods.contains(at));
        let remove = |(series, at): (Vec<u8>, i64)| async move {
            connection.upsert(&self.remove, (upto, view, width, base, shard, span, series, at)).await
        };
        all(within.map(remove)).await
    }

    async fn spans(
        &self,
        connection: &Connection,
        place: Place<'_>,
        first: i64,
        last: i64,
    ) -> Result<Vec<i64>, StoreError> {
        let Place { view, width, base, shard } = place;
        let key = (view.as_str(), width, i64::from(base), i64::from(shard), first, last);
        let rows: Vec<(i64,)> = connection.rows(&self.spans, key).await?;
        Ok(rows.into_iter().map(|(span,)| span).collect())
    }

    async fn read(
        &self,
        connection: &Connection,
        place: Place<'_>,
        span: i64,
        periods: Range<Micros>,
        series: Option<&[u8]>,
    ) -> Result<Vec<BatchRow>, StoreError> {
        let Place { view, width, base, shard } = place;
        let key = (view.as_str(), width, i64::from(base), i64::from(shard), span);
        let found: Vec<(Vec<u8>, i64, Option<Vec<u8>>)> = match series {
            None => connection.rows(&self.all_series, key).await?,
            Some(series) => {
                let slice = (key.0, key.1, key.2, key.3, key.4, series, periods.start, periods.end);
                connection.rows(&self.one_series, slice).await?
            }
        };
        let mut heads = Heads::default();
        let mut rows = Vec::with_capacity(found.len());
        for (series, period, cell) in found {
            let Some(cell) = cell.filter(|_| periods.contains(&period)) else { continue };
            let what = || {
                let series = series.escape_ascii();
                format!(
                    "table batch_chunks, view {view} width {width} base {base} shard {shard} period {period} series {series}"
                )
            };
            let (head, body) = heads.unpack(&cell, what)?;
            let key = BatchKey { view: view.clone(), width, base, shard, period, series: Bytes::from(series) };
            rows.push(BatchRow {
                key,
                generation: head.generation,
                stamp: head.stamp,
                cut: head.cut,
                body,
                expires_at: head.expires_at,
            });
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_to_live_is_rounded_up_and_never_for_ever_by_accident() {
        let now = 1_000 * SECOND;
        assert_eq!(ttl(None, now), 0);
        assert_eq!(ttl(Some(now + SECOND + 1), now), 2);
        assert_eq!(ttl(Some(now), now), 1);
        assert_eq!(ttl(Some(i64::MIN), now), 1);
        assert_eq!(ttl(Some(i64::MAX), now), 0);
    }

    #[test]
    fn rows_that_share_a_request_share_a_partition_and_stay_small() {
        let row = |shard, period, bytes: usize| BatchRow {
            key: BatchKey { view: ViewId::new("m", 1, 0), width: SECOND, base: 0, shard, period, series: Bytes::new() },
            generation: 1,
            stamp: 1,
            cut: lamina_core::Cut::default(),
            body: vec![0; bytes].into(),
            expires_at: None,
        };
        let length = period(SECOND) * PERIODS_PER_SPAN;
        let rows = [row(0, 0, 1000), row(1, 0, 1000), row(0, 1, 47_000), row(0, 2, 90_000), row(0, length, 1)];
        let groups: Vec<Vec<_>> = together(&rows)
            .into_iter()
            .map(|group| group.iter().map(|row| (row.key.shard, row.key.period)).collect())
            .collect();
        assert_eq!(groups, [vec![(0, 0), (0, 1)], vec![(0, 2)], vec![(0, length)], vec![(1, 0)]]);
    }

    #[test]
    fn spans_tile_time_before_1970_too() {
        let length = period(SECOND) * PERIODS_PER_SPAN;
        for (at, expected) in [(0, 0), (length - 1, 0), (length, 1), (-1, -1), (-length, -1), (-length - 1, -2)] {
            assert_eq!(span(SECOND, at), expected, "at {at}");
        }
    }
}
