"""The domain's errors: ten kinds, each with one gRPC code, one HTTP status and one answer to "may I try again?".

Every layer raises these and nothing else across a boundary; ``libs.grpc_errors`` alone turns them into
``google.rpc.Status`` and back. ``message`` is public: it reaches the caller, so it says what to do and holds no
secret and no text of a dependency. The private cause travels as ``__cause__`` and ends in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One exhausted quota: its id (``DAILY_RUNS``), the limit in force and what the subject is."""

    subject: str
    quota_id: str
    limit: int
    description: str


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: its path (``credentials.private_key``) and what a good value looks like."""

    field: str
    description: str


class Error(Exception):
    """Base of all domain errors.

    ``reason`` is a stable UPPER_SNAKE word a program can switch on; ``metadata`` holds short strings beside it;
    ``retry_after`` is the earliest time another try can succeed, where it is known.
    """

    kind: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: timedelta | None = None,
        quota_violations: Sequence[QuotaViolation] = (),
        field_violations: Sequence[FieldViolation] = (),
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.quota_violations = tuple(quota_violations)
        self.field_violations = tuple(field_violations)
        self.metadata = metadata

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason!r}, {self.message!r})"


class InvalidArgument(Error):
    """The request is wrong whatever the state of the system; HTTP 400."""

    kind = "INVALID_ARGUMENT"


class Unauthenticated(Error):
    """No key, or none that is known; HTTP 401."""

    kind = "UNAUTHENTICATED"


class PermissionDenied(Error):
    """The caller's own tenant, but a role that may not do this; HTTP 403."""

    kind = "PERMISSION_DENIED"


class NotFound(Error):
    """It does not exist, or belongs to another tenant: the answer is the same; HTTP 404."""

    kind = "NOT_FOUND"


class AlreadyExists(Error):
    """A creation found its mutex taken; HTTP 409."""

    kind = "ALREADY_EXISTS"


class FailedPrecondition(Error):
    """The system is in a state that forbids this until somebody changes it; HTTP 400."""

    kind = "FAILED_PRECONDITION"


class Aborted(Error):
    """Lost a race; read again, then decide again; HTTP 409."""

    kind = "ABORTED"


class ResourceExhausted(Error):
    """A quota or rate is used up; later is possible; HTTP 429."""

    kind = "RESOURCE_EXHAUSTED"
    retryable = True


class Unavailable(Error):
    """A dependency did not answer or a deadline passed; the same request may succeed later; HTTP 503."""

    kind = "UNAVAILABLE"
    retryable = True


class Ambiguous(Unavailable):
    """A write whose outcome nobody knows yet; read the state before deciding anything."""


class NotBegun(Unavailable):
    """This process cannot, and has begun nothing: the gateway asks another at once, and says so if none can."""


class Unimplemented(Error):
    """The contract names it, no code serves it yet; HTTP 501."""

    kind = "UNIMPLEMENTED"


class Internal(Error):
    """A defect of ours; the caller sees a fixed text, the log the whole trace; HTTP 500."""


KINDS: dict[str, type[Error]] = {
    cls.kind: cls
    for cls in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        Unimplemented,
        Internal,
    )
}
