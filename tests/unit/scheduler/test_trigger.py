"""The trigger at scale, at once, killed half-way, and after an absence; on the store that conflicts and forgets."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest

from libs.errors import Unavailable
from services.scheduler import trigger
from services.scheduler.domain import Catchup, Overlap, State
from tests.support.scheduler import StoreFaults
from tests.support.scheduler_world import HOUR, World, later


async def test_it_fires_what_is_due_and_says_so(world: World) -> None:
    due = world.seed(3)
    world.seed(1, is_active=False)
    world.seed(1, next_run_time=world.clock() + 5 * HOUR)
    assert await world.trigger() == trigger.Fired()
    later(world, HOUR)
    assert await world.trigger() == trigger.Fired(schedules=3, queued=3)
    assert await world.trigger() == trigger.Fired()
    assert {run.config_id for run in world.run_rows} == {schedule.config_id for schedule in due}
    assert all(item.state is State.QUEUED for item in world.items)
    world.check()


@pytest.mark.parametrize("count", [1, 100, 1000])
async def test_the_number_of_statements_does_not_depend_on_how_much_is_due(world: World, count: int) -> None:
    world.seed(count)
    later(world, HOUR)
    await world.trigger()
    assert world.store.statements == {"read_due": 1, "fire_schedules": 1}


async def test_beyond_a_thousand_it_goes_chunk_by_chunk(world: World) -> None:
    world.seed(2500)
    later(world, HOUR)
    assert (await world.trigger()).queued == 2500
    assert world.store.statements == {"read_due": 3, "fire_schedules": 3}
    assert len(world.items) == 2500
    world.check()


async def test_twenty_at_once_half_of_them_killed_make_each_run_once() -> None:
    for seed in range(2):
        world = World(faults=StoreFaults(conflict=0.1, lost_reply=0.1), seed=seed)
        rng = random.Random(seed)
        world.seed(500)
        later(world, HOUR)
        tasks = [asyncio.create_task(world.trigger()) for _ in range(20)]
        doomed = rng.sample(tasks, 10)
        while doomed:
            # A task dies wherever it is: before its statement, between commit and reply, or after.
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            doomed.pop().cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) > 0
        # Whatever the killed ones left is the next call's.
        await world.trigger()
        assert len(world.run_rows) == len(world.items) == 500
        assert len({run.run_id for run in world.run_rows}) == 500
        world.check()


async def test_all_of_them_killed_lose_nothing() -> None:
    for turns in range(12):
        world = World(seed=turns)
        world.seed(50)
        later(world, HOUR)
        task = asyncio.create_task(world.trigger())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(world.items) in (0, 50)
        await world.trigger()
        assert len(world.items) == 50
        world.check()


async def test_a_store_in_trouble_is_an_error_and_the_next_call_does_the_rest(world: World) -> None:
    world.seed(10)
    later(world, HOUR)
    world.faults.unavailable = 1.0
    with pytest.raises(Unavailable):
        await world.trigger()
    world.faults.unavailable = 0.0
    world.faults.conflict = 1.0
    with pytest.raises(Unavailable) as caught:
        await world.trigger()
    assert caught.value.reason == "TRIGGER_UNFINISHED"
    world.faults.conflict = 0.0
    assert (await world.trigger()).queued == 10


@pytest.mark.parametrize(
    ("catchup", "limit", "runs"), [(Catchup.LAST, 24, 200), (Catchup.NONE, 24, 0), (Catchup.ALL, 5, 1000)]
)
async def test_a_week_of_absence_of_two_hundred_hourly_schedules(
    world: World, catchup: Catchup, limit: int, runs: int
) -> None:
    world.seed(200, catchup_policy=catchup, catchup_limit=limit)
    await world.trigger()
    later(world, timedelta(days=7))
    fired = await world.trigger()
    assert (fired.schedules, fired.queued) == (200, runs)
    assert fired.queued + fired.skipped == 200 * 7 * 24
    assert len(world.items) == runs
    now = world.clock()
    assert all(schedule.next_run_time > now for schedule in world.store.schedules)
    world.check()


async def test_one_schedule_that_cannot_be_decided_stops_nobody(world: World) -> None:
    world.seed(3)
    [broken] = world.seed(1, cron="not a cron", timezone="UTC")
    later(world, HOUR)
    assert (await world.trigger()).queued == 3
    paused = (await world.store.read([broken.config_id]))[broken.config_id]
    assert not paused.is_active
    [skipped] = [run for run in world.run_rows if run.state is State.SKIPPED]
    assert skipped.reason == "CRON_INVALID"


async def test_a_defect_in_one_schedule_stops_nobody(world: World) -> None:
    world.seed(3)
    [broken] = world.seed(1, jitter_seconds=-1)
    later(world, HOUR)
    assert (await world.trigger()).queued == 3
    assert (await world.store.read([broken.config_id]))[broken.config_id].next_run_time == world.clock()


async def test_overlaps_are_seen_in_the_queue(world: World) -> None:
    [skipping] = world.seed(1)
    [one_waits] = world.seed(1, overlap_policy=Overlap.QUEUE_ONE)
    [allowing] = world.seed(1, overlap_policy=Overlap.ALLOW)
    for _ in range(4):
        later(world, HOUR)
        await world.trigger()
        if len(world.items) == 3:
            await world.poll()
    by_config = {
        schedule.config_id: [run.state.value for run in world.run_rows if run.config_id == schedule.config_id]
        for schedule in (skipping, one_waits, allowing)
    }
    assert by_config[skipping.config_id] == ["CLAIMED", "SKIPPED", "SKIPPED", "SKIPPED"]
    assert by_config[one_waits.config_id] == ["CLAIMED", "QUEUED", "SKIPPED", "SKIPPED"]
    assert by_config[allowing.config_id] == ["CLAIMED", "QUEUED", "QUEUED", "QUEUED"]
    world.check()
