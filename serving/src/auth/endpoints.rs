//! Every endpoint, and what it asks of whoever calls it. The guard, the OpenAPI document and docs/access.md come from here.

use axum::http::Method;
use utoipa::openapi::{
    OpenApi, PathItem, RefOr, Response,
    path::Operation,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{
    principal::Principal,
    scope::Scope::{self, Admin, EventsWrite, MetricsRead, RecomputeRun, SqlRun},
};
use crate::problem::Problem;

/// What a call does, as the audit log sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Reads,
    /// Appends events: noted in the log and kept in memory.
    Sends,
    /// Changes something or makes work: noted in the log and kept in the store.
    Changes,
}

/// What becomes of a principal who may see some rows only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// The answer holds what they may see.
    Applied,
    /// They are refused: what is shown or done here does not go by rows.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) method: &'static str,
    /// As the router has it.
    pub(crate) path: &'static str,
    /// Any one of them; none = open to everybody.
    pub(crate) needs: &'static [Scope],
    pub(crate) rules: Rules,
    pub(crate) effect: Effect,
}

const fn open(path: &'static str) -> Endpoint {
    Endpoint { method: "GET", path, needs: &[], rules: Rules::Applied, effect: Effect::Reads }
}

const fn shows(path: &'static str, needs: &'static [Scope], rules: Rules) -> Endpoint {
    Endpoint { method: "GET", path, needs, rules, effect: Effect::Reads }
}

/// Questions that are too long for a URL.
const fn asks(path: &'static str, needs: &'static [Scope]) -> Endpoint {
    Endpoint { method: "POST", path, needs, rules: Rules::Applied, effect: Effect::Reads }
}

const fn changes(method: &'static str, path: &'static str, needs: &'static [Scope]) -> Endpoint {
    Endpoint { method, path, needs, rules: Rules::Refused, effect: Effect::Changes }
}

/// An endpoint that is not here asks for `admin`, and fails a test.
pub(crate) const ENDPOINTS: &[Endpoint] = &[
    open("/"),
    open("/docs"),
    open("/docs/docs.css"),
    open("/docs/docs.js"),
    open("/livez"),
    open("/openapi.json"),
    open("/readyz"),
    // Names of metrics and sources, and how much comes in; `http.auth.open_metrics` opens it.
    shows("/metrics", &[MetricsRead], Rules::Refused),
    shows("/prometheus/", &[MetricsRead], Rules::Applied),
    shows("/prometheus/api/v1/label/{name}/values", &[MetricsRead], Rules::Applied),
    shows("/prometheus/api/v1/labels", &[MetricsRead], Rules::Applied),
    asks("/prometheus/api/v1/labels", &[MetricsRead]),
    shows("/prometheus/api/v1/metadata", &[MetricsRead], Rules::Applied),
    shows("/prometheus/api/v1/query", &[MetricsRead], Rules::Applied),
    asks("/prometheus/api/v1/query", &[MetricsRead]),
    shows("/prometheus/api/v1/query_exemplars", &[MetricsRead], Rules::Applied),
    asks("/prometheus/api/v1/query_exemplars", &[MetricsRead]),
    shows("/prometheus/api/v1/query_range", &[MetricsRead], Rules::Applied),
    asks("/prometheus/api/v1/query_range", &[MetricsRead]),
    shows("/prometheus/api/v1/rules", &[MetricsRead], Rules::Applied),
    shows("/prometheus/api/v1/series", &[MetricsRead], Rules::Applied),
    asks("/prometheus/api/v1/series", &[MetricsRead]),
    shows("/prometheus/api/v1/status/buildinfo", &[MetricsRead], Rules::Applied),
    shows("/v1/audit", &[Admin], Rules::Refused),
    shows("/v1/derived", &[MetricsRead], Rules::Applied),
    shows("/v1/derived/{metric}", &[MetricsRead], Rules::Applied),
    changes("PUT", "/v1/derived/{metric}", &[Admin]),
    changes("DELETE", "/v1/derived/{metric}", &[Admin]),
    shows("/v1/freshness", &[MetricsRead], Rules::Applied),
    shows("/v1/freshness/{metric}", &[MetricsRead], Rules::Applied),
    shows("/v1/freshness/{metric}/history", &[MetricsRead], Rules::Applied),
    shows("/v1/jobs", &[RecomputeRun], Rules::Refused),
    shows("/v1/jobs/{id}", &[RecomputeRun], Rules::Refused),
    changes("POST", "/v1/jobs/{id}/cancel", &[RecomputeRun]),
    shows("/v1/jobs/{id}/events", &[RecomputeRun], Rules::Refused),
    shows("/v1/keys", &[Admin], Rules::Refused),
    changes("POST", "/v1/keys", &[Admin]),
    shows("/v1/keys/{id}", &[Admin], Rules::Refused),
    changes("DELETE", "/v1/keys/{id}", &[Admin]),
    changes("POST", "/v1/keys/{id}/rotate", &[Admin]),
    shows("/v1/metrics", &[MetricsRead], Rules::Applied),
    shows("/v1/metrics/{metric}", &[MetricsRead], Rules::Applied),
    changes("PUT", "/v1/metrics/{metric}", &[Admin]),
    changes("DELETE", "/v1/metrics/{metric}", &[Admin]),
    shows("/v1/metrics/{metric}/live", &[MetricsRead], Rules::Applied),
    shows("/v1/metrics/{metric}/query", &[MetricsRead], Rules::Applied),
    changes("POST", "/v1/metrics/{metric}/rollback", &[RecomputeRun]),
    asks("/v1/query", &[MetricsRead]),
    changes("POST", "/v1/recomputes", &[RecomputeRun]),
    shows("/v1/schedule", &[MetricsRead, RecomputeRun], Rules::Refused),
    changes("POST", "/v1/schedule/pause", &[RecomputeRun]),
    changes("POST", "/v1/schedule/resume", &[RecomputeRun]),
    changes("POST", "/v1/schedule/run", &[RecomputeRun]),
    shows("/v1/sources", &[MetricsRead, EventsWrite], Rules::Refused),
    // Whoever sends events has to know their format.
    shows("/v1/sources/{source}", &[MetricsRead, EventsWrite], Rules::Refused),
    changes("PUT", "/v1/sources/{source}", &[Admin]),
    changes("DELETE", "/v1/sources/{source}", &[Admin]),
    shows("/v1/sources/{source}/archive", &[RecomputeRun], Rules::Refused),
    shows("/v1/sources/{source}/epochs", &[RecomputeRun], Rules::Refused),
    changes("POST", "/v1/sources/{source}/erasures", &[Admin]),
    Endpoint {
        method: "POST",
        path: "/v1/sources/{source}/events",
        needs: &[EventsWrite],
        rules: Rules::Refused,
        effect: Effect::Sends,
    },
    asks("/v1/sql", &[SqlRun]),
    Endpoint { method: "DELETE", path: "/v1/sql/{id}", needs: &[SqlRun], rules: Rules::Applied, effect: Effect::Reads },
];

/// What stands for an endpoint, or a method of one, that the table lacks.
static UNKNOWN: Endpoint =
    Endpoint { method: "", path: "", needs: &[Admin], rules: Rules::Refused, effect: Effect::Changes };

/// The endpoint that a request goes to; `HEAD` is a `GET` without its body.
pub(crate) fn find(method: &Method, path: &str) -> &'static Endpoint {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let found = ENDPOINTS.iter().find(|endpoint| endpoint.path == path && endpoint.method == method);
    found.unwrap_or(&UNKNOWN)
}

impl Endpoint {
    pub(crate) fn is_open(&self) -> bool {
        self.needs.is_empty()
    }

    /// # Errors
    /// 403, naming the scope that is missing or saying that rules over rows stand against it.
    pub(crate) fn check(&self, principal: &Principal) -> Result<(), Problem> {
        if !self.is_open() && !self.needs.iter().any(|scope| principal.allows(*scope)) {
            let needs = self.needs();
            let detail = format!("this takes the scope {needs}, which {} has not", principal.id);
            return Err(Problem::forbidden("missing_scope", detail).with("scope", needs));
        }
        if self.rules == Rules::Refused && principal.is_restricted() {
            let detail = format!("{} may see some rows only, and this does not go by rows", principal.id);
            return Err(Problem::forbidden("row_rules", detail));
        }
        Ok(())
    }

    /// `metrics:read or events:write`.
    fn needs(&self) -> String {
        self.needs.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" or ")
    }
}

const BEARER: &str = "bearer";
const BEARER_DESCRIPTION: &str = "An API key (`lam_...`, see `lamina keys`) or a JWT of the configured issuer. Where lamina \
                                  listens on loopback and no key was ever made, none is asked for.";

/// Writes into the document what each operation asks for.
pub(crate) fn describe(api: &mut OpenApi) {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(BEARER_DESCRIPTION)).build();
    let components = api.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in operations(item) {
            let endpoint = find(&method, path);
            if !endpoint.is_open() {
                describe_one(operation, endpoint);
            }
        }
    }
}

fn describe_one(operation: &mut Operation, endpoint: &Endpoint) {
    // Any one of the requirements suffices.
    let requirement = |scope: &Scope| SecurityRequirement::new(BEARER, [scope.as_str()]);
    operation.security = Some(endpoint.needs.iter().map(requirement).collect());
    let needs = endpoint.needs();
    for (status, text) in [
        ("401", "No credentials, or none that are known, current and unrevoked".to_owned()),
        ("403", format!("The principal lacks the scope {needs}, or may not see this")),
        ("429", "Too many requests of this principal; `retry-after` says when to go on".to_owned()),
    ] {
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(Response::new(text)));
    }
}

/// The operations of a path, by method.
pub(crate) fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let all = [
        (Method::GET, &mut item.get),
        (Method::PUT, &mut item.put),
        (Method::POST, &mut item.post),
        (Method::DELETE, &mut item.delete),
        (Method::PATCH, &mut item.patch),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/access.md.
    fn rows() -> Vec<String> {
        let row = |endpoint: &Endpoint| {
            let Endpoint { method, path, rules, effect, .. } = endpoint;
            let needs = if endpoint.is_open() { "open".to_owned() } else { endpoint.needs() };
            let rules = if *rules == Rules::Applied { "applied" } else { "refused" };
            let noted = match effect {
                Effect::Reads => "",
                Effect::Sends => "in memory",
                Effect::Changes => "in the store",
            };
            format!("| `{method} {path}` | {needs} | {rules} | {noted} |")
        };
        ENDPOINTS.iter().map(row).collect()
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let page = include_str!("../../../docs/access.md");
        let of_table = |line: &&str| line.starts_with("| `") && !line.starts_with("| `lamina");
        let documented: Vec<&str> = page.lines().filter(of_table).collect();
        assert_eq!(documented, rows(), "docs/access.md should read:\n{}", rows().join("\n"));
    }

    #[test]
    fn what_is_not_in_the_table_is_the_admins() {
        let unknown = find(&Method::POST, "/v1/new");
        assert_eq!((unknown.needs, unknown.rules), (&[Admin][..], Rules::Refused));
        assert_eq!(find(&Method::HEAD, "/v1/metrics").needs, &[MetricsRead]);
    }
}
