//! Queries that readers ask, and answers as far as they are compared.

use std::collections::BTreeMap;

use chrono::DateTime;
use rand::{RngExt, rngs::StdRng};
use serde_json::Value;

use crate::event::{GRAIN, LATEST, REGIONS, SERIES, host, region, series_of};

pub(crate) const METRIC: &str = "load";
const MINUTE: i64 = 60_000;
const HOUR: i64 = 3_600_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    All,
    Region,
    Host,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    None,
    Region(u16),
    Hosts(Vec<u16>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    Merged,
    Batch,
}

/// A query over `from..to` (Unix ms, multiples of the step or, without one, of the grain).
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) from: i64,
    pub(crate) to: i64,
    /// ms; `None` is one bucket.
    pub(crate) step: Option<i64>,
    pub(crate) group: Group,
    pub(crate) filter: Filter,
    pub(crate) layer: Layer,
}

/// Count, sum, min and max of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) count: i64,
    pub(crate) sum: i64,
    pub(crate) min: i64,
    pub(crate) max: i64,
}

/// (group, start of the bucket in Unix ms) → state. The group is a region, a series, or 0.
pub(crate) type States = BTreeMap<(u16, i64), State>;

/// What is read of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) states: States,
    pub(crate) complete: bool,
    /// Reasons of missing ranges.
    pub(crate) missing: Vec<String>,
    pub(crate) positions: BTreeMap<i32, i64>,
    pub(crate) cut: BTreeMap<i32, i64>,
    /// `series` as it came.
    pub(crate) text: String,
}

impl Query {
    /// The whole of what the generator may have sent until `now`, in one bucket.
    pub(crate) fn everything(now: i64, group: Group, filter: Filter) -> Self {
        let from = (now - LATEST).div_euclid(HOUR) * HOUR - HOUR;
        let to = now.div_euclid(HOUR) * HOUR + 2 * HOUR;
        Self { from, to, step: None, group, filter, layer: Layer::Merged }
    }

    pub(crate) fn random(random: &mut StdRng, now: i64) -> Self {
        let recent =
            |span: i64, width: i64| ((now - span).div_euclid(width) * width, (now.div_euclid(width) + 2) * width);
        let ((from, to), step, group, filter) = match random.random_range(0..20) {
            0..6 => (recent(random.random_range(MINUTE..10 * MINUTE), GRAIN), Some(GRAIN), Group::All, Filter::None),
            6..9 => (recent(random.random_range(MINUTE..HOUR), MINUTE), Some(MINUTE), Group::Region, Filter::None),
            9..11 => {
                let step = [None, Some(GRAIN), Some(MINUTE)][random.random_range(0..3)];
                (recent(HOUR, MINUTE), step, Group::All, Filter::Hosts(vec![some_series(random)]))
            }
            11 => (recent(LATEST, HOUR), Some(HOUR), Group::All, Filter::Region(random.random_range(0..REGIONS))),
            12..15 => (recent(LATEST + HOUR, HOUR), None, Group::All, Filter::None),
            15..17 => (recent(LATEST, HOUR), Some(HOUR), Group::Region, Filter::None),
            17 => {
                let hosts = (0..3).map(|_| some_series(random)).collect();
                (recent(LATEST, MINUTE), Some(MINUTE), Group::Host, Filter::Hosts(hosts))
            }
            18 => (recent(LATEST, GRAIN), None, Group::Region, Filter::None),
            _ => (recent(LATEST, HOUR), None, Group::Host, Filter::Region(random.random_range(0..REGIONS))),
        };
        let layer = if random.random_bool(0.1) { Layer::Batch } else { Layer::Merged };
        Self { from, to, step, group, filter, layer }
    }

    pub(crate) fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = vec![("from", self.from.to_string()), ("to", self.to.to_string())];
        if let Some(step) = self.step {
            parameters.push(("step", format!("{}s", step / 1_000)));
        }
        match self.group {
            Group::All => {}
            Group::Region => parameters.push(("group_by", "region".to_owned())),
            Group::Host => parameters.push(("group_by", "host".to_owned())),
        }
        match &self.filter {
            Filter::None => {}
            Filter::Region(number) => parameters.push(("where", format!("region = '{}'", region(*number)))),
            Filter::Hosts(all) => {
                let names: Vec<String> = all.iter().map(|series| format!("'{}'", host(*series))).collect();
                parameters.push(("where", format!("host IN ({})", names.join(", "))));
            }
        }
        if self.layer == Layer::Batch {
            parameters.push(("layer", "batch".to_owned()));
        }
        parameters.push(("aggregate", "count,sum,min,max".to_owned()));
        parameters
    }

    /// The group that an event belongs to, if it is asked for.
    pub(crate) fn group_of(&self, series: u16) -> Option<u16> {
        let wanted = match &self.filter {
            Filter::None => true,
            Filter::Region(number) => series % REGIONS == *number,
            Filter::Hosts(all) => all.contains(&series),
        };
        wanted.then_some(match self.group {
            Group::All => 0,
            Group::Region => series % REGIONS,
            Group::Host => series,
        })
    }

    /// Start of the answer's bucket that holds a time, if it is asked for.
    pub(crate) fn bucket_of(&self, time: i64) -> Option<i64> {
        let start = self.step.map_or(self.from, |step| time.div_euclid(step) * step);
        (self.from..self.to).contains(&time).then_some(start)
    }

    /// # Errors
    /// If the body is not an answer of this query.
    pub(crate) fn parse(&self, body: &Value) -> Result<Answer, String> {
        let meta = &body["meta"];
        let numbers = |value: &Value| -> Result<BTreeMap<i32, i64>, String> {
            let entries = value.as_object().ok_or("positions are missing")?.iter();
            entries
                .map(|(key, value)| Some((key.parse().ok()?, value.as_i64()?)))
                .collect::<Option<_>>()
                .ok_or_else(|| format!("{value}"))
        };
        let missing = meta["missing"].as_array().ok_or("meta.missing is missing")?;
        let missing = missing.iter().map(|range| range["why"].as_str().unwrap_or_default().to_owned()).collect();
        Ok(Answer {
            states: self.states(body).ok_or("series cannot be read")?,
            complete: meta["complete"].as_bool().ok_or("meta.complete is missing")?,
            missing,
            positions: numbers(&meta["speed"]["positions"])?,
            cut: numbers(&meta["batch"]["cut"])?,
            text: body["series"].to_string(),
        })
    }

    fn states(&self, body: &Value) -> Option<States> {
        let mut states = States::new();
        for series in body["series"].as_array()? {
            let dimensions = &series["dimensions"];
            let group = match self.group {
                Group::All => 0,
                Group::Region => dimensions["region"].as_str()?.strip_prefix('r')?.parse().ok()?,
                Group::Host => series_of(dimensions["host"].as_str()?)?,
            };
            for point in series["points"].as_array()? {
                let start = DateTime::parse_from_rfc3339(point["start"].as_str()?).ok()?.timestamp_millis();
                let [count, sum, min, max] = ["count", "sum", "min", "max"].map(|name| point[name].as_i64());
                states.insert((group, start), State { count: count?, sum: sum?, min: min?, max: max? });
            }
        }
        Some(states)
    }
}

/// A series, one of the hot ones as often as not.
fn some_series(random: &mut StdRng) -> u16 {
    let hot = random.random_bool(0.5);
    random.random_range(0..if hot { SERIES / 40 } else { SERIES })
}

impl State {
    pub(crate) fn absorb(&mut self, value: i32) {
        let value = i64::from(value);
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    pub(crate) fn of(value: i32) -> Self {
        let value = i64::from(value);
        Self { count: 1, sum: value, min: value, max: value }
    }
}

/// Up to `most` places where two sets of states differ, for people.
pub(crate) fn differences(expected: &States, got: &States, most: usize) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(got.keys()).collect();
    let differs = |key: &&(u16, i64)| expected.get(*key) != got.get(*key);
    let told = |key: &(u16, i64)| {
        format!("group {} bucket {}: expected {:?}, got {:?}", key.0, key.1, expected.get(key), got.get(key))
    };
    keys.into_iter().filter(differs).take(most).map(told).collect()
}
