"""A stand-in's bad day: an HTTP proxy before it that answers some requests as the cloud does when it will not serve."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Fault:
    """Requests whose method and path match get this answer, ``times`` times; ``cut`` ends the real one half-way."""

    match: str
    status: int = 503
    body: str = ""
    times: int = 10**6
    cut: bool = False
    seen: int = 0


@dataclass
class Faulty:
    """The proxy at ``endpoint``; ``faults`` may be changed at any time."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)

    def hit(self, line: str) -> Fault | None:
        """The fault that this request meets."""
        for fault in self.faults:
            if fault.seen < fault.times and re.search(fault.match, line):
                fault.seen += 1
                return fault
        return None


def s3_error(code: str) -> str:
    """The body of a refusal by S3 or STS."""
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>"


def sts_error(code: str) -> str:
    """The body of a refusal by STS."""
    return f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"


@contextlib.contextmanager
def before(target: str) -> Iterator[Faulty]:
    """A proxy before the stand-in at this address, on a free port of its own."""
    parts = urlsplit(target)
    faulty = Faulty("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(str(parts.netloc), faulty.hit))
    faulty.endpoint = f"http://127.0.0.1:{server.server_port}{parts.path}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


_OURS = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"})


def _handler(netloc: str, hit: Callable[[str], Fault | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = hit(f"{self.command} {self.path} {sent[:200].decode('latin-1')}")
            if fault is not None and not fault.cut:
                self._answer(fault.status, [("Content-Type", "application/xml")], fault.body.encode(), None)
                return
            connection = http.client.HTTPConnection(netloc, timeout=30)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, sent, headers)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            passed = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OURS]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, passed, content, length, half=fault is not None)

        def _answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None, *, half: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if half else content)
            if half:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _pass

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    return Handler
