"""Who gets through every rpc of the contract: the matrix, made from the descriptors, on real servers and real keys.

The servers are stand-ins behind the real interceptor; the keys are made, rotated and revoked by the tenant context's
own code on a store in memory. What is expected is written down here anew, from the words of the rule, not computed by
the code that is tested. Through the gateway: ``tests/integration/gateway/``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2

from libs import access
from libs.settings import write_peer_tokens
from libs.tenancy import Role
from services.tenant.keys import new_key
from tests.support.fakes import Clock
from tests.support.gateway import CONTEXTS, StandIns, build, internal_methods, public_methods
from tests.support.routes import names_tenant
from tests.support.tenant_world import ADMIN_KEY, Disk, Process, stays

PEERS = ("gateway", "cron", *CONTEXTS)
NOBODIES = ("no key", "malformed", "unknown", "wrong secret", "revoked", "expired", "rotated away", "two keys")
STRENGTH = {"runner": 1, "tenant admin": 2, "platform admin": 3}
NEEDED = {"RUNNER": 1, "ADMIN": 2, "PLATFORM_ADMIN": 3}
# What a client may claim to be; without the gateway's token it is worth nothing.
FORGED = (
    ("x-tenant-id", "acme"),
    ("x-tenant-id", "other_co"),
    ("x-role", "PLATFORM_ADMIN"),
    ("x-key-id", "admin"),
    ("x-tenant-id-bin", b"acme"),
    ("x-role-bin", b"PLATFORM_ADMIN"),
    ("x-peer", "gateway"),
    ("grpc-metadata-x-role", "PLATFORM_ADMIN"),
    ("x-envoy-external-address", "127.0.0.1"),
)
# Callers as the gateway names them.
VOUCHED = {
    "runner": (("x-tenant-id", "acme"), ("x-role", "RUNNER"), ("x-key-id", "k")),
    "tenant admin": (("x-tenant-id", "acme"), ("x-role", "ADMIN"), ("x-key-id", "k")),
    "platform admin": (("x-tenant-id", ""), ("x-role", "PLATFORM_ADMIN"), ("x-key-id", "admin")),
    "two roles": (("x-tenant-id", "acme"), ("x-role", "RUNNER"), ("x-role", "PLATFORM_ADMIN"), ("x-key-id", "k")),
    "no role": (("x-tenant-id", "acme"), ("x-role-bin", b"PLATFORM_ADMIN"), ("x-key-id", "k")),
    "made-up role": (("x-tenant-id", "acme"), ("x-role", "platform_admin"), ("x-key-id", "k")),
}
# What must never become weaker than this, whatever else the contract says one day.
AT_LEAST = {
    "ADMIN": {
        *("UpdateTenant", "ListAuditRecords", "CreateApiKey", "ListApiKeys", "DeleteApiKey", "RotateApiKey"),
        *("CreateCredential", "UpdateCredential", "DeleteCredential", "ValidateCredential"),
    },
    "PLATFORM_ADMIN": {"ListTenants", "DeleteTenant", "SuspendTenant", "ReactivateTenant", "Trigger", "ProcessQueue"},
}


@dataclass(frozen=True)
class Answer:
    """How one call ended: IN if it reached the service or its message's rules, else the code and the reason."""

    code: str
    reason: str = ""
    message: str = ""


IN = Answer("IN")
Asked = tuple[str, str, str]  # method, caller, tenant


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def ask(channel: grpc.aio.Channel, method: MethodDescriptor, metadata: Sequence[Any], tenant: str) -> Answer:
    """Calls a method for a tenant, with nothing else in the message."""
    request: Any = message_factory.GetMessageClass(method.input_type)()
    if names_tenant(method):
        request.tenant_id = tenant
    start: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = start(path_of(method))(request.SerializeToString(), metadata=metadata, timeout=60)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as refused:
        return _answer(refused)
    return IN


def _answer(refused: grpc.aio.AioRpcError) -> Answer:
    details = dict(refused.trailing_metadata()).get("grpc-status-details-bin")
    if details is None:
        return Answer(refused.code().name)
    status, info = status_pb2.Status.FromString(bytes(details)), error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    # What the message's own rules refuse has passed the door.
    return IN if info.reason == "REQUEST_INVALID" else Answer(refused.code().name, info.reason, status.message)


async def make_keys(process: Process, disk: Disk) -> Mapping[str, list[str]]:
    """The keys of each kind of caller, as they are sent."""
    keys = process.keys

    async def made(tenant_id: str, role: Role = Role.ADMIN, **more: Any) -> Any:
        given = {"name": "", "expires_at": None, "created_by": "", "must_stay": stays, **more}
        return await keys.create(tenant_id, role=role, **given)

    runner, admin, other = await made("acme", Role.RUNNER), await made("acme"), await made("other_co")
    revoked, rotated = await made("acme"), await made("acme")
    expired = await made("acme", expires_at=disk.clock() + timedelta(seconds=1))
    await keys.revoke("acme", revoked.key.api_key_id)
    await keys.rotate("acme", rotated.key.api_key_id, timedelta(), "")
    disk.clock.advance(seconds=5)
    await process.ring.refresh()
    wrong = type(new_key("test"))("test", admin.key.api_key_id, new_key("test").secret)
    return {
        "no key": [],
        "malformed": [admin.text[:-1]],
        "unknown": [new_key("test").text()],
        "wrong secret": [wrong.text()],
        "revoked": [revoked.text],
        "expired": [expired.text],
        "rotated away": [rotated.text],
        "two keys": [admin.text, admin.text],
        "runner": [runner.text],
        "tenant admin": [admin.text],
        "platform admin": [ADMIN_KEY],
        "other tenant": [other.text],
    }


async def walk(directory: Path) -> tuple[dict[Asked, Answer], dict[Asked, Answer], dict[Asked, Answer]]:
    """Asks everything: on the public ports plainly and with forged metadata, and on the internal ports."""
    write_peer_tokens(directory, list(PEERS))
    disk = Disk(Clock())
    process = Process(disk)
    await process.ring.refresh()
    keys = await make_keys(process, disk)
    tokens = {peer: [("x-peer-token", (directory / f"{peer}.token").read_text().strip())] for peer in PEERS}
    plain: dict[Asked, Answer] = {}
    forged: dict[Asked, Answer] = {}
    internal: dict[Asked, Answer] = {}
    async with AsyncExitStack() as stack:
        public_of, internal_of = {}, {}
        for context in CONTEXTS:
            server = build(context, directory, StandIns(), authenticate=process.ring.authenticate, onboarding="admin")
            await server.start()
            stack.push_async_callback(server.stop, 0)
            public_of[context] = await stack.enter_async_context(grpc.aio.insecure_channel(server.public_address))
            if server.internal_address:
                internal_of[context] = await stack.enter_async_context(
                    grpc.aio.insecure_channel(server.internal_address)
                )
        for method in (*public_methods(), *internal_methods()):
            channel = public_of[method.full_name.split(".")[1]]
            for who, sent in keys.items():
                metadata = [("x-api-key", key) for key in sent]
                for tenant in ("acme", "other_co", "never_was_here"):
                    asked = (method.full_name, who, tenant)
                    plain[asked] = await ask(channel, method, metadata, tenant)
                    forged[asked] = await ask(channel, method, [*FORGED, *metadata], tenant)
            for peer, token in tokens.items():
                plain[method.full_name, peer, "acme"] = await ask(channel, method, token, "acme")
            for who, identity in VOUCHED.items():
                for tenant in ("acme", "other_co"):
                    metadata = [*tokens["gateway"], *identity]
                    forged[method.full_name, f"vouched {who}", tenant] = await ask(channel, method, metadata, tenant)
        for method in internal_methods():
            channel = internal_of[method.full_name.split(".")[1]]
            for peer, token in tokens.items():
                internal[method.full_name, peer, "acme"] = await ask(channel, method, token, "acme")
            for who, sent in keys.items():
                metadata = [*FORGED, *(("x-api-key", key) for key in sent)]
                internal[method.full_name, who, "acme"] = await ask(channel, method, metadata, "acme")
    return plain, forged, internal


@pytest.fixture(scope="module")
def walked(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[Asked, Answer], dict[Asked, Answer], dict[Asked, Answer]]]:
    yield asyncio.run(walk(tmp_path_factory.mktemp("peers")))


RULES = access.rules_of(sorted({m.containing_service.full_name for m in (*public_methods(), *internal_methods())}))
PUBLIC = pytest.mark.parametrize("method", public_methods(), ids=lambda method: method.full_name)
INTERNAL = pytest.mark.parametrize("method", internal_methods(), ids=lambda method: method.full_name)


def expected(method: MethodDescriptor, who: str, tenant: str) -> Answer:
    """What a caller of a public rpc hears, without the words."""
    role = RULES[path_of(method)].role
    if who in NOBODIES:
        return Answer("UNAUTHENTICATED")
    if who == "platform admin":
        return IN
    if role == "ONBOARDER":
        return Answer("PERMISSION_DENIED", "ROLE_TOO_LOW")
    if role == "ANY_KEY":
        return IN
    own = "other_co" if who == "other tenant" else "acme"
    if names_tenant(method) and tenant != own:
        return Answer("NOT_FOUND", "TENANT_NOT_FOUND")
    strength = STRENGTH["tenant admin" if who == "other tenant" else who]
    return IN if strength >= NEEDED[role] else Answer("PERMISSION_DENIED", "ROLE_TOO_LOW")


@PUBLIC
def test_every_public_rpc_lets_in_whom_its_rule_names(walked: Any, method: MethodDescriptor) -> None:
    plain, forged, _ = walked
    callers = (*NOBODIES, *STRENGTH, "other tenant")
    for who, tenant in itertools.product(callers, ("acme", "other_co", "never_was_here")):
        asked = (method.full_name, who, tenant)
        wanted = expected(method, who, tenant)
        got = plain[asked]
        assert got.code == wanted.code and (not wanted.reason or got.reason == wanted.reason), (asked, got, wanted)
        assert forged[asked] == got, (asked, "forged metadata changed something")
    for who in (*STRENGTH, "other tenant"):
        strangers = {"acme", "other_co", "never_was_here"} - {"other_co" if who == "other tenant" else "acme"}
        heard = {plain[method.full_name, who, tenant] for tenant in strangers}
        assert len(heard) == 1, "another tenant's and nobody's sound alike"


@PUBLIC
def test_one_bad_key_sounds_like_another(walked: Any, method: MethodDescriptor) -> None:
    plain, _, _ = walked
    alike = [who for who in NOBODIES if who not in ("no key", "two keys")]
    assert {plain[method.full_name, who, "acme"] for who in alike} == {
        Answer("UNAUTHENTICATED", "API_KEY_INVALID", "The API key is not valid.")
    }


@PUBLIC
def test_a_peer_calls_a_public_rpc_only_if_its_rule_names_it(walked: Any, method: MethodDescriptor) -> None:
    plain, _, _ = walked
    for peer in PEERS:
        got = plain[method.full_name, peer, "acme"]
        if peer == "gateway":
            # It vouches for somebody or for nobody; here for nobody.
            assert got.code == "UNAUTHENTICATED", got
        elif peer in RULES[path_of(method)].peers:
            assert got == IN, (peer, got)
        else:
            assert (got.code, got.reason) == ("PERMISSION_DENIED", "PEER_NOT_ALLOWED"), (peer, got)


@PUBLIC
def test_whom_the_gateway_names_is_who_the_key_would_be(walked: Any, method: MethodDescriptor) -> None:
    plain, forged, _ = walked
    for who, tenant in itertools.product(VOUCHED, ("acme", "other_co")):
        got = forged[method.full_name, f"vouched {who}", tenant]
        if who in STRENGTH:
            assert got == plain[method.full_name, who, tenant], (who, tenant)
        else:
            assert got.code == "UNAUTHENTICATED", (who, tenant, got)


@INTERNAL
def test_every_internal_rpc_is_for_its_peers_alone(walked: Any, method: MethodDescriptor) -> None:
    plain, forged, internal = walked
    for who in (*NOBODIES, *STRENGTH, "other tenant"):
        assert plain[method.full_name, who, "acme"].code == "UNIMPLEMENTED", "it is on the public port"
        assert forged[method.full_name, who, "acme"].code == "UNIMPLEMENTED"
        got = internal[method.full_name, who, "acme"]
        assert (got.code, got.reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN"), (who, got)
    for peer in PEERS:
        got = internal[method.full_name, peer, "acme"]
        if peer in RULES[path_of(method)].peers:
            assert got == IN, (peer, got)
        else:
            assert got.code in ("PERMISSION_DENIED", "UNAUTHENTICATED"), (peer, got)


def test_what_changes_something_is_not_for_the_weak() -> None:
    by_name = {method.name: RULES[path_of(method)].role for method in public_methods()}
    for role, names in AT_LEAST.items():
        for name in names:
            assert NEEDED[by_name[name]] >= NEEDED[role], name
