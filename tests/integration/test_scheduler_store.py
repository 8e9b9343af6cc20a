"""The scheduler's store on the BigQuery emulator."""

from __future__ import annotations

import pytest

from libs.bigquery import Sql, Warehouse
from services.scheduler.store import BigQueryQueue, BigQueryRecords, BigQuerySchedules
from tests.support.scheduler_suite import StoreSuite

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
