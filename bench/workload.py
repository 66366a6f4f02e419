"""The events: a pure function of the seed and the event's number, so that every run and every sender agrees on them."""

import random

HOSTS = 1_500
REGIONS = ["eu-central", "eu-north", "eu-west", "us-east", "us-west", "ap-south", "ap-east", "sa-east"]
METRICS = [
    "cpu.user", "cpu.system", "cpu.iowait", "cpu.steal", "load.1m", "load.5m", "mem.used", "mem.cached", "swap.used",
    "disk.read", "disk.write", "disk.util", "net.rx", "net.tx", "net.errors", "tcp.established", "tcp.retrans",
    "fs.used", "proc.running", "proc.blocked",
]
SERIES = HOSTS * len(METRICS)
INTERVAL_MS = 10_000        # each series reports once in this time of events
LATE_MS = (30_000, 300_000)
BASE_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z; event time is made up, append time is not


def name(series):
    """Host, region and metric of a series."""
    host, metric = divmod(series, len(METRICS))
    return f"host-{host:04}", REGIONS[host % len(REGIONS)], METRICS[metric]


def body(seed, first, count):
    """NDJSON of the events `first..first + count`, and the sum of their values."""
    dice = random.Random(f"{seed}/{first}")
    order = _order(seed)
    lines, total = [], 0
    for number in range(first, first + count):
        turn, place = divmod(number, SERIES)
        series = order[place]
        ts = BASE_MS + turn * INTERVAL_MS + place * INTERVAL_MS // SERIES
        if dice.random() < 0.01:
            ts -= dice.randint(*LATE_MS)
        value = series * 2_654_435_761 % 4_000 + dice.randrange(400)
        total += value
        host, region, metric = name(series)
        lines.append(
            f'{{"ts":{ts},"host":"{host}","region":"{region}","metric":"{metric}",'
            f'"value":{value},"event_id":"{number:016x}"}}\n'
        )
    return "".join(lines).encode(), total


def time_range(events):
    """Whole minutes, in ms, that hold all of the first `events` events."""
    last = BASE_MS + (events // SERIES + 1) * INTERVAL_MS
    return (BASE_MS - LATE_MS[1]) // 60_000 * 60_000, last // 60_000 * 60_000 + 60_000


_orders = {}


def _order(seed):
    """The order in which series report: shuffled, so that neighbours in a body are not neighbours in a chunk."""
    if seed not in _orders:
        _orders[seed] = random.Random(seed).sample(range(SERIES), SERIES)
    return _orders[seed]
