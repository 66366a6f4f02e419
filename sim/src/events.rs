//! Events as producers send them: mostly good, some late, twice, or not to be decoded.

use chrono::{DateTime, SecondsFormat};
use lamina_core::Micros;

use crate::{counts::Happening, plan::SECOND, random::Random};

pub(crate) struct Made {
    pub(crate) payload: String,
    pub(crate) id: Option<String>,
    pub(crate) happened: Vec<Happening>,
}

/// An event that decodes, with an id of its own.
pub(crate) fn valid(random: &mut Random, number: u64, now: Micros) -> Made {
    let id = format!("e{number}");
    let time = now - random.within(0, 30) * SECOND - random.within(0, SECOND);
    Made { payload: payload(random, Some(&id), time), id: Some(id), happened: Vec::new() }
}

/// Any event; duplicates of `recent` ids only where the log keeps what they repeat.
pub(crate) fn make(random: &mut Random, number: u64, now: Micros, recent: &[String], repeat: bool) -> Made {
    if random.permille(20) {
        return poison(random, number, now);
    }
    let mut made = valid(random, number, now);
    if random.permille(80) {
        // Up to forty minutes late, or a little ahead.
        let time = if random.permille(900) { now - random.within(60, 2400) * SECOND } else { now + 30 * SECOND };
        made.payload = payload(random, made.id.as_deref(), time);
        made.happened.push(Happening::LateEvent);
    }
    if repeat && !recent.is_empty() && random.permille(100) {
        let id = random.pick(recent).clone();
        let time = now - random.within(0, 5) * SECOND;
        made.payload = payload(random, Some(&id), time);
        made.happened.push(Happening::Duplicate);
        made.id = Some(id);
    } else if random.permille(50) {
        made.payload = payload(random, None, now);
        made.id = None;
    }
    made
}

fn payload(random: &mut Random, id: Option<&str>, time: Micros) -> String {
    let time = DateTime::from_timestamp_micros(time).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Micros, true);
    let id = id.map_or(String::new(), |id| format!(r#""id":"{id}","#));
    let page = match random.below(30) {
        0 => "null".to_owned(),
        at => format!("\"p{}\"", [0, 0, 0, 1, 1, 2, 3, 4][at as usize % 8]),
    };
    let robot = ["true", "false", "false", "false", "false", "null"][random.below(6) as usize];
    let added = if random.permille(30) { "null".to_owned() } else { random.within(-1000, 5000).to_string() };
    let country = random.below(3);
    format!(r#"{{{id}"time":"{time}","page":{page},"country":"c{country}","robot":{robot},"added":{added}}}"#)
}

fn poison(random: &mut Random, number: u64, now: Micros) -> Made {
    let good = valid(random, number, now).payload;
    let payload = match random.below(6) {
        0 => "{".to_owned(),
        1 => "[1]".to_owned(),
        2 => good.replace("\"time\"", "\"tiem\""),
        3 => format!("{{\"added\":\"many\",{}", good.replace("\"added\"", "\"subtracted\"").trim_start_matches('{')),
        4 => good.replace("\"robot\":", "\"robot\":7,\"was\":"),
        _ => format!(
            "{{\"added\":99999999999999999999,{}",
            good.replace("\"added\"", "\"removed\"").trim_start_matches('{')
        ),
    };
    Made { payload, id: None, happened: vec![Happening::Poison] }
}
