"""The scheduler's store on the BigQuery emulator."""

from __future__ import annotations

import dataclasses

import pytest

from libs.bigquery import Sql, Warehouse, rows_param
from services.scheduler.store import BigQueryQueue, BigQueryRecords, BigQuerySchedules
from tests.support.scheduler_suite import StoreSuite, schedule

TABLES = (
    "tenant_pipeline_configs",
    "scheduled_pipeline_runs",
    "pipeline_execution_queue",
    "scheduler_backfills",
    "scheduler_job_calls",
)


class BigQueryStore(BigQuerySchedules, BigQueryQueue, BigQueryRecords):
    """All three at once, as the suite wants them."""


class TestBigQueryStore(StoreSuite):
    @pytest.fixture(autouse=True)
    def _central(self, central: Warehouse) -> None:
        self.warehouse = central

    async def make(self) -> BigQueryStore:
        for table in TABLES:
            await self.warehouse.execute(
                Sql(f"test/clear_{table}.sql", f"DELETE FROM {table} WHERE TRUE"), dataset="tenants", conflict_retries=5
            )
        return BigQueryStore(self.warehouse)

    async def test_a_schedule_is_added_once_also_under_another_job_id(self) -> None:
        """A try that had added it, and whose end was not understood, is followed by one under the next id."""
        store, row = await self.make(), schedule()
        rows = rows_param([{**dataclasses.asdict(row), "version": 1}])
        for suffix in ("", "-b"):
            await store._do.script("insert_schedule", job_id=f"schedule-{row.config_id}{suffix}", rows=rows)
        count = Sql("test/count.sql", "SELECT COUNT(*) AS n FROM tenant_pipeline_configs AS c WHERE c.config_id = @id")
        assert await self.warehouse.query(count, dataset="tenants", params={"id": row.config_id}) == [{"n": 1}]
