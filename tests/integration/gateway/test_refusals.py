"""What the gateway refuses by itself has the shape and the reason of every other error."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from convergence.tenant.v1 import tenant_pb2

from tests.support.gateway import ADMIN_KEY, StandIns, refusal, running_gateway, send
from tests.support.ports import dead_port, free_port

# --- requests ---


def logged(edge: StandIns, request_id: str) -> dict[str, Any]:
    """The gateway's own log line of a request; Envoy writes it behind the answer."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for line in (edge.directory / "envoy.log").read_text().splitlines():
            if request_id in line:
                found: dict[str, Any] = json.loads(line)
                return found
        time.sleep(0.1)
    raise AssertionError(f"{request_id} is not in the gateway's log")


@pytest.mark.parametrize(
    ("method", "path", "arguments", "wanted"),
    [
        ("GET", "/api/v1/nonsense", {}, (404, 5, "PATH_NOT_FOUND")),
        ("PUT", "/api/v1/tenants/acme", {"json": {}}, (404, 5, "PATH_NOT_FOUND")),
        ("GET", "/api/v1/tenants/acme?nonsense=1", {}, (400, 3, "REQUEST_MALFORMED")),
        ("GET", "/api/v1/tenants/acme/api-keys?page_size=many", {}, (400, 3, "REQUEST_MALFORMED")),
        ("POST", "/api/v1/tenants/acme/api-keys", {"content": b"{bad"}, (400, 3, "REQUEST_MALFORMED")),
        ("POST", "/api/v1/tenants/acme/api-keys", {"json": {"role": "x" * 2_000_000}}, (413, 3, "BODY_TOO_LARGE")),
    ],
)
def test_its_own_refusals_have_a_reason_and_are_found_in_the_log(
    edge: StandIns, method: str, path: str, arguments: dict[str, Any], wanted: tuple[int, int, str]
) -> None:
    answer = send(edge, method, path, **arguments)
    assert refusal(answer) == wanted
    line = logged(edge, answer.headers["x-request-id"])
    assert (line["code"], line["method"], line["path"]) == (wanted[0], method, path.partition("?")[0])
    assert edge.calls == []


@pytest.mark.parametrize("value", ["x" * 129, "a\tb"])
def test_a_bad_user_id_is_refused_and_breaks_nothing(edge: StandIns, value: str) -> None:
    got = send(edge, "GET", "/api/v1/tenants/acme", headers=[("x-user-id", value.encode())])
    assert got.status_code == 400, got.text
    assert edge.calls == []
    assert send(edge, "GET", "/api/v1/tenants/acme").status_code == 200


@pytest.mark.parametrize("body", [b"{bad", b"[]", b'"text"', b'{"role": {"deep": 1}}', b"\xff\xfe"])
def test_a_body_that_is_no_message_is_refused(edge: StandIns, body: bytes) -> None:
    got = send(
        edge, "POST", "/api/v1/tenants/acme/api-keys", content=body, headers=[("content-type", "application/json")]
    )
    assert got.status_code == 400, got.text
    assert got.json()["code"] == 3 and got.json()["message"]
    assert edge.calls == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(edge: StandIns, chunked: bool) -> None:
    body = json.dumps({"role": "x" * 2_000_000}).encode()
    got = send(edge, "POST", "/api/v1/tenants/acme/api-keys", content=iter([body]) if chunked else body)
    assert (got.status_code, got.json()["code"]) == (413, 3)
    assert edge.calls == []


def test_many_headers_are_refused(edge: StandIns) -> None:
    got = send(edge, "GET", "/api/v1/tenants/acme", headers=[(f"x-h-{number}", "v") for number in range(100)])
    assert got.status_code in (400, 431)
    assert edge.calls == []


def test_headers_that_are_too_large_are_refused_in_words_too(edge: StandIns) -> None:
    many = send(edge, "GET", "/api/v1/tenants/acme", headers=[("x-large", "v" * 100_000)])
    assert (many.status_code, many.json()["details"][0]["reason"]) == (431, "HEADERS_TOO_LARGE")
    odd = send(edge, "GET", "/api/v1/tenants/acme", headers=[("x_odd", "v")])
    assert (odd.status_code, odd.json()["details"][0]["reason"]) == (400, "REQUEST_MALFORMED")


# --- limits and failures, each with a gateway of its own ---


def test_a_service_that_does_not_answer_in_time_is_504(tmp_path: Path) -> None:
    def short(text: str) -> str:
        assert "timeout: 30s" in text
        return text.replace("timeout: 30s", "timeout: 0.3s")

    with running_gateway(tmp_path, port=free_port(), edit=short) as edge:
        edge.answers["TenantService/GetTenant"] = lambda _: time.sleep(2) or tenant_pb2.Tenant()  # type: ignore[func-returns-value]
        answer = send(edge, "GET", "/api/v1/tenants/acme")
        assert refusal(answer) == (504, 4, "SERVICE_TIMEOUT")
        assert logged(edge, answer.headers["x-request-id"])["code"] == 504


def test_each_tenant_has_a_bucket_of_its_own(tmp_path: Path) -> None:
    def slow(text: str) -> str:
        assert "fill_interval: 1s" in text
        return text.replace("fill_interval: 1s", "fill_interval: 60s")

    with running_gateway(tmp_path, port=free_port(), rate_burst=20, rate_per_second=1, edit=slow) as edge:
        codes: Counter[int] = Counter()
        got: httpx.Response | None = None
        with httpx.Client(base_url=edge.base_url, headers={"x-api-key": "acme-key"}) as client:
            for _ in range(40):
                answer = client.get("/api/v1/tenants/acme")
                codes[answer.status_code] += 1
                got = answer if answer.status_code == 429 else got
        assert codes[200] >= 20 and got is not None
        assert refusal(got) == (429, 8, "RATE_LIMITED")
        assert got.headers["retry-after"] == "1"
        assert (got.headers["x-ratelimit-limit"], got.headers["x-ratelimit-remaining"]) == ("20", "0")
        assert "x-ratelimit-reset" in got.headers
        # The other key of the tenant shares its bucket, another tenant does not, the platform admin has room.
        assert 429 in {send(edge, "GET", "/api/v1/tenants/acme", "runner-key").status_code for _ in range(5)}
        assert send(edge, "GET", "/api/v1/tenants/other_co", "other-key").status_code == 200
        assert all(send(edge, "GET", "/api/v1/tenants/acme", ADMIN_KEY).status_code == 200 for _ in range(40))
        with grpc.insecure_channel(edge.base_url.removeprefix("http://")) as channel:
            call = channel.unary_unary("/convergence.tenant.v1.TenantService/GetTenant")
            with pytest.raises(grpc.RpcError) as caught:
                for _ in range(50):
                    call(b"\n\x04acme", metadata=[("x-api-key", "acme-key")], timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert logged(edge, got.headers["x-request-id"])["code"] == 429


@pytest.mark.parametrize("down", ["tenant", "credential", "pipeline_executor", "scheduler", "authz"])
def test_health_needs_all_four_services_and_a_dead_one_is_503(tmp_path: Path, down: str) -> None:
    with (
        dead_port() as dead,
        running_gateway(tmp_path, port=free_port(), **{down: f"127.0.0.1:{dead}"}, healthy=down == "authz") as edge,
    ):
        health = send(edge, "GET", "/health", key="")
        assert health.status_code == (200 if down == "authz" else 503)
        if down == "authz":
            got = send(edge, "GET", "/api/v1/tenants/acme")
        else:
            assert health.json().keys() == {"code", "message", "details"}
            path = {
                "tenant": "/api/v1/tenants/acme",
                "credential": "/api/v1/tenants/acme/credentials",
                "pipeline_executor": "/api/v1/pipelines/runs/acme",
                "scheduler": "/api/v1/scheduler/customer/acme/pipelines",
            }[down]
            got = send(edge, "GET", path)
        assert refusal(got) == (503, 14, "SERVICE_UNAVAILABLE")
        assert got.headers["retry-after"] == "1" and "127.0.0.1" not in got.text
        assert logged(edge, got.headers["x-request-id"])["code"] == 503
