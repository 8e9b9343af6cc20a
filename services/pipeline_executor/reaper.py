"""Closes what lost owners left behind: every expired grant is settled by what its attempt's row says.

Each executor does this for all tenants; doing it twice, or beside an owner that woke up again, is harmless, because a
row is ended by a fenced update and a grant that has ended stays as it is. A killed process's runs are closed within
the lease (60 s), one interval (20 s) and a few statements: 100 s.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from libs import errors, logs, metrics
from libs.tenancy import TenantId
from services.pipeline_executor.domain import (
    OWNER_LOST,
    Ending,
    Grant,
    GrantState,
    Key,
    Quotas,
    Run,
    RunStatus,
    RunStore,
)

EVERY_SECONDS = 20.0
_PAGE = 500
_AT_ONCE = 8

_log = logs.get(__name__)


class Reaper:
    """One per process; holds nothing between rounds."""

    def __init__(self, quotas: Quotas, store: RunStore, *, now: Callable[[], datetime]) -> None:
        self._quotas = quotas
        self._store = store
        self._now = now
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Reaps for as long as the process lives."""
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self.reap()
            except errors.Error as failure:
                _log.warning("reaping_failed", reason=failure.reason)
            except Exception:
                _log.exception("reaping_failed")
            await asyncio.sleep(max(0.0, EVERY_SECONDS - (asyncio.get_running_loop().time() - began)))

    async def reap(self) -> int:
        """One round over all tenants; how many grants were settled."""
        by_tenant: dict[TenantId, list[Grant]] = defaultdict(list)
        for grant in await self._quotas.expired(_PAGE):
            by_tenant[grant.key.tenant_id].append(grant)
        settled = await asyncio.gather(*(self._tenant(tenant_id, grants) for tenant_id, grants in by_tenant.items()))
        return sum(settled)

    async def _tenant(self, tenant_id: TenantId, grants: Sequence[Grant]) -> int:
        """One tenant's grants; a failure waits for the next round and keeps no other tenant waiting."""
        keys = [grant.key for grant in grants]
        async with self._places:
            try:
                verdicts = await self._verdicts(tenant_id, keys)
                await asyncio.gather(*(self._quotas.settle(key, state) for key, state in verdicts.items()))
            except errors.Error as failure:
                _log.warning("tenant_not_reaped", tenant_id=tenant_id, reason=failure.reason)
                return 0
        for key, state in verdicts.items():
            metrics.GRANTS_REAPED.labels(state.value).inc()
            _log.info("grant_reaped", tenant_id=tenant_id, run_id=key.run_id, attempt=key.attempt, state=state.value)
        return len(verdicts)

    async def _verdicts(self, tenant_id: TenantId, keys: Sequence[Key]) -> Mapping[Key, GrantState]:
        """What each grant has become; those are missing whose row is not known to have ended."""
        try:
            rows = await self._rows(tenant_id, keys)
        except errors.NotFound:
            return dict.fromkeys(keys, GrantState.REFUNDED)  # The dataset is gone, and no row can come any more.
        verdicts: dict[Key, GrantState] = {}
        for key in [key for key in keys if key not in rows]:
            if await self._store.withdraw(key):
                verdicts[key] = GrantState.REFUNDED
        if len(rows) + len(verdicts) < len(keys):
            rows = await self._rows(tenant_id, keys)
        lost = [key for key, run in rows.items() if not run.status.ended]
        if lost:
            now = self._now()
            await self._store.end(tenant_id, [_lost(key, now) for key in lost])
            rows = await self._rows(tenant_id, keys)
        for key, run in rows.items():
            if run.status.ended:
                reaped = key in lost and run.error == OWNER_LOST
                verdicts[key] = GrantState.REAPED if reaped else GrantState.SETTLED
        return verdicts

    async def _rows(self, tenant_id: TenantId, keys: Sequence[Key]) -> dict[Key, Run]:
        runs = await self._store.attempts(tenant_id, {key.run_id for key in keys})
        return {run.key: run for run in runs if run.key in set(keys)}


def _lost(key: Key, now: datetime) -> Ending:
    return Ending(key=key, status=RunStatus.FAILED, if_cancelling=RunStatus.FAILED, end_time=now, error=OWNER_LOST)
