"""Measures a stack of its own: an authenticated read through the gateway, and a run over many rows; then the scheduler.

Prints two tables; nothing is asserted, since figures of two machines do not compare. ``BENCH_ROWS`` sets the rows.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud import bigquery
from rich.console import Console
from rich.table import Table

from tests.bench import scheduler_statements
from tests.bench.quota_statements import emulator
from tests.support.billing import schema
from tests.support.stack import Stack, running, source_totals

SECONDS, CONNECTIONS = 5.0, 32
DATE = "2025-06-15"
DATASET, TABLE = "exports", "gcp_billing_export_v1_BENCH0_000000_000000"


async def read_rate(stack: Stack, connections: int) -> tuple[float, float, float]:
    """Reads a second through the gateway, with p50 and p99 in milliseconds; the admin key, which has no rate limit."""
    took: list[float] = []
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(
        base_url=stack.rest, headers={"X-API-Key": stack.admin_api_key}, limits=limits
    ) as http:
        end = time.perf_counter() + SECONDS

        async def reader() -> None:
            while (began := time.perf_counter()) < end:
                answer = await http.get("/api/v1/pipelines/templates")
                assert answer.status_code == 200, answer.text
                took.append(time.perf_counter() - began)

        await asyncio.gather(*(reader() for _ in range(connections)))
    took.sort()
    return len(took) / SECONDS, statistics.median(took) * 1e3, took[int(len(took) * 0.99) - 1] * 1e3


def plant(stack: Stack, project: str, rows: int) -> None:
    """A day of usage in a customer's export, loaded as one file."""
    start = datetime.fromisoformat(DATE).replace(tzinfo=UTC)
    hours = [start + timedelta(hours=number % 24) for number in range(rows)]
    columns = {
        "billing_account_id": pa.array(["0A1B2C-3D4E5F-678901"] * rows),
        "cost_type": pa.array(["regular"] * rows),
        "service": pa.array(
            [{"id": f"S-{number % 40}", "description": f"Service {number % 40}"} for number in range(rows)]
        ),
        "sku": pa.array([{"id": f"K-{number % 900}", "description": f"SKU {number % 900}"} for number in range(rows)]),
        "usage_start_time": pa.array(hours, pa.timestamp("us", "UTC")),
        "usage_end_time": pa.array([hour + timedelta(hours=1) for hour in hours], pa.timestamp("us", "UTC")),
        "export_time": pa.array([hour + timedelta(hours=9) for hour in hours], pa.timestamp("us", "UTC")),
        "cost": pa.array([number % 977 / 100 for number in range(rows)]),
        "currency": pa.array(["USD"] * rows),
        "invoice": pa.array([{"month": "202506"}] * rows),
    }
    client = stack.bigquery(project)
    client.create_dataset(DATASET, exists_ok=True)
    target = f"{project}.{DATASET}.{TABLE}"
    client.create_table(bigquery.Table(target, schema=schema()), exists_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(pa.table(columns), path)
        fields = [field for field in schema() if field.name in columns]
        staged = f"{project}.{DATASET}.staged"
        config = bigquery.LoadJobConfig(schema=fields, source_format="PARQUET")
        with path.open("rb") as file:
            client.load_table_from_file(file, staged, job_config=config).result()
    names = ", ".join(columns)
    client.query_and_wait(f"INSERT INTO `{target}` ({names}) SELECT {names} FROM `{staged}`")
    client.close()


def main() -> None:
    """Starts a stack, measures, prints."""
    rows = int(os.environ.get("BENCH_ROWS", "100000"))
    table = Table("what", "figure")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "stack") as stack:
        tenant = stack.onboard()
        for connections in (1, CONNECTIONS):
            rate, p50, p99 = asyncio.run(read_rate(stack, connections))
            table.add_row(
                f"reads through the gateway, {connections} at once",
                f"{rate:,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            )
        plant(stack, "bench-customer", rows)
        source = {"project_id": "bench-customer", "dataset_id": DATASET, "table_id": TABLE}
        tenant.store_credential(project_id="bench-customer", source=source)
        began = time.perf_counter()
        tenant.run(date=DATE, timeout=1800)
        took = time.perf_counter() - began
        table.add_row(f"run of gcp/cost/billing over {rows:,} rows", f"{took:.1f} s, {rows / took:,.0f} rows/s")
        equal = tenant.totals(DATE) == source_totals(stack, "bench-customer", DATASET, TABLE, DATE)
        table.add_row("stored equals source", "yes" if equal else "NO")
    Console().print(table)
    with emulator() as endpoint:
        scheduler_statements.show(asyncio.run(scheduler_statements.measure(endpoint)))


if __name__ == "__main__":
    main()
