"""The scheduler's use cases on fakes and a clock, and the invariants that hold after anything was done to them."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from libs.errors import Error
from libs.tenancy import TenantId
from services.scheduler.backfills import Backfills
from services.scheduler.domain import Attempt, AttemptStatus, Item, Policy, Run, Schedule, State
from services.scheduler.housekeeping import Housekeeping
from services.scheduler.loop import Loop, Processed
from services.scheduler.reports import Journal, Reports
from services.scheduler.runs import Runs
from services.scheduler.schedules import Calendar
from services.scheduler.servicer import UseCases
from services.scheduler.trail import Trail
from services.scheduler.trigger import Fired, Triggers
from tests.support.fakes import Clock, MemoryAudit
from tests.support.scheduler import FakeExecutor, FakeTenants, MemoryStore, StoreFaults

HOUR = timedelta(hours=1)


class World:
    """One store, one executor, one tenant context; as many schedulers as a test wants."""

    def __init__(
        self, *, faults: StoreFaults | None = None, seed: int = 0, policy: Policy | None = None, store: Any = None
    ) -> None:
        self.clock = Clock()
        self.policy = policy or Policy()
        self.faults = faults or StoreFaults()
        self.store: Any = store if store is not None else MemoryStore(faults=self.faults, seed=seed)
        self.tenants = FakeTenants(self.clock)
        self.executor = FakeExecutor(self.tenants, seed=seed)
        self.audit = MemoryAudit()
        self.random = random.Random(seed)
        trail = Trail(self.audit, self.clock)
        self.triggers = Triggers(self.store, now=self.clock, policy=self.policy, sleep=self.sleep)
        self.calendar = Calendar(
            self.store,
            self.store,
            self.store,
            self.executor,
            self.tenants,
            self.triggers,
            trail,
            now=self.clock,
            policy=self.policy,
        )
        self.runs = Runs(self.store, self.store, self.executor, trail, now=self.clock, policy=self.policy)
        self.backfills = Backfills(self.store, self.store, self.tenants, trail, now=self.clock, policy=self.policy)
        self.housekeeping = Housekeeping(
            self.store,
            self.store,
            self.store,
            self.executor,
            self.tenants,
            now=self.clock,
            policy=self.policy,
            sleep=self.sleep,
        )
        self.reports = Reports(self.store, now=self.clock, policy=self.policy)
        self.journal = Journal(self.store, now=self.clock)
        self.use = UseCases(
            triggers=self.triggers,
            loop=self.loop(),
            housekeeping=self.housekeeping,
            journal=self.journal,
            reports=self.reports,
            calendar=self.calendar,
            runs=self.runs,
            backfills=self.backfills,
            tenants=self.tenants,
        )

    async def sleep(self, seconds: float) -> None:
        """Waiting moves the clock, and lets everybody else have a turn."""
        await asyncio.sleep(0)
        self.clock.advance(seconds=seconds)

    def loop(self, **values: Any) -> Loop:
        """A scheduler's loop."""
        given = {"batch": 100, "sleep": self.sleep, "chance": self.random.random, **values}
        return Loop(self.store, self.executor, self.tenants, now=self.clock, policy=self.policy, **given)

    # ------------------------------------------------------------------ shorthand

    async def create(self, tenant_id: str = "acme", **values: Any) -> Schedule:
        """A schedule made through the use case; hourly unless told otherwise."""
        given = {"provider": "gcp", "domain": "cost", "template": "billing", "cron": "0 * * * *", **values}
        return await self.calendar.create(TenantId(tenant_id), given, None)

    def seed(self, count: int, tenant_id: str = "acme", **values: Any) -> list[Schedule]:
        """Schedules put into the store directly, due at the next full hour."""
        now = self.clock()
        due = now.replace(minute=0, second=0, microsecond=0) + HOUR
        made = [
            Schedule(
                **{
                    "config_id": str(uuid.UUID(int=self.random.getrandbits(128))),
                    "tenant_id": TenantId(tenant_id),
                    "version": 1,
                    "provider": "gcp",
                    "domain": "cost",
                    "template": "billing",
                    "cron": "0 * * * *",
                    "next_run_time": due,
                    "created_at": now,
                    "updated_at": now,
                    **values,
                }
            )
            for _ in range(count)
        ]
        self.store.schedules.extend(made)
        return made

    async def trigger(self) -> Fired:
        """One call of the trigger."""
        return await self.triggers.fire_due(timedelta(seconds=280))

    async def poll(self, seconds: float = 0, **values: Any) -> Processed:
        """One call of process-queue."""
        return await self.loop(**values).process(timedelta(seconds=seconds))

    def finish(self, status: AttemptStatus = AttemptStatus.COMPLETED, **values: Any) -> int:
        """Ends all attempts that run; how many that were."""
        running = self.executor.running()
        for key in running:
            self.executor.end(key, status, **values)
        return len(running)

    def at_once(self, status: AttemptStatus = AttemptStatus.COMPLETED, *, retryable: bool = False) -> None:
        """Lets every attempt end in the moment it starts."""

        def ended(item: Item) -> Attempt | Error | None:
            return Attempt(item.run_id, item.attempt, status, reason="SCRIPTED", retryable=retryable)

        self.executor.script = ended

    @property
    def items(self) -> list[Item]:
        return list(self.store.queue_rows)

    @property
    def run_rows(self) -> list[Run]:
        return list(self.store.run_rows)

    def states(self) -> Counter[str]:
        """Runs by state."""
        return Counter(run.state.value for run in self.store.run_rows)

    def run_of(self, run_id: str) -> Run:
        return next(run for run in self.store.run_rows if run.run_id == run_id)

    # ------------------------------------------------------------------ what always holds

    def check(self) -> None:
        """I1, I5, I9's precondition and I10; what each invariant says is in its assertion."""
        runs, items = self.store.run_rows, self.store.queue_rows
        doubles = [key for key, count in Counter(run.run_id for run in runs).items() if count > 1]
        assert not doubles, f"I1: runs with one id {doubles}"
        occurrences = Counter((run.config_id, run.scheduled_for) for run in runs if run.trigger == "SCHEDULED")
        assert all(count == 1 for count in occurrences.values()), "I1: an occurrence with two runs"
        assert len({item.run_id for item in items}) == len(items), "I1: two queue rows of one run"
        queued = {item.run_id for item in items}
        stranded = [run.run_id for run in runs if not run.state.ended and run.run_id not in queued]
        assert not stranded, f"I5: runs that nothing will end {stranded}"
        ended = {run.run_id for run in runs if run.state.ended}
        assert not ended & queued, "I5: a queue row of a run that has ended"
        for item in items:
            assert item.retry_count <= item.max_retries, "I10: more retries than allowed"
        tries = Counter(run_id for run_id, _ in self.executor.executed)
        limit = {run.run_id: 1 + run.max_retries for run in runs}
        requeued = self.requeued
        for run_id, count in tries.items():
            assert count <= limit.get(run_id, 1) * (1 + requeued[run_id]), "I10: more attempts than allowed"
        assert all(count == 1 for count in self.executor.executed.values()), "an attempt was executed twice"
        serial = Counter(item.serial_id for item in items if item.state is State.CLAIMED)
        assert all(count == 1 for count in serial.values()), "two runs of one schedule at once"

    @property
    def requeued(self) -> Counter[str]:
        return Counter(record.object_id for record in self.audit.records if record.action == "run.requeue")


def later(world: World, by: timedelta) -> datetime:
    """Moves the clock."""
    world.clock.advance(by)
    return world.clock()


type Script = Callable[[Item], Attempt | Error | None]
