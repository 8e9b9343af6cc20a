"""The tools of ``make chaos``: a seed is a schedule, the proxy does exactly the harm it is told, wrong answers show."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from services.pipeline_executor.domain import LEASE
from tests.chaos import faults
from tests.chaos.load import Client, Customer, History, Kind, RunFacts
from tests.chaos.source import Source
from tests.chaos.store_proxy import Faults, Handler, Server
from tests.support.stack import Stack, Totals


def test_a_seed_is_a_schedule_and_another_seed_another() -> None:
    first = faults.plan(7, 900)
    assert first == faults.plan(7, 900) != faults.plan(8, 900)
    assert [fault.at for fault in first] == sorted(fault.at for fault in first) and first[-1].at < 900
    assert {fault.kind for fault in first} == {"kill -9", "SIGTERM", "SIGSTOP", "store", "envoy"}
    assert {fault.target for fault in first} >= {"bigquery", "proxy", "between", "gateway"}
    assert any(fault.kind == "SIGSTOP" and fault.lasting > LEASE.total_seconds() for fault in first)
    assert any(fault.lasting > LEASE.total_seconds() for fault in faults.plan(1, 120))


def test_the_short_plan_kills_every_part_and_all_at_once() -> None:
    killed = {
        fault.target.rpartition("-")[0] or fault.target for fault in faults.each_once() if fault.kind == "kill -9"
    }
    services = {"tenant", "credential", "pipeline_executor", "scheduler"}
    assert killed == services | {"gateway", "between", "kms", "bigquery", faults.EVERYTHING}


@pytest.mark.parametrize(
    ("status", "outcome", "force", "wrong"),
    [
        ("COMPLETED", "PUBLISHED", False, ""),
        ("COMPLETED", "UNCHANGED", False, ""),
        ("COMPLETED", "UNCHANGED", True, "was forced"),
        ("COMPLETED", "NO_DATA", False, "its source has rows"),
        ("RUNNING", "", False, "is RUNNING again"),
        ("FAILED", "", False, "and is ('FAILED'"),
    ],
)
def test_an_end_that_changes_or_cannot_be_is_wrong(
    status: str, outcome: str, force: bool, wrong: str, tmp_path: Path
) -> None:
    history = History(tmp_path / "requests.jsonl")
    stack = Stack(tmp_path, {"rest": "http://127.0.0.1:1"})
    customer = Customer("endure", "SCALE", stack, Client(stack, history), Source({}, {"2025-11-03": []}), 1)
    run = RunFacts("r", "k", "2025-11-03", least=1, parameters={"force": True} if force else {})
    if "is" in wrong.split():
        run.final = ("COMPLETED", "PUBLISHED", 7)
    said = {"status": status, "outcome": outcome, "rows_published": "7", "error": {"reason": "STORE_UNAVAILABLE"}}
    customer.judge(run, said)
    assert bool(history.wrong) == bool(wrong)
    assert wrong in "".join(history.wrong)


def test_the_source_knows_each_state_it_was_in() -> None:
    def state(rows: int) -> dict[str, Totals]:
        return {"USD": Totals(rows, Decimal(1), Decimal(0), Decimal(1)), "EUR": Totals(2, *[Decimal(0)] * 3)}

    source = Source({}, {"2025-11-03": [state(5), state(6)]})
    assert (source.now("2025-11-03"), source.counts("2025-11-03")) == (8, {7, 8})


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("kind", "arrives", "answered"),
    [("", True, 200), ("refuse", False, 503), ("drop", False, 0), ("lose", True, 0)],
)
def test_the_proxy_does_the_harm_it_is_told(kind: str, arrives: bool, answered: int) -> None:
    arrived: list[bytes] = []

    class Store(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Store)) as store:
        handler = type("Proxy", (Handler,), {"faults": Faults(), "upstream": store})
        with serving(Server(("127.0.0.1", 0), handler)) as proxy, httpx.Client(base_url=f"http://{proxy}") as http:
            http.post("/chaos", json={kind: 1.0} if kind else {}).raise_for_status()
            try:
                status = http.post("/jobs", content=b"UPDATE").status_code
            except httpx.HTTPError:
                status = 0
            done = http.get("/chaos").json()
    assert (status, arrived) == (answered, [b"UPDATE"] if arrives else [])
    assert done == {kind or "passed": 1}


@pytest.mark.parametrize(
    ("status", "body", "expected", "kind"),
    [
        (200, "{}", (), Kind.OK),
        (429, "{}", (), Kind.REFUSED),
        (404, "{}", (404,), Kind.REFUSED),
        (503, "upstream connect error", (), Kind.UNKNOWN),
        (504, "{}", (), Kind.UNKNOWN),
        (409, '{"code": 10}', (), Kind.UNKNOWN),
        # Of an acknowledged thing, of a good key, of a well-formed request: none of these may be.
        (404, "{}", (), Kind.WRONG),
        (401, "{}", (), Kind.WRONG),
        (500, '{"code": 13}', (), Kind.WRONG),
        (409, '{"code": 6}', (), Kind.WRONG),
        (200, "<html>", (), Kind.WRONG),
    ],
)
def test_refused_is_fine_and_wrong_is_not(status: int, body: str, expected: tuple[int, ...], kind: Kind) -> None:
    assert Client._judge(httpx.Response(status, text=body), expected).kind is kind
