"""The door of the whole stack: who gets through each route of the contract, and what nobody reaches."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from convergence.tenant.v1 import tenant_pb2, tenant_pb2_grpc
from google.protobuf.descriptor import MethodDescriptor

from deploy.envoy.descriptors import PUBLIC_SERVICES
from libs import access
from tests.support.gateway import internal_methods
from tests.support.plain import NO_CERTIFICATES
from tests.support.routes import Route, routes
from tests.support.stack import Stack, Tenant

ROUTES = pytest.mark.parametrize("route", routes(), ids=str)
OPEN = "/api/v1/tenants/onboard"
UNKNOWN = "no_such_tenant_anywhere"
RULES = access.rules_of(PUBLIC_SERVICES)
# Differ from call to call, whoever calls.
VOLATILE = {"x-request-id", "date", "x-ratelimit-remaining", "x-ratelimit-reset"}


@pytest.fixture(scope="module")
def mine(stack: Stack) -> Tenant:
    return stack.onboard()


@pytest.fixture(scope="module")
def theirs(stack: Stack) -> Tenant:
    return stack.onboard()


@pytest.fixture(scope="module")
def runner(mine: Tenant) -> str:
    """A key of ours that may run and read only."""
    key: str = mine.call("POST", f"/tenants/{mine.tenant_id}/api-keys", {"role": "RUNNER"})["api_key"]
    return key


def send(
    stack: Stack,
    route: Route,
    tenant_id: str,
    *keys: str,
    headers: list[tuple[str, str]] | None = None,
    body: Any = None,
) -> httpx.Response:
    """Calls a route for a tenant with these keys; writing verbs with an empty object unless a body is given."""
    if body is None and route.verb not in ("GET", "DELETE"):
        body = {}
    given = [*(headers or []), *(("x-api-key", key) for key in keys)]
    with httpx.Client(base_url=stack.rest, timeout=60, verify=NO_CERTIFICATES) as client:
        return client.request(route.verb, route.path(tenant_id), headers=given, json=body)


def spoofed(tenant_id: str) -> list[tuple[str, str]]:
    """Every way to claim to be somebody else."""
    identity = {"x-tenant-id": tenant_id, "x-role": "PLATFORM_ADMIN", "x-key-id": "k", "x-peer-token": "t"}
    return [
        *identity.items(),
        *((name.title(), value) for name, value in identity.items()),
        *((name.upper(), value) for name, value in identity.items()),
        *((name + "-bin", base64.b64encode(value.encode()).decode()) for name, value in identity.items()),
        *(("grpc-metadata-" + name, value) for name, value in identity.items()),
        ("x-envoy-original-path", OPEN),
    ]


def reason(answer: httpx.Response) -> str:
    details = answer.json()["details"]
    return str(details[0]["reason"]) if details else ""


# --- keys ---


@ROUTES
def test_without_a_key_every_route_is_401(stack: Stack, theirs: Tenant, route: Route) -> None:
    answer = send(stack, route, theirs.tenant_id, headers=spoofed(theirs.tenant_id))
    if route.template == OPEN:
        # Open in the local stack: let in, and told what is missing.
        assert (answer.status_code, reason(answer)) == (400, "REQUEST_INVALID")
        return
    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"code", "message", "details"} and answer.json()["code"] == 16
    assert theirs.tenant_id not in answer.text


@ROUTES
def test_two_keys_are_none(stack: Stack, mine: Tenant, theirs: Tenant, route: Route) -> None:
    for keys in ((mine.key, mine.key), (mine.key, theirs.key), (theirs.key, stack.admin_api_key)):
        assert send(stack, route, mine.tenant_id, *keys).status_code == 401


def test_a_key_that_is_almost_right_is_none(stack: Stack, mine: Tenant) -> None:
    (route,) = [route for route in routes() if str(route) == "GET /api/v1/tenants/{tenant_id}"]
    middle = len(mine.key) // 2
    flipped = mine.key[:middle] + ("a" if mine.key[middle] != "a" else "b") + mine.key[middle + 1 :]
    almost = [mine.key[:-1], mine.key + "a", flipped, mine.key.upper(), mine.key.replace("_", "-"), "a" * 10_000]
    almost += [stack.admin_api_key[:-1], f"Bearer {mine.key}", f'"{mine.key}"', mine.tenant_id]
    for key in almost:
        assert send(stack, route, mine.tenant_id, key).status_code == 401, key
    assert send(stack, route, mine.tenant_id, mine.key).status_code == 200


# --- tenants ---


@pytest.mark.parametrize("route", [route for route in routes() if route.names_tenant], ids=str)
def test_another_tenants_path_answers_as_one_that_does_not_exist(
    stack: Stack, mine: Tenant, theirs: Tenant, runner: str, route: Route
) -> None:
    for key in (mine.key, runner):
        for body in (None, {"nonsense": True}) if route.verb not in ("GET", "DELETE") else (None,):
            there, nowhere = (
                send(stack, route, tenant_id, key, headers=spoofed(tenant_id), body=body)
                for tenant_id in (theirs.tenant_id, UNKNOWN)
            )
            assert (there.status_code, reason(there)) == (404, "TENANT_NOT_FOUND"), there.text
            assert (there.status_code, there.content) == (nowhere.status_code, nowhere.content)
            assert {k: v for k, v in there.headers.items() if k not in VOLATILE} == {
                k: v for k, v in nowhere.headers.items() if k not in VOLATILE
            }


def test_spoofed_headers_change_nothing_for_a_key(stack: Stack, mine: Tenant, theirs: Tenant) -> None:
    with stack.http(mine.key) as http:
        for path in (f"/api/v1/tenants/{mine.tenant_id}", f"/api/v1/pipelines/runs/{mine.tenant_id}"):
            plain, claimed = http.get(path), http.get(path, headers=spoofed(theirs.tenant_id))
            assert plain.status_code == claimed.status_code == 200
            assert plain.content == claimed.content
        # A parameter of the path's name is judged as the path would be.
        answer = http.get(f"/api/v1/tenants/{mine.tenant_id}", params={"tenant_id": theirs.tenant_id})
        assert answer.status_code == 404
        listed = http.post(
            f"/api/v1/tenants/{mine.tenant_id}/api-keys", json={"tenant_id": theirs.tenant_id, "role": "RUNNER"}
        )
        assert listed.status_code in (400, 404)


# --- roles ---


@pytest.mark.parametrize(
    "route", [route for route in routes() if RULES[route.grpc_path].role in ("ADMIN", "PLATFORM_ADMIN")], ids=str
)
def test_a_key_that_is_too_weak_is_403(stack: Stack, mine: Tenant, runner: str, route: Route) -> None:
    weak = [runner] if RULES[route.grpc_path].role == "ADMIN" else [mine.key, runner]
    for key in weak:
        answer = send(stack, route, mine.tenant_id, key)
        assert (answer.status_code, reason(answer)) == (403, "ROLE_TOO_LOW"), answer.text


# --- what nobody reaches ---


@pytest.mark.parametrize("method", internal_methods(), ids=lambda method: method.full_name)
def test_no_internal_rpc_is_reachable(stack: Stack, mine: Tenant, method: MethodDescriptor) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    with grpc.insecure_channel(stack.grpc) as channel:
        for key, code in (
            ("", grpc.StatusCode.UNAUTHENTICATED),
            *((k, grpc.StatusCode.UNIMPLEMENTED) for k in _keys(stack, mine)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", metadata=[("x-api-key", key)] if key else [], timeout=20)
            assert caught.value.code() is code  # type: ignore[attr-defined]
    for key in _keys(stack, mine):
        with stack.http(key) as http:
            for kind in ("application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"):
                message = struct.pack(">BI", 0, 0)
                content = base64.b64encode(message) if "text" in kind else message
                web = http.post(path, headers={"content-type": kind}, content=content)
                assert web.headers.get("grpc-status") == "12" or web.status_code == 404
            for content_type in ("application/json", "text/plain", "application/x-protobuf"):
                answer = http.post(path, headers={"content-type": content_type}, content=b"{}")
                assert (answer.status_code, answer.json()["code"]) == (404, 5)


def _keys(stack: Stack, mine: Tenant) -> tuple[str, str]:
    return mine.key, stack.admin_api_key


def test_the_services_own_ports_believe_nobody_but_the_gateway(stack: Stack, mine: Tenant, theirs: Tenant) -> None:
    process = stack.now().processes["tenant"]
    claim = [("x-tenant-id", theirs.tenant_id), ("x-role", "PLATFORM_ADMIN"), ("x-key-id", "k")]
    request = tenant_pb2.GetTenantRequest(tenant_id=theirs.tenant_id)
    with grpc.insecure_channel(process["address"]) as channel:
        get = tenant_pb2_grpc.TenantServiceStub(channel).GetTenant
        for metadata, code in (
            (claim, grpc.StatusCode.UNAUTHENTICATED),
            ([*claim, ("x-peer-token", "guess")], grpc.StatusCode.UNAUTHENTICATED),
            ([*claim, ("x-api-key", mine.key)], grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                get(request, metadata=metadata, timeout=20)
            assert caught.value.code() is code  # type: ignore[attr-defined]
        assert get(request, metadata=[("x-api-key", theirs.key)], timeout=20).tenant_id == theirs.tenant_id
    with grpc.insecure_channel(process["internal_address"]) as channel:
        for metadata in (claim, [("x-api-key", stack.admin_api_key)]):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/convergence.tenant.v1.TenantQuotaService/ListExpiredGrants")(
                    b"", metadata=metadata, timeout=20
                )
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_other_paths_open_for_nobody(stack: Stack) -> None:
    with stack.http() as http:
        for path in ("/", "/api/v1/", "/authenticate/api/v1/tenants", "/config_dump", "/stats", "/metrics", "/ready"):
            for verb in ("GET", "POST", "PUT"):
                assert http.request(verb, path).status_code == 401, path
    with stack.admin() as http:
        for path in (
            "/",
            "/api/v1/nonsense",
            "/authenticate/api/v1/tenants",
            "/config_dump",
            "/stats",
            "/quitquitquit",
        ):
            answer = http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, 5), path


# --- answers ---


def test_health_needs_no_key(stack: Stack) -> None:
    answer = httpx.get(stack.rest + "/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "SERVING"})


def test_the_documentation_needs_no_key(stack: Stack) -> None:
    assert "Convergence API" in httpx.get(stack.rest + "/docs").text
    document = httpx.get(stack.rest + "/openapi.json").json()
    assert set(document["paths"]) == {route.template for route in routes()}


def test_browsers_are_told_what_they_may(stack: Stack, mine: Tenant) -> None:
    origin, path = "http://localhost:3000", f"/api/v1/tenants/{mine.tenant_id}"
    asked = {"access-control-request-method": "PATCH", "access-control-request-headers": "x-api-key,idempotency-key"}
    with stack.http() as http:
        allowed = http.options(path, headers={"origin": origin, **asked})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
        for name in ("x-api-key", "x-user-id", "idempotency-key", "content-type"):
            assert name in allowed.headers["access-control-allow-headers"]
        other = http.options(path, headers={"origin": "http://evil.example", **asked})
        assert other.status_code == 401 and "access-control-allow-origin" not in other.headers
        refused = http.get(path, headers={"origin": origin})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
    with stack.http(mine.key) as http:
        good = http.get(path, headers={"origin": origin})
        for name in ("retry-after", "x-request-id", "ratelimit"):
            assert name in good.headers["access-control-expose-headers"]


def test_errors_are_json_with_a_reason_and_a_request_id(stack: Stack, mine: Tenant) -> None:
    with stack.http(mine.key) as http:
        base = f"/api/v1/tenants/{mine.tenant_id}"
        for answer, status in (
            (http.get(f"{base}/api-keys", params={"page_size": -1}), 400),
            (http.get(f"{base}/api-keys", params={"nonsense": 1}), 400),
            (http.get(f"{base}/nonsense"), 404),
            (http.put(base, json={}), 404),
            (http.post(f"{base}/api-keys", content=b"{bad"), 400),
            (http.post(f"{base}/credentials", content=b" " * 2_000_000, headers={"expect": "100-continue"}), 413),
            (http.get("/api/v1/tenants"), 403),
            (http.get(f"/api/v1/pipelines/runs/{mine.tenant_id}/{uuid.uuid4()}"), 404),
        ):
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/json"
            assert answer.json().keys() == {"code", "message", "details"} and answer.json()["message"]
            assert uuid.UUID(answer.headers["x-request-id"])
            assert answer.headers["x-request-id"] not in answer.text


# --- gRPC through the same door ---


def test_grpc_with_a_key_works_through_the_gateway(stack: Stack, mine: Tenant, theirs: Tenant) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        get = tenant_pb2_grpc.TenantServiceStub(channel).GetTenant
        own = tenant_pb2.GetTenantRequest(tenant_id=mine.tenant_id)
        assert get(own, metadata=[("x-api-key", mine.key)], timeout=20).tenant_id == mine.tenant_id
        with pytest.raises(grpc.RpcError) as caught:
            get(tenant_pb2.GetTenantRequest(tenant_id=theirs.tenant_id), metadata=[("x-api-key", mine.key)], timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_buf_curl_finds_its_way_by_reflection(stack: Stack, mine: Tenant) -> None:
    key = f"x-api-key: {mine.key}"
    curl = [str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    listed = subprocess.run(
        [*curl, "--reflect-header", key, "--list-services", stack.rest],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) >= set(PUBLIC_SERVICES)
    asked = subprocess.run(
        [
            *curl,
            *("--reflect-header", key, "-H", key, "-d", f'{{"tenant_id": "{mine.tenant_id}"}}'),
            f"{stack.rest}/convergence.tenant.v1.TenantService/GetTenant",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 0 and mine.tenant_id in asked.stdout, asked.stderr
