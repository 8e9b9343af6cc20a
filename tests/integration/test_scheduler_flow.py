"""Trigger and loop on the BigQuery emulator: at once, killed, drained; the executor and tenant are fakes."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from libs import caller
from libs.bigquery import Sql, Warehouse, rows_param
from libs.errors import Error
from libs.tenancy import Caller, Role, TenantId
from services.scheduler import store
from services.scheduler.domain import AttemptStatus, Overlap, Pick, State
from services.scheduler.trigger import Fired
from tests.conftest import Emulator
from tests.integration.test_scheduler_store import TABLES, BigQueryStore
from tests.support.scheduler import Quota
from tests.support.scheduler_suite import schedule
from tests.support.scheduler_world import HOUR, World

ROOT = Path(__file__).parents[2]
RUNS = Sql(
    "test/runs.sql",
    "SELECT r.run_id AS run_id, r.state AS state, r.config_id AS config_id FROM scheduled_pipeline_runs AS r",
)


@pytest.fixture
async def world(central: Warehouse) -> AsyncIterator[World]:
    """The use cases on the emulator's store, empty."""
    for table in TABLES:
        clear = Sql(f"test/clear_{table}.sql", f"DELETE FROM {table} WHERE TRUE")
        await central.execute(clear, dataset="tenants", conflict_retries=5)
    with caller.bind(Caller(Role.ADMIN, "acme", "key_1")):
        yield World(store=BigQueryStore(central))


async def fill(world: World, count: int, **values: Any) -> None:
    """Schedules that are due now, written with one statement."""
    due = world.clock()
    rows = [schedule(next_run_time=due, overlap_policy=Overlap.ALLOW, **values) for _ in range(count)]
    text = rows_param(store._to_json(row) for row in rows)
    await world.store._do.execute("insert_schedule", rows=text)


async def stored(central: Warehouse) -> list[dict[str, Any]]:
    return await central.query(RUNS, dataset="tenants")


async def test_triggers_at_once_some_killed_make_each_run_once(world: World, central: Warehouse) -> None:
    await fill(world, 60)
    rng = random.Random(1)
    tasks = [asyncio.create_task(world.trigger()) for _ in range(6)]
    for task in tasks[::2]:
        await asyncio.sleep(rng.random())
        # The statement it has sent goes on at the server: nobody takes it back.
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [result for result in results if isinstance(result, Error)]
    await world.trigger()
    runs = await stored(central)
    items = await world.store.items(Pick())
    assert len(runs) == len(items) == len({run["run_id"] for run in runs}) == 60
    assert {item.run_id for item in items} == {run["run_id"] for run in runs}
    assert sum(each.count for each in await world.reports.invariants()) == 0


CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from datetime import datetime, timedelta
    from libs.bigquery import Warehouse, build_client
    from services.scheduler.domain import Policy
    from services.scheduler.store import BigQuerySchedules
    from services.scheduler.trigger import Triggers

    rest, project, now = sys.argv[1:]
    warehouse = Warehouse(build_client(project, endpoint=rest))
    triggers = Triggers(BigQuerySchedules(warehouse), now=lambda: datetime.fromisoformat(now), policy=Policy())
    print("ready", flush=True)
    sys.stdin.readline()
    print(asyncio.run(triggers.fire_due(timedelta(seconds=60))), flush=True)
    """
)


def _three_children(command: list[str], rng: random.Random) -> None:
    """Starts three triggers at once, kills two of them at a random moment, lets one end."""
    children = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        for child in children[:2]:
            # Not a wait for anything: where in its work the kill hits is the point.
            time.sleep(rng.random() * 0.6)
            child.kill()
        children[2].wait(120)
    finally:
        for child in children:
            child.kill()
            child.communicate()


async def test_processes_killed_with_signal_9_lose_and_double_nothing(
    world: World, central: Warehouse, bigquery_emulator: Emulator, project_id: str
) -> None:
    rng = random.Random(9)
    for turn in range(2):
        await fill(world, 40)
        command = [sys.executable, "-c", CHILD, bigquery_emulator.rest, project_id, world.clock().isoformat()]
        await asyncio.to_thread(_three_children, command, rng)
        # A killed client's transaction may still commit afterwards: the next trigger settles it either way.
        await world.trigger()
        runs = await stored(central)
        assert len(runs) == len({run["run_id"] for run in runs}) == 40 * (turn + 1)
        items = await world.store.items(Pick())
        assert {item.run_id for item in items} == {run["run_id"] for run in runs}


async def test_a_trigger_costs_the_same_statements_however_much_is_due(world: World, central: Warehouse) -> None:
    counts = []
    for count in (2, 50):
        await fill(world, count)
        central.statements.clear()
        assert await world.trigger() == Fired(count, count)
        counts.append(dict(central.statements))
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) == 2


async def test_pollers_at_once_drain_the_queue_fairly(world: World, central: Warehouse) -> None:
    plans = {"aaaa": 1, "bbbb": 3, "cccc": 10}
    for tenant_id, concurrent in plans.items():
        world.tenants.quotas[tenant_id] = Quota(concurrent=concurrent)
        await fill(world, 4 if tenant_id == "aaaa" else 12, tenant_id=TenantId(tenant_id))
    await world.trigger()
    most: Counter[str] = Counter()

    def starting(item: Any) -> None:
        most[item.tenant_id] = max(most[item.tenant_id], world.tenants.in_use(item.tenant_id))

    world.executor.script = starting

    async def sleep(seconds: float) -> None:
        await world.sleep(seconds)
        for key in world.executor.running():
            world.executor.end(key, AttemptStatus.COMPLETED)

    async def poller() -> None:
        for _ in range(10):
            try:
                done = await world.loop(sleep=sleep, batch=8).process(timedelta(seconds=600))
            except Error:
                continue
            if not done.queued + done.running:
                return

    await asyncio.gather(*(poller() for _ in range(3)))
    states = Counter(run["state"] for run in await stored(central))
    assert states == {"COMPLETED": 28}
    assert len(world.executor.executed) == 28 and set(world.executor.executed.values()) == {1}
    assert all(most[tenant_id] <= concurrent for tenant_id, concurrent in plans.items())
    assert await world.store.items(Pick()) == []
    assert sum(each.count for each in await world.reports.invariants()) == 0


async def test_a_life_of_schedules_on_the_real_store(world: World, central: Warehouse) -> None:
    """Created, edited, triggered, run, failed, requeued, cancelled, backfilled, deleted, cleaned."""
    key = uuid.uuid4().hex
    made = await world.calendar.create(
        TenantId("acme"), {"provider": "gcp", "domain": "cost", "template": "billing", "cron": "0 * * * *"}, key
    )
    again = await world.calendar.create(
        TenantId("acme"), {"provider": "gcp", "domain": "cost", "template": "billing", "cron": "0 * * * *"}, key
    )
    assert again == made
    edited = await world.calendar.update(made.tenant_id, made.config_id, {"cron": "0 */2 * * *", "priority": 9})
    assert edited.next_run_time == made.next_run_time + HOUR
    world.clock.advance(2 * HOUR)
    assert (await world.trigger()).queued == 1
    world.at_once(AttemptStatus.FAILED)
    assert (await world.poll()).dead_letters == 1
    [letter] = await world.runs.dead_letters(10, None)
    assert (await world.runs.requeue(letter.run_id)).state is State.QUEUED
    world.at_once()
    assert (await world.poll()).completed == 1
    run = await world.calendar.run_now(made.tenant_id, made.config_id, "now")
    assert (await world.calendar.run_now(made.tenant_id, made.config_id, "now")).run_id == run.run_id
    assert (await world.runs.cancel(made.tenant_id, run.run_id)).state is State.CANCELLED
    values = {"provider": "gcp", "domain": "cost", "template": "billing", "parameters": None}
    first, last = made.created_at.date() - timedelta(days=9), made.created_at.date()
    backfill = await world.backfills.create(made.tenant_id, values, first, last, None)
    assert (await world.backfills.cancel(made.tenant_id, backfill.backfill_id)).failed_count == 10
    await world.calendar.delete(made.tenant_id, made.config_id)
    assert await world.calendar.list(made.tenant_id, 10, None) == []
    assert sum(each.count for each in await world.reports.invariants()) == 0
    world.clock.advance(timedelta(days=91))
    assert (await world.housekeeping.reset()).deleted == 2 + 10 + 1 + 1
    assert await stored(central) == []
