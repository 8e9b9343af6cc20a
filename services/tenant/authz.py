"""The gateway's question "who is this?", over HTTP: ``/authenticate/<original path>`` with the client's ``x-api-key``.

It only authenticates; what a caller may do is decided by each service on the decoded message. HTTP because Envoy then
asks an ASGI endpoint: a Python gRPC authorisation server would halve the gateway's throughput. Every answer that lets
a request through sets all three identity headers, so that none a client sent can survive, and has the key removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from datetime import timedelta
from functools import partial
from typing import Any

import uvicorn
from google.protobuf import json_format
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from libs import access, errors, grpc_errors, logs
from libs.denials import Denials
from libs.tenancy import Caller, Role
from libs.tls import Tls
from services.tenant.keys import KeyRefused

PREFIX = "/authenticate"
# The gateway looks whether the endpoint is there; whether it knows any keys is said by each answer.
HEALTH = "/health"
ONBOARDING_PATHS = frozenset({"/api/v1/tenants/onboard", "/convergence.tenant.v1.TenantService/OnboardTenant"})
_HTTP = {"UNAUTHENTICATED": 401, "UNAVAILABLE": 503}
_MAX_KEY = 512
_LOOK_SECONDS = 10.0
_JSON = (b"content-type", b"application/json")

type Scope = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
type Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
type Headers = list[tuple[bytes, bytes]]

_log = logs.get(__name__)


class Authz:
    """The ASGI application."""

    def __init__(
        self,
        authenticate: Callable[[str], Awaitable[Caller]],
        good_for: Callable[[Caller], timedelta],
        denials: Denials,
        *,
        onboarding_open: bool,
    ) -> None:
        """``good_for`` says how long the gateway may believe an answer without asking again."""
        self._authenticate = authenticate
        self._good_for = good_for
        self._denials = denials
        self._onboarding_open = onboarding_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, headers, body = 200, [], b""
            if scope["path"] != HEALTH:
                who = await self._identify(scope)
                headers = _identity(who)
                if who.key_id and (milliseconds := self._good_for(who) // timedelta(milliseconds=1)) > 0:
                    headers.append((b"x-good-for-ms", str(milliseconds).encode()))
        except Exception as exc:
            self._note(exc, scope)
            status, headers, body = _refusal(exc)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _identify(self, scope: Scope) -> Caller:
        path: str = scope["path"]
        if not path.startswith(PREFIX + "/"):
            raise errors.Unauthenticated("API_KEY_MISSING", "This address only answers the gateway.")
        keys = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-api-key"]
        if not keys and self._onboarding_open and path.removeprefix(PREFIX) in ONBOARDING_PATHS:
            return Caller(Role.ONBOARDER)
        # A proxy joins repeated headers with a comma, which no key contains.
        if len(keys) != 1 or not keys[0] or len(keys[0]) > _MAX_KEY:
            raise errors.Unauthenticated("API_KEY_MISSING", "Send exactly one API key in the x-api-key header.")
        if "," in keys[0]:
            raise errors.Unauthenticated("API_KEY_INVALID", "Send exactly one API key in the x-api-key header.")
        return await self._authenticate(keys[0])

    def _note(self, exc: BaseException, scope: Scope) -> None:
        if isinstance(exc, KeyRefused):
            # Set by the gateway from the hops it trusts; x-forwarded-for ends with the gateway's own address.
            addresses = [value for name, value in scope["headers"] if name == b"x-envoy-external-address"]
            self._denials.note(
                tenant_id=exc.tenant_id,
                key_id=exc.key_id,
                reason=exc.cause,
                source_ip=addresses[-1].decode("latin-1") if addresses else "",
                method=scope["path"].removeprefix(PREFIX)[:200],
            )
        elif not isinstance(exc, errors.Unauthenticated | errors.Unavailable):
            _log.error("authentication_failed", exc_info=exc)


def _identity(who: Caller) -> Headers:
    return [
        (b"x-tenant-id", who.tenant_id.encode()),
        (b"x-role", who.role.value.encode() if who.role else b""),
        (b"x-key-id", who.key_id.encode()),
        (b"x-envoy-auth-headers-to-remove", b"x-api-key"),
    ]


def _refusal(exc: Exception) -> tuple[int, Headers, bytes]:
    status = json_format.MessageToDict(grpc_errors.to_status(exc))
    error = grpc_errors.public(exc)
    headers = [_JSON]
    if isinstance(error, errors.Unauthenticated):
        headers.append((b"www-authenticate", b'ApiKey realm="convergence"'))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after.total_seconds()))).encode()))
    return _HTTP.get(error.kind, 503), headers, json.dumps(status).encode()


class Endpoint:
    """Serves an ASGI application on one address, in the running loop, from ``open`` to ``close``."""

    def __init__(self, application: Authz, address: str, tls: Tls | None = None) -> None:
        self._application = application
        self.address = address
        self._tls = tls
        self._context = tls.server_context() if tls else None
        self._version = tls.version() if tls else ()
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Binds the address (port 0 takes any) and serves; raises ``OSError`` if it is taken."""
        host, _, port = self.address.rpartition(":")
        host = host.strip("[]")
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(2_048)
        self.address = f"{self.address.rpartition(':')[0]}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            http=partial(_GatewayOnly, self._tls) if self._tls else "auto",  # type: ignore[arg-type]
            ssl_context_factory=(lambda *_: context) if (context := self._context) else None,
        )
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="authz")

    async def watch(self) -> None:
        """Returns, by raising, only if the endpoint ends by itself."""
        while self._serving is not None:
            await asyncio.wait([self._serving], timeout=_LOOK_SECONDS)
            if self._serving.done():
                self._serving.result()
                raise RuntimeError("the authentication endpoint ended")
            self._renew()

    def _renew(self) -> None:
        """New connections get the certificate that lies there now."""
        if self._tls is None or self._context is None:
            return
        with contextlib.suppress(OSError):  # half written: the old one is good until it expires
            if (version := self._tls.version()) != self._version:
                self._context.load_verify_locations(self._tls.authority)
                self._context.load_cert_chain(self._tls.certificate, self._tls.key)
                self._version = version

    async def close(self) -> None:
        """Takes no new request and waits for those that run."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving


class _GatewayOnly(HttpToolsProtocol):
    """Hangs up on everybody but the gateway: a key that another process could try here would be a key guessed."""

    def __init__(self, tls: Tls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tls = tls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._tls.peer_of_certificate(transport.get_extra_info("peercert")) != access.GATEWAY:
            transport.abort()


class _Uvicorn(uvicorn.Server):
    """Signals are the process's, not this endpoint's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
