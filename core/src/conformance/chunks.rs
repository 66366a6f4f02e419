//! Laws of speed chunks, marks and batch chunks.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Random, now, random_name, until};
use crate::{
    ids::{EpochId, LogId, Micros, ViewId},
    store::{BatchChunks, BatchKey, BatchRow, Mark, Part, SpeedChunks, SpeedKey, Stamp, Store, period, slot},
};

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;

pub(super) async fn laws(store: &dyn Store) {
    speed_chunks_come_back_by_sequence(store).await;
    a_whole_chunk_is_found_by_its_end(store).await;
    a_speed_chunk_lives_for_its_ttl_and_a_touch_renews_it(store).await;
    the_latest_mark_holds_for_its_ttl(store).await;
    batch_chunks_are_scanned_by_series_and_period(store).await;
    batch_chunks_are_kept_apart_by_every_part_of_the_key(store).await;
    the_later_stamp_wins_in_whatever_order_chunks_arrive(store).await;
    chunks_are_removed_by_place_period_and_stamp(store).await;
    a_batch_chunk_is_gone_after_its_retention(store).await;
    a_chunk_of_a_megabyte_comes_back(store).await;
}

fn some_view() -> ViewId {
    ViewId::new(&random_name("metric"), 1, 0)
}

/// The keys of one epoch's chunks in one shard.
#[derive(Clone)]
struct Place {
    view: ViewId,
    shard: u32,
    slot: i64,
    epoch: EpochId,
}

impl Place {
    fn new(view: &ViewId, shard: u32) -> Self {
        Self { view: view.clone(), shard, slot: slot(now()), epoch: EpochId::new() }
    }

    fn key(&self, part: Part) -> SpeedKey {
        let Self { view, shard, slot, epoch } = self.clone();
        SpeedKey { view, shard, slot, epoch, part }
    }

    async fn deltas(&self, store: &dyn Store, range: std::ops::Range<u64>) -> Vec<(u64, Bytes)> {
        store.deltas(&self.view, self.shard, self.slot, self.epoch, range).await.expect("deltas")
    }

    async fn whole(&self, store: &dyn Store, end: u64) -> Option<Bytes> {
        store.whole(&self.view, self.shard, self.slot, self.epoch, end).await.expect("whole")
    }
}

fn text(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

async fn speed_chunks_come_back_by_sequence(store: &dyn Store) {
    let view = some_view();
    let (mine, shard, other) = (Place::new(&view, 0), Place::new(&view, 1), Place::new(&some_view(), 0));
    let stamp = Stamp { at: now(), ttl: 600 };
    let mut chunks = Vec::new();
    for (name, place) in [("mine", &mine), ("shard", &shard), ("other", &other)] {
        let sequences = (0..300).filter(|sequence| *sequence != 7);
        chunks.extend(sequences.map(|n| (place.key(Part::Delta(n)), text(format!("{name}:{n}")))));
    }
    let next_epoch = Place { epoch: EpochId::new(), ..mine.clone() };
    chunks.push((next_epoch.key(Part::Delta(0)), text("next epoch")));
    SpeedChunks::put(store, &[], stamp).await.expect("put of nothing");
    for _ in 0..2 {
        SpeedChunks::put(store, &chunks, stamp).await.expect("put, and again");
    }
    for (name, place) in [("mine", &mine), ("shard", &shard), ("other", &other)] {
        for range in [0..3, 3..3, 0..1000, 5..10, 8..u64::MAX, 290..300, 300..400] {
            let expected: Vec<_> = (range.start..range.end.min(300))
                .filter(|sequence| *sequence != 7)
                .map(|n| (n, text(format!("{name}:{n}"))))
                .collect();
            let found = place.deltas(store, range.clone()).await;
            assert_eq!(found, expected, "deltas {range:?} of {name}: in order, absent ones left out");
        }
    }
    assert_eq!(next_epoch.deltas(store, 0..10).await, [(0, text("next epoch"))], "epochs are kept apart");
    let elsewhere = Place { slot: mine.slot + 1, ..mine };
    assert!(elsewhere.deltas(store, 0..10).await.is_empty(), "slots are kept apart");
}

async fn a_whole_chunk_is_found_by_its_end(store: &dyn Store) {
    let place = Place::new(&some_view(), 3);
    let stamp = Stamp { at: now(), ttl: 600 };
    let chunks = [
        (place.key(Part::Delta(100)), text("delta")),
        (place.key(Part::Whole(100)), text("whole")),
        (place.key(Part::Whole(u64::from(u32::MAX) * 9)), text("far")),
    ];
    SpeedChunks::put(store, &chunks, stamp).await.expect("put");
    assert_eq!(place.whole(store, 100).await, Some(text("whole")), "the chunk that ends there");
    assert_eq!(place.whole(store, u64::from(u32::MAX) * 9).await, Some(text("far")), "the chunk that ends far away");
    assert_eq!(place.whole(store, 99).await, None, "no chunk ends there");
    assert_eq!(place.deltas(store, 0..200).await, [(100, text("delta"))], "a whole chunk is no delta");
}

async fn a_speed_chunk_lives_for_its_ttl_and_a_touch_renews_it(store: &dyn Store) {
    let place = Place::new(&some_view(), 0);
    let (brief, at) = (2, now());
    let chunks: Vec<_> = (0..3)
        .map(|n| (place.key(Part::Delta(n)), text(format!("delta {n}"))))
        .chain([(place.key(Part::Whole(9)), text("whole")), (place.key(Part::Whole(10)), text("touched"))])
        .collect();
    SpeedChunks::put(store, &chunks, Stamp { at, ttl: brief }).await.expect("put");
    assert_eq!(place.deltas(store, 0..3).await.len(), 3, "chunks are there before their TTL passed");
    let touched = [chunks[1].clone(), chunks[4].clone()];
    SpeedChunks::put(store, &touched, Stamp { at, ttl: 600 }).await.expect("put again with the same stamp");
    until("chunks are gone after their TTL, and touched ones are not", || async {
        let deltas = place.deltas(store, 0..3).await;
        let (whole, kept) = (place.whole(store, 9).await, place.whole(store, 10).await);
        assert!(deltas.contains(&(1, text("delta 1"))), "a touched delta stays: {deltas:?}");
        assert_eq!(kept, Some(text("touched")), "a touched whole chunk stays");
        deltas.len() == 1 && whole.is_none()
    })
    .await;
    let lived = now() - at;
    assert!(lived >= Micros::from(brief) * SECOND - SECOND, "chunks lived for their TTL, not {lived} \u{b5}s");
}

async fn the_latest_mark_holds_for_its_ttl(store: &dyn Store) {
    let (log, epoch, opened) = (LogId::new(&random_name("source"), "t"), EpochId::new(), now());
    let views = [some_view(), some_view()];
    let mark = |number: u64| Mark {
        end: 1000 + number,
        sequences: views.iter().zip(0..).map(|(view, shard)| ((view.clone(), shard), number)).collect(),
        watermark: (number > 1).then_some(-5),
        appended_at: Some(opened),
        number,
        lost: (number > 1).then_some((3, 5)),
    };
    let put = |number: u64, ttl| {
        let (log, mark, at) = (&log, mark(number), opened + number as Micros);
        async move { store.put_mark(log, 4, epoch, &mark, Stamp { at, ttl }).await.expect("put_mark") }
    };
    let get = || async { store.mark(&log, 4, epoch).await.expect("mark") };
    assert_eq!(get().await, None, "no mark before the first");
    for number in [1, 2, 3, 3] {
        put(number, 600).await;
        assert_eq!(get().await, Some(mark(number)), "a mark replaces the one before");
    }
    put(2, 600).await;
    assert_eq!(get().await, Some(mark(3)), "a belated mark loses against a later one");
    assert_eq!(store.mark(&log, 5, epoch).await.expect("mark"), None, "another partition has its own");
    assert_eq!(store.mark(&log, 4, EpochId::new()).await.expect("mark"), None, "another epoch has its own");
    put(4, 2).await;
    until("a mark is gone after its TTL", || async { get().await.is_none() }).await;
}

fn row(view: &ViewId, series: &str, period: Micros, stamp: Micros, body: &str) -> BatchRow {
    let (view, series) = (view.clone(), Bytes::copy_from_slice(series.as_bytes()));
    let key = BatchKey { view, width: MINUTE, base: 1, shard: 0, period, series };
    let cut = [(0, 17), (3, stamp.unsigned_abs())].into_iter().collect();
    BatchRow { key, generation: 5, stamp, cut, body: text(body), expires_at: None }
}

/// The whole shard of the rows that [`row`] makes.
async fn scan_all(store: &dyn Store, view: &ViewId) -> Vec<BatchRow> {
    store.scan(view, MINUTE, 1, 0, -1_000 * HOUR..1_000_000 * HOUR, None).await.expect("scan")
}

const HOUR: Micros = period(MINUTE);

async fn batch_chunks_are_scanned_by_series_and_period(store: &dyn Store) {
    let (view, stamp) = (some_view(), now());
    let names = ["", "a", "a\0", "a\0b", "ab", "b", "\u{ff}"];
    let periods = [-2 * HOUR, -HOUR, 0, HOUR, 2 * HOUR, 400_000 * HOUR];
    let places = names.iter().flat_map(|name| periods.map(|period| (*name, period)));
    let expected: Vec<_> = places.map(|(name, at)| row(&view, name, at, stamp, &format!("{name}:{at}"))).collect();
    let mut random = Random(3);
    let mut shuffled = expected.clone();
    for i in (1..shuffled.len()).rev() {
        shuffled.swap(i, random.below(i as u64 + 1) as usize);
    }
    BatchChunks::put(store, &[]).await.expect("put of nothing");
    for part in shuffled.chunks(10) {
        BatchChunks::put(store, part).await.expect("put");
    }
    assert_eq!(scan_all(store, &view).await, expected, "a whole shard, by series and period");
    for range in [-2 * HOUR..0, -HOUR..HOUR, 0..HOUR, HOUR..HOUR, 1..HOUR, 0..HOUR + 1, 2 * HOUR..500_000 * HOUR] {
        let within: Vec<_> = expected.iter().filter(|row| range.contains(&row.key.period)).cloned().collect();
        let found = store.scan(&view, MINUTE, 1, 0, range.clone(), None).await.expect("scan");
        assert_eq!(found, within, "chunks of all series whose period starts within {range:?}");
        for name in names.iter().chain(&["absent"]) {
            let found = store.scan(&view, MINUTE, 1, 0, range.clone(), Some(name.as_bytes())).await.expect("scan");
            let mine: Vec<_> = within.iter().filter(|row| row.key.series == name.as_bytes()).cloned().collect();
            assert_eq!(found, mine, "chunks of series {name:?} whose period starts within {range:?}");
        }
    }
}

async fn batch_chunks_are_kept_apart_by_every_part_of_the_key(store: &dyn Store) {
    let (view, other, stamp) = (some_view(), some_view(), now());
    let here = row(&view, "s", 0, stamp, "here");
    let key = |change: fn(&mut BatchKey)| {
        let mut row = here.clone();
        change(&mut row.key);
        row.body = text("elsewhere");
        row
    };
    let mut foreign = row(&other, "s", 0, stamp, "elsewhere");
    foreign.generation = 6;
    let rows = [here.clone(), key(|key| key.width = HOUR), key(|key| key.base = 2), key(|key| key.shard = 1), foreign];
    BatchChunks::put(store, &rows).await.expect("put");
    for row in rows {
        let BatchKey { view, width, base, shard, .. } = &row.key;
        let found = store.scan(view, *width, *base, *shard, -HOUR..HOUR, None).await.expect("scan");
        assert_eq!(found, [row], "only the chunk of this view, width, base and shard");
    }
}

async fn the_later_stamp_wins_in_whatever_order_chunks_arrive(store: &dyn Store) {
    let (view, base) = (some_view(), now());
    let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
    for (i, order) in orders.into_iter().enumerate() {
        for number in order {
            let row = row(&view, &i.to_string(), 0, base + number, &format!("body {number}"));
            BatchChunks::put(store, std::slice::from_ref(&row)).await.expect("put");
            BatchChunks::put(store, &[row]).await.expect("put again");
        }
    }
    let expected: Vec<_> = (0..6).map(|i| row(&view, &i.to_string(), 0, base + 3, "body 3")).collect();
    assert_eq!(scan_all(store, &view).await, expected, "the chunk of the latest generation stands, whole");
}

async fn chunks_are_removed_by_place_period_and_stamp(store: &dyn Store) {
    let (view, stamp) = (some_view(), now());
    let periods = (-9..9).chain([400_000]).map(|hour| hour * HOUR);
    let chunk = |at, stamp| row(&view, "s", at, stamp, &format!("chunk {at}"));
    let mut rows: Vec<BatchRow> = periods.map(|at| chunk(at, stamp)).collect();
    rows.push(BatchRow { stamp: stamp + 2, ..row(&view, "later", 0, stamp, "a later generation's") });
    let elsewhere = BatchRow { key: BatchKey { base: 2, ..rows[0].key.clone() }, ..rows[0].clone() };
    BatchChunks::put(store, &rows).await.expect("put");
    BatchChunks::put(store, std::slice::from_ref(&elsewhere)).await.expect("put");
    for range in [-6 * HOUR..5 * HOUR, 5 * HOUR..5 * HOUR, 7 * HOUR..Micros::MAX, Micros::MIN..-8 * HOUR] {
        store.remove_chunks(&view, MINUTE, 1, 0, range.clone(), stamp + 1).await.expect("remove");
        rows.retain(|row| !range.contains(&row.key.period) || row.stamp > stamp + 1);
        rows.sort_by(|a, b| (&a.key.series, a.key.period).cmp(&(&b.key.series, b.key.period)));
        assert_eq!(scan_all(store, &view).await, rows, "only chunks whose period starts within {range:?} are gone");
    }
    let found = store.scan(&view, MINUTE, 2, 0, -1_000 * HOUR..HOUR, None).await.expect("scan");
    assert_eq!(found, [elsewhere], "another base keeps its chunks");
    let again = chunk(0, stamp + 3);
    BatchChunks::put(store, std::slice::from_ref(&again)).await.expect("put again");
    assert!(scan_all(store, &view).await.contains(&again), "a later generation may write there again");
}

async fn a_batch_chunk_is_gone_after_its_retention(store: &dyn Store) {
    let (view, begun) = (some_view(), now());
    let soon = Some(begun + 3 * SECOND);
    let kept = BatchRow { expires_at: Some(begun + 3600 * SECOND), ..row(&view, "kept", 0, begun, "kept") };
    let extended = row(&view, "extended", 0, begun + 1, "extended");
    let rows = [
        BatchRow { expires_at: soon, ..row(&view, "brief", 0, begun, "brief") },
        BatchRow { expires_at: soon, ..row(&view, "extended", 0, begun, "brief") },
        BatchRow { expires_at: Some(begun - SECOND), ..row(&view, "past", 0, begun, "past") },
        kept.clone(),
    ];
    BatchChunks::put(store, &rows).await.expect("put");
    BatchChunks::put(store, std::slice::from_ref(&extended)).await.expect("put");
    let expected = [extended, kept];
    until("a batch chunk is gone after its retention", || async {
        let found = scan_all(store, &view).await;
        let by_series: BTreeMap<_, _> = found.iter().map(|row| (row.key.series.clone(), row)).collect();
        for row in &expected {
            assert_eq!(by_series.get(&row.key.series), Some(&row), "a chunk within its retention stays");
        }
        found.len() == 2
    })
    .await;
}

async fn a_chunk_of_a_megabyte_comes_back(store: &dyn Store) {
    let (body, place, stamp) = (Random(9).bytes(1 << 20), Place::new(&some_view(), 0), now());
    let chunk = (place.key(Part::Whole(1)), body.clone());
    SpeedChunks::put(store, &[chunk], Stamp { at: stamp, ttl: 600 }).await.expect("put of a large speed chunk");
    assert_eq!(place.whole(store, 1).await, Some(body.clone()), "a large speed chunk comes back");
    let large = BatchRow { body, ..row(&place.view, "s", 0, stamp, "") };
    BatchChunks::put(store, std::slice::from_ref(&large)).await.expect("put of a large batch chunk");
    assert_eq!(scan_all(store, &place.view).await, [large], "a large batch chunk comes back");
}
