//! A shop's table of accounts in a keyspace of its own, and a lamina over it.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    value::{CqlDate, CqlDecimal, CqlTimestamp},
};

use super::{
    place::Place,
    process::{Addresses, Backend, Lamina},
};

const DAY_MS: i64 = 86_400_000;
/// 2020-01-01.
const OLD_MS: i64 = 1_577_836_800_000;

const DEFINITIONS: &str = r#"
[source.accounts]
kind = "cassandra"
table = "KEYSPACE.accounts"
time = "opened_at"
[source.accounts.fields]
region = "string"
region_name = "string"
id = "string"
tier = "string"
balance = "int64"
price = "decimal(12,2)"
opened_at = "timestamp"
[source.accounts.update]
segment = "CASE WHEN balance > 1000 THEN 'gold' ELSE 'basic' END"
doubled = "balance * 2"
[[source.accounts.expire]]
where = "tier = 'free'"
after = "90d"
[[source.accounts.expire]]
where = "region = 'r6' AND balance < 0"

[metric.balances]
source = "accounts"
value = "balance"
dimensions = ["region", "region_name", "tier"]
groupings = [["tier"]]
aggregates = ["count", "sum", "min", "max", "distinct(id)"]
grain = "1h"
rollups = ["1d"]

[metric.prices]
source = "accounts"
where = "tier IS NULL"
value = "price"
aggregates = ["count", "sum"]
grain = "1d"
"#;

const TABLE: &str = "CREATE TABLE KEYSPACE.accounts (region text, bucket smallint, opened_at timestamp, id text, \
    region_name text static, tier text, balance bigint, price decimal, active boolean, born date, tags set<text>, \
    note text, segment text, doubled bigint, PRIMARY KEY ((region, bucket), opened_at, id))";

/// An account as the test made it: the oracle knows nothing but this.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) region: String,
    pub(crate) bucket: i16,
    pub(crate) opened_ms: i64,
    pub(crate) id: String,
    pub(crate) tier: Option<&'static str>,
    pub(crate) balance: Option<i64>,
    pub(crate) cents: i64,
}

impl Account {
    pub(crate) fn new(number: i64, now_ms: i64) -> Self {
        let old = number % 3 != 0;
        let opened_ms = if old { OLD_MS + number * 97_000 } else { now_ms - DAY_MS - number * 31 };
        Self {
            region: format!("r{}", number % 7),
            bucket: i16::try_from(number / 7 % 40).unwrap(),
            opened_ms,
            id: format!("a{number}"),
            tier: [Some("free"), Some("paid"), None, Some("paid")][usize::try_from(number % 4).unwrap()],
            balance: (number % 11 != 0).then(|| number * 13 % 5_000 - 100),
            cents: number % 1_000 - 20,
        }
    }

    pub(crate) fn expires(&self, now_ms: i64) -> bool {
        let due = self.opened_ms + 90 * DAY_MS <= now_ms;
        (self.tier == Some("free") && due) || (self.region == "r6" && self.balance.is_some_and(|balance| balance < 0))
    }

    pub(crate) fn segment(&self) -> &'static str {
        if self.balance.is_some_and(|balance| balance > 1_000) { "gold" } else { "basic" }
    }
}

/// A row's segment, doubled and note.
type Enriched = (Option<String>, Option<i64>, Option<String>);

/// A lamina over a table of its own in a keyspace of its own.
pub(crate) struct Shop {
    pub(crate) place: Place,
    pub(crate) keyspace: String,
    pub(crate) session: Session,
}

impl Shop {
    pub(crate) fn new() -> Self {
        let place = Place::new(Backend::Real);
        let keyspace = format!("{}_shop", place.name);
        let definitions = DEFINITIONS.replace("KEYSPACE", &keyspace);
        std::fs::write(place.path().join("metrics.toml"), definitions).unwrap();
        let session = place.runtime.block_on(async {
            let session = SessionBuilder::new().known_node(Addresses::default().cassandra).build().await.unwrap();
            let replication = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
            let create = format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}");
            session.query_unpaged(create, ()).await.unwrap();
            session.query_unpaged(TABLE.replace("KEYSPACE", &keyspace), ()).await.unwrap();
            session.await_schema_agreement().await.unwrap();
            session
        });
        Self { place, keyspace, session }
    }

    pub(crate) fn start(&self) -> Lamina {
        Lamina::start(self.place.path(), &self.place.settings(), &self.place.name)
    }

    pub(crate) fn cql(&self, text: &str) {
        let text = text.replace("KEYSPACE", &self.keyspace);
        self.place.runtime.block_on(self.session.query_unpaged(text, ())).unwrap();
    }

    /// Inserts whole rows, as their owner does.
    pub(crate) fn insert(&self, accounts: &[Account], note: Option<&str>) {
        let columns = "region, bucket, opened_at, id, tier, balance, price, active, born, tags, note";
        let text = format!("INSERT INTO {}.accounts ({columns}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", self.keyspace);
        self.place.runtime.block_on(async {
            let insert = self.session.prepare(text).await.unwrap();
            let insert = &insert;
            let put = |account: Account| async move {
                let Account { region, bucket, opened_ms, id, tier, balance, cents } = account;
                let price = CqlDecimal::from_signed_be_bytes_slice_and_exponent(&cents.to_be_bytes(), 2);
                let (born, tags) = (CqlDate((1 << 31) + 7), vec!["x", "y"]);
                let opened = CqlTimestamp(opened_ms);
                let values = (region, bucket, opened, id, tier, balance, price, true, born, tags, note);
                self.session.execute_unpaged(insert, values).await.map(drop)
            };
            stream::iter(accounts.to_vec()).map(put).buffer_unordered(256).try_collect::<()>().await.unwrap();
        });
    }

    /// By id: segment, doubled, note.
    pub(crate) fn rows(&self) -> BTreeMap<String, Enriched> {
        let text = format!("SELECT id, segment, doubled, note FROM {}.accounts", self.keyspace);
        self.place.runtime.block_on(async {
            let rows = self.session.query_iter(text, ()).await.unwrap();
            let rows = rows.rows_stream::<(Option<String>, Option<String>, Option<i64>, Option<String>)>().unwrap();
            let rows: Vec<_> = rows.try_collect().await.unwrap();
            rows.into_iter().filter_map(|(id, segment, doubled, note)| Some((id?, (segment, doubled, note)))).collect()
        })
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let text = format!("DROP KEYSPACE IF EXISTS {}", self.keyspace);
        if self.place.runtime.block_on(self.session.query_unpaged(text, ())).is_err() {
            eprintln!("keyspace {} is left behind", self.keyspace);
        }
    }
}
