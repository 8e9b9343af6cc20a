"""Watching a run: at its owner, through another replica, and by its row alone."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing

import pytest

from libs import errors
from libs.tenancy import TenantId
from services.pipeline_executor.domain import Check, RunStatus, StepStatus, View
from services.pipeline_executor.runs import RunRequest
from tests.support.executor import Process, Script, World, as_client, simulated, until

ACME = TenantId("acme")


async def begin(process: Process, seconds: float = 30) -> View:
    process.world.default_script = Script(seconds)
    request = RunRequest(tenant_id=ACME, provider="gcp", domain="cost", template="billing")
    return await as_client(process.runs.run(request))


async def watched(process: Process, run_id: str, seen: list[View]) -> list[View]:
    async with aclosing(process.watch.watch(ACME, run_id)) as views:
        async for view in views:
            seen.append(view)
    return seen


def check_story(seen: list[View]) -> None:
    """It only goes forward, and its end is said once, at the end, with all steps."""
    percents = [view.percent for view in seen]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert [view.run.status.ended for view in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].run.status is RunStatus.COMPLETED
    assert [step.status for step in seen[-1].steps] == [StepStatus.COMPLETED] * 2


@simulated
async def test_the_owner_shows_every_change_to_any_number_of_watchers(world: World) -> None:
    a = world.boot("a")
    view = await begin(a)
    stories = await asyncio.gather(*(watched(a, view.run.key.run_id, []) for _ in range(3)))
    for seen in stories:
        check_story(seen)
        assert seen[-1].rows_read == 7


@simulated
async def test_another_replica_asks_the_owner_once(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await begin(a)
    seen = await watched(b, view.run.key.run_id, [])
    check_story(seen)
    assert any(step.status is StepStatus.RUNNING for view in seen for step in view.steps)
    assert b.link.calls["forward"] == 1
    assert b.link.calls["attempts"] == 2


@simulated
async def test_without_its_owner_a_run_is_watched_by_its_row(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await begin(a, seconds=3600)
    seen: list[View] = []
    watching = asyncio.create_task(watched(b, view.run.key.run_id, seen))
    await until(lambda: len(seen) > 1)
    a.kill()
    await watching
    assert seen[-1].run.status is RunStatus.FAILED
    assert b.link.calls["forward"] == 1
    assert b.link.calls["attempts"] < 30


@simulated
async def test_an_ended_run_is_one_message(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await begin(a, seconds=1)
    await until(lambda: view.run.key in world.store.step_logs)
    await asyncio.sleep(5)
    for process in (a, b):
        [last] = await watched(process, view.run.key.run_id, [])
        assert (last.run.status, last.percent, len(last.steps)) == (RunStatus.COMPLETED, 100, 2)


@simulated
async def test_what_was_put_into_quarantine_is_said_also_of_a_run_whose_process_died_before_it_logged_its_steps(
    world: World,
) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await begin(a, seconds=1)
    await until(lambda: view.run.key in world.store.step_logs)
    await asyncio.sleep(5)
    world.store.step_logs.pop(view.run.key)
    world.store.check_logs[view.run.key] = [
        Check(
            attempt=1, name="rows_quarantined", type="quarantine", severity="WARNING", status="WARN", dimension="USD",
            expected="0", actual="4", message="", check_time=view.run.start_time,
        )
    ]  # fmt: skip
    for process in (a, b):
        [last] = await watched(process, view.run.key.run_id, [])
        assert (last.run.status, last.rows_quarantined, last.steps) == (RunStatus.COMPLETED, 4, ())


@simulated
async def test_a_quiet_run_is_heard_of_all_the_same(world: World) -> None:
    a = world.boot("a")
    view = await begin(a, seconds=200)
    seen = await watched(a, view.run.key.run_id, [])
    assert len(seen) > 200 / 15


@simulated
async def test_a_watcher_who_leaves_disturbs_nobody(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await begin(a)
    for process in (a, b):
        async with aclosing(process.watch.watch(ACME, view.run.key.run_id)) as views:
            async for _ in views:
                break
    await until(lambda: world.store.rows[view.run.key].status.ended)
    assert world.store.rows[view.run.key].status is RunStatus.COMPLETED


@simulated
async def test_what_is_not_there_cannot_be_watched(world: World) -> None:
    a = world.boot("a")
    view = await begin(a)
    for tenant_id, run_id in ((ACME, str(uuid.uuid4())), (TenantId("other"), view.run.key.run_id), (ACME, "x")):
        with pytest.raises(errors.NotFound):
            async for _ in a.watch.watch(tenant_id, run_id):
                raise AssertionError


@simulated
async def test_reading_a_run_shows_its_steps_wherever_it_is_executed(world: World) -> None:
    a, b = world.boot("a"), world.boot("b")
    view = await begin(a)
    await asyncio.sleep(5)
    for process in (a, b):
        read = await process.runs.get(ACME, view.run.key.run_id, 0)
        assert read.run.status is RunStatus.RUNNING
        assert [step.status for step in read.steps] == [StepStatus.RUNNING, StepStatus.PENDING]
        assert read.percent == 25
    a.kill()
    read = await b.runs.get(ACME, view.run.key.run_id, 0)
    assert (read.run.status, read.steps) == (RunStatus.RUNNING, ())
