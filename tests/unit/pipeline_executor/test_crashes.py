"""An executor dies between any two of its calls, the store loses replies: nothing is left over, nothing is done twice.

The first part kills at every boundary in turn. The second lets Hypothesis order starts, cancels, kills, zombies, drains
and faults; its invariants are checked after every step, and once more when all has come to rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs import errors
from libs.tenancy import Caller, TenantId
from services.pipeline_executor.domain import Key, Outcome, RunStatus
from services.pipeline_executor.runs import RunRequest, StartRequest
from services.tenant.quotas import GrantState
from tests.support.examples import examples
from tests.support.executor import RUNNER, Process, Script, World, as_client, simulated, until
from tests.support.fakes import SkippingLoop

ACME, OTHER = TenantId("acme"), TenantId("other")
# Calls of the longest life of a run, twice each (before and after), and some of the loops beside it.
BOUNDARIES = 34


def asked(tenant_id: TenantId = ACME, day: int = 10, key: str = "k") -> RunRequest:
    return RunRequest(
        tenant_id=tenant_id,
        provider="gcp",
        domain="cost",
        template="billing",
        date=f"2025-11-{day:02}",
        idempotency_key=key,
    )


def check_rest(world: World) -> None:
    """What must hold when nothing is under way any more."""
    grants = world.quotas.grants()
    for key, run in world.store.rows.items():
        assert run.status.ended, f"{key} is {run.status} for ever"
        assert grants[key].state in (GrantState.SETTLED, GrantState.REAPED), f"{key}: {grants[key].state}"
        lost = run.error is not None and run.error.reason == "OWNER_LOST"
        assert lost or grants[key].state is GrantState.SETTLED
    for key, grant in grants.items():
        assert grant.state is not GrantState.LIVE, f"{key} is never settled"
        assert (grant.state is GrantState.REFUNDED) == (key not in world.store.rows)
    for tenant_id, row in world.quotas.rows.items():
        charged = [key for key in world.store.rows if key.tenant_id == tenant_id]
        assert row.pipelines_run_month == len(charged)


def check_always(world: World) -> None:
    """What must hold at any moment."""
    assert all(count == 1 for count in world.begun.values()), "an attempt was executed twice"
    assert all(count == 1 for count in world.store.publications.values())
    for (tenant_id, _), (key, _) in world.store.data.items():
        assert tenant_id == key.tenant_id
        assert (world.store.rows[key].status, world.store.rows[key].outcome) == (
            RunStatus.COMPLETED,
            Outcome.PUBLISHED,
        )


@pytest.mark.parametrize("script", [Script(), Script(no_data=True), Script(failure=errors.Unavailable("DOWN", "…"))])
@pytest.mark.parametrize("boundary", range(BOUNDARIES))
@simulated
async def test_killed_anywhere_the_next_run_is_right(world: World, boundary: int, script: Script) -> None:
    a, b = world.boot("a"), world.boot("b")
    world.default_script = script
    a.link.crash_after = boundary
    task = asyncio.create_task(as_client(a.runs.run(asked())))
    await asyncio.sleep(10)
    a.kill()
    killed_at = asyncio.get_running_loop().time()
    await until(lambda: all(grant.state is not GrantState.LIVE for grant in world.quotas.grants().values()))
    assert asyncio.get_running_loop().time() - killed_at <= 100
    check_always(world)
    check_rest(world)
    task.cancel()

    world.default_script = Script()
    again = await as_client(b.runs.run(asked()))
    if again.run.status is RunStatus.RUNNING:
        await until(lambda: world.store.rows[again.run.key].status.ended)
    fresh = await as_client(b.runs.run(asked(key="next")))
    await until(lambda: world.store.rows[fresh.run.key].status.ended)
    assert next(iter(world.store.data.values()))[0] == fresh.run.key
    await asyncio.sleep(100)
    check_always(world)
    check_rest(world)


@pytest.mark.parametrize("boundary", range(BOUNDARIES))
@simulated
async def test_killed_anywhere_during_a_cancel_nothing_is_published(world: World, boundary: int) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await as_client(a.runs.run(asked()))
    a.link.crash_after = boundary % 8
    canceller = b if boundary % 2 else a
    task = asyncio.create_task(as_client(canceller.runs.cancel(ACME, view.run.key.run_id)))
    await asyncio.sleep(boundary / 4)
    a.kill()
    await asyncio.sleep(200)
    check_always(world)
    check_rest(world)
    if task.done() and not task.cancelled() and task.exception() is None:
        assert not world.store.data
    task.cancel()


pauses = st.sampled_from((0.0, 0.0, 0.3, 1.0, 7.0))


class Lives(RuleBasedStateMachine):
    """Three executors, two tenants, five days of data, and everything that can go wrong with them."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.loop = SkippingLoop()
        self.runner = asyncio.Runner(loop_factory=lambda: self.loop)
        self.world = self._run(_world(seed))
        self.clients: list[asyncio.Task[Any]] = []
        self.cancelled: set[Key] = set()
        self.born = 0
        for _ in range(3):
            self._boot()

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def _boot(self) -> None:
        self.born += 1
        self._run(_boot(self.world, f"p{self.born}"))

    def _client(self, work: Coroutine[Any, Any, Any], pause: float, who: Caller = RUNNER) -> None:
        async def begin() -> None:
            self.clients.append(asyncio.create_task(_patient(as_client(work, who))))
            await asyncio.sleep(pause)

        self._run(begin())

    @rule(
        process=st.integers(0, 2),
        tenant=st.sampled_from((ACME, OTHER)),
        day=st.integers(10, 14),
        key=st.sampled_from(("", "k1", "k2")),
        seconds=st.sampled_from((2, 20, 100, 300)),
        ending=st.sampled_from(("publish", "publish", "publish", "no data", "fails")),
        pause=pauses,
    )
    def ask(
        self, process: int, tenant: TenantId, day: int, key: str, seconds: float, ending: str, pause: float
    ) -> None:
        failure = errors.Unavailable("SOURCE_DOWN", "Later.") if ending == "fails" else None
        self.world.default_script = Script(seconds, failure, no_data=ending == "no data")
        self._client(self._process(process).runs.run(asked(tenant, day, f"{key}{day}" if key else "")), pause)

    @rule(
        process=st.integers(0, 2),
        tenant=st.sampled_from((ACME, OTHER)),
        run=st.integers(0, 3),
        attempt=st.integers(1, 3),
        pause=pauses,
    )
    def dispatch(self, process: int, tenant: TenantId, run: int, attempt: int, pause: float) -> None:
        request = StartRequest(
            key=Key(tenant, str(uuid.UUID(int=run)), attempt),
            provider="gcp",
            domain="cost",
            template="billing",
            start_date="2025-11-10",
            end_date="2025-11-12",
        )
        self._client(self._process(process).runs.start(request), pause, Caller(None, peer="scheduler"))

    @precondition(lambda self: self.world.store.rows)
    @rule(process=st.integers(0, 2), pick=st.integers(0, 50), pause=pauses)
    def cancel(self, process: int, pick: int, pause: float) -> None:
        rows = self.world.store.rows
        keys = sorted(rows, key=lambda key: (rows[key].status.ended, key))
        key = keys[pick % len(keys)]

        async def cancel() -> None:
            view = await self._process(process).runs.cancel(key.tenant_id, key.run_id)
            self.cancelled.add(view.run.key)

        self._client(cancel(), pause)

    @rule(seconds=st.sampled_from((1.0, 25.0, 70.0, 120.0)))
    def wait(self, seconds: float) -> None:
        self._run(asyncio.sleep(seconds))

    @rule(process=st.integers(0, 2))
    def kill(self, process: int) -> None:
        self._run(_kill(self._process(process)))
        self._boot()

    @rule(process=st.integers(0, 2), calls=st.integers(0, 12))
    def die_soon(self, process: int, calls: int) -> None:
        self._process(process).link.crash_after = calls

    @rule(process=st.integers(0, 2), pause=st.sampled_from((0.0, 70.0, 120.0)))
    def stop_and_resume(self, process: int, pause: float) -> None:
        self._process(process).outlive_its_leases()
        self._run(asyncio.sleep(pause))

    @rule(process=st.integers(0, 2), grace=st.sampled_from((0.0, 6.0, 25.0)))
    def shut_down(self, process: int, grace: float) -> None:
        self._run(_shut_down(self._process(process), grace))
        self._boot()

    @rule(
        before=st.sampled_from((0.0, 0.0, 0.05, 0.3)),
        after=st.sampled_from((0.0, 0.0, 0.05, 0.3)),
        late=st.sampled_from((0.0, 0.0, 0.05, 0.2)),
        seconds=st.sampled_from((0.0, 1.0, 4.0)),
    )
    def trouble(self, before: float, after: float, late: float, seconds: float) -> None:
        faults = self.world.faults
        faults.before, faults.after, faults.late, faults.seconds = before, after, late, seconds

    @rule(seconds=st.sampled_from((30.0, 70.0, 140.0)))
    def outage(self, seconds: float) -> None:
        was, self.world.faults.before = self.world.faults.before, 1.0
        self._run(asyncio.sleep(seconds))
        self.world.faults.before = was

    @invariant()
    def always(self) -> None:
        check_always(self.world)
        for key in self.cancelled:
            assert self.world.store.rows[key].status in (
                RunStatus.CANCELLING,
                RunStatus.CANCELLED,
                RunStatus.FAILED,
            )

    def teardown(self) -> None:
        world, faults = self.world, self.world.faults
        try:
            faults.before = faults.after = faults.late = faults.seconds = 0.0
            for process in list(world.processes.values()):
                if process.link.crash_after is not None or process.quotas.deaf:
                    self._run(_kill(process))
            self._boot()
            self._run(asyncio.sleep(1000))
            self.always()
            check_rest(world)
        finally:
            for client in self.clients:
                client.cancel()
            self._run(world.close())
            self.runner.close()

    def _process(self, index: int) -> Process:
        return list(self.world.processes.values())[index]


async def _world(seed: int) -> World:
    return World(seed=seed)


async def _boot(world: World, name: str) -> None:
    world.boot(name)


async def _kill(process: Process) -> None:
    process.kill()


async def _shut_down(process: Process, grace: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace + 5):
            await process.executions.drain(grace)
    process.kill()


async def _patient(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(errors.Error, TimeoutError):
        async with asyncio.timeout(30):
            await work


Lives.TestCase.settings = settings(
    max_examples=examples(20, 300), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLives = Lives.TestCase
