"""What tenants do with schedules: made once, edited without firing or losing anything, paused, deleted, run now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from libs import caller, errors
from libs.tenancy import Caller, Role, TenantId
from services.scheduler.domain import AttemptStatus, Overlap, Schedule, State, Stop, Trigger
from tests.support.scheduler import StoreFaults
from tests.support.scheduler_world import HOUR, World, later

ACME = TenantId("acme")
HOURLY: Mapping[str, Any] = {"provider": "gcp", "domain": "cost", "template": "billing", "cron": "0 * * * *"}


def stored(world: World, schedule: Schedule) -> Schedule:
    return next(row for row in world.store.schedules if row.config_id == schedule.config_id)


async def test_a_new_schedule_fires_at_its_next_time_never_at_once(world: World) -> None:
    made = await world.create(timezone="Europe/Berlin", cron="0 13 * * *")
    assert made.next_run_time == datetime(2025, 11, 18, 12, tzinfo=UTC)
    assert stored(world, made) == made
    assert (made.created_by, made.version, made.is_active) == ("key_1", 1, True)
    assert (await world.trigger()).schedules == 0
    [record] = world.audit.records
    assert (record.action, record.object_id, record.user_id) == ("schedule.create", made.config_id, "ann")


async def test_a_schedule_may_begin_paused(world: World) -> None:
    made = await world.create(is_active=False)
    assert (made.next_run_time, made.paused_at) == (None, world.clock())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"cron": "* * * * *"}, "CRON_INVALID"),
        ({"timezone": "Mars/Olympus"}, "TIMEZONE_UNKNOWN"),
        ({"provider": "g cp"}, "PIPELINE_INVALID"),
        ({"template": "../etc"}, "PIPELINE_INVALID"),
    ],
)
async def test_what_cannot_be_is_refused_and_nothing_is_made(world: World, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await world.create(**values)
    assert caught.value.reason == reason
    assert world.store.schedules == [] and world.audit.records == []


async def test_a_tenant_that_is_gone_or_going_gets_nothing(world: World) -> None:
    world.tenants.leaving = [ACME]
    with pytest.raises(errors.FailedPrecondition):
        await world.create()
    world.tenants.gone = {"acme"}
    with pytest.raises(errors.NotFound):
        await world.create()


async def test_one_key_makes_one_schedule(world: World) -> None:
    made = await asyncio.gather(*(world.calendar.create(ACME, HOURLY, "key") for _ in range(10)))
    assert {schedule.config_id for schedule in made} == {world.store.schedules[0].config_id}
    assert len(world.store.schedules) == 1
    with pytest.raises(errors.InvalidArgument) as caught:
        await world.calendar.create(ACME, {**HOURLY, "cron": "0 3 * * *"}, "key")
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"
    other = await world.calendar.create(TenantId("other"), HOURLY, "key")
    assert other.config_id != made[0].config_id


async def test_two_schedules_of_one_pipeline_are_allowed(world: World) -> None:
    await world.create()
    await world.create()
    assert len(await world.calendar.list(ACME, 10, None)) == 2


async def test_reading_what_is_not_there_or_somebody_elses(world: World) -> None:
    other = await world.create("other")
    for config_id in (other.config_id, "absent"):
        for call in (
            world.calendar.get(ACME, config_id),
            world.calendar.update(ACME, config_id, {"priority": 1}),
            world.calendar.delete(ACME, config_id),
            world.calendar.run_now(ACME, config_id, None),
            world.calendar.runs(ACME, config_id, 10, None),
        ):
            with pytest.raises(errors.NotFound) as caught:
                await call
            assert caught.value.reason == "SCHEDULE_NOT_FOUND"
    assert stored(world, other) == other


async def test_an_edit_that_touches_no_time_leaves_the_next_one(world: World) -> None:
    made = await world.create()
    later(world, 3 * HOUR)
    changed = await world.calendar.update(ACME, made.config_id, {"priority": 9, "name": "x", "parameters": "{}"})
    assert (changed.priority, changed.name, changed.next_run_time) == (9, "x", made.next_run_time)
    assert changed.updated_at == world.clock()
    assert (await world.trigger()).schedules == 1


async def test_an_edited_cron_never_fires_for_the_past_and_never_twice(world: World) -> None:
    made = await world.create()
    later(world, HOUR)
    await world.trigger()
    changed = await world.calendar.update(ACME, made.config_id, {"cron": "0 */2 * * *"})
    assert changed.next_run_time is not None and changed.next_run_time > world.clock()
    back = await world.calendar.update(ACME, made.config_id, {"cron": "0 * * * *"})
    assert back.next_run_time is not None and back.next_run_time > world.clock()
    assert (await world.trigger()).schedules == 0
    assert len(world.run_rows) == 1
    world.check()


async def test_an_edit_behind_a_slow_clock_fires_nothing_again(world: World) -> None:
    made = await world.create()
    later(world, HOUR)
    await world.trigger()
    world.clock.advance(timedelta(seconds=-5))
    changed = await world.calendar.update(ACME, made.config_id, {"timezone": "Europe/Berlin"})
    assert changed.next_run_time == made.next_run_time + HOUR
    world.check()


async def test_an_edit_does_not_swallow_what_is_due(world: World) -> None:
    made = await world.create(cron="30 12 * * *")
    later(world, timedelta(minutes=45))
    changed = await world.calendar.update(ACME, made.config_id, {"cron": "0 5 * * *"})
    assert changed.cron == "0 5 * * *" and changed.next_run_time == datetime(2025, 11, 18, 5, tzinfo=UTC)
    [run] = world.run_rows
    assert (run.state, run.scheduled_for) == (State.QUEUED, datetime(2025, 11, 17, 12, 30, tzinfo=UTC))


async def test_a_bad_edit_changes_nothing(world: World) -> None:
    made = await world.create()
    for values in ({"cron": "61 * * * *"}, {"timezone": "Nowhere"}, {"cron": "0 0 31 2 *", "priority": 1}):
        with pytest.raises(errors.InvalidArgument):
            await world.calendar.update(ACME, made.config_id, values)
    assert stored(world, made) == made


async def test_pausing_never_builds_a_backlog(world: World) -> None:
    made = await world.create()
    paused = await world.calendar.update(ACME, made.config_id, {"is_active": False})
    assert (paused.is_active, paused.next_run_time, paused.paused_at) == (False, None, world.clock())
    assert await world.calendar.update(ACME, made.config_id, {"is_active": False}) == stored(world, made)
    later(world, timedelta(days=7))
    assert (await world.trigger()).schedules == 0
    resumed = await world.calendar.update(ACME, made.config_id, {"is_active": True})
    assert resumed.next_run_time == world.clock() + HOUR
    assert resumed.paused_at is None
    assert (await world.trigger()).schedules == 0
    assert world.run_rows == []
    assert [record.action for record in world.audit.records][1:] == [
        "schedule.pause",
        "schedule.pause",
        "schedule.resume",
    ]


async def test_pausing_skips_what_is_due_visibly(world: World) -> None:
    made = await world.create()
    later(world, HOUR)
    await world.calendar.update(ACME, made.config_id, {"is_active": False})
    [run] = world.run_rows
    assert (run.state, run.reason) == (State.SKIPPED, "PAUSED")
    assert world.items == []


async def test_deleting_cancels_what_waits_and_lets_end_what_runs(world: World) -> None:
    made = await world.create(overlap_policy=Overlap.ALLOW)
    for _ in range(3):
        later(world, HOUR)
        await world.trigger()
        if len(world.items) == 1:
            await world.poll()
    assert world.states() == {"CLAIMED": 1, "QUEUED": 2}
    for _ in range(2):
        gone = await world.calendar.delete(ACME, made.config_id)
        assert gone.deleted_at is not None and not gone.is_active
    assert world.states() == {"CLAIMED": 1, "CANCELLED": 2}
    assert [item.stop for item in world.items] == [Stop.AFTER]
    with pytest.raises(errors.NotFound):
        await world.calendar.get(ACME, made.config_id)
    with pytest.raises(errors.NotFound):
        await world.calendar.update(ACME, made.config_id, {"is_active": True})
    assert await world.calendar.list(ACME, 10, None) == []
    assert len(await world.calendar.runs(ACME, made.config_id, 10, None)) == 3
    world.finish()
    await world.poll()
    assert world.states() == {"COMPLETED": 1, "CANCELLED": 2}


async def test_a_deleted_schedules_failed_run_is_not_tried_again(world: World) -> None:
    made = await world.create()
    later(world, HOUR)
    await world.trigger()
    await world.poll()
    await world.calendar.delete(ACME, made.config_id)
    world.finish(AttemptStatus.FAILED, retryable=True)
    await world.poll()
    assert world.states() == {"CANCELLED": 1}


async def test_a_schedule_refreshes_what_its_template_still_changes_unless_it_says_otherwise(world: World) -> None:
    world.executor.window = 10
    assert [made.refresh_window_days for made in (await world.create(), await world.create(refresh_window_days=0))] == [
        10,
        0,
    ]
    world.executor.window = 93
    assert (await world.create()).refresh_window_days == 31
    with pytest.raises(errors.NotFound) as caught:
        await world.create(template="nowhere")
    assert caught.value.reason == "TEMPLATE_NOT_FOUND"
    assert len(world.store.schedules) == 3


async def test_an_idempotent_schedule_stays_the_same_when_its_templates_window_changes(world: World) -> None:
    given = {"provider": "gcp", "domain": "cost", "template": "billing", "cron": "0 * * * *"}
    first = await world.calendar.create(ACME, given, "k")
    world.executor.window = 10
    assert await world.calendar.create(ACME, given, "k") == first


async def test_running_now_queues_one_run_for_the_usual_date(world: World) -> None:
    made = await world.create(date_offset_days=2, refresh_window_days=1, parameters='{"a":1}', jitter_seconds=1800)
    run = await world.calendar.run_now(ACME, made.config_id, None)
    [item] = world.items
    assert (run.trigger, item.trigger) == (Trigger.MANUAL, Trigger.MANUAL)
    assert (run.start_date, run.end_date) == (date(2025, 11, 14), date(2025, 11, 15))
    assert (item.run_id, item.parameters, item.not_before) == (run.run_id, '{"a":1}', world.clock())
    assert item.serial_id == made.config_id
    assert stored(world, made) == made
    other = await world.calendar.run_now(ACME, made.config_id, None)
    assert other.run_id != run.run_id


async def test_running_now_with_a_key_is_one_run(world: World) -> None:
    made = await world.create(overlap_policy=Overlap.ALLOW)
    runs = await asyncio.gather(*(world.calendar.run_now(ACME, made.config_id, "k") for _ in range(5)))
    assert len({run.run_id for run in runs}) == len(world.items) == len(world.run_rows) == 1
    assert world.items[0].serial_id == world.items[0].run_id
    again = await world.create()
    assert (await world.calendar.run_now(ACME, again.config_id, "k")).run_id != runs[0].run_id


async def test_a_paused_schedule_may_be_run_now(world: World) -> None:
    made = await world.create(is_active=False)
    assert (await world.calendar.run_now(ACME, made.config_id, None)).state is State.QUEUED


async def test_edits_and_triggers_at_once_neither_lose_nor_double() -> None:
    with caller.bind(Caller(Role.ADMIN, "acme", "key_1")):
        for seed in range(10):
            world = World(faults=StoreFaults(conflict=0.1, lost_reply=0.1), seed=seed)
            world.seed(20, overlap_policy=Overlap.ALLOW)
            ids = [schedule.config_id for schedule in world.store.schedules]
            for _ in range(6):
                later(world, HOUR)
                edits = [
                    world.calendar.update(ACME, config_id, {"cron": f"0 */{1 + world.random.randrange(2)} * * *"})
                    for config_id in world.random.sample(ids, 8)
                ]
                results = await asyncio.gather(*edits, world.trigger(), world.trigger(), return_exceptions=True)
                assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, errors.Error)]
                await world.trigger()
                world.check()
                now = world.clock()
                assert all(row.next_run_time > now for row in world.store.schedules)
            by_config = {config_id: [r for r in world.run_rows if r.config_id == config_id] for config_id in ids}
            # Whatever the cron was, noon plus an even number of hours is an occurrence of both.
            for runs in by_config.values():
                hours = {run.scheduled_for.hour for run in runs}
                assert {14, 16, 18} <= hours
