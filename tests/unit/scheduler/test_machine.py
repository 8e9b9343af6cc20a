"""A state machine does everything to a scheduler that the world can do, and checks what must hold after each step.

I1 one run per occurrence · I4 what ended never changes · I5 every run that has not ended is in the queue · I6 nothing
is overdue after a trigger · I9 a ready run and a free slot meet at the next poll · I10 no more attempts than allowed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections import Counter
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, ClassVar
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from libs import caller
from libs.errors import Error
from libs.tenancy import Caller, Role, TenantId
from services.scheduler.domain import AttemptStatus, Catchup, Overlap, Run, State
from tests.support.examples import examples
from tests.support.fakes import SkippingLoop
from tests.support.scheduler import Quota, StoreFaults
from tests.support.scheduler_world import HOUR, World

TENANTS = ("aaa", "bbb", "ccc")
CRONS = ("0 * * * *", "30 * * * *", "0 */3 * * *", "0 6 * * *", "15 0 1 * *")
tenants = st.sampled_from(TENANTS)


class SchedulerMachine(RuleBasedStateMachine):
    """Three tenants, any number of schedulers, one executor.

    It begins with schedules that have something to do, and the ways in which work moves on are rules more than once:
    a machine that picks evenly among all that may happen spends its steps on schedules that never run.
    """

    reached: ClassVar[Counter[str]] = Counter()

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        # Ids and waits are the only things that differ from run to run; without them every example can be replayed.
        self.loop = SkippingLoop()
        ids = random.Random(f"ids of {seed}")
        self.ids = patch("uuid.uuid4", lambda: uuid.UUID(int=ids.getrandbits(128), version=4))
        self.ids.start()
        self.world = World(faults=StoreFaults(), seed=seed)
        self.world.clock.advance(minutes(seed % 60))
        for number, tenant_id in enumerate(TENANTS):
            self.world.tenants.quotas[tenant_id] = Quota(concurrent=(1, 3, 10)[number], daily=(6, 25, 100)[number])
        self.day = self.world.clock().date()
        self.ended: dict[str, Run] = {}
        self.last_attempt: dict[str, int] = {}
        for number, (tenant_id, overlap) in enumerate(itertools.product(TENANTS, Overlap)):
            catchup = list(Catchup)[number % 3]
            self.world.seed(
                1, tenant_id, overlap_policy=overlap, catchup_policy=catchup, catchup_limit=4, max_retries=2
            )

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.note()
            self.ids.stop()
            self.loop.close()

    def note(self) -> None:
        """Adds up what the examples reached, so that a machine that does nothing cannot pass."""
        reached, executed = type(self).reached, self.world.executor.executed
        reached["examples"] += 1
        reached["attempts"] += len(executed)
        reached["further attempts"] += sum(attempt > 1 for _, attempt in executed)
        reached.update(run.state.value for run in self.world.run_rows)
        reached["requeued"] += sum(self.world.requeued.values())

    def run(self, work: Awaitable[Any]) -> Any:
        """The result, or the domain error: a caller may get one at any time, and nothing else."""

        async def called() -> Any:
            with caller.bind(Caller(Role.ADMIN, "acme", "key_1")):
                try:
                    return await work
                except Error as error:
                    type(self).reached[error.reason] += 1
                    return error

        return self.loop.run_until_complete(called())

    def kill(self, work: Awaitable[Any], turns: int) -> None:
        """Lets work run for some turns of the event loop and then kills it where it is."""

        async def killed() -> None:
            with caller.bind(Caller(Role.ADMIN, "acme", "key_1")):
                task = asyncio.ensure_future(work)
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        self.loop.run_until_complete(killed())

    def pick(self, ids: list[str], number: int) -> str:
        return sorted(ids)[number % len(ids)]

    @property
    def schedules(self) -> list[str]:
        return [row.config_id for row in self.world.store.schedules if row.deleted_at is None]

    @property
    def healthy(self) -> bool:
        faults = self.world.faults
        return not (faults.conflict or faults.lost_reply or faults.unavailable)

    # ------------------------------------------------------------------ what people do

    @rule(
        tenant_id=tenants,
        cron=st.sampled_from(CRONS),
        overlap=st.sampled_from(Overlap),
        catchup=st.sampled_from(Catchup),
        retries=st.integers(0, 2),
        priority=st.integers(1, 10),
    )
    def create(
        self, tenant_id: str, cron: str, overlap: Overlap, catchup: Catchup, retries: int, priority: int
    ) -> None:
        values = {"overlap_policy": overlap, "catchup_policy": catchup, "max_retries": retries, "priority": priority}
        self.run(self.world.create(tenant_id, cron=cron, catchup_limit=4, **values))

    @precondition(lambda self: self.schedules)
    @rule(number=st.integers(0, 99), cron=st.sampled_from(CRONS), zone=st.sampled_from(["UTC", "Europe/Berlin"]))
    def edit(self, number: int, cron: str, zone: str) -> None:
        self.change(number, {"cron": cron, "timezone": zone})

    @precondition(lambda self: self.schedules)
    @rule(number=st.integers(0, 99), active=st.sampled_from([True, True, False]))
    def pause_or_resume(self, number: int, active: bool) -> None:
        self.change(number, {"is_active": active})

    def change(self, number: int, values: dict[str, Any]) -> None:
        config_id = self.pick(self.schedules, number)
        row = next(row for row in self.world.store.schedules if row.config_id == config_id)
        self.run(self.world.calendar.update(row.tenant_id, config_id, values))

    @precondition(lambda self: self.schedules)
    @rule(number=st.integers(0, 99), what=st.sampled_from(["run", "delete"]))
    def run_now_or_delete(self, number: int, what: str) -> None:
        config_id = self.pick(self.schedules, number)
        row = next(row for row in self.world.store.schedules if row.config_id == config_id)
        if what == "run":
            self.run(self.world.calendar.run_now(row.tenant_id, config_id, None))
        elif len(self.schedules) > 2:
            self.run(self.world.calendar.delete(row.tenant_id, config_id))

    @precondition(lambda self: self.world.items)
    @rule(number=st.integers(0, 999))
    def cancel(self, number: int) -> None:
        run_id = self.pick([item.run_id for item in self.world.items], number)
        self.cancelled(run_id, self.run(self.world.runs.cancel(self.world.run_of(run_id).tenant_id, run_id)))

    @precondition(lambda self: self.world.executor.running())
    @rule(number=st.integers(0, 99))
    def a_cancel_meets_pollers(self, number: int) -> None:
        """An attempt fails; whoever settles it must not undo the cancellation that comes in between."""
        running = sorted(self.world.executor.running())
        key = running[number % len(running)]
        self.world.executor.end(key, AttemptStatus.FAILED, "SCRIPTED", retryable=True)

        async def at_once() -> list[Any]:
            cancel = self.world.runs.cancel(self.world.run_of(key[0]).tenant_id, key[0])
            return await asyncio.gather(self.world.poll(0), cancel, self.world.poll(0), return_exceptions=True)

        answers = self.run(at_once())
        self.cancelled(key[0], answers[1])
        self.advance_clock(3600)
        self.poll(0, 1)

    def cancelled(self, run_id: str, answer: Any) -> None:
        """Notes the last attempt that a cancelled run may have."""
        if isinstance(answer, Run):
            type(self).reached["cancelled"] += 1
            tried = [attempt for key, attempt in self.world.executor.executed if key == run_id]
            self.last_attempt[run_id] = max([*tried, answer.attempt if answer.state is State.CLAIMED else 0])

    @rule(hours=st.integers(3, 6))
    def a_bad_day(self, hours: int) -> None:
        """Everything fails, for as long as anything is tried again."""
        for _ in range(hours):
            self.advance_clock(3600)
            self.poll(0, 1)
            self.world.finish(AttemptStatus.FAILED, reason="BAD_DAY", retryable=True)
            self.poll(0, 1)
        type(self).reached["out of retries"] += sum(
            item.state is State.DEAD_LETTER and item.reason == "BAD_DAY" for item in self.world.items
        )

    @precondition(lambda self: any(item.state is State.DEAD_LETTER for item in self.world.items))
    @rule(number=st.integers(0, 999))
    def requeue(self, number: int) -> None:
        letters = [item.run_id for item in self.world.items if item.state is State.DEAD_LETTER]
        self.run(self.world.runs.requeue(self.pick(letters, number)))

    @rule(tenant_id=tenants, concurrent=st.sampled_from([1, 3, 10]), daily=st.sampled_from([2, 6, 25, 100]))
    def change_plan(self, tenant_id: str, concurrent: int, daily: int) -> None:
        quota = self.world.tenants.quotas[tenant_id]
        quota.concurrent, quota.daily = concurrent, daily

    @rule(tenant_id=tenants, active=st.sampled_from([True, True, False]))
    def suspend_or_reactivate(self, tenant_id: str, active: bool) -> None:
        self.world.tenants.quotas[tenant_id].active = active

    # ------------------------------------------------------------------ what CronJobs do

    @rule(at_once=st.integers(1, 3))
    def trigger(self, at_once: int) -> None:
        async def triggers() -> list[Any]:
            return await asyncio.gather(*(self.world.trigger() for _ in range(at_once)), return_exceptions=True)

        results = self.run(triggers())
        assert all(isinstance(result, Error) or not isinstance(result, BaseException) for result in results)
        if self.healthy:
            now = self.world.clock()
            late = [row.config_id for row in self.world.store.schedules if row.is_active and row.next_run_time <= now]
            assert not late, f"I6: still due after a trigger {late}"

    @rule(at_once=st.integers(1, 3))
    def an_hour_passes(self, at_once: int) -> None:
        self.advance_clock(3600)
        self.trigger(at_once)

    @rule(at_once=st.integers(1, 3), how=st.sampled_from(["complete", "fail", "break"]))
    def an_hour_of_work(self, at_once: int, how: str) -> None:
        self.an_hour_passes(at_once)
        self.poll(0, at_once)
        for number in range(len(self.world.executor.running())):
            self.attempt_ends(7 * number, how if number % 2 else "complete")
        self.poll(0, at_once)

    @rule(at_once=st.integers(2, 3))
    def pollers_meet(self, at_once: int) -> None:
        self.poll(5, at_once)

    @rule(seconds=st.sampled_from([0, 0, 5]), at_once=st.integers(1, 3))
    def poll(self, seconds: float, at_once: int) -> None:
        async def polls() -> list[Any]:
            return await asyncio.gather(*(self.world.poll(seconds) for _ in range(at_once)), return_exceptions=True)

        results = self.run(polls())
        assert all(isinstance(result, Error) or not isinstance(result, BaseException) for result in results)
        if self.healthy:
            self.check_work_conserving()

    def check_work_conserving(self) -> None:
        """I9, once nothing moves any more: every slot that is free has no run waiting for it."""
        for _ in range(4):
            self.run(self.world.poll(0))
        if len(self.world.executor.running()) >= self.world.executor.capacity:
            # A slot is free only if the executor has room as well.
            return
        now = self.world.clock()
        taken = {item.serial_id for item in self.world.items if item.state is State.CLAIMED}
        unstarted = Counter(i.tenant_id for i in self.world.items if i.state is State.CLAIMED and not i.started_at)
        for item in self.world.items:
            ready = item.state is State.DEFERRED or (item.state is State.QUEUED and item.not_before <= now)
            if not ready or item.expires_at <= now or item.stop or item.serial_id in taken:
                continue
            slots = self.world.tenants._allowance(item.tenant_id).slots - unstarted[item.tenant_id]
            assert slots <= 0, f"I9: {item.run_id} waits though {slots} slots are free"

    @rule(turns=st.integers(0, 60))
    def crash_a_trigger(self, turns: int) -> None:
        self.kill(self.world.trigger(), turns)

    @rule(turns=st.integers(0, 80))
    def crash_a_poller(self, turns: int) -> None:
        self.kill(self.world.poll(5), turns)

    @rule()
    def reset(self) -> None:
        self.run(self.world.housekeeping.reset())

    # ------------------------------------------------------------------ what the world does

    @precondition(lambda self: self.world.executor.running())
    @rule(number=st.integers(0, 99), how=st.sampled_from(["complete", "fail", "break"]))
    def attempt_ends(self, number: int, how: str) -> None:
        running = sorted(self.world.executor.running())
        if not running:
            return
        key = running[number % len(running)]
        if self.world.executor.rows[key].status is AttemptStatus.CANCELLING:
            self.world.executor.end(key, AttemptStatus.CANCELLED)
        elif how == "complete":
            self.world.executor.end(key, AttemptStatus.COMPLETED)
        else:
            self.world.executor.end(key, AttemptStatus.FAILED, "SCRIPTED", retryable=how == "fail")

    @precondition(lambda self: self.world.executor.running())
    @rule()
    def executor_is_lost(self) -> None:
        self.world.finish(AttemptStatus.FAILED, reason="OWNER_LOST", retryable=True)

    @rule(capacity=st.sampled_from([0, 2, 1000]), lost=st.sampled_from([0.0, 0.0, 0.3]))
    def executor_changes(self, capacity: int, lost: float) -> None:
        self.world.executor.capacity = 1000 if capacity == 0 else capacity
        self.world.executor.lost_reply = lost

    @rule(seconds=st.sampled_from([20, 61, 61, 125, 125, 1800, 7200, 86400, 8 * 86400]))
    def advance_clock(self, seconds: float) -> None:
        self.world.clock.advance(seconds=seconds)
        if self.world.clock().date() != self.day:
            self.day = self.world.clock().date()
            for quota in self.world.tenants.quotas.values():
                quota.used_today = 0

    @rule(conflict=st.sampled_from([0.0, 0.2]), lost=st.sampled_from([0.0, 0.2]), down=st.sampled_from([0.0, 0.1]))
    def store_fault(self, conflict: float, lost: float, down: float) -> None:
        faults = self.world.faults
        faults.conflict, faults.lost_reply, faults.unavailable = conflict, lost, down

    @rule()
    def store_is_well(self) -> None:
        self.store_fault_cleared()

    def store_fault_cleared(self) -> None:
        faults = self.world.faults
        faults.conflict = faults.lost_reply = faults.unavailable = 0.0

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.check()
        now = {run.run_id: run for run in self.world.run_rows if run.state.ended}
        for run_id, run in self.ended.items():
            # Old records may be deleted; what is there is as it was.
            assert now.get(run_id, run) == run, "I4: a run that had ended was changed"
        self.ended = now

    @invariant()
    def cancelled_is_cancelled(self) -> None:
        if not hasattr(self, "world"):
            return
        for run_id, attempt in self.world.executor.executed:
            last = self.last_attempt.get(run_id, attempt)
            assert attempt <= last, f"attempt {attempt} of a run that was cancelled at {last}"

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        for tenant_id, quota in self.world.tenants.quotas.items():
            live = sum(self.world.tenants.grants[key] == tenant_id for key in self.world.tenants.live)
            assert live <= max(10, quota.concurrent), "I2: more grants than any plan allows"


def minutes(number: int) -> timedelta:
    return number * HOUR / 60


def test_whatever_happens_the_invariants_hold() -> None:
    SchedulerMachine.reached.clear()
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=examples(60, 300),
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
    reached = SchedulerMachine.reached
    wanted = {"examples": 25, "attempts": 500, "further attempts": 50, "requeued": 2, "STORE_UNAVAILABLE": 1}
    wanted |= {"cancelled": 20, "out of retries": 10}
    wanted |= dict.fromkeys(("QUEUED", "CLAIMED", "DEFERRED", "COMPLETED", "CANCELLED", "SKIPPED", "DEAD_LETTER"), 5)
    assert not {what: reached[what] for what, least in wanted.items() if reached[what] < least}, dict(reached)


async def test_the_machine_ends_well(world: World) -> None:
    """After any amount of trouble, once all is well and time goes on, everything ends."""
    for seed in range(5):
        world = World(faults=StoreFaults(conflict=0.2, lost_reply=0.2, unavailable=0.1), seed=seed)
        world.executor.lost_reply = 0.2
        for tenant_id in TENANTS:
            await asyncio.gather(
                *(world.create(tenant_id, cron=cron, overlap_policy=Overlap.ALLOW) for cron in CRONS),
                return_exceptions=True,
            )
        for _ in range(30):
            world.clock.advance(HOUR)
            await asyncio.gather(world.trigger(), world.poll(60), world.poll(60), return_exceptions=True)
            for key in world.executor.running()[::2]:
                ends = (AttemptStatus.COMPLETED, AttemptStatus.FAILED)
                world.executor.end(key, ends[world.random.randrange(2)], "SCRIPTED", retryable=True)
            world.check()
        world.faults.conflict = world.faults.lost_reply = world.faults.unavailable = 0.0
        world.executor.lost_reply = 0.0
        for row in list(world.store.schedules):
            await world.calendar.update(TenantId(row.tenant_id), row.config_id, {"is_active": False})
        for _ in range(20):
            world.clock.advance(HOUR)
            await world.poll(60)
            world.finish()
        await world.poll(60)
        assert {run.state for run in world.run_rows if not run.state.ended} <= {State.DEAD_LETTER}
        assert sum(each.count for each in await world.reports.invariants()) == 0
