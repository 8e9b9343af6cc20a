"""What nobody waits for: the daily reset, the deletion of old records, the end of tenants that leave.

Called by the daily CronJob and by the process itself once a minute. The invariant: nothing that has not ended is
deleted, and the rest of the system is right even if none of this ever runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from libs import logs
from libs.errors import Error
from libs.tenancy import TenantId
from services.scheduler.domain import (
    Executor,
    Pick,
    Policy,
    Queue,
    Records,
    Schedules,
    State,
    Tenants,
)
from services.scheduler.runs import let_go_of

_log = logs.get(__name__)
_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What one call of the reset did."""

    reset: int
    deleted: int


class Housekeeping:
    """The daily reset and the offboarding of tenants."""

    def __init__(
        self,
        schedules: Schedules,
        queue: Queue,
        records: Records,
        executor: Executor,
        tenants: Tenants,
        *,
        now: Callable[[], datetime],
        policy: Policy,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._schedules = schedules
        self._queue = queue
        self._records = records
        self._executor = executor
        self._tenants = tenants
        self._now = now
        self._policy = policy
        self._sleep = sleep

    async def reset(self) -> Cleaned:
        """Resets counters through tenant and deletes old records. Idempotent."""
        reset, deleted = await asyncio.gather(
            self._tenants.reset_daily_quotas(), self._records.delete_before(self._now() - self._policy.keep)
        )
        return Cleaned(reset, deleted)

    async def offboard_forever(self) -> None:
        """Asks tenant once a minute who is leaving, and lets go of them; trouble waits for the next minute."""
        while True:
            try:
                await self.offboard()
            except Error as error:
                _log.warning("offboarding_failed", reason=error.reason)
            await self._sleep(_EVERY)

    async def offboard(self) -> list[TenantId]:
        """Stops and cancels everything of the tenants that leave, and confirms; who that was.

        One tenant's trouble waits for the next time and keeps nobody else.
        """
        leaving, done = list(await self._tenants.offboarding()), list[TenantId]()
        if leaving:
            await self._schedules.retire(leaving, self._now())
        for tenant_id in leaving:
            try:
                await self._let_go(tenant_id)
                await self._tenants.confirm_offboarding(tenant_id)
            except Error as error:
                _log.warning("tenant_not_offboarded", tenant_id=tenant_id, reason=error.reason)
            else:
                _log.info("tenant_offboarded", tenant_id=tenant_id)
                done.append(tenant_id)
        return done

    async def _let_go(self, tenant_id: TenantId) -> None:
        claimed = await self._queue.items(Pick(states=(State.CLAIMED,), tenant_ids=[tenant_id]))
        for item in claimed:
            try:
                await self._executor.cancel(item)
            except Error as error:
                # Its reservation died with the tenant: the executor stops by itself.
                _log.info("cancel_refused", run_id=item.run_id, reason=error.reason)
        await let_go_of(self._queue, tenant_id, self._now)
