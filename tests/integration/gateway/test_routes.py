"""Every route leads to its method, for the key's own tenant and nobody else; no other path opens."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

import grpc
import httpx
import pytest
from convergence.tenant.v1 import tenant_pb2

from tests.support.gateway import ADMIN_KEY, IDENTITY, StandIns, send, wire
from tests.support.hostile import HOSTILE_IDS
from tests.support.routes import Route, routes

ROUTES = pytest.mark.parametrize("route", routes(), ids=str)
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
