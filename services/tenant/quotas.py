"""Who may start how much: the tenant's one quota row, and every decision that is made on it.

All of it is pure but ``Quotas``, which asks a ledger. The row alone decides admission, so it holds all that a decision
needs: limits and state in force, counters, grants. Keep three invariants: LIVE grants with ``until`` ahead never exceed
the concurrency limit that admitted them; a day's count is its reservations less its refunds; a grant that has ended
never changes again. Every decision recognises its own earlier result, because a ledger may ask it again.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any, Protocol, cast

from libs.errors import FailedPrecondition, InvalidArgument, NotFound, QuotaViolation, ResourceExhausted
from libs.tenancy import tenant_not_found

LEASE = timedelta(seconds=60)
KEEP_ENDED = timedelta(hours=48)
KEEP_HISTORY = timedelta(days=90)
# Refunds cost nothing, so nothing else bounds how many a caller in a loop could pile up in one row.
KEEP_REFUNDED = 200


class Plan(StrEnum):
    """What a tenant pays for."""

    STARTER = "STARTER"
    PROFESSIONAL = "PROFESSIONAL"
    SCALE = "SCALE"


@dataclass(frozen=True, slots=True)
class Limits:
    """Attempts per UTC day and month, and at one time; 0 means none."""

    daily: int
    monthly: int
    concurrent: int


LIMITS: Mapping[Plan, Limits] = {
    Plan.STARTER: Limits(6, 180, 1),
    Plan.PROFESSIONAL: Limits(25, 750, 3),
    Plan.SCALE: Limits(100, 3000, 10),
}


class TenantState(StrEnum):
    """Where a tenant is in its life; OFFBOARDING never leads back."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    OFFBOARDING = "OFFBOARDING"
    DELETED = "DELETED"


class GrantState(StrEnum):
    """What became of a grant; all but LIVE are final."""

    LIVE = "LIVE"
    SETTLED = "SETTLED"
    REFUNDED = "REFUNDED"
    REAPED = "REAPED"


@dataclass(frozen=True, slots=True)
class Grant:
    """The right of ``owner`` to execute one attempt until ``until``, charged to ``day``."""

    run_id: str
    attempt: int
    owner: str
    day: date
    until: datetime
    state: GrantState = GrantState.LIVE
    fingerprint: str = ""
    ended: datetime | None = None

    def in_use(self, now: datetime) -> bool:
        """True while it takes one of the tenant's slots."""
        return self.state is GrantState.LIVE and self.until > now


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """One tenant's row. ``history`` holds past days with any run, newest first; ``updated_at`` never goes back."""

    tenant_id: str
    version: int
    plan: Plan
    state: TenantState
    limits: Limits
    day: date
    month: str
    pipelines_run_today: int
    pipelines_run_month: int
    grants: tuple[Grant, ...]
    history: tuple[tuple[date, int], ...]
    updated_at: datetime

    @classmethod
    def fresh(cls, tenant_id: str, plan: Plan, now: datetime) -> QuotaRow:
        """The row of a tenant that has run nothing."""
        today = now.astimezone(UTC).date()
        return cls(tenant_id, 1, plan, TenantState.ACTIVE, LIMITS[plan], today, month_of(today), 0, 0, (), (), now)

    def in_use(self, now: datetime) -> int:
        """Slots taken at ``now``."""
        return sum(grant.in_use(now) for grant in self.grants)

    @property
    def next_expiry(self) -> datetime | None:
        """When the first lease runs out, or ran out."""
        return min((grant.until for grant in self.grants if grant.state is GrantState.LIVE), default=None)


# ---------------------------------------------------------------- requests and answers


@dataclass(frozen=True, slots=True)
class Reserve:
    """Asks for a grant for one attempt; the same attempt again gets the grant it has."""

    run_id: str
    attempt: int
    owner: str
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A grant, and whether this decision made it."""

    grant: Grant
    created: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """Asks that the owner's grants live until ``until`` at least."""

    owner: str
    attempts: frozenset[tuple[str, int]]
    until: datetime


@dataclass(frozen=True, slots=True)
class Renewal:
    """Grants that live on, and attempts the owner may not execute any more."""

    renewed: tuple[Grant, ...]
    lost: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Asks to end a grant; one that has ended stays as it is."""

    run_id: str
    attempt: int
    state: GrantState


@dataclass(frozen=True, slots=True)
class SetPlan:
    """Asks for another plan and its limits."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class SetState:
    """Asks for another state; OFFBOARDING ends every lease at once."""

    state: TenantState


@dataclass(frozen=True, slots=True)
class Roll:
    """Asks that counters whose day or month has passed be written as such."""


type QuotaRequest = Reserve | Renew | Settle | SetPlan | SetState | Roll
type QuotaAnswer = Reservation | Renewal | Grant | QuotaRow | None


# ---------------------------------------------------------------- decisions


def decide(row: QuotaRow | None, request: QuotaRequest, now: datetime) -> tuple[QuotaRow | None, QuotaAnswer]:
    """The row after ``request``, and its answer; refusals are raised (``libs.errors``)."""
    if row is None:
        raise tenant_not_found()
    now = max(now, row.updated_at)
    # Forgotten first, so that what an answer says does not depend on when the row was last written.
    current = _pruned(rolled(row, now), now)
    after: QuotaRow
    answer: QuotaAnswer
    match request:
        case Reserve():
            after, answer = _reserve(current, request, now)
        case Renew():
            after, answer = _renew(current, request, now)
        case Settle():
            after, answer = _settle(current, request, now)
        case SetPlan():
            after = answer = _set_plan(current, request.plan)
        case SetState():
            after = answer = _set_state(current, request.state, now)
        case Roll():
            after = answer = current
    # A counter that only rolled over is not worth a write; Roll is the request to write it all the same.
    if after == (row if isinstance(request, Roll) else current):
        return row, answer
    after = dataclasses.replace(after, updated_at=now)
    return after, after if isinstance(answer, QuotaRow) else answer


def rolled(row: QuotaRow, now: datetime) -> QuotaRow:
    """The row with its counters as of ``now``: a day or month that has passed counts from 0 again.

    A clock behind the one that wrote the row takes no counter back.
    """
    today = max(row.day, now.astimezone(UTC).date())
    if today == row.day:
        return row
    past = ((row.day, row.pipelines_run_today), *row.history) if row.pipelines_run_today else row.history
    month = month_of(today)
    return dataclasses.replace(
        row,
        day=today,
        pipelines_run_today=0,
        month=month,
        pipelines_run_month=row.pipelines_run_month if month == row.month else 0,
        history=tuple((day, used) for day, used in past if today - day <= KEEP_HISTORY),
    )


def month_of(day: date) -> str:
    """The UTC month of a day, ``YYYY-MM``."""
    return f"{day:%Y-%m}"


def next_day(day: date) -> datetime:
    """When the day's quota opens again."""
    return datetime.combine(day + timedelta(days=1), time.min, UTC)


def next_month(day: date) -> datetime:
    """When the month's quota opens again."""
    return datetime.combine((day.replace(day=1) + timedelta(days=32)).replace(day=1), time.min, UTC)


def _reserve(row: QuotaRow, request: Reserve, now: datetime) -> tuple[QuotaRow, Reservation]:
    found = _find(row, request.run_id, request.attempt)
    if found is not None:
        if found.fingerprint and request.fingerprint and found.fingerprint != request.fingerprint:
            raise InvalidArgument(
                "IDEMPOTENCY_KEY_REUSED", "This idempotency key was used for a different request; use another one."
            )
        return row, Reservation(found, created=False)
    if row.state is TenantState.DELETED:
        raise tenant_not_found()
    if row.state is not TenantState.ACTIVE:
        raise FailedPrecondition(
            "SUBSCRIPTION_INACTIVE", f"The tenant is {row.state.lower()}; nothing new starts.", state=row.state.value
        )
    if refusal := _refusal(row, now):
        raise refusal
    grant = Grant(request.run_id, request.attempt, request.owner, row.day, now + LEASE, fingerprint=request.fingerprint)
    after = dataclasses.replace(
        row,
        grants=(*row.grants, grant),
        pipelines_run_today=row.pipelines_run_today + 1,
        pipelines_run_month=row.pipelines_run_month + 1,
    )
    return after, Reservation(grant, created=True)


def _refusal(row: QuotaRow, now: datetime) -> ResourceExhausted | None:
    """The refusal of a new attempt: every exhausted quota, named after the one that opens last."""
    subject = f"tenant:{row.tenant_id}"
    found: list[tuple[str, str, int, datetime]] = []
    if row.in_use(now) >= row.limits.concurrent:
        hint = min((grant.until for grant in row.grants if grant.in_use(now)), default=now + LEASE)
        found.append(("CONCURRENT", "runs at one time", row.limits.concurrent, hint))
    if row.pipelines_run_today >= row.limits.daily:
        found.append(("DAILY", "runs a UTC day", row.limits.daily, next_day(row.day)))
    if row.pipelines_run_month >= row.limits.monthly:
        found.append(("MONTHLY", "runs a UTC month", row.limits.monthly, next_month(row.day)))
    if not found:
        return None
    last = max(found, key=lambda item: item[3])
    return ResourceExhausted(
        f"QUOTA_{last[0]}_EXCEEDED",
        f"The {row.plan} plan allows {last[2]} {last[1]}, and they are used up.",
        retry_after=max(last[3] - now, timedelta(seconds=1)),
        quota_violations=[
            QuotaViolation(subject, f"{kind}_RUNS", limit, f"{row.plan} allows {limit} {what}.")
            for kind, what, limit, _ in found
        ],
        tenant_id=row.tenant_id,
        plan=row.plan.value,
    )


def _renew(row: QuotaRow, request: Renew, now: datetime) -> tuple[QuotaRow, Renewal]:
    renewed: list[Grant] = []
    grants: list[Grant] = []
    for grant in row.grants:
        wanted = (grant.run_id, grant.attempt) in request.attempts
        # A lease that has run out is lost even for its owner: its slot may be taken.
        if wanted and grant.owner == request.owner and grant.in_use(now):
            grant = dataclasses.replace(grant, until=max(grant.until, request.until))
            renewed.append(grant)
        grants.append(grant)
    kept = {(grant.run_id, grant.attempt) for grant in renewed}
    after = dataclasses.replace(row, grants=tuple(grants))
    return after, Renewal(tuple(renewed), tuple(sorted(request.attempts - kept)))


def _settle(row: QuotaRow, request: Settle, now: datetime) -> tuple[QuotaRow, Grant | None]:
    found = _find(row, request.run_id, request.attempt)
    if found is None or found.state is not GrantState.LIVE:
        return row, found
    ended = dataclasses.replace(found, state=request.state, ended=now)
    after = dataclasses.replace(row, grants=tuple(ended if grant is found else grant for grant in row.grants))
    return (_refunded(after, found.day) if request.state is GrantState.REFUNDED else after), ended


def _refunded(row: QuotaRow, day: date) -> QuotaRow:
    """The row less one run charged to ``day``."""
    month = row.pipelines_run_month - (month_of(day) == row.month)
    if day == row.day:
        return dataclasses.replace(row, pipelines_run_today=row.pipelines_run_today - 1, pipelines_run_month=month)
    history = tuple((past, used - (past == day)) for past, used in row.history)
    return dataclasses.replace(row, history=tuple(item for item in history if item[1] > 0), pipelines_run_month=month)


def _set_plan(row: QuotaRow, plan: Plan) -> QuotaRow:
    _refuse_leaving(row)
    return dataclasses.replace(row, plan=plan, limits=LIMITS[plan])


def _set_state(row: QuotaRow, state: TenantState, now: datetime) -> QuotaRow:
    if state in (TenantState.ACTIVE, TenantState.SUSPENDED):
        _refuse_leaving(row)
        return dataclasses.replace(row, state=state)
    if row.state in (state, TenantState.DELETED):
        return row
    # The leases end, the grants stay LIVE: the executors' reapers find them and close their runs.
    grants = tuple(
        dataclasses.replace(grant, until=min(grant.until, now)) if grant.state is GrantState.LIVE else grant
        for grant in row.grants
    )
    return dataclasses.replace(row, state=state, grants=grants)


def _refuse_leaving(row: QuotaRow) -> None:
    if row.state is TenantState.OFFBOARDING:
        raise FailedPrecondition("TENANT_OFFBOARDING", "The tenant is being offboarded; that cannot be undone.")
    if row.state is TenantState.DELETED:
        raise tenant_not_found()


def _pruned(row: QuotaRow, now: datetime) -> QuotaRow:
    """The row without ended grants that nobody can still ask about."""
    kept = [grant for grant in row.grants if grant.ended is None or grant.ended + KEEP_ENDED > now]
    refunded = [grant for grant in kept if grant.state is GrantState.REFUNDED]
    dropped = {(grant.run_id, grant.attempt) for grant in refunded[: max(0, len(refunded) - KEEP_REFUNDED)]}
    if not dropped and len(kept) == len(row.grants):
        return row
    return dataclasses.replace(
        row, grants=tuple(grant for grant in kept if (grant.run_id, grant.attempt) not in dropped)
    )


def _find(row: QuotaRow, run_id: str, attempt: int) -> Grant | None:
    return next((grant for grant in row.grants if (grant.run_id, grant.attempt) == (run_id, attempt)), None)


# ---------------------------------------------------------------- use cases


class QuotaRows(Protocol):
    """The ledger of quota rows: decides with ``decide`` and answers when the result is durable."""

    async def ask(self, key: str, request: QuotaRequest, *, deadline: timedelta | None = None) -> QuotaAnswer: ...


class QuotaStore(Protocol):
    """Reads that span tenants."""

    async def read(self, keys: Collection[str]) -> Mapping[str, QuotaRow]:
        """The rows as they are now, by tenant."""
        ...

    async def expired(self, now: datetime, limit: int) -> Sequence[QuotaRow]:
        """Up to ``limit`` rows with a LIVE grant whose lease ran out, oldest first."""
        ...

    async def stale(self, today: date) -> Sequence[str]:
        """Tenants whose row counts a day before ``today``."""
        ...


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a tenant could start now; all zero if it is not ACTIVE, ``state`` None if it is unknown."""

    tenant_id: str
    state: TenantState | None = None
    free_slots: int = 0
    daily_remaining: int = 0
    monthly_remaining: int = 0
    reset_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """One quota of a tenant; ``reset_time`` is when ``used`` falls."""

    limit: int
    used: int
    reset_time: datetime | None

    @property
    def remaining(self) -> int:
        """What is left, never below 0."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant used of each quota, and of past days."""

    tenant_id: str
    daily: Quota
    monthly: Quota
    concurrent: Quota
    history: tuple[tuple[date, int], ...]


class Quotas:
    """Reserves, renews and settles attempts; one per process, safe for any number of callers."""

    def __init__(self, rows: QuotaRows, store: QuotaStore, *, now: Callable[[], datetime]) -> None:
        self._rows = rows
        self._store = store
        self._now = now

    async def reserve(self, tenant_id: str, request: Reserve) -> Reservation:
        """Grants one attempt; idempotent by (run_id, attempt).

        Raises ``ResourceExhausted`` (QUOTA_…_EXCEEDED), ``FailedPrecondition(SUBSCRIPTION_INACTIVE)``, ``NotFound``,
        ``InvalidArgument(IDEMPOTENCY_KEY_REUSED)``, and ``Unavailable`` while the store is out of reach.
        """
        return cast(Reservation, await self._rows.ask(tenant_id, request))

    async def renew(self, owner: str, attempts: Iterable[tuple[str, str, int]]) -> Mapping[str, Renewal]:
        """Prolongs the owner's grants of many tenants, given as (tenant_id, run_id, attempt), by the lease."""
        by_tenant: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for tenant_id, run_id, attempt in attempts:
            by_tenant[tenant_id].add((run_id, attempt))
        until = self._now() + LEASE
        answers = await asyncio.gather(
            *(self._renew(tenant, Renew(owner, frozenset(wanted), until)) for tenant, wanted in by_tenant.items())
        )
        return dict(zip(by_tenant, answers, strict=True))

    async def _renew(self, tenant_id: str, request: Renew) -> Renewal:
        try:
            return cast(Renewal, await self._rows.ask(tenant_id, request))
        except NotFound:
            return Renewal((), tuple(sorted(request.attempts)))

    async def settle(self, tenant_id: str, request: Settle) -> Grant | None:
        """Ends a grant and returns it as it ended (maybe long ago); None if it is not known. Idempotent."""
        return cast(Grant | None, await self._rows.ask(tenant_id, request))

    async def expired(self, limit: int) -> list[tuple[str, Grant]]:
        """LIVE grants of all tenants whose lease has run out, oldest first."""
        now = self._now()
        found = [
            (row.tenant_id, grant)
            for row in await self._store.expired(now, limit)
            for grant in row.grants
            if grant.state is GrantState.LIVE and grant.until <= now
        ]
        return sorted(found, key=lambda item: (item[1].until, item[1].run_id, item[1].attempt))[:limit]

    async def allowances(self, tenant_ids: Sequence[str]) -> list[Allowance]:
        """What each tenant could start now, in the order asked; one read."""
        rows = await self._store.read(set(tenant_ids)) if tenant_ids else {}
        now = self._now()
        return [
            _allowance(rolled(rows[tenant_id], now), now) if tenant_id in rows else Allowance(tenant_id)
            for tenant_id in tenant_ids
        ]

    async def reset_daily(self) -> int:
        """Writes zeros where a day has passed and returns how many rows that were; quotas are right without it."""
        stale = await self._store.stale(self._now().astimezone(UTC).date())
        long = timedelta(seconds=240)
        rows: list[Any] = await asyncio.gather(*(self._rows.ask(tenant, Roll(), deadline=long) for tenant in stale))
        return len(rows)

    async def usage(self, tenant_id: str) -> Usage:
        """What the tenant used; raises ``NotFound``."""
        found = (await self._store.read([tenant_id])).get(tenant_id)
        if found is None:
            raise tenant_not_found()
        now = max(self._now(), found.updated_at)
        row = rolled(found, now)
        first = min((grant.until for grant in row.grants if grant.in_use(now)), default=None)
        return Usage(
            tenant_id,
            daily=Quota(row.limits.daily, row.pipelines_run_today, next_day(row.day)),
            monthly=Quota(row.limits.monthly, row.pipelines_run_month, next_month(row.day)),
            concurrent=Quota(row.limits.concurrent, row.in_use(now), first),
            history=row.history,
        )


def _allowance(row: QuotaRow, now: datetime) -> Allowance:
    if row.state is not TenantState.ACTIVE:
        return Allowance(row.tenant_id, row.state)
    daily = max(0, row.limits.daily - row.pipelines_run_today)
    monthly = max(0, row.limits.monthly - row.pipelines_run_month)
    slots = max(0, row.limits.concurrent - row.in_use(now))
    opens = next_month(row.day) if monthly == 0 else next_day(row.day) if daily == 0 else None
    return Allowance(row.tenant_id, row.state, slots, daily, monthly, opens)
