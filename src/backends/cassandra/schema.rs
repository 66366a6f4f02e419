//! Applies `schema.cql` and checks that what a cluster has is what the statements need.

use std::collections::BTreeMap;

use lamina_core::StoreError;

use super::{config::CassandraConfig, mode, session::Connection};

const SCHEMA: &str = include_str!("../../../schema.cql");
/// DDL fails now and then while a node is slow; each statement may be repeated.
const ATTEMPTS: usize = 3;
/// Seconds: tombstones must outlive hints (3 hours) and repairs that are late.
const LEAST_GRACE: i32 = 86_400;

/// Makes the keyspace and the tables that are missing and checks the ones that are there. It may be run again at any time,
/// but by one process at a time: concurrent DDL makes Cassandra's nodes disagree.
///
/// # Errors
/// [`StoreError::Unavailable`] if the cluster does not answer, [`StoreError::Refused`] if it does not let us or has tables of
/// the same names and another shape.
pub async fn migrate(config: &CassandraConfig) -> Result<(), StoreError> {
    apply(config, false).await
}

/// As [`migrate`], and changes what writes of this keyspace wait for to what is configured. No other process may run: each
/// checks it at its start only. Rows from before are where they were: repair the keyspace first.
///
/// # Errors
/// As [`migrate`].
pub async fn change_write_consistency(config: &CassandraConfig) -> Result<(), StoreError> {
    apply(config, true).await
}

async fn apply(config: &CassandraConfig, change: bool) -> Result<(), StoreError> {
    let connection = Connection::open(config).await?;
    for statement in
        statements(&SCHEMA.replace("${keyspace}", &config.keyspace).replace("${replication}", &replication(config)))
    {
        let mut attempt = 1;
        while let Err(error) = connection.define(&statement).await {
            if attempt == ATTEMPTS || !matches!(error, StoreError::Unavailable(_)) {
                return Err(error);
            }
            tracing::warn!(%error, attempt, "schema statement failed, trying again");
            attempt += 1;
        }
    }
    verify(&connection, &config.keyspace).await?;
    mode::settle(&connection, config, change).await?;
    tracing::info!(keyspace = config.keyspace, "schema is up to date");
    Ok(())
}

fn replication(config: &CassandraConfig) -> String {
    format!("{{'class': 'NetworkTopologyStrategy', '{}': {}}}", config.local_dc, config.replication_factor)
}

/// The statements of a CQL text in which comments are whole lines and only a statement's end ends a line with a semicolon.
fn statements(text: &str) -> Vec<String> {
    let code: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let statements = code.join("\n");
    let statements = statements.split(";\n").map(|statement| statement.trim().trim_end_matches(';'));
    statements.filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
}

/// Columns and their types, by table.
type Tables = BTreeMap<String, BTreeMap<String, String>>;

/// What `schema.cql` says the tables are.
fn needed() -> Tables {
    let tables = statements(SCHEMA).into_iter().filter_map(|statement| {
        let (head, body) = statement.strip_prefix("CREATE TABLE IF NOT EXISTS ${keyspace}.")?.split_once('(')?;
        let columns =
            body.lines().map(|line| line.trim().trim_end_matches(',')).take_while(|line| !line.starts_with("PRIMARY"));
        let columns = columns
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.trim_end_matches(" static").to_owned()));
        Some((head.trim().to_owned(), columns.collect()))
    });
    tables.collect()
}

/// Checks that the keyspace has every column that we use, and that nobody gave our tables options which lose rows.
///
/// # Errors
/// [`StoreError::Refused`] that names what is missing or wrong.
pub(super) async fn verify(connection: &Connection, keyspace: &str) -> Result<(), StoreError> {
    let query = "SELECT table_name, column_name, type FROM system_schema.columns WHERE keyspace_name = ?";
    let mut found = Tables::new();
    for (table, column, kind) in connection.ask::<(String, String, String)>(query, (keyspace,)).await? {
        found.entry(table).or_default().insert(column, kind);
    }
    if let Some(what) = missing(&needed(), &found) {
        return Err(StoreError::Refused(format!(
            "keyspace {keyspace} {what}; run `lamina migrate` with this version first"
        )));
    }
    let query = "SELECT table_name, gc_grace_seconds, default_time_to_live, compaction FROM system_schema.tables \
                 WHERE keyspace_name = ?";
    let tables: Vec<TableOptions> = connection.ask(query, (keyspace,)).await?;
    for (table, grace, ttl, compaction) in tables.into_iter().filter(|(table, ..)| found.contains_key(table)) {
        if let Some(why) = harmful(grace, ttl, &compaction.unwrap_or_default()) {
            return Err(StoreError::Refused(format!(
                "table {keyspace}.{table} {why}: ALTER it back as schema.cql has it"
            )));
        }
    }
    Ok(())
}

/// Name, `gc_grace_seconds`, `default_time_to_live` and compaction of a table.
type TableOptions = (String, Option<i32>, Option<i32>, Option<BTreeMap<String, String>>);

/// Why rows of a table with these options could come back or go too early.
fn harmful(grace: Option<i32>, ttl: Option<i32>, compaction: &BTreeMap<String, String>) -> Option<String> {
    let unsafe_expiration = |(name, value): (&String, &String)| name.starts_with("unsafe_") && value == "true";
    if let Some(grace) = grace.filter(|&grace| grace < LEAST_GRACE) {
        return Some(format!(
            "has gc_grace_seconds = {grace}, less than a day, so that hints expire before they arrive"
        ));
    }
    if let Some(ttl) = ttl.filter(|&ttl| ttl != 0) {
        return Some(format!("has default_time_to_live = {ttl}, which ends rows that are to stay"));
    }
    let (name, _) = compaction.iter().find(|&option| unsafe_expiration(option))?;
    Some(format!("is compacted with {name}, which drops rows that overlap with expired ones"))
}

/// Says once what of the cluster's own settings can lose acknowledged writes. Where they may not be read nothing is said.
pub(super) async fn warn_of_settings(connection: &Connection) {
    let query = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'";
    let found: Result<Vec<(Option<String>,)>, _> = connection.ask(query, ()).await;
    if found.is_ok_and(|rows| rows.into_iter().any(|(value,)| value.as_deref() == Some("periodic"))) {
        tracing::warn!(
            "commitlog_sync is periodic: a power failure of all replicas can lose writes that were acknowledged up to \
             commitlog_sync_period before; set it to batch or group"
        );
    }
}

fn missing(needed: &Tables, found: &Tables) -> Option<String> {
    if found.is_empty() {
        return Some("does not exist or is empty".to_owned());
    }
    for (table, columns) in needed {
        let Some(has) = found.get(table) else { return Some(format!("has no table {table}")) };
        for (column, kind) in columns {
            match has.get(column) {
                Some(other) if other == kind => {}
                Some(other) => return Some(format!("has {table}.{column} as {other} instead of {kind}")),
                None => return Some(format!("has no column {table}.{column}")),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_keeps_its_rules() {
        let blocks: Vec<_> = SCHEMA.split("\n\n").filter(|block| block.contains("CREATE TABLE")).collect();
        assert_eq!(blocks.len(), needed().len(), "blank lines separate the tables");
        for block in blocks {
            let (comment, code): (Vec<_>, Vec<_>) = block.trim().lines().partition(|line| line.starts_with("--"));
            let (comment, code) = (comment.join(" "), code.join("\n"));
            for word in ["Writer", "Readers", "TTL", "lob"] {
                assert!(
                    comment.contains(word) || comment.contains(&word.to_lowercase()),
                    "{word} is not explained:\n{block}"
                );
            }
            for bad in ["counter", "map<", "list<", "set<", "frozen", "duration"] {
                assert!(!code.contains(bad), "{bad} in:\n{code}");
            }
            assert!(code.matches(" blob,").count() - code.matches("series blob,").count() <= 1, "one cell:\n{code}");
            let grace = code.split("gc_grace_seconds = ").nth(1).and_then(|rest| rest.split_whitespace().next());
            assert!(
                grace.is_some_and(|grace| grace.parse::<u64>().is_ok_and(|grace| grace >= 86_400)),
                "gc_grace:\n{code}"
            );
            assert!(!code.contains("default_time_to_live = ") || code.contains("default_time_to_live = 0"), "{code}");
        }
    }

    /// Every file of this backend, without its tests.
    fn sources() -> BTreeMap<String, String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backends/cassandra");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let code = |path: &std::path::Path| {
            let text = std::fs::read_to_string(path).unwrap();
            text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
        };
        files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), code(&path))).collect()
    }

    #[test]
    fn every_write_is_stamped_or_conditional_and_nothing_but_unused_batch_chunks_is_deleted_by_hand() {
        let (sources, mut stamped, mut conditional) = (sources(), Vec::new(), Vec::new());
        for (file, source) in &sources {
            let count = |what: &str| source.matches(what).count();
            let writes = count("INSERT INTO {") + count("UPDATE {");
            let deletes = count("DELETE ") + count("TRUNCATE ");
            let stamps = count("USING TIMESTAMP ?");
            if stamps > 0 {
                // Only batch chunks under a base that nothing refers to are deleted, and rows of tables that are not ours.
                let may = ["batch.rs", "tables.rs"].contains(&file.as_str());
                assert!(deletes == 0 || may, "{file}: nothing is deleted by hand");
                assert_eq!(writes + deletes, stamps, "{file}: each write is stamped");
                assert!(count("prepare_upsert(") >= stamps, "{file}: each write waits for what the keyspace says");
                assert!(!source.contains("conditional") && !source.contains(".change"), "{file} mixes");
                stamped.push(file.as_str());
            } else if writes + deletes > 0 {
                assert!(!source.contains("prepare_upsert") && !source.contains(".upsert"), "{file} mixes");
                assert!(count("prepare_conditional(") >= writes + deletes, "{file}: each write has a condition");
                conditional.push(file.as_str());
            }
            assert!(!source.contains("LocalSerial"), "{file}: two data centres would be two Paxos groups");
        }
        assert_eq!(stamped, ["batch.rs", "manifest.rs", "speed.rs", "tables.rs"]);
        let ours = ["FROM {}", "UPDATE {}", "INTO {}"];
        assert!(
            !ours.iter().any(|text| sources["tables.rs"].contains(text)),
            "our own keyspace is none of its business"
        );
        assert_eq!(conditional, ["documents.rs", "ledgers.rs", "mode.rs"]);
        let session = &sources["session.rs"];
        assert_eq!(session.matches("set_serial_consistency(Some(SerialConsistency::Serial))").count(), 2);
        assert_eq!(
            session.matches("FallthroughRetryPolicy::new()").count(),
            2,
            "a conditional write is never repeated"
        );
    }

    #[test]
    fn options_that_lose_rows_are_named() {
        let option = |name: &str| BTreeMap::from([(name.to_owned(), "true".to_owned())]);
        assert_eq!(harmful(Some(86_400), Some(0), &option("enabled")), None);
        assert!(harmful(Some(0), Some(0), &option("enabled")).is_some_and(|why| why.contains("gc_grace_seconds = 0")));
        assert!(harmful(Some(86_400), Some(9), &option("enabled")).is_some_and(|why| why.contains("= 9")));
        let unsafe_expiration = option("unsafe_aggressive_sstable_expiration");
        assert!(
            harmful(Some(86_400), Some(0), &unsafe_expiration).is_some_and(|why| why.contains("unsafe_aggressive"))
        );
    }

    #[test]
    fn what_the_schema_lacks_is_named() {
        let needed = needed();
        assert_eq!(needed["ledgers"]["version"], "bigint");
        assert_eq!(needed["speed_chunks"].len(), 7);
        assert_eq!(missing(&needed, &needed), None);
        let mut found = needed.clone();
        found.get_mut("documents").and_then(|columns| columns.remove("value"));
        assert_eq!(missing(&needed, &found).as_deref(), Some("has no column documents.value"));
        assert_eq!(missing(&needed, &Tables::new()).as_deref(), Some("does not exist or is empty"));
    }
}
