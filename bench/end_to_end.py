#!/usr/bin/env python3
"""Measures a running lamina from outside: throughput, freshness, queries, memory. See README.md."""

import argparse
import concurrent.futures
import datetime
import json
import math
import os
import pathlib
import random
import shutil
import sys
import time
import uuid

import machine
import workload
from http_client import Refused
from senders import Senders, Sink
from served import HERE, METRIC, SOURCE, Lamina

EVENTS_PATH = f"/v1/sources/{SOURCE}/events"
QUERY_PATH = f"/v1/metrics/{METRIC}/query"
TOKENS_AT_ONCE = 32
# Sent and awaited before anything is timed: the first event makes the topic, which the speed layer looks for every 2 s.
FIRST_EVENTS = 1_000
RESULTS = HERE / "results"


def main():
    options = parse()
    RESULTS.mkdir(exist_ok=True)
    run = f"bench_{datetime.datetime.now():%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}"
    result = {"run": run, "machine": machine.description(options.profile), "options": vars(options), "parts": {}}
    say(f"making {options.events:,} events")
    senders = Senders(options.seed, options.events, options.body_events, options.senders)
    result["workload"] = {
        "events": options.events, "sum": senders.sum, "bytes": senders.bytes,
        "generate_cpu_s": round(senders.make_seconds, 2),
    }
    right = True
    try:
        for part in options.parts.split(","):
            result["parts"][part] = measure(options, senders, part, f"{run}_{part[:3]}")
            right &= result["parts"][part]["exact"]
    finally:
        senders.close()
        path = RESULTS / f"{run}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        say(f"written to {path}")
    print(table(result))
    if not right:
        sys.exit("lamina's totals are not what was sent: the figures above are worth nothing")


def parse():
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lamina", default=str(pathlib.Path(target) / "debug" / "lamina"), help="the binary")
    parser.add_argument("--profile", help="how it was built; taken from its folder's name if left out")
    parser.add_argument("--parts", default="embedded" if "LAMINA_SKIP_REAL" in os.environ else "embedded,real")
    parser.add_argument("--kafka", default=os.environ.get("LAMINA_TEST_KAFKA", "127.0.0.1:19092"))
    parser.add_argument("--cassandra", default=os.environ.get("LAMINA_TEST_CASSANDRA", "127.0.0.1:19042"))
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--body-events", type=int, default=5_000)
    parser.add_argument("--senders", type=int, default=4, help="processes that send")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steady-rate", type=int, default=1_000, help="events/s while freshness is measured")
    parser.add_argument("--steady-seconds", type=int, default=30)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20, help="queries of each kind that are not counted")
    parser.add_argument("--timeout", type=int, default=300, help="seconds until all must be visible")
    parser.add_argument("--keep", action="store_true", help="keep the folder with lamina's data and log")
    options = parser.parse_args()
    if not os.access(options.lamina, os.X_OK):
        parser.error(f"{options.lamina} is not there: cargo build, or give --lamina PATH")
    if unknown := set(options.parts.split(",")) - {"embedded", "real"}:
        parser.error(f"--parts takes embedded and real, not {', '.join(sorted(unknown))}")
    built = pathlib.Path(options.lamina).resolve().parent.name
    options.profile = options.profile or {"debug": "dev (opt-level 1)", "release": "release"}.get(built, "unknown")
    return options


def measure(options, senders, part, name):
    """All figures of one kind of backends, on a fresh log and store."""
    folder = RESULTS / f"{name}.run"
    folder.mkdir()
    say(f"{part}: sender alone")
    figures = {"load_before": machine.load(), "sender_alone": sender_alone(senders, options.events)}
    real = part == "real"
    lamina = Lamina(options, folder, real, name)
    watched = {"lamina": lamina.pid}
    if real:
        watched |= {"kafka": backend(options.kafka), "cassandra": backend(options.cassandra)}
    try:
        lamina.wait_until_ready()
        figures["idle_resident_mib"] = machine.peak_resident_mib(lamina.pid)
        first_sum = first(options, lamina)
        say(f"{part}: throughput")
        with Usage(watched, senders) as usage:
            figures["throughput"] = throughput(options, senders, lamina, first_sum)
        figures["throughput"] |= usage.used
        figures["throughput"]["peak_resident_mib"] = machine.peak_resident_mib(lamina.pid)
        ratio = figures["throughput"]["acknowledged_per_s"] / figures["sender_alone"]["per_s"]
        figures["throughput"]["of_sender_alone"] = round(ratio, 3)
        say(f"{part}: freshness")
        with Usage(watched, senders) as usage:
            steady, steady_sum = freshness(options, lamina)
        figures["freshness"] = steady | usage.used
        say(f"{part}: queries")
        sent = [options.events + FIRST_EVENTS + steady["events"], senders.sum + first_sum + steady_sum]
        with Usage(watched, senders) as usage:
            figures["queries"] = queries(options, lamina)
        figures["queries"] |= usage.used
        counted = total(lamina.client(), options)
        figures["total"] = {"sent": sent, "counted": counted}
        figures["exact"] = counted == sent and figures["throughput"]["exact"]
        figures["peak_resident_mib"] = machine.peak_resident_mib(lamina.pid)
        figures["cpu_s"] = machine.cpu_seconds(lamina.pid)
        figures["load_after"] = machine.load()
    finally:
        figures["stop_s"] = round(lamina.close(), 2)
        if not options.keep and "exact" in figures:
            shutil.rmtree(folder)
    return figures


class Usage:
    """CPU seconds within a `with`: of the processes watched, of the senders and ourselves, and of all others."""

    def __init__(self, watched, senders):
        self.watched, self.own = watched, [os.getpid(), *senders.pids()]

    def _now(self):
        now = {name: pid and machine.cpu_seconds(pid) for name, pid in self.watched.items()}
        own = [machine.cpu_seconds(pid) for pid in self.own]
        return now | {"bench": None if None in own else sum(own), "all": machine.busy_seconds()}

    def __enter__(self):
        self.before = self._now()
        return self

    def __exit__(self, *_):
        after = self._now()
        used = {
            name: None if None in (before, after[name]) else round(after[name] - before, 2)
            for name, before in self.before.items()
        }
        everything = used.pop("all")
        if everything is not None:
            used["others"] = round(max(0, everything - sum(each or 0 for each in used.values())), 2)
        self.used = {"cpu_s": used}


def backend(address):
    return machine.listener(int(address.rsplit(":", 1)[1]))


def sender_alone(senders, events):
    """The same bodies, sent by the same processes to a server that throws them away."""
    sink = Sink()
    try:
        sent = senders.send(sink.port, EVENTS_PATH)
    finally:
        sink.close()
    took = max(end for _, end, _ in sent) - min(begin for begin, _, _ in sent)
    return {"seconds": round(took, 3), "per_s": round(events / took)}


def first(options, lamina):
    data, subtotal = workload.body(options.seed, options.events, FIRST_EVENTS)
    token = lamina.client().post(EVENTS_PATH, data)["position"]
    see(lamina.client(), options, [token], time.monotonic() + options.timeout)
    return subtotal


def throughput(options, senders, lamina, first_sum):
    sent = senders.send(lamina.port, EVENTS_PATH)
    began = min(begin for begin, _, _ in sent)
    acknowledged = max(end for _, end, _ in sent) - began
    client = lamina.client()
    # The last tokens first: once those are visible, the others nearly always are.
    tokens = [token for _, _, token in sorted(sent, key=lambda each: each[1], reverse=True)]
    for at in range(0, len(tokens), TOKENS_AT_ONCE):
        counted = see(client, options, tokens[at:at + TOKENS_AT_ONCE], began + options.timeout)
    visible = time.monotonic() - began
    expected = [options.events + FIRST_EVENTS, senders.sum + first_sum]
    return {
        "acknowledged_s": round(acknowledged, 3), "acknowledged_per_s": round(options.events / acknowledged),
        "visible_s": round(visible, 3), "visible_per_s": round(options.events / visible),
        "request_ms": spread([end - begin for begin, end, _ in sent]),
        "sent": expected, "counted": counted, "exact": counted == expected,
    }


def see(client, options, tokens, until):
    """Count and sum of everything, once the tokens are visible."""
    while True:
        try:
            return total(client, options, [("at_least", token) for token in tokens] + [("wait", "60s")])
        except Refused as refused:
            if " 504 " not in str(refused) or time.monotonic() > until:
                raise


def time_range(options):
    """That of every event of the run."""
    return workload.time_range(options.events + FIRST_EVENTS + options.steady_rate * options.steady_seconds)


def total(client, options, more=()):
    begin, end = time_range(options)
    asked = [("from", begin), ("to", end), ("aggregate", "count,sum"), *more]
    answer = json.loads(client.get(QUERY_PATH, asked))
    if not answer["meta"]["complete"]:
        raise RuntimeError(f"the answer is not complete: {answer['meta']}")
    points = [point for series in answer["series"] for point in series["points"]]
    return [sum(point["count"] for point in points), sum(point["sum"] for point in points)]


def freshness(options, lamina):
    """Bodies at a steady rate; of each, the time from its acknowledgement to the first answer that counts it.

    The times of sending are fixed beforehand: a slow answer does not thin out what follows.
    """
    per_body = max(1, options.steady_rate // 10)
    bodies = options.steady_rate * options.steady_seconds // per_body
    begin = options.events + FIRST_EVENTS
    made = [workload.body(options.seed, begin + body * per_body, per_body) for body in range(bodies)]
    end = time_range(options)[1]
    began = time.monotonic() + 0.5

    def one(body):
        due = began + body * per_body / options.steady_rate
        time.sleep(max(0, due - time.monotonic()))
        # A connection of its own: lamina closes those that are idle for some seconds.
        client = lamina.client()
        client.connection.connect()
        sent = time.monotonic()
        token = client.post(EVENTS_PATH, made[body][0])["position"]
        acknowledged = time.monotonic()
        asked = [("from", end - 60_000), ("to", end), ("aggregate", "count"), ("at_least", token), ("wait", "60s")]
        client.get(QUERY_PATH, asked)
        return sent - due, acknowledged - sent, time.monotonic() - acknowledged

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        late, acknowledge, visible = zip(*pool.map(one, range(bodies)))
    figures = {
        "events": bodies * per_body, "bodies": bodies, "sent_late_ms": spread(late),
        "acknowledged_ms": spread(acknowledge), "visible_ms": spread(visible),
    }
    return figures, sum(subtotal for _, subtotal in made)


def queries(options, lamina):
    begin, end = time_range(options)
    dice = random.Random(options.seed)

    def point():
        host, _, metric = workload.name(dice.randrange(workload.SERIES))
        where = f"host = '{host}' AND metric = '{metric}'"
        return [("from", begin), ("to", end), ("step", "1m"), ("aggregate", "count,sum,min,max"), ("where", where)]

    by_host = [("from", begin), ("to", end), ("aggregate", "count,sum,min,max"), ("group_by", "host")]
    return {
        "point": time_queries(options, lamina.client(), point),
        "by_host": time_queries(options, lamina.client(), lambda: by_host),
    }


def time_queries(options, client, asked):
    times, size = [], 0
    for _ in range(options.warm_up + options.queries):
        parameters = asked()
        began = time.monotonic()
        size = len(client.get(QUERY_PATH, parameters))
        times.append(time.monotonic() - began)
    return {"first_ms": round(times[0] * 1e3, 2), "ms": spread(times[options.warm_up:]), "answer_bytes": size}


def spread(seconds):
    """p50, p99 (nearest rank) and maximum in ms."""
    ordered = sorted(seconds)
    rank = lambda share: round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e3, 2)
    return {"p50": rank(0.5), "p99": rank(0.99), "max": rank(1)}


def table(result):
    options, parts = result["options"], result["parts"]
    about = result["machine"]
    rate = f"{options['steady_rate']:,}/s"
    rows = [
        ("sender alone, events/s", lambda f: f"{f['sender_alone']['per_s']:,}"),
        ("acknowledged, events/s", lambda f: f"{f['throughput']['acknowledged_per_s']:,}"),
        ("… of sender alone", lambda f: f"{f['throughput']['of_sender_alone']:.3f}"),
        ("all visible, events/s", lambda f: f"{f['throughput']['visible_per_s']:,}"),
        ("request, ms p50 / p99 / max", lambda f: three(f["throughput"]["request_ms"])),
        ("counted and summed exactly", lambda f: "yes" if f["exact"] else "NO"),
        ("CPU s of throughput: lamina", lambda f: f["throughput"]["cpu_s"]["lamina"]),
        ("… Kafka, Cassandra", lambda f: several(f["throughput"]["cpu_s"], "kafka", "cassandra")),
        ("… senders, others", lambda f: several(f["throughput"]["cpu_s"], "bench", "others")),
        (f"acknowledged at {rate}, ms p50 / p99 / max", lambda f: three(f["freshness"]["acknowledged_ms"])),
        (f"acknowledged → visible at {rate}, ms p50 / p99 / max", lambda f: three(f["freshness"]["visible_ms"])),
        ("point read, ms p50 / p99 / max", lambda f: three(f["queries"]["point"]["ms"])),
        ("by host, ms p50 / p99 / max", lambda f: three(f["queries"]["by_host"]["ms"])),
        ("first point read (cold), ms", lambda f: f["queries"]["point"]["first_ms"]),
        ("CPU s of queries: lamina, others", lambda f: several(f["queries"]["cpu_s"], "lamina", "others")),
        ("peak resident MiB: idle", lambda f: f["idle_resident_mib"]),
        ("… after throughput, at the end", lambda f: several(
            {"throughput": f["throughput"]["peak_resident_mib"], "end": f["peak_resident_mib"]}, "throughput", "end")),
        ("CPU s of lamina in all", lambda f: f["cpu_s"]),
        ("load average before, after", lambda f: f"{f['load_before'][0]}, {f['load_after'][0]}"),
    ]
    names = {"embedded": "embedded", "real": "Kafka and Cassandra"}
    lines = [
        f"{about['cores']} cores ({about['cpu']}), {about['memory_gib']} GiB, {about['system']}; "
        f"lamina: {about['profile']}; {options['events']:,} events in bodies of {options['body_events']:,}, "
        f"{options['senders']} senders; making the events took {result['workload']['generate_cpu_s']} CPU s beforehand",
        "",
        "| | " + " | ".join(names[part] for part in parts) + " |",
        "|---|" + "---|" * len(parts),
    ]
    lines += [f"| {title} | " + " | ".join(str(figure(parts[part])) for part in parts) + " |" for title, figure in rows]
    return "\n".join(lines)


def three(each):
    return f"{each['p50']:,} / {each['p99']:,} / {each['max']:,}"


def several(figures, *names):
    return ", ".join("–" if figures.get(name) is None else str(figures[name]) for name in names)


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
