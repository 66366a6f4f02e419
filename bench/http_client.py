"""One kept-alive HTTP connection."""

import http.client
import json
import urllib.parse


class Refused(Exception):
    """An answer that is not a success."""


class Client:
    def __init__(self, port, timeout=90):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def post(self, path, body, kind="application/x-ndjson"):
        return json.loads(self._exchange("POST", path, body, {"content-type": kind}))

    def get(self, path, parameters=()):
        """The bytes of the answer."""
        return self._exchange("GET", f"{path}?{urllib.parse.urlencode(parameters)}" if parameters else path)

    def _exchange(self, method, path, body=None, headers=None):
        try:
            self.connection.request(method, path, body, headers or {})
            answer = self.connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise
        if answer.status // 100 != 2:
            raise Refused(f"{method} {path[:200]}: {answer.status} {data[:500]!r}")
        return data
