"""The gateway's question over HTTP: who is let through, with which headers, and what the others hear."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest

from libs import errors
from libs.audit import Outcome
from libs.denials import Denials
from libs.tenancy import Caller, Role
from services.tenant.authz import Authz, Endpoint
from services.tenant.keys import KeyRefused
from tests.support.fakes import Clock, MemoryAudit

KNOWN = {
    "runner": Caller(Role.RUNNER, tenant_id="acme", key_id="key_1"),
    "admin": Caller(Role.PLATFORM_ADMIN, key_id="admin"),
}


async def authenticate(text: str) -> Caller:
    match text:
        case "revoked":
            raise KeyRefused("REVOKED", "key_2", "acme")
        case "stale":
            raise errors.Unavailable("KEYS_UNKNOWN", "Try again.", retry_after=Clock()() - Clock()())
        case "defect":
            raise ValueError("a secret in a traceback")
        case _ if text in KNOWN:
            return KNOWN[text]
        case _:
            raise KeyRefused("UNKNOWN", text[:12])


class Gateway:
    """Asks as Envoy does."""

    def __init__(self, *, onboarding_open: bool = False) -> None:
        self.audit = MemoryAudit()
        self.clock = Clock()
        self.denials = Denials(self.audit.append, service="tenant", now=self.clock)
        self.application = Authz(authenticate, self.good_for, self.denials, onboarding_open=onboarding_open)

    def good_for(self, who: Caller) -> timedelta:
        return timedelta(milliseconds=250) if who.key_id == "key_1" else timedelta(0)

    async def ask(
        self, path: str = "/api/v1/tenants/acme", *keys: str, method: str = "GET", prefix: str = "/authenticate"
    ) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.application)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://authz") as http:
            headers = [("x-api-key", key) for key in keys]
            # What the client claims, its address, and the gateway's own, which Envoy appends when it asks.
            headers += [("x-forwarded-for", "9.9.9.9, 10.0.0.7,10.0.0.1"), ("x-envoy-external-address", "10.0.0.7")]
            return await http.request(method, prefix + path, headers=headers)


async def test_a_caller_is_let_through_with_all_three_headers_and_without_the_key() -> None:
    runner = await Gateway().ask("/any", "runner")
    assert runner.status_code == 200 and runner.content == b""
    identity = {name: runner.headers[name] for name in ("x-tenant-id", "x-role", "x-key-id")}
    assert identity == {"x-tenant-id": "acme", "x-role": "RUNNER", "x-key-id": "key_1"}
    assert runner.headers["x-envoy-auth-headers-to-remove"] == "x-api-key"
    assert runner.headers["x-good-for-ms"] == "250"
    admin = await Gateway().ask("/any", "admin", method="POST")
    assert "x-good-for-ms" not in admin.headers
    assert (admin.headers["x-tenant-id"], admin.headers["x-role"]) == ("", "PLATFORM_ADMIN")


async def test_it_says_that_it_is_there_and_lets_nobody_through_for_that() -> None:
    answer = await Gateway().ask("/health", "runner", prefix="")
    assert answer.status_code == 200 and answer.content == b""
    assert not [name for name in answer.headers if name.startswith("x-")]


@pytest.mark.parametrize(
    "keys", [(), ("",), ("runner", "runner"), ("runner,runner",), ("runner, admin",), ("x" * 513,), ("nobody",)]
)
async def test_everybody_else_is_refused_as_json(keys: tuple[str, ...]) -> None:
    refused = await Gateway().ask("/api/v1/tenants/acme", *keys)
    assert refused.status_code == 401
    body = refused.json()
    assert body["code"] == 16 and body["message"]
    info = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo" and info["domain"] == "convergence"
    assert info["reason"] in ("API_KEY_MISSING", "API_KEY_INVALID")
    assert refused.headers["content-type"] == "application/json"
    assert not {"x-tenant-id", "x-role", "x-key-id"} & set(refused.headers)


async def test_nobody_can_know_is_not_nobody_is_known() -> None:
    stale = await Gateway().ask("/any", "stale")
    assert (stale.status_code, stale.headers["retry-after"]) == (503, "1")
    assert stale.json()["code"] == 14
    defect = await Gateway().ask("/any", "defect")
    assert defect.status_code == 503
    assert "secret" not in defect.text and "x-tenant-id" not in defect.headers


ONBOARD = "/api/v1/tenants/onboard"


@pytest.mark.parametrize("path", [ONBOARD, ONBOARD + "?x=1", "/convergence.tenant.v1.TenantService/OnboardTenant"])
async def test_onboarding_needs_no_key_where_it_is_open(path: str) -> None:
    allowed = await Gateway(onboarding_open=True).ask(path, method="POST")
    assert allowed.status_code == 200
    assert (allowed.headers["x-tenant-id"], allowed.headers["x-role"], allowed.headers["x-key-id"]) == (
        "",
        "ONBOARDER",
        "",
    )
    assert (await Gateway().ask(path, method="POST")).status_code == 401
    assert (await Gateway(onboarding_open=True).ask(path, "wrong", method="POST")).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/api/v1/tenants", "/api/v1/tenants/onboard/", "/api/v1/tenants/onboard/x", "/x/api/v1/tenants/onboard",
     "//api/v1/tenants/onboard", "/api/v1/tenants/%6fnboard/..", "/API/v1/tenants/onboard"],
)  # fmt: skip
async def test_only_the_onboarding_path_is_open(path: str) -> None:
    assert (await Gateway(onboarding_open=True).ask(path)).status_code == 401


async def test_a_question_that_is_not_the_gateways_is_refused() -> None:
    assert (await Gateway().ask("/any", "runner", prefix="")).status_code == 401


async def test_refusals_are_counted_per_key_reason_and_minute() -> None:
    gateway = Gateway()
    for _ in range(40):
        await gateway.ask("/api/v1/costs/acme", "revoked")
    await gateway.ask("/any", "unknownkey00")
    await gateway.denials.flush(ended_only=True)
    assert gateway.audit.records == []
    gateway.clock.advance(seconds=60)
    await gateway.ask("/any", "revoked")
    await gateway.denials.flush(ended_only=True)
    first, second = gateway.audit.records
    assert (first.tenant_id, first.object_id, first.reason) == ("acme", "key_2", "REVOKED")
    assert (first.action, first.outcome) == ("access.deny", Outcome.DENIED)
    assert first.details == {"count": 40, "first_method": "/api/v1/costs/acme"}
    assert first.source_ip == "10.0.0.7"
    assert (second.tenant_id, second.object_id, second.details["count"]) == ("", "unknownkey00", 1)
    await gateway.denials.flush()
    assert [record.details["count"] for record in gateway.audit.records] == [40, 1, 1]


async def test_the_endpoint_serves_and_ends_without_touching_the_process() -> None:
    endpoint = Endpoint(Gateway().application, "127.0.0.1:0")
    await endpoint.open()
    async with httpx.AsyncClient() as http:
        answers = await asyncio.gather(
            *(
                http.get(f"http://{endpoint.address}/authenticate/any", headers={"x-api-key": "runner"})
                for _ in range(9)
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    await endpoint.close()
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as http:
            await http.get(f"http://{endpoint.address}/authenticate/any")


async def test_an_address_that_is_taken_stops_the_start() -> None:
    first = Endpoint(Gateway().application, "127.0.0.1:0")
    await first.open()
    with pytest.raises(OSError):
        await Endpoint(Gateway().application, first.address).open()
    await first.close()
