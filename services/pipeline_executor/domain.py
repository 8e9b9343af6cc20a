"""Runs and their attempts: what may be asked for, what may become of it, and every decision that needs no store.

Called by everything in this context. Keep three invariants: a terminal status never changes; an attempt is executed
only by the owner in its grant; whatever a run is decided to have become, its row says so before its grant ends.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from libs.errors import Error, FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from libs.tenancy import TenantId

LEASE = timedelta(seconds=60)
# What the quality step calls its count, among its details and its checks.
ROWS_QUARANTINED = "rows_quarantined"
_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
# The namespace of ids made of idempotency keys. Changing it would give every key a second run.
_KEYS = uuid.UUID("5f0b7ad2-1d3c-4c57-9a53-2e0d6f3c8a41")
_MESSAGE_LENGTH = 2_000


class RunStatus(StrEnum):
    """Where an attempt is in its life."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """True if it never changes again."""
        return self in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


class Outcome(StrEnum):
    """What a run that ended well did to the tenant's tables."""

    PUBLISHED = "PUBLISHED"
    NO_DATA = "NO_DATA"
    SUPERSEDED = "SUPERSEDED"
    UNCHANGED = "UNCHANGED"


class StepStatus(StrEnum):
    """Where one step stands; SKIPPED means that a step before it failed, or that there was no data."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"

    @property
    def ended(self) -> bool:
        """True if it never changes again."""
        return self not in (StepStatus.PENDING, StepStatus.RUNNING)


class Trigger(StrEnum):
    """Who asked for a run."""

    MANUAL = "MANUAL"
    SCHEDULED = "SCHEDULED"
    BACKFILL = "BACKFILL"


class GrantState(StrEnum):
    """What became of a grant; all but LIVE are final."""

    LIVE = "LIVE"
    SETTLED = "SETTLED"
    REFUNDED = "REFUNDED"
    REAPED = "REAPED"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one attempt of a run: the unit of reservation, lease, fence and row."""

    tenant_id: TenantId
    run_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Spec:
    """What a run does: the template (lower case), the UTC days (inclusive) and the parameters as they were given."""

    provider: str
    domain: str
    template: str
    start_date: date
    end_date: date
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run or step failed; ``retryable`` if another attempt may succeed without anybody's doing."""

    reason: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, error: Error) -> RunError:
        """What of an error is kept."""
        return cls(error.reason, error.message[:_MESSAGE_LENGTH], error.retryable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One attempt as its row says it."""

    key: Key
    spec: Spec
    status: RunStatus
    trigger: Trigger
    owner: str
    fingerprint: str
    start_time: datetime
    user_id: str | None = None
    config_id: str = ""
    request_id: str = ""
    reservation_day: date | None = None
    outcome: Outcome | None = None
    end_time: datetime | None = None
    rows_published: int = 0
    superseded_by: str = ""
    error: RunError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an attempt; ``position`` is its place in the template, ``tries`` is 0 if it never began."""

    attempt: int
    position: int
    name: str
    type: str
    status: StepStatus
    tries: int = 0
    rows: int | None = None
    bytes: int | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    error: RunError | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one quality check of one attempt; numbers are exact decimal text."""

    attempt: int
    name: str
    type: str
    severity: str
    status: str
    dimension: str
    expected: str | None
    actual: str | None
    message: str
    check_time: datetime


@dataclass(frozen=True, slots=True)
class View:
    """A run at one moment, as its readers see it.

    ``rows_quarantined`` is None where nothing was published, or nobody has counted.
    """

    run: Run
    steps: tuple[Step, ...] = ()
    percent: int = 0
    rows_read: int = 0
    rows_quarantined: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt that has not ended shall end; one that was asked to stop ends as ``if_cancelling``."""

    key: Key
    status: RunStatus
    end_time: datetime
    outcome: Outcome | None = None
    error: RunError | None = None
    if_cancelling: RunStatus = RunStatus.CANCELLED


@dataclass(frozen=True, slots=True)
class Grant:
    """The right of ``owner`` to execute one attempt until ``until``, charged to ``day``."""

    key: Key
    owner: str
    day: date
    until: datetime
    state: GrantState


@dataclass(frozen=True, slots=True)
class Renewal:
    """Grants that live on, and attempts this process may not execute any more."""

    renewed: Mapping[Key, datetime]
    lost: frozenset[Key]


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; None means all."""

    status: RunStatus | None = None
    provider: str | None = None
    domain: str | None = None
    template: str | None = None


# ---------------------------------------------------------------- what the use cases need of others


class RunStore(Protocol):
    """Rows of runs, step logs and quality results, one dataset per tenant.

    A tenant without a dataset is answered with ``NotFound(TENANT_NOT_FOUND)``. ``Ambiguous`` means that nobody knows
    whether a write was made; any other error means that it was not.
    """

    async def insert(self, run: Run) -> bool:
        """Makes the attempt's row, once however often it is called; False if its place was taken by another row or
        withdrawn."""
        ...

    async def withdraw(self, key: Key) -> bool:
        """Makes sure that an attempt without a row never gets one; False if it has one after all."""
        ...

    async def attempts(self, tenant_id: TenantId, run_ids: Collection[str]) -> Sequence[Run]:
        """All attempts of the runs, oldest first."""
        ...

    async def list_runs(
        self, tenant_id: TenantId, wanted: RunFilter, size: int, after: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        """Newest attempts of runs, the newest run first, behind the one that began at ``after``."""
        ...

    async def end(self, tenant_id: TenantId, endings: Sequence[Ending]) -> int:
        """Ends those attempts of one tenant that are RUNNING or CANCELLING; how many that were."""
        ...

    async def cancel(self, key: Key, now: datetime) -> bool:
        """RUNNING → CANCELLING; False if it was not RUNNING."""
        ...

    async def append_steps(self, run: Run, steps: Sequence[Step]) -> None:
        """Logs the steps of an attempt that has ended; once however often it is called."""
        ...

    async def append_checks(self, run: Run, checks: Sequence[Check]) -> None:
        """Logs quality results; the same results are logged once however often it is called."""
        ...

    async def steps(
        self, run_id: str, attempts: Sequence[Run], size: int, after: tuple[int, int] | None
    ) -> Sequence[Step]:
        """Logged steps of the given attempts of one run, by attempt and position, behind ``after``."""
        ...

    async def checks(
        self, run_id: str, attempts: Sequence[Run], size: int, after: tuple[int, str, str] | None
    ) -> Sequence[Check]:
        """Quality results of the given attempts of one run, by attempt, name and dimension, behind ``after``."""
        ...


class Quotas(Protocol):
    """Tenant's quota: who may start how much."""

    async def reserve(self, key: Key, owner: str, fingerprint: str) -> Grant:
        """The attempt's grant, new or found; go by its owner and state."""
        ...

    async def renew(self, owner: str, keys: Collection[Key]) -> Renewal:
        """Prolongs the owner's grants by ``LEASE``."""
        ...

    async def settle(self, key: Key, state: GrantState) -> None:
        """Ends a grant; one that has ended stays as it is."""
        ...

    async def expired(self, limit: int) -> Sequence[Grant]:
        """LIVE grants of all tenants whose lease has run out, oldest first."""
        ...


class Tenants(Protocol):
    """Tenant's datasets."""

    async def ensure_dataset(self, tenant_id: TenantId, provider: str) -> None:
        """Makes sure that dataset and tables are there; ``NotFound`` for a tenant that is not."""
        ...


class Credentials(Protocol):
    """The tenants' secrets."""

    async def source(self, tenant_id: TenantId, provider: str) -> Mapping[str, Any]:
        """Where the credential's data lie; ``FailedPrecondition`` unless there is a usable credential."""
        ...

    async def open(self, key: Key, provider: str) -> Mapping[str, Any]:
        """The secret, for this attempt."""
        ...


class Owners(Protocol):
    """The other executor processes, reached by what a row says of its owner."""

    def watch(self, owner: str, key: Key) -> AsyncGenerator[View]:
        """What the owner reports of an attempt until it has ended; ``NotFound`` if it does not execute it."""
        ...

    async def cancelled(self, owner: str, key: Key) -> None:
        """Tells the owner that the row says CANCELLING."""
        ...


# ---------------------------------------------------------------- decisions


def check_run_id(text: str) -> str:
    """The run id in its one spelling; ``NotFound(RUN_NOT_FOUND)`` if no run can have it."""
    if not _RUN_ID.fullmatch(text.lower()):
        raise run_not_found()
    return text.lower()


def run_not_found() -> NotFound:
    """The one answer for a run that does not exist and for one that is somebody else's."""
    return NotFound("RUN_NOT_FOUND", "Run not found.")


def run_id_of(tenant_id: TenantId, idempotency_key: str) -> str:
    """The run that a tenant's idempotency key means; no store has to remember it."""
    return str(uuid.uuid5(uuid.uuid5(_KEYS, tenant_id), idempotency_key))


def fingerprint(
    provider: str, domain: str, template: str, dates: tuple[date, date] | None, parameters: Mapping[str, Any]
) -> str:
    """A hash of what was asked for, the same for all ways to write it.

    Dates left out stay left out: the same body sent again after midnight means the same run.
    """
    asked = [provider, domain, template, [day.isoformat() for day in dates] if dates else None, parameters]
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_fingerprint(run: Run, asked: str) -> None:
    """Raises ``InvalidArgument(IDEMPOTENCY_KEY_REUSED)`` if the run was made of another request."""
    if run.fingerprint != asked:
        raise InvalidArgument(
            "IDEMPOTENCY_KEY_REUSED", "This idempotency key was used for a different request; use another one."
        )


def parse_dates(day: str, start: str, end: str) -> tuple[date, date] | None:
    """First and last date of a request; None if it names none. ``InvalidArgument`` for half or double a window."""
    if day and (start or end):
        raise _bad_date("DATE_RANGE_INVALID", "date", "cannot stand beside start_date and end_date")
    if bool(start) != bool(end):
        raise _bad_date("DATE_RANGE_INVALID", "end_date" if start else "start_date", "is missing")
    if not day and not start:
        return None
    first = _date("date", day) if day else _date("start_date", start)
    last = first if day else _date("end_date", end)
    if first > last:
        raise _bad_date("DATE_RANGE_INVALID", "end_date", "lies before start_date")
    return first, last


def resolve_dates(dates: tuple[date, date] | None, *, now: datetime, max_days: int) -> tuple[date, date]:
    """The window to run: yesterday (UTC) unless dates were named. Raises ``InvalidArgument`` for the future."""
    today = now.astimezone(UTC).date()
    if dates is None:
        return today - timedelta(days=1), today - timedelta(days=1)
    first, last = dates
    if last > today:
        raise _bad_date("DATE_IN_FUTURE", "end_date" if first != last else "date", f"lies after today ({today}, UTC)")
    if (last - first).days >= max_days:
        raise _bad_date("DATE_RANGE_TOO_LONG", "end_date", f"lies more than {max_days} days after start_date")
    return first, last


def newest(attempts: Sequence[Run]) -> Run | None:
    """The newest attempt of one run."""
    return max(attempts, key=lambda run: run.key.attempt, default=None)


def check_may_start(attempt: int, attempts: Sequence[Run]) -> None:
    """Raises ``FailedPrecondition`` if an earlier attempt goes on, or has brought the data."""
    for run in attempts:
        if run.key.attempt < attempt and not run.status.ended:
            raise FailedPrecondition("ATTEMPT_RUNNING", "An earlier attempt of this run has not ended.")
        if run.key.attempt < attempt and run.status is RunStatus.COMPLETED:
            raise FailedPrecondition("RUN_COMPLETED", "An earlier attempt of this run has ended well.")


def check_may_cancel(run: Run) -> bool:
    """True if it must be told to stop, False if it has been; ``FailedPrecondition(RUN_ENDED)`` if it has ended."""
    if run.status.ended:
        raise FailedPrecondition("RUN_ENDED", f"The run has ended: it is {run.status}.", status=run.status.value)
    return run.status is not RunStatus.CANCELLING


OWNER_LOST = RunError(
    "OWNER_LOST", "The process that executed this attempt was lost; nothing was changed. Run it again.", True
)
INTERRUPTED = RunError(
    "INTERRUPTED", "The process that executed this attempt was shut down; nothing was changed. Run it again.", True
)
LEASE_LOST = RunError(
    "LEASE_LOST", "This attempt's reservation could not be renewed; nothing was changed. Run it again.", True
)


def percent_of(run: Run, steps: Collection[Step]) -> int:
    """How far a run is, 0 to 100: a step that executes counts half. 100 only for a run that ended well."""
    if run.status is RunStatus.COMPLETED:
        return 100
    if not steps:
        return 0
    halves = sum(2 * (step.status is StepStatus.COMPLETED) + (step.status is StepStatus.RUNNING) for step in steps)
    return min(99, 50 * halves // len(steps))


def view_of(run: Run, steps: Collection[Step], checks: Collection[Check] = ()) -> View:
    """A run with its steps in their order, and how far it is.

    ``checks`` stand in for steps that were not logged, as their process died once the run was published.
    """
    ordered = tuple(sorted(steps, key=lambda step: (step.attempt, step.position)))
    read = sum(step.rows or 0 for step in ordered if step.type == "extract")
    counted = (step.details.get(ROWS_QUARANTINED) for step in ordered if step.attempt == run.key.attempt)
    kept = next((count for count in counted if count is not None), None)
    if kept is None and (found := [check for check in checks if check.name == ROWS_QUARANTINED]):
        kept = sum(int(check.actual or 0) for check in found)
    return View(run, ordered, percent_of(run, ordered), read, kept if run.outcome is Outcome.PUBLISHED else None)


def _date(name: str, text: str) -> date:
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise _bad_date("DATE_INVALID", name, "must be a date, YYYY-MM-DD")


def _bad_date(reason: str, name: str, text: str) -> InvalidArgument:
    return InvalidArgument(reason, f"{name} {text}.", field_violations=[FieldViolation(name, f"{text}.")])
