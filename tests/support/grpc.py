"""Runs coroutine servicers under ``grpc_testing``, which itself knows synchronous ones only and runs no interceptor.

The adapter runs each coroutine to its end on one loop and answers errors as the interceptor would; who calls is given
by the test. Identity, role rules, validation and streams need a real server, as in ``tests/unit/libs``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc_testing
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from libs import caller as callers
from libs import grpc_errors
from libs.tenancy import Caller, Role

ADMIN = Caller(Role.ADMIN, "acme", "key_1")


@dataclass(frozen=True)
class Reply:
    """How a call ended: its response, or its code and status."""

    response: Any
    code: grpc.StatusCode
    details: str
    status: status_pb2.Status | None
    trailers: Mapping[str, str | bytes]

    @property
    def reason(self) -> str:
        """The ErrorInfo reason; empty if the call succeeded."""
        info = error_details_pb2.ErrorInfo()
        for detail in self.status.details if self.status else ():
            if detail.Unpack(info):
                return info.reason
        return ""


class TestingServer:
    """A ``grpc_testing`` server; ``call`` invokes one unary method."""

    __test__ = False

    def __init__(self, server: Any) -> None:
        self._server = server

    def call(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float | None = None,
    ) -> Reply:
        """Invokes ``method`` and waits for its end."""
        rpc = self._server.invoke_unary_unary(method, metadata, request, timeout)
        response, trailing, code, details = rpc.termination()
        trailers = dict(trailing or ())
        raw = trailers.get(grpc_errors.STATUS_KEY)
        status = status_pb2.Status.FromString(raw) if isinstance(raw, bytes) else None
        return Reply(response, code, details, status, trailers)


@contextmanager
def testing_server(
    servicers: Mapping[ServiceDescriptor, object],
    *,
    caller: Caller = ADMIN,
    request_id: str = "req-1",
) -> Iterator[TestingServer]:
    """Serves coroutine servicers, keyed by their service's descriptor, to calls by ``caller``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        adapted = {
            descriptor: _Adapter(servicer, loop, caller, request_id) for descriptor, servicer in servicers.items()
        }
        yield TestingServer(grpc_testing.server_from_dictionary(adapted, grpc_testing.strict_real_time()))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_cancel_rest())
        loop.close()


testing_server.__test__ = False  # type: ignore[attr-defined]


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


class _Adapter:
    """Looks like a synchronous servicer."""

    def __init__(self, servicer: object, loop: asyncio.AbstractEventLoop, caller: Caller, request_id: str) -> None:
        self._servicer = servicer
        self._loop = loop
        self._caller = caller
        self._request_id = request_id

    def __getattr__(self, name: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        method = getattr(self._servicer, name)

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            future = asyncio.run_coroutine_threadsafe(self._run(method, request, context), self._loop)
            try:
                return future.result()
            except Exception as exc:
                context.set_code(grpc_errors.code_of(exc))
                context.set_details(grpc_errors.to_status(exc).message)
                context.set_trailing_metadata(grpc_errors.trailers(exc))
                return None

        return call

    async def _run(self, method: Callable[..., Any], request: Any, context: grpc.ServicerContext) -> Any:
        headers = dict(context.invocation_metadata() or ())
        with callers.bind(
            self._caller,
            request_id=self._request_id,
            idempotency_key=headers.get("idempotency-key"),
            timeout=context.time_remaining(),
        ):
            return await method(request, context)
