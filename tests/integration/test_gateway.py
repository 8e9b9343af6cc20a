"""The real Envoy before stand-in services: what the gateway itself promises, whatever stands behind it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
import yaml
from convergence.pipeline_executor.v1 import pipeline_executor_pb2 as executor_pb2
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from deploy.envoy import descriptors, pages
from deploy.envoy.render import Gateway, command, render
from libs import errors, grpc_client
from libs.tenancy import Caller, Role
from tests.support.gateway import ADMIN_KEY, KEYS, StandIns, internal_methods, public_methods, running_gateway
from tests.support.hostile import HOSTILE_IDS
from tests.support.ports import dead_port, free_port
from tests.support.routes import Route, routes

ORIGIN = "http://localhost:3000"
ROUTES = pytest.mark.parametrize("route", routes(), ids=str)
IDENTITY = {"x-tenant-id": "other_co", "x-role": "PLATFORM_ADMIN", "x-key-id": "stolen", "x-peer-token": "stolen"}
SPOOFED = [
    *IDENTITY.items(),
    *((name.upper(), value) for name, value in IDENTITY.items()),
    *((name.title(), value) for name, value in IDENTITY.items()),
    ("x-tenant-id", "acme"),
    ("x-tenant-id-bin", base64.b64encode(b"other_co").decode()),
    ("x-role-bin", base64.b64encode(b"PLATFORM_ADMIN").decode()),
    ("grpc-metadata-x-tenant-id", "other_co"),
    ("x-envoy-original-path", "/api/v1/tenants/onboard"),
    ("x-envoy-original-method", "POST"),
    ("x-envoy-external-address", "203.0.113.66"),
    ("x-envoy-expected-rq-timeout-ms", "1"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
    ("x-forwarded-for", "203.0.113.66"),
    # Legal in HTTP, not in gRPC: forwarded, they would make the service refuse the call.
    ("a*l", "1"),
    ("+b", "1"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIns]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), port=free_port(), rate_burst=100_000) as stand_ins:
        yield stand_ins


@pytest.fixture
def edge(running: StandIns) -> Iterator[StandIns]:
    running.reset()
    yield running
    running.reset()


def send(edge: StandIns, method: str, path: str, key: str = "acme-key", **arguments: Any) -> httpx.Response:
    headers = [*(arguments.pop("headers", None) or []), *([("x-api-key", key)] if key else [])]
    with httpx.Client(base_url=edge.base_url, timeout=20) as client:
        return client.request(method, path, headers=headers, **arguments)


def wire(path: str, body: bytes = b"") -> bytes:
    """A gRPC message as it travels."""
    return struct.pack(">BI", 0, len(body)) + body


# --- every route ---


@ROUTES
def test_no_route_opens_without_a_key(edge: StandIns, route: Route) -> None:
    body = None if route.verb in ("GET", "DELETE") else {}
    answer = send(edge, route.verb, route.path(), key="", headers=SPOOFED, json=body)
    if route.template == "/api/v1/tenants/onboard":
        # The stand-in endpoint plays an open onboarding: the service is reached, and validates.
        assert answer.status_code == 400
    else:
        assert answer.status_code == 401
        assert answer.json()["code"] == 16
    # The audit trail says from where a refused key came: from the client's own address, whatever it claims.
    assert [dict(headers)["x-envoy-external-address"] for _, headers in edge.asked] == ["127.0.0.1"]
    assert edge.calls == []


@ROUTES
def test_every_route_leads_to_its_method_as_who_the_key_is(edge: StandIns, route: Route) -> None:
    # Bodies are empty: what the service then finds missing it finds after it knows who asks.
    body = None if route.verb in ("GET", "DELETE") else {}
    answer = send(edge, route.verb, route.path("acme"), headers=SPOOFED, json=body)
    assert answer.status_code in (200, 400, 403), answer.text
    if edge.calls:
        (call,) = edge.calls
        assert call.method == f"{route.method.containing_service.name}/{route.method.name}"
        assert (call.caller.tenant_id, call.caller.role, call.caller.key_id) == ("acme", "ADMIN", "key_acme")
        assert (call.caller.peer, call.caller.user_id) == ("gateway", None)
        assert call.caller.source_ip == "127.0.0.1"
        sent = [name for name, _ in call.metadata]
        assert "x-api-key" not in sent and "x-tenant-id-bin" not in sent
        for name in ("x-tenant-id", "x-role", "x-key-id", "x-peer-token"):
            assert sent.count(name) == 1, name


@pytest.mark.parametrize("route", [route for route in routes() if route.names_tenant], ids=str)
def test_another_tenants_path_answers_as_one_that_does_not_exist(edge: StandIns, route: Route) -> None:
    body = None if route.verb in ("GET", "DELETE") else {"nonsense": 1}
    theirs, nobodys = (send(edge, route.verb, route.path(name), json=body) for name in ("other_co", "never_was_here"))
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content
    assert theirs.json()["details"][0]["reason"] == "TENANT_NOT_FOUND"
    unlike = {"x-request-id", "date", "x-ratelimit-remaining", "x-ratelimit-reset"}
    assert {k: v for k, v in theirs.headers.items() if k not in unlike} == {
        k: v for k, v in nobodys.headers.items() if k not in unlike
    }
    assert edge.calls == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v2/tenants",
        "/authenticate",
        "/authenticate/api/v1/tenants/acme",
        "/api/v1/tenants/acme/nonsense",
        "/convergence.tenant.v1.TenantService/GetTenant",
        "/convergence.tenant.v1.TenantQuotaService/ReserveRun",
        "/grpc.health.v1.Health/Check",
        "/metrics",
        "/stats",
        "/config_dump",
        "/ready",
        "/healthz",
        "/health/",
        "/docs/",
        "/api/v1/../v1/tenants",
        "//api//v1//tenants/acme",
        "/api/v1/tenants/acme%00",
    ],
)
def test_no_other_path_opens_without_a_key_either(edge: StandIns, path: str) -> None:
    for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE"):
        answer = send(edge, method, path, key="")
        assert answer.status_code in (400, 401), (method, path, answer.status_code)
    assert edge.calls == []


def test_an_escaped_slash_reaches_nothing(edge: StandIns) -> None:
    for path in ("/api/v1/tenants/acme%2Fusage", "/api/v1/tenants/acme%5Cusage"):
        assert send(edge, "GET", path).status_code == 400
    assert edge.calls == [] and edge.asked == []


def test_unknown_paths_parameters_and_methods(edge: StandIns) -> None:
    for method, path, status in (
        ("GET", "/api/v1/nonsense", 404),
        ("PUT", "/api/v1/tenants/acme", 404),
        ("GET", "/api/v1/tenants/acme?nonsense=1", 400),
        # A parameter of the path's name wins over it, and is then judged like any other tenant.
        ("GET", "/api/v1/tenants/acme?tenant_id=other_co", 404),
    ):
        answer = send(edge, method, path)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json().keys() == {"code", "message", "details"}
    assert edge.calls == []


def test_a_body_cannot_rename_the_tenant_of_the_path(edge: StandIns) -> None:
    answer = send(edge, "POST", "/api/v1/tenants/acme/api-keys", json={"tenant_id": "other_co", "role": "RUNNER"})
    assert answer.status_code in (400, 404), answer.text
    assert edge.calls == []


@pytest.mark.parametrize("key", ["acme-key", "runner-key"])
def test_hostile_tenant_ids_reach_nothing(edge: StandIns, key: str) -> None:
    with httpx.Client(base_url=edge.base_url, headers={"x-api-key": key}, timeout=20) as client:
        for hostile in HOSTILE_IDS:
            encoded = quote(hostile, safe="")
            body = {"tenant_id": hostile, "company_name": "N", "admin_email": "a@b.co", "subscription_plan": "STARTER"}
            for answer in (
                client.get(f"/api/v1/tenants/{encoded}"),
                client.get(f"/api/v1/tenants/{encoded}/usage"),
                client.post(f"/api/v1/pipelines/run/{encoded}/gcp/cost/billing", json={"date": "2025-11-17"}),
                client.post("/api/v1/pipelines/run/acme/gcp/cost/billing", json={"tenant_id": hostile or "x"}),
                client.post("/api/v1/tenants/onboard", json=body) if _malformed(hostile) else None,
            ):
                if answer is not None:
                    assert answer.status_code in (400, 403, 404), (hostile, answer.status_code, answer.text)
                    assert answer.json().keys() == {"code", "message", "details"}, (hostile, answer.text)
    assert edge.calls == []


def _malformed(tenant_id: str) -> bool:
    """True unless only the tenant service itself knows that this one is reserved."""
    return re.fullmatch("[a-z][a-z0-9_]{2,49}", tenant_id) is None


def test_forged_identity_changes_nothing_over_grpc_and_grpc_web_either(edge: StandIns) -> None:
    path = "/convergence.tenant.v1.TenantService/GetTenant"
    own = tenant_pb2.GetTenantRequest(tenant_id="acme").SerializeToString()
    other = tenant_pb2.GetTenantRequest(tenant_id="other_co").SerializeToString()
    forged = [
        (name.lower(), value) for name, value in SPOOFED if name.isascii() and "*" not in name and "+" not in name
    ]
    forged = [(name, value) for name, value in forged if not name.endswith("-bin")]
    binary: list[tuple[str, str | bytes]] = [("x-tenant-id-bin", b"other_co"), ("x-role-bin", b"PLATFORM_ADMIN")]
    with grpc.insecure_channel(edge.base_url.removeprefix("http://")) as channel:
        call = channel.unary_unary(path)
        for key, body, code in (
            ("acme-key", own, grpc.StatusCode.OK),
            ("acme-key", other, grpc.StatusCode.NOT_FOUND),
            ("nobody", other, grpc.StatusCode.UNAUTHENTICATED),
        ):
            metadata = [*forged, *binary, ("x-api-key", key)]
            try:
                got = call.with_call(body, metadata=metadata, timeout=10)[1].code()
            except grpc.RpcError as refused:
                got = refused.code()  # type: ignore[attr-defined]
            assert got is code, (key, got)
    for kind in ("application/grpc-web+proto", "application/grpc-web-text"):
        for key, body, code in (("acme-key", own, "0"), ("acme-key", other, "5"), ("nobody", other, "16")):
            content = wire("", body) if "text" not in kind else base64.b64encode(wire("", body))
            headers = [*SPOOFED, ("content-type", kind), ("x-grpc-web", "1")]
            answer = send(edge, "POST", path, key, headers=headers, content=content)
            told = answer.content
            if "text" in kind and answer.status_code == 200 and b"grpc-status:" not in told:
                # Each frame is encoded by itself.
                told = b"".join(map(base64.b64decode, re.findall(rb"[A-Za-z0-9+/]+=*", told)))
            status = answer.headers.get("grpc-status") or told.partition(b"grpc-status:")[2].split(b"\r")[0].decode()
            assert status == code or (code == "16" and answer.status_code == 401), (kind, key, status, answer.headers)
    seen = {(call.caller.tenant_id, str(call.caller.role), call.caller.key_id) for call in edge.calls}
    assert seen == {("acme", "ADMIN", "key_acme")} and len(edge.calls) == 3


# --- keys ---


@pytest.mark.parametrize(
    "keys",
    [["acme-key", "acme-key"], ["acme-key", "other-key"], ["nobody"], [""], ["acme-key,other-key"]],
)
def test_only_one_good_key_opens(edge: StandIns, keys: list[str]) -> None:
    answer = send(edge, "GET", "/api/v1/tenants/acme", key="", headers=[("x-api-key", key) for key in keys])
    assert answer.status_code == 401


def test_a_key_is_asked_about_once_as_long_as_the_answer_is_good(edge: StandIns) -> None:
    edge.good_for_ms = 600_000
    key, forged = "remembered-key", [*IDENTITY.items(), ("gateway.known-key", "hit")]
    KEYS[key] = Caller(Role.RUNNER, "acme", "key_remembered")
    try:
        for _ in range(20):
            assert send(edge, "GET", "/api/v1/tenants/acme", key, headers=forged).status_code == 200
        # One question a worker of Envoy, of which there are two.
        assert 1 <= len(edge.asked) <= 2
        assert {(call.caller.tenant_id, call.caller.role, call.caller.key_id) for call in edge.calls} == {
            ("acme", Role.RUNNER, "key_remembered")
        }
        assert not any(name == "x-api-key" for call in edge.calls for name, _ in call.metadata)
        # A remembered key opens nothing that it did not open before, nor for anybody else.
        assert send(edge, "GET", "/api/v1/tenants/other_co", key).status_code == 404
        assert send(edge, "GET", "/api/v1/tenants/acme", key + "x").status_code == 401
        twice = [("x-api-key", key), ("x-api-key", key)]
        assert send(edge, "GET", "/api/v1/tenants/acme", "", headers=twice).status_code == 401
        assert send(edge, "GET", "/api/v1/tenants/acme", f"{key},{key}").status_code == 401
        assert send(edge, "GET", "/api/v1/tenants/acme", "").status_code == 401
    finally:
        del KEYS[key]


def test_an_answer_is_believed_no_longer_than_it_says_and_a_refusal_never(edge: StandIns) -> None:
    edge.good_for_ms = 700
    key = "briefly-known-key"
    assert send(edge, "GET", "/api/v1/tenants/acme", key).status_code == 401
    KEYS[key] = Caller(Role.RUNNER, "acme", "key_briefly")
    assert send(edge, "GET", "/api/v1/tenants/acme", key).status_code == 200
    del KEYS[key]
    time.sleep(0.75)
    assert [send(edge, "GET", "/api/v1/tenants/acme", key).status_code for _ in range(4)] == [401] * 4
    # Counted from before the question: an answer that took longer than it is good for is not kept.
    edge.reset()
    edge.good_for_ms, edge.answers["TenantService/GetTenant"] = 50, _slowly
    for _ in range(2):
        assert send(edge, "GET", "/api/v1/tenants/acme", "runner-key").status_code == 200
    assert len(edge.asked) == 2


def _slowly(request: Any) -> Any:
    time.sleep(0.1)
    return tenant_pb2.Tenant(tenant_id=request.tenant_id)


def test_a_key_in_another_place_is_no_key(edge: StandIns) -> None:
    headers = [
        ("authorization", "Bearer acme-key"),
        ("cookie", "x-api-key=acme-key"),
        ("grpc-metadata-x-api-key", "acme-key"),
    ]
    assert send(edge, "GET", "/api/v1/tenants/acme", key="", headers=headers).status_code == 401
    assert send(edge, "GET", "/api/v1/tenants/acme", key="", params={"x-api-key": "acme-key"}).status_code == 401
    assert send(edge, "GET", "/api/v1/tenants/acme", key="", headers=[("x_api_key", "acme-key")]).status_code == 400


def test_without_authorisation_nothing_opens(edge: StandIns) -> None:
    for status in (500, 503, 302):
        edge.authz_status = status
        answer = send(edge, "GET", "/api/v1/tenants/acme")
        assert answer.status_code in (503, 302), answer.text
        if answer.status_code == 503:
            assert answer.json()["code"] == 14
    assert edge.calls == []


# --- internal RPCs ---


@pytest.mark.parametrize("method", internal_methods(), ids=lambda method: method.full_name)
def test_no_internal_rpc_is_reachable(edge: StandIns, method: MethodDescriptor) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    with grpc.insecure_channel(edge.base_url.removeprefix("http://")) as channel:
        call = channel.unary_unary(path)
        for metadata, codes in (
            ((), {grpc.StatusCode.UNAUTHENTICATED}),
            ((("x-api-key", ADMIN_KEY), ("x-peer-token", "guess")), {grpc.StatusCode.UNIMPLEMENTED}),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", metadata=metadata, timeout=10)
            assert caught.value.code() in codes  # type: ignore[attr-defined]
    for kind in ("application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"):
        content = wire(path) if "text" not in kind else base64.b64encode(wire(path))
        answer = send(edge, "POST", path, ADMIN_KEY, headers=[("content-type", kind)], content=content)
        assert answer.headers.get("grpc-status") == "12" or answer.status_code == 404, answer.headers
    for kind in ("application/json", "text/plain", ""):
        answer = send(edge, "POST", path, ADMIN_KEY, headers=[("content-type", kind)] if kind else [], content=b"{}")
        assert answer.status_code == 404
    assert edge.calls == []


def test_every_public_rpc_works_as_grpc_and_as_grpc_web(edge: StandIns) -> None:
    with grpc.insecure_channel(edge.base_url.removeprefix("http://")) as channel:
        for method in public_methods():
            path = f"/{method.containing_service.full_name}/{method.name}"
            request = message_factory.GetMessageClass(method.input_type)()
            if "tenant_id" in method.input_type.fields_by_name:
                request.tenant_id = "acme"  # type: ignore[attr-defined]
            start: Any = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
            for key, refused in (("", grpc.StatusCode.UNAUTHENTICATED), (ADMIN_KEY, None)):
                edge.calls.clear()
                code = None
                try:
                    result = start(
                        request.SerializeToString(), metadata=[("x-api-key", key)] if key else [], timeout=10
                    )
                    if method.server_streaming:
                        list(result)
                except grpc.RpcError as exc:
                    code = exc.code()  # type: ignore[attr-defined]
                if method.name == "OnboardTenant":
                    assert code is grpc.StatusCode.INVALID_ARGUMENT or not key
                elif refused:
                    assert code is refused and edge.calls == [], path
                else:
                    assert code in (None, grpc.StatusCode.INVALID_ARGUMENT), (path, code)
    body = tenant_pb2.GetTenantRequest(tenant_id="acme").SerializeToString()
    answer = send(
        edge,
        "POST",
        "/convergence.tenant.v1.TenantService/GetTenant",
        headers=[("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")],
        content=wire("", body),
    )
    assert answer.status_code == 200 and b"grpc-status:0" in answer.content.replace(b" ", b"")


def test_our_own_client_reads_the_gateways_errors(edge: StandIns) -> None:
    async def ask(key: str, tenant_id: str) -> BaseException | None:
        async with grpc_client.channel(edge.base_url.removeprefix("http://")) as channel:
            stub = tenant_pb2_grpc.TenantServiceStub(channel)
            try:
                await stub.GetTenant(tenant_pb2.GetTenantRequest(tenant_id=tenant_id), metadata=[("x-api-key", key)])
            except errors.Error as exc:
                return exc
            return None

    assert asyncio.run(ask("acme-key", "acme")) is None
    assert isinstance(asyncio.run(ask("acme-key", "other_co")), errors.NotFound)


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


@pytest.mark.parametrize("value", ["x" * 129, "a\tb"])
def test_a_bad_user_id_is_refused_and_breaks_nothing(edge: StandIns, value: str) -> None:
    got = send(edge, "GET", "/api/v1/tenants/acme", headers=[("x-user-id", value.encode())])
    assert got.status_code == 400, got.text
    assert edge.calls == []
    assert send(edge, "GET", "/api/v1/tenants/acme").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "seconds"),
    [
        ("GET", "/api/v1/tenants/acme", 30),
        ("POST", "/api/v1/tenants/onboard", 60),
        ("GET", "/api/v1/tenants/acme/credentials", 60),
        ("GET", "/api/v1/pipelines/templates", 30),
        ("POST", "/api/v1/scheduler/trigger", 300),
        ("POST", "/api/v1/scheduler/process-queue", 300),
        ("POST", "/api/v1/scheduler/reset-daily-quotas", 300),
        ("GET", "/api/v1/scheduler/status", 30),
        ("GET", "/api/v1/pipelines/runs/acme/r:watch", None),
    ],
)
def test_services_know_their_routes_timeout(edge: StandIns, method: str, path: str, seconds: int | None) -> None:
    body = {"tenant_id": "new_co", "company_name": "N", "admin_email": "a@b.co", "subscription_plan": "STARTER"}
    send(edge, method, path, ADMIN_KEY, json=body if "onboard" in path else None)
    (call,) = edge.calls
    if seconds is None:
        assert call.remaining is None
    else:
        assert call.remaining is not None and seconds - 2 < call.remaining <= seconds


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


# --- what the gateway answers by itself ---


def refusal(answer: httpx.Response) -> tuple[int, int, str]:
    """HTTP status, gRPC code and reason of an error; fails unless it has the shape of every other one."""
    assert answer.headers["content-type"] == "application/json", answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body.keys() == {"code", "message", "details"} and body["message"], body
    [info] = [detail for detail in body["details"] if detail["@type"].endswith("/google.rpc.ErrorInfo")]
    assert info.keys() == {"@type", "reason", "domain", "metadata"} and info["domain"] == "convergence"
    assert uuid.UUID(answer.headers["x-request-id"]) and answer.headers["x-request-id"] not in answer.text
    return answer.status_code, body["code"], info["reason"]


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


def test_a_service_that_does_not_answer_in_time_is_504(tmp_path: Path) -> None:
    def short(text: str) -> str:
        assert "timeout: 30s" in text
        return text.replace("timeout: 30s", "timeout: 0.3s")

    with running_gateway(tmp_path, port=free_port(), edit=short) as edge:
        edge.answers["TenantService/GetTenant"] = lambda _: time.sleep(2) or tenant_pb2.Tenant()  # type: ignore[func-returns-value]
        answer = send(edge, "GET", "/api/v1/tenants/acme")
        assert refusal(answer) == (504, 4, "SERVICE_TIMEOUT")
        assert logged(edge, answer.headers["x-request-id"])["code"] == 504


def test_headers_that_are_too_large_are_refused_in_words_too(edge: StandIns) -> None:
    many = send(edge, "GET", "/api/v1/tenants/acme", headers=[("x-large", "v" * 100_000)])
    assert (many.status_code, many.json()["details"][0]["reason"]) == (431, "HEADERS_TOO_LARGE")
    odd = send(edge, "GET", "/api/v1/tenants/acme", headers=[("x_odd", "v")])
    assert (odd.status_code, odd.json()["details"][0]["reason"]) == (400, "REQUEST_MALFORMED")


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


# --- what needs no key ---


def test_health_and_documentation_need_no_key(edge: StandIns) -> None:
    health = send(edge, "GET", "/health", key="")
    assert (health.status_code, health.json()) == (200, {"status": "SERVING"})
    openapi = send(edge, "GET", "/openapi.json", key="")
    assert (openapi.status_code, openapi.headers["content-type"]) == (200, "application/json")
    assert set(openapi.json()["paths"]) == {route.template for route in routes()}
    for page in pages.pages():
        answer = send(edge, "GET", page.path, key="")
        assert (answer.status_code, answer.content) == (200, page.file.read_bytes()), page
        assert "'unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] in ("no-cache", "public, max-age=86400")
    assert edge.asked == [] and edge.calls == []
    for page in pages.pages():
        assert send(edge, "GET", page.path + "/", key="").status_code == 401


# --- reflection ---


def test_reflection_needs_a_key_and_shows_all_four_public_services(edge: StandIns) -> None:
    def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                str(Path(sys.executable).with_name("buf")),
                "curl",
                "--protocol",
                "grpc",
                "--http2-prior-knowledge",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    listed = curl("--reflect-header", "x-api-key: runner-key", "--list-services", edge.base_url)
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) >= set(descriptors.PUBLIC_SERVICES)
    assert "Quota" not in listed.stdout and "Auth" not in listed.stdout
    refused = curl("--list-services", edge.base_url)
    assert refused.returncode != 0 and "not authenticated" in refused.stderr
    called = curl(
        *("--reflect-header", "x-api-key: runner-key", "-H", "x-api-key: runner-key"),
        *("-d", '{"tenant_id": "acme"}'),
        edge.base_url + "/convergence.tenant.v1.TenantService/GetTenant",
    )
    assert called.returncode == 0, called.stderr
    assert edge.calls[-1].caller.key_id == "key_runner"


# --- limits and failures, each with a gateway of its own ---


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


def test_who_authenticates_may_take_its_time(edge: StandIns) -> None:
    """The first use of a key waits until the store has been read again: seconds, not a quarter of one."""
    edge.authz_seconds = 2.5
    assert send(edge, "GET", "/api/v1/tenants/acme").status_code == 200
    assert len(edge.asked) == 1


@pytest.mark.parametrize("ends", ["refuses", "hangs up"])
def test_a_dead_replica_of_who_authenticates_costs_no_request(tmp_path: Path, ends: str) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        port = int(dead.getsockname()[1])
        if ends == "hangs up":
            dead.listen()
            threading.Thread(target=_hang_up, args=(dead,), daemon=True).start()

        def with_the_dead(text: str) -> str:
            config = yaml.safe_load(text)
            [authz] = [each for each in config["static_resources"]["clusters"] if each["name"] == "authz"]
            address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
            authz["load_assignment"]["endpoints"][0]["lb_endpoints"].append({"endpoint": {"address": address}})
            # Found to be dead by requests alone, as it is in the second before a health check.
            del authz["health_checks"]
            return yaml.safe_dump(config)

        with running_gateway(tmp_path, port=free_port(), edit=with_the_dead) as edge:
            answers = Counter(send(edge, "GET", "/api/v1/tenants/acme").status_code for _ in range(30))
            assert len(edge.asked) == 30
    assert answers == {200: 30}


def _hang_up(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


# --- the text ---


def config(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: f"{name}:1" for name in ("tenant", "credential", "pipeline_executor", "scheduler", "authz")
    }
    values |= {"token_file": Path("/t"), "descriptors": Path("/d")}
    found: dict[str, Any] = yaml.safe_load(render(Gateway(**(values | changes))))
    return found


def test_no_cluster_leads_to_an_internal_port_and_nobody_administers() -> None:
    found = config()
    names = [cluster["name"] for cluster in found["static_resources"]["clusters"]]
    assert names == ["tenant", "credential", "pipeline_executor", "scheduler", "authz"]
    assert found.keys() == {"static_resources", "overload_manager"}


@pytest.mark.parametrize("value", ["host", "host:", ":1", "host:port", "host:1\n  evil: true"])
def test_an_address_cannot_become_structure(value: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        config(tenant=value)


def test_values_cannot_become_structure() -> None:
    evil = Path('/x"\n  admin: {}\n#${port}')
    assert config(descriptors=evil, cors_origins=['http://a"}]']).keys() == config().keys()


def test_envoy_accepts_what_is_rendered(tmp_path: Path) -> None:
    descriptors.write(tmp_path / "d")
    (tmp_path / "t").write_text("token")
    for origins in ([], ["*"], ["https://a.example", "https://b.example"]):
        values = {name: f"{name}:1" for name in ("tenant", "credential", "pipeline_executor", "scheduler", "authz")}
        text = render(
            Gateway(
                **values,
                listen="0.0.0.0:8080",
                token_file=tmp_path / "t",
                descriptors=tmp_path / "d",
                cors_origins=origins,
            )
        )
        (tmp_path / "envoy.yaml").write_text(text)
        checked = subprocess.run(
            [*command(tmp_path / "envoy.yaml"), "--mode", "validate"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr[-2000:]
