"""What nobody waits for: the daily reset, the deletion of old records, the end of tenants that leave.

Called by the daily CronJob and by the process itself once a minute. The invariant: nothing that has not ended is
deleted, and the rest of the system is right even if none of this ever runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from libs import logs
from libs.errors import Error
from libs.tenancy import TenantId
from services.scheduler.domain import (
    Executor,
    Item,
    Pick,
    Policy,
    Queue,
    Records,
    Schedules,
    State,
    Tenants,
)
from services.scheduler.runs import change_all

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
        """Stops and cancels everything of the tenants that leave, and confirms; who that was."""
        leaving = list(await self._tenants.offboarding())
        if leaving:
            await self._schedules.retire(leaving, self._now())
        for tenant_id in leaving:
            await self._let_go(tenant_id)
            await self._tenants.confirm_offboarding(tenant_id)
            _log.info("tenant_offboarded", tenant_id=tenant_id)
        return leaving

    async def _let_go(self, tenant_id: TenantId) -> None:
        pick = Pick(tenant_ids=[tenant_id])
        claimed = await self._queue.items(Pick(states=(State.CLAIMED,), tenant_ids=[tenant_id]))
        for item in claimed:
            try:
                await self._executor.cancel(item)
            except Error as error:
                # Its reservation died with the tenant: the executor stops by itself.
                _log.info("cancel_refused", run_id=item.run_id, reason=error.reason)
        await change_all(self._queue, pick, _gone, self._now)


def _gone(item: Item) -> Item:
    return replace(item, state=State.CANCELLED, reason="TENANT_OFFBOARDED", lease_id=None, lease_until=None)
