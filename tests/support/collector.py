"""A small OpenTelemetry collector: a real OTLP server on a loopback port that keeps the spans it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Seen:
    """One span as it arrived."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    status: str
    attributes: dict[str, Any]


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Where it listens, and what came."""

    address: str = ""
    spans: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = _attributes(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    seen = Seen(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        tuple(link.span_id.hex() for link in span.links),
                        span.status.message,
                        _attributes(span.attributes),
                    )
                    with self._lock:
                        self.spans.append(seen)
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Seen]:
        """Spans of that name so far."""
        with self._lock:
            return [span for span in self.spans if span.name == name]

    def wait(self, good: Callable[[], bool], *, timeout: float = 20.0) -> None:
        """Returns when enough has come."""
        deadline = time.monotonic() + timeout
        while not good():
            assert time.monotonic() < deadline, [(span.service, span.name) for span in self.spans]
            time.sleep(0.05)

    def path(self, span: Seen) -> list[str]:
        """The span's name and those above it, outermost first."""
        by_id = {each.id: each for each in self.spans}
        names = [span.name]
        while (parent := by_id.get(span.parent)) is not None:
            names.append(parent.name)
            span = parent
        return names[::-1]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0)
