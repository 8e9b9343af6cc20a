"""Spans of what a process does for a request, sent to an OpenTelemetry collector where one is named.

Called by the server's interceptor, the client channel, the warehouse, the cipher and the executor. Without
``CONVERGENCE_OTLP_ENDPOINT`` nothing is recorded and nothing is loaded. What the caller does not record is not recorded
here either, and costs next to nothing: nine requests of ten are such. Spans hold names, ids and reasons only: never a
parameter, a message's content or an exception's text, for those may hold a customer's data or secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from libs import caller
from libs.errors import Error

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext, Tracer

type Kind = Literal["SERVER", "CLIENT", "INTERNAL"]
type Attribute = str | int | float | bool

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


class Span:
    """One piece of work; without a collector it does nothing, nor where the caller records nothing."""

    __slots__ = ("_inner", "left_out")

    def __init__(self, inner: Any = None, left_out: str | None = None) -> None:
        self._inner = inner
        # The W3C header of a trace that nobody records, for those who are called next; None where there is none.
        self.left_out = left_out

    def set(self, **attributes: Attribute) -> None:
        """Adds attributes; a name's ``__`` stands for a dot."""
        if self._inner is not None:
            self._inner.set_attributes(_named(attributes))

    def fail(self, reason: str) -> None:
        """Marks it as failed, by a word of ours."""
        if self._inner is not None:
            from opentelemetry.trace import Status, StatusCode

            self._inner.set_status(Status(StatusCode.ERROR, reason))

    def end(self) -> None:
        """Hands it to the exporter."""
        if self._inner is not None:
            self._inner.end()

    @property
    def context(self) -> SpanContext | None:
        """What another process or task needs to refer to it."""
        return self._inner.get_span_context() if self._inner is not None else None


_SAMPLED = 1
_OFF = Span()
_current: ContextVar[Span] = ContextVar("convergence_span", default=_OFF)


def configure(service: str, endpoint: str | None, exporter: SpanExporter | None = None) -> None:
    """Sends this process's spans to the collector at ``endpoint`` (OTLP over gRPC) from now on; None: nowhere."""
    global _provider, _tracer  # noqa: PLW0603  one process has one collector, as it has one log
    if endpoint is None and exporter is None:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        """A trace that begins here has the id that logs and BigQuery's jobs show for it."""

        def generate_trace_id(self) -> int:
            return int(caller.trace_id() or "0", 16) or super().generate_trace_id()

    if exporter is None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=5)
    _provider = TracerProvider(resource=Resource({"service.name": service}), id_generator=Ids(), shutdown_on_exit=False)
    # Spans that a slow collector does not take are dropped, not waited for.
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("convergence")


def close() -> None:
    """Sends what is left, for a few seconds at most."""
    global _provider, _tracer  # noqa: PLW0603
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def serve(name: str, traceparent: str, **attributes: Attribute) -> Span:
    """Begins the span of a call that is served, below its caller's; current for the rest of this task."""
    if _tracer is None:
        return _OFF
    if traceparent and not int(traceparent.split("-")[3], 16) & _SAMPLED:
        made = Span(left_out=traceparent)
    else:
        made = _start(_tracer, name, "SERVER", _remote(traceparent), (), attributes)
    _current.set(made)
    return made


@contextmanager
def span(
    name: str, kind: Kind = "INTERNAL", links: Sequence[SpanContext] | None = None, **attributes: Attribute
) -> Iterator[Span]:
    """A span around the block, current in it; an error of ours marks it by its reason, any other by its type.

    Work that is done for several has a link to each whose span is recorded; without one it is left out as they are.
    """
    above = _current.get()
    if _tracer is None or above.left_out is not None:
        yield above
        return
    if links is not None and not links:
        made = Span(left_out="")
    else:
        made = _start(_tracer, name, kind, above.context, links or (), attributes)
    token = _current.set(made)
    try:
        yield made
    except Error as error:
        made.fail(error.reason)
        raise
    except BaseException as defect:
        made.fail(type(defect).__name__)
        raise
    finally:
        _current.reset(token)
        made.end()


def note(**attributes: Attribute) -> None:
    """Adds attributes to the current span."""
    _current.get().set(**attributes)


def here() -> SpanContext | None:
    """The current span if it is recorded, for work that is done for several and links to each."""
    return _current.get().context


def traceparent() -> str:
    """The W3C header that makes another process's span a child of the current one; empty without one."""
    span = _current.get()
    context = span.context
    if context is None:
        return span.left_out or ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _start(
    tracer: Tracer,
    name: str,
    kind: Kind,
    parent: SpanContext | None,
    links: Sequence[SpanContext],
    attributes: dict[str, Attribute],
) -> Span:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, set_span_in_context

    context = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())
    return Span(
        tracer.start_span(
            name,
            context,
            SpanKind[kind],
            _named(attributes),
            [Link(link) for link in links],
            record_exception=False,
            set_status_on_exception=False,
        )
    )


def _remote(traceparent: str) -> SpanContext | None:
    from opentelemetry.trace import SpanContext, TraceFlags

    parts = traceparent.split("-")
    if len(parts) < 4:
        return None
    found = SpanContext(int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=TraceFlags(int(parts[3], 16)))
    return found if found.is_valid else None


def _named(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {name.replace("__", "."): value for name, value in attributes.items()}
