"""Backfills: a range of past dates becomes one run a date, as queue rows of low priority.

Called by the servicer. The invariants: a backfill and all its runs come into being in one transaction; its rows begin
to age one after another, so an old backfill never crowds out what is due today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from libs import caller
from libs.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from libs.tenancy import TenantId
from services.scheduler.domain import (
    Backfill,
    Item,
    Pick,
    Policy,
    Queue,
    Records,
    Run,
    State,
    Tenants,
    Trigger,
    cancel,
    date_run_id,
    id_from_key,
    queue_item,
    rank,
)
from services.scheduler.runs import change_all, let_go_of, while_it_stays
from services.scheduler.schedules import check_pipeline, fingerprint, key_reused
from services.scheduler.trail import Trail

_DAY = timedelta(days=1)
_MAX_RETRIES = 3


def plan(backfill: Backfill, now: datetime, policy: Policy) -> tuple[list[Run], list[Item]]:
    """The runs of a backfill, the newest date first, and their queue rows."""
    runs, items = [], []
    for number in range(backfill.total_count):
        day = backfill.end_date - number * _DAY
        run = Run(
            run_id=date_run_id(backfill.backfill_id, day),
            backfill_id=backfill.backfill_id,
            tenant_id=backfill.tenant_id,
            trigger=Trigger.BACKFILL,
            provider=backfill.provider,
            domain=backfill.domain,
            template=backfill.template,
            scheduled_for=datetime.combine(day, time.min, UTC),
            start_date=day,
            end_date=day,
            state=State.QUEUED,
            max_retries=_MAX_RETRIES,
            priority=policy.backfill_priority,
            not_before=now,
            created_at=backfill.created_at,
            created_by=backfill.created_by,
            updated_at=now,
        )
        runs.append(run)
        items.append(
            queue_item(
                run,
                parameters=backfill.parameters,
                serial_id=run.run_id,
                not_before=now,
                rank_at=rank(now + number * policy.backfill_step, run.priority, policy),
                expires_at=now + policy.backfill_max_age,
            )
        )
    return runs, items


class Backfills:
    """The use cases on backfills; one per process."""

    def __init__(
        self,
        queue: Queue,
        records: Records,
        tenants: Tenants,
        trail: Trail,
        *,
        now: Callable[[], datetime],
        policy: Policy,
    ) -> None:
        self._queue = queue
        self._records = records
        self._tenants = tenants
        self._trail = trail
        self._now = now
        self._policy = policy

    async def create(
        self, tenant_id: TenantId, values: Mapping[str, Any], first: date, last: date, key: str | None
    ) -> Backfill:
        """Queues one run a date; with an idempotency key once.

        Raises ``InvalidArgument`` (DATE_RANGE_INVALID, DATE_RANGE_TOO_LONG, DATE_IN_FUTURE, PIPELINE_INVALID,
        IDEMPOTENCY_KEY_REUSED), ``FailedPrecondition(BACKFILL_LIMIT)`` while too many of the tenant's wait.
        """
        check_pipeline(values["provider"], values["domain"], values["template"])
        count = self._count(first, last)
        now = self._now()
        backfill = Backfill(
            backfill_id=id_from_key(tenant_id, "backfill", key),
            tenant_id=tenant_id,
            start_date=first,
            end_date=last,
            total_count=count,
            fingerprint=fingerprint({**values, "start_date": first, "end_date": last}),
            created_at=now,
            created_by=caller.current().key_id,
            **values,
        )
        await self._tenants.check_staying(tenant_id)
        if key is not None and (found := await self._existing(backfill)):
            return found
        await self._check_room(tenant_id, count)
        runs, items = plan(backfill, now, self._policy)
        await self._queue.add(runs, items, backfill.backfill_id, backfill)
        if key is not None:
            backfill = await self._existing(backfill) or backfill
        note = self._trail.note(
            "backfill.create", tenant_id, "backfill", backfill.backfill_id, start_date=f"{first}", end_date=f"{last}"
        )
        await while_it_stays(self._tenants, tenant_id, note, lambda: let_go_of(self._queue, tenant_id, self._now))
        return backfill

    def _count(self, first: date, last: date) -> int:
        today = self._now().astimezone(UTC).date()
        if last < first:
            raise _bad("DATE_RANGE_INVALID", "end_date", "lies before start_date")
        if last > today:
            raise _bad("DATE_IN_FUTURE", "end_date", f"lies after today ({today}, UTC)")
        count = (last - first).days + 1
        if count > self._policy.backfill_max_dates:
            raise _bad("DATE_RANGE_TOO_LONG", "end_date", f"makes more than {self._policy.backfill_max_dates} dates")
        return count

    async def _check_room(self, tenant_id: TenantId, count: int) -> None:
        limit = self._policy.backfill_max_open
        waiting = (State.QUEUED, State.DEFERRED, State.CLAIMED)
        found = await self._queue.items(Pick(states=waiting, tenant_ids=[tenant_id]), 10 * limit)
        open_runs = sum(item.backfill_id is not None for item in found)
        if open_runs + count > limit:
            raise FailedPrecondition(
                "BACKFILL_LIMIT",
                f"{open_runs} runs of backfills have not ended and {limit} may wait at one time; "
                "cancel one, or ask for fewer dates.",
            )

    async def _existing(self, wanted: Backfill) -> Backfill | None:
        found = await self._records.backfills(wanted.tenant_id, 1, None, wanted.backfill_id)
        if found and found[0].fingerprint != wanted.fingerprint:
            raise key_reused()
        return found[0] if found else None

    async def get(self, tenant_id: TenantId, backfill_id: str) -> Backfill:
        """Raises ``NotFound(BACKFILL_NOT_FOUND)``."""
        found = await self._records.backfills(tenant_id, 1, None, backfill_id)
        if not found:
            raise NotFound("BACKFILL_NOT_FOUND", "Backfill not found.")
        return found[0]

    async def list(self, tenant_id: TenantId, size: int, before: tuple[datetime, str] | None) -> Sequence[Backfill]:
        """The tenant's backfills, newest first."""
        return await self._records.backfills(tenant_id, size, before)

    async def cancel(self, tenant_id: TenantId, backfill_id: str) -> Backfill:
        """Cancels all runs that have not ended; those that run end at the next round of the loop. Idempotent."""
        found = await self.get(tenant_id, backfill_id)
        now = self._now()
        if found.cancelled_at is None and found.pending_count:
            await self._records.cancel_backfill(tenant_id, backfill_id, now)
        await change_all(self._queue, Pick(backfill_ids=[backfill_id]), cancel, self._now)
        await self._trail.note("backfill.cancel", tenant_id, "backfill", backfill_id)
        return await self.get(tenant_id, backfill_id)


def _bad(reason: str, name: str, text: str) -> InvalidArgument:
    return InvalidArgument(reason, f"{name} {text}.", field_violations=[FieldViolation(name, text)])
