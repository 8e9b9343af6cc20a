"""Backfills: one run a date, low priority, capped, cancellable as one, with progress; and never in anybody's way."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

import pytest

from libs import errors
from libs.tenancy import TenantId
from services.scheduler.domain import AttemptStatus, Backfill, State, Trigger
from tests.support.scheduler import Quota
from tests.support.scheduler_world import HOUR, World, later

ACME = TenantId("acme")
VALUES = {"provider": "gcp", "domain": "cost", "template": "billing", "parameters": None}


async def create(
    world: World, first: date = date(2025, 11, 1), last: date = date(2025, 11, 10), key: str | None = None
) -> Backfill:
    return await world.backfills.create(ACME, VALUES, first, last, key)


async def test_a_range_becomes_one_run_a_date(world: World) -> None:
    made = await create(world)
    assert (made.total_count, made.pending_count) == (10, 10)
    assert sorted(run.start_date for run in world.run_rows) == [date(2025, 11, n) for n in range(1, 11)]
    for run, item in zip(world.run_rows, world.items, strict=True):
        assert (run.trigger, run.priority, run.config_id, run.backfill_id) == (
            Trigger.BACKFILL, 0, None, made.backfill_id,
        )  # fmt: skip
        assert (item.run_id, item.start_date, item.end_date) == (run.run_id, run.start_date, run.start_date)
    world.check()


@pytest.mark.parametrize(
    ("first", "last", "reason"),
    [
        (date(2025, 11, 2), date(2025, 11, 1), "DATE_RANGE_INVALID"),
        (date(2025, 11, 1), date(2025, 11, 18), "DATE_IN_FUTURE"),
        (date(2024, 11, 16), date(2025, 11, 17), "DATE_RANGE_TOO_LONG"),
    ],
)
async def test_ranges_that_cannot_be(world: World, first: date, last: date, reason: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await create(world, first, last)
    assert caught.value.reason == reason
    assert world.items == []


async def test_a_tenant_may_have_so_many_waiting(world: World) -> None:
    year = (date(2024, 11, 17), date(2025, 11, 17))
    await create(world, *year)
    first = await create(world, *year)
    with pytest.raises(errors.FailedPrecondition) as caught:
        await create(world, *year)
    assert caught.value.reason == "BACKFILL_LIMIT"
    await world.backfills.cancel(ACME, first.backfill_id)
    await create(world, *year)


async def test_one_key_makes_one_backfill(world: World) -> None:
    made = await asyncio.gather(*(create(world, key="k") for _ in range(5)))
    assert len({backfill.backfill_id for backfill in made}) == 1
    assert len(world.items) == 10
    with pytest.raises(errors.InvalidArgument) as caught:
        await create(world, last=date(2025, 11, 9), key="k")
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_progress(world: World) -> None:
    made = await create(world)
    world.tenants.quotas["acme"] = Quota(concurrent=4)
    await world.poll()
    keys = world.executor.running()
    assert len(keys) == 4
    world.executor.end(keys[0], AttemptStatus.FAILED, "BROKEN")
    for key in keys[1:]:
        world.executor.end(key, AttemptStatus.COMPLETED)
    await world.poll()
    seen = await world.backfills.get(ACME, made.backfill_id)
    assert (seen.completed_count, seen.failed_count, seen.pending_count) == (3, 1, 6)
    assert await world.backfills.list(ACME, 10, None) == [seen]


async def test_cancelling_all_of_it(world: World) -> None:
    made = await create(world)
    world.tenants.quotas["acme"] = Quota(concurrent=2)
    await world.poll()
    for _ in range(2):
        seen = await world.backfills.cancel(ACME, made.backfill_id)
        assert seen.cancelled_at == world.clock()
    assert world.states() == {"CLAIMED": 2, "CANCELLED": 8}
    await world.poll()
    assert sorted(set(world.executor.cancels)) == sorted(run_id for run_id, _ in world.executor.running())
    world.finish(AttemptStatus.CANCELLED)
    await world.poll()
    assert world.states() == {"CANCELLED": 10}
    assert (await world.backfills.get(ACME, made.backfill_id)).pending_count == 0


async def test_another_tenants_backfill_does_not_exist(world: World) -> None:
    made = await create(world)
    for call in (world.backfills.get, world.backfills.cancel):
        with pytest.raises(errors.NotFound) as caught:
            await call(TenantId("other"), made.backfill_id)
        assert caught.value.reason == "BACKFILL_NOT_FOUND"
    assert len(world.items) == 10


async def test_what_is_due_today_never_waits_for_an_old_backfill(world: World) -> None:
    """For months: a tenant with little room, a long backfill, and one run a day that must not be late."""
    world.tenants.quotas["acme"] = Quota(concurrent=1, daily=4)
    await create(world, date(2025, 5, 1), date(2025, 11, 1))
    [daily] = world.seed(1, cron="0 6 * * *", next_run_time=world.clock().replace(hour=6) + timedelta(days=1))
    world.at_once()
    for _ in range(60):
        world.tenants.quotas["acme"].used_today = 0
        for _ in range(24):
            later(world, HOUR)
            await world.trigger()
            if world.clock().hour in (0, 6, 7, 18):
                await world.poll(60)
    runs = [run for run in world.run_rows if run.config_id == daily.config_id]
    assert len(runs) >= 59
    assert all(run.state is State.COMPLETED for run in runs[:-1])
    late = [run for run in runs[:-1] if run.ended_at - run.scheduled_for > timedelta(days=1)]
    assert late == []
    done = sum(run.state is State.COMPLETED for run in world.run_rows if run.backfill_id)
    assert done >= 60
