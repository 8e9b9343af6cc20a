"""The queue's loop: draining, fairness, quotas, retries, cancels, fencing; alone, at once, and with faults."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from libs import errors
from services.scheduler.domain import Attempt, AttemptStatus, Item, Pick, State, Stop
from tests.support.scheduler import Quota, StoreFaults
from tests.support.scheduler_suite import queued
from tests.support.scheduler_world import HOUR, World, later


def put(world: World, count: int, tenant_id: str = "acme", **values: Any) -> list[Item]:
    """Rows that are ready now, the first one the oldest."""
    now = world.clock()
    pairs = [
        queued(
            tenant_id,
            **{
                "not_before": now,
                "created_at": now,
                "enqueued_at": now,
                "rank_at": now + timedelta(seconds=n) - values.get("priority", 5) * world.policy.ageing,
                "expires_at": now + world.policy.max_age,
                **values,
            },
        )
        for n in range(count)
    ]
    world.store.run_rows.extend(run for run, _ in pairs)
    world.store.queue_rows.extend(item for _, item in pairs)
    return [item for _, item in pairs]


async def test_it_drains_the_queue_within_its_time(world: World) -> None:
    put(world, 7)
    world.tenants.quotas["acme"] = Quota(concurrent=3)
    world.at_once()
    done = await world.poll(240)
    assert (done.started, done.completed, done.running, done.queued) == (7, 7, 0, 0)
    assert world.states() == {"COMPLETED": 7}
    assert world.items == []
    world.check()


async def test_it_waits_for_what_runs_and_settles_it(world: World) -> None:
    put(world, 2)

    async def sleep(seconds: float) -> None:
        await world.sleep(seconds)
        if world.clock.time.second > 20:
            world.finish()

    done = await world.loop(sleep=sleep).process(timedelta(seconds=240))
    assert (done.started, done.completed, done.running) == (2, 2, 0)


async def test_what_still_runs_when_the_time_is_up_is_the_next_calls(world: World) -> None:
    put(world, 1)
    done = await world.poll(30)
    assert (done.started, done.completed, done.running) == (1, 0, 1)
    assert world.states() == {"CLAIMED": 1}
    world.finish()
    done = await world.poll(30)
    assert (done.started, done.completed, done.running) == (0, 1, 0)


async def test_a_process_that_is_ending_answers_after_its_round(world: World) -> None:
    put(world, 1)

    async def sleep(seconds: float) -> None:
        await loop.drain(15)
        await world.sleep(seconds)

    began = world.clock()
    loop = world.loop(sleep=sleep)
    done = await loop.process(timedelta(seconds=240))
    assert (done.started, done.running) == (1, 1)
    assert world.clock() - began < timedelta(seconds=5)
    world.finish()
    assert (await world.poll(30)).completed == 1


async def test_a_round_that_outlasts_the_time_to_end_is_left_to_the_next_call(world: World) -> None:
    put(world, 3)
    world.tenants.quotas["acme"] = Quota(concurrent=3)
    waiting, start = asyncio.Event(), world.executor.start

    async def never_answers(item: Item) -> Attempt:
        await start(item)
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.executor.start = never_answers  # type: ignore[method-assign]
    loop = world.loop()
    call = asyncio.create_task(loop.process(timedelta(seconds=240)))
    await waiting.wait()
    await loop.drain(0.1)
    done = await asyncio.wait_for(call, 10)
    assert (done.started, done.completed) == (0, 0)
    world.executor.start = start  # type: ignore[method-assign]
    world.finish()
    await world.poll(240)
    assert world.states() == {"COMPLETED": 3}
    world.check()


async def test_a_call_whose_caller_is_gone_ends_at_once(world: World) -> None:
    put(world, 1)
    waiting = asyncio.Event()

    async def never_answers(item: Item) -> Attempt:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.executor.start = never_answers  # type: ignore[method-assign]
    call = asyncio.create_task(world.loop().process(timedelta(seconds=240)))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_budget_of_nothing_is_one_round(world: World) -> None:
    put(world, 500)
    world.tenants.quotas["acme"] = Quota(concurrent=500)
    assert (await world.poll(0)).started == 100
    assert world.clock() == World().clock()


async def test_an_empty_queue_costs_two_reads_and_one_question(world: World) -> None:
    await world.poll(240)
    assert world.store.statements == {"read_items": 1, "read_backlog": 2}


@pytest.mark.parametrize("count", [1, 100])
async def test_the_number_of_statements_does_not_depend_on_the_number_of_rows(world: World, count: int) -> None:
    put(world, count)
    world.tenants.quotas["acme"] = Quota(concurrent=1000)
    world.at_once()
    await world.poll(0)
    assert world.store.statements == {"read_items": 2, "read_backlog": 2, "claim_runs": 1, "apply_items": 1}


async def test_a_tenant_with_five_thousand_rows_does_not_keep_another_waiting(world: World) -> None:
    put(world, 5000, "aaaa", priority=10)
    [small] = put(world, 1, "bbbb", priority=1)
    world.tenants.quotas["aaaa"] = Quota(concurrent=1)
    world.tenants.quotas["bbbb"] = Quota(concurrent=1)
    done = await world.poll(0)
    assert done.started == 2
    assert small.run_id in world.executor.order


async def test_tenants_take_turns(world: World) -> None:
    for tenant_id, count in (("aaaa", 50), ("bbbb", 50), ("cccc", 2)):
        put(world, count, tenant_id, priority=10 if tenant_id == "aaaa" else 1)
        world.tenants.quotas[tenant_id] = Quota(concurrent=50)
    await world.poll(0, batch=9)
    of = {item.run_id: item.tenant_id for item in world.items}
    assert Counter(of[run_id] for run_id in world.executor.order) == {"aaaa": 4, "bbbb": 3, "cccc": 2}


async def test_within_a_tenant_priority_goes_first_then_age(world: World) -> None:
    low = put(world, 2, priority=1)
    high = put(world, 2, priority=9)
    world.tenants.quotas["acme"] = Quota(concurrent=1)
    world.at_once()
    await world.poll(240)
    assert world.executor.order == [item.run_id for item in (*high, *low)]


async def test_age_keeps_low_priority_from_starving(world: World) -> None:
    [old] = put(world, 1, priority=1)
    world.tenants.quotas["acme"] = Quota(concurrent=1)
    world.at_once()
    for _ in range(60):
        # More urgent work comes in all the time, as much as there is room for.
        put(world, 1, priority=10)
        await world.poll(0)
        if old.run_id in world.executor.order:
            break
        later(world, HOUR)
    assert old.run_id in world.executor.order
    waited = 10 * world.policy.ageing
    assert world.clock() - old.created_at <= waited


async def test_a_tenant_at_its_limit_blocks_nobody_and_everything_else_runs(world: World) -> None:
    put(world, 20, "full", priority=10)
    put(world, 20, "free", priority=1)
    world.tenants.quotas["full"] = Quota(concurrent=2, manual=2)
    world.tenants.quotas["free"] = Quota(concurrent=20)
    done = await world.poll(0)
    assert done.started == 20
    assert {world.executor.tenant_of[run_id] for run_id in world.executor.order} == {"free"}


async def test_it_waits_for_slots_that_manual_runs_take(world: World) -> None:
    put(world, 1)
    quota = world.tenants.quotas["acme"] = Quota(concurrent=1, manual=1)
    world.at_once()

    async def sleep(seconds: float) -> None:
        await world.sleep(seconds)
        quota.manual = 0

    done = await world.loop(sleep=sleep).process(timedelta(seconds=60))
    assert done.completed == 1


async def test_out_of_daily_quota_is_deferred_and_runs_in_the_next_window(world: World) -> None:
    put(world, 5)
    quota = world.tenants.quotas["acme"] = Quota(concurrent=9, daily=2)
    world.at_once()
    done = await world.poll(60)
    assert (done.completed, done.deferred, done.queued) == (2, 3, 3)
    assert {item.not_before for item in world.items} == {world.tenants.window()}
    assert world.states() == {"COMPLETED": 2, "DEFERRED": 3}
    later(world, timedelta(days=1))
    quota.used_today = 0
    done = await world.poll(60)
    assert (done.completed, done.deferred) == (2, 1)
    assert world.items[0].not_before == world.tenants.window()
    assert (await world.poll(60)).deferred == 0


async def test_a_bigger_plan_lets_deferred_runs_go_at_once(world: World) -> None:
    put(world, 3)
    quota = world.tenants.quotas["acme"] = Quota(daily=1)
    world.at_once()
    await world.poll(60)
    assert world.states() == {"COMPLETED": 1, "DEFERRED": 2}
    quota.daily = 10
    assert (await world.poll(60)).completed == 2


async def test_too_old_is_skipped_visibly(world: World) -> None:
    [item] = put(world, 1)
    world.tenants.quotas["acme"] = Quota(active=False)
    assert (await world.poll(0)).skipped == 0
    later(world, world.policy.max_age)
    done = await world.poll(0)
    assert (done.skipped, done.queued) == (1, 0)
    run = world.run_of(item.run_id)
    assert (run.state, run.reason, run.ended_at) == (State.SKIPPED, "TOO_OLD", world.clock())


async def test_a_suspended_tenants_rows_wait(world: World) -> None:
    put(world, 2)
    quota = world.tenants.quotas["acme"] = Quota(active=False)
    done = await world.poll(240)
    assert (done.started, done.queued) == (0, 2)
    quota.active = True
    world.at_once()
    assert (await world.poll(240)).completed == 2


async def test_a_retry_waits_and_then_ends_as_a_dead_letter(world: World) -> None:
    [item] = put(world, 1, max_retries=2)
    world.at_once(AttemptStatus.FAILED, retryable=True)
    counts = []
    for _ in range(3):
        done = await world.poll(0)
        counts.append((done.started, done.failed, done.retried, done.dead_letters))
        assert (await world.poll(0)).started == 0
        later(world, HOUR)
    assert counts == [(1, 1, 1, 0), (1, 1, 1, 0), (1, 1, 0, 1)]
    [letter] = world.items
    assert (letter.state, letter.reason, letter.retry_count) == (State.DEAD_LETTER, "SCRIPTED", 2)
    assert sorted(world.executor.executed) == [(item.run_id, n) for n in (1, 2, 3)]
    world.check()


async def test_a_terminal_error_is_a_dead_letter_at_once_and_may_be_queued_again(world: World) -> None:
    [item] = put(world, 1)
    world.at_once(AttemptStatus.FAILED)
    done = await world.poll(0)
    assert (done.failed, done.retried, done.dead_letters) == (1, 0, 1)
    again = await world.runs.requeue(item.run_id)
    assert again.state is State.QUEUED
    assert await world.runs.requeue(item.run_id) == world.items[0]
    world.at_once()
    assert (await world.poll(0)).completed == 1
    assert world.states() == {"COMPLETED": 1}
    with pytest.raises(errors.NotFound):
        await world.runs.requeue(item.run_id)


async def test_a_refused_start_is_no_attempt(world: World) -> None:
    put(world, 2)
    world.executor.script = lambda item: errors.FailedPrecondition("CREDENTIAL_INVALID", "Store another one.")
    done = await world.poll(0)
    assert (done.started, done.failed, done.dead_letters) == (0, 0, 2)
    assert {(item.reason, item.error) for item in world.items} == {("CREDENTIAL_INVALID", "Store another one.")}


async def test_a_full_executor_is_asked_for_less_and_gets_everything_in_the_end(world: World) -> None:
    put(world, 40)
    world.tenants.quotas["acme"] = Quota(concurrent=40)
    world.executor.capacity = 4

    async def sleep(seconds: float) -> None:
        await world.sleep(seconds)
        world.finish()

    done = await world.loop(sleep=sleep, batch=32).process(timedelta(seconds=240))
    assert (done.completed, done.queued) == (40, 0)
    assert all(count == 1 for count in world.executor.executed.values())
    assert sum(world.executor.starts.values()) < 40 * 4
    world.check()


async def test_a_start_whose_reply_is_lost_is_found_and_not_repeated(world: World) -> None:
    put(world, 3)
    world.executor.lost_reply = 1.0
    done = await world.poll(0)
    assert (done.started, done.running) == (0, 3)
    done = await world.poll(0)
    assert done.started == 3
    world.finish()
    assert (await world.poll(0)).completed == 3
    assert all(count == 1 for count in world.executor.executed.values())
    world.check()


async def test_a_poller_that_dies_between_claim_and_start_delays_its_rows_by_a_lease(world: World) -> None:
    put(world, 3)
    now = world.clock()
    await world.store.claim({"acme": 3}, 3, lease_id="gone", now=now, until=now + world.policy.lease, asked=now)
    assert (await world.poll(0)).started == 0
    later(world, world.policy.lease)
    world.at_once()
    done = await world.poll(60)
    assert done.completed == 3
    assert all(item.retry_count == 0 for item in world.items)


async def test_a_worker_that_slept_past_its_claim_changes_nothing(world: World) -> None:
    """Its late completion and its late start's record are refused: somebody else has finished the run."""
    [item] = put(world, 1)
    now = world.clock()
    [slept] = await world.store.claim(
        {"acme": 1}, 1, lease_id="sleeper", now=now, until=now + world.policy.lease, asked=now
    )
    later(world, world.policy.lease)
    world.at_once(AttemptStatus.FAILED)
    await world.poll(60)
    assert world.states() == {"DEAD_LETTER": 1}
    before = world.run_of(item.run_id)
    for late in (
        replace(slept, state=State.COMPLETED, reason="PUBLISHED"),
        replace(slept, started_at=now, lease_id=None),
        replace(slept, state=State.QUEUED),
    ):
        assert await world.store.apply([late], "late", world.clock()) == set()
    assert world.run_of(item.run_id) == before
    # Its late start answers with the attempt that there is: nothing is executed twice.
    assert (await world.executor.start(slept)).status is AttemptStatus.FAILED
    assert world.executor.executed[(item.run_id, 1)] == 1


async def test_a_worker_that_wakes_up_after_its_lease_starts_nothing(world: World) -> None:
    put(world, 2)
    claim = world.store.claim

    async def slow_claim(*args: Any, **values: Any) -> Any:
        found = await claim(*args, **values)
        later(world, world.policy.lease)
        return found

    world.store.claim = slow_claim
    done = await world.poll(0)
    assert done.started == 0 and not world.executor.starts
    assert world.states() == {"QUEUED": 2}
    world.check()


async def test_an_attempt_that_the_executor_lost_runs_again(world: World) -> None:
    [item] = put(world, 1)
    await world.poll(0)
    del world.executor.rows[(item.run_id, 1)]
    assert (await world.poll(0)).running == 1
    later(world, world.policy.lost_after)
    world.at_once()
    done = await world.poll(60)
    assert done.completed == 1
    assert world.run_of(item.run_id).attempt == 2


async def test_trouble_after_a_success_never_runs_the_data_again(world: World) -> None:
    put(world, 5)
    world.tenants.quotas["acme"] = Quota(concurrent=5)
    world.at_once()
    apply = world.store.apply
    trouble = [True] * 3

    async def failing(*args: Any, **values: Any) -> Any:
        if trouble:
            trouble.pop()
            raise errors.Unavailable("STORE_UNAVAILABLE", "The fake is down.")
        return await apply(*args, **values)

    world.store.apply = failing
    await world.poll(240)
    assert world.states() == {"COMPLETED": 5}
    assert all(count == 1 for count in world.executor.executed.values())


async def test_neighbours_that_stay_away_are_an_error_and_nothing_is_lost(world: World) -> None:
    put(world, 2)
    world.tenants.down = True
    with pytest.raises(errors.Unavailable):
        await world.poll(240)
    world.tenants.down = False
    world.executor.down = True
    with pytest.raises(errors.Unavailable):
        await world.poll(10)
    world.executor.down = False
    later(world, world.policy.lease)
    world.at_once()
    assert (await world.poll(240)).completed == 2
    world.check()


async def test_eight_pollers_start_a_thousand_rows_once_each() -> None:
    world = World(faults=StoreFaults(conflict=0.1, lost_reply=0.05, unavailable=0.02), seed=8)
    plans = (10, 3, 1)
    for number in range(60):
        tenant_id = f"tenant_{number:02}"
        world.tenants.quotas[tenant_id] = Quota(concurrent=plans[number % 3])
        put(world, 400 if number == 0 else 10 + (number % 2), tenant_id, priority=10 if number == 0 else 5)
    total = len(world.items)
    assert total >= 1000
    most: Counter[str] = Counter()

    def starting(item: Item) -> Attempt | errors.Error | None:
        most[item.tenant_id] = max(most[item.tenant_id], world.tenants.in_use(item.tenant_id))
        return None

    world.executor.script = starting

    async def sleep(seconds: float) -> None:
        await world.sleep(seconds)
        for key in world.executor.running()[::2]:
            world.executor.end(key, AttemptStatus.COMPLETED)

    async def poller(number: int) -> None:
        while any(not run.state.ended for run in world.store.run_rows):
            try:
                await world.loop(sleep=sleep, batch=25).process(timedelta(seconds=240))
            except errors.Error:
                await sleep(1)

    await asyncio.gather(*(poller(number) for number in range(8)))
    assert world.states() == {"COMPLETED": total}
    assert len(world.executor.executed) == total
    assert set(world.executor.executed.values()) == {1}
    for number in range(60):
        assert most[f"tenant_{number:02}"] <= plans[number % 3]
    world.check()


async def test_pollers_that_are_killed_anywhere_lose_nothing() -> None:
    for seed in range(6):
        world = World(faults=StoreFaults(lost_reply=0.1), seed=seed)
        world.tenants.quotas["acme"] = Quota(concurrent=10)
        put(world, 40)
        world.at_once()
        for _ in range(60):
            task = asyncio.create_task(world.poll(240))
            for _ in range(world.random.randrange(60)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            world.clock.advance(seconds=20)
            world.check()
        await world.poll(240)
        assert world.states() == {"COMPLETED": 40}
        assert set(world.executor.executed.values()) == {1}


# ---------------------------------------------------------------------- cancel


async def test_cancelling_what_waits(world: World) -> None:
    [item] = put(world, 1)
    for _ in range(2):
        run = await world.runs.cancel(item.tenant_id, item.run_id)
        assert run.state is State.CANCELLED
    assert world.items == []
    assert (await world.poll(0)).started == 0
    assert [record.action for record in world.audit.records] == ["run.cancel"]


async def test_cancelling_what_runs(world: World) -> None:
    [item] = put(world, 1)
    await world.poll(0)
    run = await world.runs.cancel(item.tenant_id, item.run_id)
    assert (run.state, run.reason) == (State.CLAIMED, "CANCEL_REQUESTED")
    assert world.executor.cancels == [item.run_id]
    world.finish(AttemptStatus.CANCELLED)
    await world.poll(0)
    assert world.states() == {"CANCELLED": 1}


async def test_a_run_cancelled_between_claim_and_start_is_stopped_once_it_runs(world: World) -> None:
    [item] = put(world, 1)
    start = world.executor.start

    async def cancelled_meanwhile(claimed: Item) -> Attempt:
        await world.runs.cancel(item.tenant_id, item.run_id)
        return await start(claimed)

    world.executor.start = cancelled_meanwhile  # type: ignore[method-assign]
    await world.poll(0)
    [row] = world.items
    assert (row.state, row.stop, row.started_at) == (State.CLAIMED, Stop.NOW, None)
    await world.poll(0)
    assert world.executor.running() == [(item.run_id, 1)]
    world.finish(AttemptStatus.CANCELLED)
    await world.poll(0)
    assert world.states() == {"CANCELLED": 1}


async def test_a_cancelled_run_that_fails_first_is_not_tried_again(world: World) -> None:
    [item] = put(world, 1)
    await world.poll(0)
    await world.runs.cancel(item.tenant_id, item.run_id)
    world.finish(AttemptStatus.FAILED, retryable=True)
    await world.poll(0)
    assert world.states() == {"CANCELLED": 1}


async def test_a_run_that_was_faster_than_its_cancellation_is_completed(world: World) -> None:
    [item] = put(world, 1)
    await world.poll(0)
    world.finish()
    await world.runs.cancel(item.tenant_id, item.run_id)
    await world.poll(0)
    assert world.states() == {"COMPLETED": 1}
    with pytest.raises(errors.FailedPrecondition) as caught:
        await world.runs.cancel(item.tenant_id, item.run_id)
    assert caught.value.reason == "RUN_ENDED"


async def test_cancelling_a_dead_letter_and_a_deferred_run(world: World) -> None:
    for state in (State.DEAD_LETTER, State.DEFERRED):
        [item] = put(world, 1, state=state)
        assert (await world.runs.cancel(item.tenant_id, item.run_id)).state is State.CANCELLED
    assert world.items == []


async def test_another_tenants_run_does_not_exist(world: World) -> None:
    [item] = put(world, 1, "other")
    for tenant_id, run_id in (("acme", item.run_id), ("acme", "absent")):
        with pytest.raises(errors.NotFound) as caught:
            await world.runs.cancel(type(item.tenant_id)(tenant_id), run_id)
        assert caught.value.reason == "RUN_NOT_FOUND"
    assert len(await world.store.items(Pick())) == 1
