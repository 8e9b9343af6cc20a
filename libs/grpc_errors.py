"""The one place where domain errors become ``google.rpc.Status`` and back.

The server's interceptor calls ``code_of``, ``to_status`` and ``trailers``; the client calls ``from_rpc_error``. What is
not a domain error never crosses the wire as text: its caller sees a fixed sentence, its cause stays in the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from libs import errors

DOMAIN = "convergence"
STATUS_KEY = "grpc-status-details-bin"
# The gateway tries a call again that ends with this.
NOT_BEGUN = ("x-not-begun", "1")
_INTERNAL_TEXT = "Internal error. Quote the x-request-id when you report it."
_NO_ANSWER_TEXT = "A service this request depends on did not answer. Try again."
# A status travels in metadata, whose limit is 8 KiB: neither lists nor texts may grow with the request.
_MAX_VIOLATIONS = 16
_MAX_MESSAGE = 1_000
_MAX_TEXT = 200
_OUTCOME = "outcome"
_UNKNOWN_OUTCOME = "unknown"
# A refusal of this process itself, not of whom it acts for: the user can do nothing about it.
_OUR_OWN_FAULT = frozenset({"PEER_UNKNOWN", "PEER_NOT_ALLOWED", "RULE_MISSING"})

type Metadata = tuple[tuple[str, str | bytes], ...]


def public(exc: BaseException) -> errors.Error:
    """Returns the error as its caller may see it: a domain error as it is, anything else without its text."""
    match exc:
        case errors.Internal():
            return errors.Internal(exc.reason, _INTERNAL_TEXT)
        case errors.Error():
            return exc
        case TimeoutError():
            return errors.Unavailable("TIMEOUT", _NO_ANSWER_TEXT)
        case grpc.RpcError():
            return public(from_rpc_error(exc))
        case _:
            return errors.Internal("INTERNAL", _INTERNAL_TEXT)


def code_of(exc: BaseException) -> grpc.StatusCode:
    """Returns the gRPC code an exception is answered with."""
    return grpc.StatusCode[public(exc).kind]


def to_status(exc: BaseException) -> status_pb2.Status:
    """Returns the status an exception is answered with: code, public text, and details a program can read."""
    error = public(exc)
    metadata = {key: str(value)[:_MAX_TEXT] for key, value in error.metadata.items()}
    if isinstance(error, errors.Ambiguous):
        metadata[_OUTCOME] = _UNKNOWN_OUTCOME
    status = status_pb2.Status(code=grpc.StatusCode[error.kind].value[0], message=error.message[:_MAX_MESSAGE])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field_violations:
        bad_request = error_details_pb2.BadRequest()
        for field in error.field_violations[:_MAX_VIOLATIONS]:
            bad_request.field_violations.add(field=field.field[:_MAX_TEXT], description=field.description[:_MAX_TEXT])
        status.details.add().Pack(bad_request)
    if error.quota_violations:
        failure = error_details_pb2.QuotaFailure()
        for quota in error.quota_violations[:_MAX_VIOLATIONS]:
            failure.violations.add(
                subject=quota.subject,
                quota_id=quota.quota_id,
                quota_value=quota.limit,
                description=quota.description[:_MAX_TEXT],
            )
        status.details.add().Pack(failure)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromTimedelta(max(error.retry_after, timedelta()))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def trailers(exc: BaseException) -> Metadata:
    """Returns the metadata that ends a failed call: the status, and what the gateway shows as HTTP headers."""
    error = public(exc)
    found: list[tuple[str, str | bytes]] = [(STATUS_KEY, to_status(exc).SerializeToString())]
    seconds = None if error.retry_after is None else max(1, math.ceil(error.retry_after.total_seconds()))
    if isinstance(error, errors.NotBegun):
        found.append(NOT_BEGUN)
    if seconds is not None:
        found.append(("retry-after", str(seconds)))
    if error.quota_violations:
        names = [(f'"{quota.quota_id.lower()}"', quota.limit) for quota in error.quota_violations[:_MAX_VIOLATIONS]]
        reset = "" if seconds is None else f";t={seconds}"
        found.append(("ratelimit-policy", ", ".join(f"{name};q={limit}" for name, limit in names)))
        found.append(("ratelimit", ", ".join(f"{name};r=0{reset}" for name, _ in names)))
    return tuple(found)


def from_rpc_error(exc: grpc.RpcError) -> errors.Error:
    """Returns the domain error a failed call means to the caller of that call.

    A status of ours comes back as the error that was raised. A code without one comes from gRPC itself or from a proxy:
    its text names addresses, so only its kind is kept. Overload of a dependency is ``Unavailable``, never
    ``ResourceExhausted``: that kind means a tenant's quota.
    """
    code = exc.code()
    status = _status_of(exc)
    info = _detail(status, error_details_pb2.ErrorInfo) if status else None
    if status is None or info is None or info.domain != DOMAIN:
        return _without_details(code)
    if info.reason in _OUR_OWN_FAULT:
        return errors.Internal("PEER_REFUSED", _INTERNAL_TEXT)
    metadata = dict(info.metadata)
    kind = errors.KINDS.get(code.name, errors.Internal)
    if metadata.pop(_OUTCOME, None) == _UNKNOWN_OUTCOME:
        kind = errors.Ambiguous
    bad_request = _detail(status, error_details_pb2.BadRequest)
    failure = _detail(status, error_details_pb2.QuotaFailure)
    retry = _detail(status, error_details_pb2.RetryInfo)
    error = kind(
        info.reason,
        status.message,
        retry_after=retry.retry_delay.ToTimedelta() if retry else None,
        quota_violations=[
            errors.QuotaViolation(item.subject, item.quota_id, item.quota_value, item.description)
            for item in (failure.violations if failure else ())
        ],
        field_violations=[
            errors.FieldViolation(item.field, item.description)
            for item in (bad_request.field_violations if bad_request else ())
        ],
    )
    error.metadata = metadata
    return error


def _without_details(code: grpc.StatusCode) -> errors.Error:
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.Unavailable("DEADLINE_EXCEEDED", _NO_ANSWER_TEXT)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return errors.Unavailable("DEPENDENCY_UNAVAILABLE", _NO_ANSWER_TEXT)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.Unavailable("DEPENDENCY_OVERLOADED", _NO_ANSWER_TEXT)
        case grpc.StatusCode.ABORTED:
            return errors.Aborted("ABORTED", "Somebody else changed the same thing. Read it, then try again.")
        case _:
            return errors.Internal("DEPENDENCY_FAILED", _INTERNAL_TEXT)


def _status_of(exc: grpc.RpcError) -> status_pb2.Status | None:
    metadata: Iterable[tuple[str, str | bytes]] = exc.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _detail[M: Message](status: status_pb2.Status, kind: type[M]) -> M | None:
    for any_detail in status.details:
        message = kind()
        if any_detail.Unpack(message):
            return message
    return None
