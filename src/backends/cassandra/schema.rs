//! Applies `schema.cql` and checks that what a cluster has is what the statements need.

use std::collections::BTreeMap;

use lamina_core::StoreError;

use super::{config::CassandraConfig, session::Connection};

const SCHEMA: &str = include_str!("../../../schema.cql");
/// DDL fails now and then while a node is slow; each statement may be repeated.
const ATTEMPTS: usize = 3;

/// Makes the keyspace and the tables that are missing and checks the ones that are there. It may be run again at any time,
/// but by one process at a time: concurrent DDL makes Cassandra's nodes disagree.
///
/// # Errors
/// [`StoreError::Unavailable`] if the cluster does not answer, [`StoreError::Refused`] if it does not let us or has tables of
/// the same names and another shape.
pub async fn migrate(config: &CassandraConfig) -> Result<(), StoreError> {
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

/// Checks that the keyspace has every column that we use.
///
/// # Errors
/// [`StoreError::Refused`] that names what is missing.
pub(super) async fn verify(connection: &Connection, keyspace: &str) -> Result<(), StoreError> {
    let query = "SELECT table_name, column_name, type FROM system_schema.columns WHERE keyspace_name = ?";
    let mut found = Tables::new();
    for (table, column, kind) in connection.ask::<(String, String, String)>(query, (keyspace,)).await? {
        found.entry(table).or_default().insert(column, kind);
    }
    missing(&needed(), &found).map_or(Ok(()), |what| {
        Err(StoreError::Refused(format!("keyspace {keyspace} {what}; run `lamina migrate` with this version first")))
    })
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

    #[test]
    fn upserts_are_stamped_and_only_tables_of_compare_and_set_lose_rows() {
        let conditional = [include_str!("ledgers.rs"), include_str!("documents.rs")];
        let stamped = [include_str!("manifest.rs"), include_str!("speed.rs"), include_str!("batch.rs")];
        for source in conditional {
            assert!(!source.contains("USING TIMESTAMP") && !source.contains("connection.upsert"));
        }
        for source in stamped {
            assert!(!source.contains("DELETE ") && !source.contains("conditional") && !source.contains(".change"));
            let writes = source.matches("INSERT INTO {}").count() + source.matches("UPDATE {}").count();
            assert_eq!(writes, source.matches("USING TIMESTAMP ?").count(), "each write is stamped");
        }
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
