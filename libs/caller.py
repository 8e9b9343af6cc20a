"""What is known about the call being served: who calls, its correlation ids, its deadline.

``libs.grpc_server`` fills it in before a handler runs, ``libs.grpc_client`` and the logs read it. The values live in a
contextvar, so each call and each task started by it sees its own and nothing is passed by hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from libs.errors import Internal
from libs.tenancy import Caller


@dataclass(frozen=True, slots=True)
class _Call:
    caller: Caller
    request_id: str
    idempotency_key: str | None
    deadline: float | None
    trace_id: str = ""


_operation: ContextVar[str] = ContextVar("convergence_operation", default="")
_call: ContextVar[_Call | None] = ContextVar("convergence_call", default=None)


def current() -> Caller:
    """Returns the caller of the call being served. Raises ``Internal(NO_CALLER)`` where none is."""
    call = _call.get()
    if call is None:
        raise Internal("NO_CALLER", "No call is being served here.")
    return call.caller


def known() -> Caller | None:
    """Returns the caller of the call being served; ``None`` where none is, as in background work."""
    call = _call.get()
    return call.caller if call else None


def request_id() -> str:
    """Returns the correlation id (``x-request-id``) of the call being served; empty where none is."""
    call = _call.get()
    return call.request_id if call else ""


def trace_id() -> str:
    """Returns the W3C trace id (32 hex digits) of the call being served; empty where none is."""
    call = _call.get()
    return call.trace_id if call else ""


def operation() -> str:
    """Returns what the process is doing, for counting and labelling: an rpc or a background work; empty elsewhere."""
    return _operation.get()


def enter(operation: str) -> None:
    """Says what the rest of this task is doing; for the server, and for work that is done for many callers at once."""
    _operation.set(operation)


def idempotency_key() -> str | None:
    """Returns the ``Idempotency-Key`` header of the call being served; it wins over ``request_id`` in the body."""
    call = _call.get()
    return call.idempotency_key if call else None


def remaining() -> float | None:
    """Returns the seconds left until the deadline of the call being served (never below 0); ``None`` without one."""
    call = _call.get()
    if call is None or call.deadline is None:
        return None
    return max(0.0, call.deadline - time.monotonic())


def begin(
    call_caller: Caller, *, request_id: str, idempotency_key: str | None, timeout: float | None, trace_id: str = ""
) -> None:
    """Makes ``call_caller`` the current one for the rest of this task; for the server's interceptor."""
    deadline = None if timeout is None else time.monotonic() + timeout
    _call.set(_Call(call_caller, request_id, idempotency_key, deadline, trace_id))


@contextmanager
def bind(
    caller: Caller,
    *,
    request_id: str | None = None,
    idempotency_key: str | None = None,
    timeout: float | None = None,
) -> Iterator[None]:
    """Makes ``caller`` the current one inside the block; ``timeout`` is in seconds from now."""
    deadline = None if timeout is None else time.monotonic() + timeout
    token = _call.set(_Call(caller, request_id or "", idempotency_key, deadline))
    try:
        yield
    finally:
        _call.reset(token)


@contextmanager
def detached() -> Iterator[None]:
    """Drops the deadline inside the block, keeping caller and request id.

    Tasks copy the context they are created in: work that outlives its call is started inside this block, or its own
    calls would end with the deadline of a request that was answered long ago.
    """
    call = _call.get()
    token = _call.set(replace(call, deadline=None) if call else None)
    try:
        yield
    finally:
        _call.reset(token)
