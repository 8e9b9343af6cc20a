"""How many statements a trigger and a drain take: everything at once, against a twin that goes row by row.

Both decide the same way, with the same SQL, on the same store, in the same run; only how many rows share a statement
differs. Runs end in the moment they start, so that what is measured is the scheduler. Run it alone with
``python -m tests.bench.scheduler_statements``; ``measure`` is what ``make bench`` may call. ``BENCH_CONFIGS`` (a list,
default 10,100,1000,10000) sets the sizes. The twin stands on the same tables each time; of more schedules than
``BENCH_TWIN`` (default 10) it does some only (column ``rows``), or it would not end: its statements grow with them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.setup_bigquery_datasets import setup
from libs.bigquery import Sql, Warehouse, build_client, rows_param
from libs.tenancy import TenantId
from services.scheduler import occurrences, store
from services.scheduler.domain import Overlap, State, judge
from tests.bench.quota_statements import emulator
from tests.support.scheduler import Quota
from tests.support.scheduler_suite import schedule
from tests.support.scheduler_world import World

PROJECT = "scheduler-bench"
SIZES = (10, 100, 1_000, 10_000)
TWIN = 10
_SAMPLE = 10
TENANTS = 50
_CHUNK = 2_000
_TABLES = ("tenant_pipeline_configs", "scheduled_pipeline_runs", "pipeline_execution_queue")


class BenchStore(store.BigQuerySchedules, store.BigQueryQueue, store.BigQueryRecords):
    """The real store as one object."""


async def plant(warehouse: Warehouse, world: World, count: int) -> None:
    """An empty store but for ``count`` schedules of some tenants, all due now."""
    for table in _TABLES:
        clear = Sql(f"bench/clear_{table}.sql", f"DELETE FROM {table} WHERE TRUE")
        await warehouse.execute(clear, dataset="tenants", conflict_retries=5)
    due = world.clock()
    for first in range(0, count, _CHUNK):
        rows = [
            store._to_json(
                schedule(
                    tenant_id=TenantId(f"bench_{number % TENANTS:02}"),
                    next_run_time=due,
                    overlap_policy=Overlap.ALLOW,
                )
            )
            for number in range(first, min(count, first + _CHUNK))
        ]
        await world.store._do.execute("insert_schedule", rows=rows_param(rows))


async def trigger_by_row(world: World, rows: int) -> None:
    """The twin: each due schedule is fired by itself."""
    now = world.clock()
    for due in await world.store.due(now, rows):
        await world.store.fire([occurrences.fire(due, now, world.policy)], uuid.uuid4().hex, now)


async def drain_by_row(world: World) -> None:
    """The twin: each row is claimed, started and settled by itself."""
    while True:
        now = world.clock()
        backlog = await world.store.backlog(now)
        if not any(each.ready for each in backlog):
            return
        allowances = await world.tenants.allowances([each.tenant_id for each in backlog])
        slots = {tenant_id: allowance.slots for tenant_id, allowance in allowances.items()}
        claim = {"lease_id": uuid.uuid4().hex, "now": now, "until": now + world.policy.lease, "asked": now}
        for item in await world.store.claim(slots, 1, **claim):
            after = judge(item, await world.executor.start(item), now, 0.5, world.policy)
            await world.store.apply([after], uuid.uuid4().hex, now)


async def measure(endpoint: str, sizes: Sequence[int] = SIZES, twin: int = TWIN) -> list[dict[str, Any]]:
    """One result per size and variant, on an emulator at ``endpoint``."""
    warehouse = Warehouse(build_client(PROJECT, endpoint=endpoint))
    await setup(warehouse, report=lambda line: None)
    results = []
    for size in sizes:
        for by_row in (False, True):
            rows = _SAMPLE if by_row and size > twin else size
            result = await _measure(warehouse, size, rows, by_row=by_row)
            spent = f"trigger {result['trigger_seconds']} s, drain {result['drain_seconds']} s"
            print(f"  {size:,} schedules, {result['variant']}: {spent}", file=sys.stderr, flush=True)
            results.append(result)
    warehouse.close()
    return results


async def _measure(warehouse: Warehouse, size: int, rows: int, *, by_row: bool) -> dict[str, Any]:
    world = World(store=BenchStore(warehouse))
    for number in range(TENANTS):
        world.tenants.quotas[f"bench_{number:02}"] = Quota(concurrent=size)
    world.at_once()
    await plant(warehouse, world, size)
    result: dict[str, Any] = {"variant": "row by row" if by_row else "all at once", "configs": size, "rows": rows}
    works: dict[str, Callable[[], Awaitable[Any]]] = {
        "trigger": (lambda: trigger_by_row(world, rows)) if by_row else world.trigger,
        "drain": (lambda: drain_by_row(world)) if by_row else (lambda: world.poll(100_000, batch=1_000)),
    }
    for name, work in works.items():
        warehouse.statements.clear()
        began = time.perf_counter()
        await work()
        seconds, statements = time.perf_counter() - began, sum(warehouse.statements.values())
        result |= {
            f"{name}_statements": statements,
            f"{name}_seconds": round(seconds, 2),
            f"{name}_ms_per_row": round(1_000 * seconds / rows, 1),
        }
    result["exact"] = await _exact(warehouse, world, rows)
    return result


async def _exact(warehouse: Warehouse, world: World, rows: int) -> bool:
    """True if each occurrence is one run, was executed once and has ended well, and the queue is empty."""
    count = Sql(
        "bench/count_runs.sql",
        "SELECT COUNT(*) AS n, COUNT(DISTINCT r.run_id) AS ids, COUNTIF(r.state = @state) AS done "
        "FROM scheduled_pipeline_runs AS r",
    )
    [row] = await warehouse.query(count, dataset="tenants", params={"state": State.COMPLETED.value})
    executed = set(world.executor.executed.values())
    empty = not await world.store.backlog(world.clock())
    return (row["n"], row["ids"], row["done"]) == (rows, rows, rows) and executed == {1} and empty


def show(results: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Prints the results as a table."""
    table = Table(title="Trigger and drain: BigQuery statements by variant")
    for column in results[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "variant" else "right")
    for result in results:
        table.add_row(*(str(value) for value in result.values()))
    (console or Console(width=140)).print(table)


def main() -> None:
    """Measures on an emulator of its own; the table goes to stderr, the figures as JSON to stdout."""
    sizes = [int(text) for text in os.environ.get("BENCH_CONFIGS", ",".join(map(str, SIZES))).split(",")]
    twin = int(os.environ.get("BENCH_TWIN", str(TWIN)))
    with emulator() as endpoint:
        results = asyncio.run(measure(endpoint, sizes, twin))
    show(results, Console(width=140, stderr=True))
    print(json.dumps(results))
    sys.exit(0 if all(result["exact"] for result in results) else 1)


if __name__ == "__main__":
    main()
