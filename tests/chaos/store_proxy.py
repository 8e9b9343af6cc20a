"""A proxy before the BigQuery emulator that harms what passes: ``python -m tests.chaos.store_proxy``.

Each request meets at most one fault, by chance: ``refuse`` (503, not passed on), ``drop`` (hung up on before it is
passed on), ``lose`` (passed on, done, then hung up on: the caller cannot know), ``late`` (as lose, after a wait).
``POST /chaos`` with ``{"refuse": 0.1, …, "seed": 7}`` sets the rates; ``GET /chaos`` counts what was done. A dead
emulator looks as it does without the proxy: the connection ends.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("refuse", "drop", "lose", "late")
_LATE_SECONDS = 6.0
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_REFUSAL = json.dumps(
    {"error": {"code": 503, "message": "made unavailable", "errors": [{"reason": "backendError"}]}}
).encode()


class Faults:
    """The rates, and one generator for all threads."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self.done: Counter[str] = Counter()
        self._random = random.Random(0)
        self._lock = threading.Lock()

    def set(self, wanted: dict[str, float]) -> None:
        with self._lock:
            self._random.seed(wanted.pop("seed", 0))
            self.rates = wanted

    def pick(self) -> str:
        """The fault that the next request meets, or nothing."""
        with self._lock:
            dice = self._random.random()
            for kind, rate in self.rates.items():
                if dice < rate:
                    self.done[kind] += 1
                    return kind
                dice -= rate
            self.done["passed"] += 1
            return ""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    faults: Faults
    upstream: str
    _server_side: http.client.HTTPConnection | None = None

    def _handle(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size)
        if self.path == "/chaos":
            if self.command == "POST":
                self.faults.set(json.loads(body))
            return self._answer(200, [("content-type", "application/json")], json.dumps(self.faults.done).encode())
        fault = self.faults.pick()
        if fault == "refuse":
            return self._answer(503, [("content-type", "application/json")], _REFUSAL)
        if fault == "drop":
            return self._hang_up()
        try:
            status, headers, content = self._pass_on(body)
        except (OSError, http.client.HTTPException):
            return self._hang_up()
        if fault == "late":
            time.sleep(_LATE_SECONDS)
        if fault in ("lose", "late"):
            return self._hang_up()
        self._answer(status, headers, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # A connection for each request: one that a restarted emulator left half-open would be a fault of ours.
        server = http.client.HTTPConnection(self.upstream, timeout=300)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            # The emulator makes the addresses of its answers (of an upload's next part) from the host it was asked as.
            headers["Host"] = self.headers.get("host", self.upstream)
            server.request(self.command, self.path, body=body or None, headers=headers)
            answer = server.getresponse()
            content = answer.read()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            return answer.status, kept, content
        finally:
            server.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Takes a burst of connections, and waits for nobody at its end."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that was killed in the middle is what all this is about."""


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--to", required=True)
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    Handler.faults, Handler.upstream = Faults(), arguments.to
    Server((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
