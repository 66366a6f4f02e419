"""A `lamina serve` of our own: configuration, start, stop."""

import copy
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import backends
from http_client import Client, Refused

HERE = pathlib.Path(__file__).resolve().parent
SOURCE, METRIC = "servers", "readings"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Lamina:
    # Of topic and keyspace.
    owner = True

    def __init__(self, options, folder, real, name, definitions="metrics.toml"):
        self.options, self.folder, self.real, self.name, self.roles = options, folder, real, name, []
        self.port = free_port()
        self.topic = f"bench-servers-{name}"
        definitions = (HERE / definitions).read_text(encoding="utf-8")
        definitions = re.sub(r'(?m)^topic = "[^"]*"', f'topic = "{self.topic}"', definitions)
        (folder / "metrics.toml").write_text(definitions, encoding="utf-8")
        self.config = folder / "lamina.toml"
        self.config.write_text(self._configuration(), encoding="utf-8")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("LAMINA__")}
        self.environment.setdefault("RUST_LOG", "info")
        self.log = open(folder / "lamina.log", "ab")
        if real:
            migrated = subprocess.run(self._command("migrate"), env=self.environment, stderr=self.log, timeout=120)
            if migrated.returncode:
                raise RuntimeError(f"lamina migrate failed; see {folder / 'lamina.log'}")
        self.start()

    def beside(self, role, *settings):
        """Another process of the same configuration, with one role and a port of its own."""
        other = copy.copy(self)
        other.port, other.roles, other.owner = free_port(), ["--role", role], False
        other.environment = self.environment | dict(each.split("=", 1) for each in settings)
        other.environment["LAMINA__HTTP__LISTEN"] = f"127.0.0.1:{other.port}"
        other.start()
        return other

    def start(self):
        self.process = subprocess.Popen(
            self._command("serve") + self.roles, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        self.pid = self.process.pid

    def _command(self, what):
        return [self.options.lamina, what, "--config", str(self.config)]

    def _configuration(self):
        log, store = 'kind = "embedded"', 'kind = "embedded"'
        if self.real:
            log = f'kind = "kafka"\nbrokers = "{self.options.kafka}"'
            store = f'kind = "cassandra"\ncontact_points = ["{self.options.cassandra}"]\nkeyspace = "{self.name}"'
        # Everything else, the flush interval of 1 s and the epoch of 60 s included, is as it comes.
        return (
            f'definitions = ["metrics.toml"]\ndata_dir = "data"\n[http]\nlisten = "127.0.0.1:{self.port}"\n'
            f'[log]\n{log}\n[store]\n{store}\n[speed]\ngroup = "{self.name}"\n[batch]\nschedule = "off"\n'
        )

    def client(self):
        return Client(self.port)

    def wait_until_ready(self, timeout=90):
        until = time.monotonic() + timeout
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"lamina ended with {self.process.returncode}; see {self.folder / 'lamina.log'}")
            try:
                return self.client().get("/readyz")
            except (OSError, Refused):
                if time.monotonic() > until:
                    raise RuntimeError(f"lamina is not ready after {timeout} s; see {self.folder / 'lamina.log'}")
                time.sleep(0.1)

    def stop(self):
        """As an operator does: it seals. Seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return time.monotonic() - began

    def close(self):
        """Stops it, and deletes its topic and keyspace. Seconds that the stop took."""
        took = self.stop()
        if not self.owner:
            return took
        self.log.close()
        if self.real:
            backends.delete_topic(self.options.kafka, self.topic)
            backends.drop_keyspace(self.options.cassandra, self.name)
        return took
