"""What goes to the services and what comes back from them: headers, errors, streams, CORS."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as executor_pb2
from convergence.tenant.v1 import tenant_pb2

from libs import errors
from tests.support.gateway import StandIns, refusal, send

ORIGIN = "http://localhost:3000"

# --- answers ---

TABLE: list[tuple[Callable[[], BaseException], int, int, str]] = [
    (lambda: errors.InvalidArgument("R", "text"), 400, 3, "R"),
    (lambda: errors.Unauthenticated("R", "text"), 401, 16, "R"),
    (lambda: errors.PermissionDenied("R", "text"), 403, 7, "R"),
    (lambda: errors.NotFound("R", "text"), 404, 5, "R"),
    (lambda: errors.AlreadyExists("R", "text"), 409, 6, "R"),
    (lambda: errors.FailedPrecondition("R", "text"), 400, 9, "R"),
    (lambda: errors.Aborted("R", "text"), 409, 10, "R"),
    (lambda: errors.ResourceExhausted("R", "text"), 429, 8, "R"),
    (lambda: errors.Unavailable("R", "text"), 503, 14, "R"),
    (lambda: errors.Ambiguous("R", "text"), 503, 14, "R"),
    (lambda: errors.Unimplemented("R", "text"), 501, 12, "R"),
    (lambda: errors.Internal("R", "hidden"), 500, 13, "R"),
    (lambda: ValueError("hidden"), 500, 13, "INTERNAL"),
    (lambda: TimeoutError("hidden"), 503, 14, "TIMEOUT"),
]


@pytest.mark.parametrize(("make", "status", "code", "reason"), TABLE)
def test_the_error_table(
    edge: StandIns, make: Callable[[], BaseException], status: int, code: int, reason: str
) -> None:
    def answer(_request: Any) -> Any:
        raise make()

    edge.answers["TenantService/GetTenant"] = answer
    got = send(edge, "GET", "/api/v1/tenants/acme")
    assert (got.status_code, got.headers["content-type"]) == (status, "application/json")
    assert got.json().keys() == {"code", "message", "details"}
    assert got.json()["code"] == code
    assert got.json()["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "convergence",
        "metadata": {"outcome": "unknown"} if isinstance(make(), errors.Ambiguous) else {},
    }
    assert "hidden" not in got.text and got.headers["x-request-id"]
    assert len(edge.calls) == 1, "the gateway must not try a call again that has begun"


def test_what_one_process_has_not_begun_is_asked_of_another(edge: StandIns) -> None:
    busy = iter([errors.NotBegun("EXECUTOR_FULL", "Full."), errors.NotBegun("EXECUTOR_DRAINING", "Ends.")])

    def answer(_request: Any) -> Any:
        if failure := next(busy, None):
            raise failure
        return executor_pb2.Run()

    edge.answers["PipelineService/RunPipeline"] = answer
    got = send(edge, "POST", "/api/v1/pipelines/run/acme/gcp/cost/billing", json={"date": "2025-11-17"})
    assert got.status_code == 200, got.text
    assert len(edge.calls) == 3

    edge.calls.clear()
    edge.answers["PipelineService/RunPipeline"] = _always(errors.NotBegun("EXECUTOR_FULL", "Full."))
    got = send(edge, "POST", "/api/v1/pipelines/run/acme/gcp/cost/billing", json={"date": "2025-11-17"})
    assert refusal(got) == (503, 14, "EXECUTOR_FULL")
    assert "x-not-begun" not in got.headers
    assert len(edge.calls) == 3


def test_a_call_that_comes_as_a_process_stops_is_asked_of_another(edge: StandIns) -> None:
    class Stopping(errors.Error):
        kind = "CANCELLED"

    stopping = iter([Stopping("R", "As gRPC answers calls that no handler has taken."), None])

    def answer(_request: Any) -> Any:
        if failure := next(stopping):
            raise failure
        return executor_pb2.Run()

    edge.answers["PipelineService/RunPipeline"] = answer
    got = send(edge, "POST", "/api/v1/pipelines/run/acme/gcp/cost/billing", json={"date": "2025-11-17"})
    assert (got.status_code, len(edge.calls)) == (200, 2), got.text


def _always(failure: errors.Error) -> Callable[[Any], Any]:
    def answer(_request: Any) -> Any:
        raise failure

    return answer


def test_a_used_up_quota_says_when_to_come_back(edge: StandIns) -> None:
    def answer(_request: Any) -> Any:
        raise errors.ResourceExhausted(
            "QUOTA_EXHAUSTED",
            "No runs left today.",
            retry_after=timedelta(seconds=76.5),
            quota_violations=[errors.QuotaViolation("tenant:acme", "DAILY_RUNS", 6, "six a day")],
        )

    edge.answers["PipelineService/RunPipeline"] = answer
    got = send(edge, "POST", "/api/v1/pipelines/run/acme/gcp/cost/billing", json={}, headers=[("origin", ORIGIN)])
    assert (got.status_code, got.headers["retry-after"]) == (429, "77")
    assert got.headers["ratelimit"] == '"daily_runs";r=0;t=77'
    assert got.headers["ratelimit-policy"] == '"daily_runs";q=6'
    kinds = [detail["@type"].rpartition(".")[2] for detail in got.json()["details"]]
    assert kinds == ["ErrorInfo", "QuotaFailure", "RetryInfo"]
    assert got.json()["details"][1]["violations"][0]["quota_id"] == "DAILY_RUNS"
    for name in ("retry-after", "ratelimit", "x-request-id"):
        assert name in got.headers["access-control-expose-headers"]


def test_a_text_that_is_no_header_text_arrives_all_the_same(edge: StandIns) -> None:
    def answer(_request: Any) -> Any:
        raise errors.InvalidArgument("R", 'naïve "quote"\nnew line \\ and 100 %')

    edge.answers["TenantService/GetTenant"] = answer
    assert send(edge, "GET", "/api/v1/tenants/acme").json()["message"] == 'naïve "quote"\nnew line \\ and 100 %'


def test_answers_keep_the_contracts_names_and_defaults(edge: StandIns) -> None:
    edge.answers["TenantService/GetTenant"] = lambda _: tenant_pb2.Tenant(tenant_id="acme", state="ACTIVE")
    got = send(edge, "GET", "/api/v1/tenants/acme").json()
    assert (got["tenant_id"], got["state"], got["daily_limit"]) == ("acme", "ACTIVE", 0)


def test_answers_are_kept_by_nobody_on_the_way(edge: StandIns) -> None:
    for key in ("acme-key", "nobody"):
        headers = send(edge, "GET", "/api/v1/tenants/acme", key).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
        assert ("x-ratelimit-remaining" in headers) == (key == "acme-key")


def test_headers_of_the_client_reach_the_service(edge: StandIns) -> None:
    headers = [("Idempotency-Key", "ik-1"), ("X-User-ID", "José".encode()), ("x-request-id", "chosen-by-the-client")]
    got = send(edge, "GET", "/api/v1/tenants/acme", headers=headers)
    (call,) = edge.calls
    assert (call.idempotency_key, call.caller.user_id) == ("ik-1", "José")
    assert got.headers["x-request-id"] != "chosen-by-the-client"
    assert ("x-request-id", got.headers["x-request-id"]) in [tuple(pair) for pair in call.metadata]


# --- watch ---

WATCH = "/api/v1/pipelines/runs/acme/6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c:watch"


def test_watch_is_one_object_a_line_or_server_sent_events(edge: StandIns) -> None:
    edge.answers["PipelineService/WatchRun"] = lambda _: [executor_pb2.RunProgress(percent=n) for n in (10, 100)]
    lines = send(edge, "GET", WATCH)
    assert [json.loads(line)["percent"] for line in lines.text.splitlines()] == [10, 100]
    events = send(edge, "GET", WATCH, headers=[("accept", "text/event-stream")])
    assert events.headers["content-type"] == "text/event-stream"
    found = [json.loads(event.removeprefix("data: ")) for event in events.text.strip().split("\n\n")]
    assert [event["percent"] for event in found] == [10, 100]
    for headers in ([], [("accept", "text/event-stream")]):
        assert send(edge, "GET", WATCH, key="", headers=headers).status_code == 401
        assert send(edge, "GET", WATCH.replace("acme", "other_co"), headers=headers).status_code == 404


def test_watch_arrives_as_it_happens_and_ends_with_its_reader(edge: StandIns) -> None:
    ended: list[str] = []

    def forever(_request: Any) -> Any:
        try:
            while True:
                yield executor_pb2.RunProgress(percent=1)
        finally:
            ended.append("ended")

    edge.answers["PipelineService/WatchRun"] = forever
    with httpx.stream("GET", edge.base_url + WATCH, headers={"x-api-key": "acme-key"}, timeout=10) as stream:
        assert json.loads(next(stream.iter_lines()))["percent"] == 1
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended


def test_a_watch_that_fails_at_once_is_an_ordinary_error(edge: StandIns) -> None:
    def gone(_request: Any) -> Any:
        raise errors.NotFound("RUN_NOT_FOUND", "No such run.")

    edge.answers["PipelineService/WatchRun"] = gone
    got = send(edge, "GET", WATCH)
    assert (got.status_code, got.json()["details"][0]["reason"]) == (404, "RUN_NOT_FOUND")


# --- browsers ---


def test_preflight_needs_no_key_and_names_what_is_allowed(edge: StandIns) -> None:
    asked = "x-api-key,x-user-id,idempotency-key,content-type"
    for path in ("/api/v1/tenants/acme", "/api/v1/scheduler/trigger"):
        got = send(
            edge,
            "OPTIONS",
            path,
            key="",
            headers=[
                ("origin", ORIGIN),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", asked),
            ],
        )
        assert (got.status_code, got.headers["access-control-allow-origin"]) == (200, ORIGIN)
        allowed = got.headers["access-control-allow-headers"].replace(" ", "").split(",")
        assert set(allowed) == set(asked.split(","))
        assert "DELETE" in got.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in got.headers
    assert edge.asked == [] and edge.calls == []


def test_errors_carry_cors_headers_too_and_other_origins_get_none(edge: StandIns) -> None:
    for key, path, status in (("", "/api/v1/tenants/acme", 401), ("acme-key", "/api/v1/tenants/other_co", 404)):
        assert (
            send(edge, "GET", path, key, headers=[("origin", ORIGIN)]).headers["access-control-allow-origin"] == ORIGIN
        )
        got = send(edge, "GET", path, key, headers=[("origin", "http://evil.example")])
        assert got.status_code == status and "access-control-allow-origin" not in got.headers
    got = send(
        edge,
        "OPTIONS",
        "/api/v1/tenants/acme",
        key="",
        headers=[("origin", "http://evil.example"), ("access-control-request-method", "GET")],
    )
    assert got.status_code == 401 and "access-control-allow-origin" not in got.headers
