"""Asks every operation of the OpenAPI document something that it can answer, and holds each answer against the document.

contract.rs starts lamina, with a source `hits` and a metric `bytes`, and runs this with schemathesis' Python.
"""

import json
import os
import sys

import schemathesis
from schemathesis.specs.openapi.checks import ignored_auth

URL, KEY = os.environ["LAMINA_URL"], os.environ["LAMINA_KEY"]
HEADERS = {"Authorization": f"Bearer {KEY}"}
DOCUMENT = schemathesis.openapi.from_url(f"{URL}/openapi.json")
METRIC, SOURCE = {"metric": "bytes"}, {"source": "hits"}
HOUR = {"from": "2020-01-01T00:00:00Z", "to": "2020-01-01T01:00:00Z"}
PROMETHEUS = "/prometheus/api/v1"
FORM = "application/x-www-form-urlencoded"
RANGE = {"start": "1577836800", "end": "1577837100"}
# Asked as a stream, and not here; schemathesis itself reads from it.
STREAMS = {("GET", "/v1/metrics/{metric}/live")}

answered = set()


def ask(method, path, expected, /, body=None, media="application/json", headers=None, query=None, **parameters):
    """One request; gives the answer's JSON if it has any."""
    sent = {"body": body, "media_type": media} if body is not None else {}
    case = DOCUMENT[path][method].Case(
        path_parameters=parameters, query=query or {}, headers={**HEADERS, **(headers or {})}, **sent
    )
    response = case.call()
    where = f"{method} {path}"
    if response.status_code != expected:
        sys.exit(f"{where}: {response.status_code} instead of {expected}: {response.text}")
    # It asks without a key each time, and who does that so often is answered 429.
    case.validate_response(response, excluded_checks=[ignored_auth])
    if expected < 300:
        answered.add((method, path))
    if response.headers.get("content-type", [""])[0].startswith("application/json"):
        return json.loads(response.content)
    return None


def health():
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs"]:
        ask("GET", path, 200)


def definitions():
    fields = {"time": "timestamp", "id": "string", "site": "string", "size": "int64", "price": "decimal(12,3)"}
    source = {"topic": "contract", "format": "json", "time": "time", "fields": fields}
    aggregates = ["count", "sum", "avg", "first", "last", "distinct(id)", "quantiles", "top(site, 3)"]
    metric = {"source": "other", "value": "price", "dimensions": ["site"], "aggregates": aggregates, "grain": "1m"}
    for path, name, body in [
        ("/v1/sources/{source}", {"source": "other"}, source),
        ("/v1/metrics/{metric}", {"metric": "prices"}, metric),
        ("/v1/derived/{metric}", {"metric": "mean"}, {"expression": "sum(bytes) / count(bytes)"}),
    ]:
        ask("PUT", path, 201, body=body, **name)
        ask("PUT", path, 200, body=body, **name)
        ask("PUT", path, 400, body={"grain": 1}, **name)
        ask("GET", path, 200, **name)
        ask("GET", path.rpartition("/")[0], 200)
    ask("GET", "/v1/metrics/{metric}", 200, **METRIC)
    ask("GET", "/v1/metrics/{metric}", 404, metric="nope")


def events():
    lines = [{"time": "2020-01-01T00:02:00Z", "id": f"e{n}", "site": "ab"[n % 2], "price": 1.25 * n} for n in range(20)]
    wrong = {"time": "never"}
    sent = ask("POST", "/v1/sources/{source}/events", 202, body=[*lines, wrong], source="other")
    assert (sent["accepted"], len(sent["rejected"])) == (20, 1), sent
    return sent["position"]


def queries(position):
    path = "/v1/metrics/{metric}/query"
    for query in [
        {},
        {"step": "1m", "group_by": "site", "order_by": "sum desc", "limit": 1},
        {"step": "1m", "fill": "null", "numbers": "string", "tz": "Europe/Berlin"},
        {"step": "1m", "compare": "1d", "aggregate": "count,rate(count),p99.9"},
        {"step": "1m", "page_size": 2},
        {"layer": "batch", "where": "site = 'a'"},
    ]:
        ask("GET", path, 200, query={**HOUR, **query}, **METRIC)
    ask("GET", path, 200, query={**HOUR, "step": "1m"}, metric="mean")
    for numbers in ["number", "string"]:
        waiting = {"at_least": position, "wait": "30s", "numbers": numbers, "group_by": "site"}
        answer = ask("GET", path, 200, query={**HOUR, **waiting}, metric="prices")
        assert len(answer["series"]) == 2 and answer["series"][0]["points"][0]["count"] == 10, answer
    for format in ["application/x-ndjson", "text/csv"]:
        ask("GET", path, 200, query=HOUR, headers={"accept": format}, **METRIC)
    ask("GET", path, 400, query={**HOUR, "step": "7s"}, **METRIC)
    ask("GET", path, 406, query=HOUR, headers={"accept": "image/png"}, **METRIC)
    several = ask("POST", "/v1/query", 200, body=[{"metric": "bytes", **HOUR}, {"metric": "nope", **HOUR}])
    assert [one["status"] for one in several["results"]] == [200, 404], several
    sql = "SELECT site, sum(bytes_count) AS n FROM bytes WHERE time >= '2020-01-01T00:00:00Z' GROUP BY site"
    ask("POST", "/v1/sql", 200, body={"query": sql})
    ask("POST", "/v1/sql", 400, body={"query": "SELECT"})
    ask("DELETE", "/v1/sql/{id}", 404, id="nope")


def prometheus():
    for name, query in [
        ("query", {"query": "sum by (site) (increase(bytes_count[5m]))", "time": RANGE["end"]}),
        ("query_range", {"query": "bytes_count", "step": "60", **RANGE}),
        ("labels", RANGE),
        ("series", {"match[]": "bytes_count", **RANGE}),
        ("query_exemplars", {}),
    ]:
        ask("GET", f"{PROMETHEUS}/{name}", 200, query=query)
        form = {"body": query, "media": FORM} if query else {}
        ask("POST", f"{PROMETHEUS}/{name}", 200, **form)
    ask("GET", f"{PROMETHEUS}/query", 400, query={"query": "sum("})
    ask("GET", f"{PROMETHEUS}/query", 422, query={"query": "deriv(bytes_max[5m])"})
    ask("GET", f"{PROMETHEUS}/label/{{name}}/values", 200, query=RANGE, name="site")
    for name in ["metadata", "rules", "status/buildinfo"]:
        ask("GET", f"{PROMETHEUS}/{name}", 200)


def jobs():
    job = ask("POST", "/v1/recomputes", 202, body={"metrics": ["bytes"], "reason": "contract"})
    ask("GET", "/v1/jobs/{id}/events", 200, id=job["id"])
    ask("GET", "/v1/jobs/{id}", 200, id=job["id"])
    ask("POST", "/v1/jobs/{id}/cancel", 409, id=job["id"])
    ask("GET", "/v1/jobs", 200, query={"limit": 1})
    ask("POST", "/v1/metrics/{metric}/rollback", 202, body={"reason": "contract"}, **METRIC)
    queued = ask("POST", "/v1/sources/{source}/erasures", 202, body={"where": "site = 'z'", "dry_run": True}, **SOURCE)
    ask("POST", "/v1/jobs/{id}/cancel", 202, id=queued["id"])
    ask("GET", "/v1/sources/{source}/archive", 200, **SOURCE)
    ask("GET", "/v1/sources/{source}/epochs", 200, **SOURCE)
    for name in ["pause", "resume"]:
        ask("POST", f"/v1/schedule/{name}", 200, **({"body": {}} if name == "pause" else {}))
    ask("POST", "/v1/schedule/run", 202)
    ask("GET", "/v1/schedule", 200)
    ask("GET", "/v1/freshness", 200)
    ask("GET", "/v1/freshness/{metric}", 200, **METRIC)
    ask("GET", "/v1/freshness/{metric}/history", 200, **METRIC)


def access():
    body = {"name": "one of many", "scopes": ["metrics:read"], "rows": {"site": ["a"]}}
    key = ask("POST", "/v1/keys", 201, body=body)
    ask("GET", "/v1/keys", 200)
    ask("GET", "/v1/keys/{id}", 200, id=key["id"])
    ask("POST", "/v1/keys/{id}/rotate", 200, body={"overlap": "1h"}, id=key["id"])
    ask("DELETE", "/v1/keys/{id}", 200, id=key["id"])
    ask("GET", "/v1/audit", 200)


def removal():
    ask("DELETE", "/v1/derived/{metric}", 204, metric="mean")
    ask("DELETE", "/v1/metrics/{metric}", 204, metric="prices")
    ask("DELETE", "/v1/sources/{source}", 204, source="other")
    ask("DELETE", "/v1/metrics/{metric}", 409, **METRIC)


def main():
    health()
    definitions()
    queries(events())
    prometheus()
    jobs()
    access()
    removal()
    every = {(operation.method.upper(), operation.path) for operation in map(lambda one: one.ok(), DOCUMENT.get_all_operations())}
    # Nothing is under way that it could cancel.
    missed = every - answered - STREAMS - {("DELETE", "/v1/sql/{id}")}
    if missed:
        sys.exit(f"no answer of these was held against the document: {sorted(missed)}")
    print(f"{len(answered)} operations answered as the document says")


main()
