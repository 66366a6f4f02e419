#!/usr/bin/env python3
"""Measures a full recompute from the archive beside DuckDB and DataFusion over the same files, and what it costs queries. See README.md."""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid

import machine
import workload
from end_to_end import RESULTS, EVENTS_PATH, QUERY_PATH, spread
from http_client import Client, Refused
from served import HERE, METRIC, Lamina

PEERS = ["duckdb", "datafusion"]


def main():
    options = parse()
    RESULTS.mkdir(exist_ok=True)
    run = f"recompute_{datetime.datetime.now():%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:6]}"
    result = {"run": run, "machine": machine.description(options.profile), "options": vars(options), "sizes": {}}
    path = RESULTS / f"{run}.json"
    for events in options.events:
        result["sizes"][events] = measure(options, events, f"{run}_{events}")
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(f"written to {path}")
    print(table(result))


def parse():
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lamina", default=str(pathlib.Path(target) / "debug" / "lamina"), help="the binary")
    parser.add_argument("--profile", help="how it was built; taken from its folder's name if left out")
    parser.add_argument("--events", type=lambda text: [int(each) for each in text.split(",")], default=[1_000_000])
    parser.add_argument("--memory-mib", type=int, default=512, help="batch.memory_mib, and what the peers may use")
    parser.add_argument("--senders", type=int, default=2, help="processes that fill the archive")
    parser.add_argument("--body-events", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--quiet-seconds", type=int, default=10, help="queries before the recompute")
    parser.add_argument("--query-rate", type=int, default=20, help="point reads of one series a second, before and meanwhile")
    parser.add_argument("--runs", type=int, default=3, help="of each; medians are shown")
    options = parser.parse_args()
    options.profile = options.profile or {"debug": "dev (opt-level 1)"}.get(pathlib.Path(options.lamina).parent.name, "release")
    return options


def measure(options, events, name):
    folder = RESULTS / f"{name}.run"
    folder.mkdir()
    lamina = Lamina(options, folder, False, name)
    lamina.environment["LAMINA__BATCH__MEMORY_MIB"] = str(options.memory_mib)
    figures = {"load_before": machine.load()}
    try:
        lamina.wait_until_ready()
        say(f"{events:,} events: filling the archive")
        figures["fill"], sent = fill(options, lamina, events)
        # What is still open is sealed by the stop, and memory starts anew.
        lamina.stop()
        lamina.start()
        lamina.wait_until_ready()
        figures["resident_before_mib"] = machine.peak_resident_mib(lamina.pid)
        archive = folder / "data" / "archive"
        figures["archive"] = size(archive)
        say(f"{events:,} events: recompute")
        # Covers what is sealed; from now on it is the batch layer that answers. Nothing is asked meanwhile, for its own memory.
        alone = recompute(options, lamina, events, reads=False) | {"peak_resident_mib": machine.peak_resident_mib(lamina.pid)}
        figures["quiet_ms"] = spread(asked(options, lamina, events, time.monotonic() + options.quiet_seconds))
        runs = [recompute(options, lamina, events) for _ in range(options.runs)]
        figures["lamina"] = median(runs)
        figures["lamina"] |= {"alone": alone, "peak_resident_mib": alone["peak_resident_mib"]}
        figures["lamina"]["peak_with_reads_mib"] = machine.peak_resident_mib(lamina.pid)
        counted = total(lamina.client(), events)
        figures["exact"] = counted == sent
        lamina.stop()
        for peer in PEERS:
            say(f"{events:,} events: {peer}")
            runs = [ask_peer(options, peer, archive, folder) for _ in range(options.runs)]
            figures[peer] = median(runs)
            if figures[peer].get("total", sent) != sent:
                sys.exit(f"{peer} reads {figures[peer]['total']} from the archive, and {sent} were sent")
        figures["load_after"] = machine.load()
        if not figures["exact"]:
            sys.exit(f"lamina counted {counted}, and {sent} were sent: the figures are worth nothing")
    finally:
        lamina.process.kill()
        lamina.process.wait()
    shutil.rmtree(folder)
    return figures


def fill(options, lamina, events):
    """Several processes make and send bodies; count and sum of all that was sent, once it is visible."""
    began = time.monotonic()
    work = [(options, lamina.port, events, number) for number in range(options.senders)]
    with multiprocessing.Pool(options.senders) as pool:
        sent = pool.starmap(send_share, work)
    subtotal = sum(each[0] for each in sent)
    for _, tokens in sent:
        see(lamina, events, tokens)
    seconds = time.monotonic() - began
    return {"seconds": round(seconds, 1), "per_s": round(events / seconds)}, [events, subtotal]


def send_share(options, port, events, number):
    client, subtotal, tokens = Client(port), 0, []
    for first in range(number * options.body_events, events, options.senders * options.body_events):
        data, part = workload.body(options.seed, first, min(options.body_events, events - first))
        for attempt in range(5):
            try:
                tokens = [client.post(EVENTS_PATH, data)["position"]]
                break
            except (OSError, Refused) as error:
                # Its events carry ids: what arrived twice counts once.
                say(f"sending again: {error}")
                time.sleep(1 + attempt)
        else:
            raise RuntimeError("a body was refused five times")
        subtotal += part
    return subtotal, tokens


def see(lamina, events, tokens):
    for _ in range(20):
        try:
            return total(lamina.client(), events, [("at_least", token) for token in tokens] + [("wait", "60s")])
        except Refused as refused:
            if " 504 " not in str(refused):
                raise
    raise RuntimeError("what was sent is not visible")


def total(client, events, more=()):
    begin, end = workload.time_range(events)
    asked = [("from", begin), ("to", end), ("aggregate", "count,sum"), *more]
    answer = json.loads(client.get(QUERY_PATH, asked))
    if not answer["meta"]["complete"]:
        raise RuntimeError(f"the answer is not complete: {answer['meta']}")
    points = [point for series in answer["series"] for point in series["points"]]
    return [sum(point["count"] for point in points), sum(point["sum"] for point in points)]


def recompute(options, lamina, events, reads=True):
    """Rebuilds everything, with point reads at a fixed rate meanwhile or with none."""
    client, cpu = lamina.client(), machine.cpu_seconds(lamina.pid)
    job = client.post("/v1/recomputes", json.dumps({"metric": METRIC, "reason": "bench"}), "application/json")
    done, times = threading.Event(), []
    reader = threading.Thread(target=lambda: times.extend(asked(options, lamina, events, None, done)))
    if reads:
        reader.start()
    while job["state"] not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.1)
        job = json.loads(lamina.client().get(f"/v1/jobs/{job['id']}"))
    done.set()
    if reads:
        reader.join()
    if job["state"] != "succeeded":
        raise RuntimeError(f"the recompute {job['state']}: {job['error']}")
    instant = lambda name: datetime.datetime.fromisoformat(job[name].replace("Z", "+00:00")).timestamp()
    seconds = instant("finished_at") - instant("started_at")
    used = machine.cpu_seconds(lamina.pid) - cpu
    return {"seconds": round(seconds, 3), "cpu_s": round(used, 2), "query_ms": spread(times) if times else None}


def asked(options, lamina, events, until, done=None):
    """Times of point reads, one after the other, at a fixed rate."""
    begin, end = workload.time_range(events)
    dice, times, client = random.Random(options.seed), [], lamina.client()
    due = time.monotonic()
    while not done.is_set() if done else time.monotonic() < until:
        host, region, metric = workload.name(dice.randrange(workload.SERIES))
        parameters = [
            ("from", begin), ("to", end), ("step", "1m"), ("aggregate", "count,sum,min,max"),
            ("where", f"host = '{host}' AND region = '{region}' AND metric = '{metric}'"),
        ]
        # From when it was due: a slow answer must not hide those that wait behind it.
        client.get(QUERY_PATH, parameters)
        times.append(time.monotonic() - due)
        due += 1 / options.query_rate
        time.sleep(max(0, due - time.monotonic()))
    return times


def ask_peer(options, peer, archive, folder):
    out = folder / f"{peer}.parquet"
    command = [sys.executable, str(HERE / "rollup_peer.py"), peer, str(archive), str(out)]
    command += [str(os.cpu_count()), str(options.memory_mib)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        told = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
    if out.is_dir():
        shutil.rmtree(out)
    elif out.exists():
        out.unlink()
    if status:
        return {"failed": f"exit {os.waitstatus_to_exitcode(status)}"}
    return json.loads(told) | {
        "cpu_s": round(used.ru_utime + used.ru_stime, 2), "peak_resident_mib": round(used.ru_maxrss / 1024, 1),
    }


def median(runs):
    runs = [run for run in runs if "failed" not in run] or runs
    return sorted(runs, key=lambda run: run.get("seconds", 0))[len(runs) // 2] | {"runs": runs}


def size(archive):
    files = [path.stat().st_size for path in archive.rglob("*.parquet")]
    return {"files": len(files), "mib": round(sum(files) / 2**20, 1)}


def table(result):
    about, options = result["machine"], result["options"]
    lines = [
        f"{about['cores']} cores ({about['cpu']}), {about['memory_gib']} GiB; lamina: {about['profile']}; "
        f"{options['memory_mib']} MiB for each engine; medians of {options['runs']}",
        "",
        "| events | engine | seconds | events/s | CPU s | peak MiB | of DuckDB's time |",
        "|---|---|---|---|---|---|---|",
    ]
    for events, figures in result["sizes"].items():
        for engine in ["lamina", *PEERS]:
            one = figures[engine]
            if "failed" in one:
                lines.append(f"| {events:,} | {engine} | {one['failed']} | | | | |")
                continue
            ratio = one["seconds"] / figures["duckdb"]["seconds"] if "seconds" in figures["duckdb"] else float("nan")
            rate = round(events / one["seconds"])
            lines.append(
                f"| {events:,} | {engine} | {one['seconds']} | {rate:,} | {one['cpu_s']} | {one['peak_resident_mib']} | {ratio:.2f} |"
            )
    lines += [
        "",
        "| events | point read, ms p50 / p99 / max: quiet | … during a recompute | p99, of quiet | peak MiB with reads |",
        "|---|---|---|---|---|",
    ]
    for events, figures in result["sizes"].items():
        quiet, busy = figures["quiet_ms"], figures["lamina"]["query_ms"]
        three = lambda each: f"{each['p50']:,} / {each['p99']:,} / {each['max']:,}"
        lines.append(f"| {events:,} | {three(quiet)} | {three(busy)} | {busy['p99'] / quiet['p99']:.2f} | {figures['lamina']['peak_with_reads_mib']} |")
    return "\n".join(lines)


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
