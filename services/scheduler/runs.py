"""What people do with runs in the queue: look at them, cancel one, queue a dead letter again.

Called by the servicer. The invariant: a waiting run changes only over the version it was read with, and a claimed one
only by asking for its end, which the loop carries out.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime

from libs import logs
from libs.errors import Aborted, Ambiguous, Error, FailedPrecondition, NotFound
from libs.tenancy import TenantId
from services.scheduler.domain import (
    Executor,
    Item,
    Pick,
    Policy,
    Queue,
    Records,
    Run,
    State,
    Tenants,
    cancel,
    let_go,
    requeue,
    run_not_found,
)
from services.scheduler.trail import Trail

_log = logs.get(__name__)
_TRIES = 8

type Undo = Callable[[], Awaitable[object]]


class Runs:
    """The use cases on single runs; one per process."""

    def __init__(
        self,
        queue: Queue,
        records: Records,
        executor: Executor,
        trail: Trail,
        *,
        now: Callable[[], datetime],
        policy: Policy,
    ) -> None:
        self._queue = queue
        self._records = records
        self._executor = executor
        self._trail = trail
        self._now = now
        self._policy = policy

    async def cancel(self, tenant_id: TenantId, run_id: str) -> Run:
        """Cancels a run wherever it is; one that is claimed ends once the executor has let go of it.

        Idempotent. Raises ``NotFound(RUN_NOT_FOUND)``, ``FailedPrecondition(RUN_ENDED)``.
        """
        for _ in range(_TRIES):
            run = await self._records.run(tenant_id, run_id)
            if run is None:
                raise run_not_found()
            if run.state is State.CANCELLED:
                return run
            if run.state.ended:
                raise FailedPrecondition("RUN_ENDED", f"The run has ended: it is {run.state}.", state=run.state.value)
            if (changed := await self._cancel(run_id)) is not None:
                await self._trail.note("run.cancel", tenant_id, "run", run_id)
                return replace(run, state=changed.state, reason=changed.reason, updated_at=self._now())
        raise Aborted("RUN_CHANGED", "The run kept changing; try again.")

    async def _cancel(self, run_id: str) -> Item | None:
        """The row after its cancellation; None if it was changed meanwhile."""
        for item in await self._queue.items(Pick(run_ids=[run_id]), 1):
            after = cancel(item)
            if after != item and not await write(self._queue, [after], self._now):
                return None
            if after.state is State.CLAIMED:
                await self._tell(after)
            return after
        return None

    async def _tell(self, item: Item) -> None:
        try:
            await self._executor.cancel(item)
        except Error as error:
            # It has not started, or cannot be reached: the loop asks until the attempt has ended.
            _log.info("cancel_refused", run_id=item.run_id, reason=error.reason)

    async def requeue(self, run_id: str) -> Item:
        """Queues a dead letter again; one that was queued again already is answered as it is.

        Raises ``NotFound(RUN_NOT_FOUND)``.
        """
        for _ in range(_TRIES):
            found = await self._queue.items(Pick(run_ids=[run_id]), 1)
            if not found:
                raise run_not_found()
            item = found[0]
            if item.state is not State.DEAD_LETTER:
                return item
            after = requeue(item, self._now(), self._policy)
            if await write(self._queue, [after], self._now):
                await self._trail.note("run.requeue", item.tenant_id, "run", run_id)
                return after
        raise Aborted("RUN_CHANGED", "The run kept changing; try again.")

    async def queue(self, state: State | None, size: int, after: int) -> Sequence[tuple[int, Item]]:
        """Queue rows of all tenants with their places, in the order in which they would be claimed."""
        return await self._records.queue(state, size, after)

    async def dead_letters(self, size: int, before: tuple[datetime, str] | None) -> Sequence[Item]:
        """Dead letters of all tenants, newest first."""
        return await self._records.dead_letters(size, before)


async def write(queue: Queue, items: Sequence[Item], now: Callable[[], datetime]) -> bool:
    """True if all rows were written; False if some had been changed, or the write lost against another."""
    change_id = uuid.uuid4().hex
    try:
        written = await queue.apply(items, change_id, now())
    except Ambiguous:
        written = await queue.applied(items, change_id)
    except Aborted:
        return False
    return len(written) == len(items)


async def while_it_stays(tenants: Tenants, tenant_id: TenantId, note: Awaitable[None], undo: Undo) -> None:
    """Ends what made something new for a tenant: audits it, and makes sure that the tenant has not begun to leave.

    Whoever lets go of a leaving tenant may have passed already; then ``undo`` takes back what was made, and the refusal
    of ``check_staying`` is raised.
    """
    try:
        await asyncio.gather(note, tenants.check_staying(tenant_id))
    except (FailedPrecondition, NotFound):
        await undo()
        raise


async def change_all(
    queue: Queue, pick: Pick, change: Callable[[Item], Item], now: Callable[[], datetime]
) -> list[Item]:
    """Changes all queue rows that match until nothing is left to change; the rows that stay, as they are then."""
    for _ in range(100):
        found = await queue.items(pick)
        changed = [after for before in found if (after := change(before)) != before]
        if not changed:
            return list(found)
        await write(queue, changed, now)
    raise Aborted("QUEUE_BUSY", "The queue kept changing; try again.")


async def let_go_of(queue: Queue, tenant_id: TenantId, now: Callable[[], datetime]) -> None:
    """Cancels everything that a leaving tenant has in the queue."""
    await change_all(queue, Pick(tenant_ids=[tenant_id]), let_go, now)
