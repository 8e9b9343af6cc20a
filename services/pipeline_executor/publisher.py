"""The fenced end of an attempt: its publishing script, run until it is known to have taken place or to be refused.

The run row decides. A script whose reply was lost is simply run again: the fence in it lets one of them through, and a
refused one looks at the row, which says COMPLETED if it was an earlier one that came through.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Protocol
from weakref import WeakValueDictionary

from libs import errors, logs
from libs.bigquery import Sql, Value
from libs.tenancy import TenantId
from services.pipeline_executor.domain import Key, Outcome, Run, RunStatus, RunStore
from services.pipeline_executor.leases import Lease
from services.pipeline_executor.run_context import Published

FENCED = "RUN_FENCED"
_SCRIPT_SECONDS = 600.0
_TRIES = 12
_FIRST_PAUSE = 0.2
_LAST_PAUSE = 10.0

_log = logs.get(__name__)


class Publications(Protocol):
    """Runs publishing scripts in the tenants' datasets."""

    async def publish(self, key: Key, sql: Sql, params: Mapping[str, Value], limit_seconds: float) -> None:
        """Runs one script; ``Aborted(RUN_FENCED)`` if the attempt is not RUNNING, ``Aborted(STORE_CONFLICT)`` if
        another write came first, ``Ambiguous`` if nobody knows."""
        ...


class TenantLocks:
    """One lock per tenant: publications of one tenant collide, so that this process never has two under way."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    def of(self, tenant_id: TenantId) -> asyncio.Lock:
        """The tenant's lock; it lives while somebody holds on to it."""
        return self._locks.setdefault(tenant_id, asyncio.Lock())


class Publisher:
    """The engine's ``Publisher`` of one attempt. ``run`` is its row as it was read last."""

    def __init__(self, run: Run, lease: Lease, publications: Publications, store: RunStore, lock: asyncio.Lock) -> None:
        self.run = run
        self._lease = lease
        self._publications = publications
        self._store = store
        self._lock = lock

    async def publish(self, sql: Sql, params: Mapping[str, Value]) -> Published:
        """Runs the script until its outcome is known.

        Raises ``Aborted(RUN_FENCED)`` if the attempt is not RUNNING any more, ``Aborted(LEASE_LOST)`` if its lease is
        not valid, and what the script itself fails with; nothing was changed then.
        """
        async with self._lock:
            for tries in range(_TRIES):
                failure = await self._try(sql, params)
                await self._look()
                if self.run.status is RunStatus.COMPLETED:
                    return _published(self.run)
                if failure is None or failure.reason == FENCED:
                    raise errors.Aborted(FENCED, f"The run may not publish any more: it is {self.run.status}.")
                if not (failure.retryable or failure.reason == "STORE_CONFLICT"):
                    raise failure
                _log.info("publication_tried_again", reason=failure.reason, tries=tries + 1)
                await asyncio.sleep(random.uniform(0, min(_LAST_PAUSE, _FIRST_PAUSE * 2**tries)))
            raise errors.Unavailable("PUBLISH_CONFLICT", "Other writes kept the run from publishing; run it again.")

    async def _try(self, sql: Sql, params: Mapping[str, Value]) -> errors.Error | None:
        if not self._lease.valid:
            raise errors.Aborted("LEASE_LOST", "The run's reservation has ended; it may not publish.")
        try:
            await self._publications.publish(self.run.key, sql, params, _SCRIPT_SECONDS)
        except errors.Error as failure:
            return failure
        return None

    async def _look(self) -> None:
        """Reads the row; for as long as the lease lives, because the data may be in."""
        pause = _FIRST_PAUSE
        while True:
            try:
                rows = await self._store.attempts(self.run.key.tenant_id, [self.run.key.run_id])
                self.run = next(run for run in rows if run.key == self.run.key)
                return
            except errors.Unavailable:
                if not self._lease.valid:
                    raise
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(_LAST_PAUSE, pause * 2)


def _published(run: Run) -> Published:
    if run.outcome is Outcome.SUPERSEDED:
        return Published(Outcome.SUPERSEDED, 0, run.superseded_by)
    return Published(Outcome.PUBLISHED, run.rows_published)
