"""How many statements reservations take: group commit against a twin that sends statements per request.

Both decide the same way, on the same store, in the same run; only who shares a statement differs. Run it alone with
``python -m tests.bench.quota_statements``; ``measure`` is what ``make bench`` calls.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.setup_bigquery_datasets import setup
from libs.bigquery import Warehouse, build_client
from tests.conftest import running_emulator
from tests.support.quota_load import READ, REPLACE, Load, Replica, asks, plant, run_load, tenants

PROJECT = "quota-bench"
REPLICAS = 3
# The twin is given less, or it would not end: its statements grow with the requests. Of the same load there is a pair.
SHAPES = (("group commit", 1_000, 200), ("group commit", 60, 30), ("statement per request", 60, 30))


async def measure(endpoint: str, shapes: Sequence[tuple[str, int, int]] = SHAPES) -> list[dict[str, Any]]:
    """One result per shape (variant, requests, tenants), on a store that is set up."""
    warehouse = Warehouse(build_client(PROJECT, endpoint=endpoint))
    await setup(warehouse, report=lambda line: None)
    results = []
    for number, (variant, requests, count) in enumerate(shapes):
        rows = tenants(count, f"bench_{number}")
        await plant(warehouse, rows)
        replicas = [Replica(PROJECT, endpoint) for _ in range(REPLICAS)]
        by_group = variant == "group commit"
        load = await run_load(
            replicas,
            asks(rows, requests, REPLICAS),
            lambda replica, by_group=by_group: replica.quotas.reserve if by_group else replica.naive.reserve,
        )
        stored = await replicas[0].quotas._store.read([row.tenant_id for row in rows])
        print(f"  {requests:,} requests, {variant}: {load.seconds:.1f} s", file=sys.stderr, flush=True)
        exact = all(
            row.pipelines_run_today == len(row.grants) == load.granted[tenant] <= row.limits.concurrent
            for tenant, row in stored.items()
        )
        results.append(_result(variant, requests, count, load, exact=exact))
        for replica in replicas:
            await replica.close()
    warehouse.close()
    return results


def _result(variant: str, requests: int, count: int, load: Load, *, exact: bool) -> dict[str, Any]:
    statements = load.statements[READ] + load.statements[REPLACE]
    return {
        "variant": variant,
        "requests": requests,
        "tenants": count,
        "replicas": REPLICAS,
        "granted": sum(load.granted.values()),
        "refused": sum(load.refused.values()),
        "reads": load.statements[READ],
        "updates": load.statements[REPLACE],
        "statements_per_request": round(statements / requests, 3),
        "seconds": round(load.seconds, 2),
        "p50_seconds": round(statistics.median(load.latencies), 2),
        "p95_seconds": round(load.latencies[int(len(load.latencies) * 0.95) - 1], 2),
        "exact": exact,
    }


def show(results: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Prints the results as a table."""
    table = Table(title="Reservations: BigQuery statements by variant")
    for column in results[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "variant" else "right")
    for result in results:
        table.add_row(*(str(value) for value in result.values()))
    (console or Console(width=160)).print(table)


@contextmanager
def emulator() -> Iterator[str]:
    """The REST address of an emulator of its own."""
    with tempfile.TemporaryDirectory() as folder, running_emulator(Path(folder)) as (found, _):
        yield found.rest


def main() -> None:
    """Measures on an emulator of its own; the table goes to stderr, the figures as JSON to stdout."""
    with emulator() as endpoint:
        results = asyncio.run(measure(endpoint))
    show(results, Console(width=160, stderr=True))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
