//! Shapes of answers that are put together member by member, for the OpenAPI document.

#![expect(dead_code, reason = "describes what others write")]

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A metric or a derived one: `derived`, `expression` and `metrics` are of the latter, what is absent then of the former.
#[derive(ToSchema)]
pub(super) struct MetricSummary {
    name: String,
    #[schema(required)]
    description: Option<String>,
    dimensions: Vec<Dimension>,
    aggregates: Vec<String>,
    /// Null of a derived metric whose metrics lack what it asks.
    #[schema(required)]
    grain: Option<String>,
    /// Defined in a file: it cannot be changed here.
    read_only: bool,
    etag: String,
    #[schema(nullable = false)]
    version: Option<u32>,
    #[schema(nullable = false)]
    source: Option<String>,
    #[schema(nullable = false)]
    rollups: Option<Vec<String>>,
    /// How long buckets are kept, by their width.
    #[schema(nullable = false)]
    retention: Option<BTreeMap<String, String>>,
    #[schema(nullable = false)]
    expire: Option<Vec<ExpiryRule>>,
    #[schema(nullable = false)]
    derived: Option<bool>,
    #[schema(nullable = false)]
    expression: Option<String>,
    #[schema(nullable = false)]
    metrics: Option<Vec<String>>,
}

#[derive(ToSchema)]
struct Dimension {
    name: String,
    r#type: String,
}

#[derive(ToSchema)]
struct ExpiryRule {
    r#where: String,
    retention: BTreeMap<String, String>,
}

#[derive(ToSchema)]
pub(super) struct Metrics {
    metrics: Vec<MetricSummary>,
}

#[derive(ToSchema)]
pub(super) struct DerivedMetrics {
    derived: Vec<MetricSummary>,
}

/// A metric or a derived one, as far as whoever asks may see it.
#[derive(ToSchema)]
pub(super) struct MetricDetail {
    #[serde(flatten)]
    summary: MetricSummary,
    /// As it would stand in a file.
    #[schema(nullable = false)]
    definition: Option<Map<String, Value>>,
    #[schema(nullable = false)]
    versions: Option<Vec<MetricVersion>>,
    #[schema(nullable = false)]
    views: Option<Vec<ViewStatus>>,
    /// The changed definition, while batch builds it.
    #[schema(nullable = false)]
    building: Option<Building>,
}

#[derive(ToSchema)]
struct MetricVersion {
    version: u32,
    active: bool,
    building: bool,
    generation: u64,
}

#[derive(ToSchema)]
struct Building {
    version: u32,
    definition: Map<String, Value>,
    views: Vec<ViewStatus>,
}

#[derive(ToSchema)]
struct ViewStatus {
    id: String,
    dimensions: Vec<String>,
    /// 0 before batch has published anything.
    generation: u64,
    published_at: Option<String>,
    through: Option<String>,
    /// From when on buckets are kept, by their width.
    retained_from: BTreeMap<String, String>,
    expired: Vec<ViewExpiry>,
    kept: Vec<KeptGeneration>,
}

#[derive(ToSchema)]
struct ViewExpiry {
    r#where: String,
    retained_from: BTreeMap<String, String>,
}

/// What a rollback can return to.
#[derive(ToSchema)]
struct KeptGeneration {
    generation: u64,
    since: Option<String>,
    until: String,
}

#[derive(ToSchema)]
pub(super) struct SourceSummary {
    name: String,
    description: Option<String>,
    kind: String,
    /// Of a source that is a table.
    table: Option<String>,
    /// Of a source that is a log.
    topic: Option<String>,
    format: Option<String>,
    read_only: bool,
    etag: String,
}

#[derive(ToSchema)]
pub(super) struct Sources {
    sources: Vec<SourceSummary>,
}

#[derive(ToSchema)]
pub(super) struct SourceDetail {
    #[serde(flatten)]
    summary: SourceSummary,
    /// As it would stand in a file.
    definition: Map<String, Value>,
    /// Of a source that is a log.
    #[schema(nullable = false)]
    topic_exists: Option<bool>,
}

/// What became of a definition.
#[derive(ToSchema)]
pub(super) struct Defined {
    name: String,
    outcome: DefinitionOutcome,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum DefinitionOutcome {
    Created,
    Changed,
    Unchanged,
}

/// An API key without its secret.
#[derive(ToSchema)]
pub(super) struct Key {
    id: String,
    name: String,
    state: KeyState,
    scopes: Vec<String>,
    /// Rules over rows: dimension → the only values of it that the key may see.
    rows: BTreeMap<String, Vec<String>>,
    created_at: String,
    created_by: String,
    expires_at: Option<String>,
    rotated_at: Option<String>,
    /// Until when the secret before the last rotation is still taken.
    overlap_until: Option<String>,
    revoked_at: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum KeyState {
    Active,
    Expired,
    Revoked,
}

#[derive(ToSchema)]
pub(super) struct Keys {
    keys: Vec<Key>,
}

#[derive(ToSchema)]
pub(super) struct KeyWithSecret {
    #[serde(flatten)]
    key: Key,
    /// Shown this once.
    secret: String,
}

#[derive(ToSchema)]
pub(super) struct Audit {
    entries: Vec<AuditEntry>,
    /// Give it as `before` for the next page.
    next: Option<String>,
}

#[derive(ToSchema)]
struct AuditEntry {
    id: String,
    at: String,
    principal: String,
    request_id: String,
    /// Method and route.
    action: String,
    path: String,
    status: u16,
    outcome: AuditOutcome,
    /// Of the problem.
    code: Option<String>,
    /// Where what was made is found.
    made: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum AuditOutcome {
    Done,
    Refused,
}

/// What a partition of a source was sealed into. Times are Unix microseconds.
#[derive(ToSchema)]
pub(super) struct SourceEpochs {
    source: String,
    #[schema(required)]
    topic: Option<String>,
    partitions: Vec<PartitionEpochs>,
}

#[derive(ToSchema)]
struct PartitionEpochs {
    partition: u32,
    /// Where sealed epochs end.
    sealed_end: u64,
    /// Ranges of offsets that nothing names; there should be none.
    holes: Vec<Vec<u64>>,
    epochs: Vec<SealedEpoch>,
}

#[derive(ToSchema)]
struct SealedEpoch {
    start: u64,
    end: Option<u64>,
    opened_at: i64,
    alive_until: i64,
    archive: Option<ArchiveFile>,
    /// Offsets whose records were gone from the log before they could be read.
    lost: Option<Vec<u64>>,
}

#[derive(ToSchema)]
struct ArchiveFile {
    /// Below the archive's root.
    path: String,
    bytes: u64,
    /// CRC-32
    checksum: u32,
    /// What became of the records.
    counts: Map<String, Value>,
    /// Smallest and largest of the accepted records.
    event_time: Option<Vec<i64>>,
}

/// The files that hold a source's sealed records.
#[derive(ToSchema)]
pub(super) struct SourceArchive {
    source: String,
    #[schema(required)]
    topic: Option<String>,
    partitions: Vec<PartitionArchive>,
}

#[derive(ToSchema)]
struct PartitionArchive {
    partition: u32,
    /// Where sealed epochs end.
    sealed_end: u64,
    /// Ranges of sealed offsets that no file is known to hold; there should be none.
    holes: Vec<Vec<u64>>,
    files: Vec<ArchiveSegment>,
}

#[derive(ToSchema)]
struct ArchiveSegment {
    start: u64,
    end: u64,
    /// Null once retention has removed it.
    archive: Option<ArchiveFile>,
    lost: Vec<Vec<u64>>,
}

#[derive(ToSchema)]
pub(super) struct SqlAnswer {
    /// As `x-lamina-query-id` says it.
    id: String,
    columns: Vec<SqlColumn>,
    /// By the names of the columns.
    rows: Vec<Map<String, Value>>,
    row_count: u64,
    meta: SqlMeta,
}

#[derive(ToSchema)]
struct SqlColumn {
    name: String,
    /// Arrow's name of it.
    r#type: String,
}

/// What proves the result.
#[derive(ToSchema)]
struct SqlMeta {
    complete: bool,
    #[serde(flatten)]
    tables: BTreeMap<String, Value>,
}

/// An answer as Prometheus has it; `data` is by endpoint.
#[derive(ToSchema)]
pub(super) struct PrometheusAnswer {
    status: PrometheusSuccess,
    data: Value,
    #[schema(nullable = false)]
    warnings: Option<Vec<String>>,
    /// What proves each read, a member that Prometheus does not have.
    #[schema(nullable = false)]
    lamina: Option<Value>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum PrometheusSuccess {
    Success,
}

#[derive(ToSchema)]
pub(super) struct Health {
    status: HealthStatus,
    /// What was looked at.
    #[schema(nullable = false)]
    checks: Option<BTreeMap<String, String>>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum HealthStatus {
    Ok,
}
