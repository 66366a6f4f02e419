//! Simulated servers: deterministic by seed, with daily curves, late events and duplicates.

use std::f64::consts::TAU;

use bytes::Bytes;
use lamina_core::{Micros, log::Append};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;

/// The definitions that go with the simulation.
pub const DEFINITIONS: (&str, &str) =
    ("examples/servers/metrics.toml", include_str!("../examples/servers/metrics.toml"));
/// The topic that events go to.
pub const TOPIC: &str = "servers";

const SERVERS: usize = 1_500;
const REGIONS: [&str; 8] =
    ["eu-central", "eu-north", "eu-west", "us-east", "us-west", "ap-south", "ap-east", "sa-east"];
const READINGS: [(&str, f64, f64); 20] = [
    // name, level, swing over the day
    ("cpu_percent", 38.0, 30.0),
    ("memory_percent", 61.0, 9.0),
    ("disk_percent", 55.0, 2.0),
    ("load_1m", 2.4, 1.9),
    ("load_15m", 2.1, 1.2),
    ("requests", 820.0, 640.0),
    ("errors", 3.0, 2.5),
    ("latency_ms", 42.0, 25.0),
    ("connections", 310.0, 190.0),
    ("threads", 96.0, 20.0),
    ("open_files", 1_240.0, 200.0),
    ("net_in_kib", 5_400.0, 3_900.0),
    ("net_out_kib", 9_100.0, 6_700.0),
    ("disk_read_kib", 760.0, 420.0),
    ("disk_write_kib", 1_480.0, 600.0),
    ("gc_ms", 11.0, 6.0),
    ("queue_length", 7.0, 6.0),
    ("cache_hit_percent", 93.0, 4.0),
    ("temperature", 47.0, 8.0),
    ("fan_rpm", 3_100.0, 700.0),
];
const HOUR: Micros = 3_600_000_000;

/// A stream of events.
pub struct Servers {
    dice: StdRng,
    sent: u64,
    last: Option<Append>,
}

impl Servers {
    pub fn new(seed: u64) -> Self {
        Self { dice: StdRng::seed_from_u64(seed), sent: 0, last: None }
    }

    /// `n` events that happen at `at`, except for one in a hundred, which is up to an hour late; one in two hundred is the
    /// event before once more.
    pub fn events(&mut self, at: Micros, n: usize) -> Vec<Append> {
        (0..n).map(|_| self.event(at)).collect()
    }

    fn event(&mut self, at: Micros) -> Append {
        if let Some(again) = self.last.take().filter(|_| self.dice.random_ratio(1, 200)) {
            return again;
        }
        let late = if self.dice.random_ratio(1, 100) { self.dice.random_range(0..HOUR) } else { 0 };
        let at = at - late;
        let server = self.dice.random_range(0..SERVERS);
        let (reading, level, swing) = READINGS[self.dice.random_range(0..READINGS.len())];
        let day = (at.rem_euclid(24 * HOUR)) as f64 / (24 * HOUR) as f64;
        // the busiest hour moves round the world with the region
        let region = server % REGIONS.len();
        let phase = day - region as f64 / REGIONS.len() as f64;
        let noise: f64 = self.dice.random_range(-0.15..0.15);
        let value = (level + swing * (TAU * phase).sin() + level * noise).max(0.0);
        self.sent += 1;
        let id = format!("{server}-{}", self.sent);
        let payload = json!({
            "ts": at / 1_000,
            "host": format!("host-{server:04}"),
            "region": REGIONS[region],
            "reading": reading,
            "value": (value * 1_000.0).round() / 1_000.0,
            "event_id": id,
        });
        let event = Append { key: Some(Bytes::from(id)), payload: Bytes::from(payload.to_string()) };
        self.last = Some(event.clone());
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events_with_some_late_and_some_twice() {
        let now = 1_700_000_000_000_000;
        let events = Servers::new(7).events(now, 20_000);
        assert_eq!(events, Servers::new(7).events(now, 20_000));
        assert_ne!(events, Servers::new(8).events(now, 20_000));
        let twice = events.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((50..200).contains(&twice), "{twice} duplicates");
        let late = events.iter().filter(|event| {
            let value: serde_json::Value = serde_json::from_slice(&event.payload).expect("JSON");
            value["ts"].as_i64().expect("a number") < now / 1_000
        });
        let late = late.count();
        assert!((100..350).contains(&late), "{late} late events");
    }
}
