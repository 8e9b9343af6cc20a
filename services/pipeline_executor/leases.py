"""The leases of this process's grants: renewed together, and given up in time where they cannot be.

An attempt may work only while its lease is ``valid``. A lease's end is reckoned from when the reservation or
renewal was *sent*, on this machine's monotonic clock, so it is never later than tenant's, whatever either clock says.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import datetime

from libs import errors, logs, metrics
from services.pipeline_executor.domain import LEASE, Key, Quotas

EVERY_SECONDS = 20.0
# How long before its end a lease is given up: what stops then needs time to stop.
MARGIN_SECONDS = 10.0
_AGAIN_SECONDS = 5.0
_BATCH = 1_000

_log = logs.get(__name__)


class Lease:
    """One attempt's lease; ``on_lost`` is called once, on the loop, when it must be given up."""

    def __init__(self, key: Key, ends: float, on_lost: Callable[[], None]) -> None:
        self.key = key
        self._on_lost = on_lost
        self._ends = ends
        self._lost = False
        self._timer: asyncio.TimerHandle | None = None
        self.extend(ends)

    @property
    def valid(self) -> bool:
        """True while the attempt may work."""
        return not self._lost and asyncio.get_running_loop().time() < self._ends - MARGIN_SECONDS

    def extend(self, ends: float) -> None:
        """Moves the end; a lost lease stays lost."""
        if self._lost:
            return
        self.drop()
        self._ends = ends
        self._timer = asyncio.get_running_loop().call_at(ends - MARGIN_SECONDS, self.lose)

    def lose(self) -> None:
        """Gives it up."""
        if not self._lost:
            self._lost = True
            self.drop()
            self._on_lost()

    def drop(self) -> None:
        """Stops the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Leases:
    """All leases of this process; used from one event loop."""

    def __init__(self, quotas: Quotas, owner: Callable[[], str], *, now: Callable[[], datetime]) -> None:
        self._quotas = quotas
        self._owner = owner
        self._now = now
        self._held: dict[Key, Lease] = {}

    def hold(self, key: Key, sent: float, until: datetime, on_lost: Callable[[], None]) -> Lease:
        """Begins to renew a grant that was asked for at ``sent`` (loop time) and lives until ``until``."""
        lease = Lease(key, self._ends(sent, until), on_lost)
        self._held[key] = lease
        metrics.LEASES_LIVE.inc()
        return lease

    def release(self, key: Key) -> None:
        """Stops renewing; what is not settled by then runs out and is reaped."""
        if lease := self._held.pop(key, None):
            lease.drop()
            metrics.LEASES_LIVE.dec()

    async def run(self) -> None:
        """Renews for as long as the process lives."""
        pause = EVERY_SECONDS
        while True:
            await asyncio.sleep(pause)
            began = asyncio.get_running_loop().time()
            try:
                await self.renew()
                pause = max(0.0, EVERY_SECONDS - (asyncio.get_running_loop().time() - began))
            except Exception as exc:
                _log.warning("leases_not_renewed", reason=getattr(exc, "reason", ""), exc_info=_defect(exc))
                pause = _AGAIN_SECONDS

    async def renew(self) -> None:
        """Renews all leases, in one call for a thousand of them."""
        for keys in itertools.batched(list(self._held), _BATCH, strict=False):
            sent = asyncio.get_running_loop().time()
            renewal = await self._quotas.renew(self._owner(), keys)
            for key, until in renewal.renewed.items():
                if lease := self._held.get(key):
                    lease.extend(self._ends(sent, until))
            for key in renewal.lost:
                if lease := self._held.get(key):
                    metrics.LEASES_LOST.inc()
                    _log.warning("lease_lost", run_id=key.run_id, attempt=key.attempt)
                    lease.lose()

    def _ends(self, sent: float, until: datetime) -> float:
        left = (until - self._now()).total_seconds()
        return min(sent + LEASE.total_seconds(), asyncio.get_running_loop().time() + left)


def _defect(exc: Exception) -> bool:
    return not isinstance(exc, errors.Error)
