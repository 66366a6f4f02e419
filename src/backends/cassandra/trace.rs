//! What is asked of the cluster on behalf of a request, as spans with OpenTelemetry's conventions for Cassandra.

use lamina_core::SPANS;
use scylla::statement::{
    batch::{Batch, BatchStatement},
    prepared::PreparedStatement,
};
use tracing::Span;

/// Of a statement. Work in the background belongs to no request, and leaves no spans.
pub(super) fn of(statement: &PreparedStatement) -> Span {
    let text = statement.get_statement();
    span(text, text.split_whitespace().next().unwrap_or_default(), statement, 1)
}

/// Of statements that go in one request.
pub(super) fn of_batch(batch: &Batch) -> Span {
    match batch.statements.first() {
        Some(BatchStatement::PreparedStatement(first)) => span("", "BATCH", first, batch.statements.len()),
        _ => Span::none(),
    }
}

fn span(text: &str, operation: &str, statement: &PreparedStatement, size: usize) -> Span {
    if Span::current().is_disabled() {
        return Span::none();
    }
    let (keyspace, table) =
        statement.get_table_spec().map_or_else(Default::default, |table| (table.ks_name(), table.table_name()));
    tracing::debug_span!(
        target: SPANS,
        "cassandra",
        otel.name = format!("{operation} {table}"),
        otel.kind = "client",
        db.system.name = "cassandra",
        db.namespace = keyspace,
        db.collection.name = table,
        db.operation.name = operation,
        db.operation.batch.size = (size > 1).then_some(size),
        db.query.text = (!text.is_empty()).then_some(text),
    )
}
