"""What a command ends with when it does not end well: the exit code, the words, and what to do next.

Every command raises ``Failure``; ``services.cli.command`` alone prints it and exits. Exit codes are a promise to
scripts: add one rather than change one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DENIED = 3
    NOT_FOUND = 4
    QUOTA = 5
    UNAVAILABLE = 6
    INTERRUPTED = 130


EXIT_CODES = """Exit codes: 0 done, 1 failed (also a run that FAILED), 2 wrong usage, 3 not signed in or not permitted,
4 not found, 5 quota or rate limit, 6 no answer in time, 130 interrupted."""

# By gRPC code; what is not named here is FAILED.
_EXITS = {
    "INVALID_ARGUMENT": Exit.USAGE,
    "OUT_OF_RANGE": Exit.USAGE,
    "UNAUTHENTICATED": Exit.DENIED,
    "PERMISSION_DENIED": Exit.DENIED,
    "NOT_FOUND": Exit.NOT_FOUND,
    "RESOURCE_EXHAUSTED": Exit.QUOTA,
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
}
_BY_REASON = {
    "TENANT_NOT_FOUND": "The key may be another tenant's: `convergence whoami` says whose it is.",
    "TEMPLATE_NOT_FOUND": "`convergence templates` lists what can be run.",
    "CREDENTIAL_NOT_FOUND": "Store one: `convergence credentials add PROVIDER --file KEY.json`.",
    "CREDENTIAL_UNUSABLE": "`convergence credentials list` says what is wrong with it.",
}
_BY_CODE = {
    "UNAUTHENTICATED": "Sign in with a valid key: `convergence login`.",
    "PERMISSION_DENIED": "Sign in with a stronger key (`convergence login`), or ask who has one.",
    "RESOURCE_EXHAUSTED": "`convergence usage` shows all limits and when they open again.",
    "UNAVAILABLE": "Try again; `convergence doctor` looks for the cause.",
    "DEADLINE_EXCEEDED": "What was asked may have happened: look before you ask again.",
    "UNIMPLEMENTED": "The server does not know this call: it may be older than this command line.",
    "UNKNOWN": "Is that the address of a Convergence gateway? `convergence whoami` shows which one is used.",
}


class Failure(Exception):
    """Why a command failed; ``lines`` come below the message, ``advice`` says what to do."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: Exit = Exit.FAILED,
        reason: str = "",
        lines: Sequence[str] = (),
        advice: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.reason = reason
        self.lines = tuple(lines)
        self.advice = advice
        self.request_id = request_id


def of_rpc_error(error: grpc.RpcError, url: str) -> Failure:
    """The failure a call to the gateway at ``url`` means: the server's words, what to do, and the request id."""
    code = error.code().name
    status = _status(error)
    reason, lines = _read(status) if status is not None else ("", [])
    message = status.message if status is not None else (error.details() or code)
    if not reason and code == "UNAVAILABLE":
        message, lines = f"No answer from {url}.", [message]
    request_id = _request_id(error)
    return Failure(
        message or code,
        exit_code=_EXITS.get(code, Exit.FAILED),
        reason=reason or code,
        lines=lines,
        advice=_BY_REASON.get(reason) or _BY_CODE.get(code, ""),
        request_id=request_id,
    )


def _status(error: grpc.RpcError) -> Any:
    from grpc_status import rpc_status

    try:
        return rpc_status.from_call(error)  # type: ignore[no-untyped-call]
    except ValueError:
        return None  # the status and its details contradict each other: believe the status


def _read(status: Any) -> tuple[str, list[str]]:
    """The stable reason, and a line for each further thing that the server says."""
    from google.rpc import error_details_pb2 as details

    reason, lines = "", []
    for detail in status.details:
        if detail.Is(details.ErrorInfo.DESCRIPTOR):
            info = details.ErrorInfo.FromString(detail.value)
            reason = info.reason
        elif detail.Is(details.BadRequest.DESCRIPTOR):
            bad = details.BadRequest.FromString(detail.value)
            lines += [f"{item.field} {item.description}" for item in bad.field_violations]
        elif detail.Is(details.QuotaFailure.DESCRIPTOR):
            quota = details.QuotaFailure.FromString(detail.value)
            lines += [item.description for item in quota.violations]
        elif detail.Is(details.RetryInfo.DESCRIPTOR):
            retry = details.RetryInfo.FromString(detail.value)
            lines.append(f"Try again in {_duration(retry.retry_delay.seconds)}.")
    return reason, [line for line in lines if line not in status.message]


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{max(seconds, 1)} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _request_id(error: Any) -> str:
    """The gateway's id of the request; without a body it stands in what gRPC takes for trailers."""
    for metadata in (error.initial_metadata(), error.trailing_metadata()):
        found: Mapping[str, Any] = dict(metadata or ())
        if "x-request-id" in found:
            return str(found["x-request-id"])
    return ""
