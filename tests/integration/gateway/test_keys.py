"""One good key opens, what it opens is asked of who authenticates, and little needs none."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from convergence.tenant.v1 import tenant_pb2

from deploy.envoy import pages
from libs.tenancy import Caller, Role
from tests.support.gateway import IDENTITY, KEYS, StandIns, running_gateway, send
from tests.support.ports import free_port
from tests.support.routes import routes

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


# --- who authenticates ---


def test_without_authorisation_nothing_opens(edge: StandIns) -> None:
    for status in (500, 503, 302):
        edge.authz_status = status
        answer = send(edge, "GET", "/api/v1/tenants/acme")
        assert answer.status_code in (503, 302), answer.text
        if answer.status_code == 503:
            assert answer.json()["code"] == 14
    assert edge.calls == []


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
