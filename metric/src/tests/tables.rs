//! Sources that are existing tables: what is refused, and what a run makes of rows.

use arrow::{array::AsArray, datatypes::Int64Type};
use lamina_core::tables::{Column, ColumnType, Role, Value};

use super::{compile, source};
use crate::{Catalog, NewValue, Source, SourceKind, Versions, time::SECOND};

const ACCOUNTS: &str = r#"[source.accounts]
kind = "cassandra"
table = "shop.accounts"
time = "opened_at"
[source.accounts.fields]
id = "string"
tier = "string"
balance = "int64"
price = "decimal(10,2)"
opened_at = "timestamp"
[source.accounts.update]
segment = "CASE WHEN balance > 1000 THEN 'gold' ELSE 'basic' END"
balance = "abs(balance)"
[[source.accounts.expire]]
where = "tier = 'free'"
after = "90d"
[[source.accounts.expire]]
where = "100 / balance > 99"
"#;

fn problems(from: &str, to: &str) -> Vec<String> {
    assert!(ACCOUNTS.contains(from), "{from:?} is not in the example");
    let files = [("m.toml".to_owned(), ACCOUNTS.replacen(from, to, 1))];
    let found = Catalog::compile(&files, &Versions::default()).map(|_| ()).unwrap_err();
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn each_mistake_is_told_with_its_place() {
    let table: &[(&str, &str, &str)] = &[
        ("kind = \"cassandra\"", "kind = \"mysql\"", "m.toml:2:8: kind \"mysql\" is not known"),
        ("table = \"shop.accounts\"", "", "m.toml:1:9: a source of kind cassandra has no `table`"),
        ("table = \"shop.accounts\"", "table = \"accounts\"", "m.toml:3:9: table \"accounts\" is not a table's name"),
        ("table = \"shop.accounts\"", "table = \"a.b; c\"", "m.toml:3:9: table \"a.b; c\" is not a table's name"),
        (
            "time = \"opened_at\"",
            "time = \"opened_at\"\nformat = \"json\"",
            "m.toml:5:1: `format` has no meaning for a source that is a table",
        ),
        (
            "time = \"opened_at\"",
            "time = \"opened_at\"\nid = \"id\"",
            "m.toml:5:1: `id` has no meaning for a source that is a table",
        ),
        ("THEN 'gold'", "THEN gold", "m.toml:12:11: there is no field gold"),
        (
            "\"abs(balance)\"",
            "\"CAST(balance AS VARCHAR)\"",
            "m.toml:13:11: the expression gives string, and field balance is int64 (cast it, as in CAST(... AS BIGINT))",
        ),
        ("where = \"tier = 'free'\"", "where = \"balance\"", "m.toml:15:9: `where` is of type Int64"),
        ("where = \"tier = 'free'\"\nafter = \"90d\"", "", "m.toml:14:1: the expiry rule says nothing"),
        ("after = \"90d\"", "after = \"soon\"", "m.toml:16:9: "),
        ("after = \"90d\"", "before = \"90d\"", "m.toml:16:1: the expiry rule has an unknown key `before`"),
    ];
    for (from, to, expected) in table {
        let found = problems(from, to);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{to:?} gives {found:?}");
    }
    let of_a_topic = problems("kind = \"cassandra\"", "format = \"json\"");
    let keys = ["table", "update", "expire"].map(|key| format!("`{key}` has no meaning for a source that is a topic"));
    assert!(keys.iter().all(|key| of_a_topic.iter().any(|found| found.contains(key))), "{of_a_topic:?}");
}

#[test]
fn a_definition_survives_being_written_and_topics_keep_their_fingerprints() {
    let accounts = source(ACCOUNTS);
    let definition = &accounts.definition;
    assert_eq!((definition.kind, accounts.topic.as_str()), (SourceKind::Cassandra, ""));
    let again = source(&definition.to_toml("accounts").unwrap());
    assert_eq!(again.definition, *definition);
    assert_eq!(again.definition.fingerprint(), definition.fingerprint());
    let other = source(&ACCOUNTS.replace("'basic'", "'none'"));
    assert!(other.definition.extends(definition) && other.definition.fingerprint() != definition.fingerprint());
    let json = serde_json::to_value(&compile(super::EDITS).sources["edits"].definition).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["topic", "format", "time", "id", "fields"]);
}

fn column(name: &str, role: Role, kind: ColumnType) -> Column {
    Column { name: name.to_owned(), role, kind, declared: "a type".to_owned(), writable: true }
}

fn columns() -> Vec<Column> {
    vec![
        column("id", Role::PartitionKey, ColumnType::Text),
        column("tier", Role::Regular, ColumnType::Text),
        column("balance", Role::Regular, ColumnType::Int),
        column("price", Role::Regular, ColumnType::Decimal),
        column("opened_at", Role::ClusteringKey, ColumnType::Time),
        column("segment", Role::Regular, ColumnType::Text),
    ]
}

#[test]
fn what_is_read_fits_the_table_or_is_refused() {
    let accounts = source(ACCOUNTS);
    let table = accounts.table.as_ref().unwrap();
    let reading = table.reading(&columns()).unwrap();
    assert_eq!(reading.columns, ["id", "tier", "balance", "price", "opened_at", "segment"]);
    assert_eq!((reading.written, reading.living, reading.deletes), (vec![5, 2], vec![1, 2, 3, 5], true));
    let refused = |change: fn(&mut Vec<Column>)| {
        let mut columns = columns();
        change(&mut columns);
        table.reading(&columns).unwrap_err()
    };
    let missing = refused(|columns| drop(columns.remove(5)));
    assert!(missing.starts_with("table shop.accounts has no column segment; it has id, tier"), "{missing}");
    let unfit = refused(|columns| columns[2].kind = ColumnType::Time);
    assert!(unfit.contains("column balance of table shop.accounts is a type, which is not read as int64"), "{unfit}");
    let key = refused(|columns| columns[2].role = Role::ClusteringKey);
    assert!(key.contains("part of the primary key"), "{key}");
    assert!(refused(|columns| columns[5].role = Role::Static).contains("is static"));
    assert!(refused(|columns| columns[5].writable = false).contains("is not written to"));
}

const NOW: i64 = 100 * 86_400 * SECOND;

fn row(tier: &str, balance: Value, days: Option<i64>, segment: Value) -> Vec<Value> {
    let price = Value::Decimal { unscaled: 1_250, scale: 3 };
    let opened = days.map_or(Value::Null, |days| Value::Time(days * 86_400 * SECOND));
    vec![Value::Text("x".to_owned()), Value::Text(tier.to_owned()), balance, price, opened, segment]
}

fn judge(source: &Source, rows: &[Vec<Value>]) -> crate::Judged {
    let rows: Vec<(u64, &[Value])> = (0..).zip(rows.iter().map(Vec::as_slice)).collect();
    source.judge(&rows, NOW).unwrap().unwrap()
}

#[test]
fn a_row_stays_or_goes_or_is_rejected() {
    let text = |text: &str| Value::Text(text.to_owned());
    let rows = [
        row("paid", Value::Int(2_000), Some(1), text("gold")),
        row("paid", Value::Int(-5), Some(1), text("basic")),
        row("free", Value::Int(2_000), Some(9), Value::Null),
        row("free", Value::Int(2_000), Some(11), Value::Null),
        row("paid", Value::Int(1), None, Value::Null),
        row("paid", Value::Int(0), None, Value::Null),
        row("paid", Value::Unreadable("too large".to_owned()), Some(1), Value::Null),
        row("paid", Value::Null, Some(1), text("basic")),
    ];
    let judged = judge(&source(ACCOUNTS), &rows);
    assert_eq!(judged.expired, [2, 4], "due, or at once even without a time; a rule that fails does not hold");
    let rejected: Vec<usize> = judged.rejected.iter().map(|(row, _)| *row).collect();
    assert_eq!(rejected, [6, 5], "{:?}", judged.rejected);
    let new = |row, column, value| NewValue { row, column, value };
    let expected = [new(3, 5, text("gold")), new(5, 5, text("basic")), new(1, 2, Value::Int(5))];
    assert_eq!(judged.updates, expected);
    let offsets = judged.events.column_by_name("_offset").unwrap();
    let offsets = offsets.as_primitive::<arrow::datatypes::UInt64Type>();
    assert_eq!(offsets.values(), &[0, 1, 3, 7]);
    let balances = judged.events.column_by_name("balance").unwrap().as_primitive::<Int64Type>();
    assert_eq!(
        balances.iter().collect::<Vec<_>>(),
        [Some(2_000), Some(5), Some(2_000), None],
        "as the run leaves them"
    );
}

#[test]
fn what_was_written_is_not_written_again() {
    let text = ACCOUNTS.replace("balance = \"abs(balance)\"", "seen = \"opened_at + INTERVAL '1 microsecond'\"");
    let text = text.replace("segment = ", "half = \"CAST(price AS DECIMAL(10,2)) * 0.5\"\nsegment = ");
    let source = source(&text);
    let mut rows = vec![row("paid", Value::Int(3), Some(1), Value::Null)];
    rows[0].insert(5, Value::Null);
    rows[0].push(Value::Null);
    for new in judge(&source, &rows).updates {
        rows[0][new.column] = new.value;
    }
    assert_eq!(rows[0][7], Value::Time(86_400 * SECOND), "in whole milliseconds");
    let again = judge(&source, &rows).updates;
    assert!(again.is_empty(), "{again:?}");
}
