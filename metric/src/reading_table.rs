//! What the definition of a table has besides that of a topic.

use toml::de::DeValue;

use crate::{
    definition::{Ordered, RowExpireDefinition, SourceKind},
    diagnostic::{Problem, Problems},
    reading::Places,
    toml_table::{At, Table},
};

pub(crate) fn read_kind(table: &mut Table<'_, '_>, problems: &mut Problems<'_>) -> SourceKind {
    let Some(text) = table.text("kind", problems) else { return SourceKind::Log };
    match text.value.as_str() {
        "log" => SourceKind::Log,
        "cassandra" => SourceKind::Cassandra,
        other => {
            let help = "kinds are log (a topic; left out, it is that) and cassandra (an existing table)";
            problems.add(text.span, Problem::new(format!("kind {other:?} is not known"), help));
            // What else stands there is read as what it was meant to be.
            if table.has("table") { SourceKind::Cassandra } else { SourceKind::Log }
        }
    }
}

/// Keys that mean something for the other kind only.
pub(crate) fn refuse_foreign_keys(table: &Table<'_, '_>, kind: SourceKind, problems: &mut Problems<'_>) {
    let (keys, why): (&[&str], _) = match kind {
        SourceKind::Log => {
            (&["table", "update", "expire"], "leave it out, or write kind = \"cassandra\" for an existing table")
        }
        SourceKind::Cassandra => (
            &["topic", "format", "delimiter", "header", "columns", "id", "dedup_window"],
            "leave it out: rows of a table are read as they stand, each once",
        ),
    };
    for key in keys {
        if let Some(span) = table.span_of(key) {
            let what = if kind == SourceKind::Log { "a source that is a topic" } else { "a source that is a table" };
            problems.add(span, Problem::new(format!("`{key}` has no meaning for {what}"), why));
        }
    }
}

pub(crate) fn read_update(
    table: &mut Table<'_, '_>,
    places: &mut Places,
    problems: &mut Problems<'_>,
) -> Ordered<String> {
    let update = table.entries("update", problems).into_iter().map(|(name, sql)| {
        places.keep(format!("update.{}", name.value), At::new((), name.span));
        let sql = places.keep(format!("update.{}.sql", name.value), sql);
        (name.value, sql)
    });
    Ordered(update.collect())
}

pub(crate) fn read_row_expire(
    table: &mut Table<'_, '_>,
    places: &mut Places,
    problems: &mut Problems<'_>,
) -> Vec<RowExpireDefinition> {
    let mut rules = Vec::new();
    for item in table.list("expire", problems).unwrap_or_default() {
        let DeValue::Table(entries) = item.get_ref() else {
            let help = "write [[source.NAME.expire]] with `where`, `after` or both";
            problems.add(item.span(), Problem::new("a rule of `expire` is a table", help));
            continue;
        };
        let mut rule = Table::new("the expiry rule".to_owned(), item.span(), entries);
        let at = rules.len();
        let filter = rule.text("where", problems).map(|filter| places.keep(format!("expire[{at}].where"), filter));
        let after = rule.length("after", problems).map(|after| after.value);
        if !rule.has("where") && !rule.has("after") {
            let help = "give `where`, `after` or both: without them every row would go";
            problems.add(item.span(), Problem::new("the expiry rule says nothing", help));
        }
        rule.finish(problems);
        rules.push(RowExpireDefinition { filter, after });
    }
    rules
}
