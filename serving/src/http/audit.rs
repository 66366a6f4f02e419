//! `/v1/audit`: who did what.

use axum::{
    Json,
    extract::{Query, State},
};
use serde_json::{Value, json};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::schema::Audit;
use crate::{app::App, auth::audit::Entry, instant, problem::Problem};

/// Most entries in one answer, and how many if nothing is said.
const MAX_ENTRIES: usize = 1_000;
const DEFAULT_ENTRIES: usize = 100;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(audit))
}

/// What was changed, asked of batch or sent, and by whom, the newest first: also what was refused for want of a scope.
///
/// The latest 5,000 changes are kept in the store; of sent events, each process shows the latest 5,000 that it took.
#[utoipa::path(get, path = "/v1/audit", tag = "access",
    params(("limit" = Option<u32>, Query, minimum = 1, maximum = 1_000, description = "Most entries, up to 1000; 100 if left out"),
        ("before" = Option<String>, Query, description = "Only entries older than this id: the next page")),
    responses((status = 200, description = "Entries", body = Audit),
        (status = 400, description = "A parameter cannot be used")))]
async fn audit(State(app): State<App>, Query(pairs): Query<Vec<(String, String)>>) -> Result<Json<Value>, Problem> {
    let (mut limit, mut before) = (DEFAULT_ENTRIES, None);
    for (name, value) in &pairs {
        match name.as_str() {
            "before" => before = Some(value.as_str()),
            "limit" => {
                let asked = value.parse().ok().filter(|limit| (1..=MAX_ENTRIES).contains(limit));
                limit =
                    asked.ok_or_else(|| Problem::parameter("limit", format!("a number from 1 to {MAX_ENTRIES}")))?;
            }
            _ => return Err(Problem::parameter(name, "is not a parameter; there are limit, before")),
        }
    }
    // One more tells whether there is a next page.
    let mut entries = app.audit.latest(&*app.deps.store, before, limit + 1).await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().filter(|_| more).map(|entry| entry.id.clone());
    Ok(Json(json!({"entries": entries.iter().map(to_json).collect::<Vec<_>>(), "next": next})))
}

fn to_json(entry: &Entry) -> Value {
    json!({
        "id": entry.id,
        "at": instant::format(entry.at),
        "principal": entry.principal,
        "request_id": entry.request_id,
        "action": entry.action,
        "path": entry.path,
        "status": entry.status,
        "outcome": if entry.status < 400 { "done" } else { "refused" },
        "code": entry.problem,
        "made": entry.made,
    })
}
