"""Channels to other services: who we are, how long we may take, what to try again, and errors as domain errors.

A channel from here is given to a generated stub and used as any other; a failed call raises
``libs.errors``, never a gRPC error. Console scripts get the same from ``sync_channel``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any

import grpc

from libs import caller, grpc_errors, tracing
from libs.errors import Unavailable
from libs.tls import Tls, TlsInvalid, server_name

type Metadata = Sequence[tuple[str, str | bytes]]

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # The server allows a ping every 10 s; more of them and it hangs up (GOAWAY too_many_pings).
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted neighbour is back within seconds; the default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.dns_min_time_between_resolutions_ms", 3_000),
)
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2.5,
    # A server that stops answers CANCELLED to what has come and was not begun.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
# What the answer needs to travel back before our own caller's deadline ends.
_MARGIN = 0.05
# How often a channel looks whether its certificate was renewed, and how long calls over the old one may still take.
_LOOK_SECONDS, _OLD_SECONDS = 10.0, 600.0


def channel(
    address: str,
    *,
    peer: str = "",
    token: str = "",
    tls: Tls | None = None,
    timeout: float = 15.0,
    idempotent: Collection[str] = (),
) -> grpc.aio.Channel:
    """Returns a channel for coroutine stubs; ``timeout`` (seconds) is cut to what the call being served has left.

    With ``tls`` both sides prove who they are, and only ``peer`` is spoken to, wherever ``address`` leads; without it
    ``token`` says who calls. ``idempotent`` names services (``package.Service``) and methods
    (``package.Service/Method``) that are tried again while the other side is unavailable or stops. A call waits for its
    connection as long as it may take.
    """
    target, options = _target(address), _options(idempotent)
    if tls is None:
        return _Channel(lambda: grpc.aio.insecure_channel(target, options=options), _Outgoing(token, timeout))
    named = (*options, ("grpc.ssl_target_name_override", server_name(peer)))
    return _Channel(
        lambda: grpc.aio.secure_channel(target, tls.channel_credentials(), options=named), _Outgoing("", timeout), tls
    )


def sync_channel(
    address: str,
    *,
    peer: str = "",
    token: str = "",
    tls: Tls | None = None,
    timeout: float = 30.0,
    idempotent: Collection[str] = (),
) -> grpc.Channel:
    """Returns a channel for synchronous stubs, for programs without an event loop."""
    target, options = _target(address), _options(idempotent)
    if tls is None:
        return _SyncChannel(grpc.insecure_channel(target, options=options), _Outgoing(token, timeout))
    named = (*options, ("grpc.ssl_target_name_override", server_name(peer)))
    inner = grpc.secure_channel(target, tls.channel_credentials(), options=named)
    return _SyncChannel(inner, _Outgoing("", timeout))


def wrap(channel: grpc.Channel, *, token: str = "", timeout: float = 30.0) -> grpc.Channel:
    """Returns ``channel`` with our metadata, timeout and errors; any channel will do, ``grpc_testing``'s too."""
    return _SyncChannel(channel, _Outgoing(token, timeout, wait=False))


class _Outgoing:
    """What every call takes along."""

    def __init__(self, token: str, timeout: float, *, wait: bool = True) -> None:
        self._token = token
        self._timeout = timeout
        self._wait = wait

    def arguments(self, timeout: float | None, metadata: Metadata | None, *, stream: bool) -> dict[str, Any]:
        """Returns what a multicallable takes beside the request; a stream has no timeout of its own."""
        limit = self._limit(timeout if timeout is not None or stream else self._timeout)
        # Without an end in sight it must not wait for a neighbour that may never come.
        waiting = {"wait_for_ready": limit is not None} if self._wait else {}
        return {"timeout": limit, "metadata": self._metadata(metadata), **waiting}

    def _metadata(self, own: Metadata | None) -> Metadata:
        found = list(own or ())
        if self._token:
            found.append(("x-peer-token", self._token))
        if request_id := caller.request_id():
            found.append(("x-request-id", request_id))
        if trace_id := caller.trace_id():
            span = tracing.traceparent() or f"00-{trace_id}-{secrets.token_hex(8)}-01"
            found.append(("traceparent", span))
        return tuple(found)

    def _limit(self, limit: float | None) -> float | None:
        left = caller.remaining()
        if left is None:
            return limit
        left -= _MARGIN
        if left <= 0:
            raise Unavailable("DEADLINE_EXCEEDED", "There was no time left to ask a service this request depends on.")
        return left if limit is None else min(limit, left)


class _Channel(grpc.aio.Channel):
    """A coroutine channel whose calls raise domain errors, and that connects anew when its certificate is renewed."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel], outgoing: _Outgoing, tls: Tls | None = None) -> None:
        self._connect = connect
        self._outgoing = outgoing
        self._tls = tls
        self._version = tls.version() if tls else ()
        self._looked = time.monotonic()
        self._inner = connect()
        self._started: dict[tuple[str, str], Any] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def _multicallable(self, kind: str, method: str, args: Any, kwargs: Any) -> Any:
        self._renew()
        found = self._started.get((kind, method))
        if found is None:
            found = self._started[kind, method] = getattr(self._inner, kind)(method, *args, **kwargs)
        return found

    def _renew(self) -> None:
        if self._tls is None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            version = self._tls.version()
            if version == self._version:
                return
            inner = self._connect()
        except (OSError, TlsInvalid):
            return  # half written: the old one is good until it expires
        old, self._inner, self._version = self._inner, inner, version
        self._started.clear()
        task = asyncio.create_task(old.close(_OLD_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Awaitable[Any]]:  # type: ignore[override]
        async def call(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109  the stub's signature
            metadata: Metadata | None = None,
        ) -> Any:
            start = self._multicallable("unary_unary", method, args, kwargs)
            with tracing.span(method[1:], "CLIENT", rpc__system="grpc"):
                try:
                    return await start(request, **self._outgoing.arguments(timeout, metadata, stream=False))
                except grpc.RpcError as exc:
                    raise grpc_errors.from_rpc_error(exc) from exc

        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., AsyncIterator[Any]]:  # type: ignore[override]
        async def call(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109  the stub's signature
            metadata: Metadata | None = None,
        ) -> AsyncIterator[Any]:
            start = self._multicallable("unary_stream", method, args, kwargs)
            responses = start(request, **self._outgoing.arguments(timeout, metadata, stream=True))
            try:
                async for response in responses:
                    yield response
            except grpc.RpcError as exc:
                raise grpc_errors.from_rpc_error(exc) from exc
            finally:
                responses.cancel()

        return call

    def stream_unary(self, *_args: Any, **_kwargs: Any) -> Any:
        return None  # The generated stubs ask for all kinds; no contract of ours streams requests.

    def stream_stream(self, *_args: Any, **_kwargs: Any) -> Any:
        return None

    async def __aenter__(self) -> _Channel:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()


class _SyncChannel(grpc.Channel):
    """A synchronous channel whose calls raise domain errors."""

    def __init__(self, inner: grpc.Channel, outgoing: _Outgoing) -> None:
        self._inner = inner
        self._outgoing = outgoing

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:  # type: ignore[override]
        start = self._inner.unary_unary(method, *args, **kwargs)

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
            try:
                return start(request, **self._outgoing.arguments(timeout, metadata, stream=False))
            except grpc.RpcError as exc:
                raise grpc_errors.from_rpc_error(exc) from exc

        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Iterator[Any]]:  # type: ignore[override]
        start = self._inner.unary_stream(method, *args, **kwargs)

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata | None = None) -> Iterator[Any]:
            try:
                yield from start(request, **self._outgoing.arguments(timeout, metadata, stream=True))
            except grpc.RpcError as exc:
                raise grpc_errors.from_rpc_error(exc) from exc

        return call

    def stream_unary(self, *_args: Any, **_kwargs: Any) -> Any:
        return None

    def stream_stream(self, *_args: Any, **_kwargs: Any) -> Any:
        return None

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> _SyncChannel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _target(address: str) -> str:
    return address if "://" in address or address.startswith("unix:") else f"dns:///{address}"


def _options(idempotent: Collection[str]) -> tuple[tuple[str, Any], ...]:
    # Deadlines stay out of it: the service config's `timeout` fires at once in this version of gRPC.
    names = [_name(text) for text in sorted(idempotent)]
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if names:
        config["methodConfig"] = [{"name": names, "retryPolicy": _RETRY}]
    return (*_OPTIONS, ("grpc.enable_retries", 1), ("grpc.service_config", json.dumps(config)))


def _name(text: str) -> dict[str, str]:
    service, _, method = text.partition("/")
    return {"service": service, "method": method} if method else {"service": service}
