//! What every answer must be: the rules as they are written down, over the raw records of the log.
//!
//! Nothing here uses lamina's code: events are parsed, judged and folded from their JSON.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::DateTime;
use serde_json::Value;

use crate::{
    plan::{CAP, GRAIN, RULE, WINDOW},
    query::{Layer, Query},
};

type Micros = i64;
type Offset = u64;
type Partition = u32;

/// What became of an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Absent,
    Dead,
    Duplicate,
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    time: Micros,
    page: Option<String>,
    country: Option<String>,
    robot: Option<bool>,
    added: Option<i64>,
}

/// A record as the log has it.
pub(crate) struct Raw<'a> {
    pub(crate) appended_at: Micros,
    pub(crate) payload: &'a [u8],
}

#[derive(Default)]
struct PartitionFates {
    fates: Vec<Fate>,
    /// Running maximum of append time.
    clock: Micros,
    seen: HashMap<String, Micros>,
}

/// The whole log, judged.
#[derive(Default)]
pub(crate) struct Oracle(BTreeMap<Partition, PartitionFates>);

/// One series of an answer, or of a view: `None` is null.
pub(crate) type Series = Vec<Option<String>>;

/// What a bucket of a series holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) count: u64,
    pub(crate) sum: Option<i128>,
    pub(crate) min: Option<i64>,
    pub(crate) max: Option<i64>,
    pub(crate) first: Option<i64>,
    pub(crate) last: Option<i64>,
    /// The events, for whoever looks into a difference.
    events: Vec<(Partition, Offset)>,
    first_at: Option<(Micros, Partition, Offset)>,
    last_at: Option<(Micros, Partition, Offset)>,
}

impl Cell {
    fn add(&mut self, at: (Micros, Partition, Offset), added: Option<i64>) {
        self.count += 1;
        self.events.push((at.1, at.2));
        let Some(added) = added else { return };
        self.sum = Some(self.sum.unwrap_or(0) + i128::from(added));
        self.min = Some(self.min.map_or(added, |known| known.min(added)));
        self.max = Some(self.max.map_or(added, |known| known.max(added)));
        if self.first_at.is_none_or(|known| at < known) {
            (self.first, self.first_at) = (Some(added), Some(at));
        }
        if self.last_at.is_none_or(|known| at > known) {
            (self.last, self.last_at) = (Some(added), Some(at));
        }
    }
}

/// (series, bucket) → what it holds.
pub(crate) type Table = BTreeMap<(Series, Micros), Cell>;

/// Which part of the log an answer folds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefix {
    pub(crate) positions: BTreeMap<Partition, Offset>,
    /// Ranges within that it does not fold.
    pub(crate) without: Vec<(Partition, Offset, Offset)>,
    /// Where epochs end: the cap begins anew there.
    pub(crate) epoch_ends: BTreeMap<Partition, BTreeSet<Offset>>,
    /// Nothing is served of buckets before.
    pub(crate) retained_from: Option<Micros>,
    /// Nor of those before this, of the series that the rule of expiry takes.
    pub(crate) expired: Option<Micros>,
}

impl Oracle {
    /// Takes in what was appended to a partition since the last call.
    pub(crate) fn read<'a>(&mut self, partition: Partition, records: impl Iterator<Item = Option<Raw<'a>>>) {
        let state = self.0.entry(partition).or_default();
        let known = state.fates.len();
        for record in records.skip(known) {
            let fate = match record {
                None => Fate::Absent,
                Some(record) => state.judge(&record),
            };
            state.fates.push(fate);
        }
    }

    pub(crate) fn fates(&self, partition: Partition, from: Offset, to: Offset) -> &[Fate] {
        self.0.get(&partition).map_or(&[], |state| &state.fates[from as usize..to as usize])
    }

    /// What a query must answer if it folds this prefix. `version` is the metric's.
    pub(crate) fn expected(&self, query: &Query, version: u64, prefix: &Prefix) -> Table {
        let mut table = Table::new();
        let view = query.view();
        for (&partition, &position) in &prefix.positions {
            let Some(state) = self.0.get(&partition) else { continue };
            let none = BTreeSet::new();
            let ends = prefix.epoch_ends.get(&partition).unwrap_or(&none);
            let mut kept: BTreeSet<Series> = BTreeSet::new();
            for (offset, fate) in (0..).zip(&state.fates[..(position as usize).min(state.fates.len())]) {
                if ends.contains(&offset) {
                    kept.clear();
                }
                let Fate::Event(event) = fate else { continue };
                let left_out = |(other, from, to): &(Partition, Offset, Offset)| {
                    *other == partition && (*from..*to).contains(&offset)
                };
                if prefix.without.iter().any(left_out) || !counts(query.metric, version, event) {
                    continue;
                }
                let mut series: Series = view.iter().map(|dimension| event.value(dimension)).collect();
                if query.is_capped() && !view.is_empty() && !kept.contains(&series) {
                    if kept.len() < CAP {
                        kept.insert(series.clone());
                    } else {
                        series.fill(Some("$overflow".to_owned()));
                    }
                }
                let at = |name: &str| view.iter().position(|own| *own == name).and_then(|at| series[at].clone());
                if query.filter.as_ref().is_some_and(|(name, value)| at(name).as_deref() != Some(value)) {
                    continue;
                }
                let expired = prefix.expired.filter(|_| at("page").as_deref() == Some("p1"));
                let grain = if query.metric == "late" { 6 * GRAIN } else { GRAIN };
                let bucket = event.time.div_euclid(grain) * grain;
                let from = prefix.retained_from.map_or(query.from, |horizon| horizon.max(query.from));
                if bucket < expired.map_or(from, |horizon| horizon.max(from)) || bucket >= query.to {
                    continue;
                }
                let start = query.step.map_or(from, |step| (bucket.div_euclid(step) * step).max(from));
                let group = query.group_by.iter().map(|name| at(name)).collect();
                table.entry((group, start)).or_default().add((event.time, partition, offset), event.added);
            }
        }
        table
    }

    /// What of an answer lies outside what it must be at least and may be at most.
    pub(crate) fn outside(&self, least: &Table, most: &Table, found: &Table) -> Option<String> {
        let count = |table: &Table, key| table.get(key).map_or(0, |cell: &Cell| cell.count);
        let keys: BTreeSet<_> = least.keys().chain(found.keys()).collect();
        let wrong =
            keys.into_iter().find(|key| !(count(least, key)..=count(most, key)).contains(&count(found, key)))?;
        let (least, most, found) = (count(least, wrong), count(most, wrong), count(found, wrong));
        Some(format!("{wrong:?}: the log folds to {least} to {most} events, answered {found}"))
    }

    /// Compares an answer with what it must be.
    pub(crate) fn differences(&self, query: &Query, expected: &Table, found: &Table) -> Option<String> {
        let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        for key in keys {
            let (want, have) = (expected.get(key), found.get(key));
            let same = match (want, have) {
                (Some(want), Some(have)) => want.shown(query) == have.shown(query),
                (None, None) => true,
                _ => false,
            };
            if !same {
                let text =
                    |cell: Option<&Cell>| cell.map_or("nothing".to_owned(), |cell| format!("{:?}", cell.shown(query)));
                let events = want.map(|cell| &cell.events[..cell.events.len().min(8)]).unwrap_or_default();
                let (want, have) = (text(want), text(have));
                return Some(format!(
                    "{key:?}: the log folds to {want}, answered {have}; of (partition, offset) {events:?}"
                ));
            }
        }
        None
    }
}

type Shown = (u64, Option<i128>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);

impl Cell {
    /// What the metric's aggregates say.
    fn shown(&self, query: &Query) -> Shown {
        match query.metric {
            "added" => (self.count, self.sum, self.min, self.max, self.first, self.last),
            "late" => (self.count, self.sum, None, None, None, None),
            _ => (self.count, None, None, None, None, None),
        }
    }
}

/// Whether a metric counts an event: `added` leaves robots out until its second version.
fn counts(metric: &str, version: u64, event: &Event) -> bool {
    metric != "added" || version > 1 || event.robot == Some(false)
}

impl Event {
    fn value(&self, dimension: &str) -> Option<String> {
        if dimension == "page" { self.page.clone() } else { self.country.clone() }
    }
}

impl PartitionFates {
    fn judge(&mut self, record: &Raw<'_>) -> Fate {
        self.clock = self.clock.max(record.appended_at);
        let Some((id, event)) = parse(record.payload) else { return Fate::Dead };
        let Some(id) = id else { return Fate::Event(event) };
        match self.seen.insert(id, self.clock) {
            Some(before) if self.clock - before <= WINDOW => Fate::Duplicate,
            _ => Fate::Event(event),
        }
    }
}

/// The id and the event, or `None` if the record does not decode.
fn parse(payload: &[u8]) -> Option<(Option<String>, Event)> {
    let Value::Object(fields) = serde_json::from_slice(payload).ok()? else { return None };
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone())),
        Some(_) => None,
    };
    let robot = match fields.get("robot") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(robot)) => Some(*robot),
        Some(_) => return None,
    };
    let added = match fields.get("added") {
        None | Some(Value::Null) => None,
        Some(number) => Some(number.as_i64()?),
    };
    let time = micros(&text("time")??)?;
    Some((text("id")?, Event { time, page: text("page")?, country: text("country")?, robot, added }))
}

fn micros(text: &str) -> Option<Micros> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

/// An answer, as far as it is checked.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) version: u64,
    pub(crate) complete: bool,
    /// Partition, from, to, why.
    pub(crate) missing: Vec<(Partition, Offset, Offset, String)>,
    pub(crate) positions: BTreeMap<Partition, Offset>,
    pub(crate) cut: BTreeMap<Partition, Offset>,
    pub(crate) retained_from: Option<Micros>,
    pub(crate) expired: Option<Micros>,
    pub(crate) overflow: bool,
    pub(crate) table: Table,
}

impl Answer {
    /// Reads an answer's JSON; `None` if it is not as the contract says.
    pub(crate) fn read(query: &Query, body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let meta = &body["meta"];
        let offsets = |value: &Value| -> Option<BTreeMap<Partition, Offset>> {
            value.as_object()?.iter().map(|(partition, at)| Some((partition.parse().ok()?, at.as_u64()?))).collect()
        };
        let missing = meta["missing"].as_array()?.iter().map(|one| {
            let partition = one["partition"].as_u64()? as Partition;
            Some((partition, one["from"].as_u64()?, one["to"].as_u64()?, one["why"].as_str()?.to_owned()))
        });
        let mut answer = Self {
            version: body["version"].as_u64()?,
            complete: meta["complete"].as_bool()?,
            missing: missing.collect::<Option<_>>()?,
            positions: offsets(&meta["speed"]["positions"])?,
            cut: offsets(&meta["batch"]["cut"])?,
            retained_from: meta.get("retained_from").and_then(Value::as_str).and_then(micros),
            expired: expired(meta.get("expired"))?,
            overflow: meta.get("overflow").is_some(),
            table: Table::new(),
        };
        for series in body["series"].as_array()? {
            let dimension = |name: &&str| series["dimensions"][*name].as_str().map(str::to_owned);
            let group: Series = query.group_by.iter().map(dimension).collect();
            for point in series["points"].as_array()? {
                let number = |name: &str| point.get(name).and_then(Value::as_i64);
                let cell = Cell {
                    count: number("count")?.unsigned_abs(),
                    sum: number("sum").map(i128::from),
                    min: number("min"),
                    max: number("max"),
                    first: number("first"),
                    last: number("last"),
                    ..Cell::default()
                };
                let at = micros(point["start"].as_str()?)?;
                if answer.table.insert((group.clone(), at), cell).is_some() {
                    return None;
                }
            }
        }
        Some(answer)
    }

    pub(crate) fn missing_because(&self, whys: &[&str]) -> Vec<(Partition, Offset, Offset)> {
        let because = self.missing.iter().filter(|(.., own)| whys.contains(&own.as_str()));
        because.map(|(partition, from, to, _)| (*partition, *from, *to)).collect()
    }
}

/// Where the series begin that the one rule takes, if it is named; `None` if anything else is.
fn expired(named: Option<&Value>) -> Option<Option<Micros>> {
    let Some(named) = named else { return Some(None) };
    match named.as_array()?.as_slice() {
        [one] if one["where"] == RULE => micros(one["retained_from"].as_str()?).map(Some),
        _ => None,
    }
}

/// Whether a layer promises the exact fold of its positions.
pub(crate) fn is_exact(layer: Layer) -> bool {
    layer != Layer::Speed
}
