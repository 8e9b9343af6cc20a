"""The one interceptor of every server: who calls, may they, is the request well-formed, and how it ended.

``libs.grpc_server`` puts one instance before each port. The order is fixed: request id, identity, role rule,
validation, handler, error, log line. Identity metadata is believed only from the peer ``gateway``; every other client
brings its own certificate (where there are none: peer token) or API key.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import protovalidate
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from libs import access, caller, grpc_errors, logs, metrics, tracing
from libs.errors import Error, FieldViolation, Internal, InvalidArgument, Unauthenticated, Unavailable
from libs.settings import Peers
from libs.tenancy import Caller, Role
from libs.tls import Tls

type Authenticate = Callable[[str], Awaitable[Caller]]
type OnDenied = Callable[[Caller, str, Error], None]
type Handler = grpc.RpcMethodHandler[Any, Any]
type Headers = Mapping[str, list[str]]

_log = logs.get(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_\-]{8,64}")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_MAX_HEADER = 128
# The headers that are looked at here; a call brings a dozen more.
_READ = frozenset(
    {
        *("x-request-id", "traceparent", "x-peer-token", "x-api-key", "x-role", "x-tenant-id", "x-key-id", "x-user-id"),
        *("idempotency-key", "x-envoy-external-address", "x-envoy-expected-rq-timeout-ms"),
    }
)
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = ("/grpc.reflection.v1alpha.ServerReflection/", "/grpc.reflection.v1.ServerReflection/")
# Reflection shows the contract, which holds no tenant's data: any key opens it.
_REFLECTION_RULE = access.Rule("ANY_KEY")


@dataclass(frozen=True, slots=True)
class _Method:
    rule: access.Rule
    names_tenant: bool
    checked: bool


@dataclass(slots=True)
class _Outcome:
    """How one call went, for its log line."""

    method: str
    started: float
    code: str = "OK"
    reason: str = ""
    cause: BaseException | None = None
    span: tracing.Span | None = None


class Interceptor(grpc.aio.ServerInterceptor):
    """Guards one port. Refuses, when it is made, services with an rpc that has no usable rule for that port."""

    def __init__(
        self,
        services: Iterable[str],
        *,
        internal: bool,
        peers: Peers,
        authenticate: Authenticate,
        onboarding_open: bool,
        tls: Tls | None = None,
        on_denied: OnDenied | None = None,
        pool: descriptor_pool.DescriptorPool | None = None,
    ) -> None:
        self._internal = internal
        self._peers = peers
        self._tls = tls
        self._authenticate = authenticate
        self._onboarding_open = onboarding_open
        self._on_denied = on_denied
        self._validator = protovalidate.Validator()
        self._methods = self._describe(services, pool or descriptor_pool.Default())
        self._handlers: dict[str, Handler] = {}

    def _describe(self, services: Iterable[str], pool: descriptor_pool.DescriptorPool) -> dict[str, _Method]:
        methods = {}
        for path, rule in access.rules_of(services, pool).items():
            if rule.peers_only != self._internal:
                port = "internal" if self._internal else "public"
                raise ValueError(f"{path} has a rule for the other port; it cannot be served on the {port} one")
            request = pool.FindMethodByName(path[1:].replace("/", ".")).input_type
            # Compiles the message's rules now: a rule that cannot be compiled must not wait for its first request.
            self._validator.collect_violations(message_factory.GetMessageClass(request)())
            methods[path] = _Method(rule, "tenant_id" in request.fields_by_name, checked=True)
        for path in _REFLECTION:
            methods[path + "ServerReflectionInfo"] = _Method(_REFLECTION_RULE, names_tenant=False, checked=False)
        return methods

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the guarded handler of a method; it is made once."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None:
            inner = await continuation(handler_call_details)
            if inner is None or path.startswith(_HEALTH):
                return inner
            handler = self._handlers[path] = self._guard(path, inner)
        return handler

    def _guard(self, path: str, inner: Handler) -> Handler:
        method = self._methods.get(path)
        if inner.unary_unary:
            make, behaviour = grpc.unary_unary_rpc_method_handler, self._unary(path, method, inner.unary_unary)
        elif inner.unary_stream:
            make, behaviour = grpc.unary_stream_rpc_method_handler, self._stream(path, method, inner.unary_stream)
        elif inner.stream_stream and method is not None and not method.checked:
            make, behaviour = grpc.stream_stream_rpc_method_handler, self._stream(path, method, inner.stream_stream)
        else:
            raise NotImplementedError(f"{path}: client streams cannot be authorised on their first message")
        decode = inner.request_deserializer
        if decode is not None and method is not None and method.checked:
            decode = _decoder(decode)
        return make(behaviour, decode, inner.response_serializer)

    def _unary(self, path: str, method: _Method | None, handle: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def unary(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            outcome = _Outcome(path, time.perf_counter())
            metrics.RPCS_RUNNING.inc()
            try:
                await self._admit(path, method, request, context, outcome)
                return await handle(request, context)
            except grpc.aio.AbortError:
                outcome.code = "ABORTED_BY_HANDLER"
                raise
            except asyncio.CancelledError as exc:
                failure = self._cancelled(exc, outcome)
            except Exception as exc:
                failure = self._failed(exc, outcome)
            finally:
                _report(outcome)
            await _answer(failure, context)

        return unary

    def _stream(self, path: str, method: _Method | None, handle: Callable[..., Any]) -> Callable[..., Any]:
        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            outcome = _Outcome(path, time.perf_counter())
            metrics.RPCS_RUNNING.inc()
            failure: BaseException | None = None
            try:
                await self._admit(path, method, request, context, outcome)
                async with aclosing(handle(request, context)) as responses:
                    async for response in responses:
                        yield response
            except grpc.aio.AbortError:
                outcome.code = "ABORTED_BY_HANDLER"
                raise
            except asyncio.CancelledError as exc:
                failure = self._cancelled(exc, outcome)
            except GeneratorExit:
                outcome.code = "CANCELLED"
                raise
            except Exception as exc:
                failure = self._failed(exc, outcome)
            finally:
                _report(outcome)
            if failure is not None:
                await _answer(failure, context)

        return stream

    async def _admit(
        self,
        path: str,
        method: _Method | None,
        request: Any,
        context: grpc.aio.ServicerContext[Any, Any],
        outcome: _Outcome,
    ) -> None:
        headers: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata() or ():
            if key in _READ and isinstance(value, str):
                headers.setdefault(key, []).append(value)
        request_id = _request_id(headers)
        caller.enter(_short(path))
        caller.begin(
            Caller(role=None, source_ip=_ip_of(context.peer())),
            request_id=request_id,
            idempotency_key=None,
            timeout=context.time_remaining(),
            trace_id=_trace_id(headers, request_id),
        )
        outcome.span = tracing.serve(
            _short(path), _traceparent(headers), rpc__system="grpc", rpc__method=path[1:], request_id=request_id
        )
        who = await self._identify(headers, context, method)
        caller.begin(
            who,
            request_id=request_id,
            idempotency_key=_printable(headers, "idempotency-key"),
            timeout=_least(caller.remaining(), _gateway_timeout(headers, who)),
            trace_id=caller.trace_id(),
        )
        if request is None:
            raise InvalidArgument("REQUEST_INVALID", "The request cannot be decoded: every text must be UTF-8.")
        tenant_id = request.tenant_id if method is not None and method.names_tenant else None
        try:
            access.authorise(method.rule if method else None, who, tenant_id, onboarding_open=self._onboarding_open)
        except Error as refusal:
            if self._on_denied is not None:
                self._on_denied(who, path, refusal)
            raise
        if method is not None and method.checked:
            self._validate(request)

    def _peer(self, headers: Headers, context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
        """The process that calls, by its certificate or (where there are none) token; ``None`` for no process."""
        if self._tls is not None:
            if not (peer := self._tls.peer_of(context.auth_context())):
                raise Unauthenticated("PEER_UNKNOWN", "The certificate is not of a process that is known here.")
            return peer
        tokens = headers.get("x-peer-token", [])
        if not tokens:
            return None
        known = self._peers.name_of(tokens[0]) if len(tokens) == 1 else None
        if known is None:
            raise Unauthenticated("PEER_UNKNOWN", "The peer token is not known here.")
        return known

    async def _identify(
        self, headers: Headers, context: grpc.aio.ServicerContext[Any, Any], method: _Method | None
    ) -> Caller:
        address = context.peer()
        if peer := self._peer(headers, context):
            if peer == access.GATEWAY:
                return _vouched(headers, address)
            return Caller(None, peer=peer, source_ip=_ip_of(address))
        if self._internal:
            raise Unauthenticated("PEER_UNKNOWN", "This port is for the platform's own processes.")
        keys = headers.get("x-api-key", [])
        if not keys and self._onboarding_open and method is not None and method.rule.role == Role.ONBOARDER:
            who = Caller(Role.ONBOARDER)
        elif len(keys) != 1 or not keys[0]:
            raise Unauthenticated("API_KEY_MISSING", "Send exactly one API key in the x-api-key header.")
        else:
            who = await self._authenticate(keys[0])
        return Caller(
            who.role,
            tenant_id=who.tenant_id,
            key_id=who.key_id,
            user_id=_printable(headers, "x-user-id"),
            source_ip=_ip_of(address),
        )

    def _validate(self, request: Message) -> None:
        found = self._validator.collect_violations(request)
        fields = [FieldViolation(_path(violation.proto), _text(violation.proto)) for violation in found]
        # A NUL ends a text in some parsers and not in others: nothing behind this line has to know which.
        fields += [FieldViolation(field, "must not hold the character NUL") for field in _fields_with_nul(request)]
        if not fields:
            return
        listed = "; ".join(": ".join(filter(None, (field.field, field.description))) for field in fields)
        raise InvalidArgument("REQUEST_INVALID", listed, field_violations=fields)

    def _cancelled(self, exc: asyncio.CancelledError, outcome: _Outcome) -> BaseException:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The client left, its deadline passed, or the server stops: nobody is there to be answered.
            outcome.code = "DEADLINE_EXCEEDED" if caller.remaining() == 0 else "CANCELLED"
            raise exc
        # Something the handler waited for was cancelled. Raised on, it would leave the client waiting for ever.
        return self._failed(Unavailable("INTERRUPTED", "The work was interrupted. Try again."), outcome, exc)

    def _failed(self, exc: Exception, outcome: _Outcome, cause: BaseException | None = None) -> BaseException:
        error = grpc_errors.public(exc)
        outcome.code, outcome.reason = error.kind, error.reason
        if isinstance(error, Internal | Unavailable) or not isinstance(exc, Error):
            outcome.cause = cause or exc
        return exc


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a decoder that answers None for what is no message: gRPC would show the exception to the client."""

    def decoded(content: bytes) -> Any:
        try:
            return decode(content)
        except DecodeError:
            return None

    return decoded


def _vouched(headers: Headers, address: str) -> Caller:
    """Returns the caller the gateway vouches for."""
    try:
        role = Role(_single(headers, "x-role"))
    except ValueError:
        raise Unauthenticated("API_KEY_MISSING", "Send an API key in the x-api-key header.") from None
    return Caller(
        role,
        tenant_id=_single(headers, "x-tenant-id"),
        key_id=_single(headers, "x-key-id"),
        user_id=_printable(headers, "x-user-id"),
        peer=access.GATEWAY,
        # Set by the gateway from the hops it trusts; x-forwarded-for begins with what the client claims.
        source_ip=_single(headers, "x-envoy-external-address") or _ip_of(address),
    )


def _single(headers: Headers, name: str) -> str:
    values = headers.get(name, [])
    return values[0] if len(values) == 1 else ""


def _printable(headers: Headers, name: str) -> str | None:
    values = [value for value in headers.get(name, ()) if value]
    if not values:
        return None
    if len(values) > 1 or len(values[0]) > _MAX_HEADER or not values[0].isprintable():
        text = f"must be one value of at most {_MAX_HEADER} printable characters"
        raise InvalidArgument("HEADER_INVALID", f"{name} {text}.", field_violations=[FieldViolation(name, text)])
    return values[0]


def _request_id(headers: Headers) -> str:
    given = _single(headers, "x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def _trace_id(headers: Headers, request_id: str) -> str:
    """Returns the caller's W3C trace id, or one made of the request id, so that either leads to the other."""
    if found := _traceparent(headers):
        return found.split("-")[1]
    plain = request_id.replace("-", "").lower()
    return plain if re.fullmatch(r"[0-9a-f]{32}", plain) else uuid.uuid4().hex


def _traceparent(headers: Headers) -> str:
    """Returns the caller's W3C header if it names a trace, else nothing."""
    text = _single(headers, "traceparent")
    found = _TRACE_PARENT.fullmatch(text)
    return text if found and set(found[1]) != {"0"} else ""


@functools.cache
def _short(path: str) -> str:
    """``Service.Method`` of ``/package.Service/Method``; called for paths that are served only."""
    service, _, method = path[1:].partition("/")
    return f"{service.rpartition('.')[2]}.{method}"


def _gateway_timeout(headers: Headers, who: Caller) -> float | None:
    """Returns the seconds of the gateway's route timeout, which gRPC's own deadline does not show."""
    value = _single(headers, "x-envoy-expected-rq-timeout-ms")
    return int(value) / 1_000 if who.peer == access.GATEWAY and value.isascii() and value.isdigit() else None


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _ip_of(address: str) -> str:
    """Returns the IP of gRPC's peer text: ``ipv4:127.0.0.1:5`` or ``ipv6:%5B::1%5D:5``."""
    kind, _, rest = address.partition(":")
    host = rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return host.replace("%5B", "").replace("%5D", "").strip("[]")


def _path(violation: Any) -> str:
    path = ""
    for element in violation.field.elements if violation.has_field("field") else ():
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            value = element.subscript.value
            path += f'["{value}"]' if isinstance(value, str) else f"[{value}]"
    return path


def _text(violation: Any) -> str:
    text: str = violation.message or violation.rule_id or "is invalid"
    return text


async def _answer(failure: BaseException, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    metadata = grpc_errors.trailers(failure)
    request_id = caller.request_id()
    if request_id and caller.current().peer != access.GATEWAY:
        metadata = (*metadata, ("x-request-id", request_id))
    await context.abort(grpc_errors.code_of(failure), grpc_errors.to_status(failure).message, metadata)


@functools.cache
def _figures(rpc: str, code: str, reason: str) -> tuple[Any, Any]:
    """The figures of calls that end like this: all three are words of ours, so there are few."""
    return metrics.RPCS.labels(rpc, code, reason), metrics.RPC_SECONDS.labels(rpc)


def _report(outcome: _Outcome) -> None:
    seconds = time.perf_counter() - outcome.started
    calls, durations = _figures(_short(outcome.method), outcome.code, outcome.reason)
    calls.inc()
    durations.observe(seconds)
    metrics.RPCS_RUNNING.dec()
    who = caller.current()
    if outcome.span is not None:
        outcome.span.set(rpc__grpc__status=outcome.code, tenant_id=who.tenant_id)
        if outcome.reason:
            outcome.span.fail(outcome.reason)
        outcome.span.end()
    fields: dict[str, Any] = {
        "method": outcome.method,
        "code": outcome.code,
        "ms": round(seconds * 1_000, 1),
        "tenant_id": who.tenant_id,
        "peer": who.peer,
        "key_id": who.key_id,
    }
    if outcome.reason:
        fields["reason"] = outcome.reason
    if outcome.cause is None:
        _log.info("call", **fields)
    elif outcome.code == Unavailable.kind:
        _log.warning("call", **fields, exc_info=outcome.cause)
    else:
        _log.error("call", **fields, exc_info=outcome.cause)


def check_behaviours(service: str, handlers: Mapping[str, Handler]) -> None:
    """Raises ``ValueError`` for a method that is not a coroutine (or, for streams, an async generator) function.

    gRPC would run it in a thread, outside of the context the interceptor has made.
    """
    for name, handler in handlers.items():
        unary, stream = handler.unary_unary, handler.unary_stream
        if not (unary and inspect.iscoroutinefunction(unary)) and not (stream and inspect.isasyncgenfunction(stream)):
            raise ValueError(f"{service}/{name} must be a coroutine function, or an async generator if it streams")


def _fields_with_nul(message: Message) -> list[str]:
    """The top-level fields somewhere in which a text holds a NUL."""
    if b"\0" not in message.SerializeToString():
        return []
    return [field.name for field, value in message.ListFields() if _has_nul(value)]


def _has_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case bytes() | bool() | int() | float():
            return False
        case Message():
            return any(_has_nul(inner) for _, inner in value.ListFields())
        case Mapping():
            return any(_has_nul(key) or _has_nul(inner) for key, inner in value.items())
    return any(_has_nul(inner) for inner in value)
