//! Users' own Cassandra tables: summarised, enriched in place and expired by rule, on a real node.

use std::collections::{BTreeMap, BTreeSet};

use lamina::backends::cassandra::{CassandraConfig, tables::CassandraTables};
use lamina_core::{
    Clock, StoreError, TableName, Tables,
    clock::SystemClock,
    tables::{CellChange, Reading, Table, TableRow, Value as Cell},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    process::{Addresses, Backend, Lamina, run},
    shop::{Account, Shop},
};

const ROWS: i64 = 50_000;
const EVERYTHING: &str = "from=2019-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";

fn post(lamina: &Lamina, path: &str, body: &Value) -> Value {
    let answer = lamina.request(Method::POST, path).json(body).send().unwrap();
    let (status, body) = (answer.status(), answer.json().unwrap());
    assert_eq!(status, StatusCode::ACCEPTED, "{path}: {body}");
    body
}

fn job(lamina: &Lamina, job: &Value) -> Value {
    lamina.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap()), &[])
}

fn ended(lamina: &Lamina, queued: &Value, state: &str) -> Value {
    lamina.until(&format!("the job is {state}"), || {
        let job = job(lamina, queued);
        let now = job["state"].as_str().unwrap();
        assert!(now == state || ["queued", "running"].contains(&now), "{job}\n{}", lamina.log_tail());
        now == state
    });
    job(lamina, queued)
}

fn run_now(lamina: &Lamina) -> Value {
    ended(lamina, &post(lamina, "/v1/schedule/run", &json!({})), "succeeded")
}

fn until_under_way(lamina: &Lamina, queued: &Value) {
    lamina.until("some ranges are scanned", || {
        let job = job(lamina, queued);
        assert_ne!(job["state"], "succeeded", "too fast to be interrupted: {job}");
        job["progress"]["unit"] == "ranges" && job["progress"]["done"].as_u64() > Some(0)
    });
}

fn counted(job: &Value, what: &str) -> usize {
    usize::try_from(job["result"]["sources"]["accounts"][what].as_u64().unwrap()).unwrap()
}

/// Each group's count, sum, least and largest balance, by tier.
fn expected<'a>(accounts: impl Iterator<Item = &'a Account>) -> BTreeMap<String, [Option<i64>; 4]> {
    let mut groups: BTreeMap<String, [Option<i64>; 4]> = BTreeMap::new();
    for account in accounts {
        let group = groups.entry(account.tier.unwrap_or("null").to_owned()).or_insert([Some(0), None, None, None]);
        group[0] = group[0].map(|count| count + 1);
        if let Some(balance) = account.balance {
            group[1] = Some(group[1].unwrap_or(0) + balance);
            group[2] = Some(group[2].unwrap_or(balance).min(balance));
            group[3] = Some(group[3].unwrap_or(balance).max(balance));
        }
    }
    groups
}

fn answered(lamina: &Lamina) -> BTreeMap<String, [Option<i64>; 4]> {
    let path = format!("/v1/metrics/balances/query?{EVERYTHING}&aggregate=count,sum,min,max&group_by=tier");
    let answer = lamina.get(&path, &[]);
    assert_eq!(answer["meta"]["complete"], true, "{answer}");
    let group = |series: &Value| {
        let point = &series["points"][0];
        let values = ["count", "sum", "min", "max"].map(|name| point[name].as_i64());
        (series["dimensions"]["tier"].as_str().unwrap_or("null").to_owned(), values)
    };
    answer["series"].as_array().unwrap().iter().map(group).collect()
}

#[test]
fn a_table_is_summarised_enriched_and_expired() {
    if Backend::Real.skipped() {
        return;
    }
    let shop = Shop::new();
    let now_ms = SystemClock.now() / 1_000;
    let made: Vec<Account> = (0..ROWS).map(|number| Account::new(number, now_ms)).collect();
    shop.insert(&made, None);
    // Rows that were removed, one by one and by the partition; a partition that has nothing but a static column.
    let removed = |account: &Account| account.id.ends_with("99") || (account.region == "r1" && account.bucket == 3);
    for account in made.iter().filter(|account| account.id.ends_with("99")) {
        let Account { region, bucket, opened_ms, id, .. } = account;
        let row = format!("region = '{region}' AND bucket = {bucket} AND opened_at = {opened_ms} AND id = '{id}'");
        shop.cql(&format!("DELETE FROM KEYSPACE.accounts WHERE {row}"));
    }
    shop.cql("DELETE FROM KEYSPACE.accounts WHERE region = 'r1' AND bucket = 3");
    shop.cql("INSERT INTO KEYSPACE.accounts (region, bucket, region_name) VALUES ('nowhere', 1, 'Nowhere')");
    shop.cql("INSERT INTO KEYSPACE.accounts (region, bucket, region_name) VALUES ('r2', 5, 'Second')");
    let present: Vec<&Account> = made.iter().filter(|account| !removed(account)).collect();
    let kept: Vec<&Account> = present.iter().copied().filter(|account| !account.expires(now_ms)).collect();
    let gone = present.len() - kept.len();
    assert!(gone > 1_000 && kept.len() > 10_000);

    let mut lamina = shop.start();
    the_interface_tells_a_table_from_a_topic(&lamina, &shop);

    let dry = ended(&lamina, &post(&lamina, "/v1/recomputes", &json!({"dry_run": true})), "succeeded");
    assert_eq!((counted(&dry, "updated"), counted(&dry, "expired")), (kept.len(), gone), "{dry}");
    assert_eq!(dry["result"]["sources"]["accounts"]["written"], false);
    assert!(shop.rows().values().all(|(segment, ..)| segment.is_none()) && shop.rows().len() == present.len());

    let cancelled = post(&lamina, "/v1/schedule/run", &json!({}));
    until_under_way(&lamina, &cancelled);
    let path = format!("/v1/jobs/{}/cancel", cancelled["id"].as_str().unwrap());
    let asked = std::time::Instant::now();
    post(&lamina, &path, &json!({}));
    ended(&lamina, &cancelled, "cancelled");
    eprintln!("cancelled after {:?}", asked.elapsed());
    assert!(asked.elapsed().as_secs() < 10);

    let killed = post(&lamina, "/v1/schedule/run", &json!({}));
    until_under_way(&lamina, &killed);
    lamina.kill();
    let scanned = shop.rows().values().filter(|(segment, ..)| segment.is_some()).count();
    eprintln!("{scanned} of {} rows were enriched when the process was killed", kept.len());
    lamina.restart();
    ended(&lamina, &killed, "succeeded");

    let rows = shop.rows();
    let ids: BTreeSet<&str> = kept.iter().map(|account| account.id.as_str()).collect();
    assert_eq!(rows.keys().map(String::as_str).collect::<BTreeSet<_>>(), ids, "exactly what expired is gone");
    for account in &kept {
        let (segment, doubled, _) = &rows[&account.id];
        let expected = (Some(account.segment()), account.balance.map(|balance| balance * 2));
        assert_eq!((segment.as_deref(), *doubled), expected, "{account:?}");
    }
    assert_eq!(answered(&lamina), expected(kept.iter().copied()));

    let again = run_now(&lamina);
    let ranges = counted(&again, "ranges");
    eprintln!("{again}");
    assert_eq!(["rows", "summarised"].map(|what| counted(&again, what)), [kept.len(); 2], "every row once");
    assert_eq!(["updated", "expired", "rejected", "not_updated"].map(|what| counted(&again, what)), [0; 4], "{again}");
    assert!(ranges >= 256 && again["progress"]["total"] == ranges);
    the_rest_of_the_answers_is_right(&lamina, &kept);
    what_changes_is_seen_by_the_next_run(&lamina, &shop, &kept);
}

fn the_interface_tells_a_table_from_a_topic(lamina: &Lamina, shop: &Shop) {
    let source = lamina.get("/v1/sources/accounts", &[]);
    let shown = (source["kind"].as_str(), source["table"].as_str().map(str::to_owned), &source["topic"]);
    assert_eq!(shown, (Some("cassandra"), Some(format!("{}.accounts", shop.keyspace)), &Value::Null), "{source}");
    let sent = lamina.request(Method::POST, "/v1/sources/accounts/events").body("{}").send().unwrap();
    let (status, problem): (_, Value) = (sent.status(), sent.json().unwrap());
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &"not_a_log".into()), "{problem}");
    let answer = lamina.get(&format!("/v1/metrics/balances/query?{EVERYTHING}"), &[]);
    assert_eq!(answer["meta"]["complete"], false, "nothing was scanned yet: {answer}");
    let fresh = lamina.get("/v1/freshness/balances", &[]);
    assert_eq!((&fresh["status"], &fresh["metrics"][0]["batch"]["age_ms"]), (&"warn".into(), &Value::Null), "{fresh}");
    let config = shop.place.path().join("embedded").join("lamina.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let definitions = shop.place.path().join("metrics.toml");
    std::fs::write(&config, format!("definitions = [{definitions:?}]\n")).unwrap();
    let validated = run(&["validate", &config.to_string_lossy()]);
    let said = String::from_utf8_lossy(&validated.stderr).into_owned();
    assert!(validated.status.code() == Some(1) && said.contains("accounts") && said.contains("[store]"), "{said}");
}

fn the_rest_of_the_answers_is_right(lamina: &Lamina, kept: &[&Account]) {
    let path = format!("/v1/metrics/prices/query?{EVERYTHING}&aggregate=count,sum");
    let prices = lamina.get(&path, &[]);
    let untiered: Vec<_> = kept.iter().filter(|account| account.tier.is_none()).collect();
    let cents: i64 = untiered.iter().map(|account| account.cents).sum();
    let point = &prices["series"][0]["points"][0];
    assert_eq!(point["count"], untiered.len());
    assert_eq!(point["sum"].to_string(), format!("{}.{:02}", cents / 100, cents % 100), "{prices}");
    let second = "where=region_name='Second'&aggregate=count";
    let named = lamina.get(&format!("/v1/metrics/balances/query?{EVERYTHING}&{second}"), &[]);
    let expected = kept.iter().filter(|account| account.region == "r2" && account.bucket == 5).count();
    assert_eq!(named["series"][0]["points"][0]["count"], expected, "a static column counts for every row: {named}");
    let scanned = &prices["meta"]["batch"]["scanned"];
    assert!(scanned["from"].as_str() < scanned["to"].as_str(), "{prices}");
    assert_eq!(prices["meta"]["speed"]["positions"], json!({}));
    let fresh = lamina.get("/v1/freshness/prices", &[]);
    assert_eq!((&fresh["status"], &fresh["metrics"][0]["speed"]["lag_ms"]), (&"ok".into(), &0.into()), "{fresh}");
    assert!(fresh["metrics"][0]["batch"]["age_ms"].as_u64().is_some(), "{fresh}");
}

fn what_changes_is_seen_by_the_next_run(lamina: &Lamina, shop: &Shop, kept: &[&Account]) {
    let mut changed: Vec<Account> = kept.iter().take(100).map(|account| (*account).clone()).collect();
    changed.iter_mut().for_each(|account| account.balance = Some(4_000));
    shop.insert(&changed, None);
    let Account { region, bucket, opened_ms, id, .. } = kept[200];
    let row = format!("region = '{region}' AND bucket = {bucket} AND opened_at = {opened_ms} AND id = '{id}'");
    shop.cql(&format!("DELETE FROM KEYSPACE.accounts WHERE {row}"));
    let job = run_now(lamina);
    let others = kept.iter().enumerate().filter(|(at, _)| *at >= 100 && *at != 200).map(|(_, account)| *account);
    let left: Vec<&Account> = changed.iter().chain(others).collect();
    assert_eq!(answered(lamina), expected(left.iter().copied()), "{job}");
    assert_eq!(counted(&job, "expired"), 0);
}

#[test]
fn what_a_user_writes_meanwhile_stays() {
    if Backend::Real.skipped() {
        return;
    }
    let shop = Shop::new();
    let now_ms = SystemClock.now() / 1_000;
    let made: Vec<Account> = (0..20_000).map(|number| Account::new(number, now_ms)).collect();
    shop.insert(&made, None);
    let lamina = shop.start();
    let queued = post(&lamina, "/v1/schedule/run", &json!({}));
    until_under_way(&lamina, &queued);
    let expiring: Vec<Account> = made.iter().filter(|account| account.expires(now_ms)).step_by(2).cloned().collect();
    shop.insert(&expiring, Some("still here"));
    let job = ended(&lamina, &queued, "succeeded");
    assert!(counted(&job, "expired") > 0, "{job}");
    let rows = shop.rows();
    for account in &expiring {
        let note = rows.get(&account.id).and_then(|(_, _, note)| note.as_deref());
        assert_eq!(note, Some("still here"), "{account:?} was written after the scan began");
    }
    run_now(&lamina);
    let left: BTreeSet<String> = shop.rows().into_keys().collect();
    let kept: BTreeSet<String> =
        made.iter().filter(|account| !account.expires(now_ms)).map(|account| account.id.clone()).collect();
    assert_eq!(left, kept, "the next run takes what still matches");
}

/// All rows of a table.
async fn all_rows(table: &dyn Table) -> Vec<TableRow> {
    let mut rows = Vec::new();
    for range in table.ranges() {
        let mut from = None;
        loop {
            let page = table.page(range, from).await.unwrap();
            rows.extend(page.rows);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
    }
    rows
}

#[test]
fn a_write_that_is_older_changes_nothing() {
    if Backend::Real.skipped() {
        return;
    }
    let shop = Shop::new();
    let name = TableName { keyspace: shop.keyspace.clone(), table: "accounts".to_owned() };
    let contact_points = vec![Addresses::default().cassandra];
    let tables = CassandraTables::new(CassandraConfig { contact_points, ..CassandraConfig::default() });
    let key = "region = 'r' AND bucket = 1 AND opened_at = 5 AND id = 'i'";
    shop.cql(
        "INSERT INTO KEYSPACE.accounts (region, bucket, opened_at, id, tier, segment) \
              VALUES ('r', 1, 5, 'i', 'paid', 'old') USING TTL 5000",
    );
    shop.place.runtime.block_on(async {
        let columns = ["tier", "segment", "doubled"].map(str::to_owned).to_vec();
        let reading = Reading { table: name, columns, written: vec![1, 2], living: vec![0, 1, 2], deletes: true };
        let table = tables.open(reading).await.unwrap();
        let began = SystemClock.now();
        let rows = all_rows(&*table).await;
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        let text = |text: &str| Cell::Text(text.to_owned());
        assert_eq!(row.values, [text("paid"), text("old"), Cell::Null]);
        assert!(row.ttl.is_some_and(|ttl| (4_900..=5_000).contains(&ttl)) && row.written_at[1].is_none(), "{row:?}");

        let user = format!("UPDATE {}.accounts SET segment = 'user' WHERE {key}", shop.keyspace);
        shop.session.query_unpaged(user, ()).await.unwrap();
        let change = |column, value, at| CellChange { key: row.key.clone(), column, value, at, ttl: row.ttl };
        let segment = change(1, text("ours"), row.written_at[0].unwrap() + 1);
        table.update(&[segment, change(2, Cell::Int(7), began)]).await.unwrap();
        let rows = all_rows(&*table).await;
        assert_eq!(rows[0].values, [text("paid"), text("user"), Cell::Int(7)], "the user's is newer");
        assert_eq!(rows[0].written_at[1], Some(began));

        table.delete(std::slice::from_ref(&row.key), began).await.unwrap();
        let rows = all_rows(&*table).await;
        assert_eq!(rows[0].values, [Cell::Null, text("user"), Cell::Null], "what came after the scan began stays");
        let wrong = table.update(&[change(2, text("no number"), began)]).await;
        assert!(matches!(wrong, Err(StoreError::Refused(_))), "{wrong:?}");
        let unknown = TableName { keyspace: shop.keyspace.clone(), table: "nothing".to_owned() };
        let unknown = tables.describe(&unknown).await;
        assert!(matches!(&unknown, Err(StoreError::Refused(why)) if why.contains("there is no table")), "{unknown:?}");
        let ours = TableName { keyspace: CassandraConfig::default().keyspace, table: "documents".to_owned() };
        let ours = tables.describe(&ours).await;
        assert!(matches!(&ours, Err(StoreError::Refused(why)) if why.contains("own keyspace")), "{ours:?}");
    });
}
