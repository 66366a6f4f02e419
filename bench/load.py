#!/usr/bin/env python3
"""Loads lamina's queries on a real Kafka and Cassandra with oha, beside the same reads straight from Cassandra. See README.md."""

import argparse
import concurrent.futures
import datetime
import itertools
import json
import math
import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid

import backends
import machine
from http_client import Client, Refused
from served import HERE, Lamina, free_port

HOSTS, MINUTE, HOUR = 1_500, 60_000, 3_600_000
# Of one load.
MOST_URLS = 20_000
OVERLOAD_CONNECTIONS = 1_000
EVENTS_PATH = "/v1/sources/hosts/events"
RESULTS = HERE / "results"
# Of a rate that is held: this part of its requests is answered within so many ms, and none is refused.
HELD_MS, HELD_PART = 20, 0.99


def main():
    options = parse()
    RESULTS.mkdir(exist_ok=True)
    run = f"bench_load_{datetime.datetime.now():%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}"
    # A whole day that ended with the last whole hour.
    to = int(time.time() * 1000) // HOUR * HOUR
    since = to - options.hours * HOUR
    result = {"run": run, "machine": machine.description(options.profile), "options": vars(options), "load_before": machine.load()}
    folder = RESULTS / f"{run}.run"
    folder.mkdir()
    lamina = beside = plain = None
    try:
        lamina = Lamina(options, folder, True, run, definitions="load.toml")
        lamina.wait_until_ready()
        say(f"{HOSTS * options.hours * 60:,} events into lamina")
        fill(options, lamina, since, to)
        beside = lamina.beside("serving")
        beside.wait_until_ready()
        say("the same rows into plain tables")
        plain = Plain(options, f"{run}_plain", since)
        targets = {
            "plain Cassandra": Target(plain.port, plain.url, {}),
            "lamina, warm": Target(lamina.port, lamina_url, {}),
            # Ranges that hardly anybody asked for before: what batch has is read from the store each time.
            "lamina, cold": Target(beside.port, lamina_url, {"point": range(0, 360), "hosts": range(0, options.hours // 2)}),
        }
        result["reads"] = {}
        for kind in ("point", "hosts"):
            same(targets, kind, since, to)
            result["reads"][kind] = {}
            for name, target in targets.items():
                result["reads"][kind][name] = measure(options, name, target, kind, since, to)
        result["overload"] = overload(options, lamina, beside, result["reads"]["point"]["lamina, warm"]["held_per_s"], since, to)
        result["peak_resident_mib"] = machine.peak_resident_mib(lamina.pid)
    finally:
        path = RESULTS / f"{run}.json"
        path.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
        say(f"written to {path}")
        if "reads" in result:
            print(table(result), flush=True)
        for each in filter(None, (plain, beside, lamina)):
            try:
                each.close()
            except OSError as error:
                say(f"not tidied up: {error}")


def parse():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "debug"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oha", required=True, help="the load tool: deploy/local/oha.sh prints where it is")
    parser.add_argument("--lamina", default=str(target / "lamina"), help="the binary")
    parser.add_argument("--plain", default=str(target / "plain"), help="the binary of bench/plain")
    parser.add_argument("--profile", default="dev (opt-level 1)", help="how they were built")
    parser.add_argument("--kafka", default=os.environ.get("LAMINA_TEST_KAFKA", "127.0.0.1:19092"))
    parser.add_argument("--cassandra", default=os.environ.get("LAMINA_TEST_CASSANDRA", "127.0.0.1:19042"))
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--rate", type=int, default=200, help="requests/s of the steady load")
    parser.add_argument("--seconds", type=int, default=30, help="of each steady load")
    parser.add_argument("--trial-seconds", type=int, default=8, help="of each rate that is tried")
    parser.add_argument("--overload-seconds", type=int, default=60)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    for binary in (options.oha, options.lamina, options.plain):
        if not os.access(binary, os.X_OK):
            parser.error(f"{binary} is not there: `make load` builds it")
    return options


def reading(host, minute):
    """What a host reports in a minute; bench/plain has the same formula."""
    return (host * 31 + minute * 17) % 1_000


def fill(options, lamina, since, to):
    """All minutes but those of the last hour are covered by batch, the others are speed's."""
    def send(minutes):
        client, token = lamina.client(), None
        for minute in minutes:
            at = since // MINUTE + minute
            lines = (f'{{"ts":{at * MINUTE + host % 60 * 1000},"host":"h{host:04}","value":{reading(host, at)}}}' for host in range(HOSTS))
            token = client.post(EVENTS_PATH, "\n".join(lines))["position"]
        return token

    minutes = options.hours * 60
    for part in (range(0, minutes - 60), range(minutes - 60, minutes)):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            tokens = list(pool.map(send, [part[start::4] for start in range(4)]))
        for token in filter(None, tokens):
            asked = {"from": since, "to": to, "aggregate": "count,sum", "at_least": token, "wait": "60s"}
            answer = json.loads(lamina.client().get("/v1/metrics/load/query", asked))
        if part.stop < minutes:
            # What is open is sealed by the stop; then batch covers it.
            lamina.stop()
            lamina.start()
            lamina.wait_until_ready()
            recompute(lamina)
    point = answer["series"][0]["points"][0]
    sent = [HOSTS * minutes, sum(reading(host, since // MINUTE + minute) for host in range(HOSTS) for minute in range(minutes))]
    if [point["count"], point["sum"]] != sent:
        sys.exit(f"lamina counted {point}, and {sent} were sent")


def recompute(lamina):
    client = lamina.client()
    job = client.post("/v1/recomputes", json.dumps({"reason": "bench"}), "application/json")
    while (state := json.loads(client.get(f"/v1/jobs/{job['id']}"))["state"]) != "succeeded":
        if state in ("failed", "cancelled"):
            sys.exit(f"the recompute ended as {state}")
        time.sleep(0.2)


class Plain:
    """bench/plain: tables of their own, and a server that reads them."""

    def __init__(self, options, keyspace, since):
        self.options, self.keyspace, self.port = options, keyspace, free_port()
        command = [options.plain, "--cassandra", options.cassandra, "--keyspace", keyspace]
        subprocess.run([*command, "fill", "--hosts", str(HOSTS), "--from", str(since), "--hours", str(options.hours)], check=True)
        self.process = subprocess.Popen([*command, "serve", "--port", str(self.port)])
        until = time.monotonic() + 20
        while True:
            try:
                return Client(self.port).get("/point", {"host": "h0000", "from": since, "to": since + MINUTE}) and None
            except (OSError, Refused):
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    @staticmethod
    def url(kind, host, since, to):
        return f"/{kind}?" + urllib.parse.urlencode({"host": f"h{host:04}", "from": since, "to": to})

    def close(self):
        self.process.kill()
        self.process.wait()
        backends.drop_keyspace(self.options.cassandra, self.keyspace)


def lamina_url(kind, host, since, to):
    asked = {"from": since, "to": to, "aggregate": "count,sum,min,max"}
    asked |= {"where": f"host = 'h{host:04}'", "step": "1m"} if kind == "point" else {"group_by": "host"}
    return "/v1/metrics/load/query?" + urllib.parse.urlencode(asked)


class Target:
    """Where to ask, and by how many minutes (of all hosts: hours) ranges begin later."""

    def __init__(self, port, path, later):
        self.port, self.path, self.later = port, path, later

    def urls(self, kind, since, to):
        """A point read of each host; of all hosts there is one question. Ranges that begin later end later, too."""
        hosts = range(HOSTS) if kind == "point" else [0]
        unit = MINUTE if kind == "point" else HOUR
        starts = [since + later * unit for later in self.later.get(kind, [0])]
        paths = (self.path(kind, host, start, to) for host in hosts for start in starts)
        return random.sample(urls := [f"http://127.0.0.1:{self.port}{path}" for path in paths], min(len(urls), MOST_URLS))


def same(targets, kind, since, to):
    """All targets answer alike, before a time counts."""
    for host in (0, 7, HOSTS - 1) if kind == "point" else (0,):
        answers = {name: values(json.loads(Client(target.port).get(target.path(kind, host, since, to)))) for name, target in targets.items()}
        if len({json.dumps(answer) for answer in answers.values()}) != 1:
            sys.exit(f"the answers to {kind} of host {host} differ: { {name: answer[:2] for name, answer in answers.items()} }")


def values(answer):
    series = answer["series"] if isinstance(answer, dict) else answer
    return sorted([point[name] for name in ("count", "sum", "min", "max")] for each in series for point in each["points"])


def measure(options, name, target, kind, since, to):
    urls = target.urls(kind, since, to)
    say(f"{kind}: {name}: steady")
    # Each once, so that what can be warm is.
    oha(options, urls, min(15, max(1, len(urls) // 100)), options.rate)
    steady = oha(options, urls, options.seconds, options.rate)
    say(f"{kind}: {name}: the highest rate")
    held, tried = highest(options, urls)
    return {"steady": summary(steady, options.seconds), "held_per_s": held, "tried": tried}


def highest(options, urls):
    """The highest rate that is held, to an eighth."""
    tried = {}

    def holds(rate):
        found = summary(oha(options, urls, options.trial_seconds, rate), options.trial_seconds)
        tried[rate] = found
        return found["refused"] == 0 and found["held_part"] >= HELD_PART and found["per_s"] >= 0.95 * rate

    low = 0
    for rate in itertools.chain((2, 5, 10, 25, 50), (100 * 2**n for n in range(8))):
        if not holds(rate):
            break
        low = rate
    high = rate
    while low and high - low > low / 8:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, tried


def oha(options, urls, seconds, rate):
    """(ms since the request was due, status) of every request; status 0 if there was no answer."""
    with tempfile.TemporaryDirectory() as folder:
        listed, database = pathlib.Path(folder) / "urls", pathlib.Path(folder) / "requests.db"
        listed.write_text("\n".join(urls) + "\n", encoding="utf-8")
        command = [options.oha, "--no-tui", "--output-format", "quiet", "--disable-compression", "--latency-correction"]
        command += ["-q", str(rate), "-c", str(options.connections), "-z", f"{seconds}s", "--wait-ongoing-requests-after-deadline"]
        command += ["--db-url", str(database), "--urls-from-file", str(listed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with sqlite3.connect(database) as found:
            rows = found.execute("SELECT start_latency_correction, start, end, status FROM oha").fetchall()
    return [((end - (due or start)) * 1000, int(status)) for due, start, end, status in rows]


def summary(requests, seconds):
    admitted = sorted(ms for ms, status in requests if status == 200)
    refused = sorted(ms for ms, status in requests if status != 200)
    return {
        "requests": len(requests), "per_s": round(len(admitted) / seconds, 1), "refused": len(refused),
        "p50_ms": quantile(admitted, 0.5), "p99_ms": quantile(admitted, 0.99), "max_ms": quantile(admitted, 1),
        "refused_p99_ms": quantile(refused, 0.99), "refused_max_ms": quantile(refused, 1),
        "held_part": round(sum(ms <= HELD_MS for ms in admitted) / len(requests), 4) if requests else 0,
    }


def quantile(ordered, part):
    return round(ordered[max(0, math.ceil(part * len(ordered)) - 1)], 2) if ordered else None


def overload(options, lamina, beside, held, since, to):
    """Ten times the rate that is held; meanwhile events come in through another process, and are asked for there."""
    rate = 10 * max(held, 1)
    say(f"overload: {rate} requests/s")
    lags, stop = [], threading.Event()

    def feed():
        client = beside.client()
        for number in itertools.count():
            if stop.wait(0.5):
                return
            at = to + number * 500
            lines = (f'{{"ts":{at},"host":"h{host:04}","value":1}}' for host in range(500))
            began = time.monotonic()
            try:
                token = client.post(EVENTS_PATH, "\n".join(lines))["position"]
                client.get("/v1/metrics/load/query", {"from": to, "aggregate": "count", "at_least": token, "wait": "60s"})
                lags.append(time.monotonic() - began)
            except (OSError, Refused) as error:
                lags.append(None)
                say(f"while overloaded: {error}")

    feeding = threading.Thread(target=feed)
    feeding.start()
    # Each on a connection of its own: what waits, waits in lamina.
    options.connections = OVERLOAD_CONNECTIONS
    requests = oha(options, lamina_urls(lamina, since, to), options.overload_seconds, rate)
    stop.set()
    feeding.join()
    seen = sorted(lag for lag in lags if lag is not None)
    return {"rate": rate, **summary(requests, options.overload_seconds), "status": counts(requests),
            "lag_s": {"looks": len(lags), "failed": lags.count(None), "p50": quantile(seen, 0.5), "max": quantile(seen, 1)}}


def lamina_urls(lamina, since, to):
    return Target(lamina.port, lamina_url, {}).urls("point", since, to)


def counts(requests):
    found = {}
    for _, status in requests:
        found[status] = found.get(status, 0) + 1
    return found


def table(result):
    lines = [f"\n{'read':8}{'from':18}{'p50 ms':>9}{'p99 ms':>9}{'of plain':>10}{'held/s':>9}{'of plain':>10}"]
    for kind, targets in result["reads"].items():
        limit = targets.get("plain Cassandra")
        for name, found in targets.items():
            steady = found["steady"]
            ratio = lambda own, other: f"{own / other:.2f}" if own and other else "-"
            lines.append(
                f"{kind:8}{name:18}{steady['p50_ms'] or 0:9}{steady['p99_ms'] or 0:9}{ratio(steady['p99_ms'], limit['steady']['p99_ms']):>10}"
                f"{found['held_per_s']:9}{ratio(found['held_per_s'], limit['held_per_s']):>10}"
            )
    if not (over := result.get("overload")):
        return "\n".join(lines)
    lines.append(
        f"\nten times the rate ({over['rate']}/s): {over['per_s']}/s admitted, p99 {over['p99_ms']} ms, at most {over['max_ms']} ms; "
        f"{over['refused']} refused, p99 {over['refused_p99_ms']} ms, at most {over['refused_max_ms']} ms; events visible after at most {over['lag_s']['max']} s"
    )
    return "\n".join(lines)


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
