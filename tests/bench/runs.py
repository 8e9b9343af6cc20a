"""A run of ``gcp/cost/billing`` over many rows, from REST to published, on a stack of its own.

``BENCH_ROWS`` sets the rows of the day (default 100,000).
"""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud import bigquery

from tests.support.billing import schema
from tests.support.stack import Stack, Tenant, source_totals

DATE = "2025-06-15"
PROJECT, DATASET, TABLE = "bench-customer", "exports", "gcp_billing_export_v1_BENCH0_000000_000000"


def measure(stack: Stack, tenant: Tenant) -> list[dict[str, Any]]:
    """One result: seconds, rows a second, the executor's peak memory, and whether the totals are the source's."""
    rows = int(os.environ.get("BENCH_ROWS", "100000"))
    plant(stack, PROJECT, rows)
    source = {"project_id": PROJECT, "dataset_id": DATASET, "table_id": TABLE}
    tenant.store_credential(project_id=PROJECT, source=source)
    began = time.perf_counter()
    tenant.run(date=DATE, timeout=1800)
    took = time.perf_counter() - began
    return [
        {
            "pipeline": "gcp/cost/billing",
            "rows": rows,
            "seconds": round(took, 1),
            "rows_per_second": round(rows / took),
            "executor_peak_mib": peak_mib(stack.process("pipeline_executor").pid),
            "equals_source": tenant.totals(DATE) == source_totals(stack, PROJECT, DATASET, TABLE, DATE),
        }
    ]


def peak_mib(pid: int) -> int:
    """The most memory a process ever had resident, in MiB: ``VmHWM`` of Linux's ``/proc/<pid>/status``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) // 1024


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
