"""Schedules, their runs and the queue: what they are, how a queue row may change, what the use cases need of others.

Everything here is pure. A queue row (``Item``) is the authority on a run until it ends; the run's own row shows it to
people. The invariants every function keeps: a run that ended is never changed again; ``retry_count`` rises only when an
attempt that started has failed; a row is written only over the version it was read with.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from libs.errors import Ambiguous, Error, NotFound
from libs.tenancy import TenantId

_NAMES = uuid.UUID("6f0d1a52-6a9a-5c86-9b37-30b1f3d7b4a1")


class Overlap(StrEnum):
    """What happens to an occurrence while an earlier run of its schedule has not ended."""

    SKIP = "SKIP"
    QUEUE_ONE = "QUEUE_ONE"
    ALLOW = "ALLOW"


class Catchup(StrEnum):
    """What happens to occurrences that nobody triggered in time."""

    LAST = "LAST"
    ALL = "ALL"
    NONE = "NONE"


class State(StrEnum):
    """Where a run is in its life; a dead letter has not ended, a person may queue it again."""

    QUEUED = "QUEUED"
    CLAIMED = "CLAIMED"
    DEFERRED = "DEFERRED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"
    DEAD_LETTER = "DEAD_LETTER"

    @property
    def ended(self) -> bool:
        """True if the run never changes again."""
        return self in _ENDED

    @property
    def waits(self) -> bool:
        """True if the run may be claimed."""
        return self in (State.QUEUED, State.DEFERRED)


_ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.SKIPPED})


class Trigger(StrEnum):
    """Who asked for a run."""

    SCHEDULED = "SCHEDULED"
    MANUAL = "MANUAL"
    BACKFILL = "BACKFILL"


class Stop(StrEnum):
    """What shall happen to a claimed run: cancel its attempt now, or let it end and try no more after it."""

    NOW = "NOW"
    AFTER = "AFTER"


@dataclass(frozen=True, slots=True)
class Policy:
    """Times and limits that are the same for everybody."""

    lease: timedelta = timedelta(seconds=60)
    """How long a claim holds until its attempt has started."""
    lost_after: timedelta = timedelta(minutes=2)
    """An attempt that was started and that the executor does not know after this long is tried again."""
    retry_base: timedelta = timedelta(seconds=30)
    retry_cap: timedelta = timedelta(minutes=30)
    refusal_base: timedelta = timedelta(seconds=2)
    refusal_cap: timedelta = timedelta(minutes=5)
    ageing: timedelta = timedelta(hours=6)
    """Waiting this long is worth one level of priority."""
    max_age: timedelta = timedelta(days=7)
    """A run that could not be started for so long is skipped."""
    backfill_max_age: timedelta = timedelta(days=200)
    backfill_step: timedelta = timedelta(hours=12)
    """Each date of a backfill begins to age so much later than the one before: an old one cannot crowd out the rest."""
    backfill_priority: int = 0
    backfill_max_dates: int = 366
    backfill_max_open: int = 1_000
    """Runs of backfills that a tenant may have waiting at one time."""
    grace: timedelta = timedelta(minutes=75)
    """An occurrence triggered later than this was missed; the trigger comes hourly."""
    missed_rows: int = 24
    """So many missed occurrences of a schedule have a row each, the older ones share one."""
    missed_walk: int = 200
    """So many missed occurrences are walked through; of a longer absence only the newest are looked at."""
    keep: timedelta = timedelta(days=90)
    """Records of what has ended are kept so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One row of ``tenant_pipeline_configs``."""

    config_id: str
    tenant_id: TenantId
    version: int = 0
    name: str = ""
    provider: str
    domain: str
    template: str
    cron: str
    timezone: str = "UTC"
    is_active: bool = True
    next_run_time: datetime | None = None
    last_scheduled_for: datetime | None = None
    priority: int = 5
    parameters: str | None = None
    overlap_policy: Overlap = Overlap.SKIP
    catchup_policy: Catchup = Catchup.LAST
    catchup_limit: int = 24
    date_offset_days: int = 1
    refresh_window_days: int = 0
    jitter_seconds: int = 0
    max_retries: int = 3
    fingerprint: str | None = None
    created_at: datetime
    created_by: str = ""
    updated_at: datetime
    paused_at: datetime | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of ``scheduled_pipeline_runs``."""

    run_id: str
    config_id: str | None = None
    backfill_id: str | None = None
    tenant_id: TenantId
    trigger: Trigger
    provider: str
    domain: str
    template: str
    scheduled_for: datetime
    start_date: date
    end_date: date
    state: State
    reason: str | None = None
    error: str | None = None
    occurrence_count: int = 1
    retry_count: int = 0
    max_retries: int = 3
    attempt: int = 1
    priority: int = 5
    not_before: datetime | None = None
    fingerprint: str | None = None
    created_at: datetime
    created_by: str = ""
    updated_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row of ``pipeline_execution_queue``; ``version`` is the fence."""

    run_id: str
    tenant_id: TenantId
    config_id: str | None = None
    backfill_id: str | None = None
    version: int = 1
    state: State = State.QUEUED
    reason: str | None = None
    error: str | None = None
    stop: Stop | None = None
    priority: int = 5
    rank_at: datetime
    serial_id: str
    retry_count: int = 0
    max_retries: int = 3
    refusals: int = 0
    attempt: int = 1
    not_before: datetime
    expires_at: datetime
    lease_id: str | None = None
    lease_until: datetime | None = None
    started_at: datetime | None = None
    trigger: Trigger
    provider: str
    domain: str
    template: str
    parameters: str | None = None
    scheduled_for: datetime
    start_date: date
    end_date: date
    enqueued_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """One row of ``scheduler_backfills`` and how far its runs are."""

    backfill_id: str
    tenant_id: TenantId
    provider: str
    domain: str
    template: str
    parameters: str | None = None
    start_date: date
    end_date: date
    total_count: int
    fingerprint: str | None = None
    created_at: datetime
    created_by: str = ""
    cancelled_at: datetime | None = None
    completed_count: int = 0
    failed_count: int = 0

    @property
    def pending_count(self) -> int:
        """Runs that have not ended; a dead letter counts as ended badly."""
        return max(0, self.total_count - self.completed_count - self.failed_count)


# ------------------------------------------------------------------ identity


def run_id_of(config_id: str, scheduled_for: datetime) -> str:
    """The id of an occurrence: whoever triggers it, it is the same run."""
    return str(uuid.uuid5(uuid.UUID(config_id), scheduled_for.isoformat()))


def id_from_key(tenant_id: str, kind: str, key: str | None) -> str:
    """The id of what a client asks for: the same for the same idempotency key, a fresh one without."""
    if key is None:
        return str(uuid.uuid4())
    return str(uuid.uuid5(uuid.uuid5(_NAMES, tenant_id), f"{kind}/{key}"))


def date_run_id(backfill_id: str, day: date) -> str:
    """The id of one date's run in a backfill."""
    return str(uuid.uuid5(uuid.UUID(backfill_id), day.isoformat()))


def jitter(config_id: str, jitter_seconds: int) -> timedelta:
    """How much later than its occurrence a schedule's run starts; always the same for one schedule."""
    digest = hashlib.sha256(config_id.encode()).digest()
    return timedelta(seconds=int.from_bytes(digest[:8]) % (jitter_seconds + 1))


def rank(since: datetime, priority: int, policy: Policy) -> datetime:
    """The place of a run among its tenant's: by priority, then by age, where age makes up for priority in time."""
    return since - priority * policy.ageing


def queue_item(
    run: Run, *, parameters: str | None, serial_id: str, not_before: datetime, rank_at: datetime, expires_at: datetime
) -> Item:
    """The queue row of a run that begins its life QUEUED."""
    return Item(
        run_id=run.run_id,
        tenant_id=run.tenant_id,
        config_id=run.config_id,
        backfill_id=run.backfill_id,
        priority=run.priority,
        rank_at=rank_at,
        serial_id=serial_id,
        max_retries=run.max_retries,
        not_before=not_before,
        expires_at=expires_at,
        trigger=run.trigger,
        provider=run.provider,
        domain=run.domain,
        template=run.template,
        parameters=parameters,
        scheduled_for=run.scheduled_for,
        start_date=run.start_date,
        end_date=run.end_date,
        enqueued_at=run.created_at,
        created_at=run.created_at,
        updated_at=run.created_at,
    )


# ------------------------------------------------------------------ the queue's state machine


class AttemptStatus(StrEnum):
    """Where an attempt is, in the executor's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the executor says of one attempt."""

    run_id: str
    attempt: int
    status: AttemptStatus
    reason: str = ""
    message: str = ""
    retryable: bool = False
    outcome: str = ""


def judge(item: Item, seen: Attempt | None, now: datetime, chance: float, policy: Policy) -> Item:
    """The row after the executor was asked about its attempt; ``seen`` is None if it knows none.

    ``chance`` (0 to 1) spreads the backoff. An equal row means that there is nothing to do yet.
    """
    if item.state is not State.CLAIMED:
        return item
    if seen is None:
        return _unknown(item, now, policy)
    match seen.status:
        case AttemptStatus.COMPLETED:
            return _completed(_begun(item, now), seen.outcome or None)
        case AttemptStatus.CANCELLED:
            return _end(_begun(item, now), State.CANCELLED, "CANCELLED")
        case AttemptStatus.FAILED:
            return _failed(_begun(item, now), seen, now, chance, policy)
        case _:
            return _begun(item, now)


def _unknown(item: Item, now: datetime, policy: Policy) -> Item:
    if item.started_at is None:
        if item.lease_until is not None and item.lease_until > now:
            return item
        if item.stop is not None:
            return _end(item, State.CANCELLED, "CANCELLED")
        return _again(item, now, "LEASE_EXPIRED")
    if item.started_at + policy.lost_after > now:
        return item
    if item.stop is not None:
        return _end(item, State.CANCELLED, "CANCELLED")
    # It was reserved but never got a row. Its grant may stand in the way, so the next try has the next number.
    return replace(_again(item, now, "ATTEMPT_LOST"), attempt=item.attempt + 1)


def _failed(item: Item, seen: Attempt, now: datetime, chance: float, policy: Policy) -> Item:
    failed = replace(item, reason=seen.reason or "FAILED", error=seen.message or None)
    if item.stop is not None:
        return _end(failed, State.CANCELLED, failed.reason)
    if not seen.retryable or item.retry_count >= item.max_retries:
        return _dead(failed, failed.reason, failed.error)
    wait = chance * min(policy.retry_cap, policy.retry_base * 2**item.retry_count)
    again = _again(failed, now + wait, failed.reason)
    return replace(again, retry_count=item.retry_count + 1, attempt=item.attempt + 1)


def _begun(item: Item, now: datetime) -> Item:
    if item.started_at is not None:
        return item
    return replace(item, started_at=now, lease_id=None, lease_until=None, refusals=0)


def _again(item: Item, not_before: datetime, reason: str | None) -> Item:
    return replace(
        item, state=State.QUEUED, reason=reason, not_before=not_before, lease_id=None, lease_until=None, started_at=None
    )


def _end(item: Item, state: State, reason: str | None) -> Item:
    return replace(item, state=state, reason=reason, lease_id=None, lease_until=None)


def _completed(item: Item, outcome: str | None) -> Item:
    """The row at its good end; what an earlier attempt failed with is over."""
    return replace(_end(item, State.COMPLETED, outcome), error=None)


def _dead(item: Item, reason: str | None, error: str | None) -> Item:
    return replace(_end(item, State.DEAD_LETTER, reason), error=error)


def refuse(item: Item, error: Error, now: datetime, chance: float, policy: Policy) -> Item:
    """The row after its start was refused: given back, deferred, or dead where no later try can help.

    An outcome nobody knows leaves the row claimed; the executor is asked about it.
    """
    if error.reason in _HAS_THE_DATA:
        return _completed(_begun(item, now), error.reason)
    if item.stop is not None and not unknown_outcome(error):
        return _end(item, State.CANCELLED, "CANCELLED")
    quotas = {violation.quota_id for violation in error.quota_violations}
    if window := quotas & {"DAILY_RUNS", "MONTHLY_RUNS"}:
        return defer(item, now + (error.retry_after or timedelta(hours=1)), min(window))
    if unknown_outcome(error):
        return item
    if no_room(error):
        # Room comes back at any moment; whoever claims waits, not the row.
        return _again(item, item.not_before, error.reason)
    if not (error.retryable or error.kind in ("ABORTED", "INTERNAL") or error.reason in _PASSES):
        return _dead(item, error.reason, error.message)
    wait = chance * min(policy.refusal_cap, policy.refusal_base * 2 ** min(item.refusals, 16))
    given_back = replace(_again(item, now + wait, error.reason), refusals=item.refusals + 1)
    # Whoever holds this attempt's number lets nobody else have it; the next number is free once that one has ended.
    return replace(given_back, attempt=item.attempt + 1) if error.kind == "ABORTED" else given_back


_HAS_THE_DATA = frozenset({"RUN_COMPLETED"})
# The tenant may become active again, the earlier attempt ends.
_PASSES = frozenset({"SUBSCRIPTION_INACTIVE", "ATTEMPT_RUNNING"})
_FULL = frozenset({"EXECUTOR_FULL", "EXECUTOR_DRAINING", "EXECUTION_STOPPED"})
# What a channel says when nobody answered; a word of the executor's own means that it refused.
_NO_ANSWER = frozenset({"DEADLINE_EXCEEDED", "DEPENDENCY_UNAVAILABLE", "DEPENDENCY_OVERLOADED", "TIMEOUT"})


def unknown_outcome(error: Error) -> bool:
    """True if the attempt may have been started in spite of the error."""
    return isinstance(error, Ambiguous) or error.reason in _NO_ANSWER


def no_room(error: Error) -> bool:
    """True if the executor, or the tenant's concurrency, has no room at the moment."""
    return error.reason in _FULL or any(violation.quota_id == "CONCURRENT_RUNS" for violation in error.quota_violations)


def defer(item: Item, until: datetime, reason: str) -> Item:
    """The row as it waits for the next quota window."""
    return replace(_again(item, until, reason), state=State.DEFERRED)


def expire(item: Item) -> Item:
    """The row of a run that waited too long."""
    return _end(item, State.SKIPPED, "TOO_OLD")


def cancel(item: Item) -> Item:
    """The row after somebody asked for its end: a claimed run ends once the executor has let go of it."""
    if item.state is State.CLAIMED:
        return replace(item, stop=Stop.NOW, reason="CANCEL_REQUESTED")
    return _end(item, State.CANCELLED, "CANCELLED")


def retire(item: Item) -> Item:
    """The row after its schedule was deleted: a run that waits is cancelled, one that runs may end."""
    if item.state is State.CLAIMED:
        return item if item.stop is not None else replace(item, stop=Stop.AFTER)
    return _end(item, State.CANCELLED, "SCHEDULE_DELETED")


def let_go(item: Item) -> Item:
    """The row of a tenant that leaves; its attempt ends by itself, because its reservation died with the tenant."""
    return _end(item, State.CANCELLED, "TENANT_OFFBOARDED")


def requeue(item: Item, now: datetime, policy: Policy) -> Item:
    """The dead letter with its retries given back; an attempt that was started is not started again."""
    return replace(
        item,
        state=State.QUEUED,
        reason="REQUEUED",
        error=None,
        retry_count=0,
        refusals=0,
        attempt=item.attempt if item.started_at is None else item.attempt + 1,
        started_at=None,
        not_before=now,
        rank_at=rank(now, item.priority, policy),
        expires_at=now + policy.max_age,
        enqueued_at=now,
    )


# ------------------------------------------------------------------ what the use cases need of others


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule that is due, and how many of its runs have not ended."""

    schedule: Schedule
    waiting: int = 0
    claimed: int = 0


@dataclass(frozen=True, slots=True)
class Firing:
    """What a trigger does to one schedule: how it is left, its new runs, and the queue rows of those that wait."""

    schedule: Schedule
    runs: tuple[Run, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Backlog:
    """One tenant's rows in the queue: ready and queued, ready and deferred, claimed, waiting for too long."""

    tenant_id: TenantId
    ready: int = 0
    deferred: int = 0
    claimed: int = 0
    expired: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many runs a tenant could start now; ``window`` is when an exhausted quota opens again."""

    active: bool
    free_slots: int = 0
    daily_remaining: int = 0
    monthly_remaining: int = 0
    window: datetime | None = None

    @property
    def in_quota(self) -> bool:
        """True if only concurrency can stand in the way."""
        return self.active and self.daily_remaining > 0 and self.monthly_remaining > 0

    @property
    def slots(self) -> int:
        """Runs it could start now."""
        return min(self.free_slots, self.daily_remaining, self.monthly_remaining) if self.active else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Which queue rows: those that match every field that is given."""

    states: Collection[State] = ()
    run_ids: Collection[str] = ()
    config_ids: Collection[str] = ()
    backfill_ids: Collection[str] = ()
    tenant_ids: Collection[str] = ()
    lease_id: str = ""
    ready_at: datetime | None = None
    """Past their ``not_before`` at this time."""
    expired_at: datetime | None = None
    """Past their ``expires_at`` at this time."""


class Schedules(Protocol):
    """Rows of ``tenant_pipeline_configs``; a ``libs.ledger.Table`` as well."""

    async def read(self, keys: Collection[str]) -> Mapping[str, Schedule]: ...

    async def replace(self, rows: Collection[Schedule]) -> bool: ...

    async def insert(self, schedule: Schedule) -> None:
        """Makes the row, once however often it is called for one ``config_id``."""
        ...

    async def list(self, tenant_id: TenantId, size: int, after: tuple[datetime, str] | None) -> Sequence[Schedule]:
        """Those that are not deleted, by creation."""
        ...

    async def due(self, now: datetime, limit: int, config_id: str | None = None) -> Sequence[Due]:
        """Up to ``limit`` that are due, the longest due first; or the one asked for, if it is."""
        ...

    async def fire(self, firings: Sequence[Firing], change_id: str, now: datetime) -> Collection[str]:
        """Writes the schedules still at the version they were read with, and the runs of exactly those, all or
        nothing. Returns the ids of the schedules written."""
        ...

    async def fired(self, change_id: str) -> Collection[str]:
        """What ``fire`` wrote under that id; for after an unknown outcome."""
        ...

    async def retire(self, tenant_ids: Collection[str], now: datetime) -> None:
        """Deletes all schedules of the tenants."""
        ...


class Queue(Protocol):
    """Rows of ``pipeline_execution_queue`` and ``scheduled_pipeline_runs``."""

    async def add(self, runs: Sequence[Run], items: Sequence[Item], key: str, backfill: Backfill | None = None) -> None:
        """Makes runs and their queue rows, all or nothing, once however often it is called with one ``key``."""
        ...

    async def items(self, pick: Pick, limit: int = 1_000) -> Sequence[Item]:
        """Up to ``limit`` rows as they are now, by ``run_id``."""
        ...

    async def backlog(self, now: datetime) -> Sequence[Backlog]:
        """What each tenant has in the queue."""
        ...

    async def claim(
        self, slots: Mapping[str, int], size: int, *, lease_id: str, now: datetime, until: datetime, asked: datetime
    ) -> Sequence[Item]:
        """Claims up to ``size`` ready rows, tenants taking turns, none above its slots as they were at ``asked``."""
        ...

    async def apply(self, items: Sequence[Item], change_id: str, now: datetime) -> Collection[str]:
        """Writes the rows still at the version they were read with, and shows them in the runs' own rows, all or
        nothing. Rows of runs that ended leave the queue. Returns the ids of what was written."""
        ...

    async def applied(self, items: Sequence[Item], change_id: str) -> Collection[str]:
        """What ``apply`` wrote under that id; for after an unknown outcome."""
        ...


class Job(StrEnum):
    """What the CronJobs call."""

    TRIGGER = "trigger"
    PROCESS_QUEUE = "process-queue"
    RESET_DAILY_QUOTAS = "reset-daily-quotas"


@dataclass(frozen=True, slots=True)
class JobCall:
    """One call of a job; ``end_time`` is None while it runs, or if it was killed."""

    job: str
    start_time: datetime | None
    end_time: datetime | None = None
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The queue at one moment."""

    due: int = 0
    due_since: datetime | None = None
    by_state: Mapping[str, int] = field(default_factory=dict)
    ready_since: datetime | None = None
    failed_last_day: int = 0


class Records(Protocol):
    """What people read: runs, backfills, the order of the queue, the jobs' calls, and what must not be."""

    async def run(self, tenant_id: TenantId, run_id: str) -> Run | None:
        """One run of the tenant."""
        ...

    async def runs(
        self, tenant_id: TenantId, config_id: str, size: int, before: tuple[datetime, str] | None
    ) -> Sequence[Run]:
        """A schedule's runs, newest first."""
        ...

    async def queue(self, state: State | None, size: int, after: int) -> Sequence[tuple[int, Item]]:
        """Queue rows with their places, in the order in which they are claimed."""
        ...

    async def dead_letters(self, size: int, before: tuple[datetime, str] | None) -> Sequence[Item]:
        """Dead letters, newest first."""
        ...

    async def backfills(
        self, tenant_id: TenantId, size: int, before: tuple[datetime, str] | None, backfill_id: str | None = None
    ) -> Sequence[Backfill]:
        """The tenant's backfills with their progress, newest first; or the one asked for."""
        ...

    async def cancel_backfill(self, tenant_id: TenantId, backfill_id: str, now: datetime) -> None:
        """Notes that a backfill was cancelled; the first time stays."""
        ...

    async def note_call(self, call_id: str, job: Job, at: datetime, outcome: str | None, counts: str | None) -> None:
        """Notes that a call began (``outcome`` None) or how it ended."""
        ...

    async def calls(self, since: datetime) -> Sequence[JobCall]:
        """The last call of each job."""
        ...

    async def status(self, now: datetime) -> Status:
        """The queue as it is."""
        ...

    async def violations(self, late: datetime, settled: datetime, stale_lease: datetime) -> Mapping[str, Sequence[str]]:
        """Ids of what must not be, by the name of the invariant."""
        ...

    async def delete_before(self, before: datetime) -> int:
        """Deletes what ended before then, and says how many rows that were."""
        ...


class Executor(Protocol):
    """The pipeline executor."""

    async def refresh_window(self, provider: str, domain: str, template: str) -> int:
        """How many days back the template's source still changes; ``NotFound(TEMPLATE_NOT_FOUND)``."""
        ...

    async def start(self, item: Item) -> Attempt:
        """Starts the row's attempt, or answers with it; idempotent by run and attempt."""
        ...

    async def attempts(self, items: Sequence[Item]) -> Mapping[str, Attempt]:
        """The rows' attempts by run id; those that do not exist are left out."""
        ...

    async def cancel(self, item: Item) -> Attempt:
        """Asks for the end of the row's run."""
        ...


class Tenants(Protocol):
    """The tenant context."""

    async def allowances(self, tenant_ids: Sequence[str]) -> Mapping[str, Allowance]:
        """What each tenant could start now."""
        ...

    async def check_exists(self, tenant_id: TenantId) -> None:
        """Raises ``NotFound(TENANT_NOT_FOUND)`` for a tenant that is not there."""
        ...

    async def check_staying(self, tenant_id: TenantId) -> None:
        """Raises as ``check_exists``, and ``FailedPrecondition`` for a tenant that is leaving."""
        ...

    async def reset_daily_quotas(self) -> int:
        """Writes zeros where a counter's day has passed; how many rows that were."""
        ...

    async def offboarding(self) -> Sequence[TenantId]:
        """Tenants whose offboarding waits for this context."""
        ...

    async def confirm_offboarding(self, tenant_id: TenantId) -> None:
        """Says that nothing of the tenant is held here any more."""
        ...


def run_not_found() -> NotFound:
    """The one answer for a run that does not exist and for one that is somebody else's."""
    return NotFound("RUN_NOT_FOUND", "Run not found.")


def schedule_not_found() -> NotFound:
    """The one answer for a schedule that does not exist and for one that is somebody else's."""
    return NotFound("SCHEDULE_NOT_FOUND", "Schedule not found.")
