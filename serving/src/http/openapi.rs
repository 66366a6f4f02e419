//! What holds for every operation, written into the OpenAPI document once instead of at each: problems, request ids, limits.

use axum::http::Method;
use utoipa::openapi::{
    Content, HeaderBuilder, ObjectBuilder, OpenApi, Ref, RefOr, Required, Response, Type,
    path::{Operation, ParameterIn},
    schema::{AdditionalProperties, Schema, SchemaType},
};

use crate::{auth::endpoints, problem::PROBLEM_JSON};

const PROBLEM: &str = "Problem";
const FAILURE: &str = "PrometheusFailure";
/// Below it errors of queries have Prometheus' shape.
const PROMETHEUS: &str = "/prometheus/";
/// Paths where nothing is made that could be found.
const NOWHERE: [&str; 2] = ["/v1/sources/{source}/events", "/v1/jobs/{id}/cancel"];
/// Paths below which a body may be left out; so it may where all of a form can stand in the query string.
const BODY_OR_NONE: [&str; 5] =
    ["/v1/recomputes", "/v1/metrics/{metric}/rollback", "/v1/keys/{id}/rotate", "/v1/schedule/pause", PROMETHEUS];

/// Completes the document of all routes.
pub(super) fn complete(api: &mut OpenApi) {
    endpoints::describe(api);
    let schemas = &mut api.components.get_or_insert_default().schemas;
    schemas.insert(PROBLEM.to_owned(), problem().into());
    schemas.insert(FAILURE.to_owned(), failure().into());
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in endpoints::operations(item) {
            complete_one(path, &method, operation);
        }
    }
}

fn complete_one(path: &str, method: &Method, operation: &mut Operation) {
    let is_open = endpoints::find(method, path).is_open();
    let (mut in_path, mut in_query, mut once) = (false, false, false);
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        in_path |= parameter.parameter_in == ParameterIn::Path;
        in_query |= parameter.parameter_in == ParameterIn::Query;
        once |= parameter.name == "idempotency-key";
        if let Some(schema) = &mut parameter.schema {
            without_null(schema);
        }
    }
    let has_body = operation.request_body.is_some();
    if let Some(RefOr::T(body)) = &mut operation.request_body
        && BODY_OR_NONE.iter().any(|prefix| path.starts_with(prefix))
    {
        body.required = Some(Required::False);
    }
    let statuses = [
        ("400", in_path || in_query || has_body, "The request cannot be understood; the detail says where"),
        ("404", in_path, "There is no such thing"),
        ("409", once, "A request with this idempotency key is under way"),
        ("422", once, "This idempotency key was used with another body"),
        ("408", has_body, "The body did not arrive in time"),
        ("413", has_body, "The body is too large"),
        ("414", true, "Path and query string are too long"),
        ("415", has_body, "Not a content type or encoding that is taken here"),
        ("503", !is_open, "Overloaded, or the store or the log does not answer; `retry-after` says when to come back"),
    ];
    for (status, _, text) in statuses.into_iter().filter(|(_, applies, _)| *applies) {
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(Response::new(text)));
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            complete_response(path, status, response);
        }
    }
}

fn complete_response(path: &str, status: &str, response: &mut Response) {
    let mut header = |name: &str, kind: Type, text: &str| {
        let schema = ObjectBuilder::new().schema_type(kind).build();
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(text)).build();
        response.headers.entry(name.to_owned()).or_insert_with(|| RefOr::T(header));
    };
    header("x-request-id", Type::String, "The request's id, as lamina's log has it");
    match status {
        "401" => header("www-authenticate", Type::String, "The challenge of RFC 6750"),
        "429" | "503" => header("retry-after", Type::Integer, "Seconds after which to come back"),
        "201" | "202" if !NOWHERE.contains(&path) => {
            header("location", Type::String, "Where what was made is found");
        }
        _ => {}
    }
    if status.starts_with(['4', '5']) {
        let mut body = |media: &str, name: &str| {
            let schema = Ref::from_schema_name(name);
            response.content.entry(media.to_owned()).or_insert_with(|| Content::new(Some(schema)).into());
        };
        body(PROBLEM_JSON, PROBLEM);
        if path.starts_with(PROMETHEUS) && ["400", "422", "503"].contains(&status) {
            body("application/json", FAILURE);
        }
    }
}

/// A parameter that may be left out cannot be null: query strings and headers have no null.
fn without_null(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(object)) => not_null(&mut object.schema_type),
        RefOr::T(Schema::Array(array)) => not_null(&mut array.schema_type),
        RefOr::T(Schema::OneOf(one_of)) => {
            one_of.items.retain(|item| !is_null(item));
            if let [only] = one_of.items.as_slice() {
                *schema = only.clone();
            }
        }
        _ => {}
    }
}

fn not_null(types: &mut SchemaType) {
    if let SchemaType::Array(all) = types
        && let [only, Type::Null] | [Type::Null, only] = all.as_slice()
    {
        *types = SchemaType::Type(only.clone());
    }
}

fn is_null(schema: &RefOr<Schema>) -> bool {
    matches!(schema, RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null))
}

/// RFC 9457. Some have further members, such as `parameter`, `errors` or `available`.
fn problem() -> Schema {
    let text =
        |description: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(description)).build();
    let status = ObjectBuilder::new().schema_type(Type::Integer).description(Some("The HTTP status")).build();
    let members = [
        ("type", text("`urn:lamina:problem:` and the code")),
        ("title", text("The code for people")),
        ("status", status),
        ("detail", text("What is wrong, and what would be right")),
        ("code", text("For programs; never changes its meaning")),
        ("request_id", text("The request's id, as lamina's log has it")),
    ];
    let object = ObjectBuilder::new().schema_type(Type::Object).description(Some(
        "An error (RFC 9457). Some have further members, such as `parameter`, `errors` or `available`.",
    ));
    let object = object.additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(true)));
    members.into_iter().fold(object, |object, (name, schema)| object.property(name, schema).required(name)).into()
}

/// An error as clients of Prometheus read it.
fn failure() -> Schema {
    let text = |allowed: Option<&[&str]>| {
        let allowed = allowed.map(|allowed| allowed.iter().map(|one| (*one).to_owned()));
        ObjectBuilder::new().schema_type(Type::String).enum_values(allowed).build()
    };
    let kinds = ["bad_data", "execution", "timeout", "unavailable", "internal"];
    let members = [("status", text(Some(&["error"]))), ("errorType", text(Some(&kinds))), ("error", text(None))];
    let object = ObjectBuilder::new().schema_type(Type::Object).description(Some("An error as Prometheus has it"));
    members.into_iter().fold(object, |object, (name, schema)| object.property(name, schema).required(name)).into()
}
