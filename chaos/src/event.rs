//! Events: how they look, which ones are sent, and how the oracle reads them.

use std::{collections::VecDeque, ops::Range};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;

/// Width of the finest bucket, ms.
pub(crate) const GRAIN: i64 = 10_000;
pub(crate) const REGIONS: u16 = 8;
pub(crate) const SERIES: u16 = 20_000;
pub(crate) const PARTITIONS: i32 = 12;
/// `dedup_window` of the source, ms; some duplicates come later than that, and count.
pub(crate) const DEDUP_WINDOW: i64 = 30_000;
/// Events that may be sent again.
const REMEMBERED: usize = 300_000;
const HOUR: i64 = 3_600_000;
/// How late an event may be.
pub(crate) const LATEST: i64 = 6 * HOUR;

/// An event as the oracle counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: u64,
    /// Event time, Unix ms.
    pub(crate) time: i64,
    pub(crate) series: u16,
    pub(crate) value: i32,
}

#[derive(Deserialize)]
struct Wire<'a> {
    id: &'a str,
    time: i64,
    region: &'a str,
    host: &'a str,
    value: i32,
}

impl Event {
    /// The dedup key, and the key of the record: a duplicate is in the partition of its original.
    pub(crate) fn key(&self) -> String {
        format!("{:016x}", self.id)
    }

    pub(crate) fn payload(&self) -> String {
        let Self { time, series, value, .. } = *self;
        let (region, host) = (region(series % REGIONS), host(series));
        format!(
            "{{\"id\":\"{}\",\"time\":{time},\"region\":\"{region}\",\"host\":\"{host}\",\"value\":{value}}}",
            self.key()
        )
    }

    /// # Errors
    /// If the payload is not an event as [`Event::payload`] writes it.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, String> {
        let wire: Wire<'_> = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        let id = u64::from_str_radix(wire.id, 16).map_err(|error| format!("id {}: {error}", wire.id))?;
        let series = series_of(wire.host).ok_or_else(|| format!("host {}", wire.host))?;
        if wire.region != region(series % REGIONS) {
            return Err(format!("host {} is not in region {}", wire.host, wire.region));
        }
        Ok(Self { id, time: wire.time, series, value: wire.value })
    }
}

pub(crate) fn region(number: u16) -> String {
    format!("r{number}")
}

pub(crate) fn host(series: u16) -> String {
    format!("h{series:05}")
}

pub(crate) fn series_of(host: &str) -> Option<u16> {
    host.strip_prefix('h')?.parse().ok().filter(|series| *series < SERIES)
}

/// A stream of events: hot and cold series, some late, 2 % sent twice.
pub(crate) struct Events {
    random: StdRng,
    next_id: u64,
    recent: VecDeque<Event>,
    /// No event has a time within this range, Unix ms.
    closed: Range<i64>,
    /// Share of events that were sent before.
    twice: f64,
}

impl Events {
    pub(crate) fn new(seed: u64, closed: Range<i64>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Runs must not share ids, whatever the seed.
        let next_id = random.next_u64() & !0xffff_ffff;
        Self { random, next_id, recent: VecDeque::new(), closed, twice: 0.02 }
    }

    /// Sends nothing twice.
    pub(crate) fn without_duplicates(mut self) -> Self {
        self.twice = 0.0;
        self
    }

    /// The next event at wall clock `now`, Unix ms.
    pub(crate) fn next(&mut self, now: i64) -> Event {
        if !self.recent.is_empty() && self.random.random_bool(self.twice) {
            // Half of them soon after the original, half anywhere up to a minute or more back.
            let within = if self.random.random_bool(0.5) { self.recent.len().min(5_000) } else { self.recent.len() };
            return self.recent[self.random.random_range(0..within)];
        }
        let late = match self.random.random_range(0..100) {
            0 => self.random.random_range(0..LATEST),
            1..10 => self.random.random_range(0..HOUR / 2),
            _ => self.random.random_range(0..5_000),
        };
        let hot = self.random.random_bool(0.8);
        let series = self.random.random_range(0..if hot { SERIES / 40 } else { SERIES });
        self.next_id += 1;
        let value = self.random.random_range(-1_000..100_000);
        let time = if self.closed.contains(&(now - late)) { self.closed.end } else { now - late };
        let event = Event { id: self.next_id, time, series, value };
        self.recent.push_front(event);
        self.recent.truncate(REMEMBERED);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_written() {
        let mut events = Events::new(7, 0..0);
        for _ in 0..1_000 {
            let event = events.next(1_700_000_000_000);
            assert_eq!(Event::parse(event.payload().as_bytes()), Ok(event));
        }
    }

    #[test]
    fn some_are_sent_twice_and_some_are_late() {
        let mut events = Events::new(7, 0..0);
        let sent: Vec<Event> = (0..20_000).map(|_| events.next(1_700_000_000_000)).collect();
        let mut ids: Vec<u64> = sent.iter().map(|event| event.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert!((300..500).contains(&(sent.len() - ids.len())), "{} duplicates", sent.len() - ids.len());
        let late = sent.iter().filter(|event| event.time < 1_700_000_000_000 - 5_000).count();
        assert!((1_500..2_500).contains(&late), "{late} late ones");
    }
}
