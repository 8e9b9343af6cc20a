"""The trigger: finds what is due and fires it, a thousand schedules with one read and one transaction.

Called by the hourly CronJob, and for one schedule by an edit. The invariant: an occurrence exists because one writer
advanced its schedule from the version it had read; killed anywhere, called twice or twenty times at once, nothing is
lost or doubled.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from libs import logs
from libs.errors import Aborted, Ambiguous, Unavailable
from services.scheduler import occurrences
from services.scheduler.domain import Due, Firing, Policy, Schedules, State

_log = logs.get(__name__)
CHUNK = 1_000
_MAX_ROWS = 5_000
_LAST_PAUSE = 3.0
# Deciding is pure computation; the loop serves health checks in between.
_TURN = 25


@dataclass(frozen=True, slots=True)
class Fired:
    """What one call made true: schedules advanced, runs queued, occurrences recorded as skipped."""

    schedules: int = 0
    queued: int = 0
    skipped: int = 0

    def __add__(self, other: Fired) -> Fired:
        return Fired(self.schedules + other.schedules, self.queued + other.queued, self.skipped + other.skipped)


class Triggers:
    """Fires schedules; any number may do so at once."""

    def __init__(
        self,
        schedules: Schedules,
        *,
        now: Callable[[], datetime],
        policy: Policy,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._schedules = schedules
        self._now = now
        self._policy = policy
        self._sleep = sleep

    async def fire_due(self, budget: timedelta) -> Fired:
        """Fires all that is due.

        Raises ``Unavailable`` if something is still due after ``budget``; what was fired until then stays.
        """
        total, broken, pause, end = Fired(), set[str](), 0.1, self._now() + budget
        while True:
            now = self._now()
            # One more than a chunk tells whether there is another.
            found = await self._schedules.due(now, CHUNK + 1)
            due = [each for each in found[:CHUNK] if each.schedule.config_id not in broken]
            firings = await self._decide(due, now, broken)
            fired = Fired()
            for part in _parts(firings):
                fired += await self._fire(part, now)
            total += fired
            # Whoever won the rest has advanced it; only a further chunk or a lost one is worth another look.
            if len(found) <= CHUNK and fired.schedules == len(firings):
                return total
            if not firings:
                return total
            if self._now() >= end:
                raise Unavailable("TRIGGER_UNFINISHED", "Schedules are still due; call again.")
            if fired.schedules:
                pause = 0.1
            else:
                await self._sleep(random.uniform(0, pause))
                pause = min(_LAST_PAUSE, 2 * pause)

    async def fire_one(self, config_id: str, *, skip_as: str | None = None) -> None:
        """Fires one schedule if it is due, by skipping all if ``skip_as`` says why; nothing if somebody else did."""
        now = self._now()
        for due in await self._schedules.due(now, 1, config_id):
            await self._fire([occurrences.fire(due, now, self._policy, skip_as=skip_as)], now)

    async def _decide(self, due: Sequence[Due], now: datetime, broken: set[str]) -> list[Firing]:
        firings = []
        for number, each in enumerate(due):
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                firings.append(occurrences.fire(each, now, self._policy))
            except Exception:
                # One schedule that cannot be decided must not keep the others from running.
                _log.exception("schedule_not_fired", config_id=each.schedule.config_id)
                broken.add(each.schedule.config_id)
        return firings

    async def _fire(self, firings: Sequence[Firing], now: datetime) -> Fired:
        change_id = uuid.uuid4().hex
        try:
            written = await self._schedules.fire(firings, change_id, now)
        except Ambiguous:
            written = await self._schedules.fired(change_id)
        except Aborted:
            return Fired()
        done = [firing for firing in firings if firing.schedule.config_id in written]
        runs = [run for firing in done for run in firing.runs]
        return Fired(
            len(done),
            sum(run.state is State.QUEUED for run in runs),
            sum(run.occurrence_count for run in runs if run.state is State.SKIPPED),
        )


def _parts(firings: Sequence[Firing]) -> Iterator[list[Firing]]:
    part: list[Firing] = []
    rows = 0
    for firing in firings:
        own = 1 + len(firing.runs) + len(firing.items)
        if part and rows + own > _MAX_ROWS:
            yield part
            part, rows = [], 0
        part.append(firing)
        rows += own
    if part:
        yield part
