"""``make setup-bigquery`` on the emulator: complete, idempotent, harmless twice at once, frugal."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime

from deploy.setup_bigquery_datasets import setup
from libs import tables
from libs.audit import AuditLog, AuditRecord, Outcome
from libs.bigquery import Sql, Warehouse

CENTRAL = [
    "pipeline_execution_queue",
    "scheduled_pipeline_runs",
    "tenant_api_keys",
    "tenant_cloud_credentials",
    "tenant_pipeline_configs",
    "tenant_profiles",
    "tenant_subscriptions",
    "tenant_usage_quotas",
]


async def test_two_at_once_create_everything_once(warehouse: Warehouse) -> None:
    lines: list[list[str]] = [[], []]
    await asyncio.gather(*(setup(warehouse, report.append) for report in lines))
    for report in lines:
        assert f"8 of 8 tables: {', '.join(CENTRAL)}" in report
        assert any(line.startswith("helper tables: audit_log, ") for line in report)
    again: list[str] = []
    before = warehouse.statements.total()
    await setup(warehouse, again.append)
    assert "tables created: none, all were there" in again
    assert warehouse.statements.total() - before <= 1


async def test_hot_tables_are_not_partitioned_and_logs_are(central: Warehouse) -> None:
    layout = {s.name: s.partition_by for name in ("central", "x_meta", "helper") for s in tables.group(name)}
    hot = ("tenant_usage_quotas", "pipeline_execution_queue", "tenant_pipeline_configs", "x_meta_pipeline_runs")
    assert [layout[name] for name in hot] == [None] * 4
    assert all(layout[name] for name in ("audit_log", "x_meta_step_logs", "x_meta_dq_results"))
    table = central.client.get_table(f"{central.project_id}.tenants.audit_log")
    assert table.time_partitioning.field == "time" and table.clustering_fields == ["tenant_id"]


def test_the_command_succeeds_and_says_how_to_fix_what_it_cannot_do(bigquery_emulator) -> None:
    environment = {
        **os.environ,
        "GCP_PROJECT_ID": "setup-command",
        "CONVERGENCE_ENVIRONMENT": "local",
        "CONVERGENCE_BIGQUERY_ENDPOINT": bigquery_emulator.rest,
    }
    command = [sys.executable, "-m", "deploy.setup_bigquery_datasets"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 tables" in done.stdout
    del environment["GCP_PROJECT_ID"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "GCP_PROJECT_ID is not set" in refused.stderr


async def test_audit_records_of_one_moment_share_a_statement(central: Warehouse) -> None:
    log = AuditLog(central)
    time = datetime(2025, 11, 17, 12, tzinfo=UTC)
    records = [
        AuditRecord(
            time=time,
            tenant_id="acme",
            action="tenant.suspend",
            object_type="tenant",
            object_id="acme",
            outcome=Outcome.DENIED,
            reason="ROLE_TOO_LOW",
            details={"n": n, "text": 'a "b"\n'},
        )
        for n in range(200)
    ]
    before = central.statements.total()
    await asyncio.gather(*(log.append(record) for record in records))
    assert central.statements.total() - before <= 2
    read = Sql(
        "test/audit.sql",
        "SELECT COUNT(DISTINCT a.record_id) AS ids, MIN(a.time) AS time, MAX(a.outcome) AS outcome, "
        "SUM(CAST(JSON_VALUE(a.details, '$.n') AS INT64)) AS n, COUNTIF(a.user_id IS NULL) AS nobody "
        "FROM audit_log AS a",
    )
    [row] = await central.query(read, dataset="tenants")
    assert row == {"ids": 200, "time": time, "outcome": "DENIED", "n": 199 * 100, "nobody": 200}
