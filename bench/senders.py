"""Processes that send bodies as fast as they are taken, and the sink that takes them at once."""

import http.server
import multiprocessing
import time

import workload
from http_client import Client


class Senders:
    """Each process makes its bodies beforehand and keeps them, so that only sending is measured."""

    def __init__(self, seed, events, body_events, processes):
        self.lines, self.all = [], []
        for number in range(processes):
            ours, theirs = multiprocessing.Pipe()
            firsts = range(number * body_events, events, processes * body_events)
            sizes = [(first, min(body_events, events - first)) for first in firsts]
            process = multiprocessing.Process(target=_sender, args=(theirs, seed, sizes), daemon=True)
            process.start()
            self.lines.append(ours)
            self.all.append(process)
        made = [line.recv() for line in self.lines]
        self.sum = sum(total for total, _, _ in made)
        self.bytes = sum(size for _, size, _ in made)
        self.make_seconds = sum(cpu for _, _, cpu in made)

    def pids(self):
        return [process.pid for process in self.all]

    def send(self, port, path):
        """Sends everything. Start and end of each request on the monotonic clock, and its token."""
        for line in self.lines:
            line.send((port, path))
        for line in self.lines:
            line.recv()  # connected
        for line in self.lines:
            line.send("go")
        sent = []
        for line in self.lines:
            outcome = line.recv()
            if isinstance(outcome, str):
                raise RuntimeError(f"a sender failed: {outcome}")
            sent += outcome
        return sent

    def close(self):
        for process in self.all:
            process.terminate()
            process.join()


def _sender(line, seed, sizes):
    began = time.process_time()
    bodies, total = [], 0
    for first, count in sizes:
        data, subtotal = workload.body(seed, first, count)
        bodies.append((data, count))
        total += subtotal
    line.send((total, sum(len(data) for data, _ in bodies), time.process_time() - began))
    while True:
        port, path = line.recv()
        client = Client(port)
        client.connection.connect()
        line.send("ready")
        line.recv()
        try:
            line.send([_timed(client, path, data, count) for data, count in bodies])
        except Exception as error:  # whatever it was, the parent tells
            line.send(repr(error))


def _timed(client, path, data, count):
    began = time.monotonic()
    answer = client.post(path, data)
    ended = time.monotonic()
    if answer["accepted"] != count or answer["rejected"]:
        raise RuntimeError(f"{count} events were sent, but: {str(answer)[:300]}")
    return began, ended, answer["position"]


class Sink:
    """A server that reads bodies and does nothing with them, in a process of its own."""

    def __init__(self):
        ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_sink, args=(theirs,), daemon=True)
        self.process.start()
        self.port = ours.recv()

    def close(self):
        self.process.terminate()
        self.process.join()


class _Take(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        taken = self.rfile.read(int(self.headers["content-length"])).count(b"\n")
        answer = b'{"accepted": %d, "rejected": [], "position": ""}' % taken
        self.send_response(202)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def _sink(line):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Take)
    line.send(server.server_address[1])
    server.serve_forever()
