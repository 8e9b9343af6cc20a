"""The sample customer's export: whole, idempotent, and through the pipeline to the last digit."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from deploy.local import sample_data
from libs.bigquery import Warehouse, build_client
from libs.tenancy import TenantId
from services.pipeline_executor.engine import Engine
from services.pipeline_executor.run_context import Outcome, SourceEndpoints
from services.pipeline_executor.templates import Templates
from tests.conftest import Emulator
from tests.support.billing import DAY, Customer, TenantRuns

TOTALS = """SELECT t.currency AS currency, COUNT(*) AS n, SUM(t.cost) AS cost, SUM(t.net_cost) AS net
FROM gcp_cost_billing AS t GROUP BY t.currency ORDER BY t.currency"""


@pytest.fixture(scope="module")
def customer(bigquery_emulator: Emulator, project_id: str) -> Iterator[Customer]:
    client = build_client(f"{project_id}-sample", endpoint=bigquery_emulator.rest)
    sample_data.seed(client)
    yield Customer(client)
    client.delete_dataset(sample_data.DATASET, delete_contents=True)
    client.close()


def test_seeding_again_changes_nothing(customer: Customer) -> None:
    before = customer.client.get_table(sample_data.seed(customer.client))
    assert before.num_rows == 8352 + 16
    assert before.time_partitioning.field is None
    again = customer.client.get_table(sample_data.seed(customer.client))
    assert (again.num_rows, again.created) == (before.num_rows, before.created)
    [found] = customer.sql(
        f"SELECT COUNTIF(t._PARTITIONTIME > TIMESTAMP '2025-11-19') AS late, COUNT(*) AS n, "
        f"COUNT(DISTINCT t.currency) AS currencies FROM {sample_data.DATASET}.{sample_data.TABLE} AS t "
        "WHERE DATE(t.usage_start_time) = DATE '2025-11-17'"
    )
    assert found["n"] == 288 + 16
    assert found["late"] >= 6
    assert found["currencies"] == 2


async def test_the_day_arrives(
    warehouse: Warehouse, customer: Customer, bigquery_emulator: Emulator, tmp_path: Path
) -> None:
    endpoints = SourceEndpoints(bigquery_emulator.rest, bigquery_emulator.grpc)
    runs = TenantRuns(warehouse, TenantId("sample"), customer, endpoints, tmp_path)
    await runs.prepare()
    pipeline = Templates.load().get("gcp", "cost", "billing")
    result = await Engine().run(pipeline, await runs.begin(DAY))
    assert (result.outcome, result.rows_published) == (Outcome.PUBLISHED, 304)
    euro, dollar = await runs.rows(TOTALS)
    assert (euro["currency"], euro["n"], euro["cost"], euro["net"]) == ("EUR", 2, Decimal("2.3"), Decimal("2.208"))
    assert (dollar["currency"], dollar["n"]) == ("USD", 302)
    source = customer.sql(
        "SELECT SUM(CAST(t.cost AS NUMERIC)) AS cost, "
        "SUM((SELECT SUM(CAST(c.amount AS NUMERIC)) FROM UNNEST(t.credits) AS c)) AS credits "
        f"FROM {sample_data.DATASET}.{sample_data.TABLE} AS t "
        "WHERE DATE(t.usage_start_time) = DATE '2025-11-17' AND t.currency = 'USD'"
    )[0]
    assert dollar["cost"] == source["cost"]
    assert dollar["net"] == source["cost"] + source["credits"]
    # The generator's 288 rows and the planted ones, added up by hand.
    assert dollar["cost"].quantize(Decimal("0.01")) == (Decimal("1.158196533") + Decimal("12.4642882")).quantize(
        Decimal("0.01")
    )
    month = await Engine().run(pipeline, await runs.begin(DAY.replace(day=1), DAY.replace(day=30)))
    assert month.rows_published == 8352 + 16
