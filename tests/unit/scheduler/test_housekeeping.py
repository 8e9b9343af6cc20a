"""The daily reset, old records, tenants that leave, status and invariants."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from libs import errors, metrics
from libs.tenancy import TenantId
from services.scheduler.domain import AttemptStatus, Job, State
from services.scheduler.housekeeping import Cleaned
from services.scheduler.reports import INVARIANTS, Gauges
from tests.support.scheduler import Quota
from tests.support.scheduler_world import HOUR, World, later

ACME = TenantId("acme")


async def test_reset_resets_through_tenant_and_deletes_what_ended_long_ago(world: World) -> None:
    world.seed(3)
    world.tenants.quotas["acme"] = Quota(concurrent=2, used_today=5)
    later(world, HOUR)
    await world.trigger()
    world.at_once()
    await world.poll()
    assert world.states() == {"COMPLETED": 2, "QUEUED": 1}
    assert await world.housekeeping.reset() == Cleaned(reset=1, deleted=0)
    later(world, timedelta(days=91))
    assert await world.housekeeping.reset() == Cleaned(reset=0, deleted=2)
    assert await world.housekeeping.reset() == Cleaned(reset=0, deleted=0)
    # What has not ended is never deleted, however old.
    assert world.states() == {"QUEUED": 1} and len(world.items) == 1


async def test_a_tenant_that_leaves_is_let_go_and_nobody_else(world: World) -> None:
    for tenant_id in ("acme", "other"):
        world.seed(3, tenant_id)
        world.tenants.quotas[tenant_id] = Quota(concurrent=1)
    later(world, HOUR)
    await world.trigger()
    await world.poll()
    world.tenants.leaving = [ACME]
    assert await world.housekeeping.offboard() == [ACME]
    assert world.tenants.gone == {"acme"} and world.tenants.leaving == []
    assert len(world.executor.cancels) == 1
    assert {item.tenant_id for item in world.items} == {"other"}
    mine = [run for run in world.run_rows if run.tenant_id == "acme"]
    assert {(run.state, run.reason) for run in mine} == {(State.CANCELLED, "TENANT_OFFBOARDED")}
    later(world, 2 * HOUR)
    assert (await world.trigger()).schedules == 3
    assert await world.housekeeping.offboard() == []
    world.check()


async def test_offboarding_again_after_a_lost_confirmation(world: World) -> None:
    world.seed(1)
    world.tenants.leaving = [ACME]
    await world.housekeeping.offboard()
    world.tenants.leaving = [ACME]
    assert await world.housekeeping.offboard() == [ACME]


async def test_trouble_while_offboarding_waits_for_the_next_minute(world: World) -> None:
    world.seed(1)
    world.tenants.leaving = [ACME]
    world.faults.unavailable = 1.0
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        world.faults.unavailable = 0.0
        if len(naps) == 3:
            raise asyncio.CancelledError
        await asyncio.sleep(0)

    world.housekeeping._sleep = sleep
    with pytest.raises(asyncio.CancelledError):
        await world.housekeeping.offboard_forever()
    assert naps == [60.0] * 3
    assert world.tenants.gone == {"acme"}


async def test_one_tenants_trouble_does_not_keep_the_others(world: World) -> None:
    world.seed(1, "acme")
    world.seed(1, "other")
    world.tenants.leaving = [ACME, TenantId("other")]
    confirm = world.tenants.confirm_offboarding

    async def confirmed(tenant_id: TenantId) -> None:
        if tenant_id == ACME:
            raise errors.NotFound("TENANT_NOT_FOUND", "Tenant not found.")
        await confirm(tenant_id)

    world.tenants.confirm_offboarding = confirmed  # type: ignore[method-assign]
    assert await world.housekeeping.offboard() == ["other"]
    assert world.tenants.gone == {"other"} and world.tenants.leaving == [ACME]


@pytest.mark.parametrize("what", ["schedule", "run", "backfill"])
async def test_what_is_made_while_its_tenant_leaves_does_not_stay(world: World, what: str) -> None:
    """The offboarding passes between the question whether the tenant stays and the write."""
    [schedule] = world.seed(1, is_active=False, next_run_time=None)
    write = {"schedule": "insert", "run": "add", "backfill": "add"}[what]
    inner = getattr(world.store, write)

    async def leaves_first(*args: Any) -> None:
        world.tenants.leaving = [ACME]
        if what == "schedule":
            await world.housekeeping.offboard()
        await inner(*args)

    setattr(world.store, write, leaves_first)
    yesterday = world.clock().date() - timedelta(days=1)
    pipeline = {"provider": "gcp", "domain": "cost", "template": "billing", "parameters": None}
    works = {
        "schedule": world.create,
        "run": lambda: world.calendar.run_now(ACME, schedule.config_id, None),
        "backfill": lambda: world.backfills.create(ACME, pipeline, yesterday, yesterday, None),
    }
    with pytest.raises((errors.FailedPrecondition, errors.NotFound)):
        await works[what]()
    assert world.items == [] and not any(row.is_active for row in world.store.schedules)
    assert {run.state for run in world.run_rows} <= {State.CANCELLED}
    world.check()


async def test_status_shows_the_queue_and_the_jobs(world: World) -> None:
    world.seed(4)
    later(world, HOUR + timedelta(minutes=10))
    health = await world.reports.health()
    assert (health.status.due, health.lag, health.calls) == (4, timedelta(minutes=10), [])
    fired = await world.journal.run(Job.TRIGGER, world.trigger, lambda done: {"queued": done.queued})
    assert fired.queued == 4
    world.tenants.quotas["acme"] = Quota(concurrent=1)
    await world.poll()
    later(world, timedelta(minutes=5))
    health = await world.reports.health()
    assert health.status.by_state == {"CLAIMED": 1, "QUEUED": 3}
    assert (health.running, health.oldest) == (1, timedelta(minutes=5))
    await Gauges(world.reports).read()
    assert metrics.REGISTRY.get_sample_value("convergence_queue_runs", {"state": "QUEUED"}) == 3
    assert metrics.REGISTRY.get_sample_value("convergence_queue_runs", {"state": "DEAD_LETTER"}) == 0
    assert metrics.REGISTRY.get_sample_value("convergence_queue_age_seconds") == 300
    [call] = health.calls
    assert (call.job, call.outcome) == ("trigger", "OK") and call.end_time is not None
    world.finish(AttemptStatus.FAILED)
    await world.poll()
    assert (await world.reports.health()).status.failed_last_day == 1


async def test_a_jobs_failure_is_noted_and_raised(world: World) -> None:
    async def fail() -> None:
        raise errors.Unavailable("TRIGGER_UNFINISHED", "Not done.")

    with pytest.raises(errors.Unavailable):
        await world.journal.run(Job.TRIGGER, fail, lambda _: {})
    [call] = (await world.reports.health()).calls
    assert call.outcome == "TRIGGER_UNFINISHED"


async def test_a_job_that_cannot_be_noted_is_done_all_the_same(world: World) -> None:
    world.faults.unavailable = 1.0

    async def work() -> int:
        return 7

    assert await world.journal.run(Job.TRIGGER, work, lambda done: {"n": done}) == 7


async def test_invariants_are_zero_when_healthy_and_say_what_is_wrong_when_not(world: World) -> None:
    world.seed(3)
    later(world, HOUR)
    await world.trigger()
    await world.poll()
    found = await world.reports.invariants()
    assert [each.name for each in found] == list(INVARIANTS)
    assert sum(each.count for each in found) == 0
    later(world, timedelta(hours=3))
    stranded = world.run_rows[0].run_id
    world.store.queue_rows = [item for item in world.items if item.run_id != stranded]
    by_name = {each.name: each for each in await world.reports.invariants()}
    assert by_name["overdue_schedules"].count == 3
    await Gauges(world.reports).check()
    violated = {"invariant": "overdue_schedules"}
    assert metrics.REGISTRY.get_sample_value("convergence_invariant_violations", violated) == 3
    assert (by_name["stranded_runs"].count, by_name["stranded_runs"].samples) == (1, [stranded])
