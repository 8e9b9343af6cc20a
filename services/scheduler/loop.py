"""The queue's loop: settle what ended, claim what may run, start it, until nothing is left or the time is up.

Called by the CronJob every five minutes; any number of loops may run at once. The invariants: a run is started by
whoever holds its claim, under its attempt's number, which the executor starts once; everything is written over the
version it was read with, so a loop that slept past its claim changes nothing; one tenant's trouble never stops
another's turn.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from libs import logs
from libs.errors import Aborted, Ambiguous, Error, Unavailable
from services.scheduler.domain import (
    Allowance,
    Attempt,
    AttemptStatus,
    Backlog,
    Executor,
    Item,
    Pick,
    Policy,
    Queue,
    State,
    Stop,
    Tenants,
    defer,
    expire,
    judge,
    no_room,
    refuse,
)

_log = logs.get(__name__)
_FIRST_PAUSE = 0.2
_LAST_PAUSE = 3.0
_MAX_TROUBLE = 6
_PAGE = 1_000
# A claim this near to its end is not started any more: the start could arrive after somebody else's claim.
_MARGIN = timedelta(seconds=20)
# Of the time that a process has to end, what its rounds may take; the rest is for their answers.
_OF_THE_GRACE = 0.6
_ALIVE = frozenset({AttemptStatus.PENDING, AttemptStatus.RUNNING})


class _CutError(Exception):
    """A round took longer than a process that is to end has."""


@dataclass(slots=True)
class Processed:
    """What one call did, and what it left."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    retried: int = 0
    dead_letters: int = 0
    deferred: int = 0
    skipped: int = 0
    running: int = 0
    queued: int = 0

    def count(self, before: Item, after: Item) -> None:
        """Adds what one written change means."""
        failed = after.retry_count > before.retry_count
        self.started += before.started_at is None and (after.started_at is not None or failed)
        self.completed += after.state is State.COMPLETED
        self.retried += failed
        self.dead_letters += after.state is State.DEAD_LETTER
        self.failed += failed or (after.state is State.DEAD_LETTER and after.started_at is not None)
        self.deferred += after.state is State.DEFERRED
        self.skipped += after.state is State.SKIPPED


class Loop:
    """Works on the queue. Keeps nothing between calls: killed anywhere, the next call goes on."""

    def __init__(
        self,
        queue: Queue,
        executor: Executor,
        tenants: Tenants,
        *,
        now: Callable[[], datetime],
        policy: Policy,
        batch: int = 100,
        parallel: int = 32,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._queue = queue
        self._executor = executor
        self._tenants = tenants
        self._now = now
        self._policy = policy
        self._batch = batch
        self._parallel = parallel
        self._sleep = sleep
        self._chance = chance
        self._written = 0
        self._rounds: set[asyncio.Task[tuple[bool, int]]] = set()
        self._draining = self._over = False

    async def drain(self, grace: float) -> None:
        """Has every call end with the round it is in, or in the midst of it where that takes too much of ``grace``.

        What is left is the next call's, of another process, as it would be after a kill.
        """
        self._draining = True
        asyncio.get_running_loop().call_later(_OF_THE_GRACE * grace, self._cut)

    def _cut(self) -> None:
        self._over = True
        for each in self._rounds:
            each.cancel()

    async def process(self, budget: timedelta) -> Processed:
        """Works until nothing is runnable or running, or ``budget`` is over; one round at least.

        Raises ``Unavailable`` or ``Aborted`` if the store or a neighbour stays out of reach.
        """
        done = Processed()
        end = self._now() + budget
        pause, trouble, size = _FIRST_PAUSE, 0, self._batch
        while True:
            written, counted = self._written, replace(done)
            try:
                busy, size = await self._within_grace(self._round(done, size))
                trouble = 0
            except _CutError:
                _log.info("round_cut_short", started=done.started, completed=done.completed)
                return done
            except (Unavailable, Aborted) as error:
                trouble += 1
                if trouble >= _MAX_TROUBLE or self._now() >= end:
                    raise
                _log.warning("round_failed", reason=error.reason, trouble=trouble)
                busy = True
            left = (end - self._now()).total_seconds()
            # What was written may have made room for more, so only a round without a trace is the last.
            if left <= 0 or self._draining or not (busy or self._written != written):
                break
            pause = _FIRST_PAUSE if done != counted else min(_LAST_PAUSE, 2 * pause)
            await self._sleep(min(pause, left))
            if self._draining:
                break
        backlog = await self._queue.backlog(self._now())
        done.running = sum(each.claimed for each in backlog)
        done.queued = sum(each.waiting for each in backlog)
        return done

    async def _within_grace(self, round_: Coroutine[Any, Any, tuple[bool, int]]) -> tuple[bool, int]:
        work = asyncio.create_task(round_)
        self._rounds.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            if self._over and not _cancelled():
                raise _CutError from None
            raise
        finally:
            self._rounds.discard(work)

    async def _round(self, done: Processed, size: int) -> tuple[bool, int]:
        """One pass. True if something runs or could run soon; and how many rows to claim the next time."""
        asked = self._now()
        claimed, backlog = await asyncio.gather(self._claimed(), self._queue.backlog(asked))
        wanting = [each for each in backlog if each.ready + each.deferred]
        seen, allowances = await asyncio.gather(
            self._attempts(claimed), self._tenants.allowances([each.tenant_id for each in wanting])
        )
        settled = await self._settle(claimed, seen, done)
        await self._shelve(backlog, allowances, done)
        slots = {
            str(each.tenant_id): allowances[each.tenant_id].slots
            for each in wanting
            if each.tenant_id in allowances and allowances[each.tenant_id].slots > 0
        }
        started, size = await self._start(slots, size, asked, done) if slots else (0, size)
        running = sum(item.state is State.CLAIMED for item in settled) + started
        # A row that only waits for its tenant's concurrency can run any moment.
        blocked = any(each.tenant_id in allowances and allowances[each.tenant_id].in_quota for each in wanting)
        return bool(running or blocked), size

    async def _claimed(self) -> list[Item]:
        return list(await self._queue.items(Pick(states=(State.CLAIMED,)), 10 * _PAGE))

    async def _attempts(self, claimed: Sequence[Item]) -> Mapping[str, Attempt]:
        parts = [claimed[n : n + _PAGE] for n in range(0, len(claimed), _PAGE)]
        found: dict[str, Attempt] = {}
        for answer in await asyncio.gather(*(self._executor.attempts(part) for part in parts)):
            found |= answer
        return found

    async def _settle(self, claimed: Sequence[Item], seen: Mapping[str, Attempt], done: Processed) -> list[Item]:
        """Writes what became of the claimed rows, and asks for the end of those that shall stop."""
        now = self._now()
        judged = [(item, judge(item, seen.get(item.run_id), now, self._chance(), self._policy)) for item in claimed]
        await self._write(judged, done)
        stopping = [
            item
            for item in claimed
            if item.stop is Stop.NOW and item.run_id in seen and seen[item.run_id].status in _ALIVE
        ]
        await asyncio.gather(*(self._cancel(item) for item in stopping))
        return [after for _, after in judged]

    async def _cancel(self, item: Item) -> None:
        try:
            await self._executor.cancel(item)
        except Error as error:
            # The next round asks again.
            _log.info("cancel_refused", run_id=item.run_id, reason=error.reason)

    async def _shelve(self, backlog: Sequence[Backlog], allowances: Mapping[str, Allowance], done: Processed) -> None:
        """Skips what waited too long, defers what is out of quota."""
        now = self._now()
        changes: list[tuple[Item, Item]] = []
        if any(each.expired for each in backlog):
            picked = await self._queue.items(Pick(states=(State.QUEUED, State.DEFERRED), expired_at=now), _PAGE)
            changes += [(item, expire(item)) for item in picked]
        spent = {
            each.tenant_id: allowance.window
            for each in backlog
            if each.ready + each.deferred
            and (allowance := allowances.get(each.tenant_id)) is not None
            and allowance.active
            and not allowance.in_quota
        }
        if spent:
            waiting = Pick(states=(State.QUEUED, State.DEFERRED), tenant_ids=list(spent), ready_at=now)
            picked = await self._queue.items(waiting, _PAGE)
            for item in picked:
                window = spent.get(item.tenant_id) or now + timedelta(hours=1)
                if item.expires_at > now:
                    changes.append((item, defer(item, window, "QUOTA_EXHAUSTED")))
        await self._write(changes, done)

    async def _start(self, slots: Mapping[str, int], size: int, asked: datetime, done: Processed) -> tuple[int, int]:
        """Claims and starts; how many run now, and how many rows to claim the next time."""
        now = self._now()
        claimed = await self._queue.claim(
            slots, size, lease_id=uuid.uuid4().hex, now=now, until=now + self._policy.lease, asked=asked
        )
        if not claimed:
            return 0, size
        gate = asyncio.Semaphore(self._parallel)
        answers = await asyncio.gather(*(self._start_one(item, gate) for item in claimed))
        now = self._now()
        changes = [
            (
                item,
                refuse(item, answer, now, self._chance(), self._policy)
                if isinstance(answer, Error)
                else judge(item, answer, now, self._chance(), self._policy),
            )
            for item, answer in zip(claimed, answers, strict=True)
        ]
        await self._write(changes, done)
        running = sum(after.state is State.CLAIMED for _, after in changes)
        full = sum(isinstance(answer, Unavailable) and no_room(answer) for answer in answers)
        # A full executor is asked for no more than it could take; otherwise claims grow back.
        return running, max(1, len(claimed) - full) if full else min(self._batch, 2 * size)

    async def _start_one(self, item: Item, gate: asyncio.Semaphore) -> Attempt | Error | None:
        async with gate:
            if item.lease_until is None or item.lease_until - _MARGIN <= self._now():
                return None
            try:
                return await self._executor.start(item)
            except Error as error:
                if not error.retryable:
                    _log.info("start_refused", run_id=item.run_id, tenant_id=item.tenant_id, reason=error.reason)
                return error

    async def _write(self, changes: Sequence[tuple[Item, Item]], done: Processed) -> None:
        """Writes the rows that changed, and counts those that nobody else had changed meanwhile."""
        changes = [(before, after) for before, after in changes if after != before]
        if not changes:
            return
        change_id = uuid.uuid4().hex
        items = [after for _, after in changes]
        try:
            written = await self._queue.apply(items, change_id, self._now())
        except Ambiguous:
            written = await self._queue.applied(items, change_id)
        self._written += len(written)
        for before, after in changes:
            if after.run_id in written:
                done.count(before, after)


def _cancelled() -> bool:
    """True if it is the caller that was cancelled, not what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
