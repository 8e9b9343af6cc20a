"""The real gateway before stand-in services: real gRPC servers with the real interceptor, answers made to order.

For tests of what the gateway itself does. What needs the services uses the ``stack`` fixture instead.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from deploy.envoy import descriptors
from deploy.envoy.render import Gateway, command, write
from libs import caller
from libs.errors import Unauthenticated
from libs.grpc_server import Mount, Server, build_server
from libs.settings import ServiceSettings, write_peer_tokens
from libs.tenancy import Caller, Role
from libs.tls import Tls
from services.tenant.authz import HEALTH, Endpoint
from tests.support.certificates import settings_of
from tests.support.plain import NO_CERTIFICATES

CONTEXTS = ("tenant", "credential", "pipeline_executor", "scheduler")
ADMIN_KEY = "admin-key"
KEYS = {
    "acme-key": Caller(Role.ADMIN, "acme", "key_acme"),
    "runner-key": Caller(Role.RUNNER, "acme", "key_runner"),
    "other-key": Caller(Role.ADMIN, "other_co", "key_other"),
    ADMIN_KEY: Caller(Role.PLATFORM_ADMIN),
}
IDENTITY = {"x-tenant-id": "other_co", "x-role": "PLATFORM_ADMIN", "x-key-id": "stolen", "x-peer-token": "stolen"}
_WAIT_SECONDS = 30.0


@dataclass
class Call:
    """One call that reached a stand-in service."""

    method: str
    request: Any
    caller: Caller
    metadata: list[tuple[str, str | bytes]]
    remaining: float | None
    idempotency_key: str | None


@dataclass
class StandIns:
    """The gateway's address, what reached the services, and how they answer.

    ``answers`` maps ``Service/Method`` to a function of the request: it returns the response (a list for a stream) or
    raises. Methods without one answer with an empty message.
    """

    base_url: str = ""
    directory: Path = Path()
    addresses: dict[str, str] = field(default_factory=dict)
    internal_addresses: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    asked: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)
    answers: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    authz_status: int | None = None
    authz_seconds: float = 0.0
    good_for_ms: int = 0
    identities: Mapping[str, Tls] = field(default_factory=dict)

    def reset(self) -> None:
        """Forgets calls and answers; between tests."""
        self.calls.clear()
        self.asked.clear()
        self.answers.clear()
        self.authz_status, self.authz_seconds = None, 0.0
        self.good_for_ms = 0


async def authenticate(api_key: str) -> Caller:
    """The stand-ins' keys; raises ``Unauthenticated`` for any other."""
    try:
        return KEYS[api_key]
    except KeyError:
        raise Unauthenticated("API_KEY_UNKNOWN", "The API key is not known.") from None


def services_of(context: str) -> list[ServiceDescriptor]:
    """All services of a context's contract, public and internal."""
    module = importlib.import_module(f"convergence.{context}.v1.{context}_pb2")
    return list(module.DESCRIPTOR.services_by_name.values())


def _servicer(service: ServiceDescriptor, stand_ins: StandIns) -> object:
    def unary(method: MethodDescriptor) -> Callable[..., Any]:
        async def answer(_self: object, request: Any, context: Any) -> Any:
            return _answer(method, request, context, stand_ins)

        return answer

    def stream(method: MethodDescriptor) -> Callable[..., Any]:
        async def answer(_self: object, request: Any, context: Any) -> AsyncIterator[Any]:
            given = _answer(method, request, context, stand_ins)
            try:
                for response in given if isinstance(given, list | Iterator) else [given]:
                    yield response
                    await asyncio.sleep(0)
            finally:
                if isinstance(given, Generator):
                    given.close()

        return answer

    methods = {m.name: stream(m) if m.server_streaming else unary(m) for m in service.methods}
    return type(service.name, (), methods)()


def _answer(method: MethodDescriptor, request: Any, context: Any, stand_ins: StandIns) -> Any:
    stand_ins.calls.append(
        Call(
            f"{method.containing_service.name}/{method.name}",
            request,
            caller.current(),
            list(context.invocation_metadata()),
            caller.remaining(),
            caller.idempotency_key(),
        )
    )
    given = stand_ins.answers.get(f"{method.containing_service.name}/{method.name}")
    return given(request) if given else message_factory.GetMessageClass(method.output_type)()


def _mount(context: str, service: ServiceDescriptor, stand_ins: StandIns) -> Mount:
    module = importlib.import_module(f"convergence.{context}.v1.{context}_pb2_grpc")
    return getattr(module, f"add_{service.name}Servicer_to_server"), _servicer(service, stand_ins)


def build(
    context: str,
    peers_dir: Path,
    stand_ins: StandIns,
    *,
    authenticate: Callable[[str], Awaitable[Caller]] = authenticate,
    onboarding: str = "open",
    tls: Tls | None = None,
) -> Server:
    """One stand-in service with all of its context's methods, on two free ports."""

    class Settings(ServiceSettings):
        service: ClassVar[str] = context

    settings = Settings(
        gcp_project_id="local-project",
        environment="local",
        listen="127.0.0.1:0",
        internal_listen="127.0.0.1:0",
        peers_dir=peers_dir,
        onboarding=onboarding,
        reflection=context == "tenant",
        **(settings_of(tls) if tls else {}),
    )
    services = services_of(context)
    return build_server(
        settings,
        public=[_mount(context, s, stand_ins) for s in services if s.full_name in descriptors.PUBLIC_SERVICES],
        internal=[_mount(context, s, stand_ins) for s in services if s.full_name not in descriptors.PUBLIC_SERVICES],
        authenticate=authenticate,
        reflect=descriptors.PUBLIC_SERVICES,
    )


def _authz(stand_ins: StandIns) -> Any:
    """The authorisation endpoint of the tenant service, by the same rules."""

    async def app(scope: dict[str, Any], _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        if scope["path"] == HEALTH:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        stand_ins.asked.append((scope["raw_path"].decode(), headers))
        await asyncio.sleep(stand_ins.authz_seconds)
        keys = [value for name, value in headers if name == "x-api-key"]
        who = KEYS.get(keys[0]) if len(keys) == 1 else None
        if not keys and scope["path"] == "/authenticate/api/v1/tenants/onboard":
            who = Caller(Role.ONBOARDER)
        status = stand_ins.authz_status or (200 if who else 401)
        answer = [(b"content-type", b"application/json")]
        body = b""
        if status == 200 and who:
            answer += [
                (b"x-tenant-id", who.tenant_id.encode()),
                (b"x-role", str(who.role).encode()),
                (b"x-key-id", who.key_id.encode()),
                (b"x-envoy-auth-headers-to-remove", b"x-api-key"),
            ]
            answer += [(b"x-good-for-ms", str(stand_ins.good_for_ms).encode())] if stand_ins.good_for_ms else []
        else:
            body = json.dumps({"code": 16, "message": "Send one valid API key.", "details": []}).encode()
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": body})

    return app


async def _serve(stand_ins: StandIns, ready: threading.Event, stop: asyncio.Event) -> None:
    peers = stand_ins.directory / "peers"
    write_peer_tokens(peers, ["gateway", "cron", *CONTEXTS])
    identities = stand_ins.identities
    servers = {context: build(context, peers, stand_ins, tls=identities.get(context)) for context in CONTEXTS}
    authz = Endpoint(_authz(stand_ins), "127.0.0.1:0", identities.get("tenant"))
    await authz.open()
    for context, server in servers.items():
        await server.start()
        stand_ins.addresses[context] = server.public_address
        stand_ins.internal_addresses[context] = server.internal_address
    stand_ins.addresses["authz"] = authz.address
    ready.set()
    await stop.wait()
    for server in servers.values():
        await server.stop(0)
    await authz.close()


@contextmanager
def running_services(directory: Path, identities: Mapping[str, Tls] | None = None) -> Iterator[StandIns]:
    """The stand-in services without a gateway; with ``identities``, by context, they speak TLS."""
    stand_ins = StandIns(directory=directory, identities=identities or {})
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(stand_ins, ready, stop)), daemon=True)
    thread.start()
    try:
        assert ready.wait(_WAIT_SECONDS), "the stand-in services did not start"
        yield stand_ins
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_WAIT_SECONDS)
        loop.close()


@contextmanager
def running_gateway(
    directory: Path,
    *,
    port: int,
    healthy: bool = True,
    identities: Mapping[str, Tls] | None = None,
    edit: Callable[[str], str] = str,
    **changes: Any,
) -> Iterator[StandIns]:
    """The gateway and the stand-in services behind it; ``changes`` go to ``Gateway``, ``edit`` changes its text.

    Waits until it reports itself healthy, or, where that is not to be expected, until it answers at all.
    """
    with running_services(directory, identities) as stand_ins:
        descriptors.write(directory / "contract.binpb")
        stand_ins.base_url = f"http://127.0.0.1:{port}"
        gateway = Gateway(
            listen=f"127.0.0.1:{port}",
            descriptors=directory / "contract.binpb",
            **(
                {name: stand_ins.addresses[name] for name in (*CONTEXTS, "authz")}
                | {"cors_origins": ["http://localhost:3000"], "token_file": directory / "peers" / "gateway.token"}
                | changes
            ),
        )
        config = directory / "envoy.yaml"
        write(gateway, config)
        config.write_text(edit(config.read_text()))
        with (directory / "envoy.log").open("wb") as log:
            arguments = [*command(config, concurrency=1), "--file-flush-interval-msec", "50"]
            process = subprocess.Popen(arguments, stdout=log, stderr=log)
        try:
            _wait(stand_ins.base_url, process, directory / "envoy.log", {200} if healthy else {200, 503})
            yield stand_ins
        finally:
            process.terminate()
            process.wait(_WAIT_SECONDS)


def _wait(base_url: str, process: subprocess.Popen[bytes], log: Path, statuses: set[int]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(base_url + "/health", timeout=1, verify=NO_CERTIFICATES).status_code in statuses:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(log.read_text()[-4000:])


def public_methods() -> list[MethodDescriptor]:
    """Every method of the public contract."""
    pool = descriptor_pool.Default()
    return [method for name in descriptors.PUBLIC_SERVICES for method in pool.FindServiceByName(name).methods]


def internal_methods() -> list[MethodDescriptor]:
    """Every method that only peers may call."""
    return [
        method
        for context in CONTEXTS
        for service in services_of(context)
        if service.full_name not in descriptors.PUBLIC_SERVICES
        for method in service.methods
    ]


def send(edge: StandIns, method: str, path: str, key: str = "acme-key", **arguments: Any) -> httpx.Response:
    """One request to the gateway on a connection of its own; without ``key``, none is sent."""
    headers = [*(arguments.pop("headers", None) or []), *([("x-api-key", key)] if key else [])]
    with httpx.Client(base_url=edge.base_url, timeout=20, verify=NO_CERTIFICATES) as client:
        return client.request(method, path, headers=headers, **arguments)


def wire(path: str, body: bytes = b"") -> bytes:
    """A gRPC message as it travels."""
    return struct.pack(">BI", 0, len(body)) + body


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
