//! What one seed fixes before anything happens: sizes, definitions, and how likely which fault is.

use std::{
    sync::{Arc, OnceLock},
    thread,
};

use lamina_core::Micros;
use lamina_metric::{Catalog, Versions};

use crate::{determinism, random::Random};

pub(crate) const SECOND: Micros = 1_000_000;
/// 2026-01-01: simulations begin a little later.
pub(crate) const BEGIN: Micros = 1_767_225_600 * SECOND;
pub(crate) const SOURCE: &str = "edits";
pub(crate) const TOPIC: &str = "edits";
/// Length of the dedup window.
pub(crate) const WINDOW: Micros = 20 * SECOND;
/// Cap of the views of metric `added`.
pub(crate) const CAP: usize = 4;
pub(crate) const GRAIN: Micros = 10 * SECOND;

const SOURCES: &str = r#"
[source.edits]
format = "json"
time = "time"
id = "id"
dedup_window = "20s"
[source.edits.fields]
time = "timestamp"
id = "string"
page = "string"
country = "string"
robot = "bool"
added = "int64"
"#;

/// The rule of expiry of `added`, where there is one.
pub(crate) const RULE: &str = "page = 'p1'";

const ADDED: &str = r#"
[metric.added]
source = "edits"
WHERE
value = "added"
dimensions = ["page", "country"]
groupings = [["page"]]
aggregates = ["count", "sum", "min", "max", "first", "last"]
grain = "10s"
rollups = ["1m"]
shards = 2
max_series = 4
RETENTION
"#;

const HITS: &str = r#"
[metric.hits]
source = "edits"
dimensions = ["country"]
aggregates = ["count"]
grain = "10s"
"#;

const LATE: &str = r#"
[metric.late]
source = "edits"
value = "added"
dimensions = ["page"]
aggregates = ["count", "sum"]
grain = "1m"
"#;

/// What a seed fixes at its start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) begin: Micros,
    pub(crate) partitions: u32,
    pub(crate) speed_workers: usize,
    /// Steps of world, producers, readers and nemesis.
    pub(crate) steps: u64,
    pub(crate) flush_ms: u64,
    pub(crate) epoch_ms: u64,
    pub(crate) epoch_max_records: u64,
    pub(crate) ttl_s: u64,
    pub(crate) batch_every_s: u64,
    /// Whether the grain is kept for ten minutes only, and of one page for less.
    pub(crate) retention: bool,
    /// Whether the log may be cut off before it was read.
    pub(crate) cut_off: bool,
    /// At which step the definitions change.
    pub(crate) revise_at: Option<u64>,
    /// Of a thousand calls: slow, lost on the way, answer lost, late, twice, read failed.
    pub(crate) slow: u64,
    pub(crate) not_sent: u64,
    pub(crate) answer_lost: u64,
    pub(crate) late: u64,
    pub(crate) twice: u64,
    pub(crate) read_failed: u64,
    /// Of a thousand steps: one of the nemesis.
    pub(crate) nemesis: u64,
}

impl Plan {
    pub(crate) fn of(random: &mut Random) -> Self {
        // Some seeds are rough, some nearly calm: a rare fault alone finds what a storm hides.
        let rough = [0, 2, 6, 20][random.below(4) as usize];
        let short = random.permille(250);
        let steps = 200 + random.below(10);
        let retention = random.permille(250);
        // The horizon rises when a period of ten minutes begins.
        let begin = BEGIN + if retention { 600 * SECOND - random.within(10, 50) * SECOND } else { 0 };
        Self {
            begin: begin + 3_600 * SECOND,
            partitions: 1 + random.below(3) as u32,
            speed_workers: 2 + usize::from(random.permille(300)),
            steps,
            flush_ms: 200 + random.below(600),
            epoch_ms: 1_500 + random.below(4_000),
            epoch_max_records: if random.permille(200) { 20 } else { 1_000 },
            ttl_s: if short { 16 + random.below(10) } else { 600 },
            batch_every_s: 5 + random.below(7),
            retention,
            cut_off: random.permille(150),
            revise_at: random.permille(350).then(|| 40 + random.below(100)),
            slow: 30 + 10 * rough,
            not_sent: 1 + rough,
            answer_lost: 1 + rough,
            late: 1 + rough,
            twice: rough,
            read_failed: 1 + rough,
            nemesis: 60 + random.below(150),
        }
    }

    /// The definitions at revision 1 or 2.
    pub(crate) fn catalog(&self, revision: u64) -> Arc<Catalog> {
        static CATALOGS: OnceLock<Vec<Arc<Catalog>>> = OnceLock::new();
        let all = CATALOGS.get_or_init(|| {
            // On a thread of its own, so that it does not matter which seed comes first.
            let compile = || {
                determinism::begin(1, BEGIN);
                let compiled = [(false, 1), (false, 2), (true, 1), (true, 2)].map(|(keep, at)| compile(keep, at));
                determinism::end();
                compiled.into_iter().collect()
            };
            thread::spawn(compile).join().unwrap_or_default()
        });
        Arc::clone(&all[2 * usize::from(self.retention) + revision as usize - 1])
    }
}

fn compile(retention: bool, revision: u64) -> Arc<Catalog> {
    let mut versions = Versions { revision, ..Versions::default() };
    let rule =
        format!("[[metric.added.expire]]\nwhere = \"{RULE}\"\n[metric.added.expire.retention]\n\"10s\" = \"20s\"");
    let kept = if retention { format!("[metric.added.retention]\n\"10s\" = \"10m\"\n{rule}") } else { String::new() };
    let filter = if revision == 1 { "where = \"NOT robot\"" } else { "" };
    let mut text = format!("{SOURCES}{HITS}{}", ADDED.replace("WHERE", filter).replace("RETENTION", &kept));
    if revision > 1 {
        text.push_str(LATE);
        versions.metrics.insert("added".to_owned(), (2, 2));
        versions.metrics.insert("late".to_owned(), (1, 2));
    }
    match Catalog::compile(&[("simulated.toml".to_owned(), text)], &versions) {
        Ok(catalog) => Arc::new(catalog),
        Err(errors) => panic!("the definitions compile: {errors:?}"),
    }
}
