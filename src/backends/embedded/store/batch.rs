//! Batch chunks.
//!
//! ```text
//! batch    view width base shard series period → generation, stamp, cut; the body
//! ```

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use lamina_core::{BatchChunks, BatchKey, BatchRow, Cut, Generation, Micros, Shard, StoreError, ViewId};
use serde::{Deserialize, Serialize};

use super::{EmbeddedStore, corrupt, packed};
use crate::backends::embedded::engine::{Db, Failure, Key, Parts, Space, live};

/// Chunks outside the wanted periods that are stepped over before looking the next one up instead.
const STEPS: u32 = 8;
/// Chunks that are removed together.
const REMOVED_TOGETHER: usize = 1_000;

#[derive(Serialize, Deserialize)]
struct Head {
    generation: Generation,
    stamp: Micros,
    cut: Cut,
}

fn shard_key(view: &ViewId, width: Micros, base: u32, shard: Shard) -> Key {
    Key::default().text(view.as_str()).i64(width).u32(base).u32(shard)
}

fn row_key(key: &BatchKey) -> Vec<u8> {
    let shard = shard_key(&key.view, key.width, key.base, key.shard);
    shard.bytes(&key.series).i64(key.period).done()
}

/// One shard of a view being read.
struct Shelf {
    view: ViewId,
    width: Micros,
    base: u32,
    shard: Shard,
    periods: Range<Micros>,
}

impl Shelf {
    fn prefix(&self) -> Key {
        shard_key(&self.view, self.width, self.base, self.shard)
    }

    fn scan_series(&self, db: &Db, series: &[u8]) -> Result<Vec<BatchRow>, Failure> {
        let prefix = self.prefix().bytes(series);
        let (from, to) = (prefix.clone().i64(self.periods.start).done(), prefix.i64(self.periods.end).done());
        db.scan(Space::Batch, from, to).filter_map(|entry| self.row(entry).transpose()).collect()
    }

    /// Where each series has many more periods than are wanted, goes from series to series by key.
    fn scan_all(&self, db: &Db) -> Result<Vec<BatchRow>, Failure> {
        let (mut rows, moment) = (Vec::new(), db.moment());
        if self.periods.is_empty() {
            return Ok(rows);
        }
        let (mut from, to) = (self.prefix().done(), self.prefix().after());
        'jumps: loop {
            let mut steps = 0;
            for entry in db.scan_at(&moment, Space::Batch, from, to.clone()) {
                let entry = entry?;
                let (series, period) = self.place(&entry.0)?;
                if self.periods.contains(&period) {
                    steps = 0;
                    rows.extend(self.row(Ok(entry))?);
                    continue;
                }
                steps += 1;
                if steps > STEPS {
                    let series = self.prefix().bytes(&series);
                    let before = period < self.periods.start;
                    from = if before { series.i64(self.periods.start).done() } else { series.after() };
                    continue 'jumps;
                }
            }
            return Ok(rows);
        }
    }

    /// Keys of the chunks within the periods whose stamp is at most `upto`.
    fn keys(&self, db: &Db, upto: Micros) -> Result<Vec<Vec<u8>>, Failure> {
        let mut keys = Vec::new();
        for entry in db.scan(Space::Batch, self.prefix().done(), self.prefix().after()) {
            let (key, value) = entry?;
            let old = live::<Head>(Space::Batch, &key, Some(value))?.is_none_or(|value| value.head.stamp <= upto);
            if old && self.periods.contains(&self.place(&key)?.1) {
                keys.push(key.to_vec());
            }
        }
        Ok(keys)
    }

    fn place(&self, key: &[u8]) -> Result<(Vec<u8>, Micros), Failure> {
        let place = || {
            let mut parts = Parts(key.get(self.prefix().done().len()..)?);
            Some((parts.bytes()?, parts.i64()?))
        };
        place().ok_or_else(|| corrupt("batch chunk", key))
    }

    fn row(&self, entry: Result<(fjall::Slice, fjall::Slice), Failure>) -> Result<Option<BatchRow>, Failure> {
        let (key, value) = entry?;
        let Some(value) = live::<Head>(Space::Batch, &key, Some(value))? else { return Ok(None) };
        let (series, period) = self.place(&key)?;
        let Self { view, width, base, shard, .. } = self;
        let (view, series) = (view.clone(), Bytes::from(series));
        let key = BatchKey { view, width: *width, base: *base, shard: *shard, period, series };
        let Head { generation, stamp, cut } = value.head;
        Ok(Some(BatchRow { key, generation, stamp, cut, body: value.body, expires_at: value.expires_at }))
    }
}

#[async_trait]
impl BatchChunks for EmbeddedStore {
    async fn put(&self, rows: &[BatchRow]) -> Result<(), StoreError> {
        let pack = |row: &BatchRow| {
            let head = Head { generation: row.generation, stamp: row.stamp, cut: row.cut.clone() };
            Ok((row_key(&row.key), row.stamp, packed("batch chunk", &head, row.expires_at, &row.body)?))
        };
        let rows: Vec<_> = rows.iter().map(pack).collect::<Result<_, _>>().map_err(Failure::store)?;
        let put = self.engine.write(move |tx| {
            for (key, stamp, row) in rows {
                let later = tx.value::<Head>(Space::Batch, &key)?.is_some_and(|stored| stored.head.stamp > stamp);
                if !later {
                    tx.put(Space::Batch, key, row);
                }
            }
            Ok(())
        });
        put.await.map_err(Failure::store)
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
        let shelf = Shelf { view: view.clone(), width, base, shard, periods };
        let series = series.map(<[u8]>::to_vec);
        let scan = self.engine.read(move |db| match series {
            Some(series) => shelf.scan_series(db, &series),
            None => shelf.scan_all(db),
        });
        scan.await.map_err(Failure::store)
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
        let shelf = Shelf { view: view.clone(), width, base, shard, periods };
        let keys = self.engine.read(move |db| shelf.keys(db, upto)).await.map_err(Failure::store)?;
        for keys in keys.chunks(REMOVED_TOGETHER) {
            let keys = keys.to_vec();
            let removed = self.engine.write(move |tx| {
                for key in keys {
                    let later = tx.value::<Head>(Space::Batch, &key)?.is_some_and(|stored| stored.head.stamp > upto);
                    if !later {
                        tx.remove(Space::Batch, key);
                    }
                }
                Ok(())
            });
            removed.await.map_err(Failure::store)?;
        }
        Ok(())
    }
}
